"""Laws of attention over blocks: whatever blocks sequences have, and whoever else is in a step, each gets what it would
get alone in one run; and no block but its own is written."""

from __future__ import annotations

import random
from array import array
from functools import cache
from typing import NamedTuple

import pytest
import torch
from flash_ways import emulated_on_the_cpu
from pools import poison

from llama.kernels import attention, operators
from llama.kernels.cached import INT8, CacheFormat, dequantize, quantize
from llama.kernels.flash import Flash
from llama.kv_cache import KVPool, Part

CPU = torch.device("cpu")
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
PRECISION = {torch.bfloat16: 2**-7, torch.float16: 2**-9, torch.float32: 2**-16}
# positions before the step, tokens in it: decodes, drafts and chunks, in any order
MIXED = [(0, 1), (70, 1), (0, 40), (129, 3), (33, 1), (64, 70), (5, 2)]
SINGLE = [(start, 1) for start in (0, 70, 33, 5, 6, 7)]


class Sequence(NamedTuple):
    """What it has before the step, and its tokens; all of the step's dtype."""

    start: int
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor

    @property
    def length(self) -> int:
        return len(self.k)


def sequences(
    sizes: list[tuple[int, int]], heads: int, kv_heads: int, dim: int, dtype: torch.dtype
) -> list[Sequence]:
    generator = torch.Generator().manual_seed(len(sizes))

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    return [
        Sequence(
            start,
            2 * draw(count, heads, dim),
            *(draw(start + count, kv_heads, dim) for _ in range(2)),
        )
        for start, count in sizes
    ]


def fill(pool: KVPool, table: array[int], sequence: Sequence, end: int) -> None:
    """Write positions up to `end` where a table says."""
    at = torch.arange(end)
    blocks = torch.tensor(list(table))[at // pool.size]
    for store, x in zip(pool.layer(0), (sequence.k, sequence.v), strict=True):
        rows = quantize(x[:end]) if pool.form == INT8 else x[:end].to(store.dtype)
        store[:, blocks, at % pool.size] = rows.transpose(0, 1)


def attended(
    mine: list[Sequence], form: CacheFormat, size: int, tables: list[array[int]], blocks: int
) -> tuple[list[torch.Tensor], KVPool]:
    """What a step gives each sequence, and the pool after it. What nobody has written is NaN."""
    kv_heads, dim = mine[0].k.shape[1:]
    pool = KVPool(1, kv_heads, dim, form, CPU, blocks, size)
    poison(pool.store)
    for sequence, table in zip(mine, tables, strict=True):
        fill(pool, table, sequence, sequence.start)
    step = pool.step(
        Part(table, each.start, each.length - each.start) for each, table in zip(mine, tables, strict=True)
    )
    new = [
        torch.cat([x[each.start :] for each, x in zip(mine, xs, strict=True)])
        for xs in zip(*((each.k, each.v) for each in mine), strict=True)
    ]
    row = operators.attention_for(form, CPU, dim)
    out = operators.attend(row, torch.cat([each.q for each in mine]), *new, *pool.layer(0), step)
    return list(out.split([len(each.q) for each in mine])), pool


def any_tables(mine: list[Sequence], size: int, seed: int | None) -> tuple[list[array[int]], int]:
    """Blocks for each, one behind the other or in any order, with some that nobody has; and how many there are."""
    counts = [-(-each.length // size) for each in mine]
    ids = list(range(1, sum(counts) + 4))
    if seed is not None:
        random.Random(seed).shuffle(ids)
    taken = iter(ids)
    return [array("i", [next(taken) for _ in range(count)]) for count in counts], len(ids) + 1


def exact(sequence: Sequence, form: CacheFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """In float64, query by query -> (result, the same of the values' sizes, which rounding errors are relative to)."""
    k, v = (dequantize(quantize(x), torch.float32) if form == INT8 else x for x in (sequence.k, sequence.v))
    group = sequence.q.shape[1] // k.shape[1]
    found = []
    for values in (v, v.abs()):
        out = torch.empty(sequence.q.shape, dtype=torch.float64)
        for token, query in enumerate(sequence.q.double()):
            seen = sequence.start + token + 1
            for head in range(len(query)):
                scores = k[:seen, head // group].double() @ query[head] / query.shape[1] ** 0.5
                out[token, head] = torch.softmax(scores, 0) @ values[:seen, head // group].double()
        found.append(out)
    return found[0], found[1]


@cache
def answered(
    sizes: tuple[tuple[int, int], ...], form: CacheFormat, dtype: torch.dtype
) -> tuple[list[Sequence], list[tuple[torch.Tensor, torch.Tensor]]]:
    """Sequences of 4 heads of 32 numbers, and `exact` of each: the same for every way and size of blocks."""
    mine = sequences(list(sizes), 4, 2, 32, dtype)
    return mine, [exact(each, form) for each in mine]


@pytest.mark.parametrize("form", [*DTYPES, INT8], ids=str)
@pytest.mark.parametrize("size", [1, 2, 32, 256])
def test_any_blocks_and_any_neighbours_give_what_one_run_alone_gives(
    way: str, size: int, form: CacheFormat
) -> None:
    """Bit for bit from the compiled kernels; both near float64."""
    dtype = torch.float32 if form == INT8 else form
    assert isinstance(dtype, torch.dtype)
    mine, answers = answered(tuple(MIXED), form, dtype)
    together, _ = attended(mine, form, size, *any_tables(mine, size, seed=size))
    for each, (wanted, sizes), got in zip(mine, answers, together, strict=True):
        (alone,), _ = attended([each], form, 64, *any_tables([each], 64, seed=None))
        # torch's kernels for several runs round their parts, and then the shares of these.
        most = each.v.abs().max().double() * (way == "plain")
        for out in (got, alone):
            assert ((out.double() - wanted).abs() <= PRECISION[dtype] * (sizes + most) + 1e-6).all()
        if way != "plain":
            assert torch.equal(got, alone)


@pytest.mark.parametrize("form", [torch.bfloat16, INT8], ids=str)
def test_only_slots_of_the_step_are_written(way: str, form: CacheFormat) -> None:
    mine = sequences(MIXED, 4, 2, 32, torch.bfloat16)
    tables, blocks = any_tables(mine, 8, seed=3)
    _, pool = attended(mine, form, 8, tables, blocks)
    wanted = KVPool(1, 2, 32, form, CPU, blocks, 8)
    poison(wanted.store)
    for each, table in zip(mine, tables, strict=True):
        fill(wanted, table, each, each.length)
    assert torch.equal(*(each.store.view(torch.uint8) for each in (pool, wanted)))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("form", [torch.float32, INT8], ids=str)
def test_sequences_that_share_blocks_see_what_each_would_see_alone(form: CacheFormat) -> None:
    """A prefix of 32 positions in one place; behind it each has blocks of its own."""
    mine = sequences([(40, 1), (32, 9), (50, 2)], 4, 2, 32, torch.float32)
    mine = [
        each._replace(k=torch.cat([mine[0].k[:32], each.k[32:]]), v=torch.cat([mine[0].v[:32], each.v[32:]]))
        for each in mine
    ]
    prefix = [7, 3, 4, 9]
    tables = [array("i", [*prefix, *own]) for own in ([1, 12], [2, 11], [5, 6, 10])]
    together, _ = attended(mine, form, 8, tables, 14)
    for each, got in zip(mine, together, strict=True):
        (alone,), _ = attended([each], form, 8, *any_tables([each], 8, seed=None))
        torch.testing.assert_close(got, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [8, 9, 20])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 5])
def test_torch_reads_few_runs_in_place_and_gathers_many(
    count: int, dtype: torch.dtype, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered: list[int] = []
    gather = attention.gather
    monkeypatch.setattr(attention, "gather", lambda *args: (gathered.append(args[2]), gather(*args))[1])
    monkeypatch.setattr(operators, "attention_for", lambda *args: attention.attend)
    start = 4 * count - (tokens == 1)
    mine = sequences([(start, tokens)], 4, 2, 32, dtype)
    table = array("i", [1 + 2 * i for i in range(count + 2)])  # no two are neighbours
    (got,), _ = attended(mine, dtype, 4, [table], 2 * count + 9)
    few = count <= attention._MOST_RUNS and attention._FLASH_CPU is not None
    assert gathered == [] if few else [4 * count] * 2
    wanted, sizes = exact(mine[0], dtype)
    most = mine[0].v.abs().max().double()
    assert ((got.double() - wanted).abs() <= PRECISION[dtype] * (sizes + most) + 1e-6).all()


# ---- where kernels are launched: the way of a GPU, here on the CPU's memory ----


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the torch row take the way of a device that is not the CPU."""
    monkeypatch.setattr(operators, "attention_for", lambda *args: attention.attend_launched)


@pytest.mark.parametrize("form", [*DTYPES, INT8], ids=str)
@pytest.mark.parametrize("size", [1, 32, 256])
@pytest.mark.parametrize("gathered", [1 << 30, 4 * 2 * 32 * 80])
@pytest.mark.usefixtures("launched")
def test_single_tokens_go_together_where_kernels_are_launched(
    size: int, form: CacheFormat, gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once, or as many as 80 gathered positions allow: each gets what it gets alone."""
    monkeypatch.setattr(attention, "GATHERED", gathered)
    dtype = torch.float32 if form == INT8 else form
    assert isinstance(dtype, torch.dtype)
    for sizes in (MIXED, SINGLE):
        mine, answers = answered(tuple(sizes), form, dtype)
        together, _ = attended(mine, form, size, *any_tables(mine, size, seed=size))
        for each, (wanted, bounds), got in zip(mine, answers, together, strict=True):
            most = each.v.abs().max().double()
            assert ((got.double() - wanted).abs() <= PRECISION[dtype] * (bounds + most) + 1e-6).all()


@pytest.mark.usefixtures("launched")
def test_launches_do_not_depend_on_the_number_of_single_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[int] = []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        attention.F, "scaled_dot_product_attention", lambda *a, **k: (launches.append(1), kernel(*a, **k))[1]
    )
    for count in (1, 64):
        launches.clear()
        mine = sequences([(9 + i, 1) for i in range(count)], 4, 2, 32, torch.float32)
        attended(mine, torch.float32, 16, *any_tables(mine, 16, seed=1))
        assert launches == [1]


# ---- torch's flash attention, which is emulated here on the CPU's memory ----

WHOLE = [(0, 40), (0, 1), (0, 300)]


# Those that the table gives to it: (way, positions of a block, format)
FLASH = [
    *[("tables", 256, form) for form in (torch.bfloat16, torch.float16)],
    *[("runs", size, form) for size in (1, 32, 256) for form in (torch.bfloat16, torch.float16)],
    *[("gathered", size, form) for size in (1, 32, 256) for form in (torch.bfloat16, INT8)],
]


@pytest.mark.parametrize(("flash", "size", "form"), FLASH, ids=str)
def test_flash_attention_gives_each_what_it_gets_alone(
    flash: str, size: int, form: CacheFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one call, whatever is in the step, amid memory that is NaN; in any blocks, and each sequence in one run."""
    monkeypatch.setattr(operators, "attention_for", lambda *args: Flash(flash))
    dtype = torch.bfloat16 if form == INT8 else form
    assert isinstance(dtype, torch.dtype)
    # What is read from int8 is rounded to the dtype, keys as well.
    precision = (4 if form == INT8 else 1) * PRECISION[dtype]
    for sizes in (MIXED, SINGLE, [*MIXED, (700, 1), (290, 33)], WHOLE):
        mine = sequences(sizes, 4, 2, 32, dtype)
        for seed in (None, size):
            tables, blocks = any_tables(mine, size, seed)
            with emulated_on_the_cpu() as calls:
                together, pool = attended(mine, form, size, tables, blocks)
            assert len(calls) == 1
            for each, got in zip(mine, together, strict=True):
                wanted, bounds = exact(each, form)
                assert ((got.double() - wanted).abs() <= precision * bounds + 1e-6).all()
            in_runs = all(list(table) == list(range(table[0], table[0] + len(table))) for table in tables)
            in_place = flash == "tables" or (flash == "runs" and in_runs)
            assert sizes is WHOLE or in_place == (calls[0][0][1].data_ptr() == pool.store.data_ptr())


@pytest.mark.parametrize("single", [False, True])
def test_flash_attention_gathers_no_more_than_there_is_room_for(
    single: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """80 positions at once, or those of one sequence; some sizes for any number of them."""
    monkeypatch.setattr(attention, "GATHERED", 4 * 2 * 32 * 80)
    monkeypatch.setattr(operators, "attention_for", lambda *args: Flash("gathered"))
    mine = sequences(SINGLE if single else MIXED, 4, 2, 32, torch.bfloat16)
    with emulated_on_the_cpu() as calls:
        together, _ = attended(mine, torch.bfloat16, 8, *any_tables(mine, 8, seed=1))
    for each, got in zip(mine, together, strict=True):
        wanted, bounds = exact(each, torch.bfloat16)
        assert ((got.double() - wanted).abs() <= PRECISION[torch.bfloat16] * bounds + 1e-6).all()
    keys = [len(args[1]) for args, _ in calls]
    assert keys == ([72, 56] if single else [72, 40, 144, 36, 144, 7])
