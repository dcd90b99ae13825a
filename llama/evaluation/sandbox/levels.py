"""The sandboxes: how each shuts a program off from this machine."""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...errors import EvaluationError
from .job import Job, Outcome
from .launch import BOOTSTRAP, launch, payload
from .seccomp import seccomp_filter
from .users import NOBODY, other_tasks, worker
from .view import DEVICE_LINKS, DEVICES, HOST_NAME, interpreter, view

__all__ = ["Bubblewrap", "LimitsOnly", "SandboxExec", "Unshare", "seatbelt_profile"]

# Modules that are handed over, in the order in which they import each other.
_WATCHER = ("native", "processes", "inside")
_PYTHON = ("-I", "-S", "-B", "-c", BOOTSTRAP)
# The only place that can be written, with all that is at it counted together.
_SCRATCH = "/tmp"
_FOLDER = "/tmp/job"


@dataclass(frozen=True)
class Bubblewrap:
    """Namespaces made by bwrap, 0.7 or newer."""

    level: str = "bubblewrap"

    def run(self, job: Job) -> Outcome:
        """As `Sandbox.run`."""
        _linux(self.level)
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise EvaluationError("bwrap is not on this machine: install the package bubblewrap")
        with worker() as uid:
            argv = [bwrap, *_bwrap_options(job, uid), "--", str(interpreter()), *_PYTHON]
            values = _namespace_values(uid)
            return launch(argv, payload(job, values, *_WATCHER), job)


@dataclass(frozen=True)
class Unshare:
    """Namespaces that we make ourselves: user, pid, net, mount, ipc, uts and cgroup. Needs Linux 5.12."""

    level: str = "unshare"

    def run(self, job: Job) -> Outcome:
        """As `Sandbox.run`."""
        _linux(self.level)
        seen = view(job.visible)
        with worker() as uid:
            values = {
                **_namespace_values(uid),
                "nobody": NOBODY,
                "host_name": HOST_NAME,
                "shown": list(seen.shown),
                "links": list(seen.links),
                "hidden": list(seen.hidden),
                "devices": list(DEVICES),
                "device_links": list(DEVICE_LINKS),
                "scratch_bytes": _scratch_bytes(job),
            }
            argv = [str(interpreter()), *_PYTHON]
            return launch(argv, payload(job, values, *_WATCHER, "entering"), job)


@dataclass(frozen=True)
class SandboxExec:
    """macOS's sandbox-exec: files and network are shut off. Memory and the number of processes are not limited."""

    level: str = "sandbox-exec"

    def run(self, job: Job) -> Outcome:
        """As `Sandbox.run`."""
        program = shutil.which("sandbox-exec")
        if program is None:
            raise EvaluationError("sandbox-exec is a program of macOS, and not on this machine")
        with _folder() as folder:
            profile = seatbelt_profile(folder, (*view(job.visible).shown, sys.base_prefix))
            argv = [program, "-p", profile, str(interpreter()), *_PYTHON]
            return launch(argv, payload(job, _values(folder), *_WATCHER), job, contained=False)


@dataclass(frozen=True)
class LimitsOnly:
    """No sandbox: a program can read, write and reach what its user can. Only what it uses is limited."""

    level: str = "limits"

    def run(self, job: Job) -> Outcome:
        """As `Sandbox.run`."""
        with _folder() as folder:
            argv = [str(interpreter()), *_PYTHON]
            return launch(argv, payload(job, _values(folder), *_WATCHER), job, contained=False)


def seatbelt_profile(folder: str, readable: tuple[str, ...]) -> str:
    """What sandbox-exec allows: nothing but to read the system, to run it, and to write in the folder."""

    def quoted(path: str) -> str:
        return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'

    system = ("/System", "/Library/Apple", "/private/var/db/dyld", "/private/var/db/timezone")
    reads = " ".join(f"(subpath {quoted(path)})" for path in (*system, *readable, folder))
    return "\n".join(
        (
            "(version 1)",
            "(deny default)",
            "(allow process-exec process-fork sysctl-read)",
            "(allow signal (target same-sandbox))",
            "(allow file-read-metadata)",
            f'(allow file-read* {reads} (subpath "/dev"))',
            f'(allow file-write* (subpath {quoted(folder)}) (literal "/dev/null"))',
        )
    )


def _linux(level: str) -> None:
    if sys.platform != "linux":
        raise EvaluationError(f"the sandbox {level} needs Linux's namespaces; this is {sys.platform}")


def _values(folder: str) -> dict[str, Any]:
    """For `inside.main` where there are no namespaces."""
    return {
        "uid": None,
        "seccomp": b"",
        "contained": False,
        "others": None if os.geteuid() == 0 or sys.platform != "linux" else other_tasks(),
        "scratch": "",
        "folder": folder,
    }


def _namespace_values(uid: int | None) -> dict[str, Any]:
    """For `inside.main` as the first process of a pid namespace."""
    counted_apart = uid is not None or _version() >= (5, 14)
    return {
        "uid": uid,
        "seccomp": seccomp_filter(platform.machine()),
        "contained": True,
        "others": 1 if counted_apart else 1 + other_tasks(),  # the watcher is one
        "scratch": _SCRATCH,
        "folder": _FOLDER,
    }


def _version() -> tuple[int, int]:
    """Of the kernel; since 5.14 it counts a user's processes for each user namespace."""
    major, minor = platform.release().split(".")[:2]
    return int(major), int("".join(filter(str.isdigit, minor[:3])))


def _scratch_bytes(job: Job) -> int:
    return max(command.limits.file_bytes for command in job.commands)


def _bwrap_options(job: Job, uid: int | None) -> Iterator[str]:
    yield from ("--die-with-parent", "--new-session", "--as-pid-1", "--clearenv")
    yield from ("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")
    yield from ("--hostname", HOST_NAME)
    if uid is None:
        yield from ("--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY))
    else:  # just enough to become the worker's user
        yield from ("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
    yield from ("--perms", "1777", "--size", str(_scratch_bytes(job)), "--tmpfs", _SCRATCH)
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
    for place, target in (*DEVICE_LINKS, ("/dev/shm", _SCRATCH)):
        yield from ("--symlink", target, place)
    yield from ("--remount-ro", "/dev")
    yield from ("--remount-ro", "/", "--chdir", _SCRATCH)


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    """For a job without a file system of its own.

    The job's watcher makes and removes it, so that nothing is left where we are killed meanwhile. This removes it
    where the watcher was killed.
    """
    folder = os.path.join(os.path.realpath(tempfile.gettempdir()), f"codellama-job-{secrets.token_hex(16)}")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
