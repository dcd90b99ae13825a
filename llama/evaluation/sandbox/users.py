"""Which user a job runs as, and how many processes are counted as that user's."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

from ...errors import EvaluationError

__all__ = ["NOBODY", "WORKERS", "other_tasks", "worker"]

NOBODY = 65534
# Users of jobs where we are root. systemd's list of users and groups leaves these to nobody, and they lie within the
# 65,536 that containers have.
WORKERS = range(60706, 61184)


@contextlib.contextmanager
def worker() -> Iterator[int | None]:
    """The user that a job runs as: None for our own, in a user namespace; for root a real uid that nobody else uses.

    RLIMIT_NPROC does not hold root, not even under another uid of a user namespace. Each running job has its own uid,
    so that their processes are counted apart. The lock is the name of an abstract socket, which leaves no file.
    """
    if os.geteuid() != 0 or not may_become_workers(Path("/proc/self/uid_map").read_text()):
        yield None
        return
    candidates = list(WORKERS)
    random.SystemRandom().shuffle(candidates)
    with socket.socket(socket.AF_UNIX) as lock:
        for uid in candidates:
            try:
                lock.bind(f"\0codellama-sandbox-user-{uid}")
            except OSError:
                continue
            yield uid
            return
    raise EvaluationError(f"{len(candidates)} jobs are running on this machine: use fewer workers")


def may_become_workers(uid_map: str) -> bool:
    """Whether root, in the user namespace with this map, has the workers' users."""
    ranges = [tuple(map(int, line.split())) for line in uid_map.splitlines()]
    return any(first <= WORKERS[0] and WORKERS[-1] < first + count for first, _, count in ranges)


def other_tasks() -> int:
    """Threads of our user that run now: where the system counts them all, a limit must lie above."""
    tasks = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if entry.stat().st_uid == os.geteuid():
                    tasks += len(list((entry / "task").iterdir()))
    return tasks
