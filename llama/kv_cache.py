"""Keys and values of all sequences of a model, in shared blocks of positions, and what one step sees of them.

A `KVPool` is one piece of memory for each rank. A sequence's table names the blocks that hold its positions, in
order; several tables may name one block. Blocks with neighbouring numbers are neighbours in memory, so a sequence in
neighbouring blocks is contiguous for each head. Which sequence has which block is the engine's business
(engine/block_pool.py); the model sees a `Step` and knows no sequences (Kwon et al. 2023, PagedAttention).

Shapes: T tokens of a step, N its sequences, S positions of one, H query heads, K key/value heads, D head dimension,
R numbers of a row in memory: D, or the bytes of int8 blocks (kernels/cached.py). B: positions of a block.
"""

from __future__ import annotations

import functools
import itertools
import mmap
import operator
import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .errors import ConfigError, OutOfMemoryError
from .kernels.attention import Batch, batches, runs
from .kernels.cached import INT8, CacheFormat, row_of
from .kernels.native import Parts
from .kernels.operators import attend, attention_for
from .values import integer

__all__ = ["BLOCK", "KVPool", "Part", "Step", "check_block"]

# Positions of a block: what a sequence may hold unused, and the unit in which prefixes are shared.
BLOCK = 32
# A power of two, so that a position is split by a shift; the largest is what CUDA's own kernels take.
_LARGEST = 256
# Memory that is reserved and not counted until it is written; absent from Python's mmap.
_NORESERVE = 0x4000


def check_block(size: object) -> int:
    """Positions of a block, if it is a power of two up to 256.

    Raises:
        ConfigError: it is not.
    """
    number = integer(size)
    if number is None or not 1 <= number <= _LARGEST or number & (number - 1):
        raise ConfigError(f"block is {size!r}; it must be a power of two from 1 to {_LARGEST}")
    return number


class Part(NamedTuple):
    """A sequence's part of a step: `count` tokens from position `start` on.

    table: its blocks, at least as many as start + count positions need.
    """

    table: array[int]
    start: int
    count: int


class KVPool:
    """Blocks of keys and values for one rank's part of a model. Block 0 takes padding; no sequence has it.

    Args:
        n_layers, n_kv_heads, head_dim: of this rank's part of the model.
        form, device: of the stored keys and values. The format is the activations' dtype or "int8".
        blocks: in all, block 0 included.
        size: positions of a block.
    """

    def __init__(
        self,
        n_layers: int,
        n_kv_heads: int,
        head_dim: int,
        form: CacheFormat,
        device: torch.device,
        blocks: int,
        size: int = BLOCK,
    ) -> None:
        self.form, self.device, self.blocks, self.size = form, device, blocks, size
        self.n_kv_heads, self.head_dim = n_kv_heads, head_dim
        dtype, numbers = row_of(form, head_dim)
        shape = (n_layers, 2, n_kv_heads, blocks, size, numbers)
        self.store, self._memory = _reserved(shape, dtype, device)
        # For compiled kernels: where it is, from one layer to the next, and how a position is split.
        self.address, self.layer_bytes = self.store.data_ptr(), self.store.stride(0) * self.store.itemsize
        self.positions, self.shift = blocks * size, size.bit_length() - 1
        self._layers = [(keys, values) for keys, values in self.store]
        self._attention = attention_for(form, device, head_dim)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a KVPool is not copied: make one with Transformer.new_pool")

    @property
    def nbytes(self) -> int:
        """Bytes that are reserved. On a CPU memory is taken as blocks are written."""
        return self.store.nbytes

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and the values of a layer, each (K, blocks, B, R)."""
        return self._layers[index]

    def copy(self, sources: Sequence[int] | torch.Tensor, targets: Sequence[int] | torch.Tensor) -> None:
        """Copy whole blocks, in all layers at once; no block is both source and target.

        Args:
            sources, targets: numbers of blocks; as tensors of int64, on the pool's device.
        """
        if len(sources):
            source, target = (torch.as_tensor(each, device=self.device) for each in (sources, targets))
            self.store[:, :, :, target] = self.store[:, :, :, source]

    def give_back(self, first: int, count: int) -> None:
        """Give the memory of a range of blocks back to the system; what is in them is lost. For CPUs on Linux.

        Pages that other blocks share, at both ends of the range, stay.
        """
        if self._memory is None:
            return
        block = self.store.stride(3) * self.store.itemsize
        row = self.blocks * block
        page = mmap.PAGESIZE
        for start in range(first * block, self.nbytes, row):
            begin, end = -(-start // page) * page, (start + count * block) // page * page
            if begin < end:
                self._memory.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def step(self, parts: Iterable[Part]) -> Step:
        """What a step over these sequences sees."""
        return Step(self, parts)


class Step:
    """One forward: T tokens of N sequences, those of a sequence next to each other.

    Made once for all layers. Numbers are on the host, as 64-bit arrays; `tensors` has them on the pool's device. The
    tables are those of the sequences: they must not grow while the step is under way.

    firsts (N + 1,): the row of each sequence's first token, and T. starts (N,): the position of that token.
    lengths (N,): positions of each sequence when the step is done. positions (T,): of each token in its sequence.
    slots (T,): where its key and value go: block x B + place in the block. tables: of each sequence.
    """

    def __init__(self, pool: KVPool, parts: Iterable[Part]) -> None:
        self.tables, starts, counts = zip(*parts, strict=True)
        assert min(counts) > 0
        self.pool = pool
        self._parts: Parts | None = None
        self.starts = array("q", starts)
        if sum(counts) == len(counts):  # one token of each: most steps
            self.firsts = array("q", range(len(counts) + 1))
            self.lengths = array("q", [start + 1 for start in starts])
            self.positions, owners = self.starts, self.tables
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

    @functools.cached_property
    def runs(self) -> list[list[slice]]:
        """Where sequences lie, for kernels in torch; see attention.runs."""
        return runs(self)

    @functools.cached_property
    def batches(self) -> list[Batch]:
        """What a device other than a CPU attends at once; see attention.batches."""
        return batches(self)

    def lies_like(self, x: torch.Tensor) -> bool:
        """Whether the pool has x's device, and its dtype or int8: a model can be cast, or moved, while it is in use."""
        return self.pool.form in (x.dtype, INT8) and self.pool.device == x.device

    def attend(
        self, layer: int, q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor
    ) -> torch.Tensor:
        """Store the tokens' keys and values of a layer; each token attends up to itself -> (T, H, D)."""
        keys, values = self.pool.layer(layer)
        return attend(self.pool._attention, q_THD, k_TKD, v_TKD, keys, values, self)


class StepTensors(NamedTuple):
    """positions, slots (T,), starts, lengths (N,) and tables (N, most blocks), int64, on the device. Tables are filled
    up with block 0."""

    positions: torch.Tensor
    slots: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    tables: torch.Tensor


def _reserved(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, mmap.mmap | None]:
    """Memory whose pages are taken when they are written, and what gives them back; elsewhere a plain tensor."""
    if device.type != "cpu" or sys.platform != "linux":
        return torch.empty(shape, dtype=dtype, device=device), None
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    try:
        memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
    except (OSError, OverflowError, ValueError) as error:
        raise OutOfMemoryError(
            f"the system does not give {nbytes / (1 << 30):.2f} GiB of address space for the cache ({error}); give less"
            " cache_memory, or lower max_batch_size or max_seq_len"
        ) from error
    return torch.frombuffer(memory, dtype=dtype).view(shape), memory
