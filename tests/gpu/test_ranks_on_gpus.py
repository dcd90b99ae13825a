"""Laws: a model that is split over two GPUs answers what it answers on the CPU, in float32; no rank hangs; ranks that
share a GPU share its memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gpu_calls import CALLS, same
from ranks import run_forked

from llama import Llama

pytestmark = pytest.mark.slow
NAMES = ("greedy", "all limits", "samples", "echo", "prediction", "stream")


def test_two_ranks_give_what_the_cpu_gives(guard: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    report = tmp_path / "found.json"
    job = (2, "gpu_rank_script.py", guard, tiny_checkpoint, report, *NAMES)
    (done,) = run_forked(tmp_path / "report", job)
    assert done["codes"] == [0, 0], done["stderr"]
    found = json.loads(report.read_text())
    assert found["ranks"] == 2
    llama = Llama.build(tiny_checkpoint, None, 128, 4, device="cpu", dtype="float32")
    for name in NAMES:
        expected = json.loads(json.dumps(CALLS[name](llama)))
        assert same(found["calls"][name], expected), name
    # Half of the nine tenths that are for weights and cache; of one GPU for both ranks, each has half.
    planned = found["planned"]
    for size in (1, 2):
        assert 0.44 < planned[f"cuda {size}"] < 0.46, planned
        assert 0.22 < planned[f"cuda:0 {size}"] < 0.23, planned


def test_a_rank_that_fails_alone_on_a_gpu_ends(guard: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Where the end of a group waits for all of its ranks, as NCCL's does: the others are in the middle of the step."""
    job = (2, "gpu_rank_script.py", guard, tiny_checkpoint, tmp_path / "found.json", "fails")
    (done,) = run_forked(tmp_path / "report", job)
    assert done["codes"] == [1, 1]
    assert "MemoryError: the last rank's own" in done["stderr"]
    assert "RankError: rank 1 failed: MemoryError: the last rank's own" in done["stderr"]
