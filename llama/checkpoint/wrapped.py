"""A checkpoint around another one, which changes some of its weights while they are read.

Whatever a wrapper does not change comes from the checkpoint within. A wrapper of a wrapper works too.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import torch

from ..errors import CheckpointFormatError
from ..kernels.quantized import Blocks, Form, RawRows
from ..tokenizer import Tokenizer
from .base import Checkpoint, Part, Range

__all__ = ["WrappedCheckpoint"]


class WrappedCheckpoint(Checkpoint):
    """Another checkpoint, unchanged. A subclass overrides what it changes.

    To change the values of a tensor, say False in `is_mapped` and give them in `compute`; `read` then uses them. If
    the tensor is to be quantized, give `form` and `blocks` instead. To change an attribute, assign it.

    Args:
        source: the checkpoint within. Its attributes become this one's.
    """

    def __init__(self, source: Checkpoint) -> None:
        self.source = source
        for name in inspect.get_annotations(Checkpoint):
            setattr(self, name, getattr(source, name))
        self.notes = [*source.notes]

    @classmethod
    def recognizes(cls, folder: Path) -> bool:
        """No folder: a wrapper goes around a checkpoint that a layout opened."""
        return False

    def parts(self, name: str, rows: Range, columns: Range | None) -> Iterator[Part]:
        return self.source.parts(name, rows, columns)

    def stored(self) -> Iterator[tuple[str, Path, torch.Tensor]]:
        return self.source.stored()

    def tokenizer(self) -> Tokenizer | None:
        return self.source.tokenizer()

    def details(self) -> Iterator[tuple[str, str]]:
        return self.source.details()

    def disagreements(self) -> list[str]:
        return self.source.disagreements()

    def form(self, name: str, columns: Range) -> Form | None:
        return self.source.form(name, columns)

    def blocks(self, name: str, rows: Range, columns: Range) -> Blocks:
        return self.source.blocks(name, rows, columns)

    def raw(self, name: str, rows: Range, columns: Range) -> RawRows | None:
        # A subclass with blocks of its own must not be passed by: it says itself which matrices it leaves alone.
        own = type(self).blocks is not WrappedCheckpoint.blocks
        return None if own else self.source.raw(name, rows, columns)

    def not_finite(self, name: str, rows: Range) -> CheckpointFormatError:
        return self.source.not_finite(name, rows)

    def is_mapped(self, name: str) -> bool:
        return self.source.is_mapped(name)

    def dtype_of(self, name: str) -> torch.dtype:
        return self.source.dtype_of(name) if self.is_mapped(name) else torch.float32

    def compute(self, name: str, rows: Range, columns: Range | None) -> torch.Tensor:
        return self.source.compute(name, rows, columns)
