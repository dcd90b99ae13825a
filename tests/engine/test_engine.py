"""Requests share a model, its slots and its memory, and each gets what it would get alone."""

from __future__ import annotations

import pytest
from engine_requests import GREEDY, SAMPLED, TOKENIZER, Result, ask, build, ids, model, run, same_as_alone
from tiny_llama import tiny_model

from llama.engine import Engine, Feed, Request
from llama.errors import OutOfMemoryError


def test_more_requests_than_slots_are_run_in_turns():
    engine = Engine(model(2), TOKENIZER)
    wanted = [ask(ids(5 + i, i), 3 + i) for i in range(7)]
    for i, result in run(engine, wanted).items():
        same_as_alone(result, wanted[i[0]], 0)


def test_the_cache_is_shared_out_as_it_is_given():
    """Room for one request at a time: they still all end, and one that can never fit is refused."""
    engine = Engine(model(4), TOKENIZER, cache_tokens=32)
    wanted = [ask(ids(10, i), 8) for i in range(4)]
    for i, result in run(engine, wanted).items():
        same_as_alone(result, wanted[i[0]], 0)
    with pytest.raises(OutOfMemoryError, match=r"grow to 33 tokens.* room for 32"):
        engine.add(ask(25, 8))
    assert not engine.unfinished


def test_samples_share_one_prefill(monkeypatch):
    """The prompt goes through the model once, whatever n is."""
    made, seen = model(4), []
    hidden = made.hidden
    monkeypatch.setattr(
        made, "hidden", lambda tokens, step: (seen.append(len(tokens)), hidden(tokens, step))[1]
    )
    request = ask(20, 5, SAMPLED, n=4, seed=1)
    results = run(Engine(made, TOKENIZER), [request])
    assert sum(seen) == 20 + 4 * (5 - 1)
    assert len({tuple(result.sequence.output) for result in results.values()}) == 4
    monkeypatch.undo()
    for (_, sample), result in results.items():
        same_as_alone(result, request, sample)


def test_samples_go_on_where_an_earlier_request_stopped():
    """Sample 2 of four is sample 0 of a request that begins at 2, so replicas can share samples."""
    request = ask(9, 6, SAMPLED, n=5, seed=3)
    whole = run(Engine(model(8), TOKENIZER), [request])
    small = Engine(model(2), TOKENIZER)
    waves = small.waves(request)
    assert [(wave.first_sample, wave.n) for wave in waves] == [(0, 2), (2, 2), (4, 1)]
    parts = run(small, waves)
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert [r.whole for r in whole.values()] == [parts[place].whole for place in places]
    # And one request gives all of them, numbered on, whatever the batch.
    assert [(key, r.whole) for key, r in run(small, [request]).items()] == [
        (key, r.whole) for key, r in whole.items()
    ]


def test_memory_goes_with_the_sequence():
    engine = Engine(model(4), TOKENIZER)
    results = run(engine, [ask(30, 10), ask(20, 3, n=2)])
    assert not any(result.sequence.table for result in results.values())


def test_a_running_sequence_holds_what_it_uses_not_the_limits():
    made = tiny_model(max_batch_size=100, max_seq_len=100_000)
    engine = Engine(made, TOKENIZER)
    engine.add(ask(30, 90_000))
    for _ in range(5):
        engine.step()
    (sequence,) = engine.scheduler.running
    assert len(sequence.table) * engine.blocks.size <= 30 + 64 + engine.blocks.size


def test_a_finished_sample_gives_its_slot_back_at_once():
    """Four samples, of which some end by a stop id: the next request begins while the others run."""
    request = ask(9, 20, SAMPLED, n=4, seed=2, stop_ids=frozenset(range(0, 430, 5)))
    engine = Engine(model(4), TOKENIZER)
    engine.add(request)
    second = engine.add(ask(5, 3))
    together = False
    while engine.unfinished:
        engine.step()
        ids_running = [s.request_id for s in engine.scheduler.running]
        together |= second in ids_running and 0 in ids_running
    assert together


def test_ten_thousand_wait_in_order_and_cost_nothing():
    engine = Engine(model(4), TOKENIZER)
    numbers = [engine.add(ask((1, 3 + i % 400), 1)) for i in range(10_000)]
    assert engine.scheduler.waiting == 10_000
    for number in numbers[5:]:
        if number % 100:
            engine.cancel(number)
    order = []
    while engine.unfinished:
        order += [delta.key[0] for delta in engine.step()]
    assert order == [n for n in numbers if n < 5 or n % 100 == 0]


def test_request_is_cheap_to_queue():
    """A waiting request holds only its request."""
    engine = Engine(model(4), TOKENIZER)
    engine.add(Request(ids(20), 5, GREEDY))
    assert not engine.scheduler.running
    assert not engine.scheduler._preempted


def test_times_are_told_by_the_clock_that_was_given():
    now = [100.0]
    engine = Engine(model(4), TOKENIZER, clock=lambda: now[0], speculate=False)
    engine.add(ask(5, 3))
    now[0] = 101.5
    deltas = engine.step()
    now[0] = 104.0
    deltas += engine.step()
    now[0] = 108.0
    deltas += engine.step()
    times = deltas[-1].sequence.times
    assert (times.waited, times.to_first_token, times.total) == (1.5, 1.5, 8.0)


def test_every_sample_tells_what_their_common_prefill_took_and_reused():
    now = [1.0]
    engine = Engine(model(4), TOKENIZER, block=4, clock=lambda: now[0])
    run(engine, [ask(ids(20), 1)])
    engine.add(ask((*ids(20), 5, 6), 3, SAMPLED, n=3))
    now[0], deltas = 4.0, []
    while engine.unfinished:
        deltas += [delta for delta in engine.step() if delta.finish_reason]
    assert [delta.sequence.counts.reused for delta in deltas] == [20] * 3
    assert [delta.sequence.times.waited for delta in deltas] == [3.0] * 3


def test_prompts_are_cut_small_only_beside_a_streaming_decode():
    for streaming, chunk in ((True, 5 + 2), (False, 30)):
        engine = Engine(model(4), TOKENIZER, prefill_tokens=5, speculate=False, step_tokens=31)
        engine.add(ask(ids(4), 20, streaming=streaming))
        engine.step()
        number = engine.add(ask(ids(50, 1), 2))
        engine.step()
        (late,) = [s for s in engine.scheduler.running if s.request_id == number]
        assert late.computed == chunk


def test_a_request_that_nobody_reads_any_more_is_cancelled_at_the_next_step():
    engine = build(4, {"reserve_tokens": 64})
    read, dropped = Feed(), Feed()
    wanted = ask(6, 12)
    kept = engine.add(wanted, read)
    for _ in range(2):
        engine.add(ask(7, 30), dropped)
    engine.advance()
    assert len(engine.scheduler.running) == 3
    del dropped
    engine.advance()
    assert [sequence.request_id for sequence in engine.scheduler.running] == [kept]
    result = Result()
    while engine.unfinished:
        engine.advance()
    for delta in engine.read(read):
        result.take(delta)
    same_as_alone(result, wanted, 0)
    assert engine.step() == []
