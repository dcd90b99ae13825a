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

_FLOAT32 = np.finfo(np.float32)


class Changes(NamedTuple):
    """Logits that change: where they are, none twice, and (bias, penalty, what is subtracted) of each.

    at (K,) int64: ids of one row, or places in flattened rows. numbers (K, 3) float32; infinity is subtracted from
    ids that cannot be drawn.
    """

    at: np.ndarray[Any, np.dtype[np.int64]]
    numbers: np.ndarray[Any, np.dtype[np.float32]]


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
    biased, biases = params.bias_arrays
    repeated = _unique([*prompt, *output] if params.repetition_penalty != 1 else ())
    falls = bool(params.presence_penalty or params.frequency_penalty)
    lowered, counts = np.unique(np.array(output if falls else (), dtype=np.int64), return_counts=True)
    out = _unique([token for token in banned if 0 <= token < vocab])
    parts = [part for part in (biased, repeated, lowered, out) if len(part)]
    at = parts[0] if len(parts) == 1 else np.unique(np.concatenate(parts)) if parts else out
    numbers = np.empty((len(at), 3), dtype=np.float32)
    numbers[:] = 0, 1, 0
    numbers[at.searchsorted(biased), 0] = biases
    # An extreme penalty must stay one in float32: neither 0 nor infinite.
    numbers[at.searchsorted(repeated), 1] = np.clip(params.repetition_penalty, _FLOAT32.tiny, _FLOAT32.max)
    numbers[at.searchsorted(lowered), 2] = params.presence_penalty + params.frequency_penalty * counts
    numbers[at.searchsorted(out), 2] = np.inf
    return Changes(at, numbers)


def joined(of_rows: Mapping[int, Changes], vocab: int) -> Changes:
    """Those of several rows, for their flattened logits.

    The last one is repeated up to a power of two, so that few sizes occur; if there is none, a logit is changed by
    nothing.
    """
    places = [row * vocab + each.at for row, each in of_rows.items()]
    numbers = [each.numbers for each in of_rows.values()]
    count = sum(map(len, places))
    if not count:
        return Changes(np.zeros(1, dtype=np.int64), np.array([[0, 1, 0]], dtype=np.float32))
    more = (1 << (count - 1).bit_length()) - count
    every, by = np.concatenate(places), np.concatenate(numbers)
    return Changes(np.pad(every, (0, more), mode="edge"), np.pad(by, ((0, more), (0, 0)), mode="edge"))


def adjust(logits_RV: torch.Tensor, at_K: torch.Tensor, numbers_K3: torch.Tensor) -> torch.Tensor:
    """A copy of the logits with these changes, in this order: bias, penalty, subtraction.

    The penalty divides a logit that is positive and multiplies another one (Keskar et al. 2019).
    """
    bias_K, penalty_K, lower_K = numbers_K3.unbind(1)
    flat = logits_RV.flatten()
    values_K = flat[at_K] + bias_K
    values_K = torch.where(values_K > 0, values_K / penalty_K, values_K * penalty_K)
    # An extreme penalty overflows float32, and infinite logits cannot be subtracted from each other.
    limit = torch.finfo(values_K.dtype).max
    values_K = values_K.clamp_(-limit, limit) - lower_K
    return flat.index_copy(0, at_K, values_K).view_as(logits_RV)


def _unique(ids: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.unique(np.array(ids, dtype=np.int64))
