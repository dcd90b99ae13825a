"""torch's .pth files: read as memory-mapped tensors without unpickling, and written one tensor at a time.

A .pth is a zip archive of uncompressed records: data.pkl with names, shapes and dtypes, and data/N with the
bytes of storage N, each starting at a multiple of 64. Source: torch.save's format since torch 1.6, as
described in torch's notes on serialization.

`torch.load` is not used, not even with weights_only: it spends whatever memory and time the file asks for
before anything can be checked (docs/log.md). Tests compare the tensors of both.
"""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import torch

from ...errors import CheckpointFormatError
from ...printable import shown
from ..files import check_file, unreadable
from .mapped import MappedFile, TensorFile
from .output_file import OutputFile, raw_bytes
from .pickle_walk import walk
from .stored_tensor import StoredTensor
from .zip_directory import Record, read_directory

__all__ = ["IGNORED", "PthWriter", "open_pth", "records_of"]

# Written by older exporters; the runtime computes this table from rope_theta, in float32.
IGNORED = frozenset({"rope.freqs"})

_STORAGES = {
    torch.bfloat16: torch.BFloat16Storage,
    torch.float16: torch.HalfStorage,
    torch.float32: torch.FloatStorage,
}
_ALIGNMENT = 64
# zipfile adds these 20 bytes after our padding, for sizes of 4 GB and more.
_ZIP64_EXTRA = 20
# The data.pkl of a 70B in one file has 120 KB.
_LONGEST_PICKLE = 16 << 20
# Tensors may share a storage, as tied embeddings do. Their sizes add up to at most 4 times the file's.
_MOST_SHARED = 4


def open_pth(path: Path) -> TensorFile:
    """The tensors of a .pth, memory-mapped. Every byte of them has been checked to be within the file.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CheckpointFormatError: an HTML page, a bare pickle, a truncated file, objects other than tensors, or
            tensors that are not stored as plain bytes.
    """
    check_file(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            _check_head(path, file.read(512), size)
            records = _records(path, file.fileno(), size)
            stored = walk(_content(file.fileno(), records, "data.pkl", _LONGEST_PICKLE))
            _check_order(file.fileno(), records)
            offsets = _offsets(stored, records, size)
            mapped = MappedFile(path, file.fileno(), size)
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        if isinstance(error, CheckpointFormatError):
            raise
        raise CheckpointFormatError(f"{path} {error}") from error
    tensors = {
        name: mapped.tensor(each.storage.dtype, offsets[name], each.shape, each.strides)
        for name, each in stored.items()
        if name not in IGNORED
    }
    return TensorFile(mapped, tensors)


def records_of(path: Path) -> dict[str, Record]:
    """The records of a .pth; empty if it is not a valid archive.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        try:
            return read_directory(file.fileno(), os.fstat(file.fileno()).st_size)
        except ValueError:
            return {}


def _check_head(path: Path, head: bytes, size: int) -> None:
    if head.lstrip()[:1] == b"<":
        raise CheckpointFormatError(
            f"{path} is an HTML or XML page of {size} bytes, not weights; download it again"
        )
    if head[:1] == b"\x80":
        raise CheckpointFormatError(
            f"{path} is a bare pickle (torch's format before 1.6, or no checkpoint) and was not run;"
            " load it in torch with weights_only=True and torch.save it again"
        )
    if not head:
        raise CheckpointFormatError(f"{path} is empty; download it again, and compare it with checklist.chk")


def _records(path: Path, file: int, size: int) -> dict[str, Record]:
    """The records of a .pth, named without the folder into which torch.save puts all of them."""
    try:
        records = read_directory(file, size)
    except ValueError as error:
        raise CheckpointFormatError(
            f"{path} is not a complete torch file ({size} bytes): {error}; download it again, and compare it"
            " with checklist.chk"
        ) from error
    folder = next(iter(records), "").partition("/")[0] + "/"
    strays = [name for name in records if not name.startswith(folder)]
    found = {name.removeprefix(folder): record for name, record in records.items()}
    if strays or "data.pkl" not in found:
        raise CheckpointFormatError(
            f"{path} is a zip archive, but torch.save did not write it: it has no data.pkl"
        )
    if "constants.pkl" in found:
        raise CheckpointFormatError(
            f"{path} is a TorchScript program, not weights; torch.save its state dict"
        )
    return found


def _content(file: int, records: Mapping[str, Record], name: str, most: int) -> bytes:
    record = records[name]
    if record.size > most:
        raise ValueError(
            f"has a {name} of {record.size:,} bytes, more than the {most:,} that any checkpoint needs"
        )
    return os.pread(file, record.size, record.start)


def _check_order(file: int, records: Mapping[str, Record]) -> None:
    if "byteorder" in records and _content(file, records, "byteorder", 64) != b"little":
        raise ValueError("was saved on a big-endian machine; load it in torch on this one and save it again")


def _offsets(stored: Mapping[str, StoredTensor], records: Mapping[str, Record], size: int) -> dict[str, int]:
    """The byte offset of each tensor in the file.

    Raises:
        ValueError: a tensor is not within its record.
    """
    found = {}
    total = 0
    for name, each in stored.items():
        storage, itemsize = each.storage, each.storage.dtype.itemsize
        record = records.get(f"data/{storage.key}")
        if record is None:
            raise ValueError(
                f"lacks the record data/{storage.key[:100]!r} of {shown(name)}; download it again"
            )
        if storage.count * itemsize > record.size:
            raise ValueError(
                f"says that the storage of {shown(name)} has {storage.count * itemsize:,} bytes, but its record has"
                f" {record.size:,}; download it again"
            )
        total += torch.Size(each.shape).numel() * itemsize
        found[name] = record.start + each.offset * itemsize
    if total > _MOST_SHARED * size:
        raise ValueError(
            f"has {size:,} bytes, but its tensors take {total:,}: many names share the same bytes. No model of this"
            " family is stored like that; the file was made to do harm, or holds another kind of model"
        )
    return found


class PthWriter:
    """Writes a dictionary of named tensors as torch.save does, one chunk at a time.

    Args:
        path: the file to create.
        shapes: names and shapes, in the order in which the tensors will be written.
        dtype: of all tensors.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        self.path = path
        self._file = OutputFile(path, md5=True)
        # Not seekable, so that zipfile writes each byte once, in order, and the hash can follow.
        self._zip = zipfile.ZipFile(cast("BinaryIO", self._file), "w", zipfile.ZIP_STORED, allowZip64=True)
        self._next = 0
        self._small("data.pkl", _pickled(shapes, dtype))
        self._small("byteorder", b"little")

    def write(self, chunks: Iterable[torch.Tensor]) -> None:
        """Write the next tensor from contiguous pieces, in order. Each piece may be overwritten afterwards."""
        with self._record(f"data/{self._next}") as record:
            for chunk in chunks:
                record.write(raw_bytes(chunk))
        self._next += 1

    def close(self) -> OutputFile:
        """Finish the archive -> the closed file, with its checksums."""
        self._small("version", b"3\n")
        self._zip.close()
        self._file.close()
        return self._file

    def __enter__(self) -> PthWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is not None:
            self._zip.fp = None  # otherwise its destructor would try to finish the archive
            self._file.close()

    def _small(self, name: str, content: bytes) -> None:
        with self._record(name) as record:
            record.write(content)

    def _record(self, name: str) -> Any:
        info = zipfile.ZipInfo(f"archive/{name}")
        header = self._file.written + 30 + len(info.filename) + 4 + _ZIP64_EXTRA
        padding = -header % _ALIGNMENT
        info.extra = struct.pack("<HH", 0x4246, padding) + bytes(padding)  # "FB": padding, as torch writes it
        return self._zip.open(info, "w", force_zip64=True)


class _Storage:
    """Stands for storage `key` while data.pkl is pickled."""

    def __init__(self, key: int, dtype: torch.dtype, count: int) -> None:
        self.identity = ("storage", _STORAGES[dtype], str(key), "cpu", count)


class _Entry:
    """Pickles as a contiguous tensor with its own storage."""

    def __init__(self, storage: _Storage, shape: tuple[int, ...]) -> None:
        self._storage, self._shape = storage, shape

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        strides = [1]
        for extent in reversed(self._shape[1:]):
            strides.insert(0, strides[0] * extent)
        rebuild = torch._utils._rebuild_tensor_v2
        hooks: collections.OrderedDict[str, Any] = collections.OrderedDict()
        return rebuild, (self._storage, 0, self._shape, tuple(strides), False, hooks)


class _Pickler(pickle.Pickler):
    def persistent_id(self, item: Any) -> Any:
        return item.identity if isinstance(item, _Storage) else None


def _pickled(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> bytes:
    entries = {
        name: _Entry(_Storage(key, dtype, torch.Size(shape).numel()), shape)
        for key, (name, shape) in enumerate(shapes.items())
    }
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(entries)
    return buffer.getvalue()
