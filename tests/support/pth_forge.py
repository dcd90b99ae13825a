"""Makes .pth files by hand: zip archives in which any number can be wrong, pickles operation by operation."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHAPE_16 = (4, 4)


@dataclass
class Entry:
    """A record, and what its two headers say where that is not the truth."""

    name: str
    content: bytes
    local: dict[str, int | bytes] = field(default_factory=dict)
    central: dict[str, int | bytes] = field(default_factory=dict)
    extra: bytes = b""


def header(entry: Entry, offset: int, kind: str) -> bytes:
    """The local header or the one in the directory."""
    said: dict[str, Any] = {
        "name": entry.name.encode(),
        "flags": 0,
        "method": 0,
        "crc": zlib.crc32(entry.content),
        "packed": len(entry.content),
        "size": len(entry.content),
        "offset": offset,
        "disk": 0,
        "extra": entry.extra if kind == "local" else b"",
    } | (entry.local if kind == "local" else entry.central)
    numbers = (said["crc"], said["packed"], said["size"], len(said["name"]), len(said["extra"]))
    if kind == "local":
        fixed = struct.pack("<4s5H3I2H", b"PK\3\4", 20, said["flags"], said["method"], 0, 0, *numbers)
    else:
        fixed = struct.pack("<4s6H3I2H", b"PK\1\2", 20, 20, said["flags"], said["method"], 0, 0, *numbers)
        fixed += struct.pack("<3H2I", 0, said["disk"], 0, 0, said["offset"])
    return fixed + said["name"] + said["extra"]


def ends(count: int, length: int, offset: int) -> bytes:
    """The end of an archive, as torch has it: in 64 bits, and again in 32."""
    end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, offset)
    end += struct.pack("<4sIQI", b"PK\6\7", 0, offset + length, 1)
    short = (min(count, 0xFFFF), min(count, 0xFFFF), min(length, 0xFFFFFFFF), min(offset, 0xFFFFFFFF))
    return end + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, *short, 0)


def archive(entries: Sequence[Entry]) -> bytes:
    body, directory = b"", b""
    for entry in entries:
        directory += header(entry, len(body), "central")
        body += header(entry, len(body), "local") + entry.content
    return body + directory + ends(len(entries), len(directory), len(body))


def entries_of(pickled: bytes, storages: Mapping[str, bytes], folder: str = "archive") -> list[Entry]:
    """The records of torch.save."""
    return [
        Entry(f"{folder}/data.pkl", pickled),
        Entry(f"{folder}/byteorder", b"little"),
        *(Entry(f"{folder}/data/{key}", content) for key, content in storages.items()),
        Entry(f"{folder}/version", b"3\n"),
    ]


def write(path: Path, pickled: bytes, storages: Mapping[str, bytes] | None = None) -> Path:
    path.write_bytes(archive(entries_of(pickled, storages or {})))
    return path


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def numbers(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key: str = "0", count: int = 16, kind: str = "FloatStorage") -> bytes:
    parts = (text("storage"), f"ctorch\n{kind}\n".encode(), text(key), text("cpu"), number(count))
    return b"(" + b"".join(parts) + b"tQ"


def tensor(
    shape: Sequence[int] = SHAPE_16,
    strides: Sequence[int] = (4, 1),
    offset: int = 0,
    stored: bytes | None = None,
    more: bytes = b"",
) -> bytes:
    parts = (
        stored if stored is not None else storage(),
        number(offset),
        numbers(shape),
        numbers(strides),
        b"\x89",
        b"ccollections\nOrderedDict\n)R",
        more,
    )
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + b"".join(parts) + b"tR"


def state_dict(items: Mapping[str, bytes]) -> bytes:
    return b"\x80\2}(" + b"".join(text(name) + value for name, value in items.items()) + b"u."
