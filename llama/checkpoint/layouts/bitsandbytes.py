"""bitsandbytes weights, as transformers saves them: 4 bit (nf4, fp4) and LLM.int8.

4 bit. The values of a weight (out, in), row after row, are cut into blocks of `blocksize`:

    weight            (out * in / 2, 1) uint8   two codes a byte, the first in the high bits
    weight.quant_map  (16,) float32             the value of each code, from -1 to 1
    weight.absmax     (blocks,)                 float32; or uint8, quantized again ("double quantization"):
    weight.nested_quant_map (256,), weight.nested_absmax (blocks / nested_blocksize,) float32
    weight.quant_state.bitsandbytes__nf4        JSON as uint8: quant_type, blocksize, shape, nested_blocksize, ...

    value = quant_map[code] * absmax[block],  absmax = nested_quant_map[code] * nested_absmax[block] + nested_offset

LLM.int8: `weight` (out, in) int8 and `SCB` (out,); value = weight * SCB / 127. Its threshold for outliers concerns
activations only.

There is no kernel for these, so `blocks` quantizes the values again, to int8. `values` has them as stored.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from ...kernels.quantized import BLOCK, Blocks, Form, form_of, to_int8
from ...printable import shown
from ...sizing.budget import amount
from ..base import Range
from ..files import strict_object
from .hf_quantized import QuantizedMatrix, Scheme, StoredLinear, only, whole_blocks

__all__ = ["BitsAndBytes", "Requantized"]

_STATE = "weight.quant_state.bitsandbytes__"
# Rows that are quantized again at a time: what is computed of them stays in the CPU's caches.
_ROWS = 16
# A quant_state has 200 bytes.
_LONGEST_STATE = 1 << 16


class BitsAndBytes(Scheme):
    """bitsandbytes with the settings of a config.

    Raises:
        ConfigError: settings that this runtime does not read; the message names them.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        four = only(config, "load_in_4bit", False, False, True)
        only(config, "load_in_8bit", not four, not four)
        self.kind = "int8"
        self.endings: tuple[str, ...] = ("weight", "SCB", "weight_format", "bias")
        if four:
            self.kind = only(config, "bnb_4bit_quant_type", "fp4", "nf4", "fp4")
            only(config, "bnb_4bit_quant_storage", "uint8", "uint8", None)
            parts = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
            self.endings = ("weight", *(f"weight.{part}" for part in parts), f"{_STATE}{self.kind}", "bias")
        self._mark = f"{_STATE}{self.kind}" if four else "SCB"
        self.title = f"bitsandbytes {self.kind}"

    def is_quantized(self, endings: Iterable[str]) -> bool:
        return self._mark in endings

    def notes(self, shapes: Iterable[tuple[int, ...]]) -> Iterator[str]:
        sizes = [math.prod(shape) for shape in shapes]
        stored, ours = sum(sizes) * (8 if self.kind == "int8" else 4.5) / 8, sum(sizes) * 8.5 / 8
        yield (
            f"{len(sizes)} matrices in {self.title}, which has no kernel, are quantized again, to int8 (where int8 has"
            f" one): {amount(ours)} instead of about {amount(stored)}"
        )

    def matrix(self, linear: StoredLinear) -> QuantizedMatrix:
        if linear.inputs % BLOCK:
            raise linear.mismatch(f"has {linear.inputs} inputs, which {BLOCK} does not divide")
        linear.without_bias()
        return _Int8Matrix(linear) if self.kind == "int8" else _FourBitMatrix(self.kind, linear)


class Requantized(QuantizedMatrix):
    """A matrix whose values become int8."""

    _linear: StoredLinear

    def form(self, columns: Range) -> Form:
        return form_of("int8", columns, BLOCK, self._linear.inputs)

    def blocks(self, rows: Range, columns: Range) -> Blocks:
        form, read = self.form(columns), whole_blocks(columns, self._linear.inputs)
        codes = torch.empty(rows[1] - rows[0], form.columns, dtype=torch.uint8)
        scales = torch.empty(rows[1] - rows[0], form.groups, dtype=torch.float16)
        for first in range(*rows, _ROWS):
            found = to_int8(self._aligned((first, min(first + _ROWS, rows[1])), read))
            at = slice(first - rows[0], first - rows[0] + _ROWS)
            codes[at], scales[at] = found.codes, found.scales
        return Blocks(form, codes, scales)

    def values(self, rows: Range, columns: Range) -> torch.Tensor:
        read = whole_blocks(columns, self._linear.inputs)
        return self._aligned(rows, read)[:, columns[0] - read[0] : columns[1] - read[0]]

    @abstractmethod
    def _aligned(self, rows: Range, columns: Range) -> torch.Tensor:
        """A window of whole blocks of 32, in float32."""


class _Int8Matrix(Requantized):
    def __init__(self, linear: StoredLinear) -> None:
        self._linear = linear
        self._weight = linear.take("weight", (linear.outputs, linear.inputs), torch.int8)
        self._scales = linear.take("SCB", (linear.outputs,), torch.float32, torch.float16)
        linear.finite("SCB")
        if "weight_format" in linear:
            order = linear.copied(linear.take("weight_format", (), torch.uint8).view(1)).item()
            if order != 0:
                raise linear.mismatch(
                    f"has weight_format {order}, an order for one kind of GPU; this runtime reads rows (0): load it in"
                    " transformers with bitsandbytes 0.45 or later, and save it again"
                )

    def _aligned(self, rows: Range, columns: Range) -> torch.Tensor:
        codes = self._linear.copied(self._weight[rows[0] : rows[1], columns[0] : columns[1]])
        scales = self._linear.copied(self._scales[rows[0] : rows[1]]).float()
        return codes.float().mul_(scales[:, None] / 127)


class _FourBitMatrix(Requantized):
    def __init__(self, kind: str, linear: StoredLinear) -> None:
        self._linear = linear
        size = linear.outputs * linear.inputs
        state = self._state(kind)
        self._blocksize = self._count(state, "blocksize")
        self._weight = linear.take("weight", (size // 2, 1), torch.uint8).view(
            linear.outputs, linear.inputs // 2
        )
        codes = linear.copied(linear.take("weight.quant_map", (16,), torch.float32))
        linear.finite("weight.quant_map")
        # The two values of each byte, in the memory of one number.
        self._pairs = torch.stack((codes.repeat_interleave(16), codes.repeat(16)), 1).view(torch.int64)[:, 0]
        blocks = -(-size // self._blocksize)
        self._nested: tuple[torch.Tensor, torch.Tensor, int, float] | None = None
        if "weight.nested_absmax" in linear:
            self._absmax = linear.take("weight.absmax", (blocks,), torch.uint8)
            self._nested = self._nested_scales(state, blocks)
        else:
            self._absmax = linear.take("weight.absmax", (blocks,), torch.float32)
            linear.finite("weight.absmax")

    def _state(self, kind: str) -> dict[str, Any]:
        linear, ending = self._linear, f"{_STATE}{kind}"
        stored = linear.tensors[ending][1]
        if stored.dtype != torch.uint8 or stored.dim() != 1 or len(stored) > _LONGEST_STATE:
            raise linear.mismatch(
                f"has {ending} of {stored.dtype} and {list(stored.shape)}; it should be JSON text, in uint8"
            )
        try:
            state = strict_object(bytes(linear.copied(stored).tolist()))
        except ValueError as error:
            raise linear.mismatch(f"has a broken {ending}: {error}") from error
        wanted = [linear.outputs, linear.inputs]
        if state.get("quant_type") != kind or state.get("shape") != wanted:
            raise linear.mismatch(
                f"has a quant_state of {shown(state.get('quant_type'))} and shape {shown(state.get('shape'))},"
                f" not {kind} and {wanted}"
            )
        return state

    def _count(self, state: Mapping[str, Any], key: str) -> int:
        value = state.get(key)
        if type(value) is not int or not 0 < value <= 1 << 20 or value % BLOCK:
            raise self._linear.mismatch(f"has {key} {shown(value)}; this runtime reads multiples of {BLOCK}")
        return value

    def _nested_scales(
        self, state: Mapping[str, Any], blocks: int
    ) -> tuple[torch.Tensor, torch.Tensor, int, float]:
        linear = self._linear
        size = self._count(state, "nested_blocksize")
        offset = state.get("nested_offset")
        if not isinstance(offset, float) or not math.isfinite(offset):
            raise linear.mismatch(f"has nested_offset {shown(offset)}, which is not a finite number")
        found = []
        for ending, count in (("weight.nested_quant_map", 256), ("weight.nested_absmax", -(-blocks // size))):
            found.append(linear.copied(linear.take(ending, (count,), torch.float32)))
            linear.finite(ending)
        return found[0], found[1], size, offset

    def _aligned(self, rows: Range, columns: Range) -> torch.Tensor:
        packed = self._linear.copied(self._weight[rows[0] : rows[1], columns[0] // 2 : columns[1] // 2])
        pairs = self._pairs.index_select(0, packed.view(-1).int())
        values = pairs.view(torch.float32).view(rows[1] - rows[0], (columns[1] - columns[0]) // BLOCK, BLOCK)
        # A block of 32 columns lies within one block of bitsandbytes'.
        starts = torch.arange(rows[0], rows[1])[:, None] * self._linear.inputs
        block = (starts + torch.arange(columns[0], columns[1], BLOCK)) // self._blocksize
        return values.mul_(self._scales(block)[..., None]).view(rows[1] - rows[0], columns[1] - columns[0])

    def _scales(self, block: torch.Tensor) -> torch.Tensor:
        """The absmax of blocks, given by their numbers."""
        if not block.numel():
            return torch.empty(block.shape)
        first, last = int(block[0, 0]), int(block[-1, -1]) + 1
        found = self._linear.copied(self._absmax[first:last])[block - first]
        if self._nested is None:
            return found
        values, absmax, size, offset = self._nested
        return values[found.long()] * absmax[block // size] + offset
