"""Laws of the pool of keys and values: chunking and blocks do not show, memory follows tokens, failures leave no
trace."""

from __future__ import annotations

import copy
import os
import pickle
import re
import resource
from array import array

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import Held, poison, tables_of
from tiny_llama import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from llama import kv_cache
from llama.errors import ConfigError, OutOfMemoryError
from llama.kernels.attention import gather, store
from llama.kernels.cached import INT8, dequantize, quantize
from llama.kv_cache import KVPool, Part, check_block

LAYERS, K, D = 2, 3, 32
CPU = torch.device("cpu")
each_format = pytest.mark.parametrize("form", [torch.float32, INT8], ids=str)


def pool_of(form=torch.float32, blocks=40, size=8):
    pool = KVPool(LAYERS, K, D, form, CPU, blocks, size)
    poison(pool.store)
    return pool


def kept(pool, x_TKD):
    """What a pool of this format holds of keys or values, (K, T, D)."""
    x_KTD = x_TKD.transpose(0, 1)
    return dequantize(quantize(x_KTD), torch.float32) if pool.form == INT8 else x_KTD


def tokens(count, seed=0):
    """Keys and values of `count` tokens for each layer, (T, K, D)."""
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randn(count, K, D, generator=generator) for _ in range(2)) for _ in range(LAYERS)]


def write(pool, table, run, start, end):
    """What a step stores of tokens start to end, in all layers."""
    step = pool.step([Part(table, start, end - start)])
    for layer, (k, v) in enumerate(run):
        store(k[start:end], v[start:end], *pool.layer(layer), step.tensors.slots, torch.float32)


def holds(pool, table, run, length):
    """Whether a table's first `length` positions are those of a run."""
    ids = torch.tensor(list(table))
    return all(
        torch.equal(gather(got, ids, length, torch.float32), kept(pool, wanted[:length]))
        for layer, pair in enumerate(run)
        for got, wanted in zip(pool.layer(layer), pair, strict=True)
    )


@each_format
@settings(deadline=None, derandomize=True)
@given(
    chunks=st.lists(st.integers(1, 90), min_size=1, max_size=6),
    size=st.sampled_from([1, 2, 16, 256]),
    scatter=st.none() | st.integers(0, 9),
)
def test_any_chunking_in_any_blocks_gives_the_same_keys_and_values(form, chunks, size, scatter):
    total = sum(chunks)
    each = -(-total // size)
    pool, run, start = pool_of(form, 2 + 2 * each, size), tokens(total), 0
    table, other = tables_of(2, each, scatter)
    write(pool, other, tokens(total, seed=1), 0, total)
    for chunk in chunks:
        write(pool, table, run, start, start + chunk)
        start += chunk
        assert holds(pool, table, run, start)
    assert holds(pool, other, tokens(total, seed=1), total)


@each_format
def test_copied_blocks_go_their_own_way(form):
    """All layers at once; a fork that shares its first block has the second copied before it writes there."""
    pool, one, other = pool_of(form), tokens(16, seed=1), tokens(16, seed=2)
    for mine, theirs in zip(one, other, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            b[:12] = a[:12]
    table, fork = array("i", [3, 5]), array("i", [3, 9])
    write(pool, table, one, 0, 12)
    pool.copy([5, 3], [9, 20])
    assert holds(pool, fork, one, 12)
    assert holds(pool, array("i", [20, 9]), one, 12)
    write(pool, fork, other, 12, 16)
    write(pool, table, one, 12, 16)
    assert holds(pool, table, one, 16)
    assert holds(pool, fork, other, 16)
    before = pool.store.view(torch.uint8).clone()
    pool.copy([], [])
    assert torch.equal(pool.store.view(torch.uint8), before)


def test_a_copy_takes_no_more_memory_than_a_few_layers(monkeypatch):
    """However many blocks are copied: between reading and writing they lie beside the pool."""
    pool, layers = KVPool(9, K, D, torch.float32, CPU, 40, 8), []
    pool.store.copy_(torch.arange(pool.store.numel()).view(pool.store.shape))
    wanted = pool.store.clone()
    sources, targets = [5, 3, 9, 8], [9, 20, 3, 7]
    wanted[:, :, :, targets] = pool.store[:, :, :, sources]

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            if function is torch.ops.aten.index.Tensor:
                layers.append(len(found))
            return found

    for at_once, parts in ((1, [1] * 9), (4, [4, 4, 1]), (100, [9])):
        monkeypatch.setattr(kv_cache, "_COPIED", at_once * len(sources) * pool.store[0, :, :, 0].nbytes)
        layers.clear()
        before = pool.store.clone()
        with Watched():
            pool.copy(sources, targets)
        assert layers == parts
        assert torch.equal(pool.store, wanted)
        pool.store.copy_(before)


def test_a_step_says_where_each_token_goes():
    pool = pool_of(size=4)
    tables = [array("i", [7]), array("i", [2, 9, 3]), array("i", [5, 6])]
    step = pool.step([Part(tables[0], 0, 2), Part(tables[1], 7, 3), Part(tables[2], 4, 1)])
    assert len(step) == 3
    assert list(step.firsts) == [0, 2, 5, 6]
    assert list(step.starts) == [0, 7, 4]
    assert list(step.lengths) == [2, 10, 5]
    assert list(step.positions) == [0, 1, 7, 8, 9, 4]
    assert list(step.slots) == [28, 29, 39, 12, 13, 24]
    assert step.tensors.tables.tolist() == [[7, 0, 0], [2, 9, 3], [5, 6, 0]]
    for name in ("positions", "slots", "starts", "lengths"):
        found = getattr(step.tensors, name)
        assert (found.dtype, found.tolist()) == (torch.int64, list(getattr(step, name)))
    single = pool.step([Part(tables[1], 7, 1), Part(tables[2], 0, 1)])
    assert [list(each) for each in (single.firsts, single.positions, single.slots)] == [
        [0, 1, 2],
        [7, 0],
        [39, 20],
    ]


@pytest.mark.parametrize(("form", "bits"), [(torch.float32, 32), (torch.bfloat16, 16), (INT8, 8.5)], ids=str)
def test_bytes_count_the_format(form, bits):
    assert pool_of(form).nbytes == 2 * LAYERS * K * 40 * 8 * D * bits / 8


def resident() -> int:
    """Bytes of this process's memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_memory_follows_what_is_written_and_is_given_back():
    """A pool of 4 GiB takes what its written blocks take; what is given back is 0 when it is read again."""
    pool = KVPool(2, 2, 64, torch.float32, CPU, (4 << 30) // (2 * 2 * 2 * 64 * 4 * 32), 32)
    assert pool.nbytes > 3 << 30
    before = resident()
    rows = pool.store[:, :, :, 1000:2000]  # 64 MiB
    rows.fill_(1)
    assert 60 << 20 < resident() - before < 80 << 20
    pool.give_back(1100, 800)
    assert resident() - before < 20 << 20
    assert (rows[:, :, :, :100] == 1).all()
    assert (rows[:, :, :, 900:] == 1).all()
    assert not rows[:, :, :, 101:899].any()


def test_pages_are_small_where_huge_ones_are_the_systems_default():
    """Else the first token would take 2 MiB for each layer and key/value head. "nh": no huge pages (man proc)."""
    pool = KVPool(2, 2, 64, torch.float32, CPU, 4000, 32)
    with open("/proc/self/smaps") as file:
        found = re.findall(r"^(\w+)-(\w+) .*(?:\n[A-Z].*)*?\nVmFlags:(.*)", file.read(), re.MULTILINE)
    flags = [flags.split() for first, last, flags in found if int(first, 16) <= pool.address < int(last, 16)]
    if os.path.exists("/sys/kernel/mm/transparent_hugepage"):
        assert "nh" in flags[0]


def test_the_limits_of_a_model_size_no_memory():
    model = tiny_model(max_seq_len=100_000, max_batch_size=1000)
    before = resident()
    model(torch.ones(1000, 1, dtype=torch.long))
    assert resident() - before < 100 << 20


@pytest.mark.parametrize("blocks", [1 << 30, 1 << 40, 1 << 60])
def test_more_than_there_is_is_an_error_with_numbers(blocks):
    with pytest.raises(OutOfMemoryError, match=r"\d+\.\d\d GiB of address space for the cache are not"):
        KVPool(64, 64, 128, torch.float32, CPU, blocks, 256)


def test_a_full_device_is_the_same_error(monkeypatch):
    """A second engine of a model on a GPU, say, whose cache the first has taken whole."""

    def full(*_, **__):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(
        OutOfMemoryError, match=r"2\.00 GiB for the cache are not to be had on meta.*cache_memory"
    ):
        KVPool(2, 2, 64, torch.float32, torch.device("meta"), (2 << 30) // (2 * 2 * 2 * 64 * 4 * 32), 32)


@pytest.mark.parametrize("size", [0, -1, 3, 512, 2.0, "32", None, True])
def test_a_block_is_a_power_of_two(size):
    with pytest.raises(ConfigError, match="must be a power of two from 1 to 256"):
        check_block(size)


def test_blocks_of_powers_of_two_are_taken():
    assert [check_block(1 << i) for i in range(9)] == [1 << i for i in range(9)]


def test_a_pool_is_not_copied_by_accident():
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="new_pool"):
            copied(pool_of())


def test_a_failed_step_leaves_no_trace(monkeypatch):
    """The last layer fails: what comes after is as if the step had never begun."""
    model = tiny_model()
    ids = torch.arange(3, 23)
    held = Held(model, [0, 0], size=4, scatter=1)
    held.run(ids[:12], [7, 5])
    before = held.copy()

    def fail(*_):
        raise RuntimeError("out of memory, say")

    with monkeypatch.context() as patch:
        patch.setattr(model.layers[-1], "forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            held.run(ids[:8].flip(0), [3, 5])
    assert held.computed == [7, 5]
    assert torch.equal(held.run(ids[12:], [6, 2]), before.run(ids[12:], [6, 2]))
