"""GGUF headers written number by number, so that any of them can be wrong."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

# Codes of the types of values.
CODES = {
    "u8": 0,
    "i8": 1,
    "u16": 2,
    "i16": 3,
    "u32": 4,
    "i32": 5,
    "f32": 6,
    "bool": 7,
    "str": 8,
    "array": 9,
    "u64": 10,
}
CODES |= {"i64": 11, "f64": 12}
_STRUCT = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


@dataclass
class Tensor:
    """An entry of the list of tensors; `at` None: behind the one before."""

    name: bytes
    extents: tuple[int, ...]
    kind: int = 0
    at: int | None = None
    nbytes: int = 0


@dataclass
class Forged:
    """A file. Counts that are None are true."""

    keys: list[tuple[bytes, str, Any]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: bytes = struct.pack("<I", 3)
    count: int | None = None
    key_count: int | None = None
    alignment: int = 32
    data: int | None = None

    def header(self) -> bytes:
        """All before the padding in front of the data."""
        count = len(self.tensors) if self.count is None else self.count
        keys = len(self.keys) if self.key_count is None else self.key_count
        out = self.magic + self.version + struct.pack("<QQ", count, keys)
        for key, kind, value in self.keys:
            out += text(key) + struct.pack("<I", CODES.get(kind, 99)) + _value(kind, value)
        at = 0
        for tensor in self.tensors:
            place = at if tensor.at is None else tensor.at
            out += text(tensor.name) + struct.pack("<I", len(tensor.extents))
            out += struct.pack(f"<{len(tensor.extents)}QIQ", *tensor.extents, tensor.kind, place)
            at = -(-(place + tensor.nbytes) // self.alignment) * self.alignment
        return out

    def content(self) -> bytes:
        """The whole file."""
        header = self.header()
        data = self.data
        if data is None:
            data = sum(-(-tensor.nbytes // self.alignment) * self.alignment for tensor in self.tensors)
        return header + b"\0" * (-len(header) % self.alignment) + b"\0" * data


def text(content: bytes) -> bytes:
    """A string as the format has it."""
    return struct.pack("<Q", len(content)) + content


def _value(kind: str, value: Any) -> bytes:
    if isinstance(value, bytes) and kind != "str":
        return value  # as it is
    if kind == "str":
        return text(value)
    if kind == "array":
        inner, values = value
        body = b"".join(_value(inner, each) for each in values)
        return struct.pack("<IQ", CODES[inner], len(values)) + body
    return struct.pack("<" + _STRUCT[CODES[kind]], value)
