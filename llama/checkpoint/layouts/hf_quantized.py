"""Quantized linear modules in a Hugging Face folder: what every scheme shares.

A scheme (gptq.py, awq.py, bitsandbytes.py) knows the tensors of a quantized module, checks them against the
config, and gives windows of its numbers. Rows are Hugging Face's here; hugging_face.py permutes those of q_proj
and k_proj.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import CheckpointFormatError, CheckpointMismatchError, ConfigError
from ...kernels.quantized import BLOCK, Blocks, Form
from ...printable import shown
from ..base import Range

__all__ = [
    "QuantizedMatrix",
    "Scheme",
    "StoredLinear",
    "Tensors",
    "Windows",
    "along_inputs",
    "along_outputs",
    "checked_group",
    "only",
    "source_groups",
    "whole_blocks",
]

# Name -> the file that holds it, and the mapped tensor.
Tensors = Mapping[str, tuple[Path, torch.Tensor]]
# `Checkpoint.windows`: a mapped tensor in windows of rows.
Windows = Callable[[torch.Tensor], Iterator[tuple[int, torch.Tensor]]]


class QuantizedMatrix(ABC):
    """A quantized weight (out, in), its tensors checked. Rows are in Hugging Face's order."""

    @abstractmethod
    def form(self, columns: Range) -> Form:
        """How the window `columns` is quantized."""

    @abstractmethod
    def blocks(self, rows: Range, columns: Range) -> Blocks:
        """Rows of the weight, with the columns of `form(columns)`."""


class Scheme(ABC):
    """A way to store quantized linear modules, as a config describes it.

    Attributes:
        title: what people call it, e.g. "GPTQ 4 bit, groups of 128".
        endings: of the names of a module's tensors; the name of the module stands before them.
    """

    title: str
    endings: tuple[str, ...]

    @abstractmethod
    def is_quantized(self, endings: Iterable[str]) -> bool:
        """Whether a module that has tensors with these endings is quantized."""

    def notes(self, shapes: Iterable[tuple[int, ...]]) -> Iterator[str]:
        """What to say of a checkpoint with quantized matrices of these shapes, once it is loaded."""
        yield from ()

    @abstractmethod
    def matrix(self, linear: StoredLinear) -> QuantizedMatrix:
        """Check the tensors of a quantized module.

        Raises:
            CheckpointMismatchError: they do not fit the config.
            CheckpointFormatError: they hold values that no program writes.
        """


class StoredLinear:
    """The stored tensors of one quantized module.

    Args:
        name: of the module, e.g. "model.layers.0.mlp.up_proj".
        shape: of its weight: outputs, inputs.
        tensors: by the ending of their names.
        windows: of the checkpoint, for reading.
    """

    def __init__(self, name: str, shape: tuple[int, ...], tensors: Tensors, windows: Windows) -> None:
        self.name, self.tensors = name, tensors
        self.outputs, self.inputs = shape
        self._windows = windows

    def __contains__(self, ending: str) -> bool:
        return ending in self.tensors

    def mismatch(self, problem: str) -> CheckpointMismatchError:
        """The error that says what is wrong with this module."""
        folder = next(iter(self.tensors.values()))[0].parent
        return CheckpointMismatchError(
            f"{folder} does not fit its quantization config: {self.name} {problem}. The config may belong to another"
            " model; fetch both again"
        )

    def take(self, ending: str, shape: tuple[int, ...], *dtypes: torch.dtype) -> torch.Tensor:
        """One of the tensors, if its shape and dtype are as they must be."""
        if ending not in self.tensors:
            raise self.mismatch(f"({self.outputs} x {self.inputs}) has no {ending}")
        found = self.tensors[ending][1]
        if tuple(found.shape) != shape:
            raise self.mismatch(f"has {ending} of {list(found.shape)}, not {list(shape)}")
        if found.dtype not in dtypes:
            wanted = " or ".join(str(dtype) for dtype in dtypes)
            raise self.mismatch(f"has {ending} of {found.dtype}, not {wanted}")
        return found

    def copied(self, source: torch.Tensor) -> torch.Tensor:
        """A contiguous copy of (part of) a mapped tensor."""
        found = torch.empty(source.shape, dtype=source.dtype)
        for first, window in self._windows(source):
            found[first : first + len(window)].copy_(window)
        return found

    def finite(self, ending: str) -> None:
        """Raise CheckpointFormatError if a tensor, which `take` gave, holds NaN or infinity."""
        path, source = self.tensors[ending]
        bad = sum(window.numel() - int(window.isfinite().sum()) for _, window in self._windows(source))
        if bad:
            raise CheckpointFormatError(
                f"{self.name}.{ending} in {path.name} has {bad:,} of {source.numel():,} values that are NaN or"
                " infinite; the file was damaged, download it again"
            )

    def without_bias(self) -> None:
        """Check that a bias is zero. AutoGPTQ wrote zeros for modules that have none."""
        if "bias" in self.tensors:
            largest = float(self.copied(self.take("bias", (self.outputs,), *_FLOATS)).float().abs().max())
            if largest != 0:
                raise self.mismatch(f"has a bias (up to {largest:.3g}), which this runtime does not compute")


_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


# ---- configs ----


def only(config: Mapping[str, Any], key: str, default: Any, *supported: Any) -> Any:
    """A config's value, if this runtime supports it; text in any case.

    Raises:
        ConfigError: another value, with those that are supported.
    """
    value = config.get(key, default)
    if isinstance(value, str):
        value = value.lower()
    # 1 == True: compared with their types.
    if (type(value), value) not in [(type(each), each) for each in supported]:
        told = " or ".join(repr(each) for each in supported)
        raise ConfigError(f"{key} is {shown(value)}; this runtime reads {told}")
    return value


def checked_group(config: Mapping[str, Any], key: str, *, row: bool) -> int:
    """The inputs that share a scale: a multiple of 32, or -1 (a row) if that is allowed.

    Raises:
        ConfigError: another value.
    """
    value = config.get(key)
    valid = (
        isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1 << 24 and value % BLOCK == 0
    )
    if not valid and not (row and value == -1):
        raise ConfigError(
            f"{key} is {shown(value)}; this runtime reads multiples of {BLOCK}"
            f"{', and -1 for a whole row' if row else ''}"
        )
    assert isinstance(value, int)
    return value


# ---- windows ----


def whole_blocks(columns: Range, total: int) -> Range:
    """The window that `form_of` widens `columns` to."""
    return columns[0] // BLOCK * BLOCK, min(-(-columns[1] // BLOCK) * BLOCK, total)


def source_groups(form: Form, first: int, group: int) -> torch.Tensor:
    """For each group of a form that begins at column `first`: the stored group that it is part of."""
    return (first + torch.arange(form.groups) * form.group) // group


# ---- codes in int32 words ----

# Rows at a time: what is computed of them stays in the CPU's caches, which makes unpacking three times as fast.
_ROWS = 64


def along_inputs(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Words (n, rows) that each hold neighbouring inputs, the first in the lowest bits -> codes (rows, inputs)."""
    count, rows = words.shape
    found = torch.empty(rows, count * 32 // bits, dtype=torch.uint8)
    for first in range(0, rows, _ROWS):
        packed = _transposed(words[:, first : first + _ROWS]).view(torch.uint8)  # little-endian
        target = found[first : first + _ROWS]
        if bits == 8:
            target.copy_(packed)
            continue
        # Each byte becomes two: its low bits, then its high ones.
        wide = packed.to(torch.int16)
        wide.bitwise_or_(wide << 4)
        torch.bitwise_and(wide, 0x0F0F, out=target.view(torch.int16))
    return found


def along_outputs(words: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """Words (m, n) that each hold neighbouring outputs -> codes (outputs, m).

    Args:
        order: which of its outputs a word holds in its lowest bits, in the next ones, and so on.
    """
    inputs, count = words.shape
    planes = _transposed(words).view(torch.uint8).view(count, inputs, 4).permute(0, 2, 1).contiguous()
    found = torch.empty(count, len(order), inputs, dtype=torch.uint8)
    for byte in range(4):
        if len(order) == 4:
            found[:, order[byte]] = planes[:, byte]
            continue
        torch.bitwise_and(planes[:, byte], 15, out=found[:, order[2 * byte]])
        torch.bitwise_right_shift(planes[:, byte], 4, out=found[:, order[2 * byte + 1]])
    return found.view(count * len(order), inputs)


def _transposed(words: torch.Tensor) -> torch.Tensor:
    # `contiguous` would leave a single row or column as it is, with strides that cannot be viewed as bytes.
    return words.t().clone(memory_format=torch.contiguous_format)
