"""Laws of the engine under everything at once: arrivals, cancels, pauses, preemption, reuse, chunks, drafts.

Whatever happens around it, a request gets what it gets alone; memory is conserved; all end, once, with a
reason.
"""

from __future__ import annotations

import dataclasses

import pytest
from engine_requests import (
    BIASED,
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
from hypothesis import given, settings
from hypothesis import strategies as st

from llama.engine import Engine


def turn(length, seed, more):
    """A chat's second turn: a prompt, its answer, and more."""
    first = ids(length, seed)
    return (*first, *alone(ask(first, 12)).sequence.output, *ids(more + 1, 9)[1:])


prompts = (
    st.builds(ids, st.integers(1, 30), st.integers(0, 2))
    | st.builds(turn, st.integers(5, 24), st.integers(0, 2), st.integers(0, 6))
    | st.builds(lambda n, s: (1, *(ids(5, s)[1:] * n)), st.integers(1, 9), st.integers(0, 2))
)
requests = st.builds(
    ask,
    prompts,
    st.integers(0, 16) | st.sampled_from([12, 20]),
    st.sampled_from([GREEDY, GREEDY, SAMPLED, PENALIZED, BIASED]),
    stop_ids=st.sampled_from([frozenset(), frozenset({2}), frozenset(range(0, 430, 9))]),
    stop=st.sampled_from([(), ("e",), (" a", "re", "ab"), ("\n",)]),
    seed=st.integers(0, 3),
    n=st.sampled_from([1, 1, 2, 3]),
    top=st.integers(0, 2),
    score_prompt=st.booleans(),
    streaming=st.booleans(),
    min_new_tokens=st.sampled_from([0, 0, 5]),
)
guesses = st.none() | st.integers(0, 20)
rows = st.lists(
    st.tuples(
        st.integers(0, 8), requests, st.none() | st.integers(0, 14), st.none() | st.integers(0, 9), guesses
    ),
    min_size=1,
    max_size=7,
)
setups = st.fixed_dictionaries(
    {
        "cache_tokens": st.integers(30, 160),
        "retained_tokens": st.sampled_from([0, 30, None, 1000]),
        "step_tokens": st.sampled_from([1, 3, 7, 20, 1024]),
        "prefill_tokens": st.sampled_from([1, 4, 64]),
        "prefix_reuse": st.sampled_from([True, True, True, False]),
        "speculate": st.sampled_from([True, True, False]),
        "block": st.sampled_from([1, 2, 4, 16]),
        "reserve_tokens": st.sampled_from([0, 1, 5, 64]),
    }
)


def with_guess(request, wrong):
    """With a prediction: its own greedy output, one token of it changed."""
    if wrong is None or not request.max_new_tokens:
        return request
    guess = list(alone(request).sequence.output)
    if wrong < len(guess):
        guess[wrong] = 5
    return dataclasses.replace(request, prediction=tuple(guess))


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=40)
@given(rows, st.integers(1, 4), setups)
def test_any_interleaving_is_each_request_alone(rows, batch, setup):
    engine = build(batch, setup)
    rows = [(a, with_guess(r, g), c, p) for a, r, c, p, g in rows]
    rows = [row for row in rows if engine.blocks.needed(row[1].longest) <= engine.blocks.total]
    numbers, cancelled, results, paused = {}, set(), {}, set()
    for step in range(3000):
        for i, (arrival, request, cancel, pause) in enumerate(rows):
            if arrival == step:
                numbers[i] = engine.add(request)
            if pause is not None and arrival + pause == step:
                engine.pause(numbers[i])
                paused.add(i)
            if pause is not None and arrival + pause + 12 == step:
                engine.resume(numbers[i])
                paused.discard(i)
            if cancel is not None and arrival + cancel == step:
                engine.cancel(numbers[i])
                cancelled.add(i)
        for delta in engine.step():
            number, sample = delta.key
            i = next(j for j, other in numbers.items() if other == number)
            assert i not in cancelled, "a delta of a cancelled request"
            assert i not in paused or delta.sequence.request.max_new_tokens == 0, (
                "a delta of a paused request"
            )
            results.setdefault((i, sample), Result()).take(delta)
        conserved(engine)
        if step > 30 and not engine.unfinished:
            break
    else:
        pytest.fail("the engine never ended")
    assert not engine.scheduler.running
    assert not engine.scheduler.waiting
    for i, (_, request, _, _) in enumerate(rows):
        for sample in range(request.n):
            result = results.get((i, sample))
            if result is not None and result.reason is not None:
                same_as_alone(result, request, sample)
                counts = result.sequence.counts
                assert counts.prompt == len(request.prompt) > counts.reused >= 0
                assert counts.generated == len(result.sequence.output)
            else:
                assert i in cancelled


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.lists(requests, min_size=2, max_size=5), setups, st.integers(0, 25))
def test_any_failed_step_is_as_if_it_had_not_been(wanted, setup, failing):
    """The n-th forward or the n-th logits fail; the step is taken again."""
    made = model(4)
    engine = build(4, setup)
    wanted = [r for r in wanted if engine.blocks.needed(r.longest) <= engine.blocks.total]
    for request in wanted:
        engine.add(request)
    calls, results, failed = 0, {}, False
    plain_logits, plain_hidden = made.logits, made.hidden

    def fails():
        nonlocal calls
        calls += 1
        return calls == failing + 1

    def logits(hidden_NC):
        if fails():
            raise ValueError("in the logits")
        return plain_logits(hidden_NC)

    def hidden(tokens_T, step):
        out = plain_hidden(tokens_T, step)
        if fails():
            raise ValueError("in the forward")
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made, "logits", logits)
        patch.setattr(made, "hidden", hidden)
        for _ in range(3000):
            if not engine.unfinished:
                break
            try:
                deltas = engine.step()
            except ValueError:
                assert engine.planned <= set(range(len(wanted)))
                failed, deltas = True, []
            conserved(engine)
            for delta in deltas:
                results.setdefault(delta.key, Result()).take(delta)
    assert failed == (calls > failing)
    assert sorted(results) == [(i, j) for i, request in enumerate(wanted) for j in range(request.n)]
    for (i, sample), result in results.items():
        same_as_alone(result, wanted[i], sample)


simple_requests = st.builds(
    ask,
    st.builds(ids, st.integers(1, 30), st.integers(0, 4)),
    st.integers(0, 12),
    st.sampled_from([GREEDY, SAMPLED, PENALIZED]),
    stop_ids=st.sampled_from([frozenset(), frozenset({2}), frozenset(range(0, 430, 9))]),
    stop=st.sampled_from([(), ("e",), (" a", "re", "ab"), ("\n",)]),
    start_of_text=st.booleans(),
    seed=st.integers(0, 5),
    n=st.integers(1, 3),
    top=st.integers(0, 2),
    score_prompt=st.booleans(),
)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(
    st.lists(
        st.tuples(st.integers(0, 6), simple_requests, st.none() | st.integers(0, 12)), min_size=1, max_size=6
    ),
    st.integers(1, 4),
    st.sampled_from([1, 2, 3, 7, 20, 1024]),
)
def test_any_interleaving_in_an_engine_of_the_usual_sizes_is_each_request_alone(rows, batch, step_tokens):
    engine = Engine(model(batch), TOKENIZER, step_tokens=step_tokens)
    rows = [row for row in rows if row[1].n <= batch]
    numbers, cancelled, results = {}, set(), {}
    for step in range(1500):
        for i, (arrival, request, cancel) in enumerate(rows):
            if arrival == step:
                numbers[engine.add(request)] = i
            if cancel is not None and arrival + cancel == step:
                engine.cancel(next(number for number, j in numbers.items() if j == i))
                cancelled.add(i)
        assert engine.unfinished or not engine.scheduler.running
        for delta in engine.step():
            number, sample = delta.key
            assert numbers[number] not in cancelled, "a delta of a cancelled request"
            results.setdefault((numbers[number], sample), Result()).take(delta)
        assert len(engine.scheduler.running) <= batch
        if step > 20 and not engine.unfinished:
            break
    else:
        pytest.fail("the engine never ended")
    for i, (_, request, _) in enumerate(rows):
        for sample in range(request.n):
            result = results.get((i, sample))
            if result is not None and result.reason is not None:
                same_as_alone(result, request, sample)
            else:
                assert i in cancelled
