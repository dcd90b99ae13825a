"""Laws of how a command ends: failures and signals are one line and a code, and a reader that goes away ends it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hostile_text import HOSTILE
from ranks import HANGS, ROOT

from llama.cli import info
from llama.errors import LlamaError
from llama.printable import printable

# Without PYTHONUNBUFFERED, with which nothing is left to be written at exit.
ENV = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(), "error: OSError\n"),
        (OSError(errno.EIO, "bad disk", f"/{HOSTILE}"), f"error: {printable(f'bad disk: /{HOSTILE}')}\n"),
        (MemoryError(), "error: not enough memory (MemoryError)\n"),
        (LlamaError(), "error: LlamaError\n"),
        (KeyboardInterrupt(), "interrupted\n"),
    ],
    ids=repr,
)
def test_a_failure_of_the_world_is_one_line(
    run_ascii: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, words: str
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(info, "run", fail)
    assert run_ascii("info", "x") == (130 if isinstance(error, KeyboardInterrupt) else 1, "", words)


def test_a_host_programs_thread_may_run_a_verb(run_ascii: Any) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(run_ascii("estimate", "--model", "7b")[0]))
    thread.start()
    thread.join(HANGS)
    assert found == [0]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_closed_terminal_is_ignored_under_nohup(run_ascii: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    during: list[Any] = []
    monkeypatch.setattr(info, "run", lambda _: during.append(signal.getsignal(signal.SIGHUP)) or 0)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run_ascii("info", "x")
        assert during == [signal.SIG_IGN]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_ends_a_verb_with_one_line_and_its_code(
    run_ascii: Any, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    if not hasattr(signal, name):
        pytest.skip("this system has no such signal")
    number = getattr(signal, name)
    monkeypatch.setattr(info, "run", lambda _: signal.raise_signal(number) or 0)
    # As a program starts; under nohup the suite itself would ignore one of them.
    usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
    before = signal.signal(number, usual)
    try:
        assert run_ascii("info", "x") == (code, "", "interrupted\n" if code == 130 else "terminated\n")
        assert signal.getsignal(number) is usual
    finally:
        signal.signal(number, before)


def test_the_handler_of_sigterm_is_put_back(run: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run("info", ROOT / "CodeLlama-tiny")
    run("info", "nowhere")
    assert signal.getsignal(signal.SIGTERM) is before


# A verb that prints more than any pipe holds, without the seconds that torch takes to import.
PROCESS = """
import sys
from llama.cli import info, main
from llama.cli.terminal import out
def rows(_):
    for number in range(100_000):
        out(f"row {number} \\u202e")
    return 0
info.run = rows
sys.exit(main(sys.argv[1:]))
"""


def process(*arguments: str, **options: Any) -> SimpleNamespace:
    """A process of its own: what Python itself does with a stream at its end shows there only."""
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, *arguments],
        **{"env": ENV, "cwd": ROOT, "stderr": subprocess.PIPE, "timeout": HANGS, "check": False} | options,
    )
    return SimpleNamespace(code=done.returncode, err=done.stderr and done.stderr.decode())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("verb", ["info", "--help"])
def test_a_stdout_that_is_full_is_an_error(verb: str) -> None:
    with open("/dev/full", "wb") as full:
        done = process(verb, *(["x"] if verb == "info" else []), stdout=full)
    assert (done.code, done.err) == (1, f"error: {os.strerror(errno.ENOSPC)}\n")


@pytest.mark.parametrize("verb", ["info", "--help"])
@pytest.mark.parametrize("joined", [False, True])
def test_a_reader_that_is_gone_ends_it_quietly(verb: str, joined: bool) -> None:
    """128 and SIGPIPE, as for any program in a pipe: a verify that was not read to its end has not succeeded."""
    reads, writes = os.pipe()
    os.close(reads)
    more = {"stderr": writes} if joined else {}
    done = process(verb, *(["x"] if verb == "info" else []), stdout=writes, **more)
    os.close(writes)
    assert done.code == 141
    assert not done.err


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_it_without_a_word() -> None:
    """As with `| head -1`."""
    command = [sys.executable, "-c", PROCESS, "info", "x"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=ENV, cwd=ROOT, text=True, **pipes) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == "row 0 \\u202e\n"
        running.stdout.close()
        assert running.stderr.read() == ""
        assert running.wait(HANGS) == 141


def test_a_process_whose_streams_are_closed() -> None:
    done = process("info", "x", preexec_fn=lambda: (os.close(1), os.close(2)))
    assert done.code == 0
