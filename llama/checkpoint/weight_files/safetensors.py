"""safetensors files: read as memory-mapped tensors, and written one tensor at a time.

A file is 8 bytes with the length of the header, the header (JSON: name -> dtype, shape, offsets), and the
bytes of the tensors without gaps. Source: the format's public description. The package of that name is not
used: reading a rank's slices here takes a quarter of its memory, and a file is written without holding it in
memory (docs/log.md). The package is the oracle of the tests: whatever is accepted here, it reads as the same
tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ...errors import CheckpointFormatError
from ...printable import shown
from ..files import MOST_JSON, check_file, strict_object, unreadable
from .mapped import MappedFile, TensorFile
from .output_file import OutputFile, raw_bytes

__all__ = ["SafetensorsWriter", "open_safetensors"]

_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# What torch can hold: dimensions of a tensor; its elements, and every other size.
_MOST_DIMENSIONS, _MOST_SIZE = 64, 2**63 - 1


def open_safetensors(path: Path) -> TensorFile:
    """The tensors of a file, memory-mapped.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CheckpointFormatError: it is not a safetensors file, truncated, or malformed.
    """
    size = check_file(path)
    raw = _header(path, size)
    first = 8 + len(raw)
    try:
        entries = _entries(raw, size - first)
        with path.open("rb") as file:
            mapped = MappedFile(path, file.fileno(), size)
    except _UnknownDtypeError as error:
        raise CheckpointFormatError(f"{path}: {error}") from error
    except ValueError as error:
        raise CheckpointFormatError(f"{path} is not sound: {error}; download it again") from error
    except OSError as error:
        raise unreadable(path, error) from error
    tensors = {
        name: mapped.tensor(dtype, first + at, shape) for name, (dtype, shape, (at, _)) in entries.items()
    }
    return TensorFile(mapped, tensors)


def _header(path: Path, size: int) -> bytes:
    """The bytes of the header.

    A file with a plausible header length is taken as safetensors; only an impossible length makes us look for
    a reason, such as a web page.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) == 8 and 2 <= length <= min(MOST_JSON, size - 8):
                return file.read(length)
    except OSError as error:
        raise unreadable(path, error) from error
    if start.lstrip()[:1] == b"<" or start.startswith(b"version "):
        why = f"is a web page or a Git LFS pointer of {size} bytes, not weights; download it again"
    elif len(start) < 8 or length < 2:
        why = f"is not a safetensors file ({size} bytes); download it again"
    elif length > MOST_JSON:
        why = (
            f"announces a header of {length:,} bytes, more than the {MOST_JSON:,} that any checkpoint needs; it is"
            " not a safetensors file, or was made to do harm"
        )
    else:
        why = f"is truncated: {size:,} bytes, but its header alone takes {8 + length:,}; download it again"
    raise CheckpointFormatError(f"{path} {why}")


def _entries(raw: bytes, size: int) -> dict[str, _Entry]:
    """The tensors that a header announces, for `size` bytes of data; ValueError if it is malformed."""
    header = strict_object(raw, parse_int=_whole, parse_constant=_no_number)
    told = header.pop("__metadata__", None)
    if told is not None and not (
        isinstance(told, dict) and all(isinstance(value, str) for value in told.values())
    ):
        raise ValueError("its __metadata__ is not an object of strings")
    entries = {name: _entry(name, entry) for name, entry in header.items()}
    _check_offsets(entries, size)
    return entries


def _whole(text: str) -> int | float:
    # Python reads "-0" as an int, but the format has unsigned numbers only.
    return -0.0 if text == "-0" else int(text)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


class _UnknownDtypeError(ValueError):
    """A valid file with a dtype that is not supported here."""


_Entry = tuple[torch.dtype, tuple[int, ...], tuple[int, int]]


def _entry(name: str, entry: Any) -> _Entry:
    try:
        stored, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        dtype = _DTYPES.get(stored)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"the entry of {shown(name)} lacks dtype, shape or data_offsets") from error
    if dtype is None:
        raise _UnknownDtypeError(
            f"{shown(name)} is stored as {shown(stored)}, which this runtime does not read; known are"
            f" {', '.join(_DTYPES)}. Convert it in the program that wrote it"
        )
    elements = _elements(shape)
    if elements is None or not _is_size(start) or not _is_size(stop):
        raise ValueError(
            f"{shown(name)} has shape {shown(shape)} and offsets {shown(start)} to {shown(stop)}, which no tensor has"
        )
    if stop - start != elements * dtype.itemsize:
        raise ValueError(
            f"{shown(name)} of shape {shown(shape)} and {stored} takes {elements * dtype.itemsize:,} bytes, but its"
            f" offsets {start:,} to {stop:,} hold {stop - start:,}"
        )
    return dtype, tuple(shape), (start, stop)


def _elements(shape: Any) -> int | None:
    """Number of elements of a shape; None if torch cannot hold a tensor of that shape."""
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS or not all(map(_is_size, shape)):
        return None
    # Zeros count as 1: torch computes the strides of an empty tensor too.
    elements = math.prod(max(1, extent) for extent in shape)
    if elements > _MOST_SIZE:
        return None
    return 0 if 0 in shape else elements


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_SIZE


def _check_offsets(entries: Mapping[str, _Entry], size: int) -> None:
    at = 0
    for name, (_, _, (start, stop)) in sorted(entries.items(), key=lambda item: item[1][2]):
        if start != at:
            raise ValueError(
                f"{shown(name)} begins at byte {start:,} of the data, but {at:,} are taken before it"
            )
        at = stop
    if at != size:
        kind = "truncated" if size < at else "longer than its header says"
        raise ValueError(f"it is {kind}: {size:,} bytes of data, {at:,} announced")


class SafetensorsWriter:
    """Writes named tensors of one dtype, one chunk at a time.

    Args:
        path: the file to create.
        shapes: names and shapes, in the order in which the tensors will be written.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name, shape in shapes.items():
            size = torch.Size(shape).numel() * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file = OutputFile(path)
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, chunks: Iterable[torch.Tensor]) -> None:
        """Write the next tensor from contiguous pieces, in order. Each piece may be overwritten afterwards."""
        for chunk in chunks:
            self._file.write(raw_bytes(chunk))

    def close(self) -> OutputFile:
        """Close the file -> the closed file, with its checksums."""
        self._file.close()
        return self._file

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._file.close()
