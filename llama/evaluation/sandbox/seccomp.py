"""A filter for system calls, in the kernel's classic BPF, for what namespaces and limits leave open.

New namespaces would let a program mount file systems of any size and count its processes afresh. Shared memory without
a file (memfd, System V, POSIX queues) is counted in no process and no folder. AF_VSOCK reaches a virtual machine's host
whatever the network namespace. The rest of the list is what no test of a function needs, and where kernels had holes.

Numbers: Linux's asm/unistd_64.h (x86-64) and asm-generic/unistd.h (AArch64). Layout: linux/seccomp.h, linux/filter.h.
"""

from __future__ import annotations

import errno
import struct

from ...errors import EvaluationError

__all__ = ["DENIED", "seccomp_filter"]

# System call -> its number on x86-64 and on AArch64.
DENIED: dict[str, tuple[int, int]] = {
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    # memory that is no process's
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    # keys of the user who started the sandbox
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # large parts of the kernel
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "quotactl": (179, 60),
    "syslog": (103, 116),
}
_CLONE = (56, 220)
_CLONE3 = (435, 435)  # its flags lie in memory, which a filter cannot read; the C library falls back to clone
_SOCKET = (41, 198)
_SOCKETPAIR = (53, 199)

_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_...
_X32 = 0x40000000  # x86-64's second numbering

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


def seccomp_filter(machine: str) -> bytes:
    """The program, for `machine` as `platform.machine()` names it.

    Raises:
        EvaluationError: a machine whose system calls this table does not have.
    """
    if machine not in _ARCHITECTURES:
        raise EvaluationError(
            f"the sandbox knows the system calls of {' and '.join(_ARCHITECTURES)}, not of {machine}"
        )
    column, audit = _ARCHITECTURES[machine]
    code = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, audit, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
        _step(_AT_LEAST, _X32, 0, 1),
        _step(_RETURN, _KILL),
    ]
    for numbers in DENIED.values():
        code += _refuse(numbers[column], errno.EPERM)
    code += _refuse(_CLONE3[column], errno.ENOSYS)
    code += [
        _step(_EQUAL, _CLONE[column], 0, 4),
        _step(_LOAD, _FIRST_ARGUMENT),
        _step(_ANY_BIT, _NEW_NAMESPACES, 0, 1),
        _step(_RETURN, _ERRNO | errno.EPERM),
        _step(_RETURN, _ALLOW),
    ]
    for number in (_SOCKET[column], _SOCKETPAIR[column]):
        known = [_step(_EQUAL, family, len(_FAMILIES) - at, 0) for at, family in enumerate(_FAMILIES)]
        code += [
            _step(_EQUAL, number, 0, len(known) + 3),
            _step(_LOAD, _FIRST_ARGUMENT),
            *known,
            _step(_RETURN, _ERRNO | errno.EAFNOSUPPORT),
            _step(_RETURN, _ALLOW),
        ]
    code.append(_step(_RETURN, _ALLOW))
    return b"".join(code)


def _step(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """struct sock_filter; the two jumps are numbers of instructions to skip."""
    return struct.pack("=HBBI", operation, if_true, if_false, value)


def _refuse(number: int, code: int) -> list[bytes]:
    return [_step(_EQUAL, number, 0, 1), _step(_RETURN, _ERRNO | code)]
