"""Laws of a layer whose weight is quantized: copies keep it exactly, casts change the activations alone, and nothing
makes it plain without a word."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from quantized_models import packed, quantized
from torch import nn

from llama.distributed import environment
from llama.distributed.layers import ColumnParallelLinear
from llama.distributed.parallel import Parallel
from llama.kernels import native
from llama.kernels.quantized import FORMATS, Blocks
from llama.kernels.quantized_weights import Quantized, product
from llama.kernels.weights import PackedWeight

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZE = (33, 64)
Copier = Callable[[nn.Module], nn.Module]


@pytest.fixture(autouse=True, params=["with kernels", "without"])
def _kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without":
        monkeypatch.setattr(native, "kernels", lambda: None)


@pytest.fixture(params=FORMATS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is logged."""
    lines: list[str] = []
    environment.log_once.cache_clear()
    monkeypatch.setattr(environment, "log", lines.append)
    yield lines
    environment.log_once.cache_clear()


def make(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blocks_of(kind: str, seed: int = 0) -> Blocks:
    return quantized(kind, make(*SIZE, seed=seed))


def layer(blocks: Blocks, dtype: torch.dtype = torch.float32) -> ColumnParallelLinear:
    with torch.device("meta"):
        made = ColumnParallelLinear(SIZE[1], SIZE[0], parallel=Parallel())
    made.assign(packed(blocks, SIZE[1], dtype))
    return made


def plain(blocks: Blocks) -> torch.Tensor:
    return layer(blocks).packed.plain()


def check(module: ColumnParallelLinear, blocks: Blocks, dtype: torch.dtype = torch.float32) -> None:
    """It holds these codes, multiplies by them, and has a plain weight of that dtype in its state dict."""
    weight: PackedWeight = module.packed
    assert isinstance(weight.format, Quantized)
    found = weight.format.blocks(weight)
    assert torch.equal(found.codes, blocks.codes)
    assert torch.equal(found.scales, blocks.scales)
    assert blocks.zeros is None or torch.equal(found.zeros, blocks.zeros)  # type: ignore[arg-type]
    assert module.weight.dtype == torch.uint8
    assert module.weight.data_ptr() == weight.codes.data_ptr()
    x = make(3, SIZE[1], seed=1).to(dtype)
    assert torch.equal(module(x), product(x, weight))
    state = module.state_dict()
    assert state.keys() == {"weight"}
    assert state["weight"].dtype == dtype
    assert torch.equal(state["weight"], weight.plain().to(dtype))


COPIES: dict[str, Copier] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": lambda module: saved(module),
    "copy": copy.copy,
}


def saved(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    found: nn.Module = torch.load(file, weights_only=False)
    return found


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_has_the_same_codes(kind: str, way: str) -> None:
    blocks = blocks_of(kind)
    module = layer(blocks, torch.float16)
    made = COPIES[way](module)
    assert isinstance(made, ColumnParallelLinear)
    check(made, blocks, torch.float16)
    check(module, blocks, torch.float16)
    if way != "copy":
        assert made.weight.data_ptr() != module.weight.data_ptr()
        made.weight.zero_()
        check(module, blocks, torch.float16)


def test_processes_are_sent_shared_memory_itself_and_files_its_content(kind: str) -> None:
    module = layer(blocks_of(kind))
    module.share_memory()
    weight: PackedWeight = module.packed
    parts = [weight.codes, weight.scales, weight.zeros]
    _, sent = ForkingPickler(io.BytesIO()).dispatch_table[PackedWeight](weight)
    assert [each is None or each.data_ptr() for each in sent[2:5]] == [
        each is None or each.data_ptr() for each in parts
    ]
    copied = pickle.loads(pickle.dumps(weight))
    assert not copied.codes.is_shared()
    assert torch.equal(copied.codes, weight.codes)


def test_copies_of_layers_share_what_the_layers_share() -> None:
    """An order, which belongs to all matrices that read the same x."""
    order = torch.arange(63, -1, -1, dtype=torch.int32)
    blocks = blocks_of("int8")
    form = Blocks(type(blocks.form)("int8", SIZE[1], 32, order), blocks.codes, blocks.scales)
    both = nn.ModuleList([layer(form), layer(form)])
    for make_copy in (copy.deepcopy, saved):
        first, second = make_copy(both)
        assert first.packed.order is not order
        assert torch.equal(first.packed.order, order)
        assert first.packed.order.data_ptr() == second.packed.order.data_ptr()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cast_changes_the_activations_alone(kind: str, dtype: torch.dtype) -> None:
    blocks = blocks_of(kind)
    for before in DTYPES:
        module = layer(blocks, before)
        codes = module.weight.data_ptr()
        check(module.to(dtype), blocks, dtype)
        assert module.weight.data_ptr() == codes
    check(layer(blocks).half().float(), blocks)
    check(layer(blocks).type(dtype), blocks, dtype)
    check(layer(blocks).to("cpu", dtype), blocks, dtype)


def test_a_weight_that_goes_nowhere_stays_the_same_parameter(kind: str) -> None:
    module = layer(blocks_of(kind))
    before = module.weight
    assert module.to("cpu", torch.float32).weight is before
    assert module.eval().requires_grad_(False).weight is before


def test_a_device_without_a_kernel_gets_the_plain_weight(kind: str, said: list[str]) -> None:
    module = layer(blocks_of(kind), torch.float16).to("meta")
    assert module.weight.shape == SIZE
    assert (module.weight.device.type, module.weight.dtype) == ("meta", torch.float16)
    assert said == []  # there are no numbers on it


def test_memory_that_is_shared_in_place_is_used_from_there(kind: str) -> None:
    blocks, beside = blocks_of(kind), blocks_of(kind, seed=2)
    both = nn.ModuleList([layer(blocks), layer(beside)])
    both.share_memory()
    for module, wanted in zip(both, (blocks, beside), strict=True):
        weight = module.packed
        parts = (weight.codes, weight.scales, weight.zeros, weight.order)
        assert all(part.is_shared() for part in parts if part is not None)
        check(module, wanted)


def test_codes_are_read_where_they_are_now(kind: str) -> None:
    module, blocks = layer(blocks_of(kind)), blocks_of(kind)
    module(make(1, SIZE[1]))
    module.weight.share_memory_()
    module.weight.zero_()
    check(module, Blocks(blocks.form, torch.zeros_like(blocks.codes), blocks.scales, blocks.zeros))


def test_weights_of_one_piece_of_memory_are_shared_together(kind: str) -> None:
    """As a loaded model's are: when the first is moved, all are."""
    made = [layer(blocks_of(kind, seed=seed)) for seed in (0, 2)]
    sizes = [module.weight.numel() for module in made]
    arena = torch.empty(sum(sizes), dtype=torch.uint8)
    for module, piece in zip(made, arena.split(sizes), strict=True):
        old = module.packed
        piece.view(old.codes.shape).copy_(old.codes)
        module.assign(
            PackedWeight(
                old.format, SIZE, piece.view(old.codes.shape), old.scales, old.zeros, plain_dtype=old.dtype
            )
        )
    nn.ModuleList(made).share_memory()
    for module, seed in zip(made, (0, 2), strict=True):
        check(module, blocks_of(kind, seed=seed))


def test_its_own_state_dict_leaves_the_codes(kind: str, said: list[str]) -> None:
    for dtype in DTYPES:
        module = layer(blocks_of(kind), dtype)
        codes = module.weight.data_ptr()
        module.load_state_dict(copy.deepcopy(module.state_dict()))
        assert module.weight.data_ptr() == codes
        check(module, blocks_of(kind), dtype)
    assert said == []


def test_other_values_are_taken_as_they_are_and_said(kind: str, said: list[str]) -> None:
    """Quantizing them would change them."""
    given = make(*SIZE, seed=5)
    modules = nn.ModuleList([layer(blocks_of(kind)), layer(blocks_of(kind))])
    modules.load_state_dict({"0.weight": given, "1.weight": given})
    for module in modules:
        assert torch.equal(module.state_dict()["weight"], given)
        assert module.weight.dtype == torch.float32
    assert len(said) == 1
    assert "quantized" in said[0]
    module = layer(blocks_of(kind), torch.float16)
    module.load_state_dict({"weight": given})
    assert torch.equal(module.state_dict()["weight"], given.half())
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer(blocks_of(kind)).load_state_dict({"weight": given[:5]})
    with pytest.raises(RuntimeError, match="Missing"):
        layer(blocks_of(kind)).load_state_dict({})


def test_a_parameter_of_another_layer_brings_its_scales(kind: str) -> None:
    module, other = layer(blocks_of(kind)), layer(blocks_of(kind, seed=2))
    module.weight = other.weight
    check(module, blocks_of(kind, seed=2))
    with torch.device("meta"):
        fresh = ColumnParallelLinear(SIZE[1], SIZE[0], parallel=Parallel())
    fresh.weight = other.weight
    check(fresh, blocks_of(kind, seed=2))


def test_a_parameter_with_the_same_codes_brings_its_scales(kind: str) -> None:
    module, other = layer(blocks_of(kind)), layer(blocks_of(kind))
    module.assign(other.packed)
    assert other.packed.scales is not None
    other.assign(replace(other.packed, scales=other.packed.scales * 2))
    x = make(3, SIZE[1], seed=1)
    single = module(x)
    module.weight = other.weight
    assert torch.equal(module(x), other(x))
    assert torch.equal(module(x), single * 2)
    assert module.packed is module.packed is other.packed


def test_codes_without_scales_are_refused(kind: str) -> None:
    """Numbers that a kernel would read with the scales of another weight."""
    module, other = layer(blocks_of(kind)), layer(blocks_of(kind, seed=2))
    module.weight = nn.Parameter(other.weight.data.clone(), requires_grad=False)
    with pytest.raises(RuntimeError, match=r"without their scales; use layer\.assign"):
        module(make(1, SIZE[1]))
    module.assign(other.packed)
    check(module, blocks_of(kind, seed=2))


def test_an_edit_of_the_codes_counts(kind: str) -> None:
    module, blocks = layer(blocks_of(kind)), blocks_of(kind)
    module.weight.zero_()
    check(module, Blocks(blocks.form, torch.zeros_like(blocks.codes), blocks.scales, blocks.zeros))


def test_a_plain_weight_can_take_its_place(kind: str) -> None:
    module, given = layer(blocks_of(kind)), make(*SIZE, seed=5)
    module.weight = nn.Parameter(given, requires_grad=False)
    assert torch.equal(module.state_dict()["weight"], given)
    torch.testing.assert_close(module(torch.eye(SIZE[1])), given.T, atol=1e-5, rtol=1e-5)
