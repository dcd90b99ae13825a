"""A memory-mapped weight file, and tensors that are views of it.

Another program may truncate the file while it is mapped. Touching the lost bytes then ends the process
(SIGBUS), which Python cannot catch. So readers check the file's size before each window.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import torch

from ...errors import CheckpointFormatError

__all__ = ["MappedFile", "TensorFile"]


class MappedFile:
    """The first `size` > 0 bytes of an open file, memory-mapped. Tensors made from it keep the mapping alive.

    Args:
        path: for messages.
        file: descriptor of the open file; it may be closed afterwards.
    """

    def __init__(self, path: Path, file: int, size: int) -> None:
        self.path, self.size = path, size
        # A private, writable mapping. Nothing writes to it, but torch warns about read-only buffers.
        self._map = mmap.mmap(file, size, access=mmap.ACCESS_COPY)
        self._first = torch.frombuffer(self._map, dtype=torch.uint8, count=1).data_ptr()

    def tensor(
        self, dtype: torch.dtype, at: int, shape: tuple[int, ...], strides: tuple[int, ...] | None = None
    ) -> torch.Tensor:
        """A tensor whose first element is at byte `at`, which need not be aligned: it is only copied from.

        Args:
            strides: in elements, not negative; by default those of a contiguous tensor.

        Raises:
            ValueError: the tensor would reach past the end of the file.
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
        # Strides of dimensions of size 1 have no meaning, but torch cannot view a tensor with odd ones as
        # bytes.
        count = torch.Size(shape).numel()
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=at).view(shape)

    @property
    def span(self) -> tuple[int, int]:
        """Address of the first byte, and one past the last."""
        return self._first, self._first + self.size

    def holds(self, x: torch.Tensor) -> bool:
        """Whether a tensor's first element is in this file."""
        first, last = self.span
        return first <= x.data_ptr() < last

    def check(self) -> None:
        """Raise CheckpointFormatError if the file was truncated since it was mapped."""
        size = self._map.size()  # of the mapped file, even if another file has its name now
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
