"""What a step is, in one number: the same on ranks that do the same. Never imports torch."""

from __future__ import annotations

import json
import operator
from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from ..distributed.agreement import Step
from .request import Request, ScheduledBatch

__all__ = ["digest_of", "step_of"]

# What steers the steps of a request. Not its sampling and its seed, which only the first rank uses, nor its row.
_STEERING = (
    "max_new_tokens",
    "stop",
    "start_of_text",
    "n",
    "first_sample",
    "top",
    "score_prompt",
    "speculate",
    "streaming",
)


def step_of(plan: ScheduledBatch, tokens: Sequence[int]) -> Step:
    """The step of a plan.

    Args:
        tokens: of all its sequences, drafts included.
    """
    numbers = array("q")
    for sequence, count in plan:
        if sequence.digest is None:
            sequence.digest = digest_of([sequence.request])
        row = (*sequence.key, sequence.digest, sequence.computed, count, len(sequence.draft))
        numbers.extend(row)
    numbers.extend(tokens)
    return Step(_number(numbers.tobytes()), len(plan), len(tokens))


def digest_of(requests: Iterable[Request]) -> int:
    """63 bits of what these requests ask."""
    rows = [
        [getattr(request, name) for name in _STEERING]
        + [list(request.prompt), list(request.prediction), sorted(request.stop_ids)]
        for request in requests
    ]
    return _number(json.dumps(rows, default=operator.index).encode())


def _number(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little") >> 1
