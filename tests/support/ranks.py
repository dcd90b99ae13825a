"""Runs a script on several ranks as a user does: under torchrun, as processes, on one node or more.

torchrun starts each rank in a session of its own, so killing a process group would miss them. A launch marks
its processes through an environment variable instead, and kills all that carry the mark in the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from forked import HANGS
from forked_torchrun import ForkedTorchrun
from network import Machine

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
_MARK = "LLAMA_TEST_LAUNCH"
# How long a killed process may take to be gone before it counts as one that outlived its launcher.
_LAST_SECONDS = 10.0
# Variables that a launcher or the user's shell may have set for the tests themselves.
_FOREIGN = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "OMP_NUM_THREADS",
)


@dataclass(frozen=True)
class Finished:
    """A launch that is over."""

    code: int
    stdout: str
    stderr: str
    seconds: float

    def ok(self) -> Finished:
        """This launch, whose exit code must be 0."""
        assert self.code == 0, f"exit code {self.code}\n{self.stdout[-2000:]}\n{self.stderr[-6000:]}"
        return self


class Launch:
    """A running script, behind a launcher command or directly."""

    def __init__(
        self,
        script: Path,
        arguments: Sequence[object],
        launcher: Sequence[object],
        environment: Mapping[str, str],
        machine: Machine | None = None,
    ) -> None:
        self._mark = uuid.uuid4().hex
        self._open = contextlib.ExitStack()
        files = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115
        self._files = [self._open.enter_context(file) for file in files]
        self._started = time.monotonic()
        env = {key: value for key, value in os.environ.items() if key not in _FOREIGN}
        env = {key: value for key, value in env.items() if not key.startswith("TORCHELASTIC_")}
        paths = [str(ROOT), str(SUPPORT), *filter(None, [env.get("PYTHONPATH")])]
        env |= {_MARK: self._mark, "PYTHONPATH": os.pathsep.join(paths), **environment}
        self.process = self._start([*map(str, launcher), str(script), *map(str, arguments)], env, machine)

    def _start(
        self, words: list[str], env: dict[str, str], machine: Machine | None
    ) -> subprocess.Popen[bytes] | ForkedTorchrun:
        return subprocess.Popen(
            [*(machine.enter if machine else ()), sys.executable, *words],
            env=env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=self._files[0],
            stderr=self._files[1],
            start_new_session=True,
        )

    def alive(self) -> list[psutil.Process]:
        """The processes of this launch that still run, including the launcher."""
        found = []
        for process in psutil.process_iter():
            try:
                if self._has(process) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def _has(self, process: psutil.Process) -> bool:
        return process.environ().get(_MARK) == self._mark

    def wait_for(self, condition: Callable[[], bool], timeout: float = HANGS) -> None:
        """Wait until the condition holds. Fails if the launch ends first, or after `timeout` seconds."""
        end = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"ended early\n{self._output(1)[-6000:]}"
            assert time.monotonic() < end, f"nothing happened in {timeout} s\n{self._output(1)[-6000:]}"
            time.sleep(0.05)

    def errors(self) -> str:
        """What was written to stderr so far."""
        return self._output(1)

    def interrupt(self) -> None:
        """Send Ctrl-C to the launcher, as a terminal does."""
        self.process.send_signal(signal.SIGINT)

    def runs(self, pid: int) -> bool:
        """Whether a process of this launch has this id. Ids of ended processes are used again."""
        return any(process.pid == pid for process in self.alive())

    def finish(self, timeout: float = HANGS) -> Finished:
        """Wait for the end. Fails after `timeout` seconds, and if a process outlives the launcher."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end within {timeout} s\n{self._output(1)[-6000:]}") from None
        seconds = time.monotonic() - self._started
        end = time.monotonic() + _LAST_SECONDS
        while (left := [process.pid for process in self.alive()]) and time.monotonic() < end:
            time.sleep(0.05)
        assert not left, f"processes {left} outlived the launcher"
        return Finished(code, self._output(0), self._output(1), seconds)

    def kill(self) -> None:
        """Kill every process of this launch: the launcher first, since it could start new ranks."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for process in self.alive():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._open.close()

    def _output(self, which: int) -> str:
        file = self._files[which]
        file.seek(0)
        return file.read()


class ForkedLaunch(Launch):
    """torchrun and its ranks as forks of a process that has imported torch: see forked_torchrun.py."""

    def _start(self, words: list[str], env: dict[str, str], machine: Machine | None) -> ForkedTorchrun:
        files = [file.fileno() for file in self._files]
        return ForkedTorchrun([f"/proc/{os.getpid()}/fd/{number}" for number in files], env, machine, words)

    def _has(self, process: psutil.Process) -> bool:
        """They have no environment of their own that others could see, but a session."""
        return os.getsid(process.pid) == self.process.pid


_TORCHRUN = ("-m", "torch.distributed.run", "--standalone")
# What --standalone stands for.
ALONE = ("--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0")


@contextlib.contextmanager
def launched(
    script: str | Path,
    *arguments: object,
    ranks: int | None,
    environment: Mapping[str, str] | None = None,
    forked: bool = False,
) -> Iterator[Launch]:
    """A launch that leaves no process behind, whatever happens.

    Args:
        ranks: None for plain python, no torchrun.
        forked: torchrun and its ranks are forks, each two seconds of processor time cheaper: `ForkedLaunch`.
    """
    kind, launcher = (ForkedLaunch, ALONE) if forked else (Launch, _TORCHRUN)
    options = () if ranks is None else (*launcher, "--nproc_per_node", ranks)
    launch = kind(SUPPORT / script, arguments, options, environment or {})
    try:
        yield launch
    finally:
        launch.kill()


@contextlib.contextmanager
def launched_nodes(
    script: str | Path,
    *arguments: object,
    nodes: int,
    ranks: int,
    environment: Mapping[str, str],
    machines: Sequence[Machine] = (),
) -> Iterator[list[ForkedLaunch]]:
    """One torchrun per node, with `ranks` ranks each; the first holds rank 0. They are forks: `ForkedLaunch`.

    Args:
        machines: one for each node; without them all nodes are on this machine.
    """
    launches: list[ForkedLaunch] = []
    with socket.socket() as reserved:
        # Bound, but not listening: the first node can listen on the port, and nobody else gets it.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        address = machines[0].address if machines else "127.0.0.1"
        where = ("--master_addr", address, "--master_port", reserved.getsockname()[1])
        try:
            for node in range(nodes):
                size = ("--nnodes", nodes, "--node_rank", node, "--nproc_per_node", ranks)
                own, machine = dict(environment), machines[node] if machines else None
                if machine:
                    # gloo would listen on the address of the machine's name, which both share here.
                    own["GLOO_SOCKET_IFNAME"] = machine.interface
                launches.append(ForkedLaunch(SUPPORT / script, arguments, (*size, *where), own, machine))
            yield launches
        finally:
            for launch in launches:
                launch.kill()


def run_ranks(
    script: str | Path,
    *arguments: object,
    ranks: int | None,
    timeout: float = HANGS,
    environment: Mapping[str, str] | None = None,
    forked: bool = False,
) -> Finished:
    """Run a launch to its end."""
    with launched(script, *arguments, ranks=ranks, environment=environment, forked=forked) as launch:
        return launch.finish(timeout)


def run_forked(report: Path, *jobs: Sequence[object]) -> list[dict[str, Any]]:
    """Run jobs, each (ranks, script, argument...), as rank_forks.py says -> a report on each."""
    named = json.dumps([[job[0], *map(str, job[1:])] for job in jobs])
    # One thread: where others use the cores too, OpenMP's threads wait for one another by spinning.
    environment = {"OMP_NUM_THREADS": "1"}
    run_ranks("rank_forks.py", report, named, ranks=None, environment=environment, forked=True).ok()
    found: list[dict[str, Any]] = json.loads(report.read_text())
    return found
