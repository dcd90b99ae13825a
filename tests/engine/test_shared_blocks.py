"""What equal prefixes cost: nothing is copied or held twice, whatever the blocks are and wherever they lie."""

from __future__ import annotations

import random

import pytest
import torch
from engine_requests import (
    PENALIZED,
    SAMPLED,
    TOKENIZER,
    Result,
    ask,
    computed,
    conserved,
    ids,
    model,
    run,
    same_as_alone,
)
from tiny_llama import tiny_model

from llama.engine import Engine
from llama.errors import ConfigError, OutOfMemoryError
from llama.kv_cache import KVPool


@pytest.fixture
def copied(monkeypatch):
    """A list that grows by the (sources, targets) of each copy, in all engines."""
    plain, calls = KVPool.copy, []

    def copy(self, sources, targets):
        calls.append((list(sources), list(targets)))
        plain(self, sources, targets)

    monkeypatch.setattr(KVPool, "copy", copy)
    return calls


def held(engine):
    """Positions that running sequences hold, what several hold counted once, and what is set aside for them."""
    return engine.snapshot().cache_used + engine.blocks.reserved * engine.blocks.size


def test_a_second_request_on_a_long_prefix_copies_nothing_and_computes_its_tail(copied):
    engine = Engine(model(4, 2100), TOKENIZER, speculate=False)
    counts, shared = computed(engine), ids(2001)
    engine.add(ask((*shared, 5, 6), 30, streaming=False))
    for _ in range(4):
        engine.step()
    (first,) = engine.scheduler.running
    del counts[:]
    engine.add(ask((*shared, 7, 8, 9), 30, streaming=False))
    engine.step()
    second = engine.scheduler.running[1]
    assert counts == [1 + 2004 - 62 * 32]
    assert second.table[:62] == first.table[:62]
    assert held(engine) <= 2001 + 2 * (64 + 32)
    assert copied == []
    while engine.unfinished:
        engine.step()
    # And when both have left: the third reuses what they had, and copies the block in which it goes on otherwise.
    run(engine, [ask((*shared, 5, 6, 7), 2)])
    assert counts[-2:] == [1, 1]
    assert [len(sources) for sources, _ in copied] == [1]


@pytest.mark.parametrize(("same", "reused"), [(1, 0), (3, 0), (4, 4), (17, 17), (31, 31)])
def test_the_beginning_of_a_block_is_copied_if_it_has_an_eighth_of_its_tokens(copied, same, reused):
    """Behind other blocks and as the first one, from a sequence that runs and from one that has left."""
    engine = Engine(model(4, 256), TOKENIZER, speculate=False)
    for header in ((), ids(64)):
        for leaves in (False, True):
            del copied[:]
            first = (*header, *range(300, 340))
            number = engine.add(ask(first, 40))
            engine.step()
            if leaves:
                engine.cancel(number)
            second = ask((*header, *first[len(header) : len(header) + same], 7, 8, 9), 4)
            engine.add(second)
            deltas = engine.step()
            mine = next(delta.sequence for delta in deltas if delta.key[0] != number)
            assert mine.reused == len(header) + reused
            assert sum(len(sources) for sources, _ in copied) == bool(reused)
            result = Result()
            while result.reason is None:
                for delta in deltas:
                    if delta.key == mine.key:
                        result.take(delta)
                deltas = engine.step()
            plain = Engine(model(4, 256), TOKENIZER, prefix_reuse=False, speculate=False)
            assert result.whole == run(plain, [second])[0, 0].whole
            engine.cancel(number)
            engine.forget_prefixes()


def test_eight_samples_hold_their_prompt_once(copied):
    engine = Engine(model(8, 4200), TOKENIZER, speculate=False)
    new = 40
    engine.add(ask(ids(4000), new, SAMPLED, n=8, seed=3))
    most = 0
    while engine.unfinished:
        engine.step()
        conserved(engine)
        most = max(most, held(engine))
    assert 4000 < most <= 4000 + 8 * (new + 32)
    assert copied == []  # 4,000 are whole blocks


def test_the_first_to_write_on_in_a_partial_block_copies_it_and_the_last_does_not(copied):
    engine = Engine(model(4), TOKENIZER, speculate=False, block=16)
    request = ask(ids(20), 8, SAMPLED, n=4, seed=1)
    engine.add(request)
    engine.step()
    shared = {sequence.table[1] for sequence in engine.scheduler.running}
    assert len(shared) == 1
    assert copied == []
    while engine.unfinished:
        engine.step()
        conserved(engine)
    ((sources, targets),) = copied
    assert sources == 3 * list(shared)
    assert len({*targets, *sources}) == 4


def test_samples_that_end_with_their_first_token_copy_nothing(copied):
    engine = Engine(model(4), TOKENIZER, block=16)
    run(engine, [ask(ids(20), 1, SAMPLED, n=4)])
    assert copied == []


def test_samples_that_write_the_same_hold_it_once():
    engine = Engine(model(4), TOKENIZER, speculate=False, block=4)
    engine.add(ask(ids(8), 33, n=4))
    for _ in range(32):
        engine.step()
        conserved(engine)
    tables = [sequence.table for sequence in engine.scheduler.running]
    assert len(tables) == 4
    assert all(table[:9] == tables[0][:9] for table in tables)


def test_growing_to_max_seq_len_copies_and_moves_nothing(copied):
    engine = Engine(model(4, 256), TOKENIZER, speculate=False)
    engine.add(ask(ids(5), 251))
    engine.step()
    store, (sequence,) = engine.memory.pool.store.data_ptr(), engine.scheduler.running
    before = list(sequence.table)
    while engine.unfinished:
        assert list(sequence.table[: len(before)]) == before
        before = list(sequence.table)
        engine.step()
    assert before == list(range(before[0], before[0] + 8))  # one run
    assert engine.memory.pool.store.data_ptr() == store
    assert copied == []


SHARED = ids(37, 5)
WANTED = [
    ask((*SHARED, 5, 6), 12),
    ask((*SHARED, 5, 7), 9, SAMPLED, n=3, seed=2),
    ask((*SHARED[:20], 9), 14, PENALIZED, seed=4),
    ask(ids(6, 2), 16, n=2),
    ask((*SHARED, 5, 6), 4, score_prompt=True),
]


@pytest.mark.parametrize("block", [1, 2, 4, 8, 16, 32, 64, 128, 256])
def test_shared_blocks_anywhere_are_each_request_alone(monkeypatch, block):
    """Any size of blocks, scattered over the pool: the same ids as alone, where all is one run."""

    def scattered(pool, count, behind=0):
        free = [b for start, length in pool._gaps.items() for b in range(start, start + length)]
        chosen = chance.sample(free, count)
        for each in chosen:
            start = next(s for s, length in pool._gaps.items() if s <= each < s + length)
            pool._cut(start, each, 1)
            pool._holders[each] = 1
            pool._touched.add(each)
        pool.free -= count
        pool._idle.difference_update(chosen)
        return chosen

    chance = random.Random(block)
    engine = Engine(model(6, 256), TOKENIZER, block=block, cache_tokens=6 * 256)
    with monkeypatch.context() as patch:
        patch.setattr("llama.engine.block_pool.BlockPool.allocate", scattered)
        for _ in range(2):  # the second time all prompts are there
            results = run(engine, WANTED)
            conserved(engine)
            for (number, sample), result in results.items():
                same_as_alone(result, WANTED[number], sample)


@pytest.mark.parametrize("block", [0, 3, 512, -4, 2.0, "32", True])
def test_a_block_that_is_no_power_of_two_is_refused(block):
    with pytest.raises(ConfigError, match="must be a power of two from 1 to 256"):
        Engine(model(4), TOKENIZER, block=block)


def test_a_cache_that_the_system_does_not_give_is_refused_with_its_size():
    with pytest.raises(OutOfMemoryError, match=r"GiB of address space"):
        Engine(model(4), TOKENIZER, cache_tokens=2**50)


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16])
def test_a_model_that_is_cast_gets_a_pool_of_its_dtype_and_computes_again(cast):
    made = tiny_model()
    engine = Engine(made, TOKENIZER, block=4, speculate=False)
    run(engine, [ask(ids(20), 2)])
    running = engine.add(ask(ids(20), 12))
    waiting = engine.add(ask((*ids(20), 5), 12))
    engine.pause(waiting)
    for _ in range(3):
        engine.step()
    made.to(cast)
    counts, deltas = computed(engine), engine.step()
    assert engine.memory.pool.form == cast
    assert counts == [20 + 3]
    engine.resume(waiting)
    while engine.unfinished:
        deltas = engine.step()
        conserved(engine)
    assert deltas[-1].sequence.reused == 20
    assert deltas[-1].key[0] == waiting != running
    # It answers as an engine that was made for it.
    assert (
        run(engine, [ask(ids(20), 9)])[0, 0].whole
        == run(Engine(made, TOKENIZER), [ask(ids(20), 9)])[0, 0].whole
    )


def test_idle_memory_goes_back_while_others_run_and_all_of_it_when_nobody_does(monkeypatch):
    plain, ranges = KVPool.give_back, []

    def give_back(self, first, count):
        ranges.append((first, count))
        plain(self, first, count)

    monkeypatch.setattr(KVPool, "give_back", give_back)
    engine = Engine(model(4, 1024), TOKENIZER, block=16, prefix_reuse=False, speculate=False)
    long, short = (engine.add(ask(ids(count), 100, streaming=False)) for count in (600, 5))
    for _ in range(5):
        engine.step()
    (table,) = (list(s.table) for s in engine.scheduler.running if s.request_id == long)
    assert all(engine.memory.pool.store[:, :, :, block].any() for block in table[:37])
    engine.cancel(long)
    assert ranges == [(table[0], len(table))]
    # All but the pages at both ends, which other blocks may share: a page is 8 blocks of a head.
    assert len(table) > 40
    assert not engine.memory.pool.store[:, :, :, table[8:-8]].any()
    (table,) = (list(s.table) for s in engine.scheduler.running if s.request_id == short)
    engine.step()
    assert len(ranges) == 1
    engine.cancel(short)
    assert [*range(ranges[1][0], sum(ranges[1]))] == table
    # What is kept for reuse stays.
    del ranges[:]
    engine = Engine(model(4, 256), TOKENIZER, block=4, speculate=False)
    for _ in range(2):  # the second one's last block is a second one of the same tokens
        run(engine, [ask(ids(40), 3)])
    kept = {*engine.scheduler.prefixes._nodes}
    assert len(kept) == 11
    assert ranges
    assert not kept & {block for first, count in ranges for block in range(first, first + count)}
