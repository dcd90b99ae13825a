"""Writes a GGUF file, version 3, front to back: metadata, the list of tensors, their bytes.

Source: the format's public specification; of quantized tensors, the block structures of ggml-common.h in llama.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from ...kernels.quantized import Blocks
from .gguf import MAGIC
from .gguf_types import TYPES, GgufType
from .output_file import OutputFile, raw_bytes

__all__ = ["GgufWriter", "PlannedTensor", "Value", "packed", "type_number"]

# A whole number is written as uint32, a list of bytes as one of texts, an array in its dtype.
Value = str | bool | int | float | Sequence[bytes] | np.ndarray
_ALIGNMENT, _VERSION = 32, 3
_UINT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 6, 7, 8, 9
_ARRAYS = {"<f4": 6, "<i4": 5}
_NUMBERS = {kind.name: number for number, kind in TYPES.items()}
_KINDS = {"int8": "Q8_0", "int4": "Q4_0", "k4": "Q4_K"}


def type_number(kind: str | torch.dtype) -> int:
    """The number in TYPES of a format of kernels/quantized.py, or of plain numbers."""
    if isinstance(kind, str):
        return _NUMBERS[_KINDS[kind]]
    return next(number for number, each in TYPES.items() if each.dtype == kind)


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to write: its name in the file, its shape as in torch, its number in TYPES."""

    name: str
    shape: tuple[int, ...]
    number: int

    @property
    def kind(self) -> GgufType:
        """Its type."""
        return TYPES[self.number]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return torch.Size(self.shape).numel() // self.kind.length * self.kind.nbytes


class GgufWriter:
    """Writes the metadata and the list of tensors at once, then each tensor's bytes in that order.

    Args:
        path: the file to create.
        metadata: values by key.
        tensors: in the order in which they will be written.
    """

    def __init__(self, path: Path, metadata: Mapping[str, Value], tensors: Sequence[PlannedTensor]) -> None:
        header = _header(metadata, tensors)
        self._file = OutputFile(path)
        self._file.write(header)

    @staticmethod
    def size(metadata: Mapping[str, Value], tensors: Sequence[PlannedTensor]) -> int:
        """Bytes of the whole file."""
        return len(_header(metadata, tensors)) + sum(_padded(each.nbytes) for each in tensors)

    def write(self, chunks: Iterable[torch.Tensor]) -> None:
        """Write the next tensor from contiguous pieces, in order. Each piece may be overwritten afterwards."""
        for chunk in chunks:
            self._file.write(raw_bytes(chunk))
        self._file.write(bytes(-self._file.written % _ALIGNMENT))

    def close(self) -> OutputFile:
        """Close the file -> the closed file, with its checksums."""
        self._file.close()
        return self._file

    def __enter__(self) -> GgufWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._file.close()


def _header(metadata: Mapping[str, Value], tensors: Sequence[PlannedTensor]) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), _value(value)]
    at = 0
    for tensor in tensors:
        extents = tuple(reversed(tensor.shape))
        parts += [_text(tensor.name), struct.pack(f"<I{len(extents)}Q", len(extents), *extents)]
        parts.append(struct.pack("<IQ", tensor.number, at))
        at += _padded(tensor.nbytes)
    whole = b"".join(parts)
    return whole + bytes(-len(whole) % _ALIGNMENT)


def _padded(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _text(value: str | bytes) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(content)) + content


def _value(value: Value) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<IB", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", _ARRAY, _ARRAYS[value.dtype.str], len(value)) + value.tobytes()
    return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text, value))


# ---- blocks ----


def packed(blocks: Blocks) -> torch.Tensor:
    """Rows of whole blocks -> their bytes (rows, blocks, bytes of one), uint8.

    Of int8 (Q8_0), int4 (Q4_0) and k4 (Q4_K), whose a and b have 6 bits.
    """
    kind = TYPES[type_number(blocks.form.format)]
    rows, columns = blocks.codes.shape
    out = torch.empty(rows, columns // kind.length, kind.nbytes, dtype=torch.uint8)
    codes = blocks.codes.view(rows, -1, kind.length)
    halves = 2 * len(kind.halves)
    out[..., :halves] = blocks.scales.contiguous().view(torch.uint8).view(rows, -1, halves)
    if kind.name == "Q8_0":
        out[..., 2:] = codes ^ 128  # signed
    elif kind.name == "Q4_0":
        out[..., 2:] = codes[..., :16] | codes[..., 16:] << 4
    else:
        assert blocks.zeros is not None
        factors = blocks.zeros.view(rows, -1, 8, 2)
        out[..., 4:16] = _factors(factors[..., 0], factors[..., 1])
        pairs = codes.view(rows, -1, 4, 2, 32)
        out[..., 16:] = (pairs[..., 0, :] | pairs[..., 1, :] << 4).flatten(-2)
    return out


def _factors(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """8 factors a and b of 6 bits -> 12 bytes. Of the last four, the upper two bits lie above the first four."""
    return torch.cat(
        [
            a[..., :4] | a[..., 4:] >> 4 << 6,
            b[..., :4] | b[..., 4:] >> 4 << 6,
            a[..., 4:] & 15 | (b[..., 4:] & 15) << 4,
        ],
        -1,
    )
