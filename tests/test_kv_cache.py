"""Laws of the KV cache: chunking does not show, forks part, memory follows tokens, failures leave no trace."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import tiny_model

from llama.kernels.attention import store
from llama.kernels.cached import INT8, dequantize, quantize
from llama.kv_cache import BatchCache, KVCache

LAYERS, K, D = 2, 3, 32
each_format = pytest.mark.parametrize("form", [torch.float32, INT8], ids=str)


def empty(form=torch.float32):
    return KVCache(LAYERS, K, D, form, torch.device("cpu"))


def kept(cache, x_TKD):
    """What a cache of this format holds of keys or values, (K, T, D)."""
    x_KTD = x_TKD.transpose(0, 1)
    return dequantize(quantize(x_KTD), torch.float32) if cache.form == INT8 else x_KTD


def tokens(count, seed=0):
    """Keys and values of `count` tokens for each layer, (T, K, D)."""
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randn(count, K, D, generator=generator) for _ in range(2)) for _ in range(LAYERS)]


def put(cache, layer, k_TKD, v_TKD):
    """Store tokens behind the complete ones, as `attend` does -> all keys and values of the layer so far."""
    return store(k_TKD, v_TKD, cache._keys[layer], cache._values[layer], cache.length)


def write(cache, run, start, end):
    """One step: room, all layers, commit. Returns what each layer sees."""
    batch = BatchCache([cache], [end - start])
    seen = [put(cache, layer, k[start:end], v[start:end]) for layer, (k, v) in enumerate(run)]
    batch.commit()
    return seen


def holds(cache, run, length):
    """Whether the cache holds the first `length` tokens of a run, and nothing else is complete."""
    nothing = torch.empty(0, K, D)
    # To store no token returns all that is complete.
    seen = [put(cache, layer, nothing, nothing) for layer in range(LAYERS)]
    return cache.length == length and all(
        torch.equal(got, kept(cache, wanted[:length]))
        for pair, expected in zip(seen, run, strict=True)
        for got, wanted in zip(pair, expected, strict=True)
    )


partitions = st.lists(st.integers(1, 90), min_size=1, max_size=6)


@each_format
@settings(deadline=None, derandomize=True)
@given(chunks=partitions)
def test_any_chunking_gives_the_same_keys_and_values(form, chunks):
    run, cache, start = tokens(sum(chunks)), empty(form), 0
    for chunk in chunks:
        seen = write(cache, run, start, start + chunk)
        start += chunk
        for (keys, values), (k, v) in zip(seen, run, strict=True):
            assert torch.equal(keys, kept(cache, k[:start]))
            assert torch.equal(values, kept(cache, v[:start]))
    assert holds(cache, run, sum(chunks))


@each_format
@settings(deadline=None, derandomize=True)
@given(shared=st.integers(0, 70), one_more=st.integers(1, 70), other_more=st.integers(1, 70))
def test_a_fork_goes_its_own_way(form, shared, one_more, other_more):
    one, other = tokens(shared + one_more, seed=1), tokens(shared + other_more, seed=2)
    for mine, theirs in zip(one, other, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            b[:shared] = a[:shared]
    cache = empty(form)
    if shared:
        write(cache, one, 0, shared)
    cache.reserve(shared + one_more)  # so that a fork which shares memory has room to spoil it
    fork = cache.fork()
    assert holds(fork, one, shared)
    write(fork, other, shared, shared + other_more)
    assert holds(cache, one, shared)
    write(cache, one, shared, shared + one_more)
    assert holds(cache, one, shared + one_more)
    assert holds(fork, other, shared + other_more)


@each_format
@settings(deadline=None, derandomize=True)
@given(length=st.integers(1, 200), wishes=st.lists(st.integers(0, 1000), max_size=5))
def test_reserve_keeps_the_content(form, length, wishes):
    run, cache = tokens(length), empty(form)
    write(cache, run, 0, length)
    for wish in wishes:
        cache.reserve(wish)
        assert cache.capacity >= max(wish, length)
        assert holds(cache, run, length)


def test_capacity_follows_the_tokens():
    """Never more than a quarter and one grain above what is used, and seldom copied on the way."""
    cache, run = empty(), tokens(700)
    assert (cache.capacity, cache.nbytes) == (0, 0)
    for t in range(700):
        write(cache, run, t, t + 1)
        assert t + 1 <= cache.capacity <= 1.25 * (t + 1) + 64
    assert cache.nbytes == 2 * LAYERS * K * D * 4 * cache.capacity
    capacities = set()
    for positions in range(1, 20_000, 10):
        cache.reserve(positions)
        capacities.add(cache.capacity)
    assert len(capacities) < 25  # in steps of one grain it would be 300


@pytest.mark.parametrize(("form", "bits"), [(torch.float32, 32), (torch.bfloat16, 16), (INT8, 8.5)], ids=str)
def test_bytes_count_the_format(form, bits):
    cache = empty(form)
    cache.reserve(64)
    assert cache.nbytes == 2 * LAYERS * K * 64 * D * bits / 8


def test_the_limits_of_a_model_size_no_allocation():
    model = tiny_model(max_seq_len=1_000_000, max_batch_size=1000)
    cache = model.new_cache()
    assert cache.nbytes == 0
    model.hidden(torch.arange(10), BatchCache([cache], [10]))
    assert cache.length == 10
    assert cache.capacity <= 64


@each_format
def test_a_prefix_is_copied_and_a_cache_is_moved(form):
    run, cache, other = tokens(50), empty(form), empty(form)
    write(cache, run, 0, 40)
    other.copy_prefix(cache, 30, 64)
    write(other, run, 30, 50)
    assert holds(other, run, 50)
    assert holds(cache, run, 40)
    moved = cache.take()
    assert (cache.length, cache.nbytes, cache.form) == (0, 0, form)
    assert holds(moved, run, 40)
    again = pickle.loads(pickle.dumps(moved))
    assert holds(again, run, 40)


@each_format
def test_truncate_forgets_the_end(form):
    run, other, cache = tokens(20), tokens(25, seed=3), empty(form)
    write(cache, run, 0, 20)
    cache.truncate(8)
    assert holds(cache, run, 8)
    for (k, v), (mine, my_values) in zip(other, run, strict=True):
        k[:8], v[:8] = mine[:8], my_values[:8]
    write(cache, other, 8, 25)
    assert holds(cache, other, 25)


def test_positions_go_on_where_each_sequence_stands():
    caches = [empty(), empty(), empty()]
    write(caches[1], tokens(5), 0, 5)
    batch = BatchCache(caches, [2, 3, 1])
    assert batch.positions() == [0, 1, 5, 6, 7, 0]
    batch.commit()
    assert [cache.length for cache in caches] == [2, 8, 1]


def test_a_batch_attends_to_its_own_sequences_only():
    generator = torch.Generator().manual_seed(0)
    runs = [tokens(6, seed=1), tokens(9, seed=2)]
    query = torch.randn(5, 2 * K, D, generator=generator)

    def fresh():
        caches = [empty(), empty()]
        write(caches[0], runs[0], 0, 4)
        write(caches[1], runs[1], 0, 6)
        return caches

    def new(layer, part):
        return torch.cat([runs[0][layer][part][4:6], runs[1][layer][part][6:9]])

    together = BatchCache(fresh(), [2, 3]).attend(0, query, new(0, 0), new(0, 1))
    first, second = fresh()
    alone = [
        BatchCache([first], [2]).attend(0, query[:2], *(x[4:6] for x in runs[0][0])),
        BatchCache([second], [3]).attend(0, query[2:], *(x[6:9] for x in runs[1][0])),
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


def test_a_failed_step_leaves_no_trace(monkeypatch):
    """The last layer fails: lengths and results are as if the step had never begun."""
    model = tiny_model()
    ids = torch.arange(3, 23)
    caches = [model.new_cache(), model.new_cache()]
    model.hidden(ids[:12], BatchCache(caches, [7, 5]))
    before = [cache.fork() for cache in caches]

    def fail(*_):
        raise RuntimeError("out of memory, say")

    with monkeypatch.context() as patch:
        patch.setattr(model.layers[-1], "forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            model.hidden(ids[:8].flip(0), BatchCache(caches, [3, 5]))
    assert [cache.length for cache in caches] == [7, 5]
    again = model.hidden(ids[12:], BatchCache(caches, [6, 2]))
    assert torch.equal(again, model.hidden(ids[12:], BatchCache(before, [6, 2])))


@pytest.mark.parametrize("failing", range(6))
def test_a_growth_that_fails_leaves_the_cache_as_it_was(
    failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever allocation fails: capacity is the same in all layers, and content is what it was."""
    cache = KVCache(3, 2, 4, torch.float32, torch.device("cpu"))
    cache.reserve(64)
    given = [torch.randn(50, 2, 4) for _ in range(6)]
    for layer in range(3):
        put(cache, layer, given[layer], given[3 + layer])
    cache.length = 50
    calls = []
    new_empty = torch.Tensor.new_empty

    def sometimes(self: torch.Tensor, *shape: int) -> torch.Tensor:
        calls.append(shape)
        if len(calls) == failing + 1:
            raise MemoryError("no more")
        return new_empty(self, *shape)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", sometimes)
        with pytest.raises(MemoryError):
            cache.reserve(200)
    stored = [*cache._keys, *cache._values]
    assert {tuple(each.shape) for each in stored} == {(2, 64, 4)}
    assert all(each.is_contiguous() for each in stored)
    for each, value in zip(stored, given, strict=True):
        assert torch.equal(each[:, :50], value.transpose(0, 1))
    cache.reserve(200)
    assert all(torch.equal(x[:, :50], y.transpose(0, 1)) for x, y in zip(cache._keys, given, strict=False))


def test_addresses_are_those_of_the_memory_a_cache_has_now():
    """Native kernels write to them: an old one would be another sequence's memory, or nobody's."""

    def own(cache: KVCache) -> list[list[int]]:
        pairs = zip(cache._keys, cache._values, strict=True)
        return [[keys.data_ptr(), values.data_ptr()] for keys, values in pairs]

    cache = KVCache(2, 1, 4, torch.float32, torch.device("cpu"))
    for change in (
        lambda: cache.reserve(8),
        lambda: setattr(cache, "length", 8),
        lambda: cache.truncate(3),
        lambda: cache.reserve(1000),
    ):
        change()
        assert cache.addresses().tolist() == own(cache)
    fork = cache.fork()
    assert fork.addresses().tolist() == own(fork) != own(cache)
    moved = cache.take()
    assert moved.addresses().tolist() == own(moved) != own(cache)
    assert cache.addresses().tolist() == own(cache)
    cache.copy_prefix(moved, 3, 16)
    assert cache.addresses().tolist() == own(cache) != own(moved)
