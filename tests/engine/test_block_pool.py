"""Laws of the block pool: each block is free or held; neighbours where possible; what is idle is told once."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama.engine.block_pool import BlockPool


def runs(blocks):
    """How many runs of neighbours a table has."""
    return 1 + sum(b != a + 1 for a, b in itertools.pairwise(blocks))


def test_positions_are_rounded_up_to_blocks():
    pool = BlockPool(33, 16)
    assert (pool.total, *map(pool.needed, (0, 1, 16, 17))) == (3, 0, 1, 1, 2)
    assert sorted(pool.allocate(3)) == [1, 2, 3]
    with pytest.raises(AssertionError, match="1 blocks allocated, but only 0"):
        pool.allocate(1)
    with pytest.raises(AssertionError, match="block 0 released, but nobody"):
        pool.release([0])


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 99)), max_size=60),
)
def test_each_block_is_free_or_held_by_as_many_as_are_counted(total, events):
    pool, tables, given_back = BlockPool(total, 1), [], []
    touched = set()
    for kind, count, which in events:
        table = tables[which % len(tables)] if tables else []
        if kind == 0 and count <= pool.free:
            tables.append(pool.allocate(count))
        elif kind == 1 and table and count <= pool.free:
            had, after = list(table), table[-1] + 1
            free_behind = after in pool._gaps
            table += pool.allocate(count, table[-1])
            assert not (free_behind and count) or table[len(had)] == after
        elif kind == 2 and table:
            tables.append(list(table))
            assert all(pool.share(block) for block in table)
        elif kind == 3 and tables:
            tables.remove(table)
            pool.put_back(pool.release(table))
        held = Counter(itertools.chain.from_iterable(tables))
        touched |= held.keys()
        assert all(pool.holders(block) == held[block] for block in range(total + 1))
        free = [b for start, length in pool._gaps.items() for b in range(start, start + length)]
        assert sorted([*free, *held]) == list(range(1, total + 1))
        assert pool.free == len(free) == pool.total - pool.used
        # Gaps are as wide as they can be.
        assert not any(start + length in pool._gaps for start, length in pool._gaps.items())
        for first, length in pool.idle_ranges(1 + which % 3):
            assert length >= 1 + which % 3
            given_back += range(first, first + length)
            assert set(given_back) <= touched
            assert set(range(first, first + length)) <= set(free)
    for table in tables:
        pool.put_back(pool.release(table))
    assert pool.free == total
    pool.idle_ranges(1)
    assert not pool._touched
    assert pool.idle_ranges(1) == []


def test_a_sequence_alone_is_one_run_however_it_grows():
    pool = BlockPool(100, 1)
    table = pool.allocate(3)
    while pool.free:
        table += pool.allocate(1, table[-1])
    assert table == list(range(1, 101))


@pytest.mark.parametrize("count", [2, 4, 8])
def test_sequences_that_grow_side_by_side_stay_in_few_runs(count):
    """Each begins in the middle of the widest gap, so that none grows into another at once."""
    pool = BlockPool(64 * count, 1)
    tables = [pool.allocate(2) for _ in range(count)]
    for _ in range(28):
        for table in tables:
            table += pool.allocate(1, table[-1])
    assert [runs(table) for table in tables] == [1] * count
    for table in tables:
        pool.put_back(pool.release(table))
    assert pool._gaps == {1: 64 * count}


def test_a_long_prompt_takes_the_widest_gaps_first():
    pool = BlockPool(20, 1)
    blocks = pool.allocate(20)
    pool.put_back(pool.release(blocks[0:3] + blocks[5:11] + blocks[15:16]))
    assert pool.allocate(8) == [6, 7, 8, 9, 10, 11, 1, 2]
    pool.clear()
    # After an interrupt nobody knows what is where: all may be given back.
    assert pool.idle_ranges(1) == [(1, 20)]
