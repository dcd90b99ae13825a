"""RMSNorm and rotary positions are their formulas in float64, compiled or not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama.kernels.norms import rotary_pairs, rotary_table
from llama.kernels.operators import rms_norm, rotate


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """In float64."""
    return x.double() / (x.double().square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


# The greatest relative error of two roundings.
PRECISION = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 2**-20}


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 40])
@pytest.mark.parametrize("n", [16, 20, 48, 256])
@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.usefixtures("way")
def test_rms_norm(rows: int, n: int, dtype: torch.dtype) -> None:
    x, weight = random(rows, n, scale=5).to(dtype), random(n, seed=1).to(dtype)
    exact = normed(x, weight, 1e-5)
    got = rms_norm(x, weight, 1e-5)
    assert got.dtype == dtype
    # Two roundings: of the normalised value and of the product.
    assert ((got.double() - exact).abs() <= PRECISION[dtype] * exact.abs() + 1e-6).all()


def test_rms_norm_is_computed_in_float32() -> None:
    x, weight = random(5, 32, scale=300), random(32, seed=1)
    wanted = normed(x, weight, 0.5)
    torch.testing.assert_close(rms_norm(x, weight, 0.5).double(), wanted, rtol=1e-6, atol=1e-6)
    got = rms_norm(x.half(), weight.half(), 0.5)  # 300 squared overflows float16
    assert got.dtype == torch.float16
    torch.testing.assert_close(got.double(), wanted, rtol=5e-3, atol=5e-3)


@pytest.mark.usefixtures("way")
def test_a_derivative_goes_through_norm_and_rotation() -> None:
    """The kernels have none: they leave what needs one to PyTorch."""
    x, weight = random(3, 32).requires_grad_(), random(32, seed=1)
    rotate(rms_norm(x, weight, 1e-5)[:, None], rotary_table(torch.arange(3), 32, 1e4)).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.usefixtures("way")
def test_rms_norm_of_what_the_kernel_does_not_take() -> None:
    """A weight of another dtype, with gaps, or of one number for all: such modules exist in research code."""
    x, weight = random(3, 32).bfloat16(), random(64, seed=1)
    for each in (weight[:32], weight.bfloat16()[::2], weight.bfloat16()[:1]):
        exact = normed(x, each, 1e-5)
        assert ((rms_norm(x, each, 1e-5).double() - exact).abs() <= 2**-7 * exact.abs() + 1e-6).all()


def exactly_turned(x_THD: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """In float64, from the angles on."""
    dim = x_THD.shape[-1]
    angle = positions.double()[:, None] * theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    pairs = torch.view_as_complex(x_THD.double().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)[:, None]).flatten(-2)


@pytest.mark.parametrize("rows", [1, 8, 9, 33])
@pytest.mark.parametrize("dim", [4, 16, 64, 128])
@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.usefixtures("way")
def test_rotate(rows: int, dim: int, dtype: torch.dtype) -> None:
    x, positions = random(rows, 3, dim).to(dtype), torch.arange(rows) * 97
    table = rotary_table(positions, dim, 1e6)
    exact = exactly_turned(x, positions, 1e6)
    gaps = torch.cat((x, torch.full_like(x, torch.nan)), dim=-1)[..., :dim]
    for each in (x.clone(), gaps):
        got = rotate(each, table)
        assert got.dtype == dtype
        assert ((got.double() - exact).abs() <= PRECISION[dtype] * exact.abs() + 2e-3).all()


def test_rotary_tables_are_float32_whatever_the_dtype() -> None:
    """At theta 1e6 and 16,384 positions, bfloat16 angles are off by whole turns."""
    positions = torch.tensor([0, 1, 1000, 16383])
    table = rotary_table(positions, 128, 1e6)
    assert table.dtype == torch.complex64
    pair = torch.arange(64, dtype=torch.float64)
    angle = positions.double()[:, None] * 1e6 ** (-2 * pair / 128)
    assert torch.allclose(table, torch.polar(torch.ones_like(angle), angle).to(table.dtype), atol=4e-3)


@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_the_table_of_the_fused_layers_is_the_same(theta: float) -> None:
    positions = np.array([0, 1, 17, 16383])
    table = torch.view_as_real(rotary_table(torch.from_numpy(positions), 64, theta)).flatten(1)
    torch.testing.assert_close(torch.from_numpy(rotary_pairs(positions, 64, theta)), table, rtol=0, atol=1e-6)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 16000))
def test_rotated_scores_depend_on_the_distance_only(a: int, b: int, shift: int) -> None:
    q, k = random(2, 1, 1, 16)

    def score(at: int, to: int) -> torch.Tensor:
        return (rotate(q.clone(), rotary_table(torch.tensor([at]), 16, 1e6)).flatten()).dot(
            rotate(k.clone(), rotary_table(torch.tensor([to]), 16, 1e6)).flatten()
        )

    assert abs(float(score(a, b) - score(a + shift, b + shift))) < 2e-2


@pytest.mark.usefixtures("way")
def test_rotation_leaves_its_input_alone() -> None:
    """A hook on the layer that made it may have kept it."""
    x = random(9, 3, 32)
    kept = x.clone()
    assert not torch.equal(rotate(x, rotary_table(torch.arange(9) + 5, 32, 1e4)), x)
    assert torch.equal(x, kept)


@pytest.mark.usefixtures("way")
def test_one_angle_for_all_rows() -> None:
    x, table = random(9, 3, 32), rotary_table(torch.tensor([5]), 32, 1e4)
    torch.testing.assert_close(rotate(x, table), rotate(x, table.expand(9, -1).contiguous()))


@pytest.mark.usefixtures("way")
def test_rows_of_no_numbers() -> None:
    assert rms_norm(torch.empty(3, 0), torch.empty(0), 1e-5).shape == (3, 0)
