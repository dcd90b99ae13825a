"""Laws of torch's product of 4 bit on CUDA, with its twin for CPUs in its place: no GPU is at hand."""

from __future__ import annotations

import pytest
import torch
from quantized_models import quantized

from llama.kernels import torch_int4
from llama.kernels.quantized import FORMATS, Blocks, Form, in_order
from llama.kernels.table import Case, choose
from llama.kernels.torch_int4 import TorchInt4
from llama.kernels.weights import PackedWeight

KINDS = [kind for kind, quantization in FORMATS.items() if quantization.bits == 4]
each_kind = pytest.mark.parametrize("kind", KINDS)


def make(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + seed))


def convert(pairs: torch.Tensor, tiles: int) -> torch.Tensor:
    """As torch documents the operator for CUDA: (n, k / 2) bytes -> (n / 8, k / 16 tiles, 32, tiles / 2)."""
    assert pairs.dtype == torch.uint8
    assert pairs.is_contiguous()
    out, columns = pairs.shape[0], 2 * pairs.shape[1]
    assert out % 8 == columns % (16 * tiles) == 0
    codes = torch.stack((pairs >> 4, pairs & 15), 2).reshape(out, columns).int()
    packed = torch._convert_weight_to_int4pack_for_cpu(codes, tiles)
    return packed.view(torch.int32).view(out // 8, columns // (16 * tiles), 32, tiles // 2)


def multiply(x: torch.Tensor, codes: torch.Tensor, group: int, scales: torch.Tensor) -> torch.Tensor:
    """With the checks of the operator for CUDA."""
    groups, out, two = scales.shape
    assert x.dtype == scales.dtype == torch.bfloat16
    assert x.is_contiguous()
    assert scales.is_contiguous()
    assert codes.is_contiguous()
    assert group in (32, 64, 128, 256)
    assert (groups * group, two) == (x.shape[1], 2)
    assert codes.shape == (out // 8, x.shape[1] // 32, 32, 1)
    codes = codes.view(torch.uint8).view(out, x.shape[1] // 2)
    return torch._weight_int4pack_mm_for_cpu(x, codes, group, scales)


@pytest.fixture(autouse=True)
def _twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_int4, "_convert", convert)
    monkeypatch.setattr(torch_int4, "_multiply", multiply)


def packed(blocks: Blocks, columns: int | None = None) -> PackedWeight:
    form = TorchInt4(blocks.form.format, blocks.form.group)
    return form.pack_blocks(blocks, columns or blocks.form.columns, torch.float16)


@each_kind
@pytest.mark.parametrize("shape", [(16, 64), (33, 96), (64, 512), (48, 288)])
def test_it_multiplies_by_the_same_weights(kind: str, shape: tuple[int, int]) -> None:
    """Up to bfloat16: of the scales, and of x and y."""
    blocks = quantized(kind, make(*shape))
    weight = packed(blocks)
    plain = in_order(blocks, shape[1])
    bound = plain.abs().amax() / 100
    assert (weight.plain() - plain).abs().amax() < bound
    x = make(2, 3, shape[1], seed=1)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        y = weight.linear(x.to(dtype))
        assert (y.dtype, y.shape) == (dtype, (2, 3, shape[0]))
        exact, scale = x.double() @ plain.double().T, x.double().abs() @ plain.double().abs().T
        assert ((y.double() - exact).abs() <= 0.02 * scale).all()


@each_kind
def test_an_order_is_followed(kind: str) -> None:
    blocks = quantized(kind, make(32, 96))
    order = torch.randperm(96, generator=torch.Generator().manual_seed(3)).int()
    order[order >= 70] = -1
    shuffled = Blocks(Form(kind, 96, blocks.form.group, order), blocks.codes, blocks.scales, blocks.zeros)
    weight = packed(shuffled, 70)
    plain = in_order(shuffled, 70)
    assert weight.shape == plain.shape
    assert (weight.plain() - plain).abs().amax() < plain.abs().amax() / 100


@each_kind
def test_groups_are_those_that_the_kernel_knows(kind: str) -> None:
    form = TorchInt4(kind, 32)
    for columns, group, wanted in (
        (512, 512, 256),
        (384, 384, 128),
        (96, 96, 32),
        (64, 32, 32),
        (320, 64, 64),
    ):
        sizes, dtype = form.parts((16, columns), Form(kind, columns, group))["scales"]
        assert sizes[0] == columns // (32 if kind == "k4" else wanted)
        assert dtype == torch.bfloat16


@each_kind
def test_a_derivative_is_that_of_its_own_weight(kind: str) -> None:
    weight, x = packed(quantized(kind, make(16, 64))), make(3, 64, seed=1).requires_grad_()
    weight.linear(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weight.plain().sum(0).expand(3, 64))


def test_the_trial_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("int4", "cuda", None, group=32)

    def chosen() -> str:
        torch_int4.why_not.cache_clear()
        return choose("linear", case).name

    try:
        assert (chosen() == "torch int4") == torch.cuda.is_available()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch_int4, "_CUDA", torch.device("cpu"))
        assert chosen() == "torch int4"
        assert choose("linear", case._replace(format="int8")).name == "torch"
        monkeypatch.setattr(torch_int4, "_multiply", lambda *args: multiply(*args) + 1)
        assert chosen() == "torch"
        assert "other numbers" in str(torch_int4.why_not())

        def missing(*_: object) -> torch.Tensor:
            raise RuntimeError("not available for build")

        monkeypatch.setattr(torch_int4, "_convert", missing)
        assert chosen() == "torch"
        assert "no such product" in str(torch_int4.why_not())
    finally:
        torch_int4.why_not.cache_clear()
