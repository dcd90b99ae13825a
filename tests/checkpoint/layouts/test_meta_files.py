"""Laws of files in Meta's layout: missing or damaged ones are refused before anything is allocated."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama.checkpoint.layouts.meta_files import shard_files
from llama.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    ConfigError,
    TokenizerError,
)

# 8 heads on up to 8 ranks: every dimension divides by 8. One shape per number of key/value heads.
WIDE: dict[str, Any] = {**SHAPE, "multiple_of": 8, "n_layers": 1}


VOCAB = 48


def edit(folder: Path, shard: int, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / f"consolidated.{shard:02d}.pth"
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)


def test_a_missing_folder(tmp_path: Path, refuse: Any) -> None:
    refuse(tmp_path / "nowhere", CheckpointNotFoundError, tmp_path / "nowhere", "does not exist")


@pytest.mark.parametrize("denied", [os.R_OK, os.X_OK])
def test_a_folder_that_may_not_be_read(
    folder: Path, refuse: Any, monkeypatch: pytest.MonkeyPatch, denied: int
) -> None:
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & denied)  # root may read all
    refuse(folder, CheckpointNotFoundError, folder, "may not be read")


def test_a_file_for_a_folder(folder: Path, refuse: Any) -> None:
    refuse(folder / "consolidated.00.pth", CheckpointNotFoundError, "is a file", "folder")


@pytest.mark.parametrize(
    ("names", "word"),
    [
        ([], "empty"),
        (["consolidated.00.pth.part", "params.json"], ".part"),
        (["model.safetensors"], "no config.json"),
        (["pytorch_model.bin"], "no config.json"),
        (["CodeLlama-7b-hf/config.json"], "CodeLlama-7b-hf"),
        (["CodeLlama-7b/consolidated.00.pth", "LICENSE"], "CodeLlama-7b"),
        (["blobs/1", "refs/main", "snapshots/1f/config.json"], "pass /given/snapshots/1f"),
        (["README.md", "notes.txt"], "README.md"),
        ([f"file{i}" for i in range(30)], "24 more"),
        (["consolidated.00.pth.bak", "consolidated.pth"], "consolidated.pth"),
    ],
)
def test_a_folder_without_shards_says_what_is_there(
    tmp_path: Path, refuse: Any, names: list[str], word: str
) -> None:
    where = tmp_path / "given"
    where.mkdir()
    for name in names:
        (where / name).parent.mkdir(exist_ok=True, parents=True)
        (where / name).write_bytes(b"x")
    refuse(where, CheckpointNotFoundError, where, word.replace("/given", str(where)))


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_gap_in_the_shards_is_named(tmp_path: Path, refuse: Any, gone: int) -> None:
    params = {**WIDE, "n_kv_heads": 4}
    weights = random_weights(params, tiny_tokenizer().n_words)
    folder = save_checkpoint(tmp_path / "m", params, weights, tiny_model_path(), 4)
    (folder / f"consolidated.{gone:02d}.pth").unlink()
    refuse(folder, CheckpointNotFoundError, f"consolidated.{gone:02d}.pth", "3 shards")


def test_shards_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = [f"consolidated.{i:02d}.pth" for i in range(12)]
    for name in reversed(names):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in shard_files(tmp_path)] == names


@pytest.mark.parametrize(
    "start", [b"<!DOCTYPE html><html>", b"\n\n  <html>", b"<?xml version='1.0'?><Error>"]
)
@pytest.mark.parametrize("shard", [0, 1])
def test_a_page_saved_as_weights(folder: Path, refuse: Any, start: bytes, shard: int) -> None:
    path = folder / f"consolidated.{shard:02d}.pth"
    path.write_bytes(start + b"<body>Access denied</body>" * 100)
    refuse(folder, CheckpointFormatError, path, "HTML", path.stat().st_size)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.1, 0.5, 0.9, 0.99, 0.999, 0.99999])
def test_truncated_shards(folder: Path, refuse: Any, share: float) -> None:
    path = folder / "consolidated.01.pth"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refuse(folder, CheckpointFormatError, path, "empty" if share == 0 else "download it again")


def test_a_shard_that_is_no_torch_file(folder: Path, refuse: Any) -> None:
    path = folder / "consolidated.00.pth"
    for content in (b'{"error": "forbidden"}', os.urandom(5000), b"PK\x03\x04" + bytes(500)):
        path.write_bytes(content)
        refuse(folder, CheckpointFormatError, path)
    shutil.make_archive(str(folder / "other"), "zip", folder, "params.json")
    shutil.move(folder / "other.zip", path)
    refuse(folder, CheckpointFormatError, path)


@pytest.mark.parametrize(
    "content", [[1, 2], {"model": {"a": torch.zeros(2)}}, {1: torch.zeros(2)}, torch.zeros(2)]
)
def test_a_shard_that_is_no_state_dict(folder: Path, refuse: Any, content: object) -> None:
    torch.save(content, folder / "consolidated.00.pth")
    refuse(folder, CheckpointFormatError, "consolidated.00.pth")


class Malicious:
    """Its unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "way", ["zip", "zip beside tensors", "legacy", "raw pickle", "raw pickle, protocol 0"]
)
def test_a_pickle_that_runs_code_is_refused_and_not_run(folder: Path, refuse: Any, way: str) -> None:
    trap, path = folder.parent / "trap", folder / "consolidated.01.pth"
    tensors = torch.load(path, weights_only=True)
    content = {**tensors, "extra": Malicious(trap)} if way == "zip beside tensors" else Malicious(trap)
    if way.startswith("zip") or way == "legacy":
        torch.save(content, path, _use_new_zipfile_serialization=way != "legacy")
        torch.load(path, weights_only=False)
    else:
        path.write_bytes(pickle.dumps(content, protocol=0 if way.endswith("0") else 4))
        pickle.loads(path.read_bytes())
    # The trap works: an unpickler that runs code springs it.
    assert trap.exists()
    trap.unlink()
    refuse(folder, CheckpointFormatError, path)
    assert not trap.exists()


def test_the_format_before_torch_1_6_is_refused_with_a_way_out(folder: Path, refuse: Any) -> None:
    path = folder / "consolidated.01.pth"
    tensors = torch.load(path, weights_only=True)
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    refuse(folder, CheckpointFormatError, path, "torch.save")


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        (None, CheckpointNotFoundError, ["params.json", "missing"]),
        ("", CheckpointFormatError, ["params.json", "JSON"]),
        ('{"dim": 64,', CheckpointFormatError, ["params.json", "JSON"]),
        ("<html>", CheckpointFormatError, ["params.json", "JSON"]),
        ("\xff\xfe", CheckpointFormatError, ["params.json", "JSON"]),
        ("[" * 100_000, CheckpointFormatError, ["params.json", "JSON"]),
        ("[1, 2]", CheckpointFormatError, ["params.json", "list"]),
        ('"dim"', CheckpointFormatError, ["params.json", "str"]),
        ("null", CheckpointFormatError, ["params.json"]),
    ],
)
def test_params_that_cannot_be_read(
    folder: Path, refuse: Any, text: str | None, kind: type[CheckpointError], words: list[str]
) -> None:
    path = folder / "params.json"
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text.encode("latin-1"))
    refuse(folder, kind, *words)


@pytest.mark.parametrize("key", ["dim", "n_layers", "n_heads"])
def test_a_missing_hyperparameter_is_named(folder: Path, refuse: Any, key: str) -> None:
    (folder / "params.json").write_text(json.dumps({k: v for k, v in WIDE.items() if k != key}))
    refuse(folder, ConfigError, "params.json", key)


def test_unknown_hyperparameters_are_named(folder: Path, refuse: Any) -> None:
    # max_seq_len is a parameter of build, not of a checkpoint.
    (folder / "params.json").write_text(json.dumps({**WIDE, "sliding_window": 4096, "max_seq_len": 9}))
    refuse(folder, ConfigError, "params.json", "sliding_window", "max_seq_len")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dim", "64"),
        ("dim", -64),
        ("dim", 60),
        ("n_layers", 1.5),
        ("n_layers", True),
        ("n_heads", 0),
        ("n_kv_heads", 3),
        ("norm_eps", float("nan")),
        ("rope_theta", None),
        ("rope_theta", -1),
        ("ffn_dim_multiplier", "1"),
        ("multiple_of", 0),
        ("vocab_size", 0),
        ("vocab_size", "many"),
    ],
)
def test_bad_hyperparameters_are_named(folder: Path, refuse: Any, key: str, value: object) -> None:
    (folder / "params.json").write_text(json.dumps({**WIDE, key: value}))
    refuse(folder, ConfigError, "params.json", key, value)


def test_tokenizers_that_cannot_be_used(folder: Path, refuse: Any) -> None:
    path = folder / "tokenizer.model"
    path.write_text("<!DOCTYPE html><html>Access denied</html>")
    refuse(folder, TokenizerError, path)
    path.write_bytes(b"")
    refuse(folder, TokenizerError, path)
    path.unlink()
    refuse(folder, CheckpointNotFoundError, path, "tokenizer_path")
    refuse(folder, TokenizerError, folder / "nowhere.model", tokenizer=folder / "nowhere.model")
