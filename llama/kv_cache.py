"""Keys and values of all sequences of a model, in shared blocks of positions, and what one step sees of them.

A `KVPool` is one piece of memory for each rank. A sequence's table names the blocks that hold its positions, in
order; several tables may name one block. Blocks with neighbouring numbers are neighbours in memory, so a sequence in
neighbouring blocks is contiguous for each head. Which sequence has which block is the engine's business
(engine/block_pool.py); the model sees a `Step` and knows no sequences (Kwon et al. 2023, PagedAttention).

Shapes: T tokens of a step, N its sequences, S positions of one, H query heads, K key/value heads, D head dimension,
R numbers of a row in memory: D, or the bytes of int8 blocks (kernels/cached.py). B: positions of a block.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
from array import array
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch

from .errors import ConfigError, OutOfMemoryError
from .kernels.cached import CacheFormat, row_of
from .kernels.operators import attend, attention_for, attention_name, recorded_for
from .kernels.steps import Part, Step
from .values import integer

__all__ = ["BLOCK", "KVPool", "Part", "Step", "check_block"]

# Positions of a block where nothing asks for more: what a sequence may hold unused, and the unit in which prefixes are
# shared.
BLOCK = 32
# A power of two, so that a position is split by a shift; the largest is what CUDA's own kernels take.
_LARGEST = 256
# Bytes of blocks that are copied at once: between reading and writing they take as much memory beside the pool.
_COPIED = 1 << 26
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
        self._attention = attention_for(form, device, head_dim, size)

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
        """Copy whole blocks, in all layers. All are read before any is written: one may be source and target.

        As many layers go at once as fit into 64 MiB, so that the first step of many forks takes no memory that was
        not measured for steps (128 forks of 7B copy 2 GiB).

        Args:
            sources, targets: numbers of blocks; as tensors of int64, on the pool's device.
        """
        if not isinstance(sources, torch.Tensor) and set(sources).isdisjoint(targets):
            for one, other in zip(sources, targets, strict=True):  # on a CPU in a fraction of the time
                self.store[:, :, :, other] = self.store[:, :, :, one]
        elif len(sources):
            source, target = (torch.as_tensor(each, device=self.device) for each in (sources, targets))
            layer = len(sources) * self.store[0, :, :, 0].nbytes
            for some in torch.split(self.store, max(1, _COPIED // layer)):
                some[:, :, :, target] = some[:, :, :, source]

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

    def step(self, parts: Iterable[tuple[array[int], int, int]]) -> Step:
        """What a step over these sequences sees."""
        return Step(self, parts)

    @property
    def attention(self) -> str:
        """The name of the row of kernels/table.py that reads it."""
        return attention_name(self.form, self.device, self.head_dim, self.size)

    def recorded_for(self, step: Step) -> Hashable:
        """What a recording of a step's operators is good for, beside the sizes of `step.tensors`: two steps for which
        both are equal start the same work."""
        return recorded_for(self._attention, step)

    def attend(
        self, layer: int, q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor, step: Step
    ) -> torch.Tensor:
        """Store a step's keys and values of a layer; each token attends to its sequence up to itself -> (T, H, D)."""
        return attend(self._attention, q_THD, k_TKD, v_TKD, *self._layers[layer], step)


def _reserved(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, mmap.mmap | None]:
    """Memory whose pages are taken when they are written, and what gives them back; elsewhere a plain tensor."""
    nbytes = math.prod(shape) * dtype.itemsize
    try:
        if device.type != "cpu" or sys.platform != "linux":
            return torch.empty(shape, dtype=dtype, device=device), None
        memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
    except (torch.OutOfMemoryError, OSError, OverflowError, ValueError) as error:
        what = "of address space " if device.type == "cpu" else ""
        raise OutOfMemoryError(
            f"{nbytes / (1 << 30):.2f} GiB {what}for the cache are not to be had on {device} ({error}); give less"
            " cache_memory, lower max_batch_size or max_seq_len, or close other models"
        ) from error
    # Where huge pages are the system's default, the first token would take 2 MiB for each layer's head (7B: 4 GiB).
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape), memory
