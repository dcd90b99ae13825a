"""Paused and cancelled requests: what they keep, what they give up, and that others do not notice."""

from __future__ import annotations

from engine_requests import TOKENIZER, Result, alone, ask, ids, model, plain, same_as_alone

from llama.engine import Engine, FinishReason


def test_cancel_frees_the_cache_at_once():
    engine = plain()
    number = engine.add(ask(20, 20, n=2))
    for _ in range(3):
        engine.step()
    (sequence, other) = engine.scheduler.running
    assert engine.blocks.used > 0
    engine.cancel(number)
    engine.cancel(number)
    assert engine.blocks.used == 0
    assert not sequence.table
    assert not other.table
    assert sequence.finish_reason is other.finish_reason is FinishReason.CANCELLED
    assert not engine.unfinished
    assert engine.step() == []


def test_what_is_paused_waits_while_the_others_go_on():
    engine = Engine(model(4), TOKENIZER)
    wanted = [ask(ids(9, i), 10) for i in range(3)]
    numbers = [engine.add(request) for request in wanted]
    results = {i: Result() for i in numbers}

    def step():
        for delta in engine.step():
            results[delta.key[0]].take(delta)

    step()
    engine.pause(numbers[0])
    engine.pause(numbers[0])
    engine.pause(12345)
    while engine.unfinished:
        step()
    assert [results[i].reason is None for i in numbers] == [True, False, False]
    assert engine.step() == []
    engine.resume(numbers[0])
    assert engine.unfinished
    while engine.unfinished:
        step()
    for i, request in zip(numbers, wanted, strict=True):
        same_as_alone(results[i], request, 0)


def test_what_is_paused_gives_slot_and_memory_to_the_others():
    engine = Engine(model(2), TOKENIZER)
    first = [engine.add(ask(ids(20, i), 20)) for i in range(2)]
    engine.step()
    for number in first:
        engine.pause(number)
    late = engine.add(ask(ids(9), 5))
    ended = []
    while engine.unfinished:
        ended += [delta for delta in engine.step() if delta.finish_reason]
    assert [delta.key[0] for delta in ended] == [late]
    for number in first:
        engine.resume(number)
    while engine.unfinished:
        ended += [delta for delta in engine.step() if delta.finish_reason]
    assert sorted(delta.key[0] for delta in ended) == [*first, late]
    for delta in ended[1:]:
        assert delta.sequence.output == alone(delta.sequence.request).sequence.output


def test_what_is_paused_keeps_its_cache_while_that_would_not_be_enough():
    engine = Engine(model(3), TOKENIZER)
    runs, paused = (engine.add(ask(ids(20, i), 20)) for i in range(2))
    engine.step()
    engine.pause(paused)
    engine.add(ask(ids(9), 5, n=3))  # needs the slot of `runs` too
    engine.step()
    assert [sequence.request_id for sequence in engine.scheduler.running] == [runs, paused]
    assert engine.scheduler.preemptions == 0
    while engine.unfinished:
        engine.step()
    assert engine.scheduler.preemptions == 1


def test_what_is_paused_gives_memory_to_one_that_cannot_begin_without_it():
    engine = Engine(model(4), TOKENIZER, cache_tokens=48)
    paused = engine.add(ask(ids(20), 20))
    engine.step()
    assert engine.blocks.free == 0
    engine.pause(paused)
    late = engine.add(ask(ids(9, 1), 5))
    assert any(delta.key[0] == late and delta.finish_reason for _ in range(20) for delta in engine.step())
    assert engine.scheduler.preemptions == 1
