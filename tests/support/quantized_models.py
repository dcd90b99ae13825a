"""Weights quantized in each format, and a checkpoint whose matrices are: written here without the package's own
quantizers, which have their own tests."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from llama.checkpoint.base import Checkpoint, Range
from llama.checkpoint.wrapped import WrappedCheckpoint
from llama.kernels import native
from llama.kernels.quantized import FORMATS, Blocks, Form, form_of
from llama.kernels.quantized_weights import Quantized
from llama.kernels.weights import PackedWeight

__all__ = ["GROUPS", "QuantizedTwin", "laid_out", "packed", "quantized"]

# Inputs of a group, of each format.
GROUPS = {"int8": 32, "int4": 32, "int8z": 128, "int4z": 64, "k4": 256}


def quantized(kind: str, weight: torch.Tensor, group: int | None = None) -> Blocks:
    """A weight (rows, columns), in groups from its first column; 32 divides the columns."""
    group = group or GROUPS[kind]
    form = Form(kind, weight.shape[1], group)
    bits = FORMATS[kind].bits
    if kind in ("int8", "int4"):
        zero = 1 << (bits - 1)
        scales = (per_group(weight.abs(), group, "amax") / (zero - 1)).half()
        codes = (weight / spread(scales, group, weight)).round() + zero
        return Blocks(form, codes.clamp(0, 2 * zero - 1).byte(), scales)
    least, most = (
        per_group(weight, group, "amin").clamp(max=0),
        per_group(weight, group, "amax").clamp(min=1e-4),
    )
    if kind != "k4":
        scales = ((most - least) / ((1 << bits) - 1)).half()
        zeros = (-least / scales).round().clamp(0, (1 << bits) - 1).byte()
        codes = (weight / spread(scales, group, weight)).round() + spread(zeros, group, weight)
        return Blocks(form, codes.clamp(0, (1 << bits) - 1).byte(), scales, zeros)
    least, most = per_group(weight, 32, "amin").clamp(max=0), per_group(weight, 32, "amax").clamp(min=1e-4)
    wide = torch.stack(((most - least) / 15, -least), 2)  # (rows, columns / 32, 2)
    scales = torch.stack([per_group(part, group // 32, "amax") for part in wide.unbind(2)], 2).div(63).half()
    each = torch.stack([spread(part, group // 32, wide) for part in scales.unbind(2)], 2)
    zeros = (wide / each).round().nan_to_num(0).clamp(0, 63).byte()
    by = each * zeros
    codes = ((weight + spread(by[..., 1], 32, weight)) / spread(by[..., 0], 32, weight)).nan_to_num(0)
    return Blocks(form, codes.round().clamp(0, 15).byte(), scales, zeros)


def per_group(x: torch.Tensor, group: int, what: str) -> torch.Tensor:
    """(rows, columns) -> (rows, groups), of which the last may end early."""
    return torch.stack([getattr(part, what)(1) for part in x.split(group, 1)], 1)


def spread(x: torch.Tensor, group: int, like: torch.Tensor) -> torch.Tensor:
    return x.float().repeat_interleave(group, 1)[:, : like.shape[1]]


def laid_out(blocks: Blocks) -> dict[str, torch.Tensor]:
    """Codes, scales and zeros as csrc/matrix.h has them: 16 rows a group, the last one filled up with zeros."""

    def grouped(x: torch.Tensor) -> torch.Tensor:
        x = torch.cat((x, x.new_zeros(-len(x) % 16, *x.shape[1:])))
        return x.unflatten(0, (-1, 16))

    codes = grouped(blocks.codes)
    if FORMATS[blocks.form.format].bits == 4:
        low, high = codes.unflatten(2, (-1, 2, 4)).unbind(3)  # inputs k..k+3, k+4..k+7
        codes = high << 4 | low
    else:
        codes = codes.unflatten(2, (-1, 4))
    found = {
        "codes": codes.transpose(1, 2).contiguous(),
        "scales": grouped(blocks.scales).movedim(1, -1).contiguous(),
    }
    return (
        found
        if blocks.zeros is None
        else found | {"zeros": grouped(blocks.zeros).movedim(1, -1).contiguous()}
    )


def packed(blocks: Blocks, columns: int | None = None, dtype: torch.dtype = torch.float16) -> PackedWeight:
    """A weight in these blocks for the kernels in use, or for none; `columns`: of x."""
    form = Quantized(blocks.form.format, blocks.form.group, native.kernels())
    shape = len(blocks.codes), columns or blocks.form.columns
    return PackedWeight(form, shape, **laid_out(blocks), order=blocks.form.order, plain_dtype=dtype)


# Of all twins, by format, shape and content: many tests quantize the same few weights.
_QUANTIZED: dict[tuple[str, tuple[int, ...], str], Blocks] = {}


class QuantizedTwin(WrappedCheckpoint):
    """Another checkpoint, whose matrices are quantized.

    Args:
        kinds: a format for each matrix, in turn.
        act_order: let each matrix's columns belong to groups by chance, as GPTQ's act-order does.
    """

    def __init__(self, source: Checkpoint, *kinds: str, act_order: bool = False) -> None:
        super().__init__(source)
        self.dtype, self.quantization = torch.float16, "Q_TEST"
        self._act_order = act_order
        names = [name for name, shape in self.shapes.items() if len(shape) == 2]
        self._kinds = {name: kinds[i % len(kinds)] for i, name in enumerate(names)}
        self._whole: dict[str, Blocks] = {}
        self.read_rows: dict[str, list[int]] = {name: [] for name in names}

    def _group(self, name: str) -> int:
        return GROUPS[self._kinds[name]]

    def _permutation(self, columns: int) -> torch.Tensor:
        """Of the columns of a matrix: which stands at each place of the quantized one."""
        if not self._act_order:
            return torch.arange(columns)
        return torch.randperm(columns, generator=torch.Generator().manual_seed(columns))

    def whole(self, name: str) -> Blocks:
        if name not in self._whole:
            weight = torch.empty(self.shapes[name])
            self.source.read(name, weight, (0, weight.shape[0]), (0, weight.shape[1]))
            permuted = weight[:, self._permutation(weight.shape[1])]
            content = hashlib.blake2b(permuted.numpy().tobytes()).hexdigest()
            key = self._kinds[name], tuple(permuted.shape), content
            if key not in _QUANTIZED:
                _QUANTIZED[key] = quantized(self._kinds[name], permuted)
            self._whole[name] = _QUANTIZED[key]
        return self._whole[name]

    def is_mapped(self, name: str) -> bool:
        return name not in self._kinds

    def compute(self, name: str, rows: Range, columns: Range | None) -> torch.Tensor:
        return Checkpoint.compute(self, name, rows, columns)

    def form(self, name: str, columns: Range) -> Form | None:
        if name not in self._kinds:
            return None
        total = self.shapes[name][1]
        if not self._act_order:
            return form_of(self._kinds[name], columns, self._group(name), total)
        places = self._places(name, columns)
        permutation = self._permutation(total)
        order = torch.where(places < 0, -1, permutation[places] - columns[0]).to(torch.int32)
        return Form(self._kinds[name], len(order), 32, order)

    def _places(self, name: str, columns: Range) -> torch.Tensor:
        """Which place of the whole each column of codes has; groups are filled up to whole blocks with -1."""
        permutation = self._permutation(self.shapes[name][1])
        found = []
        for first in range(0, len(permutation), self._group(name)):
            group = torch.arange(first, min(first + self._group(name), len(permutation)))
            mine = group[(permutation[group] >= columns[0]) & (permutation[group] < columns[1])]
            found.append(torch.cat((mine, mine.new_full((-len(mine) % 32,), -1))))
        return torch.cat(found)

    def blocks(self, name: str, rows: Range, columns: Range) -> Blocks:
        self.read_rows[name].append(rows[1] - rows[0])
        form, whole = self.form(name, columns), self.whole(name)
        assert form is not None
        if self._act_order:
            places = self._places(name, columns).clamp(min=0)
        else:
            places = torch.arange(form.columns) + columns[0] // 32 * 32
        at = slice(*rows)
        first_of_groups = places[:: form.group]
        zeros: Any = whole.zeros
        if zeros is not None:
            per = 32 if self._kinds[name] == "k4" else self._group(name)
            zeros = zeros[at][:, (places[::32] if per == 32 else first_of_groups) // per]
        scales = whole.scales[at][:, first_of_groups // self._group(name)]
        return Blocks(form, whole.codes[at][:, places].contiguous(), scales.contiguous(), zeros)
