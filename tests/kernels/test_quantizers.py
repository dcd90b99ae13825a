"""Quantizers: how far weights move at most, that a search pays, and that C and torch find the same."""

from __future__ import annotations

import pytest
import torch
from compiled_levels import use

from llama.kernels import quantizers
from llama.kernels.quantized import Blocks, dequantize, to_int8
from llama.kernels.quantizers import to_int4, to_k4


def random(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Rows of other scales and shapes: bell-shaped, long-tailed, one-sided, on a grid, tiny, huge, constant, zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    kinds = (
        lambda row: row,
        lambda row: row * 0.02,
        lambda row: row**3,
        lambda row: row.abs(),
        lambda row: -row.abs(),
        lambda row: (row * 3).round(),
        lambda row: row * 1e-7,
        lambda row: row * 1e3,
        lambda row: torch.full_like(row, 0.3),
        torch.zeros_like,
        lambda row: row * (torch.arange(columns) % 37 == 0),
    )
    return torch.stack([kinds[i % len(kinds)](row) for i, row in enumerate(x)])


def weights_of_errors(x: torch.Tensor) -> torch.Tensor:
    blocks = x.double().reshape(-1, 32).abs()
    return (blocks + blocks.mean(1, keepdim=True)).reshape(x.shape)


def harm(x: torch.Tensor, found: Blocks) -> torch.Tensor:
    """The weighted error of each row."""
    return (weights_of_errors(x) * (dequantize(found).double() - x.double()) ** 2).sum(1)


def nearest_k4(x: torch.Tensor) -> torch.Tensor:
    """Each block's range in 16 even steps: what there is without a search, before d, e, a and b are rounded."""
    blocks = x.double().reshape(-1, 32)
    low, high = blocks.amin(1, keepdim=True).clamp(max=0), blocks.amax(1, keepdim=True)
    step = ((high - low) / 15).clamp(min=1e-300)
    return (((blocks - low) / step).round() * step + low).reshape(x.shape)


def nearest_int4(x: torch.Tensor) -> torch.Tensor:
    blocks = x.double().reshape(-1, 32)
    most = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    step = torch.where(most == 0, 1e-300, most / -8)
    return ((blocks / step).round().clamp(-8, 7) * step).reshape(x.shape)


@pytest.mark.parametrize(("rows", "columns"), [(1, 256), (33, 256), (11, 768), (7, 1280)])
def test_k4_is_the_same_on_every_level(rows: int, columns: int, level: str) -> None:
    x = random(rows, columns)
    x[-1, 3], x[0, columns - 1] = torch.nan, -torch.inf
    same(to_k4(x), quantizers.Blocks(to_k4(x).form, *by_hand(quantizers._k4, x, columns)))


@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (33, 32), (11, 96), (5, 1056)])
def test_int4_is_the_same_on_every_level(rows: int, columns: int, level: str) -> None:
    x = random(rows, columns)
    x[-1, 3], x[0, columns - 1] = torch.nan, -torch.inf
    same(to_int4(x), quantizers.Blocks(to_int4(x).form, *by_hand(quantizers._int4, x, columns)))


def by_hand(quantizer: object, x: torch.Tensor, columns: int) -> list[torch.Tensor]:
    codes, scales, *zeros = quantizer(x)  # type: ignore[operator]
    shapes = [scales.reshape(len(x), -1, *scales.shape[1:]), *(each.reshape(len(x), -1, 2) for each in zeros)]
    return [codes.reshape(len(x), columns), *shapes]


def same(found: Blocks, wanted: Blocks) -> None:
    assert torch.equal(found.codes, wanted.codes)
    assert torch.equal(found.scales.view(torch.int16) & 0x7C00, wanted.scales.view(torch.int16) & 0x7C00)
    assert torch.equal(found.scales.nan_to_num(9), wanted.scales.nan_to_num(9))
    if wanted.zeros is not None:
        assert found.zeros is not None
        assert torch.equal(found.zeros, wanted.zeros)


def test_without_kernels_windows_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    x = random(22, 512)
    wanted = to_k4(x), to_int4(x)
    use("plain", monkeypatch)
    monkeypatch.setattr(quantizers, "_WINDOW", 1500)
    same(to_k4(x), wanted[0])
    same(to_int4(x), wanted[1])


@pytest.mark.usefixtures("way")
def test_a_search_is_better_than_rounding_to_even_steps() -> None:
    x = torch.randn(64, 1024, generator=torch.Generator().manual_seed(1)) ** 3 * 0.02
    for found, nearest in ((to_k4(x), nearest_k4(x)), (to_int4(x), nearest_int4(x))):
        rounded = (weights_of_errors(x) * (nearest - x.double()) ** 2).sum(1)
        assert bool((harm(x, found) < rounded).all())
        assert harm(x, found).sum() < 0.9 * rounded.sum()


def test_no_weight_moves_far() -> None:
    x = random(44, 768)
    blocks = x.reshape(-1, 32)
    largest = blocks.abs().amax(1, keepdim=True)
    # Scales of next to nothing are subnormal in float16.
    for size in (1, 1e-2, 1e-3, 1e-5, 1e-8, 1e-38):
        off8 = (dequantize(to_int8(x * size)) - x * size).abs().reshape(-1, 32)
        assert bool((off8 <= largest * size / 250 + 3e-8).all())
    # A fifth of a code beside the even steps at most, and half a code of rounding.
    off4 = (dequantize(to_int4(x)) - x).abs().reshape(-1, 32)
    assert bool((off4 <= largest / 8 * 1.3 + 4e-6).all())
    supers = (x.reshape(-1, 256).amax(1).clamp(min=0) - x.reshape(-1, 256).amin(1).clamp(max=0))[:, None]
    off = (dequantize(to_k4(x)) - x).abs().reshape(-1, 256)
    assert bool((off <= supers / 15 * 1.3 + 4e-6).all())


def test_what_was_quantized_stays_as_it_is() -> None:
    x = torch.randn(64, 1024, generator=torch.Generator().manual_seed(2)) * 0.02
    for quantizer in (to_int8, to_int4):
        once = dequantize(quantizer(x))
        assert torch.equal(dequantize(quantizer(once)), once)
    once = dequantize(to_k4(x))
    again = dequantize(to_k4(once))
    # d and e are found anew from rounded numbers: not the same bits, but next to no error.
    assert (again - once).square().sum() < 0.01 * (once - x).square().sum()


def test_codes_and_factors_fit_their_bits() -> None:
    x = random(33, 512)
    for found in (to_k4(x), to_int4(x)):
        assert int(found.codes.max()) <= 15
        assert bool(found.scales.isfinite().all())
    zeros = to_k4(x).zeros
    assert zeros is not None
    assert 48 <= int(zeros.max()) <= 63


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_lost(bad: float) -> None:
    x = random(4, 512)
    x[2, 300] = bad
    k4, int4 = to_k4(x).scales, to_int4(x).scales
    assert k4[2, 1].isnan().all()
    assert int(k4.isnan().sum()) == 2
    assert bool(int4[2, 300 // 32].isnan())
    assert int(int4.isnan().sum()) == 1
