"""The counter of a step's costs counts them: what is planted in a decode step is found, at its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_steps import counts_of_steps, decoding, recorded_step
from pretended_gpu import Gpu

from llama import Llama
from llama.model import RMSNorm


@pytest.fixture(scope="module")
def llama(there: Callable[..., Any], tiny_checkpoint: Path) -> Llama:
    with there():
        return Llama.build(tiny_checkpoint, None, 96, 8, device="cuda", dtype="float32")


PLANTED = {
    "a number that is looked at": (lambda x: float(x.sum()), {"sync": 1, "launch": 1}),
    "a list that is copied": (
        lambda x: torch.tensor([1.0], device=x.device),
        {"copy in": 1, "pageable": 1, "sync": 1},
    ),
    "a kernel": (lambda x: x + 1, {"launch": 1}),
    "a result that is read": (lambda x: x.cpu(), {"copy out": 1, "pageable": 1, "sync": 1}),
    "a view": (lambda x: x[:1], {}),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_in_a_step_is_counted(
    gpu: Gpu, llama: Llama, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    planted, more = PLANTED[name]
    before = counts_of_steps(gpu, llama, 2)
    forward = RMSNorm.forward

    def costly(norm: RMSNorm, x: torch.Tensor) -> torch.Tensor:
        planted(x)
        return forward(norm, x)

    monkeypatch.setattr(RMSNorm, "forward", costly)
    norms = 2 * llama.model.n_layers + 1
    after = counts_of_steps(gpu, llama, 2)
    for one, other in zip(before, after, strict=True):
        assert other - one == {kind: norms * n for kind, n in more.items()}
        assert one - other == {}


def test_steps_of_the_same_rows_cost_the_same(gpu: Gpu, llama: Llama) -> None:
    first, *others = counts_of_steps(gpu, llama, 3, steps=4)
    assert all(other == first for other in others)
    assert first["launch"] > 0


def test_a_row_that_decodes_costs_launches_of_the_right_places(gpu: Gpu, llama: Llama) -> None:
    with decoding(llama, 2) as step:
        step()
        gpu.forget()
        step()
        places = {place.partition(":")[0] for _, _, place in gpu.places}
    assert {"kernels/norms.py", "kernels/attention.py", "distributed/layers.py"} <= places
    assert "elsewhere" not in places


def test_what_stops_a_recording_is_named(
    guard: Path, gpu: Gpu, llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = RMSNorm.forward
    monkeypatch.setattr(RMSNorm, "forward", lambda norm, x: forward(norm, x) * float(x.sum() * 0 + 1))
    found = [line for line in recorded_step(llama, 2).refused if "_local_scalar_dense" in line]
    assert len(found) >= 2 * llama.model.n_layers + 1
