"""`make gpu`: what runs, what is kept, and how it ends; with small programs in place of the parts."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from forked import HANGS
from gpu_program import gpu_program, until
from once import once, shared_folder
from pretended_gpu import compile_guard, has_cpp_compiler

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {"device": "NVIDIA X", "torch": "2.13.0"}
FIGURE = {
    "name": "copy",
    "unit": "GB/s",
    "samples": [3.0, 1.0, 2.0],
    "cost": None,
    "ceiling": "bandwidth",
    "note": "",
}
# Writes a figure as gpu.measure does, and then ends in its own way.
MEASURE = f"""
import json, os, signal, sys, time
file = open(sys.argv[2], "a")
print({json.dumps(FIGURE)!r}, file=file, flush=True)
"""
ENDS = {
    "good": "print('all went well')",
    "lacking": "print(json.dumps({'lacking': '34B: 1 GiB is free'}), file=file)",
    "bad": "print('it broke here'); sys.exit(7)",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    # With a child; both ignore Ctrl-C, as what hangs may.
    "hanging": """
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.fork()
print(os.getpid(), flush=True)
time.sleep(600)
""",
    "slow": "time.sleep(600)",
    "interrupting": "os.kill(os.getppid(), signal.SIGINT); time.sleep(600)",
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    return gpu_program(monkeypatch)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def call(
    gpu: Any,
    out: Path,
    *ends: str,
    tree: str = "abc",
    machine: Any = MACHINE,
    limit: float = HANGS,
    part_limit: float = HANGS,
    seconds: float = 1.0,
) -> int:
    """One call of the program, whose parts end as ENDS says, and are expected to take so many seconds."""
    parts = [
        gpu.parts.Part(end, f"which is {end}", seconds, ("-c", MEASURE + ENDS[end]), part_limit)
        for end in ends
    ]
    results = gpu.results.Results(out)
    work = out.with_name(f"work {time.monotonic_ns()}")
    work.mkdir()
    made = gpu.driver.Call(limit, time.monotonic(), work, dict(os.environ))
    return int(gpu.driver.run_parts(parts, results, results.run(tree, machine), made))


def entries(out: Path, which: int = -1) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())["runs"][which]["parts"]
    return found


# ---- parts ----


def test_a_part_is_run_once_for_each_state_of_the_code_and_each_machine(gpu, out, capsys):
    assert call(gpu, out, "good", "lacking") == 0
    assert entries(out)["good"]["figures"] == [FIGURE]
    assert entries(out)["lacking"]["lacking"] == ["34B: 1 GiB is free"]
    assert entries(out)["lacking"]["status"] == "done"
    capsys.readouterr()
    assert call(gpu, out, "good", "lacking") == 0
    assert capsys.readouterr().out.count("was done before") == 2
    assert call(gpu, out, "good", tree="abc changed 1") == 0
    assert call(gpu, out, "good", machine={**MACHINE, "torch": "2.14.0"}) == 0
    assert "was done before" not in capsys.readouterr().out
    assert (out / "parts.log").read_text().count("all went well") == 3
    assert sorted(path.name for path in out.iterdir()) == ["parts.log", "results.json", "results.md"]


def test_a_part_that_fails_leaves_its_log_and_the_rest_runs(gpu, out, capsys):
    assert call(gpu, out, "bad", "killed", "good") == 1
    said = capsys.readouterr().out
    assert re.search(r"bad: failed in \d+ s, exit code 7\n  \| it broke here\n", said)
    assert "killed by SIGKILL" in said
    assert {name: entry["status"] for name, entry in entries(out).items()} == {
        "bad": "failed",
        "killed": "failed",
        "good": "done",
    }
    assert "it broke here" in (out / "parts.log").read_text()
    assert call(gpu, out, "bad", "good") == 1  # tried again
    assert (out / "parts.log").read_text().count("it broke here") == 2


def test_a_part_that_hangs_is_ended_with_all_its_processes(gpu, out, monkeypatch):
    """And what it had measured is kept."""

    def pids() -> list[int]:
        return [int(line) for line in (out / "parts.log").read_text().splitlines() if line.isdecimal()]

    def wait(process: Any, seconds: float) -> int | None:
        until(lambda: len(pids()) == 2)

    monkeypatch.setattr(gpu.driver, "_GRACE", 0.3)
    monkeypatch.setattr(gpu.driver, "_wait", wait)
    assert call(gpu, out, "hanging", part_limit=77.0) == 1
    entry = entries(out)["hanging"]
    assert entry["reason"] == "stopped after 77 s, its own limit"
    assert entry["figures"] == [FIGURE]
    until(lambda: not any(map(_runs, pids())))


def _runs(pid: int) -> bool:
    """Whether a process is there, and no zombie that nobody has waited for yet."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_what_goes_beyond_the_limit_waits_for_the_next_call(gpu, out, capsys):
    """The first part of a call always begins, so that each is run at last."""
    assert call(gpu, out, "good", "lacking", limit=100, seconds=5000.0) == 0
    assert "lacking: waits for the next call, as LIMIT=100" in capsys.readouterr().out
    assert call(gpu, out, "good", "lacking", limit=100, seconds=5000.0) == 0
    assert list(entries(out)) == ["good", "lacking"]
    # What is expected holds for a real GPU.
    pretended = {**MACHINE, "pretended": True}
    assert call(gpu, out, "good", "lacking", limit=100, seconds=400.0, machine=pretended) == 0
    assert list(entries(out)) == ["good", "lacking"]
    # At another commit it is known what they take.
    assert call(gpu, out, "good", "lacking", limit=100, seconds=5000.0, tree="next") == 0
    assert list(entries(out)) == ["good", "lacking"]


def test_a_part_that_the_limit_cuts_off_has_failed(gpu, out):
    assert call(gpu, out, "slow", limit=1.5) == 1
    assert entries(out)["slow"]["reason"].endswith("what LIMIT=2 left")


def test_ctrl_c_ends_the_part_and_keeps_what_is_done(gpu, out, capsys):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert call(gpu, out, "good", "interrupting", "lacking") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(entries(out)) == ["good"]
    assert "what was done is kept" in capsys.readouterr().out
    assert "## " not in (out / "results.md").read_text()  # of parts that are not the program's own


# ---- the command line ----


@pytest.fixture
def machine(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What probe.py would say; a test changes it."""
    found = {"lacking": [], "torch": "2.13.0+cu130", "transformers": "5.0.0", "machine": MACHINE}
    monkeypatch.setattr(sys.modules["gpu.__main__"], "probed", lambda env, pretend_in: found)
    monkeypatch.setattr(sys.modules["gpu.__main__"], "compile_kernels", lambda env: "")
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its own
    return found


@pytest.mark.parametrize(
    ("words", "change", "code", "said"),
    [
        (["--parts", "tests,foo"], {}, 2, "PARTS=foo is unknown; known are tests, ceilings, decode-7b"),
        (["--out", "{file}"], {}, 2, "cannot be used"),
        (["--out", "{file}/below"], {}, 2, "cannot be used"),
        (["--out", ""], {}, 2, "OUT is empty"),
        (["--limit", "0"], {}, 2, "LIMIT=0; it must be a number of seconds above 0"),
        (["--limit", "nan"], {}, 2, "LIMIT=nan"),
        ([], {"machine": None}, 3, "no GPU: torch finds no CUDA device"),
        (["--pretend"], {"machine": None}, 3, "no GPU: there is no C++ compiler"),
        ([], {"torch": None}, 2, "has no torch; torch 2.11 or newer is needed"),
        ([], {"torch": "2.9.1"}, 2, "has torch 2.9.1; torch 2.11 or newer"),
        ([], {"transformers": None}, 2, "has no transformers"),
    ],
)
def test_a_call_that_cannot_be_done_says_why(gpu, machine, tmp_path, capsys, words, change, code, said):
    machine |= change
    file = tmp_path / "a file"
    file.write_text("kept")
    words = ["--out", str(tmp_path / "out"), *(word.format(file=file) for word in words)]
    assert sys.modules["gpu.__main__"].main(words) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert file.read_text() == "kept"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"version": 2, "runs": []}', '{"version": 1, "runs": [{"a": 1}]}', "\xff"]
)
def test_results_that_cannot_be_read_are_not_overwritten(gpu, machine, out, capsys, text):
    out.mkdir()
    (out / "results.json").write_bytes(text.encode("latin-1"))
    assert sys.modules["gpu.__main__"].main(["--out", str(out)]) == 2
    assert "results" in capsys.readouterr().err
    assert (out / "results.json").read_bytes() == text.encode("latin-1")


def test_parts_are_run_most_valuable_first_whatever_their_order(gpu):
    chosen = gpu.parts.chosen
    assert [part.name for part in chosen("profile, tests,,34b tests")] == ["tests", "profile", "34b"]
    assert chosen("") == chosen(" ") == list(gpu.parts.PARTS)
    assert all(part.limit < 540 and part.seconds < part.limit for part in gpu.parts.PARTS)
    assert sum(part.seconds for part in gpu.parts.PARTS) < 30 * 60
    # A machine that is lent for 15 minutes: whatever hangs first, a second call has time for the next two parts.
    first, second, third, *_ = gpu.parts.PARTS
    assert first.limit + second.seconds + third.seconds < 8 * 60


def test_libraries_come_from_the_folder_of_wheels_alone(gpu, tmp_path):
    """Into a folder of their own; the message says how to fill the other."""
    with pytest.raises(gpu.libraries.LibrariesError, match=r"lacks fire, and .* run `make gpu-wheels` where"):
        gpu.libraries.install(["fire"], tmp_path, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_every_library_that_may_be_lacking_is_locked(gpu):
    names = gpu.libraries.projects(importlib.import_module("gpu.probe").NEEDED)
    assert len(names) == len(set(names)) > 10
    blocks = gpu.libraries.locked(names)
    assert all(block.startswith(f"{name}==") and "--hash=sha256:" in block for name, block in blocks.items())
    assert len(blocks) == len(names)


def test_pytest_takes_the_options_for_a_real_gpu(gpu):
    """Which no other test gives it; and what it then runs are the laws of a real one too."""
    options = importlib.import_module("gpu.works.laws").options(tiny=False)
    words = [sys.executable, "-m", "pytest", *options, "--collect-only"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_real_gpu.py::test_a_cache_of_more_than_two_to_the_31_numbers_is_a_cache" in done.stdout


# ---- the whole of it ----


@pytest.fixture
def copying_compiler(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A program for CXX that gives what the compiler made once for this test run, as the tests of tests/gpu do."""
    if not has_cpp_compiler():
        pytest.skip("no C++ compiler")
    folder = shared_folder(tmp_path_factory, "pretended_gpu")
    library = once(folder / "guard.json", lambda: str(compile_guard(folder)))
    program = tmp_path / "compiler"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = -fsyntax-only ] || cp "{library}" "$(echo "$*" | sed "s/.*-o //")"\n'
    )
    program.chmod(0o755)
    return str(program)


def test_a_part_of_a_pretended_run_from_the_command_line(tmp_path, copying_compiler):
    words = ["-m", "gpu", "--pretend", "--parts", "prefill-7b", "--out", tmp_path / "out"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks"), "OMP_NUM_THREADS": "1"}
    env["CXX"] = copying_compiler
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=2 * HANGS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "prefill-7b: done in" in done.stdout
    (figure, _, plain) = entries(tmp_path / "out")["prefill-7b"]["figures"]
    assert (figure["note"], plain["note"]) == ("attention: flash, tables", "attention: torch")
    assert (figure["name"], figure["unit"], len(figure["samples"])) == ("7B, prompt, 32 tokens", "ms", 2)
    assert "no figure on this page is to be quoted" in (tmp_path / "out" / "results.md").read_text()
