"""Laws of int8 caches: what is stored is near, the same from every row of the table, and read as floats would be."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import single_step

from llama.kernels import attention, native, operators
from llama.kernels.cached import INT8, dequantize, head_dim_of, quantize, row_bytes, row_of

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scales_of(rows: torch.Tensor) -> torch.Tensor:
    """Of rows (..., blocks x 34), in float32; read byte by byte."""
    low, high = (rows.view(torch.uint8)[..., i::34].int() for i in (0, 1))
    return (low << 16 | high << 24).view(torch.float32)


# ---- one block ----


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=32))
def test_a_number_is_off_by_half_a_scale_at_most(numbers: list[float]) -> None:
    x = torch.zeros(32)
    x[: len(numbers)] = torch.tensor(numbers)
    rows = quantize(x)
    assert (rows.dtype, rows.shape) == (torch.int8, (34,))
    scale, top = scales_of(rows).item(), x.abs().max().item()
    found = dequantize(rows, torch.float32)
    tiny = torch.finfo(torch.float32).tiny
    if scale == 0:  # its scale would be subnormal
        assert top < 127 * tiny * (1 + 2**-8)
        assert not found.any()
    else:
        assert scale == pytest.approx(top / 127, rel=2**-8)
        assert ((found.double() - x.double()).abs() <= scale * 0.5000001).all()


def test_a_block_of_zeros_is_zeros_and_a_number_alone_is_kept() -> None:
    assert not quantize(torch.zeros(64)).any()
    for value in (1.0, -127.0, 3e38, 2**-100):
        x = torch.zeros(32)
        x[5] = value
        assert dequantize(quantize(x), torch.float32)[5].item() == pytest.approx(value, rel=2**-8)


@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_makes_its_block_nan_and_no_other(bad: float) -> None:
    x = random(3, 96)
    x[1, 40] = bad
    found = dequantize(quantize(x), torch.float32)
    assert found.isnan().tolist() == [[row == 1 and 32 <= i < 64 for i in range(96)] for row in range(3)]


def test_a_number_takes_eight_and_a_half_bits() -> None:
    assert [row_bytes(INT8, dim) * 8 / dim for dim in (32, 64, 128)] == [8.5] * 3
    assert row_bytes(torch.bfloat16, 128) == 256
    assert row_of(INT8, 128) == (torch.int8, 136)
    assert head_dim_of(torch.empty(2, 0, 1, 136, dtype=torch.int8)) == 128


# ---- the rows of the table ----


def attend(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    start: int,
) -> torch.Tensor:
    """As a step does, with one sequence in keys and values (K, positions, row)."""
    keys, values = keys[:, :, None], values[:, :, None]
    row = operators.attention_for(INT8, CPU, head_dim_of(keys))
    return operators.attend(row, q_THD, k_TKD, v_TKD, keys, values, single_step(keys, start, len(q_THD)))


def hard(count: int, kv_heads: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Keys of all sizes: great and small, zero, near the middle between two codes, and not finite."""
    x = (
        random(count, kv_heads, dim, seed=count)
        * 10.0 ** torch.arange(-7, 5)[torch.arange(count) % 12, None, None]
    )
    x[0, 0, :32] = 0
    x[1 % count, 0, :32] = torch.arange(32) + 0.5
    x[1 % count, 0, 31] = 127
    x[2 % count, 0, 3], x[3 % count, -1, -1], x[4 % count, 0, -2] = torch.nan, torch.inf, -torch.inf
    if dtype != torch.float16:
        x[5 % count, 0, :32], x[6 % count, 0, :32] = 1e-44, 3e38
        x[7 % count, 0, :32] = 127 * torch.finfo(torch.float32).tiny
    return x.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_row_stores_the_same_bits(way: str, dtype: torch.dtype) -> None:
    for (kv_heads, dim), start in itertools.product(((2, 64), (1, 96)), (0, 9)):
        k, v = hard(24, kv_heads, dim, dtype), hard(23, kv_heads, dim, dtype)
        v = torch.cat([v, v[:1]])
        stores = [torch.full((kv_heads, start + 30, dim // 32 * 34), 77, dtype=torch.int8) for _ in range(2)]
        attend(random(24, 2, dim).to(dtype), k, v, *stores, start)
        for store, x in zip(stores, (k, v), strict=True):
            assert torch.equal(store[:, start : start + 24], quantize(x.transpose(0, 1)))
            assert (store[:, :start] == 77).all()
            assert (store[:, start + 24 :] == 77).all()


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_attention_has_the_bits_that_it_has_over_floats(level: str, count: int) -> None:
    """A number is scale x byte, exactly, and is read as a float."""
    kernels = native.kernels()
    assert kernels is not None
    for (heads, kv_heads, dim), start in itertools.product(
        ((4, 2, 64), (3, 1, 96), (1, 1, 256)), (0, 1, 100)
    ):
        stores = [quantize(random(kv_heads, start + count + 3, dim, seed=i)) for i in (1, 2)]
        q, k, v = (
            random(count, heads, dim),
            random(count, kv_heads, dim, seed=3),
            random(count, kv_heads, dim, seed=4),
        )
        stores = [store[:, :, None] for store in stores]
        step = single_step(stores[0], start, count)
        found = kernels.attention(q, k, v, *stores, step)
        floats = [dequantize(store, torch.float32) for store in stores]
        new = [x[:, start : start + count, 0].transpose(0, 1).contiguous() for x in floats]
        assert torch.equal(kernels.attention(q, *new, *floats, step), found)


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("where", ["query", "key", "value"])
@pytest.mark.usefixtures("level")
def test_a_nan_reaches_those_that_see_it_and_no_others(where: str, count: int) -> None:
    q, k, v = random(count, 2, 32), random(count, 2, 32, seed=1), random(count, 2, 32, seed=2)
    stores = [quantize(random(2, 40, 32, seed=seed)) for seed in (3, 4)]
    stores[0][:, 30 + count :] = stores[1][:, 30 + count :] = quantize(torch.full((32,), torch.nan))
    {"query": q, "key": k, "value": v}[where][0, 1, 7] = torch.nan
    out = attend(q, k, v, *stores, 30)
    see_it = range(1 if where == "query" else count)
    assert out.isnan().any(2).tolist() == [[False, token in see_it] for token in range(count)]


def test_what_c_has_no_dtype_for_goes_to_the_reference(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations in float64, and a query that wants a derivative."""
    taken = []
    reference = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *args: (taken.append(1), reference(*args))[1])
    stores = [quantize(random(2, 40, 32, seed=seed)) for seed in (3, 4)]
    q, k, v = random(1, 4, 32), random(1, 2, 32, seed=1), random(1, 2, 32, seed=2)
    wanted = attend(q, k, v, *stores, 9)
    assert not taken
    found = attend(q.double(), k.double(), v.double(), *stores, 9)
    torch.testing.assert_close(found.float(), wanted)
    q.requires_grad_()
    attend(q, k, v, *stores, 9).sum().backward()
    assert len(taken) == 2
    assert q.grad is not None
    assert q.grad.any()


@pytest.mark.usefixtures("way")
def test_heads_that_an_int8_cache_does_not_have_are_refused() -> None:
    for (heads, dim), (kv_heads, other) in (((4, 64), (2, 64)), ((4, 32), (3, 32)), ((3, 32), (2, 32))):
        stores = [quantize(random(2, 20, 32, seed=seed)) for seed in (3, 4)]
        new = random(5, kv_heads, other)
        with pytest.raises(RuntimeError):
            attend(random(5, heads, dim), new, new, *stores, 3)
