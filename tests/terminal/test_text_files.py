"""Laws of files that are written in one piece: old or new, never between, and never over somebody's change."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from llama.errors import PromptError
from llama.terminal.files import FileChangedError, TextFile, write_atomically


def test_a_file_is_replaced_and_keeps_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_bytes(b"old\r\n")
    file.chmod(0o640)
    read = TextFile.read(file)
    assert read.text == "old\r\n"
    read.replace("new é\r\n")
    assert file.read_bytes() == "new é\r\n".encode()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["a.py"]


def test_a_new_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "new", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    real, link = tmp_path / "folder" / "real", tmp_path / "link"
    real.write_text("old")
    link.symlink_to(real)
    TextFile.read(link).replace("new")
    assert link.is_symlink()
    assert real.read_text() == "new"


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path, kind: str) -> None:
    """As /dev/null would be, by root."""
    target = tmp_path / kind
    target.mkdir() if kind == "folder" else os.mkfifo(target)
    with pytest.raises(OSError, match="Not a regular file"):
        write_atomically(target, b"x")
    assert [each.name for each in tmp_path.iterdir()] == [kind]
    assert not target.is_file()


def test_a_byte_order_mark_is_no_text_and_stays(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"\xef\xbb\xbfold")
    read = TextFile.read(file)
    assert read.text == "old"
    read.replace("new")
    assert file.read_bytes() == b"\xef\xbb\xbfnew"


@pytest.mark.parametrize("change", ["written", "gone"])
def test_a_file_that_changed_meanwhile_is_left_as_it_is(tmp_path: Path, change: str) -> None:
    file = tmp_path / "a"
    file.write_text("old")
    read = TextFile.read(file)
    if change == "gone":
        file.unlink()
    else:
        file.write_text("mine")
    with pytest.raises(FileChangedError, match="changed meanwhile"):
        read.replace("new")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == (
        [] if change == "gone" else [("a", "mine")]
    )


@pytest.mark.parametrize("step", ["fsync", "replace", "fchmod"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    file = tmp_path / "a"
    file.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="no space"):
        TextFile.read(file).replace("new")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("a", "old")]


def test_the_new_file_is_on_disk_before_it_has_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, name=name: (steps.append(name), real(*a))[1])
    write_atomically(tmp_path / "a", b"x")
    assert steps == ["fsync", "replace", "fsync"]  # the last is the folder's


def test_a_file_that_is_not_utf_8_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one\ntwo \xe9\n")
    with pytest.raises(PromptError, match="0xe9 in line 2"):
        TextFile.read(file)
