"""Before `min_new_tokens` nothing ends a sequence but its limit; from then on all does as without it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from engine_requests import GREEDY, SAMPLED, TOKENIZER, alone, ask, ids, model, run, texty
from tiny_llama import twin_logits

from llama.engine import Engine, FinishReason
from llama.errors import RequestError
from llama.sampling import SamplingParams

STOPS = frozenset(range(0, 430, 3))


@pytest.mark.parametrize("least", [1, 5, 12])
def test_no_stop_id_is_drawn_before_and_the_first_one_ends_behind(least):
    result = alone(ask(8, 40, stop_ids=STOPS, min_new_tokens=least))
    output = result.sequence.output
    assert least <= len(output)
    logits = twin_logits([*ids(8), *output], "fused")
    for position, token in enumerate(output):
        row = logits[7 + position].clone()
        if position < least:
            row[sorted(STOPS & set(range(len(row))))] = -torch.inf
        assert int(row.argmax()) == token
    if result.reason is FinishReason.STOP:
        assert int(logits[7 + len(output)].argmax()) in STOPS
    assert not set(output) & STOPS


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_as_many_as_the_limit_is_exactly_the_limit(sampling):
    stop = (" ", "e", "a", "\n")
    for new in (1, 7, 20):
        for least in (new, new + 5):
            request = ask(8, new, sampling, stop_ids=STOPS, stop=stop, min_new_tokens=least, seed=4, n=2)
            for result in run(Engine(model(4), TOKENIZER), [request]).values():
                assert len(result.sequence.output) == new
                assert result.reason is FinishReason.LENGTH


@pytest.mark.parametrize("seed", range(4))
def test_stop_strings_are_found_in_the_text_behind_the_first_tokens(seed):
    request = ask(ids(6, seed), 24, SAMPLED, seed=seed)
    free = run(Engine(texty(), TOKENIZER), [request])[0, 0]
    text, tokens = free.text, free.sequence.output
    cases = []
    for least in range(0, 24, 5):
        before = len(TOKENIZER.decode_infilling(tokens[:least]))
        # In both parts, astride of the border, and only in front of it.
        stops = (text[2:4], text[before - 1 : before + 1], text[-3:], text[:before])
        cases += [(stop, least, before) for stop in stops if stop]
    # Together, which is a third of the steps.
    asked = [dataclasses.replace(request, stop=(stop,), min_new_tokens=least) for stop, least, _ in cases]
    results = run(Engine(texty(), TOKENIZER), asked)
    for at, (stop, _, before) in enumerate(cases):
        found, cut = results[at, 0], text.find(stop, before)
        assert found.text == (text if cut < 0 else text[:cut])
        assert found.reason is (FinishReason.LENGTH if cut < 0 else FinishReason.STOP_SEQUENCE)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_drafts_change_nothing_also_where_they_hold_a_stop_id(sampling):
    request = ask(9, 30, sampling, stop_ids=STOPS, min_new_tokens=17, seed=2)
    free = alone(request)
    unbound = alone(ask(9, 30, sampling, seed=2)).sequence.output
    assert STOPS & set(unbound[:17])
    for guess in (free.sequence.output, unbound):
        drafted = dataclasses.replace(request, prediction=tuple(guess))
        assert run(Engine(model(4), TOKENIZER), [drafted])[0, 0].whole == free.whole


def test_scores_stay_the_models_own():
    """A banned id may be the best alternative, with its own log-probability."""
    free = alone(ask(8, 1)).sequence.output[0]
    result = alone(ask(8, 1, stop_ids=frozenset({free}), min_new_tokens=1, top=1))
    logs = torch.log_softmax(twin_logits(ids(8), "fused").double(), dim=-1)[-1]
    (score,) = result.sequence.scores
    assert score.top[0][0] == free
    assert score.logprob == pytest.approx(float(logs[result.sequence.output[0]]), abs=2e-3)


def test_bad_numbers_and_a_vocabulary_of_stop_ids_are_refused():
    engine = Engine(model(2), TOKENIZER)
    with pytest.raises(RequestError, match="min_new_tokens is -1"):
        engine.add(ask(5, 5, min_new_tokens=-1))
    everything = frozenset(range(TOKENIZER.n_words))
    with pytest.raises(RequestError, match=f"all {TOKENIZER.n_words} ids"):
        engine.add(ask(5, 5, stop_ids=everything, min_new_tokens=1))
    all_but_one = ask(5, 5, SamplingParams(1.0, 1.0), stop_ids=everything - {77}, min_new_tokens=5)
    assert alone(all_but_one).sequence.output == [77] * 5
