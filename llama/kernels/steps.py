"""What one forward of the model sees of its sequences: where their keys and values are, and where new ones go.

Shapes: T tokens of a step, N its sequences. B: positions of a block.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import operator
from array import array
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from .cached import INT8, CacheFormat

__all__ = ["Part", "Parts", "Pool", "Step", "StepTensors"]


class Pool(Protocol):
    """What a step asks of the pool that holds its keys and values, in blocks of `size` = 2^shift positions.

    address, layer_bytes: where layer 0 begins, and from one layer to the next. positions: of all blocks.
    """

    form: CacheFormat
    device: torch.device
    n_kv_heads: int
    head_dim: int
    size: int
    shift: int
    positions: int
    address: int
    layer_bytes: int

    def attend(
        self, layer: int, q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor, step: Step
    ) -> torch.Tensor:
        """Store a step's keys and values of a layer; each token attends to its sequence up to itself -> (T, H, D)."""


class Parts(ctypes.Structure):
    """parts_t of csrc/attention.h: the sequences of a step. It does not keep the memory that it points to."""

    _fields_ = (
        ("count", ctypes.c_long),
        *((name, ctypes.c_void_p) for name in ("firsts", "starts", "slots", "tables")),
    )


class Part(NamedTuple):
    """A sequence's part of a step: `length` tokens from position `start` on. A step takes plain tuples of these too.

    table: its blocks, at least as many as start + length positions need.
    """

    table: array[int]
    start: int
    length: int


class Step:
    """One forward: T tokens of N sequences, those of a sequence next to each other.

    Made once for all layers. Numbers are on the host, as 64-bit arrays; `tensors` has them on the pool's device. The
    tables are those of the sequences: they must not grow while the step is under way.

    firsts (N + 1,): the row of each sequence's first token, and T. starts (N,): the position of that token.
    lengths (N,): positions of each sequence when the step is done. positions (T,): of each token in its sequence.
    slots (T,): where its key and value go: block x B + place in the block. tables: of each sequence.
    """

    def __init__(self, pool: Pool, parts: Iterable[tuple[array[int], int, int]]) -> None:
        self.tables, starts, counts = zip(*parts, strict=True)
        assert min(counts) > 0
        self.pool = pool
        self._parts: Parts | None = None
        # What kernels in torch make of the tables, for all layers.
        self.made: dict[str, Any] = {}
        self.starts = array("q", starts)
        if sum(counts) == len(counts):  # one token of each: most steps
            self.firsts = array("q", range(len(counts) + 1))
            self.lengths = array("q", [start + 1 for start in starts])
            self.positions = self.starts
            owners: Iterable[array[int]] = self.tables
        else:
            self.firsts = array("q", itertools.accumulate(counts, initial=0))
            self.lengths = array("q", map(operator.add, starts, counts))
            spans = [range(start, end) for start, end in zip(starts, self.lengths, strict=True)]
            self.positions = array("q", itertools.chain.from_iterable(spans))
            owners = itertools.chain.from_iterable(map(itertools.repeat, self.tables, counts))
        shift, place = pool.shift, pool.size - 1
        pairs = zip(owners, self.positions, strict=True)
        self.slots = array("q", [table[at >> shift] << shift | at & place for table, at in pairs])

    def __len__(self) -> int:
        """How many sequences it has."""
        return len(self.tables)

    @property
    def on_host(self) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
        """What `tensors` has, on the host."""
        most = -(-max(self.lengths) // self.pool.size)
        tables = np.zeros((len(self), most), dtype=np.int64)
        for row, table in zip(tables, self.tables, strict=True):
            row[: len(table)] = table[:most]
        return [*map(np.asarray, (self.positions, self.slots, self.starts, self.lengths)), tables]

    @functools.cached_property
    def tensors(self) -> StepTensors:
        """The numbers on the pool's device. May be set before they are used, by who has copied them already."""
        return StepTensors(*(torch.from_numpy(each).to(self.pool.device) for each in self.on_host))

    @property
    def parts(self) -> Parts:
        """The sequences, for compiled kernels."""
        if self._parts is None:  # functools.cached_property takes a lock
            self._tables = array("q", [table.buffer_info()[0] for table in self.tables])
            self._parts = Parts(
                len(self.tables),
                self.firsts.buffer_info()[0],
                self.starts.buffer_info()[0],
                self.slots.buffer_info()[0],
                self._tables.buffer_info()[0],
            )
        return self._parts

    def lies_like(self, x: torch.Tensor) -> bool:
        """Whether the pool has x's device, and its dtype or int8: a model can be cast, or moved, while it is in use."""
        return self.pool.form in (x.dtype, INT8) and self.pool.device == x.device


class StepTensors(NamedTuple):
    """positions, slots (T,), starts, lengths (N,) and tables (N, most blocks), int64, on the device. Tables are filled
    up with block 0."""

    positions: torch.Tensor
    slots: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    tables: torch.Tensor
