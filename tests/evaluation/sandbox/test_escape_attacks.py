"""Programs that reach for what is not theirs: it is refused, or not there, and nothing of this machine is seen."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandboxes import assert_holds, passes, run

from llama.evaluation.sandbox import Sandbox, interpreter

pytestmark = pytest.mark.slow

REFUSED = """
import errno, os, socket
def refused(call, *arguments):
    try: result = call(*arguments)
    except OSError as error: return error.errno
    raise AssertionError(f"{call} {arguments} gave {result}")
"""


def test_only_the_scratch_folder_can_be_written(sandbox: Sandbox) -> None:
    places = [
        Path.home(),
        Path.cwd(),
        Path(__file__).parent,
        Path("/etc"),
        Path("/usr"),
        Path("/"),
        Path("/dev"),
    ]
    places += [
        Path("/var/tmp"),
        Path("/proc"),
        Path("/run"),
        interpreter().parent,
        Path(sys.base_prefix, "lib"),
    ]
    source = f"""
for place in {[str(place) for place in places]}:
    code = refused(open, place + "/written-by-the-sandbox-tests", "w")
    assert code in (errno.EROFS, errno.ENOENT, errno.EACCES), (place, code)
    code = refused(os.mkdir, place + "/made-by-the-sandbox-tests")
    assert code in (errno.EROFS, errno.ENOENT, errno.EACCES), (place, code)
for name in ("/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/proc/1/oom_score_adj"):
    code = refused(open, name, "w")
    assert code in (errno.EROFS, errno.EACCES, errno.ENOENT, errno.EPERM), (name, code)
refused(os.chmod, {str(interpreter())!r}, 0o777)
refused(os.unlink, {str(interpreter())!r})
open("/tmp/here", "w").close()
"""
    assert_holds(sandbox, REFUSED + source)
    assert not [place for place in places if (place / "written-by-the-sandbox-tests").exists()]


def test_nothing_of_this_machine_is_seen_but_programs_and_libraries(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("seen")
    hidden = [
        tmp_path,
        Path(__file__),
        Path.cwd() / "pyproject.toml",
        Path("/etc/passwd"),
        Path("/etc/hostname"),
    ]
    hidden += [
        Path("/home"),
        Path("/var"),
        Path("/run"),
        Path("/sys"),
        Path("/boot"),
        Path("/mnt"),
        Path("/opt"),
    ]
    hidden = [place for place in hidden if not interpreter().is_relative_to(place)]
    source = f"""
import os
for place in {[str(place) for place in hidden]}:
    assert not os.path.lexists(place), place
assert set(os.listdir("/")) <= {{"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "proc", "dev", "tmp",
    {sys.base_prefix.split("/")[1]!r}}}, os.listdir("/")
assert set(os.listdir("/etc")) <= {{"alternatives", "ld.so.cache"}}, os.listdir("/etc")
assert set(os.listdir("/dev")) == {{"null", "zero", "full", "random", "urandom", "fd", "shm"}}, os.listdir("/dev")
assert set(os.listdir("/tmp")) == {{"job"}}
"""
    assert_holds(sandbox, source)


def test_packages_are_not_seen(sandbox: Sandbox) -> None:
    """Some bring the solutions of a benchmark."""
    source = """
import os, sys, glob
for lib in ({0!r} + "/lib", "/usr/lib", "/usr/local/lib"):
    for folder in glob.glob(lib + "/python3*/*-packages"): assert os.listdir(folder) == [], folder
assert os.path.exists(os.__file__)
"""
    assert_holds(sandbox, source.replace("{0!r}", repr(sys.base_prefix)))


def test_no_other_processes_are_seen(sandbox: Sandbox) -> None:
    source = """
import os
assert os.getppid() == 1
assert [name for name in os.listdir("/proc") if name.isdecimal()] == ["1", str(os.getpid())]
"""
    assert_holds(sandbox, source)


def test_killing_everything_kills_only_the_job(sandbox: Sandbox) -> None:
    source = """
import os, signal, time
child = os.fork()
if child == 0: time.sleep(1000)
for number in list(range(1, 32)) + [34, 64]:
    try: os.kill(1, number)
    except PermissionError: pass
os.kill(-1, signal.SIGKILL)
assert os.waitstatus_to_exitcode(os.wait()[1]) == -9
time.sleep(0.1)
"""
    assert_holds(sandbox, source)


def test_what_watches_the_job_cannot_be_looked_into(sandbox: Sandbox) -> None:
    source = """
import ctypes
for name in ("mem", "environ", "maps", "fd/1", "cwd/x", "root/x", "auxv", "syscall"):
    assert refused(open, f"/proc/1/{name}", "rb") in (errno.EACCES, errno.EPERM), name
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_TRACEME, PTRACE_ATTACH, PTRACE_SEIZE = 0, 16, 0x4206
for request, pid in ((PTRACE_ATTACH, 1), (PTRACE_SEIZE, 1), (PTRACE_TRACEME, 0)):
    assert libc.ptrace(request, pid, None, None) == -1 and ctypes.get_errno() == errno.EPERM
"""
    assert_holds(sandbox, REFUSED + source)


def test_what_watches_the_job_cannot_be_slowed_down_or_limited(sandbox: Sandbox) -> None:
    source = """
import resource
for which in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
    assert refused(resource.prlimit, 1, which, (0, 0)) == errno.EPERM
before = os.sched_getaffinity(1), os.sched_getscheduler(1), os.getpriority(os.PRIO_PROCESS, 1)
os.sched_setaffinity(1, [min(before[0])])
os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0))
os.setpriority(os.PRIO_PROCESS, 1, 19)
os.setpriority(os.PRIO_USER, os.getuid(), 19)
assert before == (os.sched_getaffinity(1), os.sched_getscheduler(1), os.getpriority(os.PRIO_PROCESS, 1))
"""
    assert_holds(sandbox, REFUSED + source)


def test_no_privileges_are_gained(sandbox: Sandbox) -> None:
    source = """
assert os.getuid() == os.geteuid() != 0 and os.getgid() == os.getegid() != 0
assert all(group in (os.getgid(), 65534) for group in os.getgroups()), os.getgroups()
for call, arguments in ((os.setuid, (0,)), (os.setgid, (0,)), (os.setgroups, ([0],)), (os.chroot, ("/tmp",))):
    assert refused(call, *arguments) in (errno.EPERM, errno.EINVAL), call
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
assert [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0] * 4
assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for flag in (0x20000, 0x10000000, 0x10020000, 0x40000000, 0x20000000, 0x08000000):  # CLONE_NEWNS, NEWUSER, ...
    assert libc.unshare(flag) == -1 and ctypes.get_errno() == errno.EPERM, hex(flag)
assert libc.mount(b"none", b"/tmp", b"tmpfs", 0, b"size=8g") == -1 and ctypes.get_errno() == errno.EPERM
"""
    assert_holds(sandbox, REFUSED + source)


@pytest.fixture
def listeners() -> Iterator[dict[str, socket.socket]]:
    """Of this machine: TCP, UDP, and a Unix socket with an abstract name."""
    sockets = {
        "tcp": socket.socket(),
        "udp": socket.socket(type=socket.SOCK_DGRAM),
        "abstract": socket.socket(socket.AF_UNIX),
    }
    sockets["tcp"].bind(("127.0.0.1", 0))
    sockets["tcp"].listen()
    sockets["udp"].bind(("127.0.0.1", 0))
    sockets["abstract"].bind(f"\0sandbox-tests-{os.getpid()}-{id(sockets)}")
    sockets["abstract"].listen()
    for each in sockets.values():
        each.setblocking(False)
    yield sockets
    for each in sockets.values():
        each.close()


def test_no_network_is_reached(sandbox: Sandbox, listeners: dict[str, socket.socket]) -> None:
    source = f"""
tcp, udp, abstract = {[listener.getsockname() for listener in listeners.values()]!r}
def connect(family, kind, address):
    with socket.socket(family, kind) as each: each.connect(address)
for address in (tcp, ("1.1.1.1", 53), ("169.254.169.254", 80)):
    assert refused(connect, socket.AF_INET, socket.SOCK_STREAM, address) == errno.EAFNOSUPPORT
for address in (udp, ("1.1.1.1", 53)):
    assert refused(connect, socket.AF_INET, socket.SOCK_DGRAM, address) == errno.EAFNOSUPPORT
assert refused(connect, socket.AF_INET6, socket.SOCK_STREAM, ("::1", tcp[1])) == errno.EAFNOSUPPORT
assert refused(connect, socket.AF_UNIX, socket.SOCK_STREAM, abstract) == errno.ECONNREFUSED
refused(socket.getaddrinfo, "example.org", 80)
AF_NETLINK, AF_PACKET, AF_ALG, AF_VSOCK = 16, 17, 38, 40
for family in (AF_NETLINK, AF_PACKET, AF_ALG, AF_VSOCK):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        assert refused(socket.socket, family, kind) == errno.EAFNOSUPPORT, family
"""
    assert_holds(sandbox, REFUSED + source)
    for name in ("tcp", "abstract"):
        with pytest.raises(BlockingIOError):
            listeners[name].accept()
    with pytest.raises(BlockingIOError):
        listeners["udp"].recv(1)


def test_no_namespace_is_this_machines(sandbox: Sandbox, listeners: dict[str, socket.socket]) -> None:
    """The filter of system calls is not the only thing that stands before the network."""
    kinds = ["pid", "net", "mnt", "ipc", "uts"]
    if sandbox.level == "unshare" or os.geteuid() != 0:
        kinds.append("user")  # bwrap, started by root, needs none: its jobs run as another user
    ours = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}
    source = f"""
import os, socket
for kind, name in {ours}.items(): assert os.readlink(f"/proc/self/ns/{{kind}}") != name, kind
assert [line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]] == ["lo"]
assert {listeners["abstract"].getsockname()[1:].decode()!r} not in open("/proc/net/unix").read()
assert socket.gethostname() == "sandbox"
"""
    assert_holds(sandbox, source)


def test_the_environment_is_empty(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "seen")
    monkeypatch.setenv("LD_PRELOAD", "")
    outcome = run(
        sandbox, "import os\nprint(sorted(os.environ.items()))\nprint(open('/proc/self/environ').read())"
    )
    assert passes(outcome)
    printed = outcome.stdout.decode().splitlines()
    expected = {"HOME": "/tmp/job", "LANG": "C.UTF-8", "PATH": "/usr/local/bin:/usr/bin:/bin"}
    assert printed[0] == repr(sorted(expected.items()))
    assert sorted(printed[1].rstrip("\0").split("\0")) == [
        f"{name}={value}" for name, value in sorted(expected.items())
    ]


def test_no_file_of_ours_is_open(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("seen")
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        os.set_inheritable(descriptor, True)
        source = """
import os
def is_open(number):
    try: return os.fstat(number)
    except OSError: return False
assert list(filter(is_open, range(2000))) == [0, 1, 2, 3]
assert os.readlink("/proc/self/fd/0") == "/dev/null"
"""
        assert_holds(sandbox, source)
    finally:
        os.close(descriptor)


def test_links_lead_nowhere(sandbox: Sandbox, tmp_path: Path) -> None:
    """A link of the program's own shows it what it sees anyway, and what it leaves is never followed outside."""
    (tmp_path / "target").write_text("untouched")
    source = f"""
watcher = os.path.join("/proc", "1", "root")
for target in ("/etc/passwd", {str(tmp_path / "target")!r}, watcher + "/etc/passwd", "/../../etc/passwd"):
    if os.path.lexists("link"): os.unlink("link")
    os.symlink(target, "link")
    assert refused(open, "link") in (errno.ENOENT, errno.EACCES)
    assert refused(open, "link", "w") in (errno.ENOENT, errno.EACCES, errno.EROFS)
os.rename("link", "main.py")
for name in ("out", "folder"): os.symlink({str(tmp_path)!r}, name)
"""
    assert_holds(sandbox, REFUSED + source)
    assert (tmp_path / "target").read_text() == "untouched"
    assert list(tmp_path.iterdir()) == [tmp_path / "target"]


def test_a_command_finds_no_link_in_place_of_a_device(sandbox: Sandbox) -> None:
    source = (
        "import os\nopen('/dev/null', 'w').write('x')\nassert len(open('/dev/urandom', 'rb').read(8)) == 8"
    )
    assert_holds(sandbox, source)
