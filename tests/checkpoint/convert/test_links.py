"""Laws of links: nothing is written through one, and none leads out of the source into the copy."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from conversions import (
    content,
    refused,
    to,
)

from llama.checkpoint.convert import (
    companion_files,
    output_folder,
)
from llama.checkpoint.convert.output_folder import OutputFolder
from llama.checkpoint.layouts.hugging_face import COMPANION_FILES
from llama.checkpoint.weight_files.output_file import OutputFile, create
from llama.errors import CheckpointFormatError, CheckpointWriteError


@pytest.mark.parametrize("name", [".lock", "params.json", "model.safetensors"])
@pytest.mark.parametrize("there", [False, True])
def test_a_link_in_an_unfinished_folder_creates_and_changes_nothing_elsewhere(
    tmp_path: Path, tiny: Path, name: str, there: bool
) -> None:
    left = tmp_path / "out" / ".b.unfinished"
    left.mkdir(parents=True)
    if there:
        (tmp_path / "elsewhere").write_text("mine")
    (left / name).symlink_to(tmp_path / "elsewhere")
    text = refused(CheckpointWriteError, "meta", tiny, tmp_path / "out" / "b", tmp_path)
    assert f"{name}, which" in text or f"it holds {name}" in text


def test_a_lock_is_not_opened_through_a_link(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that came behind the look at the folder."""
    left = tmp_path / "out" / ".b.unfinished"
    left.mkdir(parents=True)
    (left / ".lock").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr(output_folder, "_strange", lambda _: [])
    refused(CheckpointWriteError, "meta", tiny, tmp_path / "out" / "b", tmp_path)


@pytest.mark.parametrize("layout", ["meta", "hf"])
def test_nothing_is_written_through_a_link(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """One that comes while it writes, in place of each file that it makes."""
    files = to(layout, tiny, tmp_path / "sound").files
    claim = OutputFolder._claim
    for name in files:

        def planted(self: OutputFolder, name: str = name) -> None:
            claim(self)
            (self.folder / name).symlink_to(tmp_path / "elsewhere")

        monkeypatch.setattr(OutputFolder, "_claim", planted)
        with pytest.raises(CheckpointWriteError):
            to(layout, tiny, tmp_path / "out" / "b")
        assert not (tmp_path / "elsewhere").exists(), name


def test_a_file_is_new(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    for make in (OutputFile, lambda path: create(path, b"x")):
        with pytest.raises(FileExistsError):
            make(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "mine"
    assert create(tmp_path / "b", b"x") == "9dd4e461268c8034f5c8564e155c67a6"


@pytest.mark.parametrize("name", ["config.json", *COMPANION_FILES])
def test_a_link_out_of_the_source_is_not_followed_into_the_copy(tmp_path: Path, hf: Path, name: str) -> None:
    (hf / name).rename(tmp_path / "secret")
    (hf / name).symlink_to(tmp_path / "secret")
    text = refused(CheckpointFormatError, "hf", hf, tmp_path / "b", tmp_path)
    assert f"{hf / name} is a link to {tmp_path / 'secret'}" in text


def hub(folder: Path, hf: Path) -> Path:
    """A model as the hub's cache holds it: a snapshot of links to blobs."""
    snapshot = folder / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (folder / "models--a--b" / "blobs").mkdir()
    for number, path in enumerate(sorted(hf.iterdir())):
        shutil.copy(path, folder / "models--a--b" / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def test_a_snapshot_of_the_hubs_cache_and_links_within_a_folder_are_followed(
    tmp_path: Path, hf: Path
) -> None:
    (hf / "chat_template.jinja").write_text("{{ messages }}")
    to("hf", hf, tmp_path / "plain")
    snapshot = hub(tmp_path / "cache", hf)
    to("hf", snapshot, tmp_path / "b")
    assert content(tmp_path / "b") == content(tmp_path / "plain")
    (tmp_path / "link").symlink_to(snapshot)
    to("hf", tmp_path / "link", tmp_path / "c")
    (hf / "chat_template.jinja").rename(hf / "other.jinja")
    (hf / "chat_template.jinja").symlink_to("other.jinja")
    to("hf", hf, tmp_path / "d")
    assert content(tmp_path / "b") == content(tmp_path / "c") == content(tmp_path / "d")


def test_a_model_in_a_folder_of_a_snapshot_is_one_too(tmp_path: Path, hf: Path) -> None:
    snapshot = hub(tmp_path / "cache", hf)
    (snapshot / "sub").mkdir()
    for path in [path for path in snapshot.iterdir() if path.is_symlink()]:
        (snapshot / "sub" / path.name).symlink_to(Path("..") / os.readlink(path))
    to("hf", snapshot / "sub", tmp_path / "b")
    assert (tmp_path / "b" / "config.json").read_bytes()


def test_a_vocab_size_that_config_json_leaves_out_is_written(tmp_path: Path, hf: Path) -> None:
    """Transformers takes 32,000 where it is missing."""
    config = json.loads((hf / "config.json").read_text())
    rows = config.pop("vocab_size")
    (hf / "config.json").write_text(json.dumps(config))
    to("hf", hf, tmp_path / "b")
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == config | {"vocab_size": rows}


@pytest.mark.parametrize("kind", ["blobs are a link", "link beside the blobs", "no snapshot"])
def test_a_folder_that_looks_like_the_hubs_cache_leads_nowhere_else(
    tmp_path: Path, hf: Path, kind: str
) -> None:
    snapshot = hub(tmp_path / "cache", hf)
    model = snapshot.parent.parent
    if kind == "blobs are a link":
        (model / "blobs").rename(tmp_path / "secrets")
        (model / "blobs").symlink_to(tmp_path / "secrets")
    elif kind == "link beside the blobs":
        (model / "blobs").rename(model / "blobs2")
        for path in snapshot.iterdir():
            target = model / "blobs2" / Path(os.readlink(path)).name
            path.unlink()
            path.symlink_to(target)
    else:
        (model / "snapshots").rename(model / "folders")
        snapshot = model / "folders" / "0123"
    assert "is a link to" in refused(CheckpointFormatError, "hf", snapshot, tmp_path / "b", tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", b"root:x:0:0"),
        ("tokenizer_config.json", b'{"a": 1, "a": 2}'),
        ("generation_config.json", b"[1]"),
        ("chat_template.jinja", b"\xff\xfe"),
        ("added_tokens.json", b"x" * 2000),
    ],
)
def test_what_is_not_what_its_name_says_does_not_go_along(
    tmp_path: Path, hf: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: bytes
) -> None:
    (hf / name).write_bytes(text)
    if name == "added_tokens.json":
        (hf / name).write_bytes(b" " * 2_000_000 + b"{}")
        monkeypatch.setattr(companion_files, "_MOST", 1_000_000)
    assert str(hf / name) in refused(CheckpointFormatError, "hf", hf, tmp_path / "b", tmp_path)
    to("meta", hf, tmp_path / "c")  # where it does not go along, it does not matter
