"""The attention operator: it stores the new tokens and each attends to all up to itself, compiled or not."""

from __future__ import annotations

import mmap
import sys
from functools import cache
from typing import NamedTuple

import pytest
import torch

from llama.kernels import attention, native, operators
from llama.kernels.cached import INT8, dequantize, format_of, head_dim_of, quantize, row_of
from llama.kernels.native import Kernels

# query heads, key/value heads, head dimension. 256 is the largest head of the kernel for chunks.
HEADS = [(4, 4, 32), (8, 2, 64), (6, 2, 128), (2, 1, 256), (2, 1, 288), (4, 2, 24)]


# MAP_NORESERVE, which Python has no name for.
_NO_RESERVE = 0x40 if sys.platform == "darwin" else 0x4000


DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# Of the result and of a weight, relative to the values.
PRECISION = {torch.bfloat16: 2**-7, torch.float16: 2**-9, torch.float32: 2**-16}


def random(
    *shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


class Case(NamedTuple):
    """What attention reads, how it lies in a cache, and what it should give; the same for every level, so made once."""

    query: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    stored: list[torch.Tensor]
    exact: torch.Tensor
    size: torch.Tensor


@cache
def case(
    length: int, count: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, form: torch.dtype | str
) -> Case:
    k = random(length, kv_heads, dim, seed=1, scale=2, dtype=dtype)
    v = random(length, kv_heads, dim, seed=2, dtype=dtype)
    query = random(count, heads, dim, seed=3, scale=2, dtype=dtype)
    stored = [quantize(x) if form == INT8 else x for x in (k, v)]
    read = [dequantize(x, torch.float32) if form == INT8 else x for x in stored]
    return Case(query, k, v, stored, *oracle(query, *read))


def attend(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    start: int,
) -> torch.Tensor:
    """As a cache does."""
    row = operators.attention_for(format_of(keys), keys.device, head_dim_of(keys))
    return operators.attend(row, q_THD, k_TKD, v_TKD, keys, values, start)


def used() -> Kernels:
    kernels = native.kernels()
    assert kernels is not None
    return kernels


def oracle(
    q_THD: torch.Tensor, k_SKD: torch.Tensor, v_SKD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """In float64 -> (result, the same of the values' sizes, which rounding errors are relative to)."""
    count, heads, dim = q_THD.shape
    length, group = len(k_SKD), heads // k_SKD.shape[1]
    k, v = (x.double().repeat_interleave(group, 1) for x in (k_SKD, v_SKD))
    scores = torch.einsum("thd,shd->hts", q_THD.double(), k) / dim**0.5
    future = torch.arange(length) > length - count + torch.arange(count)[:, None]
    weights = torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1)
    return torch.einsum("hts,shd->thd", weights, v), torch.einsum("hts,shd->thd", weights, v.abs())


def check(
    before: int,
    count: int,
    heads: int,
    kv_heads: int,
    dim: int,
    way: str = "level",
    dtype: torch.dtype = torch.bfloat16,
    form: torch.dtype | str | None = None,
) -> None:
    length, form = before + count, form or dtype
    query, k, v, stored, exact, size = case(length, count, heads, kv_heads, dim, dtype, form)
    # Behind the complete positions there may be anything, and so there may behind the new ones.
    nothing = torch.full((kv_heads, length + 9, dim), torch.nan, dtype=dtype)
    stores = [quantize(nothing) if form == INT8 else nothing.clone() for _ in range(2)]
    for store, x in zip(stores, stored, strict=True):
        store[:, :before] = x[:before].transpose(0, 1)
    out = attend(query, k[before:], v[before:], *stores, before)

    assert out.shape == query.shape
    # PyTorch's way for a chunk joins two results by a share, all three rounded to the dtype.
    joined = way == "plain" or dim not in (32, 64, 128, 256)
    tolerance = PRECISION[dtype] * (size + v.abs().max().double() * joined) + 1e-6
    assert ((out.double() - exact).abs() <= tolerance).all()
    for store, x in zip(stores, stored, strict=True):
        assert torch.equal(store[:, :length], x.transpose(0, 1))
        behind = store[:, length:]
        assert (dequantize(behind, dtype) if form == INT8 else behind).isnan().all()


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), HEADS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_token(way: str, heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> None:
    for length in (1, 2, 15, 16, 17, 33, 500):
        check(length - 1, 1, heads, kv_heads, dim, way, dtype)


CHUNKS = [(0, 2), (0, 70), (1, 3), (61, 5), (64, 16), (130, 17), (500, 40), (3, 300)]


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), HEADS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chunk_behind_a_prefix(way: str, heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> None:
    for before, count in CHUNKS:
        check(before, count, heads, kv_heads, dim, way, dtype)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [each for each in HEADS if each[2] % 32 == 0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_int8_cache(way: str, heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> None:
    """Attention to what is stored, in each dtype of the activations."""
    for before, count in [(0, 1), (16, 1), (499, 1), *CHUNKS]:
        check(before, count, heads, kv_heads, dim, way, dtype, INT8)


@pytest.mark.usefixtures("level")
def test_the_compiled_kernel_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """For one query and several; not where heads are too large, nor where they are of no whole vector."""
    taken: list[str] = []
    kernel = Kernels.attention
    monkeypatch.setattr(Kernels, "attention", lambda *args: (taken.append("taken"), kernel(*args))[1])
    fresh = Kernels(used().level, used()._library)  # for which no row is remembered yet
    monkeypatch.setattr(native, "kernels", lambda: fresh)
    for count, dim in ((1, 32), (2, 32), (2, 256), (1, 288), (2, 288), (1, 24), (2, 24)):
        check(3, count, 2, 1, dim)
        taken.append("|")
    for count, dim in ((1, 32), (2, 256), (1, 288)):
        check(3, count, 2, 1, dim, form=INT8)
        taken.append("|")
    assert "".join(taken) == "taken|taken|taken|||||taken|taken||"


@pytest.mark.usefixtures("level")
def test_a_chunk_does_not_depend_on_the_number_of_threads() -> None:
    """Which decides how many queries share a pass."""
    keys, values, query = random(2, 250, 64, seed=1), random(2, 250, 64, seed=2), random(150, 4, 64, seed=3)
    k, v = random(150, 2, 64, seed=4), random(150, 2, 64, seed=5)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            found.append(used().attention(query, k, v, keys, values, 100))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.parametrize("place", [0, 1, 70, 99])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.usefixtures("way")
def test_scores_of_any_size(place: int, count: int) -> None:
    """The greatest score is first, last, or in a later block than scores that underflow beside it."""
    keys, values = torch.full((1, 102, 32), -100.0).bfloat16(), torch.full((1, 102, 32), 9.0).bfloat16()
    keys[:, place], values[:, place] = 100, 1
    query = torch.full((count, 1, 32), 100.0).bfloat16()
    out = attend(query, -query, 9 * query, keys, values, 100)
    assert torch.equal(out, torch.ones(count, 1, 32, dtype=torch.bfloat16))


@pytest.mark.parametrize("where", ["query", "key", "value"])
@pytest.mark.parametrize("before", [0, 30])
@pytest.mark.parametrize("count", [1, 2, 5, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_torch_row_keeps_a_nan(where: str, dtype: torch.dtype, count: int, before: int) -> None:
    """In every token of the head that sees it, and in no other; torch's own kernels lose some. (Of a value they put it
    into earlier tokens too, with a weight of 0.)"""
    q, k, v = (random(count, heads, 32, seed=heads, dtype=dtype) for heads in (4, 2, 2))
    at = count // 2
    {"query": q, "key": k, "value": v}[where][at, 1, 7] = torch.nan
    stores = [torch.ones(2, before + count, 32, dtype=dtype) for _ in range(2)]
    found = attention.attend(q, k, v, *stores, before).isnan().any(2)
    if where == "value":
        found[:at] = False
    heads = [1] if where == "query" else [2, 3]
    see_it = [at] if where == "query" else range(at, count)
    assert found.nonzero().tolist() == [[token, head] for token in see_it for head in heads]


@pytest.mark.parametrize("where", ["query", "key", "value"])
@pytest.mark.usefixtures("level")
def test_attention_in_lanes_keeps_a_nan(where: str) -> None:
    q, keys, values = torch.randn(4, 2, 32), torch.randn(2, 64, 32), torch.randn(2, 64, 32)
    {"query": q[2], "key": keys[:, 20], "value": values[:, 20]}[where].fill_(torch.nan)
    new = torch.randn(4, 2, 32).bfloat16()
    out = used().attention(q.bfloat16(), new, new, keys.bfloat16(), values.bfloat16(), 30)
    expected = [2] if where == "query" else [0, 1, 2, 3]
    assert [i for i in range(4) if out[i].isnan().any()] == expected


@pytest.mark.parametrize("count", [1, 2, 3, 20])
@pytest.mark.usefixtures("way")
def test_scores_near_the_end_of_float32(count: int) -> None:
    """The softmax sees differences only, however low all scores are."""
    query, keys = torch.full((count, 1, 32), 1e17), torch.full((1, 30, 32), -1e18)
    out = attend(query, -10 * query, torch.ones(count, 1, 32), keys, torch.ones(1, 30, 32), 1)
    torch.testing.assert_close(out, torch.ones(count, 1, 32))


@pytest.mark.parametrize(
    ("query", "new"), [((4, 32), (3, 32)), ((4, 32), (4, 32)), ((4, 32), (2, 64)), ((3, 32), (2, 32))]
)
@pytest.mark.usefixtures("way")
def test_heads_that_the_cache_does_not_have_are_refused(query: tuple[int, int], new: tuple[int, int]) -> None:
    """As of a model that was pruned, or whose weights are of another one."""
    q, k, stores = random(5, *query), random(5, *new), [random(2, 20, 32) for _ in range(2)]
    with pytest.raises(RuntimeError):
        attend(q, k, k, *stores, 3)


@pytest.mark.usefixtures("way")
def test_what_only_a_call_shows_goes_to_the_reference() -> None:
    """New keys of another dtype than the cache's, which are cast, and a query that wants a derivative."""
    keys, values, query = random(2, 40, 32, seed=1), random(2, 40, 32, seed=2), random(3, 4, 32, seed=3)
    k, v = random(3, 2, 32, seed=4), random(3, 2, 32, seed=5)
    wanted = attend(query, k, v, keys.clone(), values.clone(), 30)
    for new in ((k.float(), v), (k, v.float())):
        got = attend(query, *new, keys.clone(), values.clone(), 30)
        torch.testing.assert_close(got, wanted, atol=0.05, rtol=0.02)
    query.requires_grad_()
    attend(query, k, v, keys, values, 30).sum().backward()
    assert query.grad is not None
    assert query.grad.abs().sum() > 0


def test_a_cache_on_another_device_is_an_error_and_no_address(level: str) -> None:
    """The model was moved while the cache was in use. (A tensor of the meta device has no address.)"""
    keys = torch.zeros(1, 8, 32)
    row = operators.attention_for(keys.dtype, keys.device, 32)
    q_THD, k_TKD, v_TKD = torch.zeros(3, 2, 1, 32, device="meta").unbind()
    with pytest.raises(RuntimeError):
        operators.attend(row, q_THD, k_TKD, v_TKD, keys, keys.clone(), 0)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("form", [INT8, torch.bfloat16, torch.float32], ids=str)
def test_indices_have_64_bits(form: torch.dtype | str) -> None:
    """The second head of these caches begins beyond 2^32 numbers. Nearly all of their memory is never touched."""
    dim, dtype = 64, torch.float32 if form == torch.float32 else torch.bfloat16
    stored, numbers = row_of(form, dim)
    q_THD, k_TKD, v_TKD = (random(5, heads, dim, seed=heads, dtype=dtype) for heads in (4, 2, 2))
    got = []
    for capacity in (8, (1 << 32) // dim + 8):
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
        size = 2 * capacity * numbers * stored.itemsize
        memory = [torch.frombuffer(mmap.mmap(-1, size, flags), dtype=torch.uint8) for _ in range(2)]
        keys, values = (each.view(stored).view(2, capacity, numbers) for each in memory)
        first = attend(q_THD[:4], k_TKD[:4], v_TKD[:4], keys, values, 0)  # in lanes
        then = attend(q_THD[4:], k_TKD[4:], v_TKD[4:], keys, values, 4)  # one by one
        got.append([first, then, keys[:, :5].clone(), values[:, :5].clone()])
    assert all(map(torch.equal, *got))
