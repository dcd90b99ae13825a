"""Programs that take all they can get: each ends in time, without a pass, and leaves nothing."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from sandboxes import TOKEN, assert_holds, passes, python, run, watching

from llama.evaluation.sandbox import Command, Ended, Job, Limits, Sandbox

pytestmark = pytest.mark.slow
MIB = 1 << 20


def test_an_endless_loop_is_ended_for_its_processor_time(sandbox: Sandbox) -> None:
    assert run(sandbox, "while True: pass", cpu_seconds=0.4).ended is Ended.CPU


def test_a_sleep_is_ended_for_its_time(sandbox: Sandbox) -> None:
    assert run(sandbox, "import time\ntime.sleep(1000)", wall_seconds=0.5).ended is Ended.WALL


def test_signals_that_ask_to_end_cannot_be_ignored(sandbox: Sandbox) -> None:
    ignoring = "from signal import *\nfor number in (SIGTERM, SIGXCPU, SIGINT): signal(number, SIG_IGN)\n"
    assert run(sandbox, ignoring + "while True: pass", cpu_seconds=0.4).ended is Ended.CPU
    assert run(sandbox, ignoring + "import time\ntime.sleep(1000)", wall_seconds=0.5).ended is Ended.WALL


def test_a_shell_whose_child_was_ended_for_its_time_used_it_up(sandbox: Sandbox) -> None:
    loop = Command(("bash", "-c", "bash -c 'while :; do :; done'; exit $?"), Limits(cpu_seconds=0.4))
    assert sandbox.run(Job({}, [loop])).ended is Ended.CPU


def test_processor_time_of_all_processes_counts(sandbox: Sandbox) -> None:
    """Each child takes a tenth of a second, and none more than the limit."""
    source = """
import os, time
for _ in range(100):
    if os.fork() == 0:
        while time.process_time() < 0.1: pass
        os._exit(0)
    os.wait()
"""
    assert run(sandbox, source, cpu_seconds=0.4).ended is Ended.CPU


def test_processor_time_counts_though_nobody_waited_for_its_processes(sandbox: Sandbox) -> None:
    """Who ignores SIGCHLD is told nothing of what its children used, and neither is the watcher."""
    source = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(100):
    if os.fork() == 0:
        while time.process_time() < 0.1: pass
        os._exit(0)
    try: os.wait()
    except ChildProcessError: pass
"""
    assert run(sandbox, source, cpu_seconds=0.4).ended is Ended.CPU


@pytest.mark.parametrize("call", ["f()", "x == y"])
def test_deep_recursion_fails(sandbox: Sandbox, call: str) -> None:
    source = f"""
import sys
sys.setrecursionlimit(10 ** 9)
def f(): f()
x, y = [], []
for _ in range(10 ** 5): x, y = [x], [y]
{call}
"""
    assert not passes(run(sandbox, source, address_space_bytes=32 * MIB, cpu_seconds=5))


def test_there_are_no_more_processes_than_the_limit(sandbox: Sandbox) -> None:
    source = """
import os, time
children = 0
try:
    while children < 1000:
        if os.fork() == 0: time.sleep(1000)
        children += 1
except BlockingIOError:
    pass
assert children == 11, children
"""
    assert_holds(sandbox, source, processes=12)


def test_jobs_are_counted_apart(sandbox: Sandbox) -> None:
    """Nine processes at once in each of two jobs, of ten that each may have."""
    source = """
import os, time
for _ in range(8):
    if os.fork() == 0: time.sleep(1000)
time.sleep(0.3)
"""
    with ThreadPoolExecutor(2) as threads:
        outcomes = list(threads.map(lambda _: run(sandbox, source, processes=10), range(4)))
    assert all(map(passes, outcomes)), outcomes


def test_a_fork_bomb_is_contained(sandbox: Sandbox) -> None:
    name = f"{uuid.uuid4().hex}.py"  # of this run alone
    source = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n"
    job = Job({name: source.encode()}, [Command(python(name), Limits(cpu_seconds=1, processes=16))])
    with watching(name) as peak:
        outcome = sandbox.run(job)
    assert outcome.ended is Ended.CPU
    # The watcher's own command line, and bwrap's, have the program's name in none of their arguments.
    assert 1 < peak.count <= 16


def test_a_thread_bomb_is_contained(sandbox: Sandbox) -> None:
    source = """
import os, threading, time
threads = 0
try:
    while threads < 1000:
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        threads += 1
except RuntimeError:
    pass
assert threads == 11, threads
"""
    ending = f"os.write(3, {TOKEN!r})\nos._exit(0)\n"
    assert passes(run(sandbox, (source + ending).encode(), processes=12))


def test_a_daemon_ends_with_its_program(sandbox: Sandbox) -> None:
    """Forked twice, in a session of its own, with all signals ignored and the pipes held open."""
    source = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        while True: time.sleep(1000)
    os._exit(0)
os.wait()
"""
    assert_holds(sandbox, source)


def test_eight_gib_in_one_process_fail(sandbox: Sandbox) -> None:
    outcome = run(sandbox, "x = bytearray(8 << 30)")
    assert (outcome.exit_code, b"MemoryError" in outcome.stderr) == (1, True)


@pytest.mark.parametrize("children", [0, 5])
def test_eight_gib_in_pieces_are_ended_for_memory(sandbox: Sandbox, children: int) -> None:
    """Without a limit on address space, and in several processes, none of which has too much."""
    name = f"{uuid.uuid4().hex}.py"
    source = f"""
import os, time
for _ in range({children}):
    if os.fork() == 0: break
pieces = []
for _ in range({8192 // (children + 1) // 8}): pieces.append(b"x" * (8 << 20))
time.sleep(1000)
"""
    limits = Limits(memory_bytes=256 * MIB, address_space_bytes=None)
    with watching(name) as peak:
        outcome = sandbox.run(Job({name: source.encode()}, [Command(python(name), limits)]))
    assert outcome.ended is Ended.MEMORY
    # What it gets between two looks depends on the machine. Not looked after, this would be 8 GiB.
    assert 0 < peak.bytes < 2048 * MIB


def test_memory_counts_though_the_first_thread_has_ended(sandbox: Sandbox) -> None:
    """/proc shows such a process without any memory; its other threads show it."""
    source = """
import ctypes, os, threading, time
def fill():
    pieces = []
    for _ in range(128): pieces.append(b"x" * (8 << 20))
    time.sleep(1000)
threading.Thread(target=fill).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)  # exit, of this thread alone
"""
    outcome = run(sandbox, source, memory_bytes=128 * MIB, address_space_bytes=None, wall_seconds=10)
    assert outcome.ended is Ended.MEMORY


def test_the_tables_of_pages_are_memory(sandbox: Sandbox) -> None:
    """Each read of another 2 MiB of nothing makes the kernel keep a table of 4 KiB, in which no page is counted."""
    source = """
import mmap, time
MAP_NORESERVE, MADV_NOHUGEPAGE = 0x4000, 15
nothing = mmap.mmap(-1, 64 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE, mmap.PROT_READ)
nothing.madvise(MADV_NOHUGEPAGE)
for place in range(0, 64 << 30, 2 << 20): nothing[place]
time.sleep(1000)
"""
    outcome = run(sandbox, source, memory_bytes=64 * MIB, address_space_bytes=None, wall_seconds=10)
    assert outcome.ended is Ended.MEMORY


def test_memory_that_processes_share_counts_once(sandbox: Sandbox) -> None:
    source = """
import os, time
data = bytearray(b"x" * (100 << 20))
for _ in range(8):
    if os.fork() == 0: time.sleep(1000)
time.sleep(0.3)
"""
    assert_holds(sandbox, source, memory_bytes=256 * MIB)


def test_memory_outside_of_processes_and_files_is_refused(sandbox: Sandbox) -> None:
    source = """
import ctypes, errno, mmap, os
libc = ctypes.CDLL(None, use_errno=True)
def refused(call, *arguments):
    assert call(*arguments) == -1 and ctypes.get_errno() == errno.EPERM, call
try: os.memfd_create("x")
except PermissionError: pass
else: raise AssertionError("memfd")
refused(libc.shmget, 0, 1 << 20, 0o1600)
refused(libc.msgget, 0, 0o1600)
refused(libc.mq_open, b"/queue", os.O_CREAT | os.O_RDWR, 0o600, None)
try: mmap.mmap(-1, 1 << 20)
except PermissionError: pass
else: raise AssertionError("shared memory")
zero = os.open("/dev/zero", os.O_RDWR)
try: mmap.mmap(zero, 1 << 20)
except OSError as error: assert error.errno == errno.ENODEV
else: raise AssertionError("shared memory of /dev/zero")
assert os.read(zero, 5) == bytes(5)
private = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
private[:] = b"x" * len(private)
"""
    assert_holds(sandbox, source)


def test_memory_of_the_kernel_is_refused(sandbox: Sandbox) -> None:
    """Of pipes, access control lists, events and buffers; locks are said to be had."""
    source = """
import ctypes, errno, fcntl, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def refused(call, *arguments):
    assert call(*arguments) == -1 and ctypes.get_errno() == errno.EPERM, call
refused(libc.vmsplice, os.pipe()[1], None, 0, 0)
refused(libc.inotify_init)
refused(libc.inotify_init1, 0)
try: os.setxattr(".", "user.x", b"x")
except PermissionError: pass
else: raise AssertionError("setxattr")
for each in socket.socketpair():
    size = each.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size // 2 - 5000)
    assert each.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == size
files = [open(os.__file__) for _ in range(2)]
for file in files: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
"""
    assert_holds(sandbox, source)


def test_printing_a_gibibyte_neither_passes_nor_fills_memory(sandbox: Sandbox) -> None:
    source = """
import os, sys
for _ in range(1 << 14):
    os.write(1, b"x" * 65536)
    os.write(2, b"y" * 65536)
"""
    outcome = run(sandbox, source)
    assert outcome.ended is Ended.FILES
    assert (len(outcome.stdout), len(outcome.stderr)) == (65536, 65536)


def test_output_beyond_what_is_kept_does_not_block(sandbox: Sandbox) -> None:
    source = "for stream in (1, 2): os.write(stream, b'begin'); [os.write(stream, b'x' * 65536) for _ in range(50)]"
    outcome = run(sandbox, "import os\n" + source, output_bytes=7)
    assert passes(outcome)
    assert (outcome.stdout, outcome.stderr) == (b"beginxx", b"beginxx")


def test_the_token_is_cut_off(sandbox: Sandbox) -> None:
    assert len(run(sandbox, "import os\nfor _ in range(10): os.write(3, b'x' * 50000)").token) == 64


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm", "."])
@pytest.mark.parametrize("size", [0, 5000])
def test_ten_thousand_files_fail(sandbox: Sandbox, folder: str, size: int) -> None:
    source = f"for i in range(10_000): open('{folder}/f%d' % i, 'wb').write(b'x' * {size})"
    outcome = run(sandbox, source)
    assert outcome.ended is Ended.FILES or b"No space left on device" in outcome.stderr


def test_all_files_together_have_one_size(sandbox: Sandbox) -> None:
    """/tmp, /dev/shm and the job's folder are one file system; no file is larger than the limit either."""
    source = """
import errno, os
written = 0
for folder in ("/tmp", "/dev/shm", os.getcwd()):
    for i in range(40):
        try:
            with open(f"{folder}/{len(folder)}-{i}", "wb", buffering=0) as file: written += file.write(b"x" * (1 << 20))
        except OSError as error:
            assert error.errno == errno.ENOSPC
assert 14 << 20 <= written <= 16 << 20, written
try: os.truncate("/tmp/4-0", 17 << 20)
except OSError as error: assert error.errno == errno.EFBIG
else: raise AssertionError("larger than the limit")
"""
    assert_holds(sandbox, "import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" + source)


def test_open_files_are_limited(sandbox: Sandbox) -> None:
    """Each may hold a buffer of the kernel, which is counted nowhere."""
    source = """
import os
ends = []
try:
    while len(ends) < 10_000: ends += os.pipe()
except OSError: pass
assert 100 < len(ends) < 130, len(ends)
for end in ends: os.close(end)
"""
    assert_holds(sandbox, source)
