"""An engine whose model has int8 caches: what holds for others holds for it, and its memory is counted as it is."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from engine_requests import SAMPLED, TOKENIZER, Result, ask, conserved, ids, run
from tiny_models import SHAPE, random_weights

from llama.engine import Engine, FinishReason
from llama.errors import NumericsError
from llama.model import ModelArgs, Transformer
from llama.sizing.budget import cache_bytes_per_token

# Heads of 32 numbers. Without and with kernels for whole layers.
WIDE = {**SHAPE, "dim": 128, "n_heads": 4}


@functools.cache
def model() -> Transformer:
    params = {**WIDE, "vocab_size": TOKENIZER.n_words}
    made = Transformer(ModelArgs.from_params(params, max_seq_len=128, max_batch_size=4), cache_dtype="int8")
    for name, weight in random_weights(WIDE, TOKENIZER.n_words).items():
        made.get_submodule(name.rpartition(".")[0]).assign(weight)
    return made.eval()


def wanted():
    """Prompts that begin alike, several samples of one, some that repeat themselves for the drafts."""
    header = ids(40)
    return [
        ask((*header, 5, 6, 7), 12),
        ask((*header, 8), 12, SAMPLED, n=3),
        ask(ids(20, seed=4) * 3, 16),
        ask(ids(7, seed=5), 9, SAMPLED),
        ask((*header, 5, 6, 7), 5, score_prompt=True),
    ]


@functools.cache
def alone():
    plain = {"prefix_reuse": False, "speculate": False}
    return [run(Engine(model(), TOKENIZER, **plain), [request]) for request in wanted()]


@pytest.mark.parametrize(
    "setup",
    [
        {},
        {"step_tokens": 7, "block": 4},
        {"prefix_reuse": False},
        {"speculate": False, "block": 4},
        {"cache_tokens": 160, "block": 4},
    ],
    ids=str,
)
def test_requests_together_are_each_request_alone(setup):
    """In any chunks, with what is reused, copied, forked and drafted, and where memory is short."""
    engine = Engine(model(), TOKENIZER, **setup)
    for _ in range(2):  # the second time all prompts are there
        found = run(engine, wanted())
        for (number, sample), result in found.items():
            expected = alone()[number][0, sample]
            assert result.whole == expected.whole
            for mine, theirs in zip(result.scores, expected.scores, strict=True):
                assert [each.logprob for each in mine] == pytest.approx(
                    [each.logprob for each in theirs], abs=5e-3
                )
        conserved(engine)


def test_it_is_another_model_than_with_floats():
    """Near, but not the same: a test above would pass if int8 were ignored."""
    (first,) = run(Engine(model(), TOKENIZER), [ask(60, 0, score_prompt=True)]).values()
    floats = Transformer(model().params)
    floats.load_state_dict(model().state_dict())
    (other,) = run(Engine(floats, TOKENIZER), [ask(60, 0, score_prompt=True)]).values()
    off = [abs(a.logprob - b.logprob) for a, b in zip(first.prompt_scores, other.prompt_scores, strict=True)]
    assert 1e-3 < sum(off) / len(off) < 0.2


def test_memory_is_what_the_plan_counts():
    engine = Engine(model(), TOKENIZER, block=4)
    per_token = cache_bytes_per_token(model().params, 1, "int8")
    assert per_token == 2 * 2 * 2 * 34  # keys and values, layers, heads, a block of 32 numbers
    # Block 0 takes padding.
    assert engine.memory.pool.nbytes == (engine.cache_tokens + 4) * per_token


def test_a_request_that_is_not_finite_ends_alone():
    """Its keys and values become NaN in its own cache, and nobody else reads them."""
    embedding = model().tok_embeddings.weight
    engine, before = Engine(model(), TOKENIZER), embedding[9].clone()
    good, bad = ask(ids(12, seed=7), 6), ask((1, 9, 10), 6)
    assert 9 not in good.prompt
    expected = run(Engine(model(), TOKENIZER), [good])[0, 0].whole
    assert 9 not in expected[0]
    results = {}
    try:
        with torch.no_grad():
            embedding[9] = torch.inf
        numbers = [engine.add(request) for request in (good, bad)]
        for _ in itertools.takewhile(lambda _: engine.unfinished, range(50)):
            for delta in engine.step():
                results.setdefault(delta.key[0], Result()).take(delta)
    finally:
        with torch.no_grad():
            embedding[9] = before
    assert results[numbers[0]].whole == expected
    assert results[numbers[1]].reason == FinishReason.ERROR
    assert isinstance(results[numbers[1]].sequence.error, NumericsError)
