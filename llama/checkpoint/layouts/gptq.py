"""GPTQ, as AutoGPTQ and GPTQModel store it: the exllama order, 4 and 8 bit.

A module of `out` outputs and `in` inputs has, with n = 32 / bits codes in an int32:

    qweight  (in / n, out) int32       codes; the inputs nk .. nk + n - 1 in one word, the first in the lowest bits
    qzeros   (groups, out / n) int32   zeros; neighbouring outputs in one word
    scales   (groups, out) float16
    g_idx    (in,) int32               the group of each input

    weight[o, i] = scales[g, o] * (code[i, o] - zero[g, o]), where g = g_idx[i]

The first format ("gptq") stores each zero minus one, "gptq_v2" as it is. A zero of 0 then takes a borrow from its
neighbour: GPTQModel subtracts and adds 1 in all codes of a word at once, and so does this reader, which gives back
what was there before. (AutoGPTQ's kernels do not agree on such files: some read 2^bits, some 0.)

Act-order (desc_act) quantizes the inputs in the order of their importance, so groups lie scattered over a row.
Columns are sorted by group here, and the kernel reads x in that order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from ...errors import CheckpointMismatchError, ConfigError
from ...kernels.quantized import BLOCK, Blocks, Form, form_of
from ...printable import shown
from ..base import Range
from .hf_quantized import (
    QuantizedMatrix,
    Scheme,
    StoredLinear,
    along_inputs,
    along_outputs,
    checked_group,
    only,
    source_groups,
    whole_blocks,
)

__all__ = ["Gptq"]

# What each code of a word is stored too low by.
_ONES = {4: 0x11111111, 8: 0x01010101}


class Gptq(Scheme):
    """GPTQ with the settings of a config.

    Args:
        config: quantization_config of config.json, or AutoGPTQ's quantize_config.json.

    Raises:
        ConfigError: settings that this runtime does not read; the message names them.
    """

    endings = ("qweight", "qzeros", "scales", "g_idx", "bias")

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.bits: int = only(config, "bits", None, 4, 8)
        self.group = checked_group(config, "group_size", row=True)
        self.act_order: bool = only(config, "desc_act", False, False, True)
        self.symmetric: bool = only(config, "sym", True, False, True)
        kinds = {
            only(config, key, None, None, "gptq", "gptq_v2") for key in ("checkpoint_format", "format")
        } - {None}
        if len(kinds) > 1:
            raise ConfigError(
                "checkpoint_format and format differ; leave the one that the weights were saved in"
            )
        only(config, "is_marlin_format", False, False, None)
        only(config, "pack_dtype", "int32", "int32")
        self._check_modules(config.get("dynamic"))
        self.minus_one = kinds != {"gptq_v2"}
        groups = "a scale per row" if self.group == -1 else f"groups of {self.group}"
        self.title = f"GPTQ {self.bits} bit, {groups}{', act-order' if self.act_order else ''}"

    @staticmethod
    def _check_modules(dynamic: Any) -> None:
        """GPTQModel's settings for single modules: those that it left plain ("-:") show in the tensors."""
        own = [name for name in dynamic if not name.startswith("-:")] if isinstance(dynamic, dict) else []
        if own or not (dynamic is None or dynamic is False or isinstance(dynamic, dict)):
            raise ConfigError(
                f"dynamic has settings of their own for {shown(own or dynamic)}; this runtime reads one setting for all"
                " quantized modules"
            )

    def is_quantized(self, endings: Iterable[str]) -> bool:
        return "qweight" in endings

    def matrix(self, linear: StoredLinear) -> QuantizedMatrix:
        return _GptqMatrix(self, linear)


class _Layout(NamedTuple):
    """A window of columns: its form, the columns to read, and where in them each column of the form is.

    `at` is -1 for padding, and None where nothing moves. `groups` are the stored groups of the form's groups.
    """

    form: Form
    read: Range
    at: torch.Tensor | None
    groups: torch.Tensor


class _GptqMatrix(QuantizedMatrix):
    def __init__(self, scheme: Gptq, linear: StoredLinear) -> None:
        self._scheme, self._linear = scheme, linear
        self._per_word = 32 // scheme.bits
        inputs, outputs = linear.inputs, linear.outputs
        if inputs % BLOCK or outputs % self._per_word:
            raise linear.mismatch(
                f"({outputs} x {inputs}) cannot be GPTQ: {BLOCK} must divide its inputs, {self._per_word} its outputs"
            )
        self._group = inputs if scheme.group == -1 else scheme.group
        groups = -(-inputs // self._group)
        self._weight = linear.take("qweight", (inputs // self._per_word, outputs), torch.int32)
        self._zeros = linear.take("qzeros", (groups, outputs // self._per_word), torch.int32)
        self._scales = linear.take("scales", (groups, outputs), torch.float16)
        linear.finite("scales")
        linear.without_bias()
        self._order = self._checked_order(groups)
        self._check_zeros()

    def _checked_order(self, groups: int) -> torch.Tensor | None:
        """The group of each input; None if they lie in order."""
        linear, inputs = self._linear, self._linear.inputs
        if "g_idx" not in linear:
            if self._scheme.act_order:
                raise linear.mismatch("has no g_idx, but the config says desc_act (act-order)")
            return None
        order = linear.copied(linear.take("g_idx", (inputs,), torch.int32))
        low, high = int(order.min()), int(order.max())
        if low < 0 or high >= groups:
            raise linear.mismatch(f"has groups from {low} to {high} in g_idx, but {groups} groups of scales")
        if torch.equal(order, torch.arange(inputs, dtype=torch.int32) // self._group):
            return None
        if not self._scheme.act_order:
            raise linear.mismatch(
                "has a g_idx out of order, but the config says desc_act false (no act-order)"
            )
        most = int(torch.bincount(order).max())
        if most > self._group:
            raise linear.mismatch(f"has {most} inputs of one group in g_idx, but group_size is {self._group}")
        return order.long()

    def _check_zeros(self) -> None:
        """Refuse symmetric zeros that are off by one: the config names the other of the two formats."""
        scheme = self._scheme
        middle = 1 << (scheme.bits - 1)
        found = self._zeros_of((0, self._per_word))
        wrong = middle + 1 if scheme.minus_one else middle - 1
        if scheme.symmetric and bool((found == wrong).all()):
            told, other = ("gptq", "gptq_v2") if scheme.minus_one else ("gptq_v2", "gptq")
            raise CheckpointMismatchError(
                f"{self._linear.name} has zeros of {wrong}, not {middle}, if they are stored as the config's"
                f" checkpoint_format ({told}) says; set it to {other}, or fetch the config again"
            )

    def form(self, columns: Range) -> Form:
        return self._layout(columns).form

    def _layout(self, columns: Range) -> _Layout:
        kind = f"int{self._scheme.bits}z"
        read = whole_blocks(columns, self._linear.inputs)
        if self._order is None:
            form = form_of(kind, columns, self._group, self._linear.inputs)
            return _Layout(form, read, None, source_groups(form, read[0], self._group))
        mine = self._order[columns[0] : columns[1]]
        by_group = mine.argsort(stable=True)
        counts = torch.bincount(mine, minlength=len(self._scales))
        padded = -(-counts // BLOCK) * BLOCK
        group = math.gcd(*padded.tolist()) or BLOCK
        shift = (padded.cumsum(0) - padded) - (counts.cumsum(0) - counts)
        order = torch.full((int(padded.sum()),), -1, dtype=torch.int32)
        order[torch.arange(len(mine)) + shift[mine[by_group]]] = by_group.int()
        groups = torch.arange(len(padded)).repeat_interleave(padded // group)
        at = torch.where(order < 0, -1, order + (columns[0] - read[0])).long()
        return _Layout(Form(kind, len(order), group, order), read, at, groups)

    def blocks(self, rows: Range, columns: Range) -> Blocks:
        form, read, at, groups = self._layout(columns)
        first, last = (column // self._per_word for column in read)
        words = self._linear.copied(self._weight[first:last, rows[0] : rows[1]])
        codes = along_inputs(words, self._scheme.bits)
        zeros = self._zeros_of(rows)[:, groups].contiguous()
        if at is not None:
            # numpy takes columns four times as fast as torch.
            codes = torch.from_numpy(codes.numpy().take(at.numpy(), axis=1, mode="clip"))
            padding = torch.nonzero(at < 0)[:, 0]
            codes[:, padding] = zeros[:, padding // form.group]
        scales = self._linear.copied(self._scales[:, rows[0] : rows[1]]).t()[:, groups].contiguous()
        return Blocks(form, codes, scales, zeros)

    def _zeros_of(self, rows: Range) -> torch.Tensor:
        """Rows x groups."""
        first, last = rows[0] // self._per_word, -(-rows[1] // self._per_word)
        words = self._linear.copied(self._zeros[:, first:last])
        if self._scheme.minus_one:
            words += _ONES[self._scheme.bits]
        found = along_outputs(words, tuple(range(self._per_word)))
        return found[rows[0] - first * self._per_word : rows[1] - first * self._per_word]
