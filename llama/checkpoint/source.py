"""What every opened checkpoint can do, whatever its layout: say what it is, and give windows of its weights.

Names, shapes and the order of rotary pairs are Meta's; a layout that differs translates. Files are
mapped, so a window costs the bytes it holds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import CheckpointFormatError
from ..sizing.args import ModelArgs
from ..sizing.shapes import axis_of, expected_shapes, wanted_range
from . import huge_pages as pages
from .mapped import MappedFile

__all__ = ["Checkpoint", "Part", "Range", "checked_dtype", "dtype_name", "windows"]

Range = tuple[int, int]
# Bytes of a mapped file that are read before their pages are given back.
_WINDOW = 32 << 20


class Part(NamedTuple):
    """Mapped weights, and the rows and columns (None: one dimension) of a window that they fill."""

    source: torch.Tensor
    rows: slice
    columns: slice | None


class Checkpoint(ABC):
    """An opened checkpoint whose keys and shapes have been checked.

    Attributes:
        folder: where it lies.
        layout: "Meta" or "Hugging Face".
        files: the weight files, in order.
        args: hyperparameters, with the vocabulary filled in.
        dtype: as stored.
        mapped: `files`, mapped.
    """

    layout: str
    folder: Path
    files: list[Path]
    args: ModelArgs
    dtype: torch.dtype
    mapped: list[MappedFile]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The whole shape of every tensor, by Meta's names."""
        return expected_shapes(self.args)

    @property
    def shards(self) -> int:
        """Weight files."""
        return len(self.files)

    @abstractmethod
    def parts(self, name: str, rows: Range, columns: Range | None) -> Iterator[Part]:
        """What fills the window rows x columns of a tensor, in Meta's order of rows."""

    @abstractmethod
    def stored(self) -> Iterator[tuple[str, Path, torch.Tensor]]:
        """Every tensor of every file as it is stored: its name there, the file, the mapped tensor."""

    def read(self, name: str, out: torch.Tensor, rows: Range, columns: Range | None = None) -> None:
        """Fill `out` with a window of a tensor, converting dtype and device."""
        for source, to_rows, to_columns in self.parts(name, rows, columns):
            target = out[to_rows] if to_columns is None else out[to_rows, to_columns]
            for first, window in self.windows(source):
                target[first : first + len(window)].copy_(window)

    def windows(self, source: torch.Tensor, multiple: int = 1) -> Iterator[tuple[int, torch.Tensor]]:
        """`windows` of one of this checkpoint's tensors.

        Raises:
            CheckpointFormatError: its file was cut meanwhile. What is gone may end the process before that, with
                SIGBUS, or read as zeros; so the size is asked before each window and behind the last.
        """
        file = next((each for each in self.mapped if each.holds(source)), None)  # None: no elements
        for window in windows(source, multiple):
            if file is not None:
                file.check()
            yield window
        if file is not None:
            file.check()

    def slice_of(self, name: str, rank: int, size: int) -> tuple[Range, Range | None]:
        """The rows and columns of a tensor that rank `rank` of `size` holds."""
        shape = self.shapes[name]
        ranges = [(0, extent) for extent in shape]
        axis = axis_of(name)
        if axis is not None:
            ranges[axis] = wanted_range(name, shape[axis], self.args, rank, size)
        return ranges[0], ranges[1] if len(ranges) > 1 else None

    def copy_slice(self, name: str, out: torch.Tensor, rank: int, size: int) -> None:
        """Fill `out` with what rank `rank` of `size` holds of a tensor, converting dtype and device."""
        self.read(name, out, *self.slice_of(name, rank, size))


def dtype_name(dtype: torch.dtype) -> str:
    """As people write it: bfloat16."""
    return str(dtype).removeprefix("torch.")


def checked_dtype(dtype: torch.dtype, folder: Path) -> torch.dtype:
    """The dtype of weights, if it is one for weights.

    Raises:
        CheckpointFormatError: integers, as of a quantized checkpoint, or 8-bit floats.
    """
    if dtype not in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        raise CheckpointFormatError(
            f"{folder} holds weights of {dtype}, as a quantized checkpoint does; this runtime reads bfloat16, float16,"
            " float32 and float64"
        )
    return dtype


def windows(source: torch.Tensor, multiple: int = 1) -> Iterator[tuple[int, torch.Tensor]]:
    """A mapped tensor in windows of rows (first row, window); pages are given back behind each.

    They would count as this process's memory otherwise. A window has a multiple of `multiple` rows.
    """
    row_bytes = source.stride(0) * source.element_size()
    rows = max(1, _WINDOW // max(1, row_bytes) // multiple) * multiple
    for first in range(0, source.shape[0], rows):
        window = source[first : first + rows]
        yield first, window
        # Up to its last element, not its last row: a slice of columns would reach past the file.
        last = sum((n - 1) * stride for n, stride in zip(window.shape, window.stride(), strict=True))
        pages.drop(window.data_ptr(), (last + 1) * source.element_size())
