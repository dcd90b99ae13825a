"""Laws of loading a quantized checkpoint: the codes reach the kernels as they are, on any number of ranks."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compiled_levels import AT, use
from pools import new_step
from quantized_models import QuantizedTwin
from thread_models import on_ranks
from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path

from llama.checkpoint import load, load_weights, open_checkpoint
from llama.checkpoint.memory import weight_memory
from llama.distributed.parallel import Parallel
from llama.kernels import fused, native
from llama.kernels.quantized_weights import Quantized
from llama.model import Transformer

CPU = torch.device("cpu")
# On four ranks, slices of wo begin within a block of 32, and slices of w2 within a group.
PARAMS: dict[str, Any] = {**SHAPE, "dim": 320, "n_heads": 10, "n_kv_heads": 5, "multiple_of": 160}
NARROW: dict[str, Any] = {**SHAPE, "dim": 64, "n_heads": 4, "n_kv_heads": 4, "multiple_of": 32}
VOCAB = 72
KINDS = [("int8",), ("int4",), ("int8z",), ("int4z",), ("k4",), ("k4", "int8", "int4z")]
IDS = torch.tensor([5, 9, 2, 40, 7, 33, 1, 8, 60, 3])

each_kinds = pytest.mark.parametrize("kinds", KINDS, ids="-".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    for name, params in (("wide", PARAMS), ("narrow", NARROW)):
        save_checkpoint(folder / name, params, random_weights(params, VOCAB), tiny_model_path())
    return folder


@pytest.fixture(autouse=True)
def _best(monkeypatch: pytest.MonkeyPatch) -> None:
    """With kernels of whatever level this machine has: each level has the same bits."""
    use(AT[0], monkeypatch)


def twin(folder: Path, *kinds: str, **how: Any) -> QuantizedTwin:
    return QuantizedTwin(open_checkpoint(folder, max_seq_len=64, max_batch_size=4), *kinds, **how)


def loaded(
    checkpoint: Any, dtype: torch.dtype = torch.float32, parallel: Parallel | None = None
) -> Transformer:
    with torch.device("meta"):
        model = Transformer(checkpoint.args, parallel=parallel or Parallel())
    load_weights(model, checkpoint, CPU, dtype)
    return model.eval()


def dequantized(checkpoint: Any, dtype: torch.dtype = torch.float32) -> Transformer:
    """The same weights, plain."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "kernels", lambda: None)
        return loaded(checkpoint, dtype)


def logits(model: Transformer) -> torch.Tensor:
    return model.logits(model.hidden(IDS, new_step(model, [len(IDS)])))


def near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Up to the rounding of x to 8 bits, in some twenty products."""
    error = (found - wanted).float().pow(2).mean().sqrt() / wanted.float().pow(2).mean().sqrt()
    assert 0 < float(error) < 0.07


def quantized_layers(model: Transformer) -> dict[str, Any]:
    return {name: module.packed for name, module in model.named_modules() if hasattr(module, "packed")}


# ---- what is in memory ----


@each_kinds
def test_the_codes_are_those_of_the_checkpoint(folder: Path, kinds: tuple[str, ...]) -> None:
    checkpoint = twin(folder / "wide", *kinds)
    model = loaded(checkpoint)
    for name, weight in quantized_layers(model).items():
        whole = checkpoint.whole(f"{name}.weight")
        assert isinstance(weight.format, Quantized)
        assert weight.format.kind == whole.form.format
        found = weight.format.blocks(weight)
        assert torch.equal(found.codes, whole.codes)
        assert torch.equal(found.scales, whole.scales)
        assert (found.zeros is None) or torch.equal(found.zeros, whole.zeros)
    assert model.tok_embeddings.weight.dtype == model.norm.weight.dtype == torch.float32


@pytest.mark.parametrize("act_order", [False, True], ids=["in order", "act-order"])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("kinds", [("int8",), ("int4z",)], ids="-".join)
def test_every_rank_holds_its_slices(
    folder: Path, kinds: tuple[str, ...], size: int, act_order: bool
) -> None:
    """The values of the whole, also where a slice begins within a block or a group."""
    checkpoint = twin(folder / "narrow", *kinds, act_order=act_order)
    whole = dequantized(checkpoint).state_dict()
    for rank in range(size):
        model = loaded(checkpoint, parallel=Parallel(rank, size))
        for name, value in model.state_dict().items():
            rows, columns = checkpoint.slice_of(name, rank, size)
            wanted = whole[name][slice(*rows)]
            assert torch.equal(value, wanted if columns is None else wanted[:, slice(*columns)]), name


@pytest.mark.parametrize("act_order", [False, True], ids=["in order", "act-order"])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_predicted_bytes_are_those_of_the_loaded_weights(
    folder: Path, size: int, act_order: bool, dtype: torch.dtype
) -> None:
    checkpoint = twin(folder / "narrow", "int4z", "int8z", act_order=act_order)
    for rank in range(size):
        with torch.device("meta"):
            model = Transformer(checkpoint.args, parallel=Parallel(rank, size))
        told: list[int] = []
        load_weights(model, checkpoint, CPU, dtype, progress=told.append)
        packed = [module.packed for module in model.modules() if hasattr(module, "packed")]
        parts = {
            id(part): part.nbytes
            for weight in packed
            for part in (weight.codes, weight.scales, weight.zeros, weight.order)
            if part is not None
        }
        plain = sum(each.nbytes for each in model.parameters() if each.dtype == dtype)
        memory = weight_memory(checkpoint, rank, size, CPU, dtype)
        assert memory.nbytes == sum(told) == sum(parts.values()) + plain


def test_neighbours_that_read_the_same_x_share_its_order(folder: Path) -> None:
    model = loaded(twin(folder / "wide", "int4z", act_order=True))
    attention, feed_forward = model.layers[1].attention, model.layers[1].feed_forward
    assert attention.wq.packed.order is attention.wk.packed.order is attention.wv.packed.order
    assert feed_forward.w1.packed.order is feed_forward.w3.packed.order
    assert feed_forward.w2.packed.order is not feed_forward.w1.packed.order


def test_a_large_matrix_is_read_some_rows_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = twin(folder / "wide", "int4z")
    whole = loaded(checkpoint).state_dict()
    name = "layers.1.feed_forward.w1.weight"
    checkpoint.read_rows[name].clear()
    monkeypatch.setattr(load, "_BLOCK", 40 * 320)
    again = loaded(checkpoint).state_dict()
    assert checkpoint.read_rows[name] == [32] * (checkpoint.shapes[name][0] // 32)
    assert all(torch.equal(again[name], value) for name, value in whole.items())


@each_kinds
def test_without_kernels_the_weights_are_plain(folder: Path, kinds: tuple[str, ...]) -> None:
    checkpoint = twin(folder / "wide", *kinds)
    quantized = loaded(checkpoint)
    assert weight_memory(checkpoint, 0, 1, CPU, torch.float32).made_plain() == []
    plain = dequantized(checkpoint)
    assert not any(weight.is_quantized for weight in quantized_layers(plain).values())
    for name, value in quantized.state_dict().items():
        assert torch.equal(plain.state_dict()[name], value), name


def test_weights_made_plain_are_told_with_the_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = twin(folder / "wide", "k4", "int8")
    assert weight_memory(checkpoint, 0, 1, CPU, torch.float16).describe("Q_X") in (
        "k4 and int8 (Q_X), activations float16",
        "int8 and k4 (Q_X), activations float16",
    )
    monkeypatch.setattr(native, "kernels", lambda: None)
    memory = weight_memory(checkpoint, 0, 1, CPU, torch.float16)
    lines = memory.made_plain()
    assert [line.split(" of ")[1].split()[0] for line in lines] == ["int8", "k4"]
    assert all("no compiled kernels are in use" in line and " MiB: " in line for line in lines)
    assert memory.describe("Q_X") == "float16, from Q_X"


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("whole", [True, False], ids=["model", "layer"])
@pytest.mark.parametrize("kinds", [("int4z",), ("k4", "int8")], ids="-".join)
def test_a_copy_of_a_loaded_model_holds_each_weight_once(
    folder: Path, kinds: tuple[str, ...], whole: bool, shared: bool
) -> None:
    """Though all weights are parts of one piece of memory, of several dtypes, which processes may share."""
    model = loaded(twin(folder / "narrow", *kinds, act_order=kinds == ("int4z",)))
    module: Any = model if whole else model.layers[1].attention.wo
    if shared:
        model.share_memory()
    wanted = module.state_dict()
    taken = sum(weight.nbytes for weight in quantized_layers(module).values())
    taken += sum(each.nbytes for each in module.parameters() if each.dtype == torch.float32)
    file = io.BytesIO()
    torch.save(module, file)
    written = pickle.dumps(module)
    assert max(len(written), len(file.getvalue())) < 1.25 * taken + 60_000
    file.seek(0)
    copies = [torch.load(file, weights_only=False), pickle.loads(written), copy.deepcopy(module)]
    for each in copies:
        assert all(torch.equal(value, wanted[name]) for name, value in each.state_dict().items())
        for weight in quantized_layers(each).values():
            assert weight.codes.untyped_storage().nbytes() == weight.codes.nbytes


# ---- what it computes ----


def test_new_scales_for_the_same_codes_count(folder: Path) -> None:
    model = loaded(twin(folder / "wide", "int4z"))
    layer: Any = model.layers[1].feed_forward.w2
    before, weight = logits(model), layer.packed
    layer.assign(replace(weight, scales=weight.scales * 0.5))
    changed = logits(model)
    assert not torch.equal(changed, before)
    layer.assign(weight)
    assert torch.equal(logits(model), before)


@each_kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_quantized_model_is_the_plain_one_up_to_the_rounding_of_x(
    folder: Path, kinds: tuple[str, ...], dtype: torch.dtype
) -> None:
    checkpoint = twin(folder / "wide", *kinds)
    near(logits(loaded(checkpoint, dtype)), logits(dequantized(checkpoint)))


@each_kinds
def test_a_row_is_the_same_alone_and_among_others(folder: Path, kinds: tuple[str, ...]) -> None:
    model = loaded(twin(folder / "wide", *kinds), torch.float16)
    all_at_once = model.hidden(IDS, new_step(model, [1] * len(IDS)))
    for i in range(len(IDS)):
        alone = model.hidden(IDS[i : i + 1], new_step(model, [1]))
        assert torch.equal(alone[0], all_at_once[i])


@each_kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_fused_layers_are_the_modules(
    folder: Path, kinds: tuple[str, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(twin(folder / "wide", *kinds), dtype)
    taken: list[int] = []
    run = fused.FusedLayers.run
    monkeypatch.setattr(fused.FusedLayers, "run", lambda self, *args: (taken.append(1), run(self, *args))[1])
    fast = logits(model)
    assert taken
    monkeypatch.setattr(fused, "_MAX_ROWS", 0)
    slow = logits(model)
    exact = logits(dequantized(twin(folder / "wide", *kinds)))
    near(fast, exact)
    scale = exact.pow(2).mean().sqrt()
    assert (fast - slow).pow(2).mean().sqrt() < 0.03 * scale


@pytest.mark.parametrize("act_order", [False, True], ids=["in order", "act-order"])
@pytest.mark.parametrize("kinds", [("int8",), ("int4z",), ("int8z", "int4")], ids="-".join)
def test_any_number_of_ranks_computes_the_same(folder: Path, kinds: tuple[str, ...], act_order: bool) -> None:
    checkpoint = twin(folder / "narrow", *kinds, act_order=act_order)
    exact = logits(dequantized(checkpoint))
    for size in (1, 2, 4):
        found = on_ranks(size, lambda parallel: logits(loaded(checkpoint, parallel=parallel)))
        for each in found:
            assert torch.equal(each, found[0])
            near(each, exact)
