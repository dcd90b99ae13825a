"""The sandboxes: how each shuts a program off from this machine."""

from __future__ import annotations

import contextlib
import os
import platform
import random
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import EvaluationError
from .job import Job, Outcome
from .launch import BOOTSTRAP, launch, payload
from .seccomp import seccomp_filter
from .view import DEVICES, interpreter, view

__all__ = ["Bubblewrap"]

_PYTHON = ("-I", "-S", "-B", "-c", BOOTSTRAP)
# The only place that can be written, with all that is at it counted together.
_SCRATCH = "/tmp"
_FOLDER = "/tmp/job"
_NOBODY = 65534
# Users of jobs where we are root. systemd's list of users and groups leaves these to nobody, and they lie within the
# 65,536 that containers have.
_WORKERS = range(60706, 61184)


@dataclass(frozen=True)
class Bubblewrap:
    """Namespaces made by bwrap, 0.7 or newer."""

    level: str = "bubblewrap"

    def run(self, job: Job) -> Outcome:
        """As `Sandbox.run`."""
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise EvaluationError("bwrap is not on this machine: install the package bubblewrap")
        with worker() as uid:
            values = {
                "uid": uid,
                "seccomp": seccomp_filter(platform.machine()),
                "contained": True,
                "scratch": _SCRATCH,
                "folder": _FOLDER,
            }
            argv = [bwrap, *_bwrap_options(job, uid), "--", str(interpreter()), *_PYTHON]
            return launch(argv, payload(job, values, "inside"), job)


def _bwrap_options(job: Job, uid: int | None) -> Iterator[str]:
    yield from ("--die-with-parent", "--new-session", "--as-pid-1", "--clearenv")
    yield from ("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")
    if uid is None:
        yield from ("--unshare-user", "--uid", str(_NOBODY), "--gid", str(_NOBODY))
    else:  # just enough to become the worker's user
        yield from ("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
    seen = view(job.visible)
    for folder in seen.parents():  # bwrap would make them for root's eyes only
        yield from ("--perms", "0755", "--dir", folder)
    for place in seen.shown:
        yield from ("--ro-bind", place, place)
    for place, target in seen.links:
        yield from ("--symlink", target, place)
    for place in seen.hidden:
        yield from ("--tmpfs", place, "--remount-ro", place)
    yield from ("--proc", "/proc", "--tmpfs", "/dev")
    for name in DEVICES:
        yield from ("--dev-bind", f"/dev/{name}", f"/dev/{name}")
    yield from (
        "--symlink",
        "/proc/self/fd",
        "/dev/fd",
        "--symlink",
        _SCRATCH,
        "/dev/shm",
        "--remount-ro",
        "/dev",
    )
    size = max(command.limits.file_bytes for command in job.commands)
    yield from ("--perms", "1777", "--size", str(size), "--tmpfs", _SCRATCH)
    yield from ("--remount-ro", "/", "--chdir", _SCRATCH)


@contextlib.contextmanager
def worker() -> Iterator[int | None]:
    """The user that a job runs as: None for our own, in a user namespace; of root's a real one that nobody else has.

    Root's limit on processes holds nobody, under no name that a user namespace gives it. A user for each job that runs,
    so that their processes are not counted together: the name of an abstract socket is the lock, which leaves no file.
    """
    if os.geteuid() != 0 or not _has_users(Path("/proc/self/uid_map").read_text()):
        yield None
        return
    candidates = list(_WORKERS)
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


def _has_users(uid_map: str) -> bool:
    """Whether root is a root that may become the workers' users."""
    ranges = [tuple(map(int, line.split())) for line in uid_map.splitlines()]
    return any(first <= _WORKERS[0] and _WORKERS[-1] < first + count for first, _, count in ranges)
