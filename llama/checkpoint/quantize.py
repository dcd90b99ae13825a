"""A plain checkpoint, quantized while it is read: `Llama.build(quantize="int8")`, or "int4".

All matrices of products, block by block; the embedding and the norms stay as they are. sizing/quantization.py says
which format each matrix gets. Blocks are counted from a row's first column, whatever window is read, so all numbers of
ranks get the same codes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..errors import CheckpointFormatError, ConfigError
from ..kernels.quantized import BLOCK, FORMATS, Blocks, Form, form_of, to_int8
from ..kernels.quantizers import to_int4, to_k4
from ..printable import shown
from ..sizing.quantization import QUANTIZATIONS, quantized_format
from ..sizing.shapes import is_product
from .base import Checkpoint, Range
from .wrapped import WrappedCheckpoint

__all__ = ["QuantizingCheckpoint", "check_quantize", "quantized"]

_QUANTIZERS: dict[str, Callable[[torch.Tensor], Blocks]] = {"int8": to_int8, "int4": to_int4, "k4": to_k4}


class QuantizingCheckpoint(WrappedCheckpoint):
    """A plain checkpoint whose matrices are quantized.

    Args:
        source: it is plain.
        quantize: "int8" or "int4".
    """

    def __init__(self, source: Checkpoint, quantize: str) -> None:
        super().__init__(source)
        self.quantization = quantize
        self.formats = {name: quantized_format(name, shape, quantize) for name, shape in self.shapes.items()}
        plain = [name for name, kind in self.formats.items() if kind is None and is_product(name)]
        if plain:
            rows = sorted({self.shapes[name][1] for name in plain})
            self.notes.append(
                f"{len(plain)} matrices are not quantized: their rows of {', '.join(map(str, rows))} are not whole"
                f" blocks of {BLOCK}"
            )

    def form(self, name: str, columns: Range) -> Form | None:
        kind = self.formats[name]
        if kind is None:
            return None
        return form_of(kind, columns, FORMATS[kind].group or BLOCK, self.shapes[name][1])

    def blocks(self, name: str, rows: Range, columns: Range) -> Blocks:
        kind, form = self.formats[name], self.form(name, columns)
        assert kind is not None
        assert form is not None
        group = FORMATS[kind].group or BLOCK
        first = columns[0] // BLOCK * BLOCK  # where form_of begins
        # Whole groups: their scales come from all their weights.
        start, stop = first // group * group, -(-(first + form.columns) // group) * group
        weight = torch.empty(rows[1] - rows[0], stop - start)
        self.source.read(name, weight, rows, (start, stop))
        found = _QUANTIZERS[kind](weight)
        if not bool(found.scales.isfinite().all()):
            raise CheckpointFormatError(
                f"{name} in {self.folder} has values that are NaN, infinite or too large for a float16 scale, in rows"
                f" {rows[0]:,} to {rows[1]:,}; check it with `codellama verify`, or load it without quantize"
            )
        return _cut(found, first - start, form)

    def is_mapped(self, name: str) -> bool:
        return self.formats[name] is None and self.source.is_mapped(name)

    def compute(self, name: str, rows: Range, columns: Range | None) -> torch.Tensor:
        if self.formats[name] is None:
            return self.source.compute(name, rows, columns)
        return Checkpoint.compute(self, name, rows, columns)


def _cut(blocks: Blocks, skip: int, form: Form) -> Blocks:
    """The columns of `form`, the first of which is column `skip` of the blocks."""
    if form.columns == blocks.form.columns:
        return Blocks(form, blocks.codes, blocks.scales, blocks.zeros)
    scales = blocks.scales.repeat_interleave(blocks.form.group // form.group, 1)
    zeros = None
    if blocks.zeros is not None:
        zeros = blocks.zeros[:, skip // BLOCK : (skip + form.columns) // BLOCK].contiguous()
    return Blocks(
        form,
        blocks.codes[:, skip : skip + form.columns].contiguous(),
        scales[:, skip // form.group : skip // form.group + form.groups].contiguous(),
        zeros,
    )


def check_quantize(quantize: object) -> None:
    """Raise ConfigError unless it is "int8", "int4" or None."""
    if quantize is not None and quantize not in QUANTIZATIONS:
        raise ConfigError(
            f"quantize is {shown(quantize)}; use {' or '.join(map(repr, QUANTIZATIONS))}, or leave it out"
        )


def quantized(checkpoint: Checkpoint, quantize: str) -> QuantizingCheckpoint:
    """The checkpoint, quantized while it is read.

    Raises:
        ConfigError: `quantize` is unknown, or the checkpoint is quantized already.
    """
    check_quantize(quantize)
    if checkpoint.is_quantized:
        where = checkpoint.files[0] if checkpoint.layout == "GGUF" else checkpoint.folder
        raise ConfigError(
            f"{where} is quantized already ({checkpoint.quantization}), so quantize={quantize!r} cannot"
            " apply: leave it out, or name the unquantized checkpoint"
        )
    return QuantizingCheckpoint(checkpoint, quantize)
