"""A checkpoint with an adapter: W + scaling * B A, window by window, while the weights are read.

The product is made in float64 and rounded once, to float32. Sums are added up in another order for each size of window;
in float64 that does not reach the bits that are kept (of 16-bit adapters never, of float32 once in 10^8 or so), so any
number of ranks has the same model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from ...kernels.quantized import BLOCK, Blocks, Form, RawRows, form_of, to_int8
from ..base import Checkpoint, Part, Range
from ..files import as_path
from ..layouts.hugging_face import rotary_heads
from ..wrapped import WrappedCheckpoint
from .adapter import Adapter, open_adapter

__all__ = ["AdaptedCheckpoint", "adapter_of", "with_adapter"]

# Weights that are in float64 at a time: so few that they stay in the CPU's caches, which halves the time.
_PRODUCT = 1 << 18


class AdaptedCheckpoint(WrappedCheckpoint):
    """A checkpoint whose weights an adapter changes.

    Weights that were quantized are merged in float32, and quantized again to int8 where `blocks` gives them; `read`
    gives them without that second rounding.

    Args:
        source: the base model.
        adapter: has been checked against it.
    """

    def __init__(self, source: Checkpoint, adapter: Adapter) -> None:
        super().__init__(source)
        self.adapter = adapter
        self.mapped = [*source.mapped, adapter.tensors.file]
        again = [
            name
            for name in adapter.changes
            if len(shape := self.shapes[name]) == 2 and self.form(name, (0, shape[1])) is not None
        ]
        if again:
            self.notes.append(
                f"{len(again)} quantized matrices that the adapter changes are quantized again, to int8"
            )

    def is_mapped(self, name: str) -> bool:
        return name not in self.adapter.changes and self.source.is_mapped(name)

    def parts(self, name: str, rows: Range, columns: Range | None) -> Iterator[Part]:
        if name in self.adapter.changes:
            raise ValueError(f"{name} is changed by the adapter: no file holds its values")
        return self.source.parts(name, rows, columns)

    def stored(self) -> Iterator[tuple[str, Path, torch.Tensor]]:
        yield from self.source.stored()
        for name, tensor in self.adapter.tensors.items():
            yield name, self.adapter.path, tensor

    def form(self, name: str, columns: Range) -> Form | None:
        found, total = self.source.form(name, columns), self.shapes[name][1]
        if found is None or name not in self.adapter.changes:
            return found
        return form_of("int8", columns, BLOCK, total) if total % BLOCK == 0 else None

    def blocks(self, name: str, rows: Range, columns: Range) -> Blocks:
        if name not in self.adapter.changes:
            return self.source.blocks(name, rows, columns)
        form = self.form(name, columns)
        assert form is not None
        first = columns[0] // BLOCK * BLOCK  # where form_of begins
        found = to_int8(self.compute(name, rows, (first, first + form.columns)))
        return Blocks(form, found.codes, found.scales)

    def raw(self, name: str, rows: Range, columns: Range) -> RawRows | None:
        return None if name in self.adapter.changes else self.source.raw(name, rows, columns)

    def compute(self, name: str, rows: Range, columns: Range | None) -> torch.Tensor:
        change = self.adapter.changes.get(name)
        if change is None:
            return self.source.compute(name, rows, columns)
        self.adapter.tensors.file.check()
        own = self._rows(name, rows)
        across = slice(None) if columns is None else slice(*columns)
        size = [rows[1] - rows[0], *([] if columns is None else [columns[1] - columns[0]])]
        base = torch.empty(size, dtype=torch.float32)
        if change.weight is None:
            self.source.read(name, base, rows, columns)
        else:
            base.copy_(change.weight[own] if columns is None else change.weight[own, across])
        if change.update is not None:
            left, right = change.update.left[own].double(), change.update.right[:, across].double()
            step = max(1, _PRODUCT // max(1, base.shape[1]))
            for some, rows_of in zip(torch.split(base, step), torch.split(left, step), strict=True):
                some.copy_((rows_of @ right).mul_(change.update.scaling).add_(some))
        return base

    def _rows(self, name: str, rows: Range) -> torch.Tensor | slice:
        """Where the adapter has the given rows: it has those of wq and wk in Hugging Face's order."""
        heads = rotary_heads(name, self.args.n_heads, self.args.kv_heads)
        if not heads:
            return slice(*rows)
        pairs = torch.arange(self.shapes[name][0]).view(heads, 2, -1)
        return pairs.transpose(1, 2).flatten()[rows[0] : rows[1]]


def adapter_of(checkpoint: Checkpoint) -> Adapter | None:
    """The adapter that is merged into a checkpoint, if there is one."""
    while not isinstance(checkpoint, AdaptedCheckpoint):
        if not isinstance(checkpoint, WrappedCheckpoint):
            return None
        checkpoint = checkpoint.source
    return checkpoint.adapter


def with_adapter(checkpoint: Checkpoint, folder: str | os.PathLike[str]) -> AdaptedCheckpoint:
    """The checkpoint with the adapter in PEFT's folder. See `open_adapter` for the errors."""
    return AdaptedCheckpoint(
        checkpoint, open_adapter(as_path(folder, "the adapter's folder"), checkpoint.shapes)
    )
