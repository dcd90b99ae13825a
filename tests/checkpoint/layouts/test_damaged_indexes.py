"""Laws of an index of weight files, and of files that belong to different models."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import safetensors.torch
import torch
from damage import INDEX, NORM, VOCAB, WQ, change_index, refuse
from tiny_models import SHAPE, hugging_face_twin, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path

from llama.errors import (
    CheckpointFormatError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
)


def test_an_index_that_names_an_absent_file(copy: Any) -> None:
    folder = copy("many")
    name = sorted(path.name for path in folder.glob("*.safetensors"))[1]
    (folder / name).unlink()
    refuse(folder, CheckpointNotFoundError, INDEX, name, "download it")


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "..",
        ".",
        "",
        "sub\\x.safetensors",
        "./model.safetensors",
    ],
)
@pytest.mark.parametrize("index", [INDEX, "pytorch_model.bin.index.json"])
def test_an_index_may_only_name_files_of_its_own_folder(copy: Any, name: str, index: str) -> None:
    """Though the file is there, and sound."""
    folder = copy("many")
    one = sorted(folder.glob("*.safetensors"))[0]
    (folder / "sub").mkdir()
    for place in (folder.parent, folder / "sub"):
        shutil.copy(one, place / "x.safetensors")
    change_index(folder, lambda where: where.update({NORM: name}))
    if index != INDEX:
        (folder / INDEX).unlink()
        (folder / index).write_text(json.dumps({"weight_map": {NORM: name}}))
        for path in folder.glob("*.safetensors"):
            path.unlink()
    refuse(folder, CheckpointFormatError, index, repr(name), "plain file name")


@pytest.mark.parametrize(
    "content", [{}, {"weight_map": []}, {"weight_map": {NORM: 5}}, {"weight_map": None}], ids=str
)
def test_an_index_without_a_map(copy: Any, content: object) -> None:
    folder = copy("many")
    (folder / INDEX).write_text(json.dumps(content))
    refuse(folder, CheckpointFormatError, INDEX, "weight_map")


@pytest.mark.parametrize("text", ["", "{", "<html>", "[]", '{"weight_map": {"a": "x", "a": "y"}}'])
def test_an_index_that_is_no_json_object(copy: Any, text: str) -> None:
    folder = copy("many")
    (folder / INDEX).write_text(text)
    refuse(folder, CheckpointFormatError, INDEX, "'a' occurs twice" if "weight_map" in text else "")


def test_an_empty_map_is_no_model(copy: Any) -> None:
    folder = copy("many")
    (folder / INDEX).write_text('{"weight_map": {}}')
    refuse(folder, CheckpointMismatchError, "model.embed_tokens.weight")


def test_a_tensor_in_two_files(copy: Any) -> None:
    folder = copy("many")
    where = change_index(folder, lambda where: None)
    first, last = where["model.embed_tokens.weight"], where[NORM]
    assert first != last
    tensors = safetensors.torch.load_file(folder / first)
    tensors[NORM] = safetensors.torch.load_file(folder / last)[NORM]
    safetensors.torch.save_file(tensors, folder / first)
    refuse(folder, CheckpointMismatchError, NORM, first, last)
    # Without an index the two files still contradict each other.
    (folder / INDEX).unlink()
    refuse(folder, CheckpointMismatchError, NORM, first, last, "again")


def test_a_tensor_in_another_file_than_the_index_says(copy: Any) -> None:
    folder = copy("many")
    where = change_index(folder, lambda where: None)
    other = next(name for name in where.values() if name != where[NORM])
    before = where[NORM]
    change_index(folder, lambda where: where.update({NORM: other}))
    refuse(folder, CheckpointMismatchError, NORM, before, other)


def test_a_tensor_that_the_index_does_not_know(copy: Any) -> None:
    folder = copy("many")
    where = change_index(folder, lambda where: where.pop(WQ))
    refuse(folder, CheckpointMismatchError, WQ, "does not know it")
    assert WQ not in where


def test_a_tensor_that_no_file_holds(copy: Any) -> None:
    folder = copy("many")
    where = change_index(folder, lambda where: where.update({"model.layers.9.x.weight": where[NORM]}))
    refuse(folder, CheckpointMismatchError, "model.layers.9.x.weight", "no file holds")
    change_index(folder, lambda where: where.pop("model.layers.9.x.weight"))
    tensors = safetensors.torch.load_file(folder / where[WQ])
    del tensors[WQ]
    safetensors.torch.save_file(tensors, folder / where[WQ])
    refuse(folder, CheckpointMismatchError, WQ, "no file holds")


def test_shards_of_two_models_of_equal_shapes(copy: Any) -> None:
    folder = copy("meta")
    other = save_checkpoint(
        folder.parent / "other", SHAPE, random_weights(SHAPE, VOCAB, seed=1), tiny_model_path(), 2
    )
    shutil.copy(other / "consolidated.01.pth", folder)
    words = (
        "layers.0.attention_norm.weight",
        "consolidated.01.pth",
        "consolidated.00.pth",
        "different models",
    )
    refuse(folder, CheckpointMismatchError, *words)


def test_shards_that_differ_in_one_bit(copy: Any) -> None:
    folder = copy("meta")
    path = folder / "consolidated.01.pth"
    tensors = torch.load(path, weights_only=True)
    tensors["norm.weight"].view(torch.int32)[-1] ^= 1
    torch.save(tensors, path)
    refuse(folder, CheckpointMismatchError, "norm.weight", "consolidated.01.pth")


def test_files_of_two_models_of_other_shapes(copy: Any) -> None:
    folder = copy("many")
    params = {**SHAPE, "dim": 128}
    model = hugging_face_twin(params, random_weights(params, VOCAB))
    where = change_index(folder, lambda where: None)
    tensors = safetensors.torch.load_file(folder / where[NORM])
    state = model.state_dict()
    safetensors.torch.save_file({name: state[name] for name in tensors}, folder / where[NORM])
    refuse(folder, CheckpointMismatchError, "[128", "[64", where[NORM])


def test_a_shard_missing_in_the_middle(copy: Any) -> None:
    folder = copy("meta")
    (folder / "consolidated.01.pth").rename(folder / "consolidated.02.pth")
    refuse(folder, CheckpointNotFoundError, "consolidated.01.pth", "missing", "2 shards")
