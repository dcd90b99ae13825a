"""Laws of Hugging Face folders: what transformers saved computes the same here, on any number of ranks.

The oracle is transformers' own model and the weights in it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import (
    EMBEDDING,
    HEAD,
    IDS,
    Q_PROJ,
    WAYS,
    assert_same_logits,
    change_config,
    in_meta_order,
    load,
    logits_of,
    random_model,
    save,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_script import SHARDS, texts
from ranks import run_ranks
from slices import mine
from tiny_models import SHAPE

from llama import Llama
from llama.checkpoint import HuggingFaceCheckpoint, open_checkpoint
from llama.errors import CheckpointFormatError, CheckpointMismatchError, CheckpointNotFoundError
from llama.sizing.shapes import expected_shapes


@pytest.mark.parametrize("kv_heads", [8, 2])
@pytest.mark.parametrize("way", WAYS)
def test_logits_are_those_of_transformers(tmp_path: Path, way: str, kv_heads: int) -> None:
    model = random_model(kv_heads)
    assert_same_logits(save(model, tmp_path, way), logits_of(model))


def test_greedy_text_is_that_of_transformers(tmp_path: Path) -> None:
    model = random_model()
    with load(save(model, tmp_path)) as llama:
        found, _ = llama.generate(IDS[:1], 12, temperature=0)
    expected = model.generate(
        torch.tensor(IDS[:1]), attention_mask=torch.ones(1, len(IDS[0])), max_new_tokens=12, do_sample=False
    )
    ids = expected[0, len(IDS[0]) :].tolist()
    ends = [ids.index(end) for end in (2,) if end in ids]
    assert found[0] == ids[: min(ends, default=12)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", ["safetensors with index", "bin"])
@pytest.mark.parametrize("kv_heads", [8, 4, 2, 1])
def test_every_rank_gets_its_slices_bit_for_bit(
    tmp_path: Path, kv_heads: int, way: str, dtype: torch.dtype
) -> None:
    """More ranks than key/value heads included: neighbours then hold the same head."""
    model = random_model(kv_heads, False, dtype, 48)
    checkpoint = open_checkpoint(save(model, tmp_path, way))
    assert isinstance(checkpoint, HuggingFaceCheckpoint)
    assert checkpoint.dtype == dtype
    weights = in_meta_order(model)
    assert weights.keys() == expected_shapes(checkpoint.args).keys()
    params = {**SHAPE, "n_kv_heads": kv_heads}
    for size in (1, 2, 4, 8):
        for rank in range(size):
            for name, whole in weights.items():
                expected = mine(name, whole, params, rank, size)
                found = torch.full(expected.shape, torch.nan, dtype=dtype)
                checkpoint.copy_slice(name, found, rank, size)
                assert torch.equal(found, expected), f"{name} of rank {rank} of {size}"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceCheckpoint:
    checkpoint = open_checkpoint(save(random_model(), tmp_path_factory.mktemp("windows")))
    assert isinstance(checkpoint, HuggingFaceCheckpoint)
    return checkpoint


@settings(max_examples=300, deadline=None)
@given(data=st.data(), part=st.sampled_from(["wq", "wk", "wv", "wo"]))
def test_any_window_of_rows_and_columns(opened: HuggingFaceCheckpoint, data: Any, part: str) -> None:
    """Odd ones, within a head, across heads, of one row, of none."""
    name = f"layers.1.attention.{part}.weight"
    whole = in_meta_order(random_model())[name]
    bounds = [sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2))) for n in whole.shape]
    (a, b), (c, d) = bounds
    found = torch.full((b - a, d - c), torch.nan)
    opened.read(name, found, (a, b), (c, d))
    assert torch.equal(found, whole[a:b, c:d])


def test_a_bfloat16_model_is_loaded_as_stored(tmp_path: Path) -> None:
    model = random_model(2, False, torch.bfloat16)
    checkpoint = open_checkpoint(save(model, tmp_path))
    assert checkpoint.dtype == torch.bfloat16
    with load(tmp_path) as llama:
        state = llama.model.state_dict()
    for name, value in in_meta_order(model).items():
        assert torch.equal(state[name], value.float()), name


@pytest.mark.parametrize("way", ["safetensors", "bin"])
def test_tied_embeddings(tmp_path: Path, way: str) -> None:
    """transformers leaves lm_head out of safetensors; a state dict in a .bin has both."""
    model = random_model(2, True)
    save(model, tmp_path, way)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True
    assert_same_logits(tmp_path, logits_of(model))
    if way == "safetensors":
        change_config(tmp_path, tie_word_embeddings=False)
        with pytest.raises(CheckpointMismatchError, match=r"lacks lm_head\.weight"):
            open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"]
)
def test_saved_frequencies_are_ignored(tmp_path: Path, name: str) -> None:
    model = random_model()
    save(model, tmp_path, "bin with index")
    index = tmp_path / "pytorch_model.bin.index.json"
    where = json.loads(index.read_text())["weight_map"]
    last = sorted(set(where.values()))[-1]
    tensors = torch.load(tmp_path / last, weights_only=True)
    torch.save({**tensors, name: torch.zeros(4, dtype=torch.float64)}, tmp_path / last)
    # Known to the index or not.
    for known in ({}, {name: last}):
        index.write_text(json.dumps({"weight_map": where | known}))
        assert_same_logits(tmp_path, logits_of(model))


def test_an_index_that_an_earlier_save_left_does_not_count(tmp_path: Path) -> None:
    """transformers removes the old files when it saves again, but not their index."""
    save(random_model(8), tmp_path, "safetensors with index")
    model = random_model(2)
    model.save_pretrained(tmp_path)
    assert {"model.safetensors", "model.safetensors.index.json"} <= {path.name for path in tmp_path.iterdir()}
    assert_same_logits(tmp_path, logits_of(model))


def test_safetensors_are_preferred_to_bins(tmp_path: Path) -> None:
    model = random_model()
    save(model, tmp_path)
    torch.save({"not": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert_same_logits(tmp_path, logits_of(model))


def test_another_vendors_copy_of_the_weights_is_left_alone(tmp_path: Path) -> None:
    model = random_model()
    save(model, tmp_path, "numbered safetensors")
    shutil.copy(next(tmp_path.glob("*.safetensors")), tmp_path / "consolidated.safetensors")
    assert_same_logits(tmp_path, logits_of(model))


def test_files_of_metas_layout_count_where_both_are_there(tmp_path: Path) -> None:
    """Some repositories hold both; consolidated.safetensors beside the rest is no part of either."""
    save(random_model(), tmp_path)
    (tmp_path / "consolidated.safetensors").write_bytes(b"x")
    assert open_checkpoint(tmp_path).layout == "Hugging Face"
    (tmp_path / "consolidated.00.pth").write_bytes(b"x")  # alone it is no checkpoint of Meta's
    assert open_checkpoint(tmp_path).layout == "Hugging Face"
    (tmp_path / "params.json").write_text('{"dim": 64, "n_layers": 2, "n_heads": 8}')
    with pytest.raises(CheckpointFormatError, match=r"consolidated\.00\.pth"):
        open_checkpoint(tmp_path)


def edit(folder: Path, **changes: torch.Tensor | None) -> None:
    """Of the state dict in pytorch_model.bin."""
    path = folder / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True) | changes
    torch.save({name: value for name, value in tensors.items() if value is not None}, path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({Q_PROJ: None}, ["lacks", Q_PROJ]),
        ({EMBEDDING: None}, [EMBEDDING]),
        ({HEAD: None}, ["lacks", HEAD]),
        ({"model.layers.0.mlp.up_proj.bias": torch.zeros(176)}, ["model.layers.0.mlp.up_proj.bias"]),
        ({"model.layers.9.self_attn.rotary_emb.inv_freq2": torch.zeros(4)}, ["inv_freq2"]),
        ({Q_PROJ: torch.zeros(64, 32)}, [Q_PROJ, "[64, 32]", "[64, 64]", "pytorch_model.bin"]),
        ({Q_PROJ: torch.zeros(64, 64).half()}, [Q_PROJ, "float16", "float32", "save it again"]),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    save(random_model(), tmp_path, "bin")
    edit(tmp_path, **changes)
    with pytest.raises(CheckpointMismatchError) as caught:
        load(tmp_path)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in {caught.value}"


@pytest.mark.parametrize("way", ["numbered bins", "numbered safetensors"])
def test_a_lost_file_of_numbered_ones_is_named(tmp_path: Path, way: str) -> None:
    files = sorted(save(random_model(), tmp_path, way).glob("*-of-*"))
    files[1].unlink()
    with pytest.raises(CheckpointNotFoundError, match=rf"number 2 of {len(files)} is missing"):
        open_checkpoint(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    random_model().config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match=r"config\.json, but no weights"):
        open_checkpoint(tmp_path)


@pytest.mark.slow
def test_two_ranks_say_what_one_says(tmp_path: Path) -> None:
    """From each of three ways to save the same model, under torchrun."""
    ways = dict(zip(SHARDS, ("safetensors", "safetensors with index", "bin"), strict=True))
    for count, way in ways.items():
        save(random_model(), tmp_path / f"s{count}", way)
    with Llama.build(tmp_path / "s1", None, 96, 8, 1, device="cpu", dtype="float32") as llama:
        expected = json.loads(json.dumps(texts(llama)))
    assert sum(len(each["tokens"]) for each in expected["greedy"]) > 30
    assert len(set(expected["sampled"])) > 5
    run_ranks("rank_script.py", tmp_path, "shards", ranks=2, forked=True).ok()
    for rank in range(2):
        found = json.loads((tmp_path / "out-2" / f"shards.{rank}.json").read_text())
        for count in ways:
            one = found[str(count)]
            assert one["size"] == 2
            assert one["sampled"] == expected["sampled"]
            for mode in ("greedy", "scored"):
                for ours, theirs in zip(one[mode], expected[mode], strict=True):
                    assert ours["generation"] == theirs["generation"]
                    assert ours["logprobs"] == pytest.approx(theirs["logprobs"], abs=1e-4)
