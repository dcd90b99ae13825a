"""Laws of a .pth's zip archive: if its numbers disagree, it is refused before it is mapped."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from pth_checks import BYTES, agrees_with_torch, refuse
from pth_forge import (
    Entry,
    archive,
    ends,
    entries_of,
    state_dict,
    storage,
    tensor,
)


def sound() -> list[Entry]:
    two = {"a": tensor(), "b": tensor(stored=storage("1"))}
    return entries_of(state_dict(two), {"0": BYTES, "1": BYTES[::-1]})


def changed(index: int, kind: str, **said: int | bytes) -> Callable[[], bytes]:
    def make() -> bytes:
        entries = sound()
        getattr(entries[index], kind).update(said)
        return archive(entries)

    return make


def both(index: int, **said: int | bytes) -> Callable[[], bytes]:
    def make() -> bytes:
        entries = sound()
        entries[index].local.update(said)
        entries[index].central.update(said)
        return archive(entries)

    return make


def listed(change: Callable[[list[Entry]], object]) -> Callable[[], bytes]:
    def make() -> bytes:
        entries = sound()
        change(entries)
        return archive(entries)

    return make


def deflated() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for entry in sound():
            made.writestr(entry.name, entry.content + bytes(100_000))
    return buffer.getvalue()


ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "all deflated": (deflated, "is compressed"),
    "one said to be deflated": (both(3, method=8), "is compressed"),
    "another size when unpacked": (both(3, size=1 << 31), "is compressed"),
    "encrypted": (both(3, flags=1), "encrypted"),
    "on another disk": (changed(3, "central", disk=1), "encrypted, or has flags"),
    "longer than the file": (both(3, size=1 << 31, packed=1 << 31), "reaches past the start of the directory"),
    "over the next record": (both(2, size=70, packed=70), "overlaps"),
    "two at one place": (changed(3, "central", offset=0), "differs from the directory"),
    "a name twice": (listed(lambda all_: all_.insert(3, all_[2])), "'archive/data/0' is there twice"),
    "two names": (changed(2, "local", name=b"archive/data/1"), "differs from the directory"),
    "two sizes": (changed(2, "local", size=10), "differs from the directory"),
    "two sums": (changed(2, "local", crc=10), "differs from the directory"),
    "two ways": (changed(2, "local", method=8), "differs from the directory"),
    "an offset behind the file": (changed(2, "central", offset=1 << 31), "is truncated"),
    "a size that is elsewhere, and is not": (changed(2, "central", size=0xFFFFFFFF), "lacks a size"),
    "a name that is no text": (both(2, name=b"archive/data/\xff"), "is not UTF-8"),
    "another folder": (both(3, name=b"else/data/1"), "no data.pkl"),
    "no data.pkl": (listed(lambda all_: all_.pop(0)), "no data.pkl"),
    "a program of TorchScript": (listed(lambda all_: all_.append(Entry("archive/constants.pkl", b""))), "TorchScript"),
    "a storage that is missing": (listed(lambda all_: all_.pop(2)), "lacks the record data/'0'"),
    "a storage cut short": (listed(lambda all_: setattr(all_[2], "content", b"x")), "its record has 1"),
    "bytes behind the end": (lambda: archive(sound()) + b"x", "truncated"),
    "bytes before it": (lambda: b"x" + archive(sound()), "end record"),
    "nothing": (lambda: b"", "empty"),
    "an end alone": (lambda: ends(0, 0, 0), "no data.pkl"),
    "more records than it has": (lambda: ends(100_001, 0, 0), "100,001 records"),
    "a directory of a petabyte": (lambda: ends(1, 1 << 50, 0), "end record"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_hostile_archive_is_refused(tmp_path: Path, name: str) -> None:
    make, word = ARCHIVES[name]
    (tmp_path / "a.pth").write_bytes(archive(sound()))
    agrees_with_torch(tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes(make())
    refuse(tmp_path / "a.pth", word)


def test_a_directory_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    """It is there, as a hole; what it says of itself is true."""
    with (tmp_path / "a.pth").open("wb") as file:
        file.write(b"PK\3\4")
        file.seek(4 << 30)
        file.write(ends(10, (4 << 30) - 4, 4))
    refuse(tmp_path / "a.pth", "4,294,967,292 bytes")
