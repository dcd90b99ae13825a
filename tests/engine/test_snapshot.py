"""Laws of a snapshot: its gauges are what the engine holds, its counters add up to what requests got."""

from __future__ import annotations

import pytest
import torch
from engine_requests import PENALIZED, SAMPLED, TOKENIZER, alone, ask, build, conserved, ids, model, run
from tiny_llama import tiny_model

from llama.engine import Engine, FinishReason


def counters(engine):
    snapshot = engine.snapshot()._asdict()
    return {name: snapshot[name] for name in ("finished", "cancelled", "failed", "waiting", "running")}


@pytest.mark.parametrize("cache_tokens", [None, 60])
def test_counters_add_up_to_what_the_requests_got(cache_tokens):
    """With 60 positions some sequences are preempted; what they compute again does not count again."""
    shared = ids(20, 3)
    requests = [
        ask(shared, 20, SAMPLED, seed=i, n=1 + i % 3, stop=("e",), score_prompt=i == 2) for i in range(5)
    ]
    guess = alone(ask(shared, 24)).sequence.output
    requests += [ask(shared, 24, prediction=(*guess[:9], 5, *guess[10:]))]
    requests += [ask(ids(7, 4), 16, PENALIZED), ask(5, 0, n=2)]
    engine = build(4, {"cache_tokens": cache_tokens, "step_tokens": 16, "reserve_tokens": 0, "block": 16})
    results = run(engine, requests)
    snapshot = engine.snapshot()
    assert snapshot.generated_tokens == sum(len(result.sequence.output) for result in results.values())
    assert counters(engine) == {"finished": 8, "cancelled": 0, "failed": 0, "waiting": 0, "running": 0}
    assert snapshot.preemptions == engine.scheduler.preemptions
    assert bool(snapshot.preemptions) == (cache_tokens is not None)
    assert 0 < snapshot.accepted_tokens < snapshot.drafted_tokens
    assert 0 < snapshot.reused_tokens < snapshot.prompt_tokens
    if cache_tokens is None:  # all samples of a prompt then begin together, and share its prefill
        assert snapshot.prompt_tokens == sum(len(request.prompt) for request in requests[:-1])
        first = [results[i, 0].sequence.counts for i in range(7)]
        assert snapshot.reused_tokens == sum(counts.reused for counts in first)
    assert snapshot.cache_used == 0 < snapshot.cache_retained
    assert snapshot.cache_tokens == engine.cache_tokens


def test_gauges_are_what_runs_waits_and_is_paused():
    engine = Engine(model(4), TOKENIZER, speculate=False)
    first, *others = [engine.add(ask(ids(6, i), 30, n=2)) for i in range(5)]
    assert counters(engine)["waiting"] == 5
    engine.step()
    conserved(engine)
    snapshot = engine.snapshot()
    assert (snapshot.running, snapshot.waiting, snapshot.paused) == (4, 3, 0)
    assert snapshot.prompt_tokens == 12
    engine.pause(others[-1])
    engine.pause(first)
    snapshot = engine.snapshot()
    assert (snapshot.running, snapshot.waiting, snapshot.paused) == (4, 3, 3)
    engine.cancel(others[-1])
    engine.cancel(first)
    assert counters(engine) == {"finished": 0, "cancelled": 2, "failed": 0, "waiting": 2, "running": 2}
    engine.step()
    conserved(engine)
    assert counters(engine)["running"] == 4
    while engine.unfinished:
        engine.step()
    assert counters(engine) == {"finished": 3, "cancelled": 2, "failed": 0, "waiting": 0, "running": 0}


def test_the_counters_of_a_snapshot_are_those_of_the_engine_by_name():
    engine = Engine(model(4), TOKENIZER)
    values = dict(zip(vars(engine.counters), range(100), strict=False))
    vars(engine.counters).update(values)
    assert values.items() <= engine.snapshot()._asdict().items()


def test_a_preempted_request_does_not_wait_to_begin():
    engine = build(4, {"cache_tokens": 48, "reserve_tokens": 0, "prefix_reuse": False})
    for i in range(2):
        engine.add(ask(ids(8, i), 30))
    for _ in range(30):
        engine.step()
        if engine.scheduler.preemptions:
            break
    assert engine.scheduler.waiting == 1
    assert engine.snapshot().waiting == 0


def test_a_request_whose_logits_are_not_finite_has_failed():
    made = tiny_model()
    made.tok_embeddings.weight.data[7] = torch.nan
    engine = Engine(made, TOKENIZER)
    engine.add(ask((1, 7), 4))
    (delta,) = engine.step()
    assert delta.finish_reason is FinishReason.ERROR
    assert counters(engine) == {"finished": 0, "cancelled": 0, "failed": 1, "waiting": 0, "running": 0}
