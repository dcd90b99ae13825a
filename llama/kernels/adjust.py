"""Bias, penalties and banned ids: what changes logits before a token is drawn from them.

The host says which logits change, and by what numbers; the device changes all of them at once, in PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..sampling import SamplingParams

__all__ = ["Changes", "adjust", "changes", "joined"]

_TINY, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_NOWHERE = np.empty(0, dtype=np.int64)


class Changes(NamedTuple):
    """Logits that change: where they are, none twice, and what each is changed by.

    at (K,) int64: ids of one row, or places in flattened rows. by (3, K) float32: bias, penalty, what is subtracted;
    infinity is subtracted from ids that cannot be drawn.
    """

    at: np.ndarray[Any, np.dtype[np.int64]]
    by: np.ndarray[Any, np.dtype[np.float32]]


_BIAS, _PENALTY, _LOWER = range(3)
_NEUTRAL = np.array([[0], [1], [0]], dtype=np.float32)


def changes(
    params: SamplingParams,
    prompt: Sequence[int],
    output: Sequence[int],
    banned: Iterable[int],
    vocab: int,
) -> Changes:
    """What changes in the logits of a row that a token behind `prompt` and `output` is drawn from.

    Bias, repetition penalty (prompt and output), presence and frequency penalty (output). `banned` ids cannot be drawn.
    """
    found: list[tuple[int, np.ndarray[Any, np.dtype[np.int64]], Any]] = []
    if params.logit_bias:
        found.append((_BIAS, *params.bias_arrays))
    if params.repetition_penalty != 1:
        # An extreme penalty must stay one in float32: neither 0 nor infinite.
        penalty = min(max(params.repetition_penalty, _TINY), _MOST)
        found.append((_PENALTY, np.array(list({*prompt, *output}), dtype=np.int64), penalty))
    if output and (params.presence_penalty or params.frequency_penalty):
        seen, counts = np.unique(np.array(output, dtype=np.int64), return_counts=True)
        found.append((_LOWER, seen, params.presence_penalty + params.frequency_penalty * counts))
    out = [token for token in banned if 0 <= token < vocab]
    if out:
        found.append((_LOWER, np.array(out, dtype=np.int64), np.inf))
    parts = [ids for _, ids, _ in found]
    at = parts[0] if len(parts) == 1 else np.unique(np.concatenate(parts)) if parts else _NOWHERE
    by = np.empty((3, len(at)), dtype=np.float32)
    by[:] = _NEUTRAL
    for column, ids, numbers in found:
        by[column, slice(None) if ids is at else at.searchsorted(ids)] = numbers
    return Changes(at, by)


def joined(of_rows: Mapping[int, Changes], vocab: int) -> Changes:
    """Those of several rows, for their flattened logits.

    The last one is repeated up to a power of two, so that few sizes occur; if there is none, a logit is changed by
    nothing.
    """
    count = sum(len(each.at) for each in of_rows.values())
    if not count:
        return Changes(np.zeros(1, dtype=np.int64), _NEUTRAL)
    size = 1 << (count - 1).bit_length()
    at, by = np.empty(size, dtype=np.int64), np.empty((3, size), dtype=np.float32)
    end = 0
    for row, each in of_rows.items():
        begin, end = end, end + len(each.at)
        at[begin:end] = each.at
        at[begin:end] += row * vocab
        by[:, begin:end] = each.by
    at[count:], by[:, count:] = at[count - 1], by[:, count - 1 : count]
    return Changes(at, by)


def adjust(logits_RV: torch.Tensor, at_K: torch.Tensor, by_3K: torch.Tensor) -> torch.Tensor:
    """A copy of the logits with these changes, in this order: bias, penalty, subtraction.

    The penalty divides a logit that is positive and multiplies another one (Keskar et al. 2019).
    """
    bias_K, penalty_K, lower_K = by_3K.unbind()
    flat = logits_RV.flatten()
    values_K = flat.index_select(0, at_K).add_(bias_K)
    values_K = torch.where(values_K > 0, values_K / penalty_K, values_K * penalty_K)
    # An extreme penalty overflows float32, and infinite logits cannot be subtracted from each other.
    limit = torch.finfo(values_K.dtype).max
    values_K = values_K.clamp_(-limit, limit).sub_(lower_K)
    return flat.index_copy(0, at_K, values_K).view_as(logits_RV)
