"""Runs scripts on ranks that are forks of this one process: `rank_forks.py REPORT JOBS`.

Python and torch are imported once instead of once per rank, which takes seconds each. For tests that need no
torchrun: here nobody ends the other ranks when one has failed, so each must end by itself.

JOBS is JSON, a list of [ranks, script, argument...]; they run one after the other. REPORT gets a list with
each job's exit codes, what its ranks wrote, and when the last rank ended.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

# Imported for the forks.
from llama import Llama  # noqa: F401

SUPPORT = Path(__file__).parent
# A guard against ranks that hang, far above what a job takes.
HANGS = 120.0


def become(rank: int, ranks: int, port: int, files: list[Path]) -> None:
    """In a fork: take the environment of a rank, and write to files."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    os.environ |= {name: str(value) for name, value in numbers.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for number, path in enumerate(files, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)


def wait(pids: list[int]) -> list[int]:
    """The exit codes; ranks that hang are killed."""
    codes: dict[int, int] = {}
    end = time.monotonic() + HANGS
    while len(codes) < len(pids):
        for pid in set(pids) - set(codes):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def run(folder: Path, ranks: int, script: str, arguments: list[str]) -> dict[str, Any] | None:
    """Run a job -> its report; None in a fork, which has run the script."""
    files = [[folder / f"{rank}.{name}" for name in ("out", "err")] for rank in range(ranks)]
    with socket.socket() as reserved:
        # Bound, but not listening: rank 0 can listen on the port, and the system gives it to nobody else.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        pids: list[int] = []
        for rank in range(ranks):
            pids.append(os.fork())
            if not pids[-1]:
                become(rank, ranks, reserved.getsockname()[1], files[rank])
                reserved.close()
                sys.argv = [script, *arguments]
                runpy.run_path(str(SUPPORT / script), run_name="__main__")
                return None
        codes = wait(pids)
    out, err = ("".join(path.read_text() for path in paths) for paths in zip(*files, strict=True))
    return {"codes": codes, "stdout": out, "stderr": err, "ended": time.time()}


def main() -> None:
    report, reports = Path(sys.argv[1]), []
    for number, (ranks, script, *arguments) in enumerate(json.loads(sys.argv[2])):
        folder = report.with_name(f"{report.name}.{number}")
        folder.mkdir()
        found = run(folder, ranks, script, arguments)
        if found is None:
            return
        reports.append(found)
    report.write_text(json.dumps(reports))


if __name__ == "__main__":
    main()
