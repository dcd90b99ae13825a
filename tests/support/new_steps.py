"""Steps of sequences that begin, for tests that run a model without an engine."""

from __future__ import annotations

import itertools
from array import array

from llama.kv_cache import Part, Step
from llama.model import Transformer

__all__ = ["new_step"]


def new_step(model: Transformer, counts: list[int]) -> Step:
    """A step of as many sequences as there are counts, each from its position 0 on, in a pool of its own."""
    each = 1 + max(counts) // 16
    pool = model.new_pool(1 + each * len(counts), 16)
    tables = (array("i", range(first, first + each)) for first in itertools.count(1, each))
    return pool.step(Part(table, 0, count) for table, count in zip(tables, counts, strict=False))
