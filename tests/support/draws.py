"""Draws over a grid of uniforms, which shows each probability exactly, by every sampler that this machine has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NoReturn

import pytest
import torch
from compiled_levels import AT, use

from llama.kernels import draws, operators, sampling
from llama.kernels.adjust import adjust, changes, joined
from llama.kernels.operators import decide
from llama.sampling import SamplingParams

__all__ = ["GRID", "WAYS", "adjusted", "by_way", "frequencies", "penalized", "plain", "sample"]

GRID = 4000
# csrc/rows.c at each level, what CUDA uses, and the reference.
WAYS = [*AT, "unbranched", "torch"]


def by_way(name: str) -> Iterator[str]:
    """Body of a fixture: what is sampled meanwhile goes this way."""
    with pytest.MonkeyPatch.context() as patch:
        use(name if name in AT else "plain", patch)
        if name == "unbranched":
            chosen, unbranched = operators._of_logits, partial(sampling.decide, draws.sample)
            patch.setattr(
                operators,
                "_of_logits",
                lambda name, *of: unbranched if name == "draw" else chosen(name, *of),
            )
        elif name in AT:
            # What operators.py turns to for rows that a kernel does not take.
            patch.setattr(sampling, "sample", _must_not_be_used)
            patch.setattr(sampling, "log_probabilities", _must_not_be_used)
        yield name


def _must_not_be_used(*_: object) -> NoReturn:
    raise AssertionError("these rows go to the reference, so the test says nothing of a kernel")


def sample(
    logits_RV: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]
) -> torch.Tensor:
    """The ids that are drawn from rows, (R,)."""
    # Only what is drawn from may be -inf.
    own_RV = logits_RV if torch.isfinite(logits_RV).all() else torch.zeros_like(logits_RV)
    found = decide(own_RV, logits_RV, params, uniforms)
    assert not any(found.bad)
    return torch.tensor(found.ids)


def plain(**limits: float) -> SamplingParams:
    """Without any limit but these."""
    return SamplingParams(**({"temperature": 1.0, "top_p": 1.0} | limits))  # type: ignore[arg-type]


def frequencies(logits: Sequence[float], params: SamplingParams, grid: int = GRID) -> list[float]:
    """The share of a fine grid of uniforms that each id gets: its probability, within 1 / grid."""
    rows = torch.tensor(logits, dtype=torch.float32).repeat(grid, 1)
    ids = sample(rows, [params] * grid, [(i + 0.5) / grid for i in range(grid)])
    return [count / grid for count in torch.bincount(ids, minlength=len(logits)).tolist()]


def adjusted(
    logits_V: torch.Tensor,
    params: SamplingParams,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    banned: Iterable[int] = (),
) -> torch.Tensor:
    """A row of logits with the bias and the penalties of these parameters."""
    vocab = len(logits_V)
    of_row = changes(params, prompt, output, banned, vocab)
    return adjust(logits_V[None], *map(torch.from_numpy, joined({0: of_row}, vocab)))[0]


def penalized(logits_V: torch.Tensor, seen: Sequence[int], penalty: float) -> torch.Tensor:
    """A row of logits with the repetition penalty of these ids."""
    return adjusted(logits_V, SamplingParams(repetition_penalty=penalty), seen)
