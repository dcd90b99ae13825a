"""AWQ, as AutoAWQ stores it in its GEMM version: 4 bit.

A module of `out` outputs and `in` inputs has:

    qweight  (in, out / 8) int32       codes; eight neighbouring outputs of one input in a word
    qzeros   (groups, out / 8) int32   zeros, in the same order
    scales   (groups, out) float16

    weight[o, i] = scales[g, o] * (code[i, o] - zero[g, o]), where g = i // group

From its lowest bits on, a word holds the outputs 0, 2, 4, 6, 1, 3, 5, 7 of its eight. The other versions (GEMV, GEMV
fast, Marlin, exllama's) order codes in other ways and are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ...kernels.quantized import BLOCK, Blocks, Form, form_of
from ..base import Range
from .hf_quantized import (
    QuantizedMatrix,
    Scheme,
    StoredLinear,
    along_outputs,
    checked_group,
    only,
    source_groups,
    whole_blocks,
)

__all__ = ["Awq"]

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class Awq(Scheme):
    """AWQ with the settings of a config.

    Args:
        config: quantization_config of config.json, or AutoAWQ's quant_config.json, which has other keys for two of
            them.

    Raises:
        ConfigError: settings that this runtime does not read; the message names them.
    """

    endings = ("qweight", "qzeros", "scales", "bias")

    def __init__(self, config: Mapping[str, Any]) -> None:
        only(config, "w_bit" if "w_bit" in config else "bits", 4, 4)
        self.group = checked_group(
            config, "q_group_size" if "q_group_size" in config else "group_size", row=True
        )
        only(config, "zero_point", True, True)
        only(config, "version", "gemm", "gemm")
        for key in ("checkpoint_format", "format"):  # as GPTQModel names the version
            only(config, key, None, None, "gemm")
        self.title = f"AWQ 4 bit, {'a scale per row' if self.group == -1 else f'groups of {self.group}'}"

    def is_quantized(self, endings: Iterable[str]) -> bool:
        return "qweight" in endings

    def matrix(self, linear: StoredLinear) -> QuantizedMatrix:
        return _AwqMatrix(self.group, linear)


class _AwqMatrix(QuantizedMatrix):
    def __init__(self, group: int, linear: StoredLinear) -> None:
        self._linear = linear
        inputs, outputs = linear.inputs, linear.outputs
        self._group = inputs if group == -1 else group
        if inputs % BLOCK or inputs % self._group or outputs % 8:
            raise linear.mismatch(
                f"({outputs} x {inputs}) cannot be AWQ: groups of {self._group} must divide its inputs, 8 its outputs"
            )
        found = linear.tensors["qweight"][1]
        if tuple(found.shape) == (outputs, inputs // 8) != (inputs, outputs // 8):
            raise linear.mismatch(
                f"has qweight of {list(found.shape)}, as the GEMV version does; this runtime reads GEMM"
                f" {[inputs, outputs // 8]}"
            )
        self._weight = linear.take("qweight", (inputs, outputs // 8), torch.int32)
        self._zeros = linear.take("qzeros", (inputs // self._group, outputs // 8), torch.int32)
        self._scales = linear.take("scales", (inputs // self._group, outputs), torch.float16)
        linear.finite("scales")
        linear.without_bias()

    def form(self, columns: Range) -> Form:
        return form_of("int4z", columns, self._group, self._linear.inputs)

    def blocks(self, rows: Range, columns: Range) -> Blocks:
        form = self.form(columns)
        read = whole_blocks(columns, self._linear.inputs)
        groups = source_groups(form, read[0], self._group)
        codes = self._codes(self._weight[read[0] : read[1]], rows)
        zeros = self._codes(self._zeros, rows)[:, groups].contiguous()
        scales = self._linear.copied(self._scales[:, rows[0] : rows[1]])
        return Blocks(form, codes, scales.t()[:, groups].contiguous(), zeros)

    def _codes(self, source: torch.Tensor, rows: Range) -> torch.Tensor:
        first, last = rows[0] // 8, -(-rows[1] // 8)
        found = along_outputs(self._linear.copied(source[:, first:last]), _ORDER)
        return found[rows[0] - first * 8 : rows[1] - first * 8]
