"""Adapters on quantized weights: merged in float32, and quantized again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf_files
import pytest
import torch
from adapters import LINEAR, base_folders, merged, replace_tensors, save_adapter, tensors_of
from hf_models import IDS
from quantized_folders import SCHEMES, save_quantized
from tiny_models import SHAPE, hugging_face_twin, random_weights
from tiny_tokenizers import tiny_tokenizer

from llama import Llama
from llama.checkpoint import open_checkpoint
from llama.checkpoint.base import Checkpoint
from llama.checkpoint.lora import AdaptedCheckpoint
from llama.checkpoint.wrapped import WrappedCheckpoint
from llama.kernels.quantized import BLOCK, Blocks, dequantize, form_of, to_int8

# With whole blocks in every row.
BLOCKED: dict[str, Any] = {**SHAPE, "multiple_of": 64}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return base_folders(tmp_path_factory.mktemp("bases"))


def saved(place: Path, kind: str) -> tuple[Path, Any]:
    """A quantized base, and transformers' model with the weights that it means."""
    if kind in SCHEMES:
        return place, save_quantized(place, *SCHEMES[kind])
    weights = random_weights(BLOCKED, tiny_tokenizer().n_words)
    path = gguf_files.save_gguf(place / "x.gguf", BLOCKED, weights, tiny_tokenizer(), kind)
    read = gguf_files.whole(path)
    twin = hugging_face_twin(BLOCKED, {name: read[gguf_files.name_of(name)] for name in weights})
    return path, twin.requires_grad_(False)


@pytest.mark.parametrize("kind", ["gptq 4 act-order", "awq", "nf4 nested", "int8", "Q8_0", "Q4_0", "F16"])
def test_the_weights_are_those_of_merge_and_unload(tmp_path: Path, kind: str) -> None:
    """What is read has no second rounding; what the kernels get is off by 1/250 of a block's largest at most."""
    base, model = saved(tmp_path / "base", kind)
    adapter = save_adapter(tmp_path / "adapter", model=model, target_modules=LINEAR)
    expected = merged(adapter, model)
    checkpoint = open_checkpoint(base, adapter=adapter)
    again = 0
    for name, value in expected.items():
        found = torch.empty_like(value)
        checkpoint.copy_slice(name, found, 0, 1)
        assert (found - value).abs().max() <= 3e-7 * max(1.0, float(value.abs().max())), name
        if value.dim() == 2 and checkpoint.form(name, (0, value.shape[1])) is not None and "layers" in name:
            off = dequantize(checkpoint.blocks(name, (0, len(value)), (0, value.shape[1]))) - value
            blocks = [each.view(-1, BLOCK).abs().amax(1) for each in (off, value)]
            assert (blocks[0] <= blocks[1] / 250 + 1e-6).all(), name
            again += 1
    assert again == (0 if kind == "F16" else 2 * len(LINEAR))
    with torch.no_grad():
        before = model(torch.tensor(IDS)).logits
    with Llama.build(base, None, 64, 2, 1, device="cpu", dtype="float32", adapter=adapter) as llama:
        after = llama.model(torch.tensor(IDS))
    with Llama.build(base, None, 64, 2, 1, device="cpu", dtype="float32") as llama:
        plain = llama.model(torch.tensor(IDS))
    assert (plain - before).abs().mean() < 0.2 * (after - plain).abs().mean()


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_it_is_quantized_after_it_was_merged(tmp_path: Path, folders: dict[str, Path], quantize: str) -> None:
    adapter = save_adapter(tmp_path / "adapter", target_modules=LINEAR)
    name, (rows, columns) = "layers.0.attention.wk.weight", (16, 64)
    plain = open_checkpoint(folders["meta 2"], adapter=adapter)
    checkpoint = open_checkpoint(folders["meta 2"], adapter=adapter, quantize=quantize)
    found = dequantize(checkpoint.blocks(name, (0, rows), (0, columns)))
    exact = torch.empty(rows, columns)
    plain.read(name, exact, (0, rows), (0, columns))
    without = dequantize(
        open_checkpoint(folders["hf"], quantize=quantize).blocks(name, (0, rows), (0, columns))
    )
    assert (found - exact).abs().max() <= exact.abs().max() * (1 / 250 if quantize == "int8" else 1 / 7)
    assert (without - exact).abs().max() > 2 * (found - exact).abs().max()


class Int8(WrappedCheckpoint):
    """A checkpoint whose matrices are quantized."""

    def _values(self, name: str, rows: tuple[int, int]) -> torch.Tensor:
        out = torch.empty(rows[1] - rows[0], self.shapes[name][1])
        self.source.read(name, out, rows, (0, out.shape[1]))
        return out

    def is_mapped(self, name: str) -> bool:
        return Checkpoint.is_mapped(self, name)

    def compute(self, name: str, rows: Any, columns: Any) -> torch.Tensor:
        return Checkpoint.compute(self, name, rows, columns)

    def form(self, name: str, columns: Any) -> Any:
        total = self.shapes[name][1]
        return form_of("int8", columns, BLOCK, total) if total % BLOCK == 0 else None

    def blocks(self, name: str, rows: Any, columns: Any) -> Blocks:
        found, form = to_int8(self._values(name, rows)), self.form(name, columns)
        first = columns[0] // BLOCK * BLOCK
        groups = slice(first // BLOCK, (first + form.columns) // BLOCK)
        return Blocks(form, found.codes[:, first : first + form.columns], found.scales[:, groups])


@pytest.mark.parametrize("columns", [(0, 64), (32, 64), (5, 41), (40, 48)])
@pytest.mark.parametrize(
    "name", ["layers.0.attention.wq.weight", "output.weight", "layers.1.feed_forward.w1.weight"]
)
def test_quantized_weights_are_merged_in_float32_and_quantized_again(
    tmp_path: Path, folders: dict[str, Path], name: str, columns: tuple[int, int]
) -> None:
    adapter = save_adapter(tmp_path / "adapter", target_modules=["q_proj", "lm_head", "down_proj"])
    # Of embeddings PEFT also saves a copy of the base weight.
    replace_tensors(
        adapter, {key: each for key, each in tensors_of(adapter).items() if "base_layer" not in key}
    )
    plain = Int8(open_checkpoint(folders["hf"]))
    adapted = open_checkpoint(folders["hf"], adapter=adapter)
    assert isinstance(adapted, AdaptedCheckpoint)
    checkpoint = AdaptedCheckpoint(plain, adapted.adapter)
    change = checkpoint.adapter.changes.get(name)
    base_, found = (torch.empty(20, columns[1] - columns[0]) for _ in range(2))
    plain.read(name, base_, (3, 23), columns)
    checkpoint.read(name, found, (3, 23), columns)
    form = checkpoint.form(name, columns)
    assert form is not None
    again = Checkpoint.compute(checkpoint, name, (3, 23), columns)
    if change is None:
        assert torch.equal(found, base_)
        assert torch.equal(again, base_)
        return
    exact = open_checkpoint(folders["hf"], adapter=adapter)
    delta, without = (torch.empty_like(found) for _ in range(2))
    exact.read(name, delta, (3, 23), columns)
    exact.source.read(name, without, (3, 23), columns)  # type: ignore[attr-defined]
    assert (found - base_ - (delta - without)).abs().max() < 1e-6
    wide = torch.empty(20, form.columns)
    first = columns[0] // BLOCK * BLOCK
    checkpoint.read(name, wide, (3, 23), (first, first + form.columns))
    largest = wide.view(20, -1, BLOCK).abs().amax(2).repeat_interleave(BLOCK, 1)
    largest = largest[:, columns[0] - first :][:, : found.shape[1]]
    assert ((again - found).abs() <= largest / 250).all()
    assert not torch.equal(again, found)
    # w2 of this shape has rows of 176, which are not whole blocks: it is not quantized.
    assert checkpoint.notes == ["3 quantized matrices that the adapter changes are quantized again, to int8"]
    assert dequantize(checkpoint.blocks(name, (3, 23), columns)).shape == (20, form.columns)
