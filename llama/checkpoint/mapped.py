"""A weight file that is mapped into memory, and the tensors made over it.

A mapped file may be cut by another program while it is read; the kernel then ends the process that touches
what is gone (SIGBUS), and no Python code can catch that. So the file's size is asked before each window.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import torch

from ..errors import CheckpointFormatError

__all__ = ["MappedFile", "TensorFile"]


class MappedFile:
    """The first `size` bytes of an open file, which must not be empty; its tensors keep them mapped.

    Attributes:
        path, size: for messages.
    """

    def __init__(self, path: Path, file: int, size: int) -> None:
        self.path, self.size = path, size
        # A private mapping: never written to, but torch warns of buffers that it could not write.
        self._map = mmap.mmap(file, size, access=mmap.ACCESS_COPY)
        self._first = torch.frombuffer(self._map, dtype=torch.uint8, count=1).data_ptr()

    def tensor(
        self, dtype: torch.dtype, at: int, shape: tuple[int, ...], strides: tuple[int, ...] | None = None
    ) -> torch.Tensor:
        """A tensor whose first element lies at byte `at`; wherever that is, copying needs no alignment.

        Args:
            strides: in elements and not negative; by default those of a contiguous tensor.

        Raises:
            ValueError: it would reach past the file.
        """
        if 0 in shape:
            return torch.empty(shape, dtype=dtype)
        if strides is not None:
            count = 1 + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
            found = torch.frombuffer(self._map, dtype=dtype, count=count, offset=at).as_strided(
                shape, strides
            )
            if not found.is_contiguous():
                return found
        # The strides of extents of 1 mean nothing, but torch views no bytes of a tensor that has odd ones.
        count = torch.Size(shape).numel()
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=at).view(shape)

    @property
    def span(self) -> tuple[int, int]:
        """Its addresses: of its first byte, and behind its last."""
        return self._first, self._first + self.size

    def holds(self, x: torch.Tensor) -> bool:
        """Whether a tensor begins in this file."""
        first, last = self.span
        return first <= x.data_ptr() < last

    def check(self) -> None:
        """Raise CheckpointFormatError where the file was cut since it was mapped."""
        size = self._map.size()  # of the file that is open, whatever has its name now
        if size < self.size:
            raise CheckpointFormatError(
                f"{self.path} was cut from {self.size:,} to {size:,} bytes while it was read: another program writes"
                " to it. Let that end, or fetch the file again; do not change a checkpoint while it is loaded"
            )


class TensorFile(dict[str, torch.Tensor]):
    """The tensors of one mapped file, by name."""

    def __init__(self, file: MappedFile, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__(tensors)
        self.file = file
