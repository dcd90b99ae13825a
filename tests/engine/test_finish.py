"""How a sequence ends: stop ids, stop strings, the limit of tokens, or with nothing to do."""

from __future__ import annotations

import pytest
from engine_requests import GREEDY, SAMPLED, TOKENIZER, alone, ask, ids, model, run, texty
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llama.engine import Engine, FinishReason


def test_a_stop_id_ends_and_is_not_returned():
    free = alone(ask(8, 12)).sequence.output
    for position in range(1, 12):
        if free[position] in free[:position]:
            continue
        result = alone(ask(8, 12, stop_ids=frozenset({free[position]})))
        assert result.sequence.output == free[:position]
        assert result.text == TOKENIZER.decode_infilling(free[:position])
        assert result.reason is FinishReason.STOP
        assert len(result.sequence.scores) == position


def test_the_limit_ends():
    free = alone(ask(8, 12))
    assert free.reason is FinishReason.LENGTH
    for new in range(12):
        result = alone(ask(8, new))
        assert result.sequence.output == free.sequence.output[:new]
        assert result.reason is FinishReason.LENGTH
        assert len(result.sequence.scores) == new


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(0, 30), st.sampled_from([GREEDY, SAMPLED]), st.integers(1, 24), st.data())
def test_stop_strings_are_a_naive_find_in_the_text_of_the_unstopped_run(seed, sampling, new, data):
    free = run(Engine(texty(), TOKENIZER), [ask(ids(6, seed), new, sampling, seed=seed)])[0, 0]
    text, tokens = free.text, free.sequence.output
    assume(len(text) > 2)

    def piece():
        start = data.draw(st.integers(0, len(text) - 1))
        return text[start : start + data.draw(st.integers(1, 9))]

    stop = tuple(piece() for _ in range(data.draw(st.integers(1, 3)))) + data.draw(
        st.sampled_from([(), ("not in there",), (text[-1] + "?",), (text[-3:] + text,)])
    )
    result = run(Engine(texty(), TOKENIZER), [ask(ids(6, seed), new, sampling, seed=seed, stop=stop)])[0, 0]
    cut = min(text.find(s) for s in stop if s in text)
    assert result.text == text[:cut]
    assert result.reason is FinishReason.STOP_SEQUENCE
    # Kept are the tokens whose text ends at or before the cut.
    ends = [len(TOKENIZER.decode_infilling(tokens[: k + 1])) for k in range(len(tokens))]
    assert result.sequence.output == tokens[: sum(end <= cut for end in ends)]
    assert len(result.sequence.scores) == len(result.sequence.output)


def test_text_held_back_for_a_stop_string_that_never_comes_is_given_at_the_end():
    free = run(Engine(texty(), TOKENIZER), [ask(6, 10)])[0, 0]
    for stop in ((free.text[-4:] + "~",), (free.text + "~",), (free.text[3:] + "~", free.text[-1:] + "~")):
        result = run(Engine(texty(), TOKENIZER), [ask(6, 10, stop=stop)])[0, 0]
        assert result.whole == free.whole


def test_a_stop_string_in_what_a_stop_id_releases_counts():
    """The text that ended with the stop id is looked through like any other."""
    free = run(Engine(texty(), TOKENIZER), [ask(6, 10)])[0, 0]
    tokens = free.sequence.output
    position = next(k for k in range(3, 10) if tokens[k] not in tokens[:k])
    before = TOKENIZER.decode_infilling(tokens[:position])
    cases = {(before[-2:],): (before[: before.find(before[-2:])], FinishReason.STOP_SEQUENCE)}
    cases[before[-2:] + "~", "nowhere"] = (before, FinishReason.STOP)
    for stop, (text, reason) in cases.items():
        request = ask(6, 10, stop=stop, stop_ids=frozenset({tokens[position]}))
        result = run(Engine(texty(), TOKENIZER), [request])[0, 0]
        assert (result.text, result.reason) == (text, reason)


@pytest.mark.parametrize("score_prompt", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_no_new_token_is_asked_for(n, score_prompt):
    request = ask(9, 0, n=n, score_prompt=score_prompt, top=2)
    results = run(Engine(model(4), TOKENIZER), [request])
    for result in results.values():
        assert result.whole == ([], "", FinishReason.LENGTH)
        assert result.sequence.scores == []
        assert len(result.sequence.prompt_scores) == (8 if score_prompt else 0)


@pytest.mark.parametrize("n", [1, 3])
def test_a_prompt_that_is_only_scored_may_fill_the_cache(n):
    engine = Engine(model(4), TOKENIZER, cache_tokens=8, block=4)
    request = ask(8, 0, n=n, score_prompt=True)
    assert [wave.n for wave in engine.waves(request)] == [1] * n
    results = run(engine, [request])
    assert [len(results[0, sample].sequence.prompt_scores) for sample in range(n)] == [7] * n


def test_no_new_token_and_no_scores_run_no_model(monkeypatch):
    monkeypatch.setattr(model(4), "hidden", lambda *_: pytest.fail("the model was run"))
    run(Engine(model(4), TOKENIZER), [ask(9, 0, n=2)])


def test_cancel_also_drops_what_had_nothing_to_do():
    engine = Engine(model(4), TOKENIZER)
    gone, kept = engine.add(ask(9, 0)), engine.add(ask(9, 0))
    engine.cancel(gone)
    assert [delta.key[0] for delta in engine.step()] == [kept]
    assert not engine.unfinished
    engine.cancel(kept)
    engine.cancel(12345)
