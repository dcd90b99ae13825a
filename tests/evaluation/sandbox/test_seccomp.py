"""The filter of system calls, run by an interpreter of its own, and against the kernel's headers."""

from __future__ import annotations

import errno
import re
import struct
import subprocess

import pytest

from llama.errors import EvaluationError
from llama.evaluation.sandbox.seccomp import DENIED, DENIED_ON_X86, FIRST_UNKNOWN, IGNORED, seccomp_filter

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
X86, ARM = (0xC000003E, 0), (0xC00000B7, 1)  # AUDIT_ARCH_..., column of DENIED
MACHINES = {"x86_64": X86, "aarch64": ARM}
CLONE, CLONE3, SOCKET, SOCKETPAIR, PRLIMIT = (56, 220), (435, 435), (41, 198), (53, 199), (302, 261)
MMAP, FCNTL = (9, 222), (72, 25)


def verdict(machine: str, number: int, *arguments: int, audit: int | None = None) -> int:
    """What the filter says of a call: a small machine for classic BPF, as far as the filter uses it."""
    six = [*arguments, *[0] * 6][:6]
    data = struct.pack("<IIQ6Q", number, MACHINES[machine][0] if audit is None else audit, 0, *six)
    program = list(struct.iter_unpack("=HBBI", seccomp_filter(machine)))
    at, accumulator = 0, 0
    while True:
        operation, if_true, if_false, value = program[at]
        at += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x06:
            return int(value)
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: accumulator & value != 0}[
                operation
            ]
            at += if_true if holds else if_false


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_on_the_list_are_refused_and_others_allowed(machine: str) -> None:
    column = MACHINES[machine][1]
    expected = dict.fromkeys(range(600), ALLOW)
    expected |= {numbers[column]: ERRNO | errno.EPERM for numbers in DENIED.values()}
    expected |= {numbers[column]: ERRNO for numbers in IGNORED.values()}
    expected |= dict.fromkeys(DENIED_ON_X86.values() if machine == "x86_64" else (), ERRNO | errno.EPERM)
    expected |= dict.fromkeys(range(FIRST_UNKNOWN, 600), ERRNO | errno.ENOSYS)
    for number in set(expected) - {each[column] for each in (CLONE, CLONE3, SOCKET, SOCKETPAIR, PRLIMIT)}:
        assert verdict(machine, number) == expected[number], number
    assert verdict(machine, CLONE3[column]) == ERRNO | errno.ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_clone_makes_threads_and_processes_but_no_namespaces(machine: str) -> None:
    clone = CLONE[MACHINES[machine][1]]
    threads = 0x3D0F00  # what the C library's pthread_create asks for
    for flags in (17, threads, 0x1200011):
        assert verdict(machine, clone, flags) == ALLOW
    for namespace in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(machine, clone, 17 | namespace) == ERRNO | errno.EPERM


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("call", [SOCKET, SOCKETPAIR])
def test_sockets_are_of_one_family(machine: str, call: tuple[int, int]) -> None:
    number = call[MACHINES[machine][1]]
    for family in range(60):
        expected = ALLOW if family == 1 else ERRNO | errno.EAFNOSUPPORT
        assert verdict(machine, number, family) == expected


@pytest.mark.parametrize("machine", MACHINES)
def test_only_a_process_itself_sets_its_limits(machine: str) -> None:
    number = PRLIMIT[MACHINES[machine][1]]
    assert verdict(machine, number, 0) == ALLOW
    for pid in (1, 2, 0xFFFFFFFF):
        assert verdict(machine, number, pid) == ERRNO | errno.EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_memory_without_a_file_is_a_process_s_own(machine: str) -> None:
    shared, private, anonymous, huge = 0x01, 0x02, 0x20, 0x40000
    number = MMAP[MACHINES[machine][1]]
    for flags in (shared, private, private | anonymous, private | 0x4000 | anonymous):
        assert verdict(machine, number, 0, 4096, 3, flags) == ALLOW
    for flags in (shared | anonymous, 0x03 | anonymous, private | anonymous | huge, shared | huge):
        assert verdict(machine, number, 0, 4096, 3, flags) == ERRNO | errno.EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_locks_are_said_to_be_had(machine: str) -> None:
    number = FCNTL[MACHINES[machine][1]]
    locks = {6, 7, 37, 38, 1024}
    for command in range(1100):
        assert verdict(machine, number, 3, command) == (ERRNO if command in locks else ALLOW)


def test_other_numberings_of_the_same_machine_end_the_program() -> None:
    i386 = 0x40000003
    assert verdict("x86_64", 26, audit=i386) == KILL
    assert verdict("x86_64", 0x40000000 | 101) == KILL


@pytest.mark.parametrize(
    ("machine", "header"), [("x86_64", "asm/unistd_64.h"), ("aarch64", "asm-generic/unistd.h")]
)
def test_numbers_are_those_of_the_kernel_headers(machine: str, header: str) -> None:
    try:
        wanted = ["-D__ARCH_WANT_SYS_CLONE3", "-D__ARCH_WANT_MEMFD_SECRET", "-include", header]
        command = ["cc", "-E", "-dM", *wanted, "-x", "c", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("cc is not on this machine")
    if done.returncode != 0:
        pytest.skip("this machine has no such header of the kernel")
    numbers = dict(re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)$", done.stdout, re.MULTILINE))
    column = MACHINES[machine][1]
    listed = {**DENIED, **IGNORED}
    if machine == "x86_64":
        listed |= {name: (number, number) for name, number in DENIED_ON_X86.items()}
    known = {name: number for name, number in listed.items() if name in numbers}
    assert len(known) > len(listed) - 5  # older headers lack the newest
    assert {name: int(numbers[name]) for name in known} == {
        name: each[column] for name, each in known.items()
    }
    for name, each in {
        "clone": CLONE,
        "clone3": CLONE3,
        "socket": SOCKET,
        "socketpair": SOCKETPAIR,
        "prlimit64": PRLIMIT,
        "mmap": MMAP,
        "fcntl": FCNTL,
    }.items():
        assert int(numbers[name]) == each[column]


def test_an_unknown_machine_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="x86_64 and aarch64, not of riscv64"):
        seccomp_filter("riscv64")
