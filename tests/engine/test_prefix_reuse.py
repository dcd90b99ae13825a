"""Prefixes are computed once and reused; the least recently used goes first."""

from __future__ import annotations

import pytest
from engine_requests import (
    TOKENIZER,
    ask,
    build,
    computed,
    conserved,
    ids,
    kept,
    model,
    run,
    run_one,
    same_as_alone,
)

from llama.engine import Engine


def test_the_second_request_computes_only_what_is_new():
    engine = Engine(model(4), TOKENIZER, block=4, speculate=False)
    seen = computed(engine)
    header = ids(40)
    run(engine, [ask((*header, 5, 6, 7), 1)])
    assert seen == [43]
    result = engine.add(ask((*header, 8, 9), 1))
    (delta,) = engine.step()
    assert seen == [43, 2]
    assert delta.sequence.counts == (delta.sequence.counts.__class__)(42, 40, 1)
    assert result == delta.key[0]
    # The same prompt again: all is there but the last token, whose logits are wanted.
    engine.add(ask((*header, 8, 9), 1))
    (delta,) = engine.step()
    assert seen == [43, 2, 1]
    # Reuse off, and a prompt whose scores are wanted, compute everything.
    engine.add(ask((*header, 8, 9), 1, score_prompt=True))
    engine.step()
    assert seen[-1] == 42


def test_a_chat_goes_on_in_the_blocks_of_its_last_turn():
    engine = Engine(model(4), TOKENIZER, block=4, speculate=False)
    seen = computed(engine)
    number = engine.add(ask(ids(20), 12))
    while engine.unfinished:
        before = [list(sequence.table) for sequence in engine.scheduler.running]
        deltas = engine.step()
    (first,) = (delta.sequence for delta in deltas if delta.key[0] == number)
    engine.add(ask((*ids(20), *first.output[:8], 7, 8, 9), 2))
    (delta,) = engine.step()
    assert seen[-1] == 31 - 28
    assert delta.sequence.reused == 28
    assert list(delta.sequence.table[:7]) == before[0][:7]
    while engine.unfinished:
        engine.step()
    # With all that was answered, of which only the last token was not computed.
    engine.add(ask((*ids(20), *first.output, 7, 8), 2))
    (delta,) = engine.step()
    assert seen[-1] == 3
    assert delta.sequence.reused == 31


def test_two_that_arrive_together_compute_their_prefix_once():
    engine = Engine(model(4), TOKENIZER, block=4, speculate=False, step_tokens=10)
    seen = computed(engine)
    header = ids(40)
    wanted = [ask((*header, 5 + i), 1) for i in range(3)]
    results = run(engine, wanted)
    assert sum(seen) == 41 + 1 + 1
    assert sorted(result.sequence.reused for result in results.values()) == [0, 40, 40]
    for (i, _), result in results.items():
        same_as_alone(result, wanted[i], 0)


def test_what_waits_for_a_prefix_goes_on_when_its_leader_is_gone():
    for leave in ("cancel", "pause"):
        engine = Engine(model(4), TOKENIZER, block=4, step_tokens=10)
        first, second = engine.add(ask((*ids(40), 5), 4)), engine.add(ask((*ids(40), 6), 4))
        engine.step()
        assert [s.leader is not None for s in engine.scheduler.running] == [False, True]
        getattr(engine, leave)(first)
        ended = []
        for _ in range(20):  # it needs seven; one that waits for good takes steps without end
            ended += [delta.key[0] for delta in engine.step() if delta.finish_reason]
        assert ended == [second]
        assert not engine.unfinished


def test_the_least_recently_used_prefix_goes_first():
    engine = Engine(model(4), TOKENIZER, block=4, cache_tokens=76, retained_tokens=76, speculate=False)
    for seed in (1, 2, 1, 3):  # 6 blocks each, of which the last has one token: three fit
        run_one(engine, ask(ids(21, seed), 1))
    assert kept(engine) == [list(ids(21, seed)) for seed in (2, 1, 3)]
    # Needs 6 blocks, and 1 is free: all but the first of the oldest have to go.
    run_one(engine, ask(ids(21, 4), 1))
    assert kept(engine) == [list(ids(4, 2)), *(list(ids(21, seed)) for seed in (1, 3, 4))]
    conserved(engine)


def test_a_block_whose_beginning_was_copied_is_not_the_next_to_go():
    engine = Engine(model(4), TOKENIZER, block=4, speculate=False)
    one, two = ids(7, 1), ids(7, 2)
    for prompt in (one, two):
        run(engine, [ask(prompt, 1)])
    run(engine, [ask((*one[:6], 9), 1)])
    assert kept(engine) == [list(two), list(one), [*one[:6], 9]]


@pytest.mark.parametrize("late", [0, 3])
def test_a_prefix_that_several_begin_with_is_computed_once(late):
    """Who comes while another computes it waits for it, whether it comes at once or in the middle."""
    engine = build(4, {"step_tokens": 8, "block": 4, "reserve_tokens": 64})
    counts = computed(engine)
    shared = ids(40)
    engine.add(ask((*shared, 5, 6, 7, 8, 9), 1))
    for _ in range(late):
        engine.step()
    for other in (300, 310):
        engine.add(ask((*shared, *range(other, other + 5)), 1))
    while engine.unfinished:
        engine.step()
    assert sum(counts) == 45 + 5 + 5


@pytest.mark.parametrize("again", ["continued", "computed again"])
def test_what_was_not_used_for_the_longest_time_is_evicted_first(again):
    engine = build(4, {"cache_tokens": 64, "retained_tokens": 64, "block": 4, "reserve_tokens": 0})
    first, second = ids(12, 1), ids(12, 2)
    for prompt in (first, second):
        run(engine, [ask(prompt, 1)])
    # The first is used: by two samples that go on behind it, or by the same prompt once more, which computes all
    # and leaves nothing new.
    used = list(first)
    if again == "continued":
        used.append(9)
        run(engine, [ask(used, 1, n=2)])
    else:
        run(engine, [ask(first, 1, score_prompt=True)])
    assert kept(engine) == [list(second), used]
    # All that is free, and one block more.
    engine.add(ask(ids(4 * engine.blocks.free + 1, 3), 1))
    engine.step()
    assert kept(engine)[:2] == [list(second[:8]), used]
