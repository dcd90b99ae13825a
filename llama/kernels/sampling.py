"""From logits to a token: bias, penalties, temperature, top-k, top-p, min-p, log-probabilities.

Three implementations: csrc/rows.c on CPUs with kernels (`sample_compiled`), numpy on other CPUs, PyTorch on other
devices. operators.py chooses. Bias and penalties (`adjust`) change a row before it is drawn from.

Shapes: R rows, V vocabulary. Randomness comes in as one uniform number for each row, so a row's result
depends only on its logits, its parameters and that number. The draw inverts the cumulative distribution in
the order of the ids: rounding that differs with the number of ranks then moves a boundary by the same tiny
amount, and never swaps two candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import NumericsError
from ..sampling import SamplingParams
from .native import Kernels

__all__ = [
    "adjust",
    "all_finite",
    "count_not_finite",
    "log_probabilities",
    "most_probable",
    "not_finite",
    "penalize",
    "sample",
    "sample_compiled",
]

# The best ids are searched first, since sorting a whole vocabulary takes longer than a layer.
_BEST = 512
# On a CPU, weights are summed in blocks of so many.
_SUMMED = 64
# Top-k looks first at ids with at least this share of the best one's weight, at rarer ones if it must.
_RARE = 1e-3


def all_finite(logits_RV: torch.Tensor) -> bool:
    """Whether every logit is finite; a NaN or an infinity shows as the least or greatest value."""
    return bool(torch.isfinite(torch.stack(torch.aminmax(logits_RV))).all())


def count_not_finite(logits_RV: torch.Tensor) -> torch.Tensor:
    """How many logits of each row are not finite, (R,).

    A sum would be cheaper, but can overflow where every logit is finite.
    """
    return (~torch.isfinite(logits_RV)).sum(dim=-1)


def not_finite(name: str, bad: int, vocab: int, dtype: torch.dtype) -> NumericsError:
    """The error for a row, called `name`, whose logits are not all finite."""
    wider = "" if dtype == torch.float32 else ", or build with dtype='float32'"
    return NumericsError(
        f"{name}: {bad} of {vocab} logits are not finite, computed in {dtype}; verify the checkpoint's files{wider}"
    )


def penalize(logits_V: torch.Tensor, seen: Sequence[int], penalty: float) -> torch.Tensor:
    """Logits with those of ids in `seen` divided (where positive) or multiplied by the penalty."""
    if penalty == 1 or not seen:
        return logits_V
    ids = torch.tensor(sorted(set(seen)), device=logits_V.device, dtype=torch.long)
    values = logits_V[ids]
    changed = torch.where(values > 0, values / penalty, values * penalty)
    # An extreme penalty overflows float32, and infinite logits cannot be subtracted from each other.
    limit = torch.finfo(changed.dtype).max
    return logits_V.index_copy(0, ids, changed.clamp_(-limit, limit))


def adjust(
    logits_V: torch.Tensor,
    params: SamplingParams,
    prompt: Sequence[int],
    output: Sequence[int],
    banned: Iterable[int] = (),
) -> torch.Tensor:
    """The logits that a token behind `prompt` and `output` is drawn from, before temperature and limits.

    Bias, repetition penalty (prompt and output), presence and frequency penalty (output). `banned` ids cannot
    be drawn: theirs become -inf. In PyTorch on every device, since a few rows have any of these.
    """
    device, vocab = logits_V.device, len(logits_V)
    if params.logit_bias:
        ids, values = map(torch.from_numpy, params.bias_arrays)
        logits_V = logits_V.index_add(0, ids.to(device), values.to(device, logits_V.dtype))
    logits_V = penalize(logits_V, [*prompt, *output], params.repetition_penalty)
    if output and (params.presence_penalty or params.frequency_penalty):
        seen, counts = np.unique(np.array(output), return_counts=True)
        lowered = params.presence_penalty + params.frequency_penalty * counts
        lower = torch.tensor(-lowered, device=device, dtype=logits_V.dtype)
        logits_V = logits_V.index_add(0, torch.tensor(seen, device=device), lower)
    out = [token for token in banned if 0 <= token < vocab]
    return logits_V.index_fill(0, torch.tensor(out, device=device), -torch.inf) if out else logits_V


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
    rows = [i for i, param in enumerate(params) if not param.greedy]
    if not rows:
        return most_probable(logits_RV)
    draw = _draw_on_cpu if logits_RV.device.type == "cpu" else _draw
    if len(rows) == len(params):
        return draw(logits_RV, params, uniforms)
    ids_R = most_probable(logits_RV)
    chosen = draw(logits_RV[rows], [params[i] for i in rows], [uniforms[i] for i in rows])
    ids_R[torch.tensor(rows, device=ids_R.device)] = chosen
    return ids_R


def sample_compiled(
    kernels: Kernels,
    logits_RV: torch.Tensor,
    params: Sequence[SamplingParams],
    uniforms: Sequence[float],
) -> torch.Tensor:
    """As `sample`, of contiguous float32 rows: csrc/rows.c, on all threads."""
    vocab = logits_RV.shape[1]
    rows = [
        (
            0.0 if param.greedy else param.temperature,
            param.top_p,
            min(param.top_k or vocab, vocab),
            param.min_p,
            uniform,
        )
        for param, uniform in zip(params, uniforms, strict=True)
    ]
    return kernels.draw(logits_RV, np.array(rows, dtype=np.float64))


def _draw_on_cpu(
    logits_RV: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]
) -> torch.Tensor:
    """numpy: as `_draw`, in a tenth of the time: no sort of the whole vocabulary, no rows in float64.

    Blocks are summed in float32 and added up in float64, so that rounding does not grow with the vocabulary.
    """
    logits = logits_RV.numpy()
    rows, vocab = logits.shape
    # All rows use the same few hundred kilobytes, one after the other.
    padded = np.zeros(-(-vocab // _SUMMED) * _SUMMED, dtype=np.float32)
    weights, ones = padded[:vocab], np.ones(_SUMMED, dtype=np.float32)
    ids = np.empty(rows, dtype=np.int64)
    for row, (param, uniform) in enumerate(zip(params, uniforms, strict=True)):
        with np.errstate(over="ignore", under="ignore"):
            np.subtract(logits[row], logits[row].max(), out=weights)
            if param.temperature != 1:
                # float64 is six times slower, but in float32 the tiniest temperatures are zero, and the
                # greatest infinite, by which -inf cannot be divided.
                kind = np.float32 if 1e-30 < param.temperature < 1e30 else np.float64
                np.divide(weights, kind(param.temperature), out=weights, casting="same_kind")
            np.exp(weights, out=weights)
        sums = padded.reshape(-1, _SUMMED) @ ones
        ends = sums.cumsum(dtype=np.float64)
        if param.top_k or param.top_p < 1 or param.min_p:
            kept = _kept_on_cpu(weights, float(ends[-1]), param)
            ids[row] = kept[_invert(weights[kept], uniform)]
        else:
            block = min(int(ends.searchsorted(uniform * ends[-1], side="right")), len(sums) - 1)
            while not sums[block]:  # by rounding: go back to the last block with any probability
                block -= 1
            start = block * _SUMMED
            inside = (uniform * ends[-1] - (ends[block - 1] if block else 0.0)) / float(sums[block])
            ids[row] = start + _invert(padded[start : start + _SUMMED], inside)
    return torch.from_numpy(ids)


def _invert(weights: np.ndarray[Any, Any], share: float) -> int:
    """The first index up to which weights add up to more than this share, else the last with any weight."""
    ends = weights.cumsum(dtype=np.float64)
    return int(min(ends.searchsorted(share * ends[-1], side="right"), ends.searchsorted(ends[-1])))


def _kept_on_cpu(weights: np.ndarray[Any, Any], total: float, param: SamplingParams) -> np.ndarray[Any, Any]:
    """The ids within top-k, top-p and min-p, ascending; the greatest weight is 1."""
    vocab = len(weights)
    # All weights below this add up to at most the mass that top-p leaves out, so none of them is kept.
    least = max((1 - param.top_p) * total / vocab * 0.999, param.min_p * 0.999)
    if param.top_k and param.top_p == 1:
        least = max(least, _RARE)
    found = np.flatnonzero(weights >= least)
    if param.top_k and len(found) < min(param.top_k, vocab) and least > 0:
        least = max((1 - param.top_p) * total / vocab * 0.999, param.min_p * 0.999)
        found = np.flatnonzero(weights >= least)
    order = found[np.argsort(-weights[found], kind="stable")]
    best = weights[order].astype(np.float64)
    before = best.cumsum() - best
    keep = (before <= param.top_p * total) & (best >= param.min_p)
    count = max(1, int(keep.sum()))
    if param.top_k:
        count = min(count, param.top_k)
    kept: np.ndarray[Any, Any] = np.sort(order[:count])
    return kept


def _draw(
    logits_RV: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]
) -> torch.Tensor:
    """PyTorch, on any device: softmax in float64, limits, and a search in the cumulative sums."""
    device = logits_RV.device
    if device.type == "mps":  # which has no float64
        logits_RV = logits_RV.cpu()

    def column(values: Sequence[float], dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=logits_RV.device)[:, None]

    # The maximum is subtracted first, so that even the smallest temperature does not overflow.
    shifted = (logits_RV - logits_RV.amax(dim=-1, keepdim=True)).double()
    probs_RV = torch.softmax(shifted / column([param.temperature for param in params]), dim=-1)
    vocab = logits_RV.shape[1]
    if any(param.top_k or param.top_p < 1 or param.min_p for param in params):
        keep_R1 = _kept(
            probs_RV,
            column([min(param.top_k or vocab, vocab) for param in params], torch.long),
            column([param.top_p for param in params]),
            column([param.min_p for param in params]),
        )
        probs_RV = probs_RV * _best(probs_RV, keep_R1)
    cumulative_RV = probs_RV.cumsum(dim=-1)
    target_R1 = column(list(uniforms)) * cumulative_RV[:, -1:]
    ids_R1 = torch.searchsorted(cumulative_RV, target_R1, right=True)
    # Rounding may push the target to the very end: the last id with any probability then.
    last_R1 = torch.searchsorted(cumulative_RV, cumulative_RV[:, -1:].contiguous())
    return torch.minimum(ids_R1, last_R1)[:, 0].to(device)


def _kept(
    probs_RV: torch.Tensor, top_k_R1: torch.Tensor, top_p_R1: torch.Tensor, min_p_R1: torch.Tensor
) -> torch.Tensor:
    """How many of its most probable ids each row keeps, (R, 1), at least one."""
    vocab = probs_RV.shape[1]
    for width in (min(_BEST, vocab), vocab):
        best_RW = probs_RV.topk(width, dim=-1).values
        before_RW = best_RW.cumsum(dim=-1) - best_RW
        rank = torch.arange(width, device=probs_RV.device)
        keep_RW = (rank < top_k_R1) & (before_RW <= top_p_R1) & (best_RW >= min_p_R1 * best_RW[:, :1])
        # A condition that fails at one rank fails at all later ones: a row that ends within `width` is done.
        if width == vocab or not bool(keep_RW[:, -1].any()):
            break
    return keep_RW.sum(dim=-1, keepdim=True).clamp_(min=1)


def _best(probs_RV: torch.Tensor, count_R1: torch.Tensor) -> torch.Tensor:
    """Mask of the `count` most probable ids of each row; among equal ones the lower ids come first."""
    best_RW = probs_RV.topk(int(count_R1.max()), dim=-1).values
    least_R1 = best_RW.gather(1, count_R1 - 1)
    above_RV, equal_RV = probs_RV > least_R1, probs_RV == least_R1
    room_R1 = count_R1 - above_RV.sum(dim=-1, keepdim=True)
    return above_RV | (equal_RV & (equal_RV.cumsum(dim=-1) <= room_R1))
