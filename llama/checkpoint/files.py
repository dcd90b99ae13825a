"""Opening a checkpoint's files: what is wrong with a path, and strict JSON.

The files are not trusted. A few bytes of them must not cost much time or memory (docs/checkpoints.md,
Limits).
"""

from __future__ import annotations

import codecs
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointFormatError, CheckpointNotFoundError, ConfigError
from ..printable import reason, shown

__all__ = [
    "MOST_JSON",
    "as_path",
    "check_file",
    "check_folder",
    "is_there",
    "read_json",
    "read_small",
    "some",
    "strict_object",
    "unreadable",
]

# Larger than any config, index or safetensors header (the index of a 70B has 66 KB), and small enough that
# the parsed objects stay far below a model's memory: one byte of JSON can become 30 bytes of Python objects.
MOST_JSON = 4 << 20


def as_path(value: str | os.PathLike[str], name: str) -> Path:
    """A caller's path as a Path. Whether the file exists is not checked.

    Raises:
        ConfigError: `value` is not a path; `name` says which parameter it is.
    """
    try:
        return Path(value)
    except TypeError as error:
        raise ConfigError(f"{name} is {value!r}; it must be a path, as text or an os.PathLike") from error


def check_folder(folder: Path, kind: str = "checkpoint") -> None:
    """Raise CheckpointNotFoundError, with the reason, if `folder` is not a readable folder.

    kind: what it should hold, for messages.
    """
    found = _look_at(folder)
    if found is None:
        what = kind if folder.suffix == ".gguf" else f"{kind} folder"
        raise CheckpointNotFoundError(f"{what} {folder} does not exist; check the path, or download it")
    if not stat.S_ISDIR(found.st_mode):
        is_what = "is a file" if stat.S_ISREG(found.st_mode) else "is neither a file nor a folder"
        other = ", and not a GGUF" if kind == "checkpoint" and stat.S_ISREG(found.st_mode) else ""
        raise CheckpointNotFoundError(f"{folder} {is_what}{other}; pass the folder that holds the {kind}")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise CheckpointNotFoundError(f"{folder} may not be read; ask its owner for the permission")


def check_file(path: Path, why: str = "download it again") -> int:
    """Check that `path` is a readable file -> its size in bytes.

    Raises:
        CheckpointNotFoundError: it does not exist, or is a folder, pipe or device; the message ends with
            `why`.
        CheckpointFormatError: it cannot be read.
    """
    found = _look_at(path)
    if found is None:
        raise CheckpointNotFoundError(f"{path} is missing; {why}")
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for the other end
        raise CheckpointNotFoundError(f"{path} is not a file; {why}")
    try:
        with path.open("rb"):
            return found.st_size
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> CheckpointFormatError:
    """The error to raise when the system cannot read a file."""
    return CheckpointFormatError(f"{path} cannot be read: {error.strerror or reason(error)}")


def is_there(path: Path) -> bool:
    """Whether the path exists. A dangling link counts: opening it will say what is wrong."""
    return os.path.lexists(path)


def _look_at(path: Path) -> os.stat_result | None:
    """The status of what is at a path, following links; None if nothing is there."""
    try:
        return path.stat()
    except FileNotFoundError as error:
        if not os.path.lexists(path):
            return None
        problem: OSError | ValueError = error
    except (OSError, ValueError) as error:
        # A folder without search permission, a file in place of a folder, or a NUL in the name.
        problem = error
    if os.path.islink(path):
        raise CheckpointNotFoundError(
            f"{path} is a symbolic link that leads nowhere, or in a circle; point it to the real file"
        ) from problem
    why = problem.strerror if isinstance(problem, OSError) else problem
    raise CheckpointNotFoundError(f"{path} cannot be looked at: {why}; check the path") from problem


def read_small(path: Path, why: str, most: int = MOST_JSON) -> bytes:
    """The content of a small file, such as a config. A file of more than `most` bytes is not read.

    Raises:
        CheckpointNotFoundError: it does not exist; the message ends with `why`.
        CheckpointFormatError: it is too large, or cannot be read.
    """
    size = check_file(path, why)
    if size > most:
        raise CheckpointFormatError(
            f"{path} has {size:,} bytes, more than the limit of {most:,} for a {path.name}; {why}"
        )
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise unreadable(path, error) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of at most `MOST_JSON` bytes.

    Raises:
        CheckpointNotFoundError: it does not exist.
        CheckpointFormatError: it is too large, not a JSON object, or has a key twice.
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
        parse_int, parse_constant: as for `json.loads`.

    Raises:
        ValueError: it is not a JSON object, any object in it has a key twice, or a string holds a lone
            surrogate.
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
    """A list of names for a message: the first three, long ones shortened, and how many more there are."""
    return ", ".join(name if len(name) <= 200 else shown(name) for name in names[:3]) + (
        f" and {len(names) - 3} more" if len(names) > 3 else ""
    )
