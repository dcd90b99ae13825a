"""What no step could run is refused at once, with the numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_requests import TOKENIZER, ask, model
from tiny_llama import tiny_model
from tiny_tokenizers import tiny_tokenizer

from llama.engine import Engine, Request
from llama.errors import ConfigError, PromptError, PromptTooLongError, RequestError
from llama.sampling import SamplingParams


@pytest.mark.parametrize("tokens", [0, -5, 32.0, "64", True])
def test_a_cache_has_room_for_something(tokens):
    with pytest.raises(ConfigError, match=f"cache_tokens is {tokens!r}; it must be an integer of at least 1"):
        Engine(model(2), TOKENIZER, cache_tokens=tokens)


def test_bad_requests_are_refused_with_the_numbers():
    engine = Engine(model(2), TOKENIZER)
    vocab = TOKENIZER.n_words
    with pytest.raises(PromptError, match="no tokens"):
        engine.add(ask((), 1))
    for bad in (-1, vocab, vocab + 7):
        with pytest.raises(PromptError, match=f"id {bad}, .* 0 to {vocab - 1}"):
            engine.add(ask((1, bad), 1))
    with pytest.raises(PromptTooLongError, match=r"60 tokens and 5 more .* max_seq_len is 64"):
        engine.add(ask(60, 5))
    with pytest.raises(RequestError, match="n is 0; it must be an integer of at least 1"):
        engine.add(ask(5, 5, n=0))
    assert not engine.unfinished
    engine.add(ask(60, 4))


@pytest.mark.parametrize("alternatives", [437, 10**6])
def test_more_alternatives_than_ids_are_refused(alternatives):
    with pytest.raises(RequestError, match=f"{alternatives}.*{TOKENIZER.n_words}"):
        Engine(model(2), TOKENIZER).add(ask(5, 5, top=alternatives))


def test_a_bias_of_an_id_that_the_vocabulary_lacks_is_refused():
    vocab = TOKENIZER.n_words
    engine = Engine(model(2), TOKENIZER)
    with pytest.raises(RequestError, match=f"logit_bias has id {vocab}, .* 0 to {vocab - 1}"):
        engine.add(ask(5, 5, SamplingParams(logit_bias={3: 1.0, vocab: 1.0})))
    engine.add(ask(5, 5, SamplingParams(logit_bias={0: 1.0, vocab - 1: 1.0})))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", True),
        ("max_new_tokens", -3),
        ("seed", -1),
        ("seed", 1.5),
        ("top", -1),
        ("first_sample", -1),
        ("prompt", (1, 5.0, 7)),
        ("prediction", (1, "x")),
        ("stop_ids", frozenset({None})),
        ("stop", ("",)),
        ("stop", (3,)),
        ("stop", "ab"),
        ("stop", 5),
        ("stop_ids", None),
        ("prompt", None),
        ("prediction", "abc"),
        ("sampling", None),
    ],
)
def test_a_request_that_no_step_could_run_is_refused_at_once(field: str, value: object) -> None:
    """What is built by hand, past the checks of `Llama`: it must not reach the step of its neighbours."""
    engine = Engine(tiny_model(max_batch_size=4), tiny_tokenizer())
    good = Request((1, 5, 7), 3, SamplingParams(temperature=0.0))
    with pytest.raises(RequestError, match=field):
        engine.add(replace(good, **{field: value}))
    assert not engine.unfinished
    engine.add(good)
    while engine.unfinished:
        engine.step()
