"""The first process of a sandbox: runs the job's commands, holds them to their limits, reports what became of them.

It is handed over as compiled code on stdin (see `launch.py`), so that no file of this package need be visible inside.
It imports nothing of the package, and of the standard library only what starts quickly: every job waits for it.

It has the same user as the program it watches, and is safe from it: in a pid namespace signals from inside do not
end the first process, its memory cannot be read (`undumpable`), and the filter of system calls forbids ptrace.
"""

from __future__ import annotations

import errno
import math
import os
import resource
import select
import sys
import time

from . import native
from .processes import (
    SIGKILL,
    Process,
    ProcessorTime,
    kill_all,
    proportional_bytes,
    running,
    unseen_bytes,
    used,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

SIGINT, SIGPIPE, SIGXCPU, SIGXFSZ = 2, 13, 24, 25

# Seconds between two looks at what the processes use. A program that fills memory gets through some 50 MiB meanwhile.
TICK = 0.02
# Of a process. Buffers of sockets and pipes are memory that nobody counts, at most some 200 KiB for each.
OPEN_FILES = 128
# A file costs at least this much, if only of the kernel's memory: it bounds how many there can be.
BYTES_OF_A_FILE = 4096
TOKEN_BYTES = 64


class Plan:
    """What `launch.py` hands over.

    uid: to change to; None to stay. seccomp: a filter for system calls, or b"". contained: this is the first process of
    a pid namespace. others: what the system counts beside the job's processes; None where a limit on them would not
    hold. scratch: the file system that the job may write, or "" where it has none of its own. folder: of the job.
    commands: argv, environment, limits.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self.uid: int | None = values["uid"]
        self.seccomp: bytes = values["seccomp"]
        self.contained: bool = values["contained"]
        self.others: int | None = values["others"]
        self.scratch: str = values["scratch"]
        self.folder: str = values["folder"]
        self.files: dict[str, bytes] = values["files"]
        self.commands: list[tuple[list[str], dict[str, str], dict[str, Any]]] = values["commands"]

    def clean_up(self) -> None:
        """Remove the job's folder, unless it goes with the mount namespace."""
        if not self.contained and os.path.isdir(self.folder):
            os.chdir("/")
            for tool in (("chmod", "-R", "u+rwx"), ("rm", "-rf")):
                os.spawnvp(os.P_WAIT, tool[0], [*tool, "--", self.folder])


def main(values: dict[str, Any]) -> None:
    """Run the commands; write "S" to stdout before the first and the outcome after the last."""
    plan = Plan(values)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 3)  # taken, so that nothing else gets this number, which is the token's
    result = os.dup(1)
    lock_up(plan)
    try:
        os.write(result, b"S")
        report = memoryview(run_commands(plan, result))
    finally:
        plan.clean_up()
    while report:
        report = report[os.write(result, report) :]


def run_commands(plan: Plan, result: int) -> bytes:
    """One after the other, while each exits with 0; the last one's report."""
    try:
        write_files(plan)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        message = b"the job's own files are larger than files may be"
        return b"R files 0 1 0 %d 0\n%s" % (len(message), message)
    report = b""
    for index, (argv, environment, limits) in enumerate(plan.commands):
        run = Run(plan, limits, result)
        run.start(argv, environment)
        run.wait()
        report = run.report(index)
        if run.ended != "exited" or run.exit_code != 0:
            break
    return report


def lock_up(plan: Plan) -> None:
    """Become the user that the job runs as, for good, and forbid what it must not do."""
    native.default_signals(SIGINT)  # of Python's handlers the one that would end this
    if sys.platform == "linux":
        # Where memory runs out after all, the job goes first: the largest of its processes.
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    if plan.uid is not None:
        os.setgroups([])
        os.setresgid(plan.uid, plan.uid, plan.uid)
        os.setresuid(plan.uid, plan.uid, plan.uid)
    if sys.platform != "linux":
        return
    if plan.contained:
        native.drop_capabilities()
        native.prctl(native.PR_SET_PDEATHSIG, SIGKILL)  # again: a change of user clears it
        native.prctl(native.PR_SET_DUMPABLE, 0)
    else:
        native.prctl(native.PR_SET_CHILD_SUBREAPER, 1)
    if plan.seccomp:
        native.forbid(plan.seccomp)


def write_files(plan: Plan) -> None:
    """Into a new folder, before any program has run that could leave a link there."""
    os.mkdir(plan.folder, 0o700)
    os.chdir(plan.folder)
    for name, content in plan.files.items():
        if "/" in name:
            os.makedirs(os.path.dirname(name), exist_ok=True)
        with open(name, "xb") as file:
            file.write(content)


class Run:
    """One command, from its start until none of its processes is left."""

    def __init__(self, plan: Plan, limits: dict[str, Any], result: int) -> None:
        self.plan = plan
        self.limits = limits
        self.result = result
        self.ended = ""
        self.exit_code = 128 + SIGKILL
        self.main = 0
        self.started = time.monotonic()
        self.cpu = ProcessorTime()
        self.output: list[bytearray] = [bytearray(), bytearray(), bytearray()]
        self.room = [limits["output_bytes"], limits["output_bytes"], TOKEN_BYTES]
        self.printed = 0
        self.readers: dict[int, int] = {}  # file descriptor -> which of `output`
        self.poller = select.poll()

    def start(self, argv: list[str], environment: dict[str, str]) -> None:
        pipes = [os.pipe() for _ in self.output]
        self.main = os.fork()
        if self.main == 0:
            become(self.plan, self.limits, argv, environment, [writer for _, writer in pipes])
        for which, (reader, writer) in enumerate(pipes):
            os.close(writer)
            os.set_blocking(reader, False)
            self.readers[reader] = which
            self.poller.register(reader, select.POLLIN)
        self.poller.register(self.result, 0)  # an error there: nobody waits for the outcome any more

    def wait(self) -> None:
        """Until the command's own process has ended, or has to; then the others end too, and the pipes are read."""
        tick = TICK if self.plan.contained else 3 * TICK  # /proc of the whole machine takes longer to read
        look = self.started + tick
        while not self.ended:
            patience = max(look - time.monotonic(), 0.0) if self.readers else 0.001
            for descriptor, event in self.poller.poll(patience * 1000):
                if descriptor == self.result and event & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
                    kill_all(self.plan.contained, self.main)
                    self.plan.clean_up()
                    os._exit(1)
                elif descriptor in self.readers:
                    self.read(descriptor)
            self.reap()
            if not self.ended and time.monotonic() >= look:
                self.look()
                look = time.monotonic() + tick
        kill_all(self.plan.contained, self.main)
        for descriptor in list(self.readers):
            while descriptor in self.readers and self.read(descriptor):
                pass
        for descriptor in self.readers:
            os.close(descriptor)
        if self.ended == "exited" and self.too_many_files():
            self.ended = "files"

    def read(self, descriptor: int) -> bool:
        """Read what is there, and keep only the beginning; False if there was nothing."""
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            self.poller.unregister(descriptor)
            del self.readers[descriptor]
            os.close(descriptor)
            return False
        which = self.readers[descriptor]
        kept = self.output[which]
        kept += data[: self.room[which] - len(kept)]
        self.printed += len(data)
        if self.printed > self.limits["file_bytes"] and not self.ended:
            self.ended = "files"
        return True

    def reap(self) -> None:
        """Reap what has ended, and note how the command itself ended."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid != self.main or self.ended:
                continue
            code = os.waitstatus_to_exitcode(status)
            self.ended = "exited"
            self.exit_code = code if code >= 0 else 128 - code
            # By the kernel, as the command's own signal or what a shell says of that of its child.
            if self.exit_code in (128 + SIGXCPU, 128 + SIGKILL) and used(usage) >= self.limits["cpu_seconds"]:
                self.ended = "cpu"

    def look(self) -> None:
        """Compare what all processes use with the limits."""
        if time.monotonic() - self.started >= self.limits["wall_seconds"]:
            self.ended = "wall"
            return
        if sys.platform != "linux":
            return
        processes = running(self.plan.contained)
        if self.cpu.seconds(processes) > self.limits["cpu_seconds"]:
            self.ended = "cpu"
        elif sum(process.threads for process in processes) > self.limits["processes"]:
            self.ended = "processes"
        elif self.too_much_memory(processes):
            self.ended = "memory"
        elif self.too_many_files():
            self.ended = "files"

    def too_much_memory(self, processes: list[Process]) -> bool:
        most: int = self.limits["memory_bytes"]
        if sum(process.reach for process in processes) <= most:
            return False
        unseen = sum(map(unseen_bytes, processes))
        if unseen + sum(process.bytes for process in processes) <= most:
            return False
        # Pages that processes share were counted for each. To count them once takes longer, so only now.
        return unseen + sum(map(proportional_bytes, processes)) > most

    def too_many_files(self) -> bool:
        if not self.plan.scratch:
            return False
        system = os.statvfs(self.plan.scratch)
        most: int = self.limits["file_bytes"] // BYTES_OF_A_FILE
        return system.f_files - system.f_ffree > most

    def report(self, index: int) -> bytes:
        lengths = " ".join(str(len(kept)) for kept in self.output)
        return f"R {self.ended} {index} {self.exit_code} {lengths}\n".encode() + b"".join(self.output)


def become(
    plan: Plan, limits: dict[str, Any], argv: list[str], environment: dict[str, str], writers: list[int]
) -> NoReturn:
    """Turn the forked process into the program."""
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, writer in enumerate(writers, start=1):
            os.dup2(writer, number)
        os.closerange(4, 1 << 16)
        set_limits(plan, limits)
        native.default_signals(SIGPIPE, SIGXFSZ)
        os.execvpe(argv[0], argv, environment)
    except BaseException as error:
        os.write(2, f"{argv[0]} cannot be started: {error}\n".encode(errors="replace"))
    finally:
        os._exit(127)


def set_limits(plan: Plan, limits: dict[str, Any]) -> None:
    """The kernel's own limits. They are per process, but for the number of processes, which is the user's.

    The kernel counts whole ticks of its clock, and on a busy machine ends a process at three quarters of its time; a
    shell whose child was ended so goes on. So the watcher keeps this limit, and the kernel's is for a watcher that
    does not get to look.
    """
    watched = sys.platform == "linux"
    wanted = {
        "CPU": math.ceil(limits["cpu_seconds"]) * (2 if watched else 1),
        "FSIZE": limits["file_bytes"],
        "AS": limits["address_space_bytes"],
        "NOFILE": OPEN_FILES,
        "NPROC": None if plan.others is None else limits["processes"] + plan.others,
        "CORE": 1,  # byte, too few for a file; of 0 a program that the system pipes cores to would still be started
        "MEMLOCK": 0,
        "SIGPENDING": 256,  # of queued signals and timers, which are counted for our user
        "MSGQUEUE": 0,
        "NICE": 0,
        "RTPRIO": 0,
    }
    for name, value in wanted.items():
        which = getattr(resource, f"RLIMIT_{name}", None)
        if which is None or value is None:
            continue
        hard = resource.getrlimit(which)[1]
        soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # One second between the signal that tells a program that its time is over and the one that ends it.
        above = soft + 1 if name == "CPU" else soft
        resource.setrlimit(which, (soft, above if hard == resource.RLIM_INFINITY else min(above, hard)))
