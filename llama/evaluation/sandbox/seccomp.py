"""A filter for system calls, in the kernel's classic BPF, for what namespaces and limits leave open.

New namespaces would let a program mount file systems of any size and count its processes afresh. AF_VSOCK reaches a
virtual machine's host whatever the network namespace. prlimit and the scheduler's calls would starve the process that
watches. The rest is what no test of a function needs, and where kernels had holes.

Some memory is counted in no process and no folder, so the calls that get much of it are refused:
- shared memory without a file: memfd, System V, POSIX queues, and mmap of it, which stays when it is unmapped but for
  one page (6 GiB measured, with a limit of 1 GiB);
- vmsplice: a pipe that holds one page of a huge page keeps all 2 MiB of it;
- buffers of TCP, and those of Unix sockets beyond the system's default size;
- the kernel's own lists: access control lists (1 GiB measured), locks, rules of landlock, events of inotify.

Numbers: Linux's asm/unistd_64.h (x86-64) and asm-generic/unistd.h (AArch64). Layout: linux/seccomp.h, linux/filter.h.
"""

from __future__ import annotations

import errno
import struct

from ...errors import EvaluationError

__all__ = ["DENIED", "IGNORED", "seccomp_filter"]

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
    "vmsplice": (278, 75),
    # memory of the kernel
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "inotify_init1": (294, 26),
    "landlock_create_ruleset": (444, 444),
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
# Calls that only x86-64 has.
DENIED_ON_X86 = {"inotify_init": 253, "modify_ldt": 154}
# Without effect, but said to have worked: runtimes that set priorities of their own threads would give up. Locks on the
# system's files would be seen outside, and sync writes what others have not asked for.
IGNORED: dict[str, tuple[int, int]] = {
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "setsockopt": (54, 208),
    "flock": (73, 32),
    "sync": (162, 81),
    "syncfs": (306, 267),
}
# What later kernels than this table's may have; C libraries can do without. Among them are new calls for what is
# refused above. The same number on both machines, as of all calls since 424.
FIRST_UNKNOWN = 452
_CLONE = (56, 220)
_CLONE3 = (435, 435)  # its flags lie in memory, which a filter cannot read; the C library falls back to clone
_SOCKET = (41, 198)
_SOCKETPAIR = (53, 199)
_PRLIMIT = (302, 261)
_MMAP = (9, 222)
_FCNTL = (72, 25)

_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_AF_UNIX = 1
_SELF = 0  # of prlimit: the caller
_SHARED_ANONYMOUS, _HUGE_PAGES = 0x21, 0x40000  # of mmap: MAP_SHARED and MAP_ANONYMOUS, MAP_HUGETLB
_LOCKS = (6, 7, 37, 38, 1024)  # of fcntl: SETLK, SETLKW, OFD_SETLK, OFD_SETLKW, SETLEASE

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_...
_X32 = 0x40000000  # x86-64's second numbering

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
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
        _step(_AT_LEAST, FIRST_UNKNOWN, 0, 1),
        _step(_RETURN, _ERRNO | errno.ENOSYS),
    ]
    denied = [numbers[column] for numbers in DENIED.values()]
    if machine == "x86_64":
        denied += DENIED_ON_X86.values()
    for number in denied:
        code += _refuse(number, errno.EPERM)
    code += _refuse(_CLONE3[column], errno.ENOSYS)
    for numbers in IGNORED.values():
        code += _refuse(numbers[column], 0)
    code += _by_argument(_CLONE[column], _ANY_BIT, _NEW_NAMESPACES, _ERRNO | errno.EPERM, _ALLOW)
    code += _by_argument(_PRLIMIT[column], _EQUAL, _SELF, _ALLOW, _ERRNO | errno.EPERM)
    for numbers in (_SOCKET, _SOCKETPAIR):
        code += _by_argument(numbers[column], _EQUAL, _AF_UNIX, _ALLOW, _ERRNO | errno.EAFNOSUPPORT)
    code += _mmap(_MMAP[column]) + _fcntl(_FCNTL[column])
    code.append(_step(_RETURN, _ALLOW))
    return b"".join(code)


def _step(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """struct sock_filter; the two jumps are numbers of instructions to skip."""
    return struct.pack("=HBBI", operation, if_true, if_false, value)


def _refuse(number: int, code: int) -> list[bytes]:
    return [_step(_EQUAL, number, 0, 1), _step(_RETURN, _ERRNO | code)]


def _by_argument(number: int, operation: int, value: int, if_true: int, if_false: int) -> list[bytes]:
    """What becomes of a call depends on the low half of its first argument; all of these take an int or flags there."""
    return [
        _step(_EQUAL, number, 0, 4),
        _step(_LOAD, _argument(0)),
        _step(operation, value, 0, 1),
        _step(_RETURN, if_true),
        _step(_RETURN, if_false),
    ]


def _mmap(number: int) -> list[bytes]:
    return [
        _step(_EQUAL, number, 0, 7),
        _step(_LOAD, _argument(3)),
        _step(_ANY_BIT, _HUGE_PAGES, 3, 0),  # of the system's pool of them, which counts in no process
        _step(_AND, _SHARED_ANONYMOUS),
        _step(_EQUAL, _SHARED_ANONYMOUS, 1, 0),
        _step(_RETURN, _ALLOW),
        _step(_RETURN, _ERRNO | errno.EPERM),
        _step(_RETURN, _ALLOW),
    ]


def _fcntl(number: int) -> list[bytes]:
    code = [_step(_EQUAL, number, 0, 2 + 2 * len(_LOCKS)), _step(_LOAD, _argument(1))]
    for lock in _LOCKS:
        code += _refuse(lock, 0)
    return [*code, _step(_RETURN, _ALLOW)]


def _argument(index: int) -> int:
    """Where the low half of an argument lies in struct seccomp_data."""
    return _ARGUMENTS + 8 * index
