"""A hash of each step, by which ranks notice that they do not run the same one. Never imports torch."""

from __future__ import annotations

import json
import operator
from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from ..distributed.agreement import Step
from .request import Request
from .sequence import ScheduledBatch

__all__ = ["digest_of", "step_of"]

# What decides the steps of a request. Not sampling and seed, which only the first rank uses, nor the row.
_STEERING = (
    "max_new_tokens",
    "min_new_tokens",
    "stop",
    "start_of_text",
    "n",
    "first_sample",
    "top",
    "score_prompt",
    "speculate",
    "streaming",
)


def step_of(batch: ScheduledBatch, tokens: Sequence[int]) -> Step:
    """What a rank is about to run, for comparison with the other ranks.

    Args:
        tokens: of all sequences of the batch, drafts included.
    """
    numbers = array("q")
    for sequence, start, length, draft in batch:
        if sequence.digest is None:
            sequence.digest = digest_of([sequence.request])
        row = (*sequence.key, sequence.digest, start, length, len(draft))
        numbers.extend(row)
    numbers.extend(tokens)
    return Step(_number(numbers.tobytes()), len(batch), len(tokens))


def digest_of(requests: Iterable[Request]) -> int:
    """A hash of 63 bits of what these requests ask."""
    rows = [
        [getattr(request, name) for name in _STEERING]
        + [list(request.prompt), list(request.prediction), sorted(request.stop_ids)]
        for request in requests
    ]
    return _number(json.dumps(rows, default=operator.index).encode())


def _number(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little") >> 1
