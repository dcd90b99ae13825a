"""KV caches: where a token's key and value are stored, and what a query may see.

`KVCache` holds one sequence, contiguous in each layer, and grows with its tokens: max_seq_len and
max_batch_size never size an allocation. `BatchCache` is what one step sees: several sequences, each with the
number of its tokens in the flattened run.

Shapes: T new tokens, S cached positions, H query heads, K key/value heads, D head dimension, R numbers of a row in
memory: D, or the bytes of an int8 cache's blocks (kernels/cached.py).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .kernels.cached import INT8, CacheFormat, format_of, head_dim_of, row_of
from .kernels.operators import attend, attention_for

__all__ = ["BatchCache", "KVCache"]

# Capacity is a multiple of this, so that a growing sequence is not copied for each token.
_GRAIN = 64
_Integers = np.ndarray[Any, np.dtype[np.int64]]


class KVCache:
    """Keys and values of one sequence: `length` positions are complete in every layer.

    Args:
        n_layers, n_kv_heads, head_dim: of this rank's part of the model.
        form, device: of the stored keys and values. The format is the activations' dtype or "int8".
        limit: the most positions it will hold. Growth never allocates more, so a sequence takes no more memory
            than it was admitted with. None: not known.
    """

    def __init__(
        self,
        n_layers: int,
        n_kv_heads: int,
        head_dim: int,
        form: CacheFormat,
        device: torch.device,
        limit: int | None = None,
    ) -> None:
        self.limit = limit
        dtype, numbers = row_of(form, head_dim)
        empty = torch.empty(n_kv_heads, 0, numbers, dtype=dtype, device=device)
        self.length = 0
        self._keys = [empty] * n_layers
        self._values = [empty] * n_layers
        self._addresses: _Integers | None = None
        self._attention = attention_for(form, device, head_dim)

    def __getstate__(self) -> dict[str, Any]:
        # A copied or pickled cache lies elsewhere, perhaps on another machine.
        return self.__dict__ | {"_addresses": None, "_attention": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._attention = attention_for(self.form, self.device, head_dim_of(self._keys[0]))

    @property
    def capacity(self) -> int:
        """Positions that are allocated."""
        return self._keys[0].shape[1]

    @property
    def form(self) -> CacheFormat:
        """Of the keys and values."""
        return format_of(self._keys[0])

    @property
    def device(self) -> torch.device:
        """That holds the keys and values."""
        return self._keys[0].device

    @property
    def nbytes(self) -> int:
        """Bytes that are allocated."""
        return sum(x.nbytes for x in (*self._keys, *self._values))

    def reserve(self, positions: int) -> None:
        """Make room for `positions` in all; capacity grows by at least a quarter.

        Layers are copied one after the other, so the peak is one layer above the result.
        """
        if positions <= self.capacity:
            return
        self._addresses = None
        wanted = max(positions, self.capacity + self.capacity // 4)
        wanted = -(-wanted // _GRAIN) * _GRAIN
        if self.limit is not None:
            wanted = max(positions, min(wanted, self.limit))
        before = self.capacity
        grown: list[tuple[list[torch.Tensor], int]] = []
        try:
            for store in (self._keys, self._values):
                for layer, old in enumerate(store):
                    new = old.new_empty(old.shape[0], wanted, old.shape[2])
                    new[:, : self.length] = old[:, : self.length]
                    store[layer] = new
                    grown.append((store, layer))
        except BaseException:
            # Readers expect one capacity in all layers: shrink the grown ones again, without allocating.
            for store, layer in grown:
                store[layer] = _shrunk(store[layer], before, self.length)
            raise

    def fork(self) -> KVCache:
        """An independent copy."""
        other = copy.copy(self)
        # With the capacity of the original: an exact copy would be copied again for its first token.
        other._keys = [_copied(x, self.length) for x in self._keys]
        other._values = [_copied(x, self.length) for x in self._values]
        return other

    def addresses(self) -> _Integers:
        """Addresses of the keys and values of each layer, (layers, 2)."""
        if self._addresses is None:
            pairs = zip(self._keys, self._values, strict=True)
            self._addresses = np.array([(k.data_ptr(), v.data_ptr()) for k, v in pairs], dtype=np.int64)
        return self._addresses

    def take(self) -> KVCache:
        """Move the content into a new cache; this one is empty afterwards."""
        other = copy.copy(self)
        other._keys, other._values = list(self._keys), list(self._values)
        self.length = 0
        self._addresses = None
        for store in (self._keys, self._values):
            store[:] = [store[0].new_empty(store[0].shape[0], 0, store[0].shape[2])] * len(store)
        return other

    def copy_prefix(self, source: KVCache, length: int, capacity: int) -> None:
        """Begin with the first `length` positions of another cache, with space for `capacity` in all."""
        assert self.length == 0 <= length <= source.length
        self.limit = capacity
        self.reserve(capacity)
        for mine, theirs in ((self._keys, source._keys), (self._values, source._values)):
            for new, old in zip(mine, theirs, strict=True):
                new[:, :length] = old[:, :length]
        self.length = length

    def truncate(self, length: int) -> None:
        """Forget the positions from `length` on."""
        assert 0 <= length <= self.length
        self.length = length

    def attend(
        self, layer: int, q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor
    ) -> torch.Tensor:
        """Store T tokens behind the complete ones and attend from each to all up to itself -> (T, H, D)."""
        keys, values = self._keys[layer], self._values[layer]
        return attend(self._attention, q_THD, k_TKD, v_TKD, keys, values, self.length)


def _copied(x_KSR: torch.Tensor, length: int) -> torch.Tensor:
    fresh = torch.empty_like(x_KSR)
    fresh[:, :length] = x_KSR[:, :length]
    return fresh


def _shrunk(x_KSR: torch.Tensor, capacity: int, length: int) -> torch.Tensor:
    """The first `length` positions, in place, in a layout of `capacity`."""
    heads, _, row = x_KSR.shape
    small = x_KSR.view(-1)[: heads * capacity * row].view(heads, capacity, row)
    for head in range(heads):  # each moves forward, over heads that were moved before
        small[head, :length] = x_KSR[head, :length].clone()
    return small


class BatchCache:
    """The caches of one step: sequence i owns the next `counts[i]` tokens of the flattened run."""

    def __init__(self, caches: Sequence[KVCache], counts: Sequence[int]) -> None:
        assert all(count > 0 for count in counts)
        self.caches = list(caches)
        self.counts = list(counts)
        for cache, count in zip(caches, counts, strict=True):
            cache.reserve(cache.length + count)

    def rows(self) -> tuple[_Integers, _Integers, _Integers, CacheFormat]:
        """For kernels that take addresses: where the keys and values of each token's sequence are.

        Returns addresses (layers, T, 2), of each token its cache's capacity and its position, (T,) each, and the
        format of all caches.
        """
        total = sum(self.counts)
        if total == 1:  # most steps of one sequence
            (cache,) = self.caches
            capacity, position = np.array([[cache.capacity], [cache.length]], dtype=np.int64)
            return cache.addresses()[:, None], capacity, position, cache.form
        addresses = np.empty((len(self.caches[0].addresses()), total, 2), dtype=np.int64)
        capacity = np.empty(total, dtype=np.int64)
        start = 0
        for cache, count in zip(self.caches, self.counts, strict=True):
            addresses[:, start : start + count] = cache.addresses()[:, None]
            capacity[start : start + count] = cache.capacity
            start += count
        return addresses, capacity, np.array(self.positions(), dtype=np.int64), self.caches[0].form

    def lies_like(self, x: torch.Tensor) -> bool:
        """Whether all caches have x's device, and its dtype or int8: a model can be cast, or moved, while they are in
        use."""
        form = self.caches[0].form
        return form in (x.dtype, INT8) and all(
            cache.form == form and cache.device == x.device for cache in self.caches
        )

    def positions(self) -> list[int]:
        """The position of each token of the run in its sequence."""
        return [
            position
            for cache, count in zip(self.caches, self.counts, strict=True)
            for position in range(cache.length, cache.length + count)
        ]

    def attend(
        self, layer: int, q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor
    ) -> torch.Tensor:
        """Store the run's keys and values of a layer; each token attends to its sequence -> (T, H, D)."""
        if len(self.caches) == 1:
            return self.caches[0].attend(layer, q_THD, k_TKD, v_TKD)
        ends = list(itertools.accumulate(self.counts, initial=0))
        runs = [slice(start, end) for start, end in itertools.pairwise(ends)]
        parts = [
            cache.attend(layer, q_THD[run], k_TKD[run], v_TKD[run])
            for cache, run in zip(self.caches, runs, strict=True)
        ]
        return torch.cat(parts)

    def commit(self) -> None:
        """Count the run's tokens as complete. A step that fails before this leaves no trace."""
        for cache, count in zip(self.caches, self.counts, strict=True):
            cache.length += count
