"""Calls of Linux that Python 3.11 has no function for, through the C library. Imports nothing of the package.

Each raises OSError where the call fails. Numbers are those of the kernel's headers.
"""

from __future__ import annotations

import ctypes
import os
import struct

LIBC = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP = 1, 4, 22
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
SECCOMP_MODE_FILTER = 2
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
CAPABILITY_VERSION_3 = 0x20080522

# x86-64, AArch64
NUMBERS = {"clone": (56, 220), "pivot_root": (155, 41), "mount_setattr": (442, 442)}
COLUMN = 1 if os.uname().machine == "aarch64" else 0


def prctl(option: int, value: int = 0, data: ctypes.Structure | None = None) -> None:
    """prctl(2) with one number and perhaps one structure."""
    address = ctypes.addressof(data) if data is not None else 0
    rest = [ctypes.c_ulong(number) for number in (value, address, 0, 0)]
    _check(LIBC.prctl(option, *rest), f"prctl {option}")


class _Filter(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def forbid(seccomp: bytes) -> None:
    """Install a filter for system calls, for this process and all that it starts."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, _Filter(len(seccomp) // 8, seccomp))


def drop_capabilities() -> None:
    """Drop all capabilities, also those that programs would inherit."""
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    _check(LIBC.capset(header, bytes(24)), "capset")


def default_signals(*signals: int) -> None:
    """Let these do what they do by default: Python ignores some, and programs that it starts would inherit that."""
    LIBC.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    for signal in signals:
        LIBC.signal(signal, None)


def clone(flags: int) -> int:
    """fork(2) with flags of clone(2): 0 in the child, its pid in the parent. This process must have one thread."""
    return _syscall("clone", flags, 0, 0, 0, 0)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2)."""
    strings = [text.encode("utf-8", "surrogateescape") for text in (source, target, kind, options)]
    result = LIBC.mount(*strings[:3], ctypes.c_ulong(flags), strings[3])
    _check(result, f"mount {kind or source} at {target}")


def bind(source: str, target: str) -> None:
    """Show a file or folder, with what is mounted below it, at a second place."""
    mount(source, target, "", MS_BIND | MS_REC)


def restrict_mount(path: str, attributes: int, recursive: bool) -> None:
    """mount_setattr(2): add MOUNT_ATTR_... to a mount. Needs Linux 5.12."""
    data = ctypes.create_string_buffer(struct.pack("=QQQQ", attributes, 0, 0, 0), 32)
    name = ctypes.create_string_buffer(path.encode("utf-8", "surrogateescape"))
    flags = AT_RECURSIVE if recursive else 0
    _syscall("mount_setattr", AT_FDCWD, ctypes.addressof(name), flags, ctypes.addressof(data), 32)


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2): `new` becomes "/", and what was "/" lies at `old`."""
    names = [ctypes.create_string_buffer(path.encode()) for path in (new, old)]
    _syscall("pivot_root", *(ctypes.addressof(name) for name in names))


def detach(path: str) -> None:
    """Unmount a tree, now or when the last that uses it is gone."""
    _check(LIBC.umount2(path.encode(), MNT_DETACH), f"umount {path}")


def set_host_name(name: str) -> None:
    """Set the host name of this process's UTS namespace."""
    _check(LIBC.sethostname(name.encode(), ctypes.c_size_t(len(name))), "sethostname")


def _syscall(name: str, *arguments: int) -> int:
    LIBC.syscall.restype = ctypes.c_long
    result: int = LIBC.syscall(*(ctypes.c_long(value) for value in (NUMBERS[name][COLUMN], *arguments)))
    _check(result, name)
    return result


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
