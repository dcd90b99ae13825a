"""What a decode step does for each sequence, counted without a clock: no more than deciding a token takes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from engine_requests import SAMPLED, TOKENIZER, alone, ask, ids, model

import llama.engine
from llama.engine import Engine, Feed
from llama.engine.cache_manager import CacheManager
from llama.engine.prefix_cache import PrefixCache
from llama.sampling import GREEDY


def decoding(batch, sampling=GREEDY):
    """An engine all of whose sequences decode, in the middle of a block."""
    engine = Engine(model(64, 256), TOKENIZER, speculate=False, step_tokens=40 * batch)
    for i in range(batch):
        engine.add(ask(ids(40, i), 60, sampling, seed=i))
    for _ in range(5):
        engine.step()
    assert [sequence.computed for sequence in engine.scheduler.running] == [44] * batch
    return engine


def calls(engine):
    """Calls of the engine's own functions in Python in a step."""
    found, folder = 0, str(Path(llama.engine.__file__).parent)

    def count(frame, event, argument):
        nonlocal found
        found += event == "call" and frame.f_code.co_filename.startswith(folder)

    sys.setprofile(count)
    try:
        engine.step()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_one_more_sequence_is_few_more_calls(sampling):
    """15 and 17 with Python 3.11, where a comprehension is a call. They were 37 and 38."""
    few, many = (calls(decoding(batch, sampling)) for batch in (4, 44))
    assert many - few <= 40 * 20


def test_a_sequence_that_needs_no_block_and_fills_none_asks_neither_pool_nor_tree(monkeypatch):
    engine = decoding(8)
    asked = []
    for owner, name in ((CacheManager, "grow"), (CacheManager, "lacks"), (PrefixCache, "follow")):
        monkeypatch.setattr(owner, name, lambda *_, name=name: asked.append(name))
    engine.step()
    assert asked == []


def test_a_reader_of_whole_samples_is_told_of_each_once_when_it_has_ended():
    """Beside a reader of every step, who gets the same."""
    engine, whole, every = Engine(model(), TOKENIZER), Feed(ended_only=True), Feed()
    requests = [ask(9, 12, SAMPLED, n=2, seed=1), ask(5, 4)]
    for feed in (whole, every):
        for request in requests:
            engine.enqueue(request, feed)
    told = {whole: [], every: []}
    while engine.unfinished:
        engine.step()
        for feed, deltas in told.items():
            deltas += engine.read(feed)
    assert len(told[every]) > len(told[whole]) == 3
    for delta in told[whole]:
        assert delta.finish_reason is not None
        assert (list(delta.tokens), list(delta.scores)) == (delta.sequence.output, delta.sequence.scores)
        assert delta.text == "".join(delta.sequence.text)
        expected = alone(delta.sequence.request, delta.sequence.sample).sequence
        assert delta.sequence.output == expected.output
