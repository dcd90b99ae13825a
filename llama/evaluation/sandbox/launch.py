"""Starts a sandbox's first process, hands it the job, and waits until nothing of it is left."""

from __future__ import annotations

import contextlib
import importlib.util
import marshal
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import EvaluationError
from .inside import SIGKILL, TOKEN_BYTES
from .job import Ended, Job, Outcome

__all__ = ["BOOTSTRAP", "launch", "payload"]

# What the sandbox's Python is told to run. Its standard input is what `payload` made.
BOOTSTRAP = (
    "import marshal\n"
    "codes, values = marshal.load(open(0, 'rb', closefd=False))\n"
    "names = {'__name__': 'sandbox'}\n"
    "for code in codes: exec(code, names)\n"
    "names['main'](names['Plan'](values))\n"
)
# Seconds beyond a job's own for its start and end, on a machine that is busy. A guard against hanging.
_GRACE = 60.0
_MESSAGE_BYTES = 1 << 16


def payload(job: Job, values: dict[str, Any], *modules: str) -> bytes:
    """Code and job for `BOOTSTRAP`: `modules` of this package, of which the last has `main` and `Plan`."""
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
    codes = [_code(module) for module in modules]
    return marshal.dumps((codes, {**values, "files": dict(job.files), "commands": commands}))


def launch(argv: Sequence[str], stdin: bytes, job: Job) -> Outcome:
    """Run the program that makes the sandbox, and read what its first process reports.

    Raises:
        EvaluationError: the sandbox could not be made.
    """
    seconds = _GRACE + sum(command.limits.wall_seconds for command in job.commands)
    room = 1024 + TOKEN_BYTES + 2 * max(command.limits.output_bytes for command in job.commands)
    with _file_of(stdin) as file:
        process = subprocess.Popen(
            argv, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={}, start_new_session=True
        )
    with process:
        try:
            report, message = _read(process, room, time.monotonic() + seconds)
        finally:
            _end(process)
    if report.startswith(b"SR"):
        return _outcome(report[2:])
    if not report.startswith(b"S") or (process.returncode > 0 and message and process.returncode < 128):
        raise EvaluationError(f"a job could not be started: {_last_line(message)}")
    # The program managed to end what watches it, or the machine was too busy for that to report.
    return Outcome(
        Ended.EXITED, 0, 128 + SIGKILL, b"", b"the sandbox was ended from inside or for memory", b""
    )


def _code(module: str) -> Any:
    spec = importlib.util.find_spec(f"{__package__}.{module}")
    assert spec is not None
    assert spec.loader is not None
    return spec.loader.get_code(spec.name)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _file_of(data: bytes) -> Iterator[int]:
    """A file in memory: it is read when the reader likes, and nobody waits for a pipe."""
    import tempfile

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


def _read(process: subprocess.Popen[bytes], room: int, deadline: float) -> tuple[bytes, bytes]:
    """stdout, at most `room` bytes, and stderr, until both end or the time is over."""
    assert process.stdout is not None
    assert process.stderr is not None
    kept = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    limits = {process.stdout.fileno(): room, process.stderr.fileno(): _MESSAGE_BYTES}
    poller = select.poll()
    for descriptor in kept:
        poller.register(descriptor, select.POLLIN)
    left = len(kept)
    while left and (patience := deadline - time.monotonic()) > 0:
        for descriptor, _ in poller.poll(patience * 1000):
            data = os.read(descriptor, 1 << 16)
            if not data:
                poller.unregister(descriptor)
                left -= 1
            kept[descriptor] += data[: limits[descriptor] - len(kept[descriptor])]
    out, err = kept.values()
    return bytes(out), bytes(err)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait until the process and its children are gone; end them if need be."""
    try:
        process.wait(timeout=1.0)
        return
    except BaseException:  # Ctrl-C too: what is left is ended all the same, and the exception goes on
        if not isinstance(sys.exc_info()[1], subprocess.TimeoutExpired):
            _kill(process)
            raise
    _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the process and its children, of which one is the first of a pid namespace: all others go with it."""
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
