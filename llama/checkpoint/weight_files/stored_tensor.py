"""A tensor as torch.save describes it: a view of a storage, with numbers that must be checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

__all__ = ["Storage", "StoredTensor"]


@dataclass(frozen=True)
class Storage:
    """The memory of one or more tensors: `count` elements of one dtype, in the record data/`key`."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A view of a storage; offset and strides count elements, as in torch. `problem` checks them."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def empty(self) -> bool:
        """Whether it has no elements."""
        return 0 in self.shape

    @property
    def span(self) -> int:
        """Number of storage elements from its first element to its last, inclusive."""
        return (
            0 if self.empty else 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        )

    def problem(self) -> str | None:
        """What is wrong with its numbers, or None: its elements are in the storage and do not overlap."""
        dims = sorted((s, n) for n, s in zip(self.shape, self.strides, strict=True) if n > 1)
        if min(self.offset, *self.shape, *self.strides, 0) < 0:
            return "has a negative offset, extent or stride"
        if self.empty:
            # Strides do not matter, but torch still multiplies the sizes in 64 bits.
            return "is too large" if math.prod(max(1, n) for n in self.shape) >= 1 << 60 else None
        reach = 0
        for stride, extent in dims:
            if stride <= reach:
                places = f"shape {list(self.shape)}, strides {list(self.strides)}"
                return f"is stored with one value for several places ({places})"
            reach += (extent - 1) * stride
        if self.offset + self.span > self.storage.count:
            return f"needs {self.offset + self.span:,} elements of a storage of {self.storage.count:,}"
        return None
