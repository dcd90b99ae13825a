"""Laws of tensors in Meta's layout: those that do not fit are refused before anything is allocated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama.checkpoint import MetaCheckpoint
from llama.errors import (
    CheckpointMismatchError,
)
from llama.loading import build

# 8 heads on up to 8 ranks: every dimension divides by 8. One shape per number of key/value heads.
WIDE: dict[str, Any] = {**SHAPE, "multiple_of": 8, "n_layers": 1}


VOCAB = 48


def test_a_sound_folder_builds(folder: Path) -> None:
    built = build(folder, None, 64, 2, None, "cpu", "auto")
    expected = random_weights(WIDE, tiny_tokenizer().n_words)
    state = built.model.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


def edit(folder: Path, shard: int, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / f"consolidated.{shard:02d}.pth"
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)


WQ = "layers.0.attention.wq.weight"


NORM = "layers.0.ffn_norm.weight"


@pytest.mark.parametrize("name", [WQ, NORM, "output.weight", "norm.weight"])
@pytest.mark.parametrize("shard", [0, 1])
def test_a_missing_tensor_is_named(folder: Path, refuse: Any, shard: int, name: str) -> None:
    edit(folder, shard, lambda tensors: tensors.pop(name))
    refuse(folder, CheckpointMismatchError, name, f"consolidated.{shard:02d}.pth")


def test_a_missing_embedding_is_named(folder: Path, refuse: Any) -> None:
    edit(folder, 0, lambda tensors: tensors.pop("tok_embeddings.weight"))
    refuse(folder, CheckpointMismatchError, "tok_embeddings.weight")


@pytest.mark.parametrize(
    "name", ["layers.1.attention.wq.weight", "lm_head.weight", "layers.0.attention.wq.bias"]
)
@pytest.mark.parametrize("shard", [0, 1])
def test_a_surplus_tensor_is_named(folder: Path, refuse: Any, shard: int, name: str) -> None:
    edit(folder, shard, lambda tensors: tensors.update({name: torch.zeros(2)}))
    refuse(folder, CheckpointMismatchError, name, f"consolidated.{shard:02d}.pth")


@pytest.mark.parametrize("name", [WQ, NORM, "layers.0.feed_forward.w2.weight", "tok_embeddings.weight"])
@pytest.mark.parametrize("shard", [0, 1])
@pytest.mark.parametrize("wrong", ["longer", "flat", "turned"])
def test_a_tensor_of_another_shape_is_named(
    folder: Path, refuse: Any, shard: int, name: str, wrong: str
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        value = tensors[name]
        shapes = {
            "longer": torch.cat([value, value], dim=-1),
            "flat": value.flatten() if value.dim() > 1 else value[None],
            "turned": value.T.contiguous() if value.dim() > 1 else value[:-1],
        }
        tensors[name] = shapes[wrong]

    edit(folder, shard, change)
    refuse(folder, CheckpointMismatchError, name)


def test_another_shape_is_told_with_its_numbers(folder: Path, refuse: Any) -> None:
    edit(folder, 1, lambda tensors: tensors.update({WQ: torch.zeros(30, 64)}))
    refuse(folder, CheckpointMismatchError, WQ, "[30, 64]", "[32, 64]", "consolidated.01.pth")


@pytest.mark.parametrize("shard", [0, 1])
def test_mixed_dtypes_are_named(folder: Path, refuse: Any, shard: int) -> None:
    edit(folder, shard, lambda tensors: tensors.update({WQ: tensors[WQ].half()}))
    refuse(folder, CheckpointMismatchError, WQ, "float16", "float32")


def test_params_of_another_model_are_a_mismatch(folder: Path, refuse: Any) -> None:
    for change, name in (
        ({"n_layers": 2}, "layers.1."),
        ({"n_kv_heads": 4}, "wk"),
        ({"dim": 128}, "wq"),
        ({"multiple_of": 64}, "w1"),
    ):
        (folder / "params.json").write_text(json.dumps({**WIDE, **change}))
        refuse(folder, CheckpointMismatchError, name)


def test_shards_of_different_models_are_a_mismatch(folder: Path, refuse: Any, tmp_path: Path) -> None:
    other = {**WIDE, "dim": 128}
    save_checkpoint(tmp_path / "other", other, random_weights(other, VOCAB), tiny_model_path(), 2)
    shutil.copy(tmp_path / "other" / "consolidated.01.pth", folder)
    refuse(folder, CheckpointMismatchError, "consolidated.01.pth", "tok_embeddings.weight")


@pytest.mark.parametrize(("saved", "kept"), [(2, 1), (4, 3), (4, 2)])
def test_lost_last_shards_are_a_mismatch(tmp_path: Path, refuse: Any, saved: int, kept: int) -> None:
    params = {**WIDE, "n_kv_heads": 4}
    weights = random_weights(params, tiny_tokenizer().n_words)
    save_checkpoint(tmp_path / "m", params, weights, tiny_model_path(), saved)
    for i in range(kept, saved):
        (tmp_path / "m" / f"consolidated.{i:02d}.pth").unlink()
    refuse(tmp_path / "m", CheckpointMismatchError, "tok_embeddings.weight")


def test_a_vocabulary_that_params_contradict_is_a_mismatch(folder: Path, refuse: Any) -> None:
    rows = tiny_tokenizer().n_words
    (folder / "params.json").write_text(json.dumps({**WIDE, "vocab_size": rows + 8}))
    refuse(folder, CheckpointMismatchError, rows, rows + 8)
    (folder / "params.json").write_text(json.dumps({**WIDE, "vocab_size": rows}))
    assert MetaCheckpoint(folder, 64, 2).args.vocab_size == rows


def test_a_tokenizer_of_another_size_is_a_mismatch(folder: Path, refuse: Any) -> None:
    theirs, rows = tiny_tokenizer("plain").n_words, tiny_tokenizer().n_words
    assert theirs != rows
    refuse(folder, CheckpointMismatchError, theirs, rows, tokenizer=tiny_model_path("plain"))
    shutil.copy(tiny_model_path("plain"), folder / "tokenizer.model")
    refuse(folder, CheckpointMismatchError, theirs, rows, "tokenizer.model")


def test_rope_freqs_may_be_there_or_not(folder: Path) -> None:
    """And in some shards only, in any dtype and shape."""
    with_freqs = torch.load(folder / "consolidated.00.pth", weights_only=True)
    assert "rope.freqs" in with_freqs
    edit(folder, 0, lambda tensors: tensors.pop("rope.freqs"))
    edit(folder, 1, lambda tensors: tensors.update({"rope.freqs": torch.zeros(3, 3, dtype=torch.int32)}))
    assert all(name != "rope.freqs" for name, _, _ in MetaCheckpoint(folder, 64, 2).stored())
