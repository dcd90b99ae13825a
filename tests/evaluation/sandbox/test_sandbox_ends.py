"""However the waiting side ends, no process of the job is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import psutil
import pytest
from sandboxes import SECONDS, processes, python

from llama.errors import EvaluationError
from llama.evaluation.sandbox import Command, Ended, Job, Sandbox, interpreter, launch, levels

pytestmark = pytest.mark.slow

SLEEPING = "import os, time\nif os.fork() == 0: os.setsid()\ntime.sleep(1000)"


def sleeping_job() -> tuple[str, Job]:
    name = f"{uuid.uuid4().hex}.py"
    return name, Job({name: SLEEPING.encode()}, [Command(python(name))])


def children() -> set[int]:
    """The processes that this one has started and that are still there.

    Other tests of the same worker may have left theirs: `forked.SERVER` runs until the worker ends.
    """
    return {child.pid for child in psutil.Process().children()}


def wait_until_started(name: str) -> None:
    deadline = time.monotonic() + SECONDS
    while len(processes(name)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_until_gone(name: str) -> None:
    deadline = time.monotonic() + SECONDS
    while processes(name):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ctrl_c_in_the_waiting_thread_ends_the_job(every_sandbox: Sandbox) -> None:
    name, job = sleeping_job()
    before = children()
    me = threading.main_thread().ident
    assert me is not None
    assert threading.current_thread() is threading.main_thread()

    def interrupt() -> None:
        wait_until_started(name)
        signal.pthread_kill(me, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        every_sandbox.run(job)
    assert processes(name) == []
    assert children() <= before
    thread.join()


def test_ctrl_c_twice_leaves_nothing_half_ended(
    every_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one comes while the job is being ended."""
    name, job = sleeping_job()
    before = children()
    me = threading.main_thread().ident
    assert me is not None
    wait = subprocess.Popen.wait

    def interrupted(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        signal.pthread_kill(me, signal.SIGINT)
        time.sleep(0.01)
        return wait(process, timeout)

    def interrupt() -> None:
        wait_until_started(name)
        monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
        signal.pthread_kill(me, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        every_sandbox.run(job)
    monkeypatch.undo()
    assert processes(name) == []
    assert children() <= before
    thread.join()


def test_an_exception_in_the_waiting_thread_ends_the_job(
    every_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, job = sleeping_job()

    def fail(*_: object) -> None:
        wait_until_started(name)
        raise ZeroDivisionError

    monkeypatch.setattr(launch, "_read", fail)
    with pytest.raises(ZeroDivisionError):
        every_sandbox.run(job)
    assert processes(name) == []


def test_a_job_ends_with_the_process_that_waits_for_it(every_sandbox: Sandbox) -> None:
    """Killed, so that it can do nothing about it."""
    name = f"{uuid.uuid4().hex}.py"
    source = f"""
import sys
from llama.evaluation.sandbox import Command, Job, interpreter, open_sandbox
command = Command((str(interpreter()), "-I", "-S", "-B", {name!r}))
open_sandbox({every_sandbox.level!r}).run(Job({{{name!r}: {SLEEPING.encode()!r}}}, [command]))
"""
    waiting = subprocess.Popen(
        [sys.executable, "-"], stdin=subprocess.PIPE, text=True
    )  # its name is not to be seen
    try:
        assert waiting.stdin is not None
        waiting.stdin.write(source)
        waiting.stdin.close()
        wait_until_started(name)
        family = psutil.Process(waiting.pid).children(recursive=True)
    finally:
        waiting.kill()
        waiting.wait()
    wait_until_gone(name)
    _, alive = psutil.wait_procs(family, timeout=SECONDS)
    assert alive == []
    assert [
        path for path in Path(tempfile.gettempdir()).glob("codellama-job-*") if (path / name).exists()
    ] == []


def test_a_watcher_whose_reader_is_gone_from_the_beginning_leaves_nothing(tmp_path: Path) -> None:
    """The process that waits is killed before the job has begun."""
    command = Command(("true",))
    values = {
        "uid": None,
        "seccomp": b"",
        "contained": False,
        "others": None,
        "scratch": "",
        "folder": str(tmp_path / "folder"),
    }
    stdin = launch.payload(Job({"file": b""}, [command]), values, "native", "processes", "inside")
    reader, writer = os.pipe()
    os.close(reader)
    argv = [str(interpreter()), "-I", "-S", "-B", "-c", launch.BOOTSTRAP]
    done = subprocess.run(argv, input=stdin, stdout=writer, stderr=subprocess.PIPE, timeout=SECONDS)
    os.close(writer)
    assert done.returncode != 0
    assert list(tmp_path.iterdir()) == []


def test_a_watcher_that_is_killed_takes_the_job_with_it(sandbox: Sandbox) -> None:
    """As the kernel does where memory runs out. The program gets a verdict, and no pass."""
    name, job = sleeping_job()

    def kill() -> None:
        wait_until_started(name)
        for pid in processes(name):
            parents = psutil.Process(pid).parents()
            watchers = [
                each
                for each in parents
                if each.pid != psutil.Process().pid and "marshal" in str(each.cmdline())
            ]
            if watchers:
                watchers[0].kill()
                return

    thread = threading.Thread(target=kill)
    thread.start()
    outcome = sandbox.run(job)
    thread.join()
    assert (outcome.ended, outcome.exit_code, outcome.token) == (Ended.EXITED, 137, b"")
    assert processes(name) == []


def test_a_sandbox_that_cannot_be_made_is_an_error(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "BOOTSTRAP", "raise RuntimeError('no sandbox today')")
    monkeypatch.setattr(
        levels,
        "_PYTHON",
        ("-I", "-S", "-B", "-c", "raise RuntimeError('no sandbox today')"),
    )
    with pytest.raises(EvaluationError, match="no sandbox today"):
        sandbox.run(Job({}, [Command(("true",))]))
