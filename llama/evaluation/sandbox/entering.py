"""Makes the namespaces of a sandbox without bwrap, and continues as their first process.

Handed over like `inside.py`, of which it is the first half. Two processes: the outer one stays, as the parent that a
pid namespace needs, and ends with the inner one's exit code.
"""

from __future__ import annotations

import os

from . import inside
from .native import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    PR_SET_PDEATHSIG,
    bind,
    clone,
    detach,
    mount,
    pivot_root,
    prctl,
    restrict_mount,
    set_host_name,
)
from .processes import SIGKILL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
SIGCHLD = 17
NAMESPACES = (
    CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
)


def main(values: dict[str, Any]) -> None:
    """As `inside.main`, in namespaces of its own."""
    prctl(PR_SET_PDEATHSIG, SIGKILL)
    ready, told = os.pipe()
    child = clone(NAMESPACES | SIGCHLD)
    if child:
        os.close(ready)
        map_users(child, values["uid"], values["nobody"])
        os.write(told, b"!")
        os.close(told)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(code if code >= 0 else 128 - code)
    prctl(PR_SET_PDEATHSIG, SIGKILL)
    os.close(told)
    if os.read(ready, 1) != b"!":
        os._exit(1)  # the parent is gone
    os.close(ready)
    os.umask(0o022)
    set_host_name(values["host_name"])
    make_root(values)
    inside.main(values)


def map_users(child: int, worker: int | None, nobody: int) -> None:
    """Write the maps of the user namespace: root keeps itself and the worker; any other user becomes nobody."""
    if worker is None:
        _write(f"/proc/{child}/setgroups", "deny")
        maps = [f"{nobody} {own} 1" for own in (os.geteuid(), os.getegid())]
    else:
        maps = [f"0 0 1\n{worker} {worker} 1"] * 2
    for name, text in zip(("uid_map", "gid_map"), maps, strict=True):
        _write(f"/proc/{child}/{name}", text)


def make_root(values: dict[str, Any]) -> None:
    """Make a root folder with what `view.View` lists; only the scratch folder can be written."""
    scratch: str = values["scratch"]
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m")
    os.mkdir("/tmp/host")
    pivot_root("/tmp", "/tmp/host")
    os.chdir("/")
    os.mkdir(scratch)
    room: int = values["scratch_bytes"]
    options = f"mode=1777,size={room},nr_inodes={room // inside.BYTES_OF_A_FILE}"
    mount("tmpfs", scratch, "tmpfs", MS_NOSUID | MS_NODEV, options)
    for place in values["shown"]:
        show(place)
        restrict_mount(place, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, recursive=True)
    for place, target in values["links"]:
        os.symlink(target, place)
    for place in values["hidden"]:
        mount("tmpfs", place, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV, "mode=755,size=4k")
    os.mkdir("/proc")
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for name in values["devices"]:
        show(f"/dev/{name}")
    for place, target in (*values["device_links"], ("/dev/shm", scratch)):
        os.symlink(target, place)
    detach("/host")
    os.rmdir("/host")
    restrict_mount("/", MOUNT_ATTR_RDONLY, recursive=False)


def show(place: str) -> None:
    """Bind what the host has there to the same place of the new root."""
    host = f"/host{place}"
    if os.path.isdir(host):
        os.makedirs(place, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.close(os.open(place, os.O_WRONLY | os.O_CREAT, 0o644))
    bind(host, place)


def _write(path: str, text: str) -> None:
    """Write in one call, as these files require."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
