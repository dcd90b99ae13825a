"""Runs the parts one after another, each in a process group of its own, and keeps what they measured."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .clocks import watched
from .parts import Part
from .report import markdown
from .results import Results, Run

__all__ = ["DONE", "FAILED", "INTERRUPTED", "Call", "run_parts"]

DONE, FAILED, INTERRUPTED = 0, 1, 130
# A part that is told to end may clean up for so long.
_GRACE = 5.0
# What a part takes of its seconds on a pretended GPU, with tiny models.
_PRETENDED = 0.2
_TAIL = 12  # lines of the log that are shown of a part that failed


@dataclass(frozen=True)
class Call:
    """What one call of `make gpu` was given.

    Attributes:
        limit: seconds of the whole call.
        started: when it began, by time.monotonic.
        work: a folder for the samples of the part that runs.
        environment: of the parts' processes.
        extra: words behind each part's command.
        python: the interpreter of the parts.
    """

    limit: float
    started: float
    work: Path
    environment: Mapping[str, str]
    extra: tuple[str, ...] = ()
    python: str = sys.executable

    @property
    def left(self) -> float:
        return self.limit - (time.monotonic() - self.started)


def run_parts(parts: Sequence[Part], results: Results, run: Run, call: Call) -> int:
    """Run the parts that this run has not done yet -> the exit code.

    Each is entered when it ends; Ctrl-C ends the one that runs, and keeps the others.
    """
    first, failed, waiting = True, False, []
    try:
        for part in parts:
            if run.is_done(part.name):
                print(f"{part.name}: was done before, in {run.parts[part.name]['seconds']:.0f} s", flush=True)
                continue
            needed = results.last_seconds(part.name, run.machine) or part.seconds * (
                _PRETENDED if run.pretended else 1
            )
            # The first of a call always begins: its whole time is more than a later one can be given.
            if not first and needed > call.left:
                waiting.append(part.name)
                continue
            first = False
            failed |= not _run(part, results, run, call)
    except KeyboardInterrupt:
        print("\ninterrupted; what was done is kept", flush=True)
        return INTERRUPTED
    finally:
        results.write("results.md", markdown(run))
    for name in waiting:
        print(
            f"{name}: waits for the next call, as LIMIT={call.limit:.0f} leaves too little time", flush=True
        )
    print(f"see {results.folder / 'results.md'}", flush=True)
    return FAILED if failed else DONE


def _run(part: Part, results: Results, run: Run, call: Call) -> bool:
    """Run one part and enter it -> whether it was done."""
    print(f"{part.name}: ", end="", flush=True)
    began, clocks = time.monotonic(), dict[str, Any]()
    samples, log = call.work / f"{part.name}.jsonl", results.folder / "parts.log"
    with log.open("a", encoding="utf-8") as said:
        print(
            f"==== {part.name}, code {run.tree}, {time.strftime('%Y-%m-%d %H:%M:%S')} ====",
            file=said,
            flush=True,
        )
        where = said.tell()
        with watched(clocks):
            reason = _finish(part, call, samples, said)
    seconds = time.monotonic() - began
    entry: dict[str, Any] = {"status": "failed" if reason else "done", "seconds": round(seconds, 1)}
    entry |= {"reason": reason} if reason else {}
    figures, lacking = _read(samples)
    run.parts[part.name] = entry | {"figures": figures, "lacking": lacking, "clocks": clocks}
    results.save()
    results.write("results.md", markdown(run))
    print(f"{entry['status']} in {seconds:.0f} s{f', {reason}' if reason else ''}", flush=True)
    for text in lacking:
        print(f"  not measured: {text}", flush=True)
    if reason:
        _show_end(log, where)
    return not reason


def _finish(part: Part, call: Call, samples: Path, log: IO[str]) -> str:
    """Run the process of a part to its end -> what went wrong, or nothing."""
    limit = min(part.limit, max(call.left, 1.0))
    with _group([call.python, *part.command, "--samples", str(samples), *call.extra], call, log) as process:
        code = _wait(process, limit)
    if code is None:
        whose = "its own limit" if limit == part.limit else f"what LIMIT={call.limit:.0f} left"
        return f"stopped after {limit:.0f} s, {whose}"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}" if code else ""


@contextlib.contextmanager
def _group(words: Sequence[str], call: Call, log: IO[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, none of which is left behind."""
    process = subprocess.Popen(
        words,
        env=dict(call.environment),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        # As Ctrl-C first: pytest and Python then clean up. Until it is waited for, nobody else can get its number.
        if not _ended(process):
            os.killpg(process.pid, signal.SIGINT)
            end = time.monotonic() + _GRACE
            while not _ended(process) and time.monotonic() < end:
                time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process itself has ended. It stays a zombie, so that its group keeps its number."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Wait for the end -> the exit code, as Popen has it; None if it still runs."""
    end = time.monotonic() + seconds
    while not _ended(process):
        if time.monotonic() > end:
            return None
        time.sleep(0.05)
    state = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    assert state is not None
    return state.si_status if state.si_code == os.CLD_EXITED else -state.si_status


def _read(samples: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What a part measured, also one that was stopped, and what it says was lacking."""
    figures, lacking = [], []
    for line in samples.read_text(encoding="utf-8").splitlines() if samples.exists() else ():
        with contextlib.suppress(ValueError):  # the last line, where the part was killed
            data = json.loads(line)
            if "lacking" in data:
                lacking.append(data["lacking"])
            else:
                figures.append(data)
    return figures, lacking


def _show_end(log: Path, where: int) -> None:
    with log.open("rb") as file:
        file.seek(where)
        lines = file.read().decode(errors="replace").splitlines()
    for line in lines[-_TAIL:]:
        print(f"  | {line}")
    print(f"  the whole of it is in {log}", flush=True)
