"""Laws of what `convert` refuses: a target that must not be replaced, and parameters that do not fit."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from conversions import (
    WIDE,
    assert_is_twin,
    assert_shards,
    content,
    left_in,
    meta_folder,
    overflowing,
    refused,
    to,
    weights_of,
)
from tiny_tokenizers import tiny_model_path

from llama.checkpoint import open_checkpoint
from llama.checkpoint.convert import atomic_rename
from llama.errors import (
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CheckpointWriteError,
    ConfigError,
)


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "link to a folder", "link to nowhere"])
def test_a_target_that_is_there_is_refused(tmp_path: Path, meta: Path, kind: str) -> None:
    target = tmp_path / "out" / "target"
    target.parent.mkdir()
    if kind == "folder":
        shutil.copytree(meta, target)
    elif kind == "empty folder":
        target.mkdir()
    elif kind == "file":
        target.write_text("mine")
    else:
        (tmp_path / "elsewhere").mkdir()
        target.symlink_to(tmp_path / ("elsewhere" if kind.endswith("folder") else "nowhere"))
    text = refused(CheckpointWriteError, "meta", meta, target)
    assert f"{target} exists" in text
    assert "--force" in text


@pytest.mark.parametrize("old", ["meta", "hf", "empty"])
def test_force_replaces_a_checkpoint_folder(tmp_path: Path, meta: Path, old: str) -> None:
    target = tmp_path / "out" / "target"
    target.mkdir(parents=True)
    if old != "empty":
        target.rmdir()
        to(old, meta, target, shards=4 if old == "meta" else None)
    to("meta", meta, target, shards=1, force=True)
    assert_shards(target, weights_of(4, torch.float32), 1)
    assert left_in(target) == ["checklist.chk", "consolidated.00.pth", "params.json", "tokenizer.model"]
    assert left_in(target.parent) == ["target"]


@pytest.mark.parametrize(
    "names",
    [
        ["thesis.txt"],
        ["README.md"],
        ["config.json"],
        ["model.bin", "README.md"],
        ["config.json", "main.py"],
        ["config.json", "src/main.py"],
        ["params.json", "notes.txt"],
        ["config.json", "firmware.bin", "thesis.tex"],
        ["config.json", "model.safetensors", "thesis.tex"],
        ["consolidated.00.pth", "params.json", "experiments/notes.txt"],
    ],
    ids=" ".join,
)
def test_force_replaces_nothing_but_a_checkpoint_folder(tmp_path: Path, meta: Path, names: list[str]) -> None:
    target = tmp_path / "out" / "target"
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text("mine")
    text = refused(CheckpointWriteError, "meta", meta, target, force=True)
    assert "does not look like a checkpoint folder" in text


@pytest.mark.parametrize("kind", ["file", "link"])
def test_force_replaces_no_file_and_no_link(tmp_path: Path, meta: Path, kind: str) -> None:
    target = tmp_path / "out" / "target"
    target.parent.mkdir()
    if kind == "file":
        target.write_text("mine")
    else:
        shutil.copytree(meta, tmp_path / "elsewhere")
        target.symlink_to(tmp_path / "elsewhere")
    text = refused(CheckpointWriteError, "meta", meta, target, force=True)
    assert str(target) in text
    assert ("symbolic link" in text) == target.is_symlink() == (kind == "link")


@pytest.mark.parametrize("steps", ["one", "two"])
def test_force_puts_the_old_folder_back_if_the_new_one_cannot_get_its_name(
    tmp_path: Path, meta: Path, monkeypatch: pytest.MonkeyPatch, steps: str
) -> None:
    target, rename = meta_folder(tmp_path / "out" / "target", 4), Path.rename
    before = content(target)

    def fails(path: Path, new: Path) -> Path:
        if path.name == ".target.unfinished":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, new)

    monkeypatch.setattr(Path, "rename", fails)
    monkeypatch.setattr(atomic_rename, "_exchange", fails if steps == "one" else lambda *_: False)
    with pytest.raises(CheckpointWriteError, match="was not written"):
        to("meta", meta, target, force=True)
    assert content(target) == before
    assert left_in(target.parent) == ["target"]


def test_force_does_not_replace_what_the_source_links_to(tmp_path: Path, meta: Path) -> None:
    """As in a cache of downloads, where a folder of links stands for the files."""
    links = tmp_path / "links"
    links.mkdir()
    for path in meta.iterdir():
        (links / path.name).symlink_to(path)
    text = refused(CheckpointWriteError, "meta", links, meta, shards=1, force=True)
    assert str(links) in text
    assert "link" in text


def test_what_replaces_a_folder_is_on_the_disk_before(
    tmp_path: Path, meta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a power cut could leave neither of the two."""
    target = meta_folder(tmp_path / "target", 4)
    synced, fsync = [], os.fsync

    def counted(handle: int) -> None:
        olds = [target, tmp_path / ".target.unfinished"]
        assert 4 in [len(list(each.glob("consolidated.*.pth"))) for each in olds], (
            "the old folder is gone already"
        )
        synced.append(os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", counted)
    to("meta", meta, target, shards=1, force=True)
    assert {path.stat().st_ino for path in (target, *target.iterdir())} <= set(synced[:-1])
    assert synced[-1] == tmp_path.stat().st_ino, "and its new name, before the old folder is removed"


def test_a_failed_conversion_with_force_keeps_the_old_folder(tmp_path: Path) -> None:
    overflowing(tmp_path / "a")
    meta_folder(tmp_path / "b", 4)
    before = content(tmp_path / "b")
    with pytest.raises(ConfigError):
        to("meta", tmp_path / "a", tmp_path / "b", dtype=torch.float16, force=True)
    assert content(tmp_path / "b") == before
    assert left_in(tmp_path) == ["a", "b"]


def test_a_failed_conversion_takes_the_folders_with_it_that_it_made(tmp_path: Path) -> None:
    overflowing(tmp_path / "a")
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError):
        to("meta", tmp_path / "a", tmp_path / "mine" / "x" / "y" / "b", dtype=torch.float16)
    assert left_in(tmp_path / "mine") == []
    assert left_in(tmp_path) == ["a", "mine"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "where", ["itself", "inside", "deep inside", "around", "by a link", "inside, by a link"]
)
def test_a_target_in_or_around_the_source_is_refused(
    tmp_path: Path, meta: Path, where: str, force: bool
) -> None:
    (tmp_path / "link").symlink_to(meta)
    target = {
        "itself": meta,
        "inside": meta / "new",
        "deep inside": meta / "a" / "b" / "new",
        "around": meta.parent,
        "by a link": tmp_path / "link",
        "inside, by a link": tmp_path / "link" / "new",
    }[where]
    before = content(tmp_path)
    words = "exists|symbolic link" if where == "by a link" else "is, contains or is inside the source"
    with pytest.raises(CheckpointWriteError, match=words):
        to("meta", meta, target, force=force)
    assert content(tmp_path) == before
    assert left_in(tmp_path) == ["link", "source"]


def test_a_relative_target_lies_in_the_current_folder(
    tmp_path: Path, meta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    to("meta", meta, Path("a/../b"))
    assert left_in(tmp_path / "here") == ["b"]


def test_missing_parents_are_made(tmp_path: Path, meta: Path) -> None:
    to("hf", meta, tmp_path / "x" / "y" / "z")
    assert_is_twin(tmp_path / "x" / "y" / "z", {**WIDE, "n_kv_heads": 4}, weights_of(4, torch.float32))


def test_no_or_foreign_tokenizer(tmp_path: Path, meta: Path) -> None:
    target = tmp_path / "out" / "target"
    (tmp_path / "out").mkdir()
    refused(CheckpointMismatchError, "hf", meta, target, tokenizer_path=tiny_model_path("plain"))
    (meta / "tokenizer.model").unlink()
    assert "--tokenizer" in refused(CheckpointNotFoundError, "hf", meta, target)
    to("hf", meta, target, tokenizer_path=tiny_model_path())
    assert (target / "tokenizer.model").read_bytes() == tiny_model_path().read_bytes()


@pytest.mark.parametrize("shards", [3, 8, 5, 0])
def test_shards_that_the_heads_do_not_allow(tmp_path: Path, meta: Path, shards: int) -> None:
    """8 heads with 4 key/value heads; a shard holds whole ones."""
    text = refused(ConfigError, "meta", meta, tmp_path / "out", shards=shards)
    assert f"{shards} shards" in text
    assert "use one of 1, 2, 4" in text


def test_a_key_value_head_lies_in_one_shard(tmp_path: Path) -> None:
    """Four ranks would run this model, two of them with a copy of the same head; files have no copies."""
    meta = meta_folder(tmp_path / "source" / "meta", 2, kv_heads=2)
    assert open_checkpoint(meta).args.vocab_size % 4 == 0
    text = refused(ConfigError, "meta", meta, tmp_path / "out", shards=4)
    assert text.endswith("use one of 1, 2")


def test_other_wrong_parameters(tmp_path: Path, meta: Path) -> None:
    assert "--mp" in refused(ConfigError, "hf", meta, tmp_path / "out", shards=2)
    assert "'gguf'" in refused(ConfigError, "gguf", meta, tmp_path / "out")
    assert "torch.int8" in refused(ConfigError, "meta", meta, tmp_path / "out", dtype=torch.int8)
