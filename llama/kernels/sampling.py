"""From logits to a token: temperature, top-k, top-p, min-p, log-probabilities.

Three implementations: csrc/rows.c on CPUs with kernels (`decide_compiled`), draws.py on CUDA, and here the reference,
which other CPUs use. operators.py chooses. Bias and penalties (adjust.py) change a row before it is drawn from.

Shapes: R rows, V vocabulary. Randomness comes in as one uniform number for each row, so a row's result
depends only on its logits, its parameters and that number. The draw inverts the cumulative distribution in
the order of the ids: rounding that differs with the number of ranks then moves a boundary by the same tiny
amount, and never swaps two candidates.

All take weights e^((logit - greatest logit) / temperature) in float32. On CPUs these are added up in blocks of 64, and
the blocks in float64, so that rounding does not grow with the vocabulary; on CUDA they are added up as whole numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import NumericsError
from ..sampling import SamplingParams
from .draws import draw_numbers
from .native import Kernels

__all__ = [
    "Decided",
    "count_not_finite",
    "decide",
    "decide_compiled",
    "log_probabilities",
    "most_probable",
    "not_finite",
    "sample",
]

# Weights that are added up in float32.
_BLOCK = 64
# Draws rows of one kind: (logits (R, V), parameters, uniforms) -> ids (R,).
_Draw = Callable[[torch.Tensor, Sequence[SamplingParams], Sequence[float]], torch.Tensor]


class Decided(NamedTuple):
    """What is known of R rows: an id of each, its log-probability, and how many of its logits are not finite.

    If any logit is not, ids and log-probabilities mean nothing.
    """

    ids: list[int]
    logs: list[float]
    bad: list[int]


def count_not_finite(logits_RV: torch.Tensor) -> torch.Tensor:
    """How many logits of each row are not finite, (R,).

    A sum would be cheaper, but can overflow where every logit is finite.
    """
    if logits_RV.device.type == "cpu" and _all_finite(logits_RV.numpy()):
        return torch.zeros(len(logits_RV), dtype=torch.int64, device="cpu")
    return (~torch.isfinite(logits_RV)).sum(dim=-1)


def _all_finite(rows: np.ndarray[Any, np.dtype[Any]]) -> bool:
    """A NaN or an infinity shows as the least or greatest value, which numpy finds sooner than torch counts."""
    return math.isfinite(rows.item(rows.argmax())) and math.isfinite(rows.item(rows.argmin()))


def not_finite(name: str, bad: int, vocab: int, dtype: torch.dtype) -> NumericsError:
    """The error for a row, called `name`, whose logits are not all finite."""
    wider = "" if dtype == torch.float32 else ", or build with dtype='float32'"
    return NumericsError(
        f"{name}: {bad} of {vocab} logits are not finite, computed in {dtype}; verify the checkpoint's files{wider}"
    )


def most_probable(logits_RV: torch.Tensor) -> torch.Tensor:
    """The id of the greatest logit in each row, (R,); among equal ones the lowest id."""
    if logits_RV.device.type == "cpu":
        # numpy's search is ten times as fast: 0.1 against 1.2 ms for 32 rows of 32016.
        return torch.from_numpy(logits_RV.numpy().argmax(axis=-1))
    return logits_RV.argmax(dim=-1)


def log_probabilities(logits_RV: torch.Tensor, ids_R: torch.Tensor) -> torch.Tensor:
    """log softmax of each row at its id, (R,) float32, before temperature and limits."""
    # The whole log-softmax: on a CPU it takes a third of the time of logsumexp.
    return torch.log_softmax(logits_RV, dim=-1).gather(1, ids_R[:, None])[:, 0]


def sample(
    logits_RV: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]
) -> torch.Tensor:
    """The chosen id of each row, (R,). `uniforms` are in [0, 1); greedy rows ignore theirs.

    A logit may be -inf, which is never drawn, as long as another one of its row is finite.
    """
    kinds: dict[_Draw, list[int]] = {}
    for row, param in enumerate(params):
        limited = param.top_k or param.top_p < 1 or param.min_p
        kind = _draw_greatest if param.greedy else _draw_limited if limited else _draw_from_all
        kinds.setdefault(kind, []).append(row)
    ids_R = torch.empty(len(params), dtype=torch.long, device=logits_RV.device)
    for draw, rows in kinds.items():
        if len(kinds) == 1:
            ids_R = draw(logits_RV, params, uniforms)
        else:
            at = torch.tensor(rows, device=logits_RV.device)
            ids_R[at] = draw(logits_RV[at], [params[row] for row in rows], [uniforms[row] for row in rows])
    return ids_R


def decide(
    draw: _Draw,
    logits_RV: torch.Tensor,
    drawn_RV: torch.Tensor,
    params: Sequence[SamplingParams],
    uniforms: Sequence[float],
) -> Decided:
    """As `operators.decide`, with `sample` or another way to draw."""
    bad_R = count_not_finite(logits_RV)
    if bad_R.any():
        return Decided([0] * len(params), [0.0] * len(params), bad_R.tolist())
    ids_R = draw(drawn_RV, params, uniforms)
    return Decided(ids_R.tolist(), log_probabilities(logits_RV, ids_R).tolist(), bad_R.tolist())


def decide_compiled(
    kernels: Kernels,
    logits_RV: torch.Tensor,
    drawn_RV: torch.Tensor,
    params: Sequence[SamplingParams],
    uniforms: Sequence[float],
) -> Decided:
    """As `operators.decide`, of contiguous float32 rows: csrc/rows.c, on all threads."""
    return Decided(*kernels.decide(logits_RV, drawn_RV, draw_numbers(params, uniforms)))


def _draw_greatest(
    logits_RV: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]
) -> torch.Tensor:
    """Of greedy rows."""
    return most_probable(logits_RV)


def _draw_from_all(
    logits_RV: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]
) -> torch.Tensor:
    """Of rows without limits: first a block of ids, then an id in it."""
    blocks_RBN, ends_RB = _weights(logits_RV, params)
    target_R1 = _column(uniforms, logits_RV) * ends_RB[:, -1:]
    block_R1 = _first_above(ends_RB, target_R1)
    before_R1 = torch.where(block_R1 > 0, ends_RB.gather(1, (block_R1 - 1).clamp_(min=0)), 0.0)
    weights_RN = blocks_RBN.take_along_dim(block_R1[:, :, None], dim=1)[:, 0]
    inside_R1 = _first_above(weights_RN.cumsum(dim=-1, dtype=torch.float64), target_R1 - before_R1)
    return (block_R1 * _BLOCK + inside_R1)[:, 0]


def _draw_limited(
    logits_RV: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]
) -> torch.Tensor:
    """Of rows with top-k, top-p or min-p; each limits the whole distribution."""
    blocks_RBN, ends_RB = _weights(logits_RV, params)
    weights_RV, total_R1 = blocks_RBN.flatten(1), ends_RB[:, -1:]
    vocab = logits_RV.shape[1]
    top_k = [min(param.top_k or vocab, vocab) for param in params]
    top_k_R1 = _column(top_k, logits_RV, torch.long)
    top_p_R1 = _column([param.top_p for param in params], logits_RV)
    min_p_R1 = _column([param.min_p for param in params], logits_RV)
    # All weights below this add up to at most the mass that top-p leaves out, so none of them is kept.
    least_R1 = torch.maximum((1 - top_p_R1) * total_R1 / vocab, min_p_R1) * 0.999
    most = max((count for count in top_k if count < vocab), default=0)
    if most:
        best_RK = weights_RV.topk(most, dim=-1).values
        last_R1 = torch.where(top_k_R1 <= most, best_RK.gather(1, top_k_R1.clamp(max=most) - 1), 0.0)
        least_R1 = torch.maximum(least_R1, last_R1)
    found_RW, ids_RW = _at_least(weights_RV, least_R1)
    # Sorted by weight, and by id among equal ones. The greatest weight is 1, so it passes all limits.
    best_RW, order_RW = found_RW.sort(dim=-1, descending=True, stable=True)
    before_RW = best_RW.cumsum(dim=-1, dtype=torch.float64) - best_RW
    rank_W = torch.arange(best_RW.shape[1], device=best_RW.device)
    keep_RW = (rank_W < top_k_R1) & (before_RW <= top_p_R1 * total_R1) & (best_RW >= min_p_R1)
    kept_RW = torch.zeros_like(found_RW).scatter_(1, order_RW, torch.where(keep_RW, best_RW, 0.0))
    ends_RW = kept_RW.cumsum(dim=-1, dtype=torch.float64)
    at_R1 = _first_above(ends_RW, _column(uniforms, logits_RV) * ends_RW[:, -1:])
    return ids_RW.gather(1, at_R1)[:, 0]


def _column(values: Sequence[float], like: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A number for each row, (R, 1)."""
    return torch.tensor(values, dtype=dtype, device=like.device)[:, None]


def _weights(logits_RV: torch.Tensor, params: Sequence[SamplingParams]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights in blocks, (R, B, 64), filled up with zeros, and the sums up to each block's end, (R, B) float64."""
    rows, vocab = logits_RV.shape
    # A scale of 0 would make NaN of -inf, and an infinite one of 0.
    tiny = torch.finfo(torch.float32).tiny
    scales = [max(1 / max(param.temperature, tiny), tiny) for param in params]
    weights_RV = torch.zeros(rows, -(-vocab // _BLOCK) * _BLOCK, dtype=torch.float32, device=logits_RV.device)
    used_RV = weights_RV[:, :vocab]
    torch.sub(logits_RV, logits_RV.amax(dim=-1, keepdim=True), out=used_RV)
    used_RV.mul_(_column(scales, logits_RV, torch.float32)).exp_()
    blocks_RBN = weights_RV.view(rows, -1, _BLOCK)
    return blocks_RBN, blocks_RBN.sum(dim=-1).cumsum(dim=-1, dtype=torch.float64)


def _first_above(ends_RN: torch.Tensor, target_R1: torch.Tensor) -> torch.Tensor:
    """Where cumulative sums first exceed the target, (R, 1)."""
    # Rounding may push the target to the very end: the last one with any weight then.
    last_R1 = torch.searchsorted(ends_RN, ends_RN[:, -1:].contiguous())
    return torch.minimum(torch.searchsorted(ends_RN, target_R1, right=True), last_R1)


def _at_least(weights_RV: torch.Tensor, least_R1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of at least so much and more than 0, and their ids, ascending: (R, W), filled up with zeros."""
    least_R1 = least_R1.clamp(min=torch.finfo(torch.float32).tiny).float()
    row_N, id_N = (weights_RV >= least_R1).nonzero(as_tuple=True)
    count_R = torch.bincount(row_N, minlength=len(weights_RV))
    slot_N = torch.arange(len(row_N), device=row_N.device) - (count_R.cumsum(0) - count_R)[row_N]
    ids_RW = row_N.new_zeros(len(weights_RV), int(count_R.max()))
    ids_RW[row_N, slot_N] = id_N
    found_RW = weights_RV.new_zeros(ids_RW.shape)
    found_RW[row_N, slot_N] = weights_RV[row_N, id_N]
    return found_RW, ids_RW
