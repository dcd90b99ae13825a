"""torch's .pth files: opened as mapped tensors without running their pickle, and written one tensor at a time.

A .pth is a zip archive of stored (not compressed) records: data.pkl with names, shapes and dtypes, and
data/N with the bytes of storage N, each beginning at a multiple of 64. Source: torch.save's format since
torch 1.6, as described in torch's notes on serialization.

`torch.load` is not used, not even with weights_only: it takes memory and time that the file asks for before
anybody can look (docs/log.md). The tests hold both to the same tensors.
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

from ..errors import CheckpointFormatError
from .files import Sink, check_file, raw_bytes, unreadable
from .format import IGNORED
from .mapped import MappedFile, TensorFile
from .pickle_walk import walk
from .stored_tensor import StoredTensor
from .zip_directory import Record, quoted, read_directory

__all__ = ["PthWriter", "open_pth", "records_of"]

_STORAGES = {
    torch.bfloat16: torch.BFloat16Storage,
    torch.float16: torch.HalfStorage,
    torch.float32: torch.FloatStorage,
}
_ALIGNMENT = 64
# zipfile puts these 20 bytes behind our padding, for sizes of 4 GB and more.
_ZIP64_EXTRA = 20
# That of a 70B in one file takes 120 KB.
_LONGEST_PICKLE = 16 << 20
# Tensors may share a storage, as tied embeddings do; all of them together are no more than so many files.
_MOST_SHARED = 4


def open_pth(path: Path) -> TensorFile:
    """The tensors of a .pth, mapped; every byte of them lies within the file.

    Raises:
        CheckpointNotFoundError: no such file.
        CheckpointFormatError: HTML, a bare pickle, a truncated file, objects other than tensors, tensors that
            are not stored as plain bytes.
    """
    check_file(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            _check_head(path, file.read(512), size)
            records = _records(path, file.fileno(), size)
            stored = walk(_content(file.fileno(), records, "data.pkl", _LONGEST_PICKLE))
            _check_order(file.fileno(), records)
            places = _places(stored, records, size)
            mapped = MappedFile(path, file.fileno(), size)
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        if isinstance(error, CheckpointFormatError):
            raise
        raise CheckpointFormatError(f"{path} {error}") from error
    tensors = {
        name: mapped.tensor(each.storage.dtype, places[name], each.shape, each.strides)
        for name, each in stored.items()
        if name not in IGNORED
    }
    return TensorFile(mapped, tensors)


def records_of(path: Path) -> dict[str, Record]:
    """The records of a .pth; none where it is no sound archive.

    Raises:
        OSError: it cannot be read.
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
    """The records of a .pth by their names in it: torch.save puts all into one folder, named as it likes."""
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
        raise CheckpointFormatError(f"{path} is a zip archive, but none of torch.save: it has no data.pkl")
    if "constants.pkl" in found:
        raise CheckpointFormatError(
            f"{path} is a TorchScript program, not weights; torch.save the state dict of what it holds"
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


def _places(stored: Mapping[str, StoredTensor], records: Mapping[str, Record], size: int) -> dict[str, int]:
    """The byte of the file at which each tensor begins.

    Raises:
        ValueError: a tensor is not within the record that it names.
    """
    found = {}
    total = 0
    for name, each in stored.items():
        storage, itemsize = each.storage, each.storage.dtype.itemsize
        record = records.get(f"data/{storage.key}")
        if record is None:
            raise ValueError(
                f"lacks the record data/{storage.key[:100]!r} of {quoted(name)}; download it again"
            )
        if storage.count * itemsize > record.size:
            raise ValueError(
                f"says that {quoted(name)} lies in {storage.count * itemsize:,} bytes, but its record has"
                f" {record.size:,}; download it again"
            )
        total += torch.Size(each.shape).numel() * itemsize
        found[name] = record.start + each.offset * itemsize
    if total > _MOST_SHARED * size:
        raise ValueError(
            f"has {size:,} bytes, but its tensors take {total:,}: most of them are the same bytes under many names."
            " No model of this family is stored so; it was made to do harm, or is of another kind"
        )
    return found


class PthWriter:
    """Writes a dictionary of named tensors as torch.save does, a chunk at a time.

    Args:
        path: is created.
        shapes: names and shapes, in the order in which the tensors will be written.
        dtype: of all of them.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        self.path = path
        self._file = Sink(path, md5=True)
        # Not seekable, so that zipfile writes each byte once and the hash can follow.
        self._zip = zipfile.ZipFile(cast("BinaryIO", self._file), "w", zipfile.ZIP_STORED, allowZip64=True)
        self._next = 0
        self._small("data.pkl", _pickled(shapes, dtype))
        self._small("byteorder", b"little")

    def write(self, chunks: Iterable[torch.Tensor]) -> None:
        """The next tensor, as contiguous pieces of it in order. A piece may be overwritten afterwards."""
        with self._record(f"data/{self._next}") as record:
            for chunk in chunks:
                record.write(raw_bytes(chunk))
        self._next += 1

    def close(self) -> Sink:
        """Finish the archive -> its checksums."""
        self._small("version", b"3\n")
        self._zip.close()
        self._file.close()
        return self._file

    def __enter__(self) -> PthWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is not None:
            self._zip.fp = None  # or its destructor would try to finish the archive
            self._file.close()

    def _small(self, name: str, content: bytes) -> None:
        with self._record(name) as record:
            record.write(content)

    def _record(self, name: str) -> Any:
        info = zipfile.ZipInfo(f"archive/{name}")
        header = self._file.written + 30 + len(info.filename) + 4 + _ZIP64_EXTRA
        padding = -header % _ALIGNMENT
        info.extra = struct.pack("<HH", 0x4246, padding) + bytes(padding)  # "FB": padding, as torch has it
        return self._zip.open(info, "w", force_zip64=True)


class _Storage:
    """Stands for storage `key` while data.pkl is made."""

    def __init__(self, key: int, dtype: torch.dtype, count: int) -> None:
        self.identity = ("storage", _STORAGES[dtype], str(key), "cpu", count)


class _Entry:
    """Pickles as a contiguous tensor of its own storage."""

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
