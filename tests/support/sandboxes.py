"""Runs hostile Python in a sandbox, and looks afterwards whether anything of it is left on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from llama.evaluation.sandbox import Command, Ended, Job, Limits, Outcome, Sandbox, interpreter

TOKEN = b"written behind the tests"
BEHIND_TESTS = f"\nimport os\nos.write(3, {TOKEN!r})\n"
NAMESPACES = ["unshare", "--user", "--pid", "--net", "--mount", "--ipc", "--fork", "true"]
# Of a job that does little, on a machine that is busy with other things. A guard against hanging, no measurement.
SECONDS = 60


def python(file: str) -> tuple[str, ...]:
    return (str(interpreter()), "-I", "-S", "-B", file)


def run(sandbox: Sandbox, source: str | bytes, **limits: object) -> Outcome:
    """Run a Python program whose last line writes the token. Nothing of it may be left, and no time be lost."""
    name = f"{uuid.uuid4().hex}.py"
    content = source if isinstance(source, bytes) else (source + BEHIND_TESTS).encode()
    command = Command(python(name), Limits(**limits))  # type: ignore[arg-type]
    before = time.monotonic()
    outcome = sandbox.run(Job({name: content}, [command]))
    assert time.monotonic() - before < command.limits.wall_seconds + SECONDS
    assert processes(name) == []
    assert left_files(name) == []
    return outcome


def passes(outcome: Outcome) -> bool:
    return (outcome.ended, outcome.exit_code, outcome.token) == (Ended.EXITED, 0, TOKEN)


def assert_holds(sandbox: Sandbox, source: str, **limits: object) -> None:
    """The program's own assertions hold."""
    outcome = run(sandbox, source, **limits)
    assert passes(outcome), outcome


def processes(marker: str) -> list[int]:
    """Those of this machine that have a marker in their command line."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        if any(marker in part for part in process.info["cmdline"] or []):
            found.append(process.info["pid"])
    return found


def left_files(name: str) -> list[Path]:
    """Places of this machine where a program would leave a file of that name."""
    folders = (Path("/tmp"), Path("/dev/shm"), Path("/var/tmp"), Path.home(), Path.cwd())
    return [folder / name for folder in folders if (folder / name).exists()]


@dataclass
class Peak:
    """Of all processes with a marker together."""

    count: int = 0
    bytes: int = 0


@contextmanager
def watching(marker: str) -> Iterator[Peak]:
    """Look at the processes with a marker again and again meanwhile."""
    peak, ended = Peak(), threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            found = processes(marker)
            peak.count = max(peak.count, len(found))
            peak.bytes = max(peak.bytes, sum(map(_private_bytes, found)))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def _private_bytes(pid: int) -> int:
    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0
    return int(memory.rss - memory.shared)


def can_make_namespaces() -> bool:
    """Asked of util-linux, not of the package under test."""
    return (
        shutil.which("unshare") is not None
        and subprocess.run(NAMESPACES, capture_output=True).returncode == 0
    )


def has_bubblewrap() -> bool:
    """One whose file systems can be given a size."""
    if shutil.which("bwrap") is None:
        return False
    return "--size" in subprocess.run(["bwrap", "--help"], capture_output=True, text=True).stdout


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
