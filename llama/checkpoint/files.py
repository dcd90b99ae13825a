"""Files of a checkpoint as they are opened: one way to say what is wrong with a path, one way to read JSON."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointFormatError, CheckpointNotFoundError, ConfigError
from ..printable import reason

__all__ = [
    "Sink",
    "as_path",
    "check_file",
    "check_folder",
    "create",
    "raw_bytes",
    "read_json",
    "some",
    "strict_object",
]

_CHUNK = 8 << 20
# Larger than any config or index of a model; a page or a weight file in its place is not read into memory.
_MOST_JSON = 64 << 20


def as_path(value: str | os.PathLike[str], name: str) -> Path:
    """What a caller gave for a path, as one; whether there is such a file is for what opens it to say.

    Raises:
        ConfigError: it is of another type; `name` says which value it is.
    """
    try:
        return Path(value)
    except TypeError as error:
        raise ConfigError(f"{name} is {value!r}; it must be a path, as text or an os.PathLike") from error


def check_folder(folder: Path) -> None:
    """Raise CheckpointNotFoundError, saying why, where `folder` is no folder."""
    _check_path(folder)
    if not folder.exists():
        raise CheckpointNotFoundError(
            f"checkpoint folder {folder} does not exist; check the path, or download it"
        )
    if not folder.is_dir():
        raise CheckpointNotFoundError(f"{folder} is a file; pass the folder that holds the checkpoint")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise CheckpointNotFoundError(f"{folder} may not be read; ask its owner for the permission")


def check_file(path: Path, why: str = "download it again") -> int:
    """Size of a file in bytes.

    Raises:
        CheckpointNotFoundError: there is none, or it is no file; the message ends with `why`.
        CheckpointFormatError: it cannot be read.
    """
    _check_path(path)
    if not path.exists():
        raise CheckpointNotFoundError(f"{path} is missing; {why}")
    if not path.is_file():
        raise CheckpointNotFoundError(f"{path} is not a file; {why}")
    try:
        with path.open("rb"):
            return path.stat().st_size
    except OSError as error:
        raise CheckpointFormatError(f"{path} cannot be read: {error.strerror}") from error


def _check_path(path: Path) -> None:
    try:
        path.lstat()
    except FileNotFoundError:
        return
    # Not searchable, a name too long, a file where a folder should be; NUL in it, or half a surrogate pair.
    except (OSError, ValueError) as error:
        raise CheckpointNotFoundError(
            f"{path} cannot be looked at: {getattr(error, 'strerror', None) or reason(error)}; check the path"
        ) from error
    # `exists` says no for a link that leads nowhere and for one that leads to itself.
    if path.is_symlink() and not path.exists():
        raise CheckpointNotFoundError(
            f"{path} is a symbolic link that leads nowhere, or in a circle; point it to the real file"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointNotFoundError: no such file.
        CheckpointFormatError: no JSON, no object, a key that occurs twice.
    """
    size = check_file(path, f"fetch the {path.name} that came with the weights")
    if size > _MOST_JSON:
        raise CheckpointFormatError(f"{path} has {size:,} bytes, which no {path.name} has; fetch it again")
    try:
        return strict_object(path.read_bytes())
    except ValueError as error:
        raise CheckpointFormatError(f"{path} is not usable: {error}; fetch it again") from error


def strict_object(text: bytes) -> dict[str, Any]:
    """The JSON object in `text`; ValueError where it is none, or a key occurs twice in any object of it."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the key {twice!r} occurs twice")
        return found

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(value, Mapping):
        raise ValueError(f"it holds {type(value).__name__}, not an object")
    return dict(value)


def some(names: list[str]) -> str:
    """A list for a message: the first three."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def raw_bytes(x: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied."""
    flat: Any = x.view(torch.uint8).reshape(-1).numpy()
    return memoryview(flat)


class Sink:
    """A new file that is written in order; its checksums are taken beside the writing. Nothing is written through
    a link, or into a file that is there.

    Attributes:
        md5: hex digits, where it was asked for; of what was given to `write`.
        written: bytes so far.
    """

    def __init__(self, path: Path, md5: bool = False) -> None:
        self.path = path
        self.written = 0
        self._file = path.open("xb")
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 else None
        self._crc = 0
        self._hasher = ThreadPoolExecutor(1)

    @property
    def md5(self) -> str | None:
        return None if self._md5 is None else self._md5.hexdigest()

    def write(self, content: bytes | memoryview) -> int:
        """Append. `content` may be overwritten afterwards."""
        hashed = self._hasher.submit(self._md5.update, content) if self._md5 is not None else None
        try:
            self._crc = zlib.crc32(content, self._crc)
            self._file.write(content)
        finally:
            if hashed is not None:
                hashed.result()
        self.written += len(content)
        return len(content)

    def flush(self) -> None:
        """For zipfile, which asks for it."""
        self._file.flush()

    def close(self) -> None:
        """Twice is fine."""
        self._hasher.shutdown()
        self._file.close()

    def read_back(self) -> Iterator[int]:
        """Read the closed file, yielding the bytes of each chunk; at the end compare it with what was written.

        Raises:
            OSError: it is something else.
        """
        crc, size = 0, 0
        with self.path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                crc = zlib.crc32(chunk, crc)
                size += len(chunk)
                yield len(chunk)
        if (crc, size) != (self._crc, self.written):
            raise OSError(
                f"{self.path.name} does not read back as it was written ({self.written:,} bytes, read {size:,});"
                " check the disk"
            )


def create(path: Path, content: bytes) -> str:
    """Write a new small file and read it back -> its md5 in hex digits.

    Raises:
        OSError: it is there, cannot be written, or is something else when it is read.
    """
    sink = Sink(path, md5=True)
    try:
        sink.write(content)
    finally:
        sink.close()
    for _ in sink.read_back():
        pass
    assert sink.md5 is not None
    return sink.md5
