"""The base class of an opened checkpoint: what it is, and windows of its weights.

Names, shapes and the order of rotary rows are Meta's; a layout that differs translates. Files are
memory-mapped, so reading a window costs the bytes of that window.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import CheckpointFormatError
from ..kernels.quantized import Blocks, Form, RawRows, in_order
from ..sizing.args import ModelArgs
from ..sizing.shapes import axis_of, expected_shapes, wanted_range
from ..tokenizer import Tokenizer
from . import huge_pages
from .weight_files.mapped import MappedFile

__all__ = ["Checkpoint", "Part", "Range", "checked_dtype", "dtype_name"]

Range = tuple[int, int]
# Bytes of a mapped file to read before giving its pages back.
_WINDOW = 32 << 20
# Bytes of float32 weights that are computed at a time.
_COMPUTED = 8 << 20


class Part(NamedTuple):
    """Mapped weights, and the rows and columns of a window that they fill (columns None: a vector)."""

    source: torch.Tensor
    rows: slice
    columns: slice | None


class Checkpoint(ABC):
    """An opened checkpoint; its keys and shapes have been checked.

    A subclass opens one layout: its constructor sets the attributes below, and it implements `recognizes`,
    `parts` and `stored`. Where weights are quantized, it also implements `form` and `blocks`.

    Attributes:
        layout: the layout's name for messages, "Meta" or "Hugging Face".
        config_name: the file with the hyperparameters.
        folder: the folder it was opened from.
        files: the weight files, in order.
        args: hyperparameters, with the vocabulary size filled in.
        dtype: of the stored weights; of a quantized checkpoint, float16: what to compute in.
        mapped: `files`, memory-mapped.
        quantization: what people call the way in which its matrices are quantized, e.g. "Q4_K_M"; None if they
            are plain.
        context_length: tokens of a sequence in training, if a file states it.
        notes: what a user should know of this checkpoint once it is loaded, a line each.
        mp_shards: how many model-parallel shards it is saved in, each with a slice of every split weight and a copy
            of the others; None if the layout stores every weight once, whole.
    """

    layout: str
    config_name: str
    folder: Path
    files: list[Path]
    args: ModelArgs
    dtype: torch.dtype
    mapped: list[MappedFile]
    quantization: str | None = None
    mp_shards: int | None = None
    context_length: int | None = None

    @abstractmethod
    def __init__(
        self, folder: Path, max_seq_len: int = 2048, max_batch_size: int = 1, *, agree: bool = True
    ) -> None:
        """Open the folder; see `open_checkpoint` for the arguments and errors."""

    @classmethod
    @abstractmethod
    def recognizes(cls, folder: Path) -> bool:
        """Whether the folder looks like one of this layout, by its file names."""

    @abstractmethod
    def parts(self, name: str, rows: Range, columns: Range | None) -> Iterator[Part]:
        """The pieces of mapped files that fill the window rows x columns of a tensor, in Meta's row order.

        Only of tensors that `is_mapped`.
        """

    @abstractmethod
    def stored(self) -> Iterator[tuple[str, Path, torch.Tensor]]:
        """Every tensor as stored: its name in the file, the file, the mapped tensor; of blocks, their scales."""

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that the weight files hold; None if it is a file of its own.

        Raises:
            TokenizerError: it is none that this runtime reads.
        """
        return None

    def disagreements(self) -> list[str]:
        """Replicated weights whose values differ between `mp_shards`: the shards belong to different models."""
        return []

    def details(self) -> Iterator[tuple[str, str]]:
        """What `info` tells of this layout alone: label and text of each line."""
        return iter(())

    # ---- quantized weights ----

    @cached_property
    def notes(self) -> list[str]:
        """See above; a subclass adds to it."""
        return []

    @property
    def is_quantized(self) -> bool:
        """Whether any matrix is quantized."""
        return any(
            self.form(name, (0, shape[1])) is not None
            for name, shape in self.shapes.items()
            if len(shape) == 2
        )

    def form(self, name: str, columns: Range) -> Form | None:
        """How the window `columns` of a matrix is quantized; None if it is stored plain. See `Form`."""
        return None

    def blocks(self, name: str, rows: Range, columns: Range) -> Blocks:
        """Rows of a quantized matrix, in Meta's row order, with the columns of `form(name, columns)`."""
        raise NotImplementedError

    def raw(self, name: str, rows: Range, columns: Range) -> RawRows | None:
        """What `blocks` would be made of, as it lies in the file: `windows` walks it. None if only `blocks` tells."""
        return None

    def not_finite(self, name: str, rows: Range) -> CheckpointFormatError:
        """The error that says that a scale in some rows is NaN or infinite."""
        return CheckpointFormatError(
            f"{self.folder}: {name} has a scale that is NaN or infinite in rows {rows[0]:,} to {rows[1]:,};"
            " download the file again"
        )

    def is_mapped(self, name: str) -> bool:
        """Whether `parts` gives a tensor as it is stored. Otherwise `compute` makes its values."""
        return len(self.shapes[name]) == 1 or self.form(name, (0, self.shapes[name][1])) is None

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype that holds a tensor's values as they are: of computed ones float32."""
        return self.dtype if self.is_mapped(name) else torch.float32

    def compute(self, name: str, rows: Range, columns: Range | None) -> torch.Tensor:
        """A window of a tensor whose values are computed, in float32. A few MB: `read` asks for some rows at a time."""
        assert columns is not None
        return in_order(self.blocks(name, rows, columns), columns[1] - columns[0])

    # ---- windows ----

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The full shape of every tensor, by Meta's names."""
        return expected_shapes(self.args)

    @property
    def shards(self) -> int:
        """Number of weight files."""
        return len(self.files)

    def read(self, name: str, out: torch.Tensor, rows: Range, columns: Range | None = None) -> None:
        """Fill `out` with a window of a tensor, converting dtype and device."""
        if not self.is_mapped(name):
            width = 1 if columns is None else columns[1] - columns[0]
            step = max(1, _COMPUTED // max(1, 4 * width))
            for first in range(0, rows[1] - rows[0], step):
                last = min(first + step, rows[1] - rows[0])
                out[first:last].copy_(self.compute(name, (rows[0] + first, rows[0] + last), columns))
            return
        for source, to_rows, to_columns in self.parts(name, rows, columns):
            target = out[to_rows] if to_columns is None else out[to_rows, to_columns]
            for first, window in self.windows(source):
                target[first : first + len(window)].copy_(window)

    def windows(self, source: torch.Tensor, multiple: int = 1) -> Iterator[tuple[int, torch.Tensor]]:
        """Walk a weight in windows of rows: (first row, window). A window's rows are a multiple of `multiple`.

        Pages of a mapped file are given back after each window; otherwise they would count as this process's
        memory. Other memory, such as weights that a layout computes, is left alone: its pages would come back
        as zeros.

        Raises:
            CheckpointFormatError: the file was truncated since it was opened. Touching the lost bytes could
                end the process first (SIGBUS) or read zeros, so the size is checked before each window and
                after the last.
        """
        file = next((each for each in self.mapped if each.holds(source)), None)
        row_bytes = source.stride(0) * source.element_size()
        rows = max(1, _WINDOW // max(1, row_bytes) // multiple) * multiple
        for first in range(0, source.shape[0], rows):
            window = source[first : first + rows]
            if file is not None:
                file.check()
            yield first, window
            if file is not None:
                # Up to the last element, not the end of its row: a slice of columns would reach past the file.
                last = sum((n - 1) * stride for n, stride in zip(window.shape, window.stride(), strict=True))
                huge_pages.drop(window.data_ptr(), (last + 1) * source.element_size())
        if file is not None:
            file.check()

    def slice_of(self, name: str, rank: int, size: int) -> tuple[Range, Range | None]:
        """The rows and columns of a tensor that model-parallel rank `rank` of `size` holds."""
        shape = self.shapes[name]
        ranges = [(0, extent) for extent in shape]
        axis = axis_of(name)
        if axis is not None:
            ranges[axis] = wanted_range(name, shape[axis], self.args, rank, size)
        return ranges[0], ranges[1] if len(ranges) > 1 else None

    def copy_slice(self, name: str, out: torch.Tensor, rank: int, size: int) -> None:
        """Fill `out` with the slice of a tensor that rank `rank` of `size` holds (see `slice_of`, `read`)."""
        self.read(name, out, *self.slice_of(name, rank, size))


def dtype_name(dtype: torch.dtype) -> str:
    """The name without "torch.", e.g. bfloat16."""
    return str(dtype).removeprefix("torch.")


def checked_dtype(dtype: torch.dtype, folder: Path) -> torch.dtype:
    """The dtype of a checkpoint's weights, if this runtime reads it.

    Raises:
        CheckpointFormatError: integers, as in a quantized checkpoint, or 8-bit floats.
    """
    if dtype not in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        raise CheckpointFormatError(
            f"{folder} holds weights of {dtype}, as a quantized checkpoint does; this runtime reads bfloat16, float16,"
            " float32 and float64"
        )
    return dtype
