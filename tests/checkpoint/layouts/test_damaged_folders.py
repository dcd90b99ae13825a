"""Laws of damaged folders: each is refused with its own error, in one line that names what is wrong."""

from __future__ import annotations

import json
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from damage import INDEX, NORM, VOCAB, refuse, weights_in
from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path

from llama import Llama
from llama.checkpoint import open_checkpoint
from llama.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigError,
)


def test_the_sound_folders_load(originals: Path) -> None:
    for name in ("one", "many", "meta"):
        Llama.build(originals / name, None, 64, 2, 1, device="cpu").close()


@pytest.mark.parametrize(
    ("name", "file", "key"), [("meta", "params.json", "dim"), ("one", "config.json", "hidden_size")]
)
def test_duplicate_keys(copy: Any, name: str, file: str, key: str) -> None:
    path = copy(name) / file
    text = path.read_text().strip()
    path.write_text(text[:-1] + f', "{key}": 64}}')
    json.loads(path.read_text())
    refuse(path.parent, CheckpointFormatError, path, key, "twice")


def test_a_duplicate_key_deep_inside(copy: Any) -> None:
    path = copy("one") / "config.json"
    text = path.read_text().strip()
    path.write_text(text[:-1] + ', "rope_parameters": {"rope_theta": 1e4, "rope_theta": 1e6}}')
    refuse(path.parent, CheckpointFormatError, path, "rope_theta", "twice")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dim": 128}, ["params.json", "[64"]),
        ({"n_layers": 3}, ["params.json", "layers.2.attention.wq.weight"]),
        ({"n_heads": 4}, ["params.json", "wk.weight", "[8, 64]", "[16, 64]"]),
        ({"n_kv_heads": 8}, ["params.json", "wk.weight", "[8, 64]", "[32, 64]"]),
        ({"multiple_of": 256}, ["params.json", "w1.weight", "[88, 64]", "[128, 64]"]),
        ({"vocab_size": VOCAB + 8}, [VOCAB, VOCAB + 8]),
    ],
    ids=str,
)
def test_params_and_shapes_that_disagree(copy: Any, change: dict[str, Any], words: list[Any]) -> None:
    path = copy("meta") / "params.json"
    path.write_text(json.dumps({**SHAPE, **change}))
    refuse(path.parent, CheckpointMismatchError, *words)


@pytest.mark.parametrize("name", ["meta", "one"])
def test_a_config_of_100_mb_is_not_read(copy: Any, name: str) -> None:
    path = copy(name) / {"meta": "params.json", "one": "config.json"}[name]
    os.truncate(path, 100_000_000)
    refuse(path.parent, CheckpointFormatError, path, "100,000,000 bytes")


@pytest.mark.parametrize("text", ["", "{", "<html>", "[1]"])
def test_a_config_that_is_no_json_object(copy: Any, text: str) -> None:
    path = copy("one") / "config.json"
    path.write_text(text)
    refuse(path.parent, CheckpointFormatError, path)


@pytest.mark.parametrize("kind", ["folder", "bytes"])
def test_a_config_that_is_no_text(copy: Any, kind: str) -> None:
    path = copy("one") / "config.json"
    path.unlink()
    if kind == "folder":
        path.mkdir()
        refuse(path.parent, CheckpointNotFoundError, path, "not a file")
    else:
        path.write_bytes(b"\xff\xfe{}")
        refuse(path.parent, CheckpointFormatError, path, "JSON")


def test_an_absent_config(copy: Any) -> None:
    folder = copy("one")
    (folder / "config.json").unlink()
    refuse(folder, CheckpointNotFoundError, "config.json")


def test_a_config_of_another_architecture(copy: Any) -> None:
    path = copy("one") / "config.json"
    path.write_text(json.dumps({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 768}))
    refuse(path.parent, ConfigError, path, "GPT2LMHeadModel")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("meta", "consolidated.00.pth"),
        ("meta", "consolidated.01.pth"),
        ("meta", "params.json"),
        ("one", "config.json"),
        ("one", "model.safetensors"),
        ("many", INDEX),
    ],
)
@pytest.mark.parametrize("kind", ["circle", "circle of two", "nowhere"])
def test_links_that_lead_nowhere_or_in_a_circle(copy: Any, name: str, file: str, kind: str) -> None:
    path = copy(name) / file
    path.unlink()
    path.symlink_to({"circle": path.name, "circle of two": "other", "nowhere": "absent"}[kind])
    if kind == "circle of two":
        (path.parent / "other").symlink_to(path.name)
    refuse(path.parent, CheckpointNotFoundError, path, "link")


def test_a_file_of_an_index_that_is_a_circle(copy: Any) -> None:
    folder = copy("many")
    path = sorted(folder.glob("*.safetensors"))[0]
    path.unlink()
    path.symlink_to(path.name)
    refuse(folder, CheckpointNotFoundError, path.name)


def test_a_folder_that_is_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    refuse(tmp_path / "a", CheckpointNotFoundError, tmp_path / "a", "link")
    refuse(tmp_path / "a" / "deeper", CheckpointNotFoundError, tmp_path / "a" / "deeper")


def test_links_that_lead_to_the_files_are_followed(copy: Any) -> None:
    """As the hub's cache has them."""
    folder = copy("one")
    store = folder.parent / "blobs"
    folder.rename(store)
    folder.mkdir()
    for path in store.iterdir():
        (folder / path.name).symlink_to(path)
    (folder.parent / "again").symlink_to(folder)
    Llama.build(folder.parent / "again", None, 64, 2, 1, device="cpu").close()


class Malicious:
    """Its unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("way", ["zip", "legacy", "raw"])
@pytest.mark.parametrize("indexed", [False, True])
def test_a_pickle_with_code_in_a_bin_is_not_run(copy: Any, way: str, indexed: bool) -> None:
    folder = copy("one")
    trap = folder.parent / "trap"
    weights_in(folder).unlink()
    path = folder / ("pytorch_model-00001-of-00001.bin" if indexed else "pytorch_model.bin")
    if indexed:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {NORM: path.name}}))
    if way == "raw":
        path.write_bytes(pickle.dumps(Malicious(trap)))
        pickle.loads(path.read_bytes())
    else:
        torch.save({NORM: Malicious(trap)}, path, _use_new_zipfile_serialization=way == "zip")
        torch.load(path, weights_only=False)
    # The trap works: an unpickler that runs code springs it.
    assert trap.exists()
    trap.unlink()
    refuse(folder, CheckpointFormatError, path, "not run")
    assert not trap.exists()


def test_a_truncated_bin(copy: Any) -> None:
    folder = copy("one")
    path = folder / "pytorch_model.bin"
    torch.save(safetensors.torch.load_file(weights_in(folder)), path)
    weights_in(folder).unlink()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refuse(folder, CheckpointFormatError, path, f"{path.stat().st_size} bytes", "truncated")


def test_weights_that_are_no_floats_are_refused_by_name(tmp_path: Path) -> None:
    weights = {name: value.to(torch.int8) for name, value in random_weights(SHAPE, 420).items()}
    save_checkpoint(tmp_path, SHAPE, weights, tiny_model_path(), dtype=torch.int8)
    with pytest.raises(CheckpointFormatError, match=r"weights of torch\.int8, as a quantized checkpoint"):
        open_checkpoint(tmp_path)


def test_a_big_endian_file_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, SHAPE, random_weights(SHAPE, 420), tiny_model_path())
    path = tmp_path / "consolidated.00.pth"
    raw = path.read_bytes()
    assert raw.count(b"little") == 1
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "new", "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry.filename, b"big" if entry.filename.endswith("byteorder") else content)
    (tmp_path / "new").replace(path)
    with pytest.raises(CheckpointFormatError, match="big-endian"):
        open_checkpoint(tmp_path)


def test_a_damaged_pickle_raises_a_named_error_or_changes_nothing(tmp_path: Path) -> None:
    """One to three wrong bytes in the pickle; the archive around it is undamaged."""
    save_checkpoint(tmp_path, SHAPE, random_weights(SHAPE, 420), tiny_model_path())
    path = tmp_path / "consolidated.00.pth"
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    start = whole.index(pickled)
    expected = {name: value.clone() for name, _, value in open_checkpoint(tmp_path).stored()}
    draw = random.Random(0)
    refused = unchanged = 0
    for turn in range(90):
        damaged = bytearray(whole)
        for _ in range(1 + turn % 3):
            damaged[start + draw.randrange(len(pickled))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            opened = open_checkpoint(tmp_path)
        except (CheckpointError, ConfigError):
            refused += 1
            continue
        found = {name: value for name, _, value in opened.stored()}
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), f"{name} has other values and no error, at turn {turn}"
        unchanged += 1
    # Bytes that mean nothing: positions in the memo, requires_grad, the name of a device.
    assert 80 <= refused < 90, f"{refused} of 90 were refused, {unchanged} loaded as the undamaged file does"
