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
    """One process at one moment.

    key: no other process has it, while a pid is used again. own_seconds: processor time. children_seconds: that of its
    children that it waited for, with theirs. bytes: of memory, shared ones included. reach: of its address space.
    """

    def __init__(self, pid: int) -> None:
        fields = stat(f"/proc/{pid}")
        self.pid = pid
        self.parent = int(fields[1])
        self.own_seconds = (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND
        self.children_seconds = (int(fields[13]) + int(fields[14])) / _TICKS_PER_SECOND
        self.threads = int(fields[17])
        self.key = (pid, int(fields[19]))
        self.folder = f"/proc/{pid}"
        self.reach, self.bytes = int(fields[20]), int(fields[21]) * _PAGE
        if self.reach == 0 and self.threads > 1:
            self._ask_the_threads()

    def _ask_the_threads(self) -> None:
        """Of a process whose first thread has ended alone, only the others show the memory."""
        for thread in os.listdir(f"{self.folder}/task"):
            folder = f"{self.folder}/task/{thread}"
            try:
                fields = stat(folder)
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[20]) > 0:
                self.reach, self.bytes = int(fields[20]), int(fields[21]) * _PAGE
                self.folder = folder
                return


def stat(folder: str) -> list[bytes]:
    """What proc(5) lists for a process or thread, from the third field on."""
    with open(f"{folder}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()


def running(contained: bool) -> list[Process]:
    """All of the job's processes."""
    found: dict[int, Process] = {}
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            found[int(name)] = Process(int(name))
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


def unseen_bytes(process: Process) -> int:
    """Memory of a process that is no page of it in memory: what is swapped out, and the tables of its pages."""
    fields = _kib(process, "status", (b"VmSwap:", b"VmPTE:"))
    return sum(fields.values())


def proportional_bytes(process: Process) -> int:
    """Memory of a process in which a page that n share counts as an n-th; all of it where the system does not tell."""
    return _kib(process, "smaps_rollup", (b"Pss:",)).get(b"Pss:", process.bytes)


def _kib(process: Process, name: str, wanted: tuple[bytes, ...]) -> dict[bytes, int]:
    """Fields of a file that gives them in KiB -> bytes; none where the process is gone, or does not show them."""
    try:
        with open(f"{process.folder}/{name}", "rb") as file:
            lines = [line.split() for line in file if line.startswith(wanted)]
    except OSError:
        return {}
    return {line[0]: int(line[1]) * 1024 for line in lines}


class ProcessorTime:
    """Of a job's processes, also of those that ended and that nobody waited for (who ignores SIGCHLD does not)."""

    def __init__(self) -> None:
        self.before = reaped_seconds()
        self.living: dict[tuple[int, int], float] = {}
        self.gone = 0.0

    def seconds(self, processes: list[Process]) -> float:
        """Until now. To be asked often: of a process that has ended it knows what it saw."""
        living = {process.key: process.own_seconds for process in processes}
        self.gone += sum(seconds for key, seconds in self.living.items() if key not in living)
        self.living = living
        waited_for = reaped_seconds() - self.before + sum(process.children_seconds for process in processes)
        return sum(living.values()) + max(self.gone, waited_for)


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
