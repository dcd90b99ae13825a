"""Little memory: the youngest are preempted again and again, nobody starves, results stay the same."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from engine_requests import (
    GREEDY,
    PENALIZED,
    SAMPLED,
    TOKENIZER,
    Result,
    alone,
    ask,
    build,
    conserved,
    ids,
    model,
    same_as_alone,
)

from llama.engine import Engine


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_a_preempted_sequence_ends_with_the_same_result(seed, reuse):
    """Room for little more than the largest: the youngest give way again and again, and nobody starves."""
    generator = torch.Generator().manual_seed(seed)

    def number(low, high):
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    kinds = [GREEDY, SAMPLED, PENALIZED]
    wanted = [
        ask(
            ids(number(3, 14), number(0, 1)),
            number(10, 24),
            kinds[number(0, 2)],
            seed=20 + i,  # a draw of (2, 1) lies within rounding of a boundary
            n=number(1, 2),
            top=1,
        )
        for i in range(7)
    ]
    wanted[3] = dataclasses.replace(wanted[3], score_prompt=True)
    size = [1, 2, 4][seed % 3]
    full = [len(r.prompt) // size for r in wanted]  # blocks that its samples share
    need = size * max(a + r.n * (-(-r.longest // size) - a) for r, a in zip(wanted, full, strict=True))
    setup = {
        "cache_tokens": need + number(0, 8),
        "block": size,
        "prefix_reuse": reuse,
        "reserve_tokens": seed % 2,
    }
    engine = build(4, setup)
    results = {}
    assert all(engine.scheduler.together(request) == request.n for request in wanted)
    for request in wanted:
        engine.add(request)
    for _ in range(5000):
        if not engine.unfinished:
            break
        for delta in engine.step():
            results.setdefault(delta.key, Result()).take(delta)
        conserved(engine)
    assert sorted(results) == [(i, j) for i, request in enumerate(wanted) for j in range(request.n)]
    for (i, sample), result in results.items():
        same_as_alone(result, wanted[i], sample)
    assert engine.scheduler.preemptions > 0


def test_the_oldest_is_never_preempted():
    engine = build(4, {"cache_tokens": 40, "block": 1, "reserve_tokens": 0})
    first = engine.add(ask(ids(6), 30))
    for i in range(3):
        engine.add(ask(ids(6, i + 1), 30))
    last = 0
    for _ in range(300):
        engine.step()
        oldest = next((s for s in engine.scheduler.running if s.request_id == first), None)
        if oldest is None:
            break
        assert oldest.computed > last
        last = oldest.computed
    assert engine.scheduler.preemptions > 0
    while engine.unfinished:
        engine.step()


def test_a_short_request_does_not_hold_a_long_ones_memory():
    """Where a retained prefix has to go for its own continuation, no more is taken than without reuse."""
    shared = ids(16)
    for prefix_reuse in (True, False):
        engine = Engine(
            model(4, 512), TOKENIZER, cache_tokens=512, retained_tokens=512, prefix_reuse=prefix_reuse
        )
        engine.add(ask((*shared, *ids(420, 1)), 5))
        while engine.unfinished:
            engine.step()
        engine.add(ask((*shared, *ids(30, 2)), 40))
        engine.add(ask((*shared, *ids(30, 3)), 40))
        engine.step()
        engine.step()
        assert len(engine.scheduler.running) == 2, prefix_reuse
        while engine.unfinished:
            engine.step()


def test_one_that_begins_with_a_single_token_and_loses_its_place_at_once_is_not_run():
    """The older one's next token takes the block that it has just got, in the same plan."""
    engine = Engine(model(4), TOKENIZER, cache_tokens=12, block=4, prefix_reuse=False, speculate=False)
    engine.scheduler.limits = dataclasses.replace(engine.scheduler.limits, reserve_tokens=0)
    older, younger = ask(7, 5), ask(1, 3, seed=1)
    engine.add(older)
    engine.step()
    engine.step()
    assert engine.blocks.free == 1
    engine.add(younger)
    deltas = engine.step()
    assert [delta.key for delta in deltas] == [(0, 0)]
    assert engine.snapshot().preemptions == 1
    found = {}
    while engine.unfinished:
        found |= {delta.key: delta.sequence.output for delta in engine.step()}
    for key, request in enumerate((older, younger)):
        assert found[key, 0] == alone(request).sequence.output
