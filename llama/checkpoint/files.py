"""Files of a checkpoint as they are opened: one way to say what is wrong with a path, one way to read JSON.

They are a stranger's: a few bytes of them must not ask for much time or memory (docs/checkpoints.md, Limits)."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointFormatError, CheckpointNotFoundError, ConfigError
from ..printable import reason, shown

__all__ = [
    "MOST_JSON",
    "Sink",
    "as_path",
    "check_file",
    "check_folder",
    "create",
    "is_there",
    "raw_bytes",
    "read_json",
    "read_small",
    "some",
    "strict_object",
    "unreadable",
]

_CHUNK = 8 << 20
# Larger than any config, index or header of a model (a 70B's index has 66 KB), small enough that the objects made of
# it stay far below a model's memory: a byte of JSON can become 30 bytes of Python's.
MOST_JSON = 4 << 20


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
    found = _look_at(folder)
    if found is None:
        raise CheckpointNotFoundError(
            f"checkpoint folder {folder} does not exist; check the path, or download it"
        )
    if not stat.S_ISDIR(found.st_mode):
        raise CheckpointNotFoundError(f"{folder} is a file; pass the folder that holds the checkpoint")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise CheckpointNotFoundError(f"{folder} may not be read; ask its owner for the permission")


def check_file(path: Path, why: str = "download it again") -> int:
    """Size of a file in bytes.

    Raises:
        CheckpointNotFoundError: there is none, or it is a folder, pipe or device; the message ends with `why`.
        CheckpointFormatError: it cannot be read.
    """
    found = _look_at(path)
    if found is None:
        raise CheckpointNotFoundError(f"{path} is missing; {why}")
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for its other end
        raise CheckpointNotFoundError(f"{path} is not a file; {why}")
    try:
        with path.open("rb"):
            return found.st_size
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> CheckpointFormatError:
    """What to raise where the system does not let a file be read."""
    return CheckpointFormatError(f"{path} cannot be read: {error.strerror or reason(error)}")


def is_there(path: Path) -> bool:
    """Whether a folder has such an entry; a link that leads nowhere is one, and what opens it says what is wrong."""
    return os.path.lexists(path)


def _look_at(path: Path) -> os.stat_result | None:
    """What is at a path, through links; None where there is nothing."""
    try:
        return path.stat()
    except FileNotFoundError as error:
        if not os.path.lexists(path):
            return None
        problem: OSError | ValueError = error
    except (OSError, ValueError) as error:
        # Not searchable, a file where a folder should be, a NUL in the name.
        problem = error
    if os.path.islink(path):
        raise CheckpointNotFoundError(
            f"{path} is a symbolic link that leads nowhere, or in a circle; point it to the real file"
        ) from problem
    why = problem.strerror if isinstance(problem, OSError) else problem
    raise CheckpointNotFoundError(f"{path} cannot be looked at: {why}; check the path") from problem


def read_small(path: Path, why: str, most: int = MOST_JSON) -> bytes:
    """The content of a file that is no weights; one of more than `most` bytes is not read.

    Raises:
        CheckpointNotFoundError: no such file; the message ends with `why`.
        CheckpointFormatError: too large, or it cannot be read.
    """
    size = check_file(path, why)
    if size > most:
        raise CheckpointFormatError(
            f"{path} has {size:,} bytes, more than the {most:,} that a {path.name} is read with; {why}"
        )
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise unreadable(path, error) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of at most `MOST_JSON` bytes.

    Raises:
        CheckpointNotFoundError: no such file.
        CheckpointFormatError: too large, no JSON, no object, a key that occurs twice.
    """
    text = read_small(path, f"fetch the {path.name} that came with the weights")
    try:
        return strict_object(text)
    except ValueError as error:
        raise CheckpointFormatError(f"{path} is not usable: {error}; fetch it again") from error


def strict_object(
    text: bytes,
    *,
    parse_int: Callable[[str], Any] | None = None,
    parse_constant: Callable[[str], Any] | None = None,
) -> dict[str, Any]:
    """The JSON object in `text`.

    Args:
        parse_int, parse_constant: as of `json.loads`.

    Raises:
        ValueError: it is none, a key occurs twice in any object of it, or a string is no text (a lone surrogate).
    """
    if text.startswith(codecs.BOM_UTF8):
        raise ValueError("it begins with a byte-order mark (BOM); save it as UTF-8 without one")
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=parse_int,
            parse_constant=parse_constant,
        )
        if b"\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (json.JSONDecodeError, UnicodeError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(value, Mapping):
        raise ValueError(f"it holds {type(value).__name__}, not an object")
    return dict(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {shown(twice)} occurs twice")
    return found


def some(names: list[str]) -> str:
    """A list for a message: the first three, each cut where it is long."""
    return ", ".join(name if len(name) <= 200 else shown(name) for name in names[:3]) + (
        f" and {len(names) - 3} more" if len(names) > 3 else ""
    )


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
