"""Starts a sandbox's first process, hands it the job, and waits until nothing of it is left."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import marshal
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import EvaluationError
from .inside import TOKEN_BYTES
from .job import Ended, Job, Outcome

__all__ = ["BOOTSTRAP", "launch", "payload"]

# What the sandbox's Python is told to run. Its standard input is what `payload` made.
BOOTSTRAP = """
import marshal, sys
codes, values = marshal.load(open(0, "rb", closefd=False))
sys.modules["sandbox"] = type(sys)("sandbox")
for name, code in codes:
    module = sys.modules["sandbox." + name] = type(sys)("sandbox." + name)
    setattr(sys.modules["sandbox"], name, module)
    module.__package__ = "sandbox"
    exec(code, module.__dict__)
module.main(values)
"""
# Seconds beyond a job's own for its start and end, on a machine that is busy. A guard against hanging.
_GRACE = 60.0
# Seconds in which a job that is given up is ended; a thread that could not be started would never say so.
_LAST_SECONDS = 20.0
_MESSAGE_BYTES = 1 << 16


def payload(job: Job, values: dict[str, Any], *modules: str) -> bytes:
    """Code and job for `BOOTSTRAP`: `modules` of this package, of which the last has the `main` that is run."""
    commands = [
        (
            list(command.argv),
            {
                "PATH": "/usr/local/bin:/usr/bin:/bin",
                "HOME": values["folder"],
                "LANG": "C.UTF-8",
                **command.environment,
            },
            dict(vars(command.limits)),
        )
        for command in job.commands
    ]
    codes = [(module, _code(module)) for module in modules]
    return marshal.dumps((codes, {**values, "files": dict(job.files), "commands": commands}))


def launch(argv: Sequence[str], stdin: bytes, job: Job, contained: bool = True) -> Outcome:
    """Run the program that makes the sandbox, and read what its first process reports.

    contained: that is the first process of a pid namespace, with which all others end.

    Raises:
        EvaluationError: the sandbox could not be made.
    """
    if threading.current_thread() is not threading.main_thread():
        return _launch(argv, stdin, job, contained, None)
    return _uninterrupted(lambda cancel: _launch(argv, stdin, job, contained, cancel))


def _uninterrupted(work: Callable[[int], Outcome]) -> Outcome:
    """Work in a thread of its own: Ctrl-C can raise nothing there, as between a fork and what takes note of it.

    The descriptor that `work` is given tells it to end, by hanging up.
    """
    reader, writer = os.pipe()
    hang_up = os.fdopen(writer, "wb", buffering=0)  # a file, since closing it twice does no harm
    outcomes: list[Outcome] = []
    failures: list[BaseException] = []
    # Waited for, since a join that Ctrl-C interrupts takes the thread for ended (CPython 3.11).
    done = threading.Event()

    def call() -> None:
        try:
            outcomes.append(work(reader))
        except BaseException as error:
            failures.append(error)
        finally:
            os.close(reader)
            done.set()

    thread = threading.Thread(target=call, name="sandbox job", daemon=True)
    interrupt: BaseException | None = None
    try:
        thread.start()
        done.wait()
    except BaseException as error:
        interrupt = error
        waiting = True
        while waiting:
            # Whatever comes now, even between two of these lines, what is left is ended all the same.
            try:
                hang_up.close()
                done.wait(_LAST_SECONDS)
                waiting = False
            except BaseException as another:
                interrupt = another
    hang_up.close()
    if interrupt is not None:
        raise interrupt
    if failures:
        raise failures[0]
    return outcomes[0]


def _launch(argv: Sequence[str], stdin: bytes, job: Job, contained: bool, cancel: int | None) -> Outcome:
    deadline = time.monotonic() + _GRACE + sum(command.limits.wall_seconds for command in job.commands)
    room = 1024 + TOKEN_BYTES + 2 * max(command.limits.output_bytes for command in job.commands)
    try:
        with _file_of(stdin) as file:
            process = subprocess.Popen(
                argv,
                stdin=file,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={},
                start_new_session=True,
            )
    except OSError as error:
        raise EvaluationError(f"a job could not be started: {error}") from error
    with process:
        try:
            report, message = _read(process, room, deadline, cancel)
        finally:
            _end(process, contained)
    if report.startswith(b"SR"):
        return _outcome(report[2:])
    if not report.startswith(b"S") or 0 < process.returncode < 128:
        raise EvaluationError(f"a job could not be run: {_last_line(message)}")
    # What watches the program was itself ended, as by the kernel where memory runs out, or the time is over.
    ended = Ended.WALL if time.monotonic() >= deadline else Ended.EXITED
    said = b"the sandbox was ended, with all that ran in it"
    return Outcome(ended, 0, 128 + signal.SIGKILL, b"", said, b"")


@functools.cache
def _code(module: str) -> Any:
    spec = importlib.util.find_spec(f"{__package__}.{module}")
    assert spec is not None
    assert spec.loader is not None
    return spec.loader.get_code(spec.name)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _file_of(data: bytes) -> Iterator[int]:
    """A file in memory: it is read when the reader likes, and nobody waits for a pipe."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("job")
    else:
        descriptor, name = tempfile.mkstemp()
        os.unlink(name)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _read(
    process: subprocess.Popen[bytes], room: int, deadline: float, cancel: int | None
) -> tuple[bytes, bytes]:
    """stdout, at most `room` bytes, and stderr, until both end, the time is over, or `cancel` hangs up."""
    assert process.stdout is not None
    assert process.stderr is not None
    kept = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    limits = {process.stdout.fileno(): room, process.stderr.fileno(): _MESSAGE_BYTES}
    poller = select.poll()
    for descriptor in kept:
        poller.register(descriptor, select.POLLIN)
    if cancel is not None:
        poller.register(cancel, 0)
    left = len(kept)
    while left and (patience := deadline - time.monotonic()) > 0:
        for descriptor, _ in poller.poll(patience * 1000):
            if descriptor == cancel:
                raise KeyboardInterrupt
            data = os.read(descriptor, 1 << 16)
            if not data:
                poller.unregister(descriptor)
                left -= 1
            kept[descriptor] += data[: limits[descriptor] - len(kept[descriptor])]
    out, err = kept.values()
    return bytes(out), bytes(err)


def _end(process: subprocess.Popen[bytes], contained: bool) -> None:
    """Wait until the process and its children are gone; end them if need be."""
    try:
        if sys.exc_info()[1] is None:
            process.wait(timeout=1.0)
            return
    except subprocess.TimeoutExpired:
        pass
    _kill(process, contained)


def _kill(process: subprocess.Popen[bytes], contained: bool) -> None:
    """End the process and all of its job.

    In a pid namespace its first process, a child of ours, takes all others with it. Elsewhere only the watcher knows
    its processes; it ends them when nobody waits for its report any more.
    """
    if not contained:
        assert process.stdout is not None
        process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10.0)
        process.kill()
        process.wait()
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGSTOP)  # so that it starts no further child
    children = []
    for child in _children(process.pid):
        with contextlib.suppress(ProcessLookupError):
            children.append(os.pidfd_open(child))
    process.kill()
    process.wait()
    for descriptor in children:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        waiting.poll()
        os.close(descriptor)


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1]) == parent:
                    found.append(int(entry.name))
    return found


def _outcome(report: bytes) -> Outcome:
    line, _, rest = report.partition(b"\n")
    ended, index, code, out, err, token = line.split()
    first, second, third = int(out), int(out) + int(err), int(out) + int(err) + int(token)
    return Outcome(
        Ended(ended.decode()), int(index), int(code), rest[:first], rest[first:second], rest[second:third]
    )


def _last_line(message: bytes) -> str:
    lines = message.decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it ended without a word")
