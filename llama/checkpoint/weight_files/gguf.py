"""GGUF files, versions 2 and 3, little-endian: metadata, and tensors as views of the mapped file.

A file is a header (magic, version, counts), the metadata (key, type, value), the list of tensors (name, extents
with the shortest stride first, type, offset), and the bytes of the tensors, each at a multiple of the alignment.
Source: the format's public specification. The package `gguf` is not used: it trusts the file. It is the oracle of
the tests.

The header is read a piece at a time, and every count is compared with the bytes that are left before anything is
built from it.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ...errors import CheckpointFormatError
from ...printable import shown
from ..files import check_file, unreadable
from .gguf_types import REFUSED, TYPES, GgufType
from .mapped import MappedFile

__all__ = ["MAGIC", "GgufFile", "GgufTensor", "is_gguf", "open_gguf"]

MAGIC = b"GGUF"
# Limits. The header of a 70B has 1 MB, 723 tensors, 30 keys and 100,000 elements of arrays; that of a model with a
# vocabulary of 256,000 pieces, 16 MB.
_MOST_HEADER, _MOST_NAMES, _MOST_ELEMENTS = 32 << 20, 20_000, 1 << 21
_MOST_NAME, _MOST_ALIGNMENT = 256, 1 << 20
# ggml holds at most so many dimensions, and counts in 64 bits.
_MOST_DIMENSIONS, _MOST_SIZE = 4, 2**63 - 1
_CHUNK = 1 << 20
# Types of values in the metadata.
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, eq=False)
class GgufTensor:
    """A tensor of a file.

    Args:
        file: holds it.
        kind: its type.
        shape: rows and columns as in torch, (rows,) or (rows, columns).
        data: the mapped numbers in `shape`, or the bytes (rows, blocks, bytes of a block) of a quantized one.
    """

    file: GgufFile
    kind: GgufType
    shape: tuple[int, ...]
    data: torch.Tensor


@dataclass(frozen=True, eq=False)
class GgufFile:
    """A mapped file; its header has been checked.

    Args:
        path: of it.
        mapped: the file.
        metadata: values by key: int, float, bool, str; a numpy array, or a list of bytes, of an array.
        tensors: by the names in the file.
    """

    path: Path
    mapped: MappedFile
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF does."""
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except (OSError, ValueError):
        return False


def open_gguf(path: Path) -> GgufFile:
    """Map a file and check its header.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CheckpointFormatError: it is not a GGUF file, cut short, malformed, or holds tensors of a type that this
            runtime does not read.
    """
    size = check_file(path)
    try:
        with path.open("rb") as file:
            header = _Header(file, size)
            _check_start(header)
            metadata, tensors = _read(header)
            mapped = MappedFile(path, file.fileno(), size)
    except _RefusedError as error:
        raise CheckpointFormatError(f"{path} {error}") from error
    except ValueError as error:
        raise CheckpointFormatError(f"{path} is not sound: {error}; download it again") from error
    except OSError as error:
        raise unreadable(path, error) from error
    found = GgufFile(path, mapped, metadata, {})
    for name, entry in tensors.items():
        kind, shape = entry.kind, entry.shape
        if kind.dtype is None:
            data = mapped.tensor(torch.uint8, entry.at, (*shape[:-1], shape[-1] // kind.length, kind.nbytes))
        else:
            data = mapped.tensor(kind.dtype, entry.at, shape)
        found.tensors[name] = GgufTensor(found, kind, shape, data)
    return found


# ---- the header ----


class _RefusedError(ValueError):
    """Not damaged, but nothing that this runtime reads."""


class _Header:
    """The first bytes of a file, read as far as they are asked for."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.size, self.at = size, 0
        self._file, self._data = file, b""

    def take(self, count: int) -> bytes:
        """The next bytes."""
        stop = self.at + count
        if stop > self.size:
            raise ValueError(
                f"it is cut short, or a length in it is wrong: {count:,} bytes are announced at byte {self.at:,} of"
                f" {self.size:,}"
            )
        if stop > _MOST_HEADER:
            raise ValueError(
                f"its header takes more than {_MOST_HEADER:,} bytes, which no Llama's does: {count:,} are announced at"
                f" byte {self.at:,}"
            )
        if stop > len(self._data):
            wanted = min(self.size, _MOST_HEADER, max(stop, 2 * len(self._data), _CHUNK))
            self._data += self._file.read(wanted - len(self._data))
            if len(self._data) < stop:
                raise ValueError(f"it became shorter than {stop:,} bytes while it was read")
        found = self._data[self.at : stop]
        self.at = stop
        return found

    def number(self, code: str) -> Any:
        """The next number; `code` as in struct."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> bytes:
        """The next string."""
        return self.take(self.number("Q"))

    def name(self, what: str) -> str:
        """The next string, if it can be the name of a key or a tensor."""
        length = self.number("Q")
        if not 1 <= length <= _MOST_NAME:
            raise ValueError(
                f"the name of {what} before byte {self.at:,} has {length:,} bytes, not 1 to {_MOST_NAME}"
            )
        raw = self.take(length)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"the name of {what}, {shown(raw)}, is not UTF-8") from error

    def count(self, what: str, least: int) -> int:
        """A number of things of at least `least` bytes each: no more than the rest of the file can hold."""
        found: int = self.number("Q")
        if found > (self.size - self.at) // least:
            raise ValueError(
                f"it announces {found:,} {what} at byte {self.at:,}, more than the file of {self.size:,} bytes holds"
            )
        return found


def _check_start(header: _Header) -> None:
    start = header.take(min(8, header.size))
    if start[:4] != MAGIC:
        if start.lstrip()[:1] == b"<" or start.startswith(b"version "):
            why = (
                f"is a web page or a Git LFS pointer of {header.size:,} bytes, not weights; download it again"
            )
        elif start[:4] in (b"lmgg", b"fmgg", b"tjgg", b"algg"):
            why = "is a GGML file from before GGUF; convert it with the tools of llama.cpp, or fetch a GGUF"
        elif not start:
            why = "is empty; download it again"
        else:
            why = f"is not a GGUF file: it begins with {start[:4]!r}, not {MAGIC!r}; download it again"
        raise _RefusedError(why)
    if len(start) < 8:
        raise ValueError(f"it is cut short: {header.size:,} bytes")
    version = int.from_bytes(start[4:], "little")
    if version in (2, 3):
        return
    if int.from_bytes(start[4:], "big") in (1, 2, 3):
        raise _RefusedError(
            "is in big-endian byte order; this runtime reads little-endian files. Convert it with llama.cpp"
        )
    raise _RefusedError(
        f"is of version {version:,} of GGUF; this runtime reads 2 and 3. Convert it with llama.cpp"
    )


def _read(header: _Header) -> tuple[dict[str, Any], dict[str, _Entry]]:
    # The smallest tensor: name of 1 byte, one extent. The smallest key: 1 byte, and a value of 1.
    count = header.count("tensors", 8 + 1 + 4 + 8 + 4 + 8)
    keys = header.count("keys", 8 + 1 + 4 + 1)
    for what, found in (("tensors", count), ("keys", keys)):
        if found > _MOST_NAMES:
            raise ValueError(f"it announces {found:,} {what}; no Llama has more than {_MOST_NAMES:,}")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = header.name("a key")
        if key in metadata:
            raise ValueError(f"the key {shown(key)} occurs twice")
        metadata[key] = _value(header, key, header.number("I"))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= _MOST_ALIGNMENT or alignment & (alignment - 1):
        raise ValueError(
            f"general.alignment is {shown(alignment)}; it must be a power of two from 8 to {_MOST_ALIGNMENT:,}"
        )
    entries: dict[str, _Entry] = {}
    for _ in range(count):
        name = header.name("a tensor")
        if name in entries:
            raise ValueError(f"the tensor {shown(name)} occurs twice")
        entries[name] = _entry(header, name, alignment)
    first = -(-header.at // alignment) * alignment
    return metadata, _placed(entries, first, header.size)


def _value(header: _Header, key: str, kind: int) -> Any:
    if kind == _STRING:
        return header.text().decode(errors="backslashreplace")
    if kind == _ARRAY:
        return _array(header, key)
    if kind not in _SCALARS:
        raise ValueError(f"the value of {shown(key)} is of type {kind}, which GGUF does not have")
    found = header.number(_SCALARS[kind])
    if kind != _BOOL:
        return found
    if found > 1:
        raise ValueError(f"{shown(key)} is {found}; a truth value is 0 or 1")
    return bool(found)


def _array(header: _Header, key: str) -> Any:
    kind = header.number("I")
    if kind != _STRING and kind not in _SCALARS:
        raise ValueError(
            f"the array {shown(key)} has elements of type {kind}, which this runtime does not read"
        )
    code = _SCALARS.get(kind, "Q")
    count = header.count(f"elements of {shown(key)}", struct.calcsize("<" + code))
    if count > _MOST_ELEMENTS:
        raise ValueError(
            f"the array {shown(key)} has {count:,} elements; no Llama has more than {_MOST_ELEMENTS:,}"
        )
    if kind == _STRING:
        return [header.text() for _ in range(count)]
    dtype = np.dtype("<" + code)
    return np.frombuffer(header.take(count * dtype.itemsize), dtype)


# ---- tensors ----


@dataclass(frozen=True)
class _Entry:
    kind: GgufType
    shape: tuple[int, ...]
    at: int
    nbytes: int


def _entry(header: _Header, name: str, alignment: int) -> _Entry:
    dimensions = header.number("I")
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise ValueError(f"{shown(name)} has {dimensions:,} dimensions, not 1 to {_MOST_DIMENSIONS}")
    extents = [header.number("Q") for _ in range(dimensions)]
    number, at = header.number("I"), header.number("Q")
    kind = TYPES.get(number)
    if kind is None:
        named = f"{REFUSED[number]} (type {number})" if number in REFUSED else f"type {number}"
        known = ", ".join(each.name for each in TYPES.values())
        raise _RefusedError(
            f"holds {shown(name)} as {named}, which this runtime does not read; known are {known}. Fetch the model in"
            " one of these, e.g. Q4_K_M or Q8_0"
        )
    if 0 in extents or math.prod(extents) > _MOST_SIZE:
        raise ValueError(f"{shown(name)} has extents {extents}, which no tensor has")
    if extents[0] % kind.length:
        raise ValueError(
            f"{shown(name)} has rows of {extents[0]:,} numbers, no whole blocks: one of {kind.name} holds {kind.length}"
        )
    if at % alignment:
        raise ValueError(f"{shown(name)} begins at byte {at:,} of the data, not a multiple of {alignment}")
    nbytes = math.prod(extents) // kind.length * kind.nbytes
    return _Entry(kind, tuple(reversed(extents)), at, nbytes)


def _placed(entries: dict[str, _Entry], first: int, size: int) -> dict[str, _Entry]:
    """The tensors with their places in the file instead of in the data, which begins at byte `first`."""
    end, before = 0, ""
    for name, entry in sorted(entries.items(), key=lambda item: item[1].at):
        if entry.at < end:
            raise ValueError(
                f"{shown(name)} begins at byte {entry.at:,} of the data, but {shown(before)} ends at {end:,}"
            )
        end, before = entry.at + entry.nbytes, name
        if first + end > size:
            raise ValueError(
                f"it is cut short, or an offset is wrong: {shown(name)} ends at byte {first + end:,}, the file has"
                f" {size:,}"
            )
    return {
        name: _Entry(each.kind, each.shape, first + each.at, each.nbytes) for name, each in entries.items()
    }
