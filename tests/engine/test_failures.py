"""A step that fails leaves no trace; logits that are not finite end the request that they belong to."""

from __future__ import annotations

import re

import pytest
import torch
from engine_requests import (
    PENALIZED,
    SAMPLED,
    TOKENIZER,
    Result,
    ask,
    conserved,
    ids,
    model,
    run,
    same_as_alone,
)
from tiny_llama import tiny_model

from llama.engine import Engine, FinishReason
from llama.engine.request_state import RequestState
from llama.errors import NumericsError
from llama.kv_cache import KVPool
from llama.model import Transformer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_that_are_not_finite_are_named_and_the_engine_lives_on(monkeypatch, dtype):
    made = tiny_model(dtype=dtype)
    engine = Engine(made, TOKENIZER, block=4)
    first = engine.add(ask(8, 10))
    engine.step()
    second = engine.add(ask(9, 10))
    # Not by a weight: the engine would see that the model is another one.
    plain = Transformer.logits
    monkeypatch.setattr(Transformer, "logits", lambda self, hidden: plain(self, hidden) * torch.nan)
    for number, step in ((first, 1), (second, 0)):
        (delta,) = engine.step()
        assert (delta.key, delta.text, delta.finish_reason) == ((number, 0), "", FinishReason.ERROR)
        assert isinstance(delta.sequence.error, NumericsError)
        assert re.search(
            f"^row 0, sample 0, step {step}: .* 436 logits .* {dtype}", str(delta.sequence.error)
        )
    monkeypatch.undo()
    assert not engine.unfinished
    # Nothing that may be wrong is used again.
    assert engine.blocks.used == 0
    after = run(engine, [ask(8, 10)])
    assert after[0, 0].whole == run(Engine(made, TOKENIZER), [ask(8, 10)])[0, 0].whole


def test_a_failed_step_names_the_requests_that_it_ran_and_no_other(monkeypatch):
    """One that waits while paused keeps its place, and is not in the step; one that begins in it is."""
    engine = Engine(model(4), TOKENIZER, speculate=False)
    paused, short = engine.add(ask(8, 10)), engine.add(ask(9, 2))
    engine.step()
    engine.pause(paused)
    engine.step()
    assert engine.planned == {short}  # also when it has ended by that
    begins = engine.add(ask(7, 10))

    def failing(*_):
        raise RuntimeError("no way")

    monkeypatch.setattr(Transformer, "hidden", failing)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no way"):
            engine.step()
        assert [sequence.request_id for sequence in engine.scheduler.running] == [paused, begins]
        assert engine.planned == {begins}


@pytest.mark.parametrize("told", [0, 1, 2])
def test_an_interrupt_while_a_request_fails_ends_it_all_the_same(monkeypatch, told):
    """Samples run one by one; the error is entered for the first `told` before the interrupt strikes."""
    engine = Engine(model(1), TOKENIZER, speculate=False)
    engine.add(ask(8, 10, n=3))
    engine.step()
    plain, fail = Transformer.logits, RequestState.fail
    monkeypatch.setattr(Transformer, "logits", lambda self, hidden: plain(self, hidden) * torch.nan)

    def interrupted(state, error):
        kept, state.samples = state.samples, state.samples[:told]
        fail(state, error)
        state.samples = kept
        raise KeyboardInterrupt

    monkeypatch.setattr(RequestState, "fail", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    monkeypatch.setattr(RequestState, "fail", fail)
    reasons = []
    while engine.unfinished:
        reasons += [delta.finish_reason for delta in engine.step() if delta.finish_reason]
        if told:  # else nobody knows of the error, so the step is tried again
            monkeypatch.setattr(Transformer, "logits", plain)
    assert set(reasons) == {FinishReason.ERROR}
    assert not engine._requests
    conserved(engine)


def test_the_row_that_is_not_finite_is_the_one_that_is_named(monkeypatch):
    made = tiny_model("fused")
    engine = Engine(made, TOKENIZER)
    wanted = [ask(5 + row, 5, row=row) for row in range(3)]
    for request in wanted:
        engine.add(request)
    plain_logits = type(made).logits

    def logits(self, hidden):
        found = plain_logits(self, hidden)
        found[1, 7] = torch.nan
        return found

    monkeypatch.setattr(type(made), "logits", logits)
    (delta,) = engine.step()
    monkeypatch.undo()
    assert (delta.key, delta.finish_reason) == ((1, 0), FinishReason.ERROR)
    assert re.search(r"^row 1, sample 0, step 0: 1 of 436 logits", str(delta.sequence.error))
    # The others are as before the step.
    results = {}
    while engine.unfinished:
        for each in engine.step():
            results.setdefault(each.key, Result()).take(each)
    assert sorted(results) == [(0, 0), (2, 0)]
    for (number, _), result in results.items():
        same_as_alone(result, wanted[number], 0)


def test_a_prompt_that_is_scored_names_its_token():
    made = tiny_model()
    made.norm.assign(made.norm.weight * torch.nan)
    engine = Engine(made, TOKENIZER)
    engine.add(ask(5, 0, score_prompt=True))
    (delta,) = engine.step()
    assert re.search(r"row 0, sample 0, step 0, prompt token 1: .*torch.float32", str(delta.sequence.error))


@pytest.mark.slow
@pytest.mark.parametrize("step_tokens", [5, 1024])
@pytest.mark.parametrize("failing", range(12))
def test_a_failed_step_is_as_if_it_had_not_been(monkeypatch, failing, step_tokens):
    """The n-th time that logits are made that fails: while a prompt is scored, after its samples
    were forked, or in decode. The step is taken again, and nothing shows of the first try."""
    made = model(4)
    wanted = [ask(9, 6, SAMPLED, n=2, seed=3, top=1, score_prompt=True), ask(12, 4, PENALIZED, seed=1)]
    engine, results = Engine(made, TOKENIZER, step_tokens=step_tokens), {}
    for request in wanted:
        engine.add(request)
    plain, calls, failures = made.logits, 0, 0

    def logits(hidden_NC):
        nonlocal calls
        calls += 1
        if calls == failing + 1:
            raise MemoryError
        return plain(hidden_NC)

    monkeypatch.setattr(made, "logits", logits)
    while engine.unfinished:
        try:
            deltas = engine.step()
        except MemoryError:
            failures += 1
            continue
        for delta in deltas:
            results.setdefault(delta.key, Result()).take(delta)
    monkeypatch.undo()
    assert failures == (calls > failing)
    assert sorted(results) == [(0, 0), (0, 1), (1, 0)]
    for (number, sample), result in results.items():
        same_as_alone(result, wanted[number], sample)


@pytest.mark.parametrize("name", ["copy", "step"])
@pytest.mark.parametrize("failing", range(4))
def test_memory_that_runs_out_in_a_step_leaves_the_engine_whole(monkeypatch, name, failing):
    """The n-th call of a kind fails, as where the system has less than was planned with."""
    engine = Engine(model(4), TOKENIZER, block=4)
    wanted = [ask((*ids(20), 5 + i), 6, SAMPLED, seed=i, n=1 + i % 2) for i in range(4)]
    results, calls, failures = {}, 0, 0
    plain_method = getattr(KVPool, name)

    def method(*args):
        nonlocal calls
        calls += 1
        if calls == failing + 1:
            raise RuntimeError("not enough memory: you tried to allocate")
        return plain_method(*args)

    monkeypatch.setattr(KVPool, name, method)
    for request in wanted:
        engine.add(request)
    while engine.unfinished:
        try:
            deltas = engine.step()
        except RuntimeError:
            assert engine.planned <= set(range(4))
            failures, deltas = failures + 1, []
        conserved(engine)
        for delta in deltas:
            results.setdefault(delta.key, Result()).take(delta)
    monkeypatch.undo()
    assert calls > 1
    assert failures == (calls > failing)
    assert sorted(results) == [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0), (3, 1)]
    for (i, sample), result in results.items():
        same_as_alone(result, wanted[i], sample)
