"""The files of a GGUF model that was split: NAME-00001-of-00003.gguf, the metadata in the first."""

from __future__ import annotations

import re

from ...errors import CheckpointFormatError, CheckpointMismatchError, CheckpointNotFoundError
from ...printable import shown
from ..files import is_there, some
from .gguf import GgufFile, open_gguf

__all__ = ["part_of", "split_files"]

_MOST_FILES = 1024


def part_of(name: str) -> tuple[str, int] | None:
    """The model's name and the number of its files, by the name of one of them; None if it is no such name."""
    match = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", name, re.DOTALL)
    return None if match is None else (match[1], int(match[2]))


def split_files(first: GgufFile) -> list[GgufFile]:
    """All files of a model of which one is open, in order: it says in how many it was split.

    Raises:
        CheckpointNotFoundError, CheckpointFormatError: as for `open_gguf`.
        CheckpointMismatchError: they do not belong together.
    """
    count = _split(first, "split.count", 1)
    if count <= 1:
        return [first]
    path = first.path
    part = part_of(path.name)
    if part is None or part[1] != count:
        number = _split(first, "split.no", 0) + 1
        raise CheckpointMismatchError(
            f"{path} is part {number} of {count} of a model; name the parts NAME-00001-of-{count:05d}.gguf and so on,"
            " as they were published, in one folder"
        )
    if count > _MOST_FILES:
        raise CheckpointFormatError(
            f"{path} says that it is one of {count:,} files; at most {_MOST_FILES:,} are read"
        )
    paths = [path.with_name(name) for name in _names(*part)]
    missing = [each.name for each in paths if not is_there(each)]
    if missing:
        raise CheckpointNotFoundError(
            f"{path.parent} lacks {len(missing)} of the {count} files of {part[0]}: {some(missing)}; download them too"
        )
    files = [first if each == path else open_gguf(each) for each in paths]
    for i, file in enumerate(files):
        told = _split(file, "split.no", -1), _split(file, "split.count", -1)
        if told != (i, count):
            raise CheckpointMismatchError(
                f"{file.path} says that it is file {told[0] + 1} of {told[1]}, but its name {i + 1} of {count}; files"
                " of different downloads may have been mixed"
            )
    total, announced = sum(len(file.tensors) for file in files), _split(files[0], "split.tensors.count", -1)
    if total != announced:
        raise CheckpointMismatchError(
            f"the {count} files of {part[0]} hold {total} tensors, but {files[0].path.name} announces {announced};"
            " download them again"
        )
    return files


def _names(model: str, count: int) -> list[str]:
    return [f"{model}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)]


def _split(file: GgufFile, key: str, default: int) -> int:
    value = file.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise CheckpointFormatError(f"{file.path}: {key} is {shown(value)}; it must be an integer")
    return value
