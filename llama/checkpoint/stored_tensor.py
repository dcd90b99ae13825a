"""A tensor as torch.save describes it: a view into a storage, whose numbers are a stranger's until they are checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

__all__ = ["Storage", "StoredTensor"]


@dataclass(frozen=True)
class Storage:
    """Bytes that tensors lie in: the record data/`key`, `count` elements of one dtype."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in its storage; offset and strides in elements, as torch has them.

    No two of its elements are the same bytes, and all lie within what the storage says it has.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def empty(self) -> bool:
        """Of no elements."""
        return 0 in self.shape

    @property
    def span(self) -> int:
        """Elements from its first to its last."""
        return (
            0 if self.empty else 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        )

    def problem(self) -> str | None:
        """What is wrong with its numbers."""
        dims = sorted((s, n) for n, s in zip(self.shape, self.strides, strict=True) if n > 1)
        if min(self.offset, *self.shape, *self.strides, 0) < 0:
            return "has a negative offset, extent or stride"
        if self.empty:
            # Whatever its strides are; torch counts its extents in 64 bits all the same.
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
