"""Laws of endings: a launch always ends soon, with an exit code other than 0 if something went wrong, and
leaves no process behind.

The scenarios of rank_script.py let a rank wait an hour for the others at its end. None of them may.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from ranks import launched, run_ranks

# A guard against a hang, far above what an ending takes, and below the 30 s after which torchrun kills ranks.
SOON = 28.0


@pytest.fixture
def own_folder(folder: Path, tmp_path: Path) -> Path:
    """The checkpoint, in a folder to which only this test's ranks write."""
    (tmp_path / "s2").symlink_to(folder / "s2")
    return tmp_path


def test_an_error_of_all_ranks_ends_the_launch(own_folder: Path) -> None:
    """And a number of threads that the user set is kept."""
    given = {"ranks": 2, "environment": {"OMP_NUM_THREADS": "2"}, "forked": True}
    finished = run_ranks("rank_script.py", own_folder, "threads", "refused", **given)
    assert finished.code != 0
    assert "sizes that work: 1, 2, 4" in finished.stderr
    assert finished.stdout == ""
    for rank in range(2):
        seen = json.loads((own_folder / "out-2" / f"threads.{rank}.json").read_text())
        assert seen == {"outside": 2, "inside": 2, "after": 2}


@pytest.mark.parametrize(
    ("scenario", "own", "others"),
    [
        ("one_fails", "ValueError: the host program's own mistake", "rank 1 has left with ValueError"),
        ("one_exits", "the host program's own mistake", "rank 1 has closed this model"),
        ("one_refused", "temperature is -1", "rank 1 has left with SamplingError"),
    ],
)
def test_an_error_of_one_rank_ends_the_other(forked: Any, scenario: str, own: str, others: str) -> None:
    """By itself: there is no launcher that would end it."""
    found = forked[scenario]
    assert found["codes"] == [1, 1]
    assert own in found["stderr"]
    assert f"RankError: {others}" in found["stderr"]
    assert found["ended"] - found["failed"] < SOON


@pytest.mark.parametrize("way", ["ctrl-c", "killed"])
def test_a_launch_that_is_stopped_ends_soon_and_whole(own_folder: Path, way: str) -> None:
    """Ctrl-C in the middle of a generation, or a rank that the system kills."""
    pids, ended = ([own_folder / f"{name}.{rank}" for rank in range(2)] for name in ("pid", "ended"))
    forked = way == "killed"  # Ctrl-C goes to the launcher itself
    with launched("rank_script.py", own_folder, "endless", ranks=2, forked=forked) as launch:
        launch.wait_for(lambda: all(path.exists() for path in pids))
        stopped = time.monotonic()
        if way == "ctrl-c":
            launch.interrupt()
        else:
            os.kill(int(pids[1].read_text()), signal.SIGKILL)
        finished = launch.finish()
        assert time.monotonic() - stopped < SOON
        assert not any(launch.runs(int(path.read_text())) for path in pids)
    assert finished.code != 0
    if way == "ctrl-c":
        assert all(path.exists() for path in ended), "nobody had to be killed"


def test_ranks_end_with_a_launcher_that_is_killed(own_folder: Path) -> None:
    """Idle ranks have no other way to notice."""
    environment = {"OMP_NUM_THREADS": "1"}
    with launched("service_script.py", own_folder, "sleeping", ranks=2, environment=environment) as launch:
        launch.wait_for((own_folder / "ready").exists)
        assert len(launch.alive()) == 3
        launch.process.kill()
        launch.process.wait()
        end = time.monotonic() + SOON
        while launch.alive() and time.monotonic() < end:
            time.sleep(0.05)
        assert not launch.alive(), "ranks outlived their launcher"
        words = launch.errors()
    # One may have heard from the other before it looked itself.
    assert f": the launcher (process {launch.process.pid}) has ended; ending too" in words
    for rank in range(2):
        assert (own_folder / f"{rank}.over").exists(), "the service was not ended in order"
