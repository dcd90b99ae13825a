"""download.sh against a server that fails in every way a download can: what it keeps, says and asks for."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from download_server import QUERY, Fault, Server, checkpoint, serving

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "download.sh"
FETCHERS = [tool for tool in ("curl", "wget") if shutil.which(tool)]
SECRETS = [part.partition("=")[2] for part in QUERY.split("&")][:2]
WEIGHTS = "CodeLlama-7b/consolidated.00.pth"
# Guards against hanging only: where a test asks for something sooner, it says so.
LIMIT = 120.0
# Bytes of a file after which the server waits, where a test needs a transfer that is under way.
HELD = 70_000

pytestmark = pytest.mark.skipif(
    not (FETCHERS and shutil.which("bash")), reason="download.sh needs bash, and curl or wget"
)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(checkpoint("7b")) as state:
        yield state


@pytest.fixture(params=FETCHERS)
def fetcher(request) -> str:
    return request.param


class Script:
    """download.sh with its folder, server and fetcher settled."""

    def __init__(self, server: Server, folder: Path, fetcher: str) -> None:
        self.server, self.folder, self.fetcher = server, folder, fetcher

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        foreign = ("codellama_", "http_proxy", "https_proxy", "all_proxy", "bash_env", "shellopts")
        env = {key: value for key, value in os.environ.items() if not key.lower().startswith(foreign)}
        own = {
            "CODELLAMA_HOST": self.server.host,
            "CODELLAMA_FETCHER": self.fetcher,
            "CODELLAMA_WAIT": "0.05",
        }
        return {**env, **own, "LC_ALL": "C", **(extra or {})}

    def start(self, *options: str, env: Mapping[str, str] | None = None, url: str | None = None):
        given = ["--url", self.server.url if url is None else url]
        if env and "CODELLAMA_URL" in env:
            given = []
        where = [] if "--dir" in options else ["--dir", str(self.folder)]
        return subprocess.Popen(
            ["bash", str(SCRIPT), *given, *where, *options],
            env=self.environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *options: str, env: Mapping[str, str] | None = None, url: str | None = None):
        """Run to the end. Whatever happens, the URL's query stands nowhere."""
        process = self.start(*options, env=env, url=url)
        try:
            out, err = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
        for secret in SECRETS:
            assert secret not in out + err
            assert not holding(self.folder, secret)
        return subprocess.CompletedProcess(options, process.returncode, out, err)

    def complete(self, model: str = "7b") -> None:
        """Every file of the model is byte-identical to the server's, and nothing else is left."""
        wanted = {
            path: content
            for path, content in self.server.files.items()
            if path.startswith(f"CodeLlama-{model}/")
        }
        for path, content in wanted.items():
            assert (self.folder / path).read_bytes() == content, path
        found = {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}
        assert {path for path in found if path.startswith(f"CodeLlama-{model}/")} == set(wanted)
        assert not list(self.folder.glob(".download*"))


def holding(folder: Path, secret: str) -> list[Path]:
    """Files below the folder that contain the secret. Those that vanish meanwhile do not count."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and secret.encode() in path.read_bytes():
                found.append(path)
    return found


def until(condition: Callable[[], object], seconds: float = LIMIT) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def transfers(server: Server) -> list[psutil.Process]:
    """Every process of this machine that has a connection to the server, but for the tests' own."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() in ("curl", "wget") and process.status() != psutil.STATUS_ZOMBIE:
                joined = process.net_connections()
                if any(one.raddr and one.raddr.port == server.port for one in joined):
                    found.append(process)
    return found


def until_held(script: Script) -> None:
    """Wait until the weights are there as far as the server gives them, but for what curl has not yet written."""
    part = script.folder / (WEIGHTS + ".part")
    until(lambda: part.exists() and part.stat().st_size > HELD - 8192)


def shells_of(pid: int) -> list[psutil.Process]:
    """The script, and what it forked of itself."""
    found = []
    with contextlib.suppress(psutil.Error):
        script = psutil.Process(pid)
        for process in (script, *script.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                if process.name() == "bash":
                    found.append(process)
    return found


@pytest.fixture
def script(server, tmp_path, fetcher) -> Script:
    return Script(server, tmp_path / "weights folder", fetcher)


@pytest.fixture
def once(server, tmp_path) -> Script:
    """For what does not depend on the fetcher."""
    return Script(server, tmp_path / "weights folder", FETCHERS[0])


def part_of(script: Script, size: int, path: str = WEIGHTS) -> Path:
    """A .part with the first bytes of the file, as a cut download leaves it."""
    part = script.folder / (path + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(script.server.files[path][:size])
    return part


# ------------------------------------------------------------------------------------ what is fetched


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
    for shard in ("00", "01"):
        script.server.faults[f"CodeLlama-13b/consolidated.{shard}.pth"] = slow
    process = script.start("--models", "7b,13b", "--jobs", "2")
    until(lambda: len(transfers(script.server)) == 2)
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


# ------------------------------------------------------------------------------------ the secret


@pytest.mark.parametrize("way", ["option", "environment"])
def test_the_query_is_in_no_process_and_no_file_while_it_is_used(script, way) -> None:
    # Of this run alone: the processes of other tests may be starting with theirs meanwhile.
    own = uuid.uuid4().hex
    script.server.query = "&".join(part + own for part in QUERY.split("&"))
    script.server.faults[WEIGHTS] = Fault(hold=HELD)
    env = {"CODELLAMA_URL": script.server.url} if way == "environment" else None
    process = script.start("--models", "7b", env=env)
    until_held(script)
    assert transfers(script.server)
    for other in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            assert own not in " ".join(other.cmdline()) + str(other.environ()), other.name()
    assert not holding(script.folder, own)
    script.server.faults[WEIGHTS].go.set()
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0
    assert own not in out + err
    assert not [secret for secret in SECRETS if secret in out + err]
    script.complete()


# What a caller may have exported: names that the script uses itself, and bash's options.
INHERITED = {
    "names": dict.fromkeys(["before", "after", "url", "secret", "answer", "size", "program"], "theirs"),
    "values": dict.fromkeys(["after", "url", "secret"], "a_proxy=theirs"),
    "options": {"SHELLOPTS": "allexport:errexit:noclobber:noglob:posix"},
}


@pytest.mark.parametrize("inherited", INHERITED)
def test_the_query_is_in_the_environment_of_no_program_whatever_the_caller_exported(
    script, tmp_path, inherited
) -> None:
    log, shims = tmp_path / "environments", tmp_path / "shims"
    told = f'{{ "{shutil.which("env")}"; echo "$0" "$@"; }} >>"{log}"'
    shims.mkdir()
    for name in (script.fetcher, "awk", "env", "head", "wc", "md5sum", "mv", "mkdir", "sed", "sleep"):
        program = shutil.which(name)
        (shims / name).write_text(f'#!/bin/sh\n{told}\nexec "{program}" "$@"\n')
        (shims / name).chmod(0o755)
    env = {"PATH": f"{shims}{os.pathsep}{os.environ['PATH']}", **INHERITED[inherited]}
    result = script.run("--models", "7b", env=env)
    assert (result.returncode, result.stderr) == (0, "")
    script.complete()
    seen = log.read_text()
    assert {Path(line.split()[0]).name for line in seen.splitlines() if line.startswith(f"{shims}/")} >= {
        script.fetcher,
        "md5sum",
    }
    assert [secret for secret in SECRETS if secret in seen] == []


def test_the_script_may_be_read_from_a_pipe(once, tmp_path) -> None:
    (tmp_path / "main").write_text("exit 9\n")  # bash's name for the file of such a script's functions
    command = ["bash", "-s", "--", "--url", once.server.url, "--models", "7b", "--dir", str(once.folder)]
    result = subprocess.run(
        command, env=once.environment(), cwd=tmp_path, input=SCRIPT.read_bytes(), capture_output=True
    )
    assert (result.returncode, result.stderr) == (0, b"")
    once.complete()


@pytest.mark.parametrize(
    "fault", [Fault(status=403), Fault(status=404), Fault(status=302), Fault(status=500), Fault(cut=0)]
)
def test_no_failure_prints_the_query(script, fault) -> None:
    script.server.faults[WEIGHTS] = (
        fault  # Script.run looks for the query in all that was printed and written
    )
    result = script.run("--models", "7b")
    assert result.returncode == 1
    assert f"  {WEIGHTS}: " in result.stderr
    if fault.status and fault.status < 500:
        assert len(script.server.gets()) == 1, "what will not change is not tried again"


def test_no_redirection_is_followed(script) -> None:
    """It would hand the query to another host."""
    with serving(checkpoint("7b")) as other:
        other.query = ""
        script.server.faults[WEIGHTS] = Fault(status=302, location=f"{other.host}/{WEIGHTS}")
        assert script.run("--models", "7b").returncode == 1
        assert other.requests == []


def test_settings_of_the_users_own_are_not_read(script, tmp_path) -> None:
    home, log = tmp_path / "home", tmp_path / "weights folder" / "log"
    home.mkdir()
    log.parent.mkdir()
    (home / ".curlrc").write_text(f'trace-ascii = "{log}"\n')
    (home / ".wgetrc").write_text(f"logfile = {log}\nuser_agent = theirs\n")
    result = script.run("--models", "7b", env={"HOME": str(home), "CURL_HOME": str(home)})
    assert result.returncode == 0
    script.complete()
    assert not log.exists()


# ------------------------------------------------------------------------------------ broken connections


def test_a_cut_connection_is_continued_where_it_broke(script) -> None:
    script.server.faults[WEIGHTS] = Fault(times=2, cut=70_000)
    assert script.run("--models", "7b").returncode == 0
    script.complete()
    assert [one.range for one in script.server.gets()] == [None, "bytes=70000-", "bytes=140000-"]
    assert script.server.sent() == len(script.server.files[WEIGHTS])


def test_only_tries_in_a_row_that_bring_nothing_are_counted(once) -> None:
    once.server.faults[WEIGHTS] = Fault(times=9, cut=20_000)
    assert once.run("--models", "7b").returncode == 0
    once.complete()
    assert len(once.server.gets()) == 10
    assert once.server.sent() == len(once.server.files[WEIGHTS])


def test_a_connection_that_falls_silent_counts_as_broken(script) -> None:
    script.server.faults[WEIGHTS] = Fault(times=1, hold=HELD)
    result = script.run("--models", "7b", env={"CODELLAMA_PATIENCE": "1"})
    assert result.returncode == 0
    script.complete()
    assert [one.range for one in script.server.gets()] == [None, f"bytes={HELD}-"]


def test_a_trickle_counts_as_broken_and_a_try_that_brings_one_as_none(script) -> None:
    script.server.faults[WEIGHTS] = Fault(times=1, drip=0.05)
    slow = {"CODELLAMA_PATIENCE": "1", **fake_df(script.folder.parent, 10**10)}
    assert script.run("--models", "7b", env=slow).returncode == 0
    script.complete()
    assert len(script.server.gets()) == 2
    (script.folder / WEIGHTS).unlink()
    script.server.faults[WEIGHTS] = Fault(times=20, cut=1)
    result = script.run("--models", "7b")
    assert result.returncode == 1
    assert "broke 5 times in a row, and brought less than 1000 bytes a second" in result.stderr
    assert len(script.server.gets()) == 2 + 5


def test_a_part_of_an_earlier_run_is_continued(script) -> None:
    part_of(script, 150_000)
    assert script.run("--models", "7b").returncode == 0
    script.complete()
    assert script.server.sent() == len(script.server.files[WEIGHTS]) - 150_000


def test_a_server_that_ignores_ranges_is_asked_from_the_start(script) -> None:
    part_of(script, 150_000)
    script.server.faults[WEIGHTS] = Fault(ranges=False)
    assert script.run("--models", "7b").returncode == 0
    script.complete()


def test_a_server_that_ignores_ranges_and_always_cuts_is_given_up(script) -> None:
    script.server.faults[WEIGHTS] = Fault(ranges=False, cut=70_000)
    result = script.run("--models", "7b")
    assert result.returncode == 1
    assert "the connection broke 5 times in a row" in result.stderr
    assert len(script.server.gets()) <= 12


def test_a_complete_part_is_not_fetched_but_verified(once) -> None:
    part_of(once, 10_000_000)
    assert once.run("--models", "7b").returncode == 0
    once.complete()
    assert once.server.gets() == []


def test_416_means_complete_where_no_size_is_told(script) -> None:
    part_of(script, 10_000_000)
    script.server.faults[WEIGHTS] = Fault(tells_size=False)
    plenty = fake_df(script.folder.parent, 10**10)
    result = script.run("--models", "7b", env=plenty)
    assert result.returncode == 0, result.stderr
    script.complete()
    assert [one.range for one in script.server.gets()] == [f"bytes={len(script.server.files[WEIGHTS])}-"]
    assert "does not tell the size; reckoning with 12.6 GiB" in result.stdout


def test_416_for_a_part_of_something_else_ends_in_the_right_file(once) -> None:
    part = part_of(once, 10_000_000)
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    once.server.faults[WEIGHTS] = Fault(tells_size=False)
    assert once.run("--models", "7b", env=fake_df(once.folder.parent, 10**10)).returncode == 0
    once.complete()
    assert once.server.sent() == len(once.server.files[WEIGHTS])


def test_a_run_killed_in_the_middle_is_continued_by_the_next(script) -> None:
    script.server.faults[WEIGHTS] = Fault(times=1, hold=HELD)
    process = script.start("--models", "7b")
    until_held(script)
    process.kill()
    process.wait()
    assert (script.folder / (WEIGHTS + ".part")).stat().st_size > 0
    result = script.run("--models", "7b")
    assert result.returncode == 0, result.stderr
    script.complete()
    assert script.server.sent() < 1.5 * len(script.server.files[WEIGHTS])
    assert script.server.gets()[-1].range
    process.communicate()


def test_a_killed_run_leaves_no_process_behind(once) -> None:
    once.server.faults[WEIGHTS] = Fault(hold=HELD)
    process = once.start("--models", "7b")
    until_held(once)
    assert transfers(once.server)
    process.kill()
    process.wait()
    until(lambda: not transfers(once.server), 30)  # half of what curl would wait for the next byte
    process.communicate()


def test_what_outlived_a_killed_run_is_ended_before_the_next_one_writes(script) -> None:
    script.server.faults[WEIGHTS] = Fault(times=1, hold=HELD)
    process = script.start("--models", "7b")
    until_held(script)
    # All are stopped before the first is killed: one that saw another gone would end the transfer itself.
    stopped: dict[int, psutil.Process] = {}
    while new := [one for one in shells_of(process.pid) if one.pid not in stopped]:
        for one in new:
            stopped[one.pid] = one
            with contextlib.suppress(psutil.Error):
                one.suspend()
    for one in stopped.values():
        with contextlib.suppress(psutil.Error):
            one.kill()
    process.communicate()
    assert transfers(script.server), "curl or wget is all that is left"
    assert script.run("--models", "7b").returncode == 0
    assert not transfers(script.server)
    script.complete()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_ends_its_children_and_says_how_to_go_on(script, sent, code) -> None:
    script.server.faults[WEIGHTS] = Fault(hold=HELD)
    process = script.start("--models", "7b")
    until_held(script)
    assert transfers(script.server)
    process.send_signal(sent)
    _, err = process.communicate(timeout=30)  # half of what curl would wait for the next byte
    assert process.returncode == code
    until(lambda: not transfers(script.server), 10)  # they were told to end, and may take a moment
    assert "--models 7b --dir " in err
    assert (script.folder / (WEIGHTS + ".part")).exists()
    assert not (script.folder / ".download.lock").exists()


def test_two_runs_in_one_folder_do_not_mix(once) -> None:
    once.server.faults[WEIGHTS] = Fault(hold=HELD)
    first = once.start("--models", "7b")
    until_held(once)
    second = once.run("--models", "7b")
    assert second.returncode == 2
    assert f"Another run, with process {first.pid} on" in second.stderr
    once.server.faults[WEIGHTS].go.set()
    first.communicate(timeout=LIMIT)
    assert first.returncode == 0
    once.complete()


@pytest.mark.parametrize("owner", ["", "{pid} {host}", "999999999 {host}"], ids=["none", "reused", "gone"])
def test_a_lock_whose_owner_is_gone_holds_nobody_up(once, owner) -> None:
    other = subprocess.Popen(["sleep", "600"])  # got the number of a run that was killed
    try:
        lock = once.folder / ".download.lock"
        lock.mkdir(parents=True)
        text = owner.format(pid=other.pid, host=socket.gethostname())
        (lock / "owner").write_text(text and text + "\n")
        (lock / "pid.fetch.0").write_text(f"{other.pid}\n")
        assert once.run("--models", "7b").returncode == 0
        assert other.poll() is None, "a stranger is left alone"
    finally:
        other.kill()
        other.wait()
    once.complete()


def test_a_lock_of_another_machine_is_respected(once) -> None:
    lock = once.folder / ".download.lock"
    lock.mkdir(parents=True)
    (lock / "owner").write_text("1 elsewhere\n")
    result = once.run("--models", "7b")
    assert (result.returncode, once.server.requests) == (2, [])
    assert f"If there is none, remove {lock}." in result.stderr


# ------------------------------------------------------------------------------------ wrong answers


def test_403_stops_at_once(script) -> None:
    script.server.files |= checkpoint("13b")
    script.server.faults["CodeLlama-7b/checklist.chk"] = Fault(status=403)
    result = script.run("--models", "7b,13b")
    assert result.returncode == 1
    assert "403: the URL has expired, or was used as often as it may be." in result.stderr
    assert [one.path for one in script.server.requests] == ["CodeLlama-7b/checklist.chk"]


def test_403_in_the_middle_keeps_what_is_there(once) -> None:
    once.server.files |= checkpoint("13b")
    once.server.faults["CodeLlama-13b/consolidated.00.pth"] = Fault(status=403)
    part_of(once, 150_000, "CodeLlama-13b/consolidated.00.pth")
    result = once.run("--models", "7b,13b")
    assert result.returncode == 1
    once.complete("7b")
    assert (once.folder / "CodeLlama-13b/consolidated.00.pth.part").stat().st_size == 150_000
    assert len(once.server.gets("13b/consolidated.01.pth")) == 0
    asked, unasked = re.findall(r"^  CodeLlama-13b/consolidated.*$", result.stderr, re.MULTILINE)
    assert asked.endswith("00.pth: the server answered 403")
    assert unasked.endswith("01.pth: it was not asked for after that")
    assert result.stderr.rstrip().endswith(
        f"--models 13b --dir {str(once.folder).replace(' ', chr(92) + ' ')}"
    )


@pytest.mark.parametrize("body", [b"<!DOCTYPE html><html>" + b"Sign in. " * 9000, b"Rar!" + b"x" * 90_000])
def test_what_is_no_zip_is_refused_on_its_first_bytes(script, body) -> None:
    script.server.faults[WEIGHTS] = Fault(body=body * 20, hold=HELD)
    result = script.run("--models", "7b", env={"CODELLAMA_PATIENCE": "600"})
    assert result.returncode == 1
    why = "sent a web page" if body.startswith(b"<") else "is not a zip file"
    assert re.search(rf"  {WEIGHTS}: .*{why}", result.stderr)
    assert len(script.server.gets()) == 1
    assert script.server.sent() < len(body) * 20, "the rest is not waited for"
    assert not list(script.folder.rglob("*.pth*")), "junk must not be continued"


def test_a_web_page_does_not_cost_what_was_fetched_before(script) -> None:
    part = part_of(script, 150_000)
    script.server.faults[WEIGHTS] = Fault(body=b"<html>Sign in.</html>")
    assert script.run("--models", "7b").returncode == 1
    script.server.faults.clear()
    if script.fetcher == "wget":
        assert part.stat().st_size == 150_000
    assert script.run("--models", "7b").returncode == 0
    script.complete()


@pytest.mark.parametrize("name", ["checklist.chk", "params.json", "tokenizer.model"])
def test_a_web_page_is_not_taken_for_a_small_file(once, name) -> None:
    once.server.faults[f"CodeLlama-7b/{name}"] = Fault(body=b"<html>Sign in.</html>")
    result = once.run("--models", "7b")
    assert result.returncode == 1
    assert f"  CodeLlama-7b/{name}: the server sent a web page" in result.stderr
    assert not (once.folder / "CodeLlama-7b" / name).exists()


def test_a_page_that_begins_with_no_tag_is_known_by_its_kind(once) -> None:
    once.server.faults["CodeLlama-7b/tokenizer.model"] = Fault(
        body=b"Sign in.", kind="text/html; charset=utf-8"
    )
    result = once.run("--models", "7b")
    assert result.returncode == 1
    assert "  CodeLlama-7b/tokenizer.model: the server sent a web page" in result.stderr
    assert len(once.server.gets("tokenizer.model")) == 1


@pytest.mark.parametrize("told", [True, False], ids=["told", "untold"])
def test_no_more_bytes_are_taken_than_announced_or_than_such_a_file_can_have(script, told) -> None:
    path = WEIGHTS if told else "CodeLlama-7b/params.json"
    script.server.files[path] = script.server.files[path].ljust(100_000)
    surplus = 64 << 20  # what is under way in sockets is far less
    script.server.faults[path] = Fault(surplus=surplus, tells_size=told)
    result = script.run("--models", "7b")
    assert result.returncode == 1
    most = "195.4 KiB that it announced" if told else "1.0 MiB that such a file can have"
    assert f"  {path}: the server sent more than the {most}" in result.stderr.splitlines()
    (request,) = script.server.gets(path)
    assert request.sent < surplus / 2
    assert not list(script.folder.rglob(Path(path).name + "*"))


@pytest.mark.parametrize("length", ["08", "+5", "9, 9", "1e3", "0x10", "0", "-1", "9" * 30, str(10**11)])
def test_an_odd_length_is_read_as_a_decimal_number_or_not_at_all(script, length) -> None:
    script.server.faults[WEIGHTS] = Fault(length=length)
    result = script.run("--models", "7b", "--dry-run", env=fake_df(script.folder.parent, 10**10))
    lines = (result.stdout + result.stderr).splitlines()
    if length.startswith(("9999", "1000")):
        assert result.returncode == 1
        assert f"  {WEIGHTS}: the server announces more than the 25.2 GiB that such a file can have" in lines
    else:
        size = "8 B" if length == "08" else "12.6 GiB"  # the published one, where it tells none
        assert (result.returncode, result.stderr) == (0, "")
        assert f"{WEIGHTS}: {size} to fetch." in lines


def test_416_where_nothing_was_fetched_yet_is_an_error(once) -> None:
    once.server.faults[WEIGHTS] = Fault(status=416)
    result = once.run("--models", "7b")
    assert result.returncode == 1
    assert result.stderr.splitlines()[:2] == ["Missing:", f"  {WEIGHTS}: the server answered 416"]


def wrong(server: Server, path: str = WEIGHTS) -> bytes:
    """As many bytes as the file has, the last of them another."""
    content = server.files[path]
    return content[:-1] + bytes([content[-1] ^ 1])


def test_wrong_bytes_are_fetched_again_once(script) -> None:
    script.server.files |= checkpoint("13b")
    path = "CodeLlama-13b/consolidated.01.pth"
    script.server.faults[path] = Fault(times=1, body=wrong(script.server, path))
    assert script.run("--models", "13b").returncode == 0
    script.complete("13b")
    assert [one.range for one in script.server.gets("01.pth")] == [None, None]
    assert len(script.server.gets("00.pth")) == 1


def test_bytes_that_stay_wrong_are_given_up_after_three_fetches_and_named(once) -> None:
    once.server.files |= checkpoint("13b")
    path = "CodeLlama-13b/consolidated.00.pth"
    once.server.faults[path] = Fault(body=wrong(once.server, path))
    result = once.run("--models", "13b")
    assert result.returncode == 1
    assert f"  {path}: its content did not agree with its checksum, 3 times" in result.stderr
    assert len(once.server.gets("00.pth")) == 3
    folder = once.folder / "CodeLlama-13b"
    assert {one.name for one in folder.iterdir()} == {
        "checklist.chk",
        "params.json",
        "tokenizer.model",
        "consolidated.01.pth",
    }
    assert "All files" not in result.stdout


@pytest.mark.parametrize("lines", [b"no md5 here\n", b"", b"0" * 32 + b"  params.json\n"])
def test_a_checklist_without_the_shards_is_refused(once, lines) -> None:
    once.server.files["CodeLlama-7b/checklist.chk"] = lines
    result = once.run("--models", "7b")
    assert result.returncode == 1
    assert "  CodeLlama-7b/checklist.chk: " in result.stderr
    if lines:
        assert "it does not hold the md5 of every shard" in result.stderr
    assert once.server.gets() == []
    assert not (once.folder / "CodeLlama-7b/checklist.chk").exists()


def test_a_checklist_may_be_written_with_stars_and_carriage_returns(once) -> None:
    path = "CodeLlama-7b/checklist.chk"
    once.server.files[path] = once.server.files[path].replace(b"  ", b" *").replace(b"\n", b"\r\n")
    assert once.run("--models", "7b").returncode == 0
    once.complete()


def test_a_shard_that_the_server_lacks_is_named_with_the_line_to_run_next(once) -> None:
    once.server.files |= checkpoint("13b")
    lacking = {
        "CodeLlama-13b/consolidated.01.pth": once.server.files.pop("CodeLlama-13b/consolidated.01.pth")
    }
    result = once.run("--models", "7b,13b", "--jobs", "2")
    assert result.returncode == 1
    once.complete("7b")
    where = str(once.folder).replace(" ", "\\ ")
    assert result.stderr.splitlines() == [
        "Missing:",
        "  CodeLlama-13b/consolidated.01.pth: the server does not have it (404)",
        "The line to run next:",
        f"  bash {SCRIPT} --models 13b --dir {where} --jobs 2",
    ]
    once.server.files |= lacking
    line = result.stderr.splitlines()[-1].strip()
    env = once.environment({"CODELLAMA_URL": once.server.url})
    assert subprocess.run(["bash", "-c", line], env=env, capture_output=True).returncode == 0
    once.complete("13b")


@pytest.mark.parametrize("name", [WEIGHTS, WEIGHTS + ".part", "CodeLlama-7b/checklist.chk"])
def test_a_folder_in_the_place_of_a_file_is_no_success(once, name) -> None:
    (once.folder / name).mkdir(parents=True)
    result = once.run("--models", "7b")
    assert result.returncode == 1
    file = name.removesuffix(".part")
    assert result.stderr.splitlines()[:2] == [
        "Missing:",
        f"  {file}: a folder stands in its place; remove it",
    ]
    assert not list((once.folder / name).iterdir())


# ------------------------------------------------------------------------------------ before a request


def fake_df(folder: Path, kilobytes: int) -> dict[str, str]:
    """A PATH on which df tells of so much free space."""
    folder.joinpath("bin").mkdir(exist_ok=True)
    df = folder / "bin" / "df"
    df.write_text(f"#!/bin/sh\necho Filesystem\necho 'disk 9 9 {kilobytes} 9% /'\n")
    df.chmod(0o755)
    return {"PATH": f"{df.parent}{os.pathsep}{os.environ['PATH']}"}


def test_a_small_disk_is_found_out_first(once, tmp_path) -> None:
    result = once.run("--models", "7b", env=fake_df(tmp_path, 100))
    assert result.returncode == 1
    assert "is too small: 198.4 KiB are to be fetched and 100.0 KiB are free. Make room" in result.stderr
    assert once.server.gets() == []
    assert not (once.folder / ".download.lock").exists()
    part = once.folder / (WEIGHTS + ".part")
    part.write_bytes(once.server.files[WEIGHTS][:150_000])
    assert once.run("--models", "7b", env=fake_df(tmp_path, 100)).returncode == 0, "what is there counts"


URLS = {
    "": "The URL is empty",
    "   ": "The URL is empty",
    "someone@example.org": "This is an e-mail address, not a URL",
    "https://l.facebook.com/l.php?u=https%3A%2F%2Fdownload2.llamameta.net%2F*": "copy the text of the link instead",
    "http://download2.llamameta.net/*?Policy=abc": "begins with http://",
    "https://download2.llamameta.net/file?Policy=abc": "has no * before the ?",
    "https://download2.llamameta.net/?Policy=a*c": "has no * before the ?",
    "https://download2.llamameta.net/*?Signature=abc": "has no Policy=",
    "https://download2.llamameta.net/*": "has no Policy=",
    "https://download2.llamameta.net/*?Policy=ab c": "has a space, a quote or a backslash",
    "https://download2.llamameta.net/*?Policy=abc\nurl=https://example.org/": "has a space, a quote",
    'https://download2.llamameta.net/*?Policy="abc': "has a space, a quote or a backslash",
    "https://example.org/*?Policy=abc": "does not begin with https://download*.llamameta.net/",
    "https://download.example.org/x.llamameta.net/*?Policy=abc": "does not begin with https://download*",
    "https://download2.llamameta.net@example.org/*?Policy=abc": "does not begin with https://download*",
    "https://download@example.org#.llamameta.net/*?Policy=abc": "does not begin with https://download*",
    "https://download2@x.llamameta.net/*?Policy=abc": "does not begin with https://download*",
    "ftp://download2.llamameta.net/*?Policy=abc": "does not begin with https://download*",
    "download2.llamameta.net/*?Policy=abc": "does not begin with https://download*",
}


@pytest.mark.parametrize("url", URLS)
def test_each_mistake_in_the_url_has_its_own_sentence(once, url) -> None:
    result = once.run("--models", "7b", url=url, env={"CODELLAMA_HOST": ""})
    assert result.returncode == 2
    assert URLS[url] in result.stderr
    assert result.stderr.count("\n") == 1
    assert "abc" not in result.stderr
    assert once.server.requests == []
    assert not once.folder.exists()


def test_a_right_url_passes_the_check_and_may_have_blanks_around_it(tmp_path) -> None:
    # An unknown model is refused after the URL, and before any request.
    nowhere = Script(Server(9, {}), tmp_path / "weights", FETCHERS[0])
    url = " https://download2.llamameta.net/*?Policy=abc&Signature=def \n"
    result = nowhere.run("--models", "8b", url=url, env={"CODELLAMA_HOST": ""})
    assert "There is no model 8b." in result.stderr


def test_another_host_than_the_mirror_is_refused(once) -> None:
    result = once.run("--models", "7b", url="https://download2.llamameta.net/*?Policy=abc")
    assert (result.returncode, once.server.requests) == (2, [])
    assert f"does not begin with {once.server.host}, which CODELLAMA_HOST asks for" in result.stderr


def test_an_unknown_model_is_refused_with_the_list(once) -> None:
    result = once.run("--models", "7b,7b-Basic")
    assert result.returncode == 2
    assert (
        "There is no model 7b-basic. These are the models: 7b, 7b-Python, 7b-Instruct, 13b," in result.stderr
    )
    assert once.server.requests == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "7b"], "There is no option --model"),
        (["--models"], "--models needs a value"),
        (["--models", ","], "No model was named"),
        (["--models", "7b", "--jobs", "0"], "The number of jobs is 0; it must be a number from 1 to 16."),
        (["--models", "7b", "--jobs", "x"], "The number of jobs is x"),
        ([f"https://example.org/*?{QUERY}"], "The URL was given without --url"),
        ([f"--uri=https://example.org/*?{QUERY}"], "The URL was given without --url"),
        (["--models", f"https://example.org/*?{QUERY}"], "There is no model https://example.org/*. These"),
        (
            ["--models", "7b", "--dir", f"https://example.org/*?{QUERY}"],
            "is a URL; the URL goes behind --url",
        ),
        ([], "No model was named and there is no terminal to ask on"),
    ],
)
def test_a_wrong_call_is_refused_in_words(once, options, words) -> None:
    result = once.run(*options)
    assert (result.returncode, once.server.requests) == (2, [])
    assert words in result.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [("PATIENCE", "08"), ("PATIENCE", "0"), ("PATIENCE", "1m"), ("WAIT", "soon"), ("WAIT", "1.2.3")],
)
def test_a_variable_that_is_no_number_of_seconds_is_refused(once, variable, value) -> None:
    result = once.run("--models", "7b", env={f"CODELLAMA_{variable}": value})
    assert (result.returncode, once.server.requests) == (2, [])
    assert f"CODELLAMA_{variable} is {value}; it must be a" in result.stderr


def test_a_missing_url_is_an_error_and_no_hang_where_there_is_no_terminal(once) -> None:
    command = ["bash", str(SCRIPT), "--models", "7b"]
    result = subprocess.run(
        command,
        env=once.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert result.returncode == 2
    assert "No URL was given and there is no terminal to ask on" in result.stderr


def test_list_names_all_twelve_with_their_shards(once) -> None:
    result = once.run("--list")
    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    shards = {"7b": "1", "13b": "2", "34b": "4", "70b": "8"}
    names = [f"{size}{kind}" for size in shards for kind in ("", "-Python", "-Instruct")]
    assert [(row[0], row[1]) for row in rows] == [(name, shards[name.split("-")[0]]) for name in names]
    assert once.server.requests == []


def test_all_means_all_twelve(once) -> None:
    result = once.run("--models", "all", "--check-only")
    named = {line.split("/")[0].strip() for line in result.stderr.splitlines() if "checklist.chk" in line}
    assert len(named) == 12


def test_a_dry_run_asks_for_sizes_only_and_writes_nothing(script) -> None:
    result = script.run("--models", "7b", "--dry-run")
    assert result.returncode == 0
    assert {one.method for one in script.server.requests} == {"HEAD"}
    assert f"{WEIGHTS}: 195.4 KiB to fetch." in result.stdout
    assert "In all 198.4 KiB to fetch; nothing was written." in result.stdout
    assert not script.folder.exists()


@pytest.mark.parametrize("answer", ["404", "nothing"])
def test_a_dry_run_does_not_pass_for_what_the_server_lacks(script, answer) -> None:
    del script.server.files[WEIGHTS]
    env = {}
    if answer == "nothing":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            env["CODELLAMA_HOST"] = f"http://127.0.0.1:{free.getsockname()[1]}"
    url = env.get("CODELLAMA_HOST", script.server.host) + "/*?" + QUERY
    result = script.run("--models", "7b", "--dry-run", env=env, url=url)
    assert result.returncode == 1
    words = "answered 404" if answer == "404" else "did not answer"
    assert f"  {WEIGHTS}: the server {words}" in result.stderr.splitlines()
    assert len(result.stderr.splitlines()) == (2 if answer == "404" else 4)


def test_check_only_passes_a_good_folder_and_names_what_is_wrong_in_a_bad_one(once) -> None:
    once.server.files |= checkpoint("13b")
    assert once.run("--models", "7b,13b").returncode == 0
    before = len(once.server.requests)
    good = once.run("--check-only")
    assert good.returncode == 0
    assert good.stdout.count("verified.") == 8
    path = once.folder / "CodeLlama-13b/consolidated.01.pth"
    path.write_bytes(wrong(once.server, "CodeLlama-13b/consolidated.01.pth"))
    (once.folder / "CodeLlama-13b/params.json").unlink()
    bad = once.run("--check-only")
    assert bad.returncode == 1
    assert bad.stderr.splitlines()[:3] == [
        "Missing:",
        "  CodeLlama-13b/params.json: it is not there",
        "  CodeLlama-13b/consolidated.01.pth: its content does not agree with its checksum",
    ]
    assert "--models 13b --dir " in bad.stderr
    assert len(once.server.requests) == before


# ------------------------------------------------------------------------------------ the script itself


def test_help_names_every_option_and_variable(once) -> None:
    text = once.run("--help").stdout
    used = set(
        re.findall(r"\bCODELLAMA_[A-Z0-9]+\b|(?<=[ |(])--[a-z][a-z-]+(?==\*\)| \||\))", SCRIPT.read_text())
    )
    ours = {one for one in used if one.startswith("CODELLAMA_")} | {
        "--url",
        "--models",
        "--dir",
        "--jobs",
        "--list",
        "--check-only",
        "--dry-run",
        "--help",
    }
    assert [one for one in sorted(ours) if one not in text] == []


def test_the_script_has_unix_line_ends_here_and_in_any_checkout() -> None:
    assert b"\r" not in SCRIPT.read_bytes()
    assert "*.sh text eol=lf" in (ROOT / ".gitattributes").read_text().splitlines()


BASH_4 = {
    "associative or global declarations": r"\b(declare|local|typeset)\s+-[a-zA-Z]*[Agnlu]",
    "mapfile": r"\b(mapfile|readarray|coproc)\b",
    "case conversion": r"\$\{\w+(\[[^]]*\])?(,,?|\^\^?|@)[^}]*\}",
    "wait -n": r"\bwait\s+-n",
    "appending both outputs": r"&>>|\|&",
    "falling through a case": r";;?&",
    "negative index": r"\$\{\w+\[-\d",
    "negative length": r"\$\{\w+:[^}:$]*:\s*-\d",
    "variables of bash 4": r"\$\{?(BASHPID|EPOCHSECONDS|EPOCHREALTIME|SRANDOM)\b",
    "test -v": r"\[\[?\s+(!\s+)?-v\s",
    "fractional read -t": r"\bread\b[^\n;|]*-t\s*\d*\.\d",
    "chosen descriptors": r"exec \{\w+\}",
    "unguarded empty arrays": r'(?<!\+)"\$\{(rest|resume)\[@\]\}"',
    "GNU-only options": r"\b(stat -c|stat --|sed -i|sed -r|df -B|df -h|date -d|date --|readlink -f|head -c -|wc --)",
}


@pytest.mark.parametrize("construct", BASH_4)
def test_nothing_that_bash_3_or_macos_lacks_is_used(construct) -> None:
    code = re.sub(r"(^|\s)#.*$", "", SCRIPT.read_text(), flags=re.MULTILINE)
    assert re.findall(BASH_4[construct], code) == []


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not on this machine")
def test_shellcheck_has_nothing_to_say() -> None:
    result = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        (["--jobs", "URL"], {}),
        ([], {"CODELLAMA_ACTION": "URL"}),
        ([], {"CODELLAMA_FETCHER": "URL"}),
        ([], {"CODELLAMA_MD5": "URL"}),
    ],
)
def test_a_url_in_the_wrong_place_is_not_repeated(once, options, environment) -> None:
    url = "https://download2.llamameta.net/*?Policy=SECRETPOLICY&Signature=SECRETSIGNATURE"
    command = ["bash", str(SCRIPT), "--models", "7b", *[each.replace("URL", url) for each in options]]
    env = once.environment() | dict.fromkeys(environment, url)
    result = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT
    )
    assert result.returncode == 2
    assert "SECRET" not in result.stdout + result.stderr
