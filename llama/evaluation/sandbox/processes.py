"""A job's processes as /proc shows them: what they use, and their end.

Handed over with `inside.py`. Where `contained` holds, all that /proc shows are the job's, but for the watcher itself;
elsewhere they are the watcher's descendants: it is the parent of those that lost theirs.
"""

from __future__ import annotations

import os
import resource
import sys
import time

SIGKILL = 9
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Process:
    """seconds: processor time, with that of its children that it waited for. bytes: of memory, shared ones included."""

    def __init__(self, pid: int, fields: list[bytes]) -> None:
        self.pid = pid
        self.parent = int(fields[1])
        self.seconds = sum(map(int, fields[11:15])) / _TICKS_PER_SECOND
        self.threads = int(fields[17])
        self.bytes = int(fields[21]) * _PAGE


def running(contained: bool) -> list[Process]:
    """All of the job's processes."""
    found: dict[int, Process] = {}
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                found[int(name)] = Process(int(name), file.read().rpartition(b")")[2].split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    me = os.getpid()
    if contained:
        return [process for process in found.values() if process.pid != me]
    return [process for process in found.values() if _descends(process, me, found)]


def _descends(process: Process, ancestor: int, found: dict[int, Process]) -> bool:
    seen: set[int] = set()  # numbers are used again: what was read at several moments may be a circle
    while process.parent != ancestor:
        if process.parent in seen or process.parent not in found:
            return False
        seen.add(process.parent)
        process = found[process.parent]
    return True


def proportional_bytes(process: Process) -> int:
    """Memory of a process in which a page that n share counts as an n-th; all of it where the system does not tell."""
    try:
        with open(f"/proc/{process.pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return process.bytes


def kill_all(contained: bool, main: int) -> None:
    """End every process of the job, and wait until they are gone."""
    while True:
        if contained:
            _kill(-1)
        elif sys.platform == "linux":
            for process in running(contained):
                _kill(process.pid)
        else:
            _kill(-main)
        try:
            while os.waitpid(-1, 0 if contained else os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


def _kill(pid: int) -> None:
    try:  # noqa: SIM105 - contextlib takes as long to import as all else here
        os.kill(pid, SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def reaped_seconds() -> float:
    """Processor time of all children that have ended, with theirs."""
    return used(resource.getrusage(resource.RUSAGE_CHILDREN))


def used(usage: resource.struct_rusage) -> float:
    """Processor time, seconds."""
    return usage.ru_utime + usage.ru_stime
