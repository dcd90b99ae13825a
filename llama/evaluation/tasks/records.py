"""Reads the data file of a task: JSON lines, or one JSON list, gzip or not. Says which line is wrong, and why."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import EvaluationError
from ...printable import reason, shown
from ..problem import DataFile

__all__ = ["Record", "Shape", "described", "read_records"]

Record = dict[str, Any]

_GZIP = b"\x1f\x8b"
_SURROGATE = re.compile("[\ud800-\udfff]")
_KINDS = {str: "a text", int: "a number", list: "a list of texts"}


@dataclass(frozen=True)
class Shape:
    """What the records of a task's file look like.

    keys: what each must have: str, int, or list for a list of texts. Others are let be.
    name: the key of a record's id, which is its own.
    mark, pattern: a key, and a regular expression that its value matches, as text, in this task's file alone.
    """

    keys: Mapping[str, type]
    name: str
    mark: str
    pattern: str


def described(data: DataFile) -> str:
    """The file, its project and its licence, for messages."""
    return f"{data.file} of {data.project} ({data.licence})"


def read_records(path: Path | None, title: str, data: DataFile, shape: Shape) -> list[Record]:
    """The records of a task's file, in its order.

    Raises:
        EvaluationError: there is no path, and the message says which file --data takes and where it is from; or the
            file cannot be read, a line is broken, two records have one id, or it is another task's file.
    """
    if path is None:
        raise EvaluationError(
            f"{title} needs its problems: get {described(data)} and name the file by --data FILE"
        )
    records: list[Record] = []
    places: dict[object, str] = {}
    for place, value in _values(path):
        wrong = _wrong(value, shape)
        if wrong or not isinstance(value, dict):
            raise EvaluationError(f"{path}, {place}: {wrong}; {title} takes {described(data)}")
        earlier = places.setdefault(value[shape.name], place)
        if earlier != place:
            raise EvaluationError(f"{path}: {earlier} and {place} have the same id, {value[shape.name]}")
        records.append(value)
    if not records:
        raise EvaluationError(f"{path} is empty; {title} takes {described(data)}")
    return records


def _wrong(record: object, shape: Shape) -> str:
    """What is wrong with a record; "" if nothing is."""
    if not isinstance(record, dict):
        return f"expected a JSON object, got {shown(record)}"
    for key, kind in shape.keys.items():
        if key not in record:
            return f"it has no {key!r}, only {', '.join(map(repr, record)) or 'nothing'}"
        value = record[key]
        texts = value if isinstance(value, list) else [value] if kind is str else []
        if type(value) is not kind or not all(isinstance(text, str) for text in texts):
            return f"{key!r} must be {_KINDS[kind]}, got {shown(value)}"
        if any(_SURROGATE.search(text) for text in texts):
            return f"{key!r} holds half of a surrogate pair, which is no text"
    if not re.fullmatch(shape.pattern, str(record[shape.mark])):
        return f"its {shape.mark!r} is {shown(record[shape.mark])}, which is another benchmark's"
    return ""


def _values(path: Path) -> Iterator[tuple[str, object]]:
    """The JSON values of a file, each with its place in it."""
    text = _text(path)
    if text.lstrip()[:1] == "[":
        values = _parsed(text, f"{path}")
        for number, value in enumerate(values if isinstance(values, list) else [], 1):
            yield f"record {number}", value
        return
    # Not splitlines: a JSON text may hold U+2028 as it is.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", _parsed(line, f"{path}, line {number}")


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path} is no file of JSON lines: byte {error.start} is not UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:  # gzip's own error is an OSError
        why = (isinstance(error, OSError) and error.strerror) or reason(error)
        raise EvaluationError(f"cannot read {path}: {why}") from error


def _parsed(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{where}: broken JSON ({reason(error)}); get the file again") from error
