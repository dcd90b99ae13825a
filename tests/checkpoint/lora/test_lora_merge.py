"""The law of adapters: what is read is what PEFT's own merge_and_unload makes, from any layout, for any rank."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import (
    ATTENTION,
    LINEAR,
    WEIGHTS,
    base,
    base_folders,
    merged,
    quiet,
    replace_tensors,
    save_adapter,
    tensors_of,
)
from hf_models import IDS, random_model, save
from hypothesis import given, settings
from hypothesis import strategies as st
from slices import mine
from tiny_models import SHAPE

from llama import Llama
from llama.checkpoint import open_checkpoint
from llama.checkpoint.base import Checkpoint
from llama.checkpoint.lora import AdaptedCheckpoint
from llama.errors import CheckpointFormatError

ROUNDING = 3e-7
OPTIONS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ATTENTION},
    "all-linear": {"target_modules": "all-linear", "lora_alpha": 3},
    "regular expression": {"target_modules": r".*layers\.[01]\.(mlp\.(up|down)|self_attn\.q)_proj"},
    "full names": {"target_modules": ["model.layers.1.mlp.gate_proj", "model.layers.0.self_attn.k_proj"]},
    "embedding and output": {"target_modules": [*LINEAR, "embed_tokens", "lm_head"]},
    "output alone": {"target_modules": ["lm_head"], "r": 1},
    "patterns": {
        "target_modules": LINEAR,
        "rank_pattern": {
            "down_proj": 7,
            r"layers\.0\.self_attn\.(q|k)_proj": 2,
            "^model.layers.1.mlp.up_proj": 5,
        },
        "alpha_pattern": {"q_proj": 1, r"model.layers.\d+.mlp.*": 16},
    },
    "rslora": {"target_modules": LINEAR, "use_rslora": True, "r": 8},
    "rslora with patterns": {"target_modules": LINEAR, "use_rslora": True, "rank_pattern": {"v_proj": 9}},
    "one layer": {"target_modules": LINEAR, "layers_to_transform": [1], "layers_pattern": "layers"},
    "excluded": {"target_modules": LINEAR, "exclude_modules": ["up_proj", "layers.0.self_attn.q_proj"]},
    "saved norms": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
    "saved matrices": {
        "target_modules": ["v_proj"],
        "modules_to_save": ["embed_tokens", "lm_head", "q_proj"],
    },
    "saved block": {"target_modules": ["q_proj"], "modules_to_save": ["model.layers.1.mlp"]},
    "gaussian": {"target_modules": LINEAR, "init_lora_weights": "gaussian"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return base_folders(tmp_path_factory.mktemp("bases"))


def whole(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    found = {name: torch.full(shape, torch.nan, dtype=dtype) for name, shape in checkpoint.shapes.items()}
    for name, out in found.items():
        checkpoint.copy_slice(name, out, 0, 1)
    return found


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= ROUNDING * max(1.0, float(value.abs().max())), name


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_weights_are_those_of_merge_and_unload(
    tmp_path: Path, folders: dict[str, Path], options: dict[str, Any]
) -> None:
    adapter = save_adapter(tmp_path / "adapter", **options)
    expected = merged(adapter)
    changed = [name for name, value in expected.items() if not torch.equal(value, WEIGHTS[name])]
    for folder in folders.values():
        checkpoint = open_checkpoint(folder, adapter=adapter)
        assert isinstance(checkpoint, AdaptedCheckpoint)
        assert sorted(checkpoint.adapter.changes) == sorted(changed)
        found = whole(checkpoint)
        assert_close(found, expected)
        for size in (2, 4):
            for rank in range(size):
                for name, value in found.items():
                    rows, columns = checkpoint.slice_of(name, rank, size)
                    out = torch.full([b - a for a, b in (rows, columns or (0, 1))], torch.nan)
                    out = out if columns else out[:, 0]
                    checkpoint.copy_slice(name, out, rank, size)
                    assert_close({name: out}, {name: mine(name, value, SHAPE, rank, size)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("file", ["safetensors", "bin"])
def test_adapters_in_16_bits_and_as_bin(
    tmp_path: Path, folders: dict[str, Path], file: str, dtype: torch.dtype
) -> None:
    adapter = save_adapter(tmp_path / "adapter", target_modules=LINEAR)
    tensors = {name: value.to(dtype) for name, value in tensors_of(adapter).items()}
    replace_tensors(adapter, tensors)
    if file == "bin":
        torch.save(tensors, adapter / "adapter_model.bin")
        (adapter / "adapter_model.safetensors").unlink()
    assert_close(whole(open_checkpoint(folders["meta 2"], adapter=adapter)), merged(adapter))


@pytest.fixture(scope="module")
def opened(
    tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]
) -> dict[str, AdaptedCheckpoint]:
    """Adapters whose products are exact in float64."""
    adapter = save_adapter(
        tmp_path_factory.mktemp("half") / "adapter", target_modules=[*LINEAR, "embed_tokens"], r=9
    )
    replace_tensors(adapter, {name: value.bfloat16() for name, value in tensors_of(adapter).items()})
    found = {layout: open_checkpoint(folder, adapter=adapter) for layout, folder in folders.items()}
    return {layout: each for layout, each in found.items() if isinstance(each, AdaptedCheckpoint)}


@settings(max_examples=200, deadline=None)
@given(data=st.data(), part=st.sampled_from(["wq", "wk", "wv", "wo", "tok_embeddings"]))
def test_a_weight_has_the_same_bits_in_any_window(
    opened: dict[str, AdaptedCheckpoint], data: Any, part: str
) -> None:
    name = "tok_embeddings.weight" if part == "tok_embeddings" else f"layers.1.attention.{part}.weight"
    checkpoint = opened[data.draw(st.sampled_from(sorted(opened)))]
    shape = checkpoint.shapes[name]
    expected = torch.empty(shape)
    opened["hf"].read(name, expected, (0, shape[0]), (0, shape[1]))
    (a, b), (c, d) = [sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2))) for n in shape]
    found = torch.full((b - a, d - c), torch.nan)
    checkpoint.read(name, found, (a, b), (c, d))
    assert torch.equal(found, expected[a:b, c:d])


@pytest.mark.parametrize("layout", ["meta 2", "hf"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_those_of_peft(tmp_path: Path, folders: dict[str, Path], layout: str, dtype: str) -> None:
    import peft  # here: it takes seconds of each process that collects the tests

    adapter = save_adapter(tmp_path / "adapter", target_modules=[*LINEAR, "lm_head"])
    with torch.no_grad(), quiet():
        twin = peft.PeftModel.from_pretrained(copy.deepcopy(base()), adapter)
        expected = twin(torch.tensor(IDS)).logits
        plain = base()(torch.tensor(IDS)).logits
    with Llama.build(folders[layout], None, 64, 2, 1, device="cpu", dtype=dtype, adapter=adapter) as llama:
        found = llama.model(torch.tensor(IDS)).float()
        assert llama.adapter == adapter
    off = float((found - expected).abs().max())
    bound = 2e-5 * expected.abs().max() if dtype == "float32" else 0.1 * (expected - plain).abs().max()
    assert off < float(bound)


def test_a_tied_output_keeps_its_weight_when_the_embedding_is_changed(tmp_path: Path) -> None:
    """As PEFT computes it before it merges; merge_and_unload changes both."""
    model = random_model(2, True)
    folder = save(model, tmp_path / "tied")
    adapter = save_adapter(tmp_path / "adapter", target_modules=["embed_tokens"])
    tensors = {name: value for name, value in tensors_of(adapter).items() if "lora" in name}
    checkpoint = open_checkpoint(folder, adapter=replace_tensors(adapter, tensors))
    found = whole(checkpoint)
    embedding = model.state_dict()["model.embed_tokens.weight"]
    assert torch.equal(found["output.weight"], embedding)
    assert not torch.equal(found["tok_embeddings.weight"], embedding)


def test_an_adapter_that_is_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    """Touching the lost bytes could end the process, or read zeros."""
    adapter = save_adapter(tmp_path / "adapter", target_modules=ATTENTION)
    checkpoint = open_checkpoint(base_folders(tmp_path)["meta 1"], adapter=adapter)
    os.truncate(adapter / "adapter_model.safetensors", 100)
    name = "layers.0.attention.wv.weight"
    with pytest.raises(CheckpointFormatError, match=r"adapter_model\.safetensors was cut from"):
        checkpoint.read(name, torch.empty(checkpoint.shapes[name]), *checkpoint.slice_of(name, 0, 1))
    *_, (_, path, stored) = checkpoint.stored()  # what `verify` reads
    assert path == adapter / "adapter_model.safetensors"
    with pytest.raises(CheckpointFormatError, match=r"adapter_model\.safetensors was cut from"):
        next(checkpoint.windows(stored))
