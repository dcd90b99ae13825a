"""torch's .pth files: opened as mapped tensors without running their pickle, and written one tensor at a time.

A .pth is a zip archive of stored (not compressed) records: data.pkl with names, shapes and dtypes, and
data/N with the bytes of storage N, each beginning at a multiple of 64. Source: torch.save's format since
torch 1.6, as described in torch's notes on serialization.
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
from .files import Sink, check_file, raw_bytes
from .format import IGNORED

__all__ = ["PthWriter", "open_pth"]

_STORAGES = {
    torch.bfloat16: torch.BFloat16Storage,
    torch.float16: torch.HalfStorage,
    torch.float32: torch.FloatStorage,
}
_ALIGNMENT = 64
# zipfile puts these 20 bytes behind our padding, for sizes of 4 GB and more.
_ZIP64_EXTRA = 20


def open_pth(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .pth, mapped. Nothing but tensors and plain containers is unpickled.

    Raises:
        CheckpointNotFoundError: no such file.
        CheckpointFormatError: HTML, a bare pickle, a truncated file, objects other than tensors.
    """
    size = check_file(path)
    with path.open("rb") as file:
        head = file.read(512)
    if head.lstrip()[:1] == b"<":
        raise CheckpointFormatError(
            f"{path} is an HTML or XML page of {size} bytes, not weights; download it again"
        )
    if head[:1] == b"\x80":
        raise CheckpointFormatError(
            f"{path} is a bare pickle (torch's format before 1.6, or no checkpoint) and was not run;"
            " load it in torch with weights_only=True and torch.save it again"
        )
    if not zipfile.is_zipfile(path):
        kind = "is empty" if size == 0 else f"is not a complete torch file ({size} bytes; truncated?)"
        raise CheckpointFormatError(f"{path} {kind}; download it again, and compare it with checklist.chk")
    try:
        loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointFormatError(
            f"{path} holds more than tensors and was not run: {str(error).splitlines()[0][:200]}."
            " Only load checkpoints saved as a plain state dict"
        ) from error
    except UnicodeEncodeError as error:
        raise CheckpointFormatError(
            f"{os.fsencode(path)!r} has a name that is not UTF-8, which torch cannot open; rename folder or file"
        ) from error
    except Exception as error:  # whatever a damaged pickle makes of its reader
        raise CheckpointFormatError(
            f"{path} cannot be read ({str(error).splitlines()[0][:200]}); download it again"
        ) from error
    if not isinstance(loaded, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in loaded.items()
    ):
        raise CheckpointFormatError(
            f"{path} holds {type(loaded).__name__}, not a dictionary of named tensors"
        )
    _check_mapped(path, loaded)
    return {name: value for name, value in loaded.items() if name not in IGNORED}


def _check_mapped(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors that are not the file's own bytes: what reads them gives their pages back (`windows`)."""
    with zipfile.ZipFile(path) as archive:
        orders = [name for name in archive.namelist() if name.endswith("/byteorder")]
        if any(archive.read(name) == b"big" for name in orders):
            raise CheckpointFormatError(
                f"{path} was saved on a big-endian machine; load it in torch on this one and save it again"
            )
    ranges = _mappings(path)
    for name, value in tensors.items():
        first = value.untyped_storage().data_ptr()
        last = first + value.untyped_storage().nbytes()
        if ranges is not None and value.numel() and not any(a <= first and last <= b for a, b in ranges):
            raise CheckpointFormatError(
                f"{path}: {name} is not stored as plain bytes; load the file in torch with weights_only=True and save"
                " its tensors again"
            )


def _mappings(path: Path) -> list[tuple[int, int]] | None:
    """Addresses at which a file is mapped; None where the system does not say."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return None
    inode = str(path.stat().st_ino)
    found: list[tuple[int, int]] = []
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) > 4 and fields[4] == inode:
            first, last = (int(each, 16) for each in fields[0].split("-"))
            # Neighbouring pieces of one mapping may be listed one by one.
            if found and found[-1][1] == first:
                found[-1] = (found[-1][0], last)
            else:
                found.append((first, last))
    return found or None  # a layered file system may list another inode


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
