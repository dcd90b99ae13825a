"""The directory of a zip archive with uncompressed records, as torch.save writes it.

Every record that it returns is plain bytes within the file and overlaps no other record, so it can be
memory-mapped. Python's `zipfile` is not used: it decompresses, and it accepts a directory of any size.
Source: the published zip format (APPNOTE, sections 4.3 to 4.5).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from ...printable import shown

__all__ = ["CrcCheck", "Record", "read_directory"]

# A 70B in one file has 730 records, and a directory of 60 KB.
_MOST_RECORDS = 100_000
_LONGEST_DIRECTORY = 16 << 20

_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_ZIP64 = 1  # id of the extra field with the 64-bit sizes and offset
_FULL = 0xFFFFFFFF  # in a 32-bit field: the number is in the zip64 field
# Flags of a record that are accepted: a data descriptor follows the record; the name is UTF-8.
_SIZES_BEHIND, _UTF8 = 1 << 3, 1 << 11


class Record(NamedTuple):
    """Bytes [start, start + size) of the file, and their CRC-32 according to the archive."""

    start: int
    size: int
    crc: int


class _Entry(NamedTuple):
    """A record according to the directory."""

    name: bytes
    flags: int
    crc: int
    size: int
    header: int  # offset of its local header


def read_directory(file: int, size: int) -> dict[str, Record]:
    """The records of an archive, by name, in the order of the directory.

    Args:
        file: descriptor of the open file.
        size: its size in bytes.

    Raises:
        ValueError: it is not a complete zip archive; a record is compressed or encrypted, reaches past the
            file or overlaps another; a name occurs twice; or there are more records than any checkpoint has.
    """
    count, offset, length = _find(file, size)
    if count > _MOST_RECORDS or length > _LONGEST_DIRECTORY:
        raise ValueError(
            f"its directory has {count:,} records in {length:,} bytes; no checkpoint has more than"
            f" {_MOST_RECORDS:,} in {_LONGEST_DIRECTORY:,}"
        )
    entries = _entries(_read(file, offset, length), count)
    found: dict[str, Record] = {}
    end = 0
    for entry in sorted(entries, key=lambda each: each.header):
        name = _shown(entry.name)
        start = entry.header + _check_local(file, entry)
        if entry.header < end:
            raise ValueError(f"record {name} overlaps another one")
        end = start + entry.size
        if end > offset:
            raise ValueError(f"record {name} of {entry.size:,} bytes reaches past the start of the directory")
        try:
            text = entry.name.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"the record name {name} is not UTF-8") from error
        if text in found:
            raise ValueError(f"record {name} is there twice")
        found[text] = Record(start, entry.size, entry.crc)
    return found


def _find(file: int, size: int) -> tuple[int, int, int]:
    """Number of records, offset and length of the directory. It and the end records must end the file."""
    tail_size = min(size, _END.size + _LOCATOR.size + _END64.size)
    tail = _read(file, size - tail_size, tail_size)
    if size < _END.size or not tail[-_END.size :].startswith(b"PK\5\6"):
        raise ValueError("it is truncated, or no zip archive")
    _, disk, first_disk, here, count, length, offset, comment = _END.unpack(tail[-_END.size :])
    end = size - _END.size
    locator = tail[: -_END.size][-_LOCATOR.size :]
    if locator.startswith(b"PK\6\7"):
        _, _, at, _ = _LOCATOR.unpack(locator)
        end -= _LOCATOR.size + _END64.size
        if at != end or not tail.startswith(b"PK\6\6"):
            raise ValueError(f"its zip64 end record is not at byte {at:,}, as its locator says")
        short = (count, length, offset)
        _, _, _, _, disk, first_disk, here, count, length, offset = _END64.unpack(tail[: _END64.size])
        full = (0xFFFF, _FULL, _FULL)
        for low, high, most in zip(short, (count, length, offset), full, strict=True):
            if low not in (high, most):
                raise ValueError(f"its two end records disagree: {low:,} and {high:,}")
    if disk or first_disk or here != count or comment:
        raise ValueError("it is one part of several, or has a comment at its end; torch.save writes neither")
    if offset + length != end:
        raise ValueError(
            f"its directory of {length:,} bytes at byte {offset:,} does not end at byte {end:,}; the file is truncated,"
            " or something was put before or after it"
        )
    return count, offset, length


def _entries(directory: bytes, count: int) -> list[_Entry]:
    found = []
    at = 0
    for _ in range(count):
        if at + _ENTRY.size > len(directory) or not directory.startswith(b"PK\1\2", at):
            raise ValueError(f"its directory has no entry at byte {at:,} of {len(directory):,}")
        fields = _ENTRY.unpack_from(directory, at)
        _, _, _, flags, method, _, _, crc, packed, size, name_length, extra_length, comment, disk = fields[
            :14
        ]
        header = fields[16]
        at += _ENTRY.size
        name = directory[at : at + name_length]
        extra = directory[at + name_length : at + name_length + extra_length]
        at += name_length + extra_length + comment
        size, packed, header = _wide(extra, (size, packed, header))
        if method or size != packed:
            raise ValueError(f"record {_shown(name)} is compressed; torch.save does not compress records")
        if flags & ~(_SIZES_BEHIND | _UTF8) or disk:
            raise ValueError(
                f"record {_shown(name)} is encrypted, or has flags that torch.save does not write"
            )
        found.append(_Entry(name, flags, crc, size, header))
    if at != len(directory):
        raise ValueError(
            f"its {count:,} entries take {at:,} of the {len(directory):,} bytes of its directory"
        )
    return found


def _wide(extra: bytes, numbers: tuple[int, int, int]) -> tuple[int, ...]:
    """The numbers of an entry; those that do not fit 32 bits are taken from its zip64 field."""
    wide = b""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == _ZIP64:
            wide = extra[at + 4 : at + 4 + length]
        at += 4 + length
    found = []
    for number in numbers:
        if number == _FULL:
            if len(wide) < 8:
                raise ValueError("an entry of its directory lacks a size or an offset")
            number, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        found.append(number)
    return tuple(found)


def _check_local(file: int, entry: _Entry) -> int:
    """Size of the local header of a record in bytes. The header must agree with the directory."""
    raw = _read(file, entry.header, _LOCAL.size + len(entry.name))
    fields: tuple[Any, ...] = _LOCAL.unpack_from(raw)
    _, _, flags, method, _, _, crc, packed, size, name_length, extra_length = fields
    # With a data descriptor after the record, sizes and CRC may be 0 here.
    free = {0, _FULL} if flags & _SIZES_BEHIND else {_FULL}
    if (
        not raw.startswith(b"PK\3\4")
        or raw[_LOCAL.size :] != entry.name
        or (flags, method, name_length) != (entry.flags, 0, len(entry.name))
        or not {packed, size} <= free | {entry.size}
        or crc not in {entry.crc} | ({0} if flags & _SIZES_BEHIND else set())
    ):
        raise ValueError(
            f"the header of record {_shown(entry.name)} at byte {entry.header:,} differs from the directory"
        )
    return int(_LOCAL.size + name_length + extra_length)


def _read(file: int, offset: int, length: int) -> bytes:
    try:
        found = os.pread(file, length, offset)
    except (OSError, OverflowError) as error:  # an impossible offset
        raise ValueError(f"nothing can be read at byte {offset:,}") from error
    if len(found) != length:
        raise ValueError(f"it ends before byte {offset + length:,}: it is truncated")
    return found


def _shown(name: bytes) -> str:
    return shown(name.decode("utf-8", "backslashreplace"))


class CrcCheck:
    """Compares the records of a file with their CRCs while the file is read from start to end.

    Attributes:
        known: the archive has CRCs.
    """

    def __init__(self, records: Mapping[str, Record]) -> None:
        # An archive may be written without CRCs; all are 0 then (torch.serialization.set_crc32_options).
        known = any(record.crc for record in records.values())
        self._records = sorted(records.items(), key=lambda item: item[1].start) if known else []
        self._crcs = [0] * len(self._records)
        self._at = self._next = 0
        self.known = known

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the file."""
        end = self._at + len(chunk)
        view = memoryview(chunk)
        while self._next < len(self._records):
            record = self._records[self._next][1]
            first, last = max(record.start, self._at), min(record.start + record.size, end)
            if first < last:
                part = view[first - self._at : last - self._at]
                self._crcs[self._next] = zlib.crc32(part, self._crcs[self._next])
            if record.start + record.size > end:
                break
            self._next += 1
        self._at = end

    def wrong(self) -> list[str]:
        """Names of the records whose bytes do not have their CRC."""
        pairs = zip(self._records, self._crcs, strict=True)
        return [name for (name, record), crc in pairs if crc != record.crc]
