"""Runs a script on several ranks, as a user does: under torchrun, in processes of its own.

torchrun puts every rank into a session of its own, so a process group does not catch them. Each launch
marks its processes in their environment instead, and whatever carries the mark is killed in the end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
_MARK = "LLAMA_TEST_LAUNCH"
# Seconds after which a launch counts as hanging: a guard, far above what one takes on a busy machine.
HANGS = 300.0
# What a process may take to end that has been killed, before it counts as one that outlived its launcher.
_LAST_SECONDS = 10.0
# What a launcher, or the user's shell, may have left in the environment of the tests themselves.
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
        """Itself, if the exit code is 0."""
        assert self.code == 0, f"exit code {self.code}\n{self.stdout[-2000:]}\n{self.stderr[-6000:]}"
        return self


class Launch:
    """A script under way on `ranks` ranks."""

    def __init__(
        self, script: Path, arguments: Sequence[object], ranks: int | None, environment: Mapping[str, str]
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
        launcher = (
            []
            if ranks is None
            else ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", ranks]
        )
        self.process = subprocess.Popen(
            [sys.executable, *map(str, launcher), str(script), *map(str, arguments)],
            env=env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=self._files[0],
            stderr=self._files[1],
            start_new_session=True,
        )

    def alive(self) -> list[psutil.Process]:
        """Processes of this launch that still run, the launcher included."""
        found = []
        for process in psutil.process_iter():
            try:
                marked = process.environ().get(_MARK) == self._mark
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def wait_for(self, condition: Callable[[], bool], timeout: float = HANGS) -> None:
        """Until the condition holds; fails if the launch ends before it, or time is up."""
        end = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"ended early\n{self._output(1)[-6000:]}"
            assert time.monotonic() < end, f"nothing happened in {timeout} s\n{self._output(1)[-6000:]}"
            time.sleep(0.05)

    def errors(self) -> str:
        """What stands on stderr so far."""
        return self._output(1)

    def interrupt(self) -> None:
        """Ctrl-C, which a terminal sends to the launcher."""
        self.process.send_signal(signal.SIGINT)

    def runs(self, pid: int) -> bool:
        """Whether the process is one of this launch. Numbers of processes that ended go to others."""
        return any(process.pid == pid for process in self.alive())

    def finish(self, timeout: float = HANGS) -> Finished:
        """Wait for the end. Fails, and kills, if time is up or a process outlives the launcher."""
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
        """End every process of this launch. A killed launcher cannot start new ranks, so it goes first."""
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


@contextlib.contextmanager
def launched(
    script: str | Path,
    *arguments: object,
    ranks: int | None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Launch]:
    """A launch that leaves no process behind, whatever happens. `ranks` None: plain python, no torchrun."""
    launch = Launch(SUPPORT / script, arguments, ranks, environment or {})
    try:
        yield launch
    finally:
        launch.kill()


def run_ranks(
    script: str | Path,
    *arguments: object,
    ranks: int | None,
    timeout: float = HANGS,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run to the end."""
    with launched(script, *arguments, ranks=ranks, environment=environment) as launch:
        return launch.finish(timeout)
