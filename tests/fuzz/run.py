"""Feed damaged files to the package's readers, under limits, and count what becomes of them.

    python tests/fuzz/run.py --number 20000 --seed 0 [--only NAME] [--jobs 2] [--input K]

Each target (fuzz_<name>.py of this folder) gets `--number` inputs. The seed, the target's name and K determine
input K of a target, so `--only NAME --seed S --input K` repeats it. Inputs are read in child processes. An input
that takes longer than `--seconds`, or kills its process, is reported by name, and the child is replaced. Exit code
1 for a traceback, an answer that differs from the oracle's, a hang, a crash, or too much memory.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
# So much more data than an input may take cannot be had at all.
_BEYOND = 512 * MIB
_FAILURES = ("tracebacks", "hangs", "over memory", "crashes")
_COLUMNS = ("inputs", "accepted", "refused", *_FAILURES)
# Of each target, so many failures are printed in full.
_SHOWN = 5


@dataclass
class Tally:
    """Counts of one target, its slowest and its largest input."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    memory: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass
class Job:
    """What one child is given: (target, K), and how far it is."""

    tasks: list[tuple[str, int]]
    at: int = 0
    child: Any = None
    pipe: Connection | None = None
    deadline: float = 0.0


def names(folder: Path, only: str | None) -> list[str]:
    """The targets, by the names of their modules."""
    found = sorted(path.stem.removeprefix("fuzz_") for path in folder.glob("fuzz_*.py"))
    if only is not None:
        found = [name for name in found if name == only]
    if not found:
        raise SystemExit(f"no target {only or ''} in {folder}")
    return found


# ---- in a child --------------------------------------------------------------------------------------


def _status(key: str) -> int:
    """A line of /proc/self/status in bytes; 0 where there is none."""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return 0


@contextlib.contextmanager
def _peak() -> Iterator[list[int]]:
    """Bytes that the block took at most beyond what there was before, put into the list at its end."""
    before, taken = _status("VmRSS:"), [0]
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    try:
        yield taken
    finally:
        taken[0] = max(0, _status("VmHWM:") - before)


def _read(target: Any, path: Path) -> tuple[str, str]:
    """-> the column that counts it, and for a failure what happened."""
    from llama.errors import LlamaError

    try:
        word = target.read(path)
        return (word, "") if word in ("accepted", "refused") else ("tracebacks", f"read gave {word!r}")
    except LlamaError as error:
        text = str(error)
        if not text or len(text) > 2200 or not text.isprintable():
            return "tracebacks", f"a message that is empty, too long or not printable: {text[:300]!r}"
        return "refused", ""
    except MemoryError:
        return "over memory", traceback.format_exc(limit=-6)
    except Exception:
        return "tracebacks", traceback.format_exc(limit=-8)


def _child(folder: Path, tasks: list[tuple[str, int]], seed: str, memory: int, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    faulthandler.enable()
    sys.path[:0] = [str(folder), str(HERE), str(HERE.parent / "support")]
    with tempfile.TemporaryDirectory(prefix="llama-fuzz-") as place:
        ready: dict[str, tuple[Any, Path]] = {}
        for name, number in tasks:
            if name not in ready:
                own = Path(place) / name
                own.mkdir()
                try:
                    target = importlib.import_module(f"fuzz_{name}").TARGET
                    target.prepare(own)
                except Exception:
                    pipe.send(("broken", traceback.format_exc(limit=-4), 0.0, 0))
                    return
                ready[name] = target, own
                stop = _status("VmData:") + memory + _BEYOND
                resource.setrlimit(resource.RLIMIT_DATA, (stop, resource.RLIM_INFINITY))
            target, own = ready[name]
            try:
                path = target.mutate(random.Random(f"{seed}/{name}/{number}"), own)
            except Exception:
                pipe.send(("tracebacks", f"in mutate: {traceback.format_exc(limit=-4)}", 0.0, 0))
                continue
            pipe.send(None)  # from here on the clock counts
            began = time.monotonic()
            with _peak() as taken:
                word, why = _read(target, path)
            if taken[0] > memory and word not in _FAILURES:
                word, why = "over memory", f"{taken[0] / MIB:,.0f} MiB"
            pipe.send((word, why, time.monotonic() - began, taken[0]))


# ---- in the parent -----------------------------------------------------------------------------------


class Run:
    """All children, and the counts of what they say.

    Args:
        seconds: wall clock for one input.
        memory: bytes that one input may take beyond what its process had before.
        start: seconds for a child to import, to prepare and to write an input.
    """

    def __init__(self, folder: Path, seed: str, seconds: float, memory: int, start: float = 300.0) -> None:
        self.folder, self.seed, self.seconds, self.memory, self.start = folder, seed, seconds, memory, start
        self.tallies: dict[str, Tally] = {}
        self._context = multiprocessing.get_context("spawn")

    def run(self, targets: list[str], numbers: range, jobs: int) -> None:
        """Every input of every target."""
        self.tallies = {name: Tally() for name in targets}
        tasks = [(name, number) for name in targets for number in numbers]
        running = [Job(tasks[i::jobs]) for i in range(jobs) if tasks[i::jobs]]
        try:
            for job in running:
                self._launch(job)
            while running:
                pipes = {job.pipe: job for job in running}
                patience = max(0.0, min(job.deadline for job in running) - time.monotonic())
                for pipe in wait(list(pipes), patience):
                    self._hear(pipes[pipe])
                for job in running:
                    if job.at < len(job.tasks) and time.monotonic() > job.deadline:
                        self._lost(job, "hangs", f"more than {self.seconds:.0f} s")
                running = [job for job in running if job.at < len(job.tasks)]
        finally:
            for job in running:
                self._stop(job)

    def _launch(self, job: Job) -> None:
        mine, theirs = self._context.Pipe(duplex=False)
        arguments = (self.folder, job.tasks[job.at :], self.seed, self.memory, theirs)
        job.child = self._context.Process(target=_child, args=arguments, daemon=True)
        job.child.start()
        theirs.close()
        job.pipe, job.deadline = mine, time.monotonic() + self.start

    def _hear(self, job: Job) -> None:
        assert job.pipe is not None
        try:
            said = job.pipe.recv()
        except (EOFError, OSError):
            job.child.join(10)
            code = job.child.exitcode
            why = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
            self._lost(job, "crashes", why)
            return
        if said is None:
            job.deadline = time.monotonic() + self.seconds
            return
        word, why, seconds, memory = said
        if word == "broken":
            raise SystemExit(f"{job.tasks[job.at][0]} cannot be prepared:\n{why}")
        tally = self._count(job, word, why)
        tally.seconds, tally.memory = max(tally.seconds, seconds), max(tally.memory, memory)
        job.deadline = time.monotonic() + self.start
        if job.at == len(job.tasks):
            job.child.join(30)
            self._stop(job)

    def _lost(self, job: Job, word: str, why: str) -> None:
        self._count(job, word, why)
        self._stop(job)
        if job.at < len(job.tasks):
            self._launch(job)

    def _count(self, job: Job, word: str, why: str) -> Tally:
        name, number = job.tasks[job.at]
        job.at += 1
        tally = self.tallies[name]
        tally.counts.update(("inputs", word))
        if word in _FAILURES:
            again = f"--only {name} --seed {self.seed} --input {number}"
            tally.failures.append(f"{name} {word}: repeat with {again}\n{why}")
        return tally

    def _stop(self, job: Job) -> None:
        if job.child is not None:
            job.child.kill()
            job.child.join()
        if job.pipe is not None:
            job.pipe.close()

    def report(self) -> str:
        """The failures of each target, at most `_SHOWN`, and a table of counts."""
        lines = []
        for tally in self.tallies.values():
            lines += tally.failures[:_SHOWN]
        lines.append(
            "target".ljust(14) + "".join(f"{column:>13}" for column in (*_COLUMNS, "slowest", "most MiB"))
        )
        for name, tally in self.tallies.items():
            cells = [f"{tally.counts[column]:,}" for column in _COLUMNS]
            cells += [f"{tally.seconds:.2f} s", f"{tally.memory / MIB:.0f}"]
            lines.append(name.ljust(14) + "".join(cell.rjust(13) for cell in cells))
        return "\n".join(lines)

    @property
    def failed(self) -> bool:
        """Whether anything happened that must not."""
        return any(tally.counts[word] for tally in self.tallies.values() for word in _FAILURES)


def main() -> int:
    parser = argparse.ArgumentParser(description="Damaged files, read under limits.")
    parser.add_argument("--number", type=int, default=1000, help="inputs of each target")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--only", metavar="NAME", help="this target alone")
    parser.add_argument("--input", type=int, metavar="K", help="this input alone")
    parser.add_argument("--jobs", type=int, default=2, help="child processes")
    parser.add_argument("--seconds", type=float, default=20.0, help="for one input")
    parser.add_argument("--memory", type=int, default=512, metavar="MIB", help="for one input")
    parser.add_argument("--targets", type=Path, default=HERE, help="the folder of the targets")
    options = parser.parse_args()
    for name, least in (("number", 1), ("jobs", 1), ("input", 0), ("memory", 1), ("seconds", 0.01)):
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f"--{name} is {value}; it must be at least {least}")
    numbers = range(options.number) if options.input is None else range(options.input, options.input + 1)
    run = Run(options.targets.resolve(), options.seed, options.seconds, options.memory * MIB)
    run.run(names(options.targets, options.only), numbers, options.jobs)
    print(run.report())
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
