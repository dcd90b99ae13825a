"""Runs scenarios of service_script.py side by side, each on forked ranks.

Forked, so torch is imported once; and not under torchrun, so nobody but the ranks themselves notices that one died.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

AT_ONCE = 4
# A guard against hanging, far above what a scenario takes on a busy machine: a rank that still runs then is killed, and
# its exit code fails the test.
LIMIT = 150.0


@dataclass(frozen=True)
class Scenario:
    """What each rank does; and which rank gets which signal once a file `ready` is there."""

    run: Callable[[Path], Any]
    ranks: int = 2
    signals: dict[int, signal.Signals] = field(default_factory=dict)


def become(each: int, ranks: int, port: int, folder: Path) -> None:
    """In a forked child: be a rank whose output goes to files."""
    if ranks > 1:
        numbers = {"RANK": each, "LOCAL_RANK": each, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        os.environ |= {name: str(value) for name, value in numbers.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(folder / f"{each}.{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    (folder / f"{each}.pid").write_text(str(os.getpid()))


class Launched:
    """A scenario whose ranks run."""

    def __init__(self, folder: Path, scenario: Scenario, pids: list[int], reserved: socket.socket) -> None:
        self.folder, self.pids, self.reserved = folder, pids, reserved
        self.signals = scenario.signals
        self.codes: list[int | None] = [None] * len(pids)
        self.started = time.monotonic()

    def look(self) -> bool:
        """Send the signals once all ranks are ready; note which ranks have ended -> whether some are left."""
        if self.signals and (self.folder / "ready").exists():
            for each, number in self.signals.items():
                os.kill(self.pids[each], number)
            self.signals = {}
        for i, pid in enumerate(self.pids):
            if self.codes[i] is None:
                done, status = os.waitpid(pid, os.WNOHANG)
                self.codes[i] = os.waitstatus_to_exitcode(status) if done else None
        if time.monotonic() - self.started > LIMIT:
            for pid, code in zip(self.pids, self.codes, strict=True):
                if code is None:
                    os.kill(pid, signal.SIGKILL)
        if None not in self.codes:
            self.reserved.close()
            self.folder.with_suffix(".json").write_text(json.dumps(self.codes))
        return None in self.codes


def launch(folder: Path, name: str, scenario: Scenario) -> Launched | None:
    """Fork the ranks of a scenario; None in a child that has done its part."""
    own = folder / name
    own.mkdir()
    for checkpoint in ("s2", "nan"):
        (own / checkpoint).symlink_to(folder / checkpoint)
    # Bound until the scenario is over and never listening: rank 0 can listen, and the system gives the port to nobody
    # else.
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    port = reserved.getsockname()[1]
    pids: list[int] = []
    for each in range(scenario.ranks):
        pids.append(os.fork())
        if not pids[-1]:
            become(each, scenario.ranks, port, own)
            found = scenario.run(own)
            sys.stdout.flush()
            (own / f"{each}.json").write_text(json.dumps(found))
            return None
    return Launched(own, scenario, pids, reserved)


def launch_all(folder: Path, scenarios: dict[str, Scenario]) -> None:
    """Run scenarios, a few at a time, to FOLDER/<name>.json: the exit codes of their ranks."""
    under_way: list[Launched] = []
    waiting = list(scenarios.items())
    while waiting or under_way:
        while waiting and len(under_way) < AT_ONCE:
            launched = launch(folder, *waiting.pop(0))
            if launched is None:
                return
            under_way.append(launched)
        under_way = [each for each in under_way if each.look()]
        time.sleep(0.01)
