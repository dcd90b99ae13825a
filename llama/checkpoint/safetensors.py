"""safetensors files: opened as mapped tensors, and written one tensor at a time.

A file is 8 bytes with the length of the header, the header (JSON: name -> dtype, shape, offsets), and the
tensors' bytes without a gap. Source: the format's public description. Written here instead of taken from
the package of that name, since that one can neither write a file bit by bit nor be left out of the core.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ..errors import CheckpointFormatError
from .files import Sink, check_file, raw_bytes, strict_object
from .mapped import MappedFile, TensorFile

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
# The header of a 70B takes 90 KB; a length beyond this is no header.
_LONGEST_HEADER = 16 << 20


def open_safetensors(path: Path) -> TensorFile:
    """The tensors of a file, mapped.

    Raises:
        CheckpointNotFoundError: no such file.
        CheckpointFormatError: no safetensors file, a truncated one, or one that is not sound.
    """
    size = check_file(path)
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start.lstrip()[:1] == b"<" or start.startswith(b"version "):
            raise CheckpointFormatError(
                f"{path} is a web page or a Git LFS pointer of {size} bytes, not weights; download it again"
            )
        if size < 8 or length < 2:
            raise CheckpointFormatError(f"{path} is not a safetensors file ({size} bytes); download it again")
        if length > _LONGEST_HEADER:
            raise CheckpointFormatError(
                f"{path} announces a header of {length:,} bytes, more than the {_LONGEST_HEADER:,} that any"
                " checkpoint needs; it is not a safetensors file, or was made to do harm"
            )
        if 8 + length > size:
            raise CheckpointFormatError(
                f"{path} is truncated: {size:,} bytes, but its header alone takes {8 + length:,};"
                " download it again"
            )
        raw = file.read(length)
    try:
        header = strict_object(raw)
        header.pop("__metadata__", None)
        entries = {name: _entry(name, entry) for name, entry in header.items()}
        _check_offsets(entries, size - 8 - length)
    except _UnknownDtypeError as error:
        raise CheckpointFormatError(f"{path}: {error}") from error
    except ValueError as error:
        raise CheckpointFormatError(f"{path} is not sound: {error}; download it again") from error
    with path.open("rb") as file:
        mapped = MappedFile(path, file.fileno(), size)
    tensors = {
        name: mapped.tensor(dtype, 8 + length + start, shape)
        for name, (dtype, shape, (start, _)) in entries.items()
    }
    return TensorFile(mapped, tensors)


class _UnknownDtypeError(ValueError):
    """A sound file of a kind that is not read here."""


_Entry = tuple[torch.dtype, tuple[int, ...], tuple[int, int]]


def _entry(name: str, entry: Any) -> _Entry:
    try:
        dtype = _DTYPES.get(entry["dtype"])
        shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"the entry of {name!r} lacks dtype, shape or data_offsets") from error
    if dtype is None:
        raise _UnknownDtypeError(
            f"{name!r} is stored as {entry['dtype']!r}, which this runtime does not read; known are"
            f" {', '.join(_DTYPES)}. Convert it in the program that wrote it"
        )
    numbers = (*shape, start, stop)
    if not all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in numbers):
        raise ValueError(f"{name!r} has shape {list(shape)} and offsets {start} to {stop}")
    count = 1
    for extent in shape:
        count *= extent
    if stop - start != count * dtype.itemsize:
        raise ValueError(
            f"{name!r} of shape {list(shape)} and {entry['dtype']} takes {count * dtype.itemsize:,} bytes, but its"
            f" offsets {start:,} to {stop:,} hold {stop - start:,}"
        )
    return dtype, shape, (start, stop)


def _check_offsets(entries: Mapping[str, _Entry], size: int) -> None:
    at = 0
    for name, (_, _, (start, stop)) in sorted(entries.items(), key=lambda item: item[1][2]):
        if start != at:
            raise ValueError(f"{name!r} begins at byte {start:,} of the data, but {at:,} are taken before it")
        at = stop
    if at != size:
        kind = "truncated" if size < at else "longer than its header says"
        raise ValueError(f"it is {kind}: {size:,} bytes of data, {at:,} announced")


class SafetensorsWriter:
    """Writes named tensors of one dtype, a chunk at a time.

    Args:
        path: is created.
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
        self._file = Sink(path)
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, chunks: Iterable[torch.Tensor]) -> None:
        """The next tensor, as contiguous pieces of it in order. A piece may be overwritten afterwards."""
        for chunk in chunks:
            self._file.write(raw_bytes(chunk))

    def close(self) -> Sink:
        """Finish the file -> its checksums."""
        self._file.close()
        return self._file

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._file.close()
