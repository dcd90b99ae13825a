"""Laws of several machines, here two torchrun launchers on one: the text is that of one rank, and if a
machine dies the other ends soon, with a named error and nothing left behind.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from ranks import launched_nodes
from same_texts import same_texts

from llama.distributed import world
from llama.kernels import compiled

# One thread per rank: other tests use the cores too.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
# A guard against a hang, far above what an ending takes: gloo would wait 30 minutes for a silent rank.
SOON = 60.0


def shared_files() -> set[Path]:
    return set(Path("/dev/shm").glob("llama-ranks-*"))


def test_two_nodes_give_the_text_of_one_rank(folder: Path, one: dict[str, Any]) -> None:
    with launched_nodes(
        "rank_script.py", folder, "nodes", nodes=2, ranks=2, environment=ENVIRONMENT
    ) as nodes:
        for node in nodes:
            node.finish().ok()
    for rank in range(4):
        found = json.loads((folder / "out-4" / f"nodes.{rank}.json").read_text())
        same_texts(found["whole"]["texts"], one)
        same_texts(found["half"]["texts"], one)
        # Only the ranks of one launcher share memory.
        assert found["whole"]["shared"] is False
        assert found["half"]["shared"] is (compiled.base() is not None)


@pytest.mark.parametrize(
    ("local", "ranks", "same"),
    [
        (4, range(4), True),
        (4, range(2, 4), True),
        (4, range(4, 8), True),
        (2, range(4), False),
        (3, range(2, 4), False),
        (4, range(3, 6), False),
        (1, range(2), False),
    ],
)
def test_ranks_share_a_machine_if_one_launcher_started_them(
    monkeypatch: pytest.MonkeyPatch, local: int, ranks: range, same: bool
) -> None:
    """Two launchers of three ranks hold three models of two; the second model is on both machines."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    assert world._on_one_machine(ranks) is same


@pytest.mark.parametrize("killed", [0, 1])
def test_a_node_that_is_killed_is_a_named_error_on_the_other(folder: Path, killed: int) -> None:
    """Node 0 also holds the store in which the ranks leave their reasons."""
    before = shared_files()
    pids = [folder / f"pid.{rank}" for rank in range(2)]
    for path in pids:
        path.unlink(missing_ok=True)
    with launched_nodes(
        "rank_script.py", folder, "endless", nodes=2, ranks=1, environment=ENVIRONMENT
    ) as nodes:
        survivor = nodes[1 - killed]
        survivor.wait_for(lambda: all(path.exists() for path in pids))
        assert survivor.runs(int(pids[1 - killed].read_text()))
        nodes[killed].kill()
        stopped = time.monotonic()
        finished = survivor.finish()
        assert time.monotonic() - stopped < SOON
    assert finished.code != 0
    # UnexplainedError is the RankError for a rank that left no reason.
    assert "UnexplainedError: another rank is gone, or left; see its own output (" in finished.stderr
    assert "this model cannot be used any more" in finished.stderr
    end = time.monotonic() + SOON
    while not shared_files() <= before and time.monotonic() < end:
        time.sleep(0.05)  # other tests make such files too, for a moment
    assert shared_files() <= before
