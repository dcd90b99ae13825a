"""The draw of a token where kernels have to be launched: the same operators whatever the rows ask for.

Nothing here looks at numbers of the device: no branch and no size depends on them, so the host never waits, and a step
can be recorded. sampling.py has the reference, which is faster on a CPU, and explains the draw.

Sums that decide are made in whole numbers. On CUDA `cumsum` and `scatter` add up in an order that is not fixed. Whole
numbers give the same sum in any order; a float's last bits would not, and with them the token could differ from run to
run, and beside other rows. A weight in [0, 1] is counted in units of 2^-b, where b is 62 less the bits of the
vocabulary's size (47 for 32,016 ids), so that no sum overflows. All weights together lose less than 2^-30 of their sum
by that; float32 rounds each of them by 2^-24.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch

from ..sampling import SamplingParams

__all__ = ["draw", "draw_numbers", "sample"]

_TINY = torch.finfo(torch.float32).tiny


def draw_numbers(params: Sequence[SamplingParams], uniforms: Sequence[float]) -> array[float]:
    """What rows are drawn with, five doubles each, for csrc/rows.c too: `SamplingParams.numbers`, uniform number."""
    rows = [(*param.numbers, uniform) for param, uniform in zip(params, uniforms, strict=True)]
    return array("d", chain.from_iterable(rows))


def sample(
    logits_RV: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]
) -> torch.Tensor:
    """As `operators.sample`, by `draw`."""
    numbers = np.asarray(draw_numbers(params, uniforms)).reshape(-1, 5)
    return draw(logits_RV, torch.from_numpy(numbers).to(logits_RV.device))


def draw(logits_RV: torch.Tensor, numbers_R5: torch.Tensor) -> torch.Tensor:
    """The chosen id of each row, (R,); of a row that is not finite, some id. `numbers_R5` are `draw_numbers`, there."""
    vocab = logits_RV.shape[1]
    temperature_R1, top_p_R1, top_k_R1, min_p_R1, uniform_R1 = numbers_R5[:, :, None].unbind(1)
    top_R1, greatest_R1 = logits_RV.max(dim=-1, keepdim=True)
    # A scale of 0 would make NaN of -inf, and an infinite one of 0.
    scale_R1 = temperature_R1.clamp(min=_TINY).reciprocal_().clamp_(min=_TINY).float()
    weights_RV = torch.sub(logits_RV, top_R1).mul_(scale_R1).exp_()
    # Sorted by weight, and by id among equal ones. What the limits keep is the beginning.
    best_RV, order_RV = weights_RV.sort(dim=-1, descending=True, stable=True)
    units_RV = (best_RV * 2.0 ** (62 - vocab.bit_length())).long()
    ends_RV = units_RV.cumsum(dim=-1)
    before_RV = ends_RV - units_RV
    rank_V = torch.arange(vocab, device=logits_RV.device)
    mass_R1 = top_p_R1 * ends_RV[:, -1:]
    keep_RV = (rank_V < top_k_R1) & ((before_RV <= mass_R1) | (top_p_R1 >= 1)) & (best_RV >= min_p_R1)
    kept_RV = torch.zeros_like(units_RV).scatter_(1, order_RV, units_RV * keep_RV)
    ends_RV = kept_RV.cumsum(dim=-1)
    total_R1 = ends_RV[:, -1:]
    # Rounding may push the target to the very end: the last id with any weight then. Of a row that is not finite
    # nothing is kept, since no comparison with NaN holds, and the target -1 finds id 0.
    target_R1 = torch.minimum((uniform_R1 * total_R1).long(), total_R1 - 1)
    drawn_R1 = torch.searchsorted(ends_RV, target_R1, right=True)
    return torch.where(temperature_R1 == 0, greatest_R1, drawn_R1)[:, 0]
