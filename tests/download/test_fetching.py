"""What download.sh fetches, and what it does not fetch again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest
from download_script import HELD, LIMIT, SCRIPT, SECRETS, WEIGHTS, needs_tools, transfers, until
from download_server import QUERY, Fault, checkpoint

pytestmark = needs_tools


def test_a_model_of_several_shards_arrives_byte_for_byte_and_only_once(script) -> None:
    script.server.files |= checkpoint("34b-Instruct")
    result = script.run("--models", "34b-instruct")
    assert (result.returncode, result.stderr) == (0, "")
    script.complete("34b-Instruct")
    names = ["checklist.chk", "params.json", "tokenizer.model"]
    names += [f"consolidated.0{shard}.pth" for shard in range(4)]
    assert [one.path for one in script.server.gets("")] == [
        f"CodeLlama-34b-Instruct/{name}" for name in names
    ]
    lines = result.stdout.splitlines()
    assert len(lines) == 8, "a line per file, and the last"
    assert lines[-1] == "All files of 34b-Instruct are there and verified."


def test_two_lanes_fetch_at_once_and_each_file_once(script) -> None:
    script.server.files |= checkpoint("13b")
    slow = Fault(hold=HELD)
    held = [f"CodeLlama-13b/consolidated.{shard}.pth" for shard in ("00", "01")]
    script.server.faults |= dict.fromkeys(held, slow)
    process = script.start("--models", "7b,13b", "--jobs", "2")
    until(lambda: all(script.server.gets(path) for path in held))
    assert len(transfers(script.server)) == 2
    slow.go.set()
    process.communicate(timeout=LIMIT)
    assert process.returncode == 0
    script.complete("7b")
    script.complete("13b")
    assert len({one.path for one in script.server.gets("")}) == len(script.server.gets("")) == 9


def test_a_finished_model_is_verified_and_asks_for_nothing(script) -> None:
    assert script.run("--models", "7b").returncode == 0
    before = len(script.server.requests)
    result = script.run("--models", "7b")
    assert result.returncode == 0
    assert script.server.requests[before:] == []
    assert f"{WEIGHTS}: 195.4 KiB, already there, verified." in result.stdout


def test_a_finished_file_that_was_damaged_since_is_fetched_again_alone(once) -> None:
    assert once.run("--models", "7b").returncode == 0
    path = once.folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    before = len(once.server.requests)
    assert once.run("--models", "7b").returncode == 0
    assert {one.path for one in once.server.requests[before:]} == {WEIGHTS}
    once.complete()


@pytest.mark.parametrize("program", ["md5sum", "md5", "python3"])
def test_any_program_for_md5_will_do(once, program) -> None:
    if not shutil.which(program):
        pytest.skip(f"{program} is not on this machine")
    assert once.run("--models", "7b", env={"CODELLAMA_MD5": program}).returncode == 0
    once.complete()
    (once.folder / WEIGHTS).write_bytes(b"PK\3\4")
    assert once.run("--check-only", env={"CODELLAMA_MD5": program}).returncode == 1


def test_arguments_may_come_from_the_environment(once, tmp_path) -> None:
    chosen = {
        "CODELLAMA_URL": once.server.url,
        "CODELLAMA_MODELS": "7b",
        "CODELLAMA_DIR": str(tmp_path / "elsewhere"),
        "CODELLAMA_JOBS": "2",
    }
    process = subprocess.run(
        ["bash", str(SCRIPT)], env=once.environment(chosen), stdin=subprocess.DEVNULL, capture_output=True
    )
    assert process.returncode == 0
    once.folder = tmp_path / "elsewhere"
    once.complete()


def test_questions_are_asked_on_a_terminal_and_the_url_is_not_echoed(once) -> None:
    pty = pytest.importorskip("pty")
    once.server.query = QUERY + "&Padding=" + "x" * 3000  # longer than a line that a macOS terminal takes
    once.server.faults[WEIGHTS] = Fault(hold=HELD)
    once.folder.mkdir()
    terminal, inner = pty.openpty()
    process = subprocess.Popen(
        ["bash", str(SCRIPT)],
        cwd=once.folder,
        env=once.environment(),
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
    )
    os.close(inner)
    seen = b""

    def read_until(words: bytes) -> None:
        nonlocal seen
        while not re.search(words, seen):
            seen += os.read(terminal, 65536)

    read_until(b"it is not shown")
    os.write(terminal, once.server.url.encode() + b"\n")
    read_until(rb"The models \(")
    os.write(terminal, b"7b\n")
    read_until(rb"CodeLlama-7b/consolidated.00.pth +\[#+ *\] [0-9.]+ KiB of 195.4 KiB")
    once.server.faults[WEIGHTS].go.set()
    read_until(rb"All files of 7b are there and verified\.")
    assert process.wait(LIMIT) == 0
    os.close(terminal)
    once.complete()
    assert not any(secret.encode() in seen for secret in SECRETS)
