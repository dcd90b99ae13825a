"""The numbers of a quantized weight, whatever file they come from, before they are laid out for a kernel.

Codes are small unsigned integers. 32 neighbouring inputs of a row are a block; the scale of a group of blocks
turns codes into weights:

    format        weight                     kept beside the codes                       from
    int8          s (q - 128)                f16 s for each 32                           GGUF's Q8_0
    int4          s (q - 8)                  f16 s for each 32                           GGUF's Q4_0
    int8z, int4z  s (q - z)                  f16 s and u8 z for each group               GPTQ, AWQ
    k4            d a q - e b                u8 a, b for each 32; f16 d, e for each 256  GGUF's Q4_K

A checkpoint gives windows of `Blocks`, weights.py packs them, and csrc/quantized.c multiplies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

__all__ = [
    "BLOCK",
    "FORMATS",
    "Blocks",
    "Form",
    "Quantization",
    "RawRows",
    "dequantize",
    "form_of",
    "in_order",
    "to_int8",
]

# Inputs of a block: of a row of x they share a scale.
BLOCK = 32


class Quantization(NamedTuple):
    """A format of `FORMATS`.

    Args:
        number: as in csrc/numbers.h.
        bits: of a code.
        zero: the code of weight 0, if it is the same for all.
        parts: numbers that a group has in `scales`: s, or d and e.
        group: inputs of a group, if the format fixes it.
    """

    number: int
    bits: int
    zero: int | None
    parts: int = 1
    group: int | None = None


FORMATS = {
    "int8": Quantization(3, 8, 128, group=32),
    "int4": Quantization(4, 4, 8, group=32),
    "int8z": Quantization(5, 8, None),
    "int4z": Quantization(6, 4, None),
    "k4": Quantization(7, 4, None, parts=2, group=256),
}


@dataclass(frozen=True, eq=False)
class Form:
    """How a window of columns of a weight is quantized.

    Args:
        format: a name in FORMATS.
        columns: of the codes, a multiple of 32; more than x has where a slice was widened to whole blocks.
        group: inputs that share a scale, a multiple of 32. The last group may end early.
        order: (columns,) int32: which column of x each column of codes reads, -1 for none (a weight of 0 then);
            None where x is read as it is.
    """

    format: str
    columns: int
    group: int
    order: torch.Tensor | None = None

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return -(-self.columns // self.group)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Some rows of a quantized weight, with all columns of its `Form`.

    Args:
        form: of them.
        codes: (rows, columns) uint8, one code each.
        scales: (rows, groups) float16; of k4 (rows, groups, 2): d and e.
        zeros: (rows, groups) uint8 of int8z and int4z; of k4 (rows, columns / 32, 2): a and b; else None.
    """

    form: Form
    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class RawRows:
    """Rows of a quantized weight as the blocks of a GGUF file, which may be a window of the mapped file.

    Args:
        kind: their type, as llama.cpp writes it, e.g. "Q4_K".
        data: (rows, blocks, bytes of a block) uint8; the blocks of a row lie side by side.
        skip: weights of the first block that come before the first column of the `Form`, a multiple of its group.
    """

    kind: str
    data: torch.Tensor
    skip: int


def form_of(kind: str, columns: tuple[int, int], group: int, total: int) -> Form:
    """The form of the columns [start, stop) of a row of `total`, whose groups begin at its first column.

    The window is widened to whole blocks: `columns[0] // 32 * 32` to the next multiple of 32, at most `total`. Where
    it begins within a group, groups become smaller, so that scales repeat.
    """
    first, last = columns[0] // BLOCK * BLOCK, min(-(-columns[1] // BLOCK) * BLOCK, total)
    order = None
    if (first, last) != columns:
        order = torch.arange(first - columns[0], last - columns[0], dtype=torch.int32)
        order[order >= columns[1] - columns[0]] = -1
        order.clamp_(min=-1)
    return Form(kind, last - first, math.gcd(group, first), order)


def dequantize(blocks: Blocks) -> torch.Tensor:
    """The weights (rows, columns) in float32, in the order of the codes; rounded as the formats' definitions are."""
    form, columns = blocks.form, blocks.codes.shape[1]
    quantization = FORMATS[form.format]
    codes = blocks.codes.float()
    scales = _spread(blocks.scales.float(), form.group, columns)
    if quantization.zero is not None:
        return (codes - quantization.zero).mul_(scales)
    assert blocks.zeros is not None
    if quantization.parts == 1:
        return codes.sub_(_spread(blocks.zeros.float(), form.group, columns)).mul_(scales)
    zeros = _spread(blocks.zeros.float(), BLOCK, columns)
    parts = scales * zeros  # d a, e b: exact
    return codes.mul_(parts[..., 0]).sub_(parts[..., 1])


def in_order(blocks: Blocks, columns: int) -> torch.Tensor:
    """The weights (rows, columns) in float32, in the order of x, which has so many columns."""
    found, order = dequantize(blocks), blocks.form.order
    if order is None:
        return found
    read = order >= 0
    out = torch.zeros(len(found), columns)
    out[:, order[read].long()] = found[:, read]
    return out


def _spread(x: torch.Tensor, times: int, columns: int) -> torch.Tensor:
    """(rows, n, ...) -> (rows, columns, ...): each number `times` times."""
    return x.repeat_interleave(times, 1)[:, :columns]


def to_int8(weight: torch.Tensor) -> Blocks:
    """Weights (rows, columns) -> int8, each off by 1/250 of its block's largest, or by 3e-8, at most.

    The scale is rounded to float16 first, so that codes belong to the scale that is stored. float16 has few numbers
    below 6e-5: there it is rounded up, since too small a scale would cut off the largest weights. NaN and infinity give
    a scale that is not finite. 32 divides the columns.
    """
    rows, columns = weight.shape
    blocks = weight.float().reshape(rows, columns // BLOCK, BLOCK)
    exact = blocks.abs().amax(2) / 127
    scales = exact.half()
    too_small = (scales.float() < exact) & (exact < torch.finfo(torch.float16).tiny)
    scales = (scales.view(torch.int16) + too_small).view(torch.float16)
    inverse = torch.where(scales > 0, 1 / scales.float(), 0.0)
    codes = (blocks * inverse[..., None]).round_().clamp_(-128, 127).nan_to_num_(0)
    # From float32 to int8 takes a seventh of the time of float32 to uint8.
    codes = codes.to(torch.int8).view(torch.uint8).bitwise_xor_(128).reshape(rows, columns)
    return Blocks(Form("int8", columns, BLOCK), codes, scales)
