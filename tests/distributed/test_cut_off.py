"""Laws of several machines whose network fails, here two network namespaces with a cable between them.

Nobody closes a connection then, and what runs on both ends would wait: gloo for 30 minutes, a service that
idles for good. Both ends must end by themselves, with a named error, once the other has been silent for
`silence.SILENCE_SECONDS`.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from network import Machine, two_machines
from ranks import Finished, ForkedLaunch, launched_nodes
from same_texts import same_texts

# The shortest silence that the system can be asked to notice; what ships is ten times as long.
SILENCE = 6
# A guard against a hang, far above what an ending takes on a busy machine: gloo would wait for 30 minutes.
SOON = 120.0

Cut = Callable[[tuple[Machine, Machine]], None]


class Ended(NamedTuple):
    """A scenario whose network was cut: the error of each rank, its launcher's end, what rank 0 had found."""

    errors: list[str]
    launches: list[Finished]
    found: Any


def unplug_first(machines: tuple[Machine, Machine]) -> None:
    """It also loses its own address, and so the way to the store that its launcher holds."""
    machines[0].unplug()


def unplug_second(machines: tuple[Machine, Machine]) -> None:
    machines[1].unplug()


def lose_power(machines: tuple[Machine, Machine]) -> None:
    """What each sends to the other is lost in silence, as if a switch or the other machine had died."""
    machines[0].vanish_for(machines[1])
    machines[1].vanish_for(machines[0])


CUTS: dict[str, Cut] = {"completion": unplug_first, "busy": lose_power, "idle": unplug_second}


class Scenario:
    """A scenario of cut_script.py on two machines of its own."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path, name: str) -> None:
        self.machines = stack.enter_context(two_machines())
        self.files = [folder / "cut" / f"{name}.{rank}" for rank in range(2)]
        self.launches: list[ForkedLaunch] = stack.enter_context(
            launched_nodes(
                "cut_script.py", folder, name, SILENCE, nodes=2, ranks=1, machines=self.machines,
                environment={"OMP_NUM_THREADS": "1"},
            )
        )  # fmt: skip

    def wait(self) -> None:
        for launch in self.launches:
            launch.wait_for(lambda: all(Path(f"{file}.ready").exists() for file in self.files))

    def end(self) -> Ended:
        launches = [launch.finish(SOON) for launch in self.launches]
        errors = [Path(f"{file}.ended").read_text() for file in self.files]
        return Ended(errors, launches, json.loads(Path(f"{self.files[0]}.ready").read_text()))


@pytest.fixture(scope="module")
def ended(folder: Path) -> Iterator[dict[str, Ended]]:
    """All scenarios at the same time: most of it is waiting."""
    with contextlib.ExitStack() as stack:
        scenarios = {name: Scenario(stack, folder, name) for name in CUTS}
        for name, scenario in scenarios.items():
            scenario.wait()
            time.sleep(0.5)  # so that the cut comes between two steps or within one, not at the first
            CUTS[name](scenario.machines)
        yield {name: scenario.end() for name, scenario in scenarios.items()}


def test_two_machines_give_the_text_of_one_rank(ended: dict[str, Ended], one: dict[str, Any]) -> None:
    same_texts(ended["completion"].found, one)


@pytest.mark.parametrize("scenario", CUTS)
def test_both_ends_of_a_cut_cable_end_with_an_error_that_says_so(
    ended: dict[str, Ended], scenario: str
) -> None:
    for rank, (error, launch) in enumerate(
        zip(ended[scenario].errors, ended[scenario].launches, strict=True)
    ):
        kind, who = ("RankError", f"rank {1 - rank}")
        if scenario == "completion":  # gloo knows the other's address only, which the message quotes
            kind, who = ("UnexplainedError", "another rank")
        assert error.startswith(
            f"{kind}: {who} is gone: its machine cannot be reached, or has not answered for {SILENCE} s;"
            " check that machine and the network"
        )
        assert launch.code == 1
        assert f"{kind}: {who} is gone: its machine cannot be reached" in launch.stderr
