"""The compiled kernels between the matrix products, against the torch code that stands in for them."""

import pytest
import torch

from llama.kernels import native
from llama.kv_cache import KVCache
from llama.model import RMSNorm, rotary_table, rotate

pytestmark = pytest.mark.skipif(
    not native.available(), reason="the kernels were not built, or this CPU has no AVX512-BF16"
)


def random(*shape, seed=0, scale=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 40])
@pytest.mark.parametrize("n", [16, 48, 256])
def test_rms_norm(rows, n):
    norm = RMSNorm(n, 1e-5)
    norm.assign(random(n, seed=1))
    x = random(rows, n, scale=5)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight.double()
    # Two roundings to bfloat16: of the normalised value and of the product.
    assert ((norm(x).double() - exact).abs() <= 2**-7 * exact.abs() + 1e-6).all()


@pytest.mark.parametrize("rows", [1, 8, 9, 33])
@pytest.mark.parametrize("dim", [16, 64, 128])
def test_rotate(rows, dim):
    x = random(rows, 3, dim)
    table = rotary_table(torch.arange(rows) * 997, dim, 1e6)
    pairs = torch.view_as_complex(x.double().view(rows, 3, -1, 2))
    exact = torch.view_as_real(pairs * table[:, None].to(torch.complex128)).flatten(-2)
    turned = rotate(x.clone(), table)
    assert ((turned.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-5).all()


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 33, 500])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 32), (8, 2, 64), (6, 3, 128)])
def test_decode(length, heads, kv_heads, dim):
    cache = KVCache(2, kv_heads, dim, torch.bfloat16, torch.device("cpu"))
    cache.reserve(length)
    keys, values = random(length, kv_heads, dim, seed=1, scale=2), random(length, kv_heads, dim, seed=2)
    query = random(1, heads, dim, seed=3, scale=2)
    if length > 1:
        for layer in range(2):
            cache.write(layer, keys[:-1], values[:-1])
        cache.length = length - 1
    out = cache.attend(1, query, keys[-1:], values[-1:])

    k = keys.double().repeat_interleave(heads // kv_heads, 1)
    v = values.double().repeat_interleave(heads // kv_heads, 1)
    weights = torch.softmax(torch.einsum("hd,shd->hs", query[0].double(), k) / dim**0.5, dim=-1)
    exact = torch.einsum("hs,shd->hd", weights, v)
    size = torch.einsum("hs,shd->hd", weights, v.abs())
    assert ((out[0].double() - exact).abs() <= 2**-7 * size + 1e-6).all()
    # The new token is in the cache of its layer, and in no other.
    cache.length = length
    assert torch.equal(cache._keys[1][:, length - 1], keys[-1])
    assert torch.equal(cache._values[1][:, length - 1], values[-1])


@pytest.mark.parametrize(
    ("before", "count"), [(0, 2), (0, 70), (1, 3), (61, 5), (64, 16), (130, 17), (500, 40), (3, 300)]
)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 32), (8, 2, 64), (6, 2, 128), (2, 1, 256)])
def test_a_chunk_behind_a_prefix(before, count, heads, kv_heads, dim):
    cache = KVCache(1, kv_heads, dim, torch.bfloat16, torch.device("cpu"))
    length = before + count
    cache.reserve(length + 9)
    keys, values = random(length, kv_heads, dim, seed=1, scale=2), random(length, kv_heads, dim, seed=2)
    query = random(count, heads, dim, seed=3, scale=2)
    cache.write(0, keys[:before], values[:before])
    cache.length = before
    out = cache.attend(0, query, keys[before:], values[before:])

    k = keys.double().repeat_interleave(heads // kv_heads, 1)
    v = values.double().repeat_interleave(heads // kv_heads, 1)
    scores = torch.einsum("thd,shd->hts", query.double(), k) / dim**0.5
    future = torch.arange(length) > before + torch.arange(count)[:, None]
    weights = torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1)
    exact = torch.einsum("hts,shd->thd", weights, v)
    size = torch.einsum("hts,shd->thd", weights, v.abs())
    assert ((out.double() - exact).abs() <= 2**-7 * size + 1e-6).all()
    # What is behind the chunk was not read.
    cache._values[0][:, length:] = torch.nan
    cache._keys[0][:, length:] = torch.nan
    assert torch.equal(cache.attend(0, query, keys[before:], values[before:]), out)


def test_a_chunk_does_not_depend_on_the_number_of_threads():
    """Which decides how many queries share a pass."""
    keys, values, query = random(2, 250, 64, seed=1), random(2, 250, 64, seed=2), random(150, 4, 64, seed=3)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3, 16):
        torch.set_num_threads(threads)
        found.append(torch.empty_like(query))
        native.attend(query, keys, values, 100, found[-1])
    torch.set_num_threads(before)
    assert all(torch.equal(each, found[0]) for each in found)


def test_a_chunk_survives_scores_of_any_size():
    """The greatest score comes first, last, and in a later block than scores that underflow beside it."""
    for place in (0, 1, 70, 99):
        cache = KVCache(1, 1, 32, torch.bfloat16, torch.device("cpu"))
        cache.reserve(102)
        keys = torch.full((100, 1, 32), -100.0).bfloat16()
        values = torch.full((100, 1, 32), 9.0).bfloat16()
        keys[place], values[place] = 100, 1
        cache.write(0, keys, values)
        cache.length = 100
        query = torch.full((2, 1, 32), 100.0).bfloat16()
        out = cache.attend(0, query, -query, 9 * query)
        assert torch.equal(out, torch.ones(2, 1, 32, dtype=torch.bfloat16))


def test_decode_survives_scores_of_any_size():
    # Softmax must take its maximum off first: these scores overflow an exponential.
    cache = KVCache(1, 1, 32, torch.bfloat16, torch.device("cpu"))
    cache.reserve(2)
    cache.write(0, torch.full((1, 1, 32), 100.0).bfloat16(), torch.full((1, 1, 32), 1.0).bfloat16())
    cache.length = 1
    ones = torch.full((1, 1, 32), 100.0).bfloat16()
    out = cache.attend(0, ones, -ones, torch.full((1, 1, 32), 9.0).bfloat16())
    assert torch.equal(out, torch.ones(1, 1, 32, dtype=torch.bfloat16))
