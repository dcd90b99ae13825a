"""Laws of `stream`: its deltas come as they are made and join to the blocking call's text; leaving it frees all."""

from __future__ import annotations

import dataclasses

import pytest
from api_calls import LIMIT, NEVER, PROMPTS, TOKENIZER, other
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import tiny_llama

from llama import Llama
from llama.errors import PromptTooLongError, RequestError
from llama.prompts import Prompt, infilling_prompt


@settings(deadline=None, derandomize=True, max_examples=15)
@given(
    st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=6),
    st.integers(0, 14),
    st.integers(1, 5),
    st.sampled_from([(), ("e",), (" a", "re")]),
)
def test_joined_deltas_are_the_generation(prompts, max_gen_len, n, stop):
    options = {"temperature": 1.2, "max_gen_len": max_gen_len, "seed": 3, "n": n, "stop": stop}
    texts, reasons = {}, {}
    for delta in other().stream(prompts, **options):
        key = delta.index, delta.sample
        assert key not in reasons
        texts[key] = texts.get(key, "") + delta.text
        if delta.finish_reason is not None:
            reasons[key] = delta.finish_reason
    wanted = other().text_completion(prompts, **options)
    keys = [(i, j) for i in range(len(prompts)) for j in range(n)]
    assert [{"generation": texts[key], "finish_reason": reasons[key]} for key in keys] == wanted


def test_deltas_come_as_they_are_made(llama):
    """A delta for each token, not all at the end; prompts of other formats too."""
    prompt = infilling_prompt(TOKENIZER, "a", "b")
    free = Prompt(prompt.tokens, frozenset(), start_of_text=False)
    deltas = list(llama.stream([free, "x"], 0, max_gen_len=10, stop_ids=[NEVER]))
    first = [delta for delta in deltas if delta.index == 0]
    assert len(first) == 10
    assert [delta.finish_reason for delta in first] == [None] * 9 + ["length"]
    assert "".join(delta.text for delta in first[:5])


def test_each_delta_has_its_ids_and_scores(llama):
    """No id comes before its text; joined they are what `generate` returns, with its log-probabilities."""
    prompts, options = ["a b", "def return"], {"temperature": 1.2, "max_gen_len": 12, "seed": 3, "n": 2}
    given = [llama.tokenizer.encode(prompt, bos=True, eos=False) for prompt in prompts]
    tokens, logs = llama.generate(given, 12, 1.2, logprobs=True, seed=3, n=2)
    ids, scores, text = [[] for _ in range(4)], [[] for _ in range(4)], [""] * 4
    for delta in llama.stream(prompts, **options):
        row = 2 * delta.index + delta.sample
        ids[row] += delta.tokens
        scores[row] += [score.logprob for score in delta.scores]
        text[row] += delta.text
        assert text[row].startswith(llama.tokenizer.decode_infilling(ids[row]))
    assert ids == tokens
    for mine, theirs in zip(scores, logs, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


def test_alternatives_of_a_stream_are_as_many_as_asked_for(llama):
    for delta in llama.stream(["a b"], 0, max_gen_len=4, logprobs=3):
        assert all(len(score.top) == 3 for score in delta.scores)
        assert [score.top[0][0] for score in delta.scores] == list(delta.tokens)


@pytest.mark.parametrize(
    ("logprobs", "echo", "top", "scored"),
    [(False, False, 0, False), (False, True, 0, False), (True, True, 0, True), (4, False, 4, False)],
)
def test_requests_ask_for_the_scores_of_the_call(llama, logprobs, echo, top, scored):
    asked = llama.requests(["a b", "def"], 0, max_gen_len=3, logprobs=logprobs, echo=echo)
    assert [(each.top, each.score_prompt) for each in asked] == [(top, scored)] * 2
    silent = llama.requests(["a b", "def"], 0, max_gen_len=3)
    assert [dataclasses.replace(each, top=0, score_prompt=False) for each in asked] == silent


def test_requests_are_cut_to_the_room_that_the_prompt_leaves(llama):
    (asked,) = llama.requests(["a b"], 0, max_gen_len=10**9)
    assert asked.longest == llama.model.params.max_seq_len
    full = Prompt(tuple(range(3, 3 + LIMIT)), frozenset(), start_of_text=False)
    with pytest.raises(PromptTooLongError, match=f"{LIMIT} tokens"):
        llama.requests([full], 0, max_gen_len=1)


def test_the_last_delta_of_a_stream_has_counts_and_times(llama: Llama) -> None:
    *before, last = llama.stream(["def return self"], temperature=0, max_gen_len=8)
    assert all(delta.counts is None for delta in before)
    assert last.counts is not None
    assert last.times is not None
    assert last.counts.prompt == len(llama.tokenizer.encode("def return self", bos=True, eos=False))
    assert last.counts.generated == 8
    waited, first, total = last.times.waited, last.times.to_first_token, last.times.total
    assert waited is not None
    assert first is not None
    assert total is not None
    assert 0 <= waited <= first <= total


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_leaving_a_stream_early_frees_the_engine(llama, taken):
    stream = llama.stream(["a", "b", "c", "d", "e", "f"], 0, max_gen_len=50, n=2)
    for _ in range(taken):
        next(stream)
    stream.close()
    assert not llama.engine.unfinished
    assert llama.text_completion(["a"], 0, max_gen_len=5) == other().text_completion(["a"], 0, max_gen_len=5)


def test_an_error_in_the_loop_frees_the_engine(llama):
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        for _ in llama.stream(["a", "b"], 0, max_gen_len=50):
            1 / 0  # noqa: B018
    assert not llama.engine.unfinished


def test_a_call_while_a_stream_is_open():
    """As in a notebook: neither sees the other."""
    llama = tiny_llama()
    wanted = "".join(delta.text for delta in llama.stream(["a b"], 0, max_gen_len=10))
    call = llama.text_completion(["def"], 0, max_gen_len=20)
    text = ""
    for i, delta in enumerate(llama.stream(["a b"], 0, max_gen_len=10)):
        text += delta.text
        if i == 2:
            assert llama.text_completion(["def"], 0, max_gen_len=20) == call
    assert text == wanted


def test_two_streams_side_by_side():
    llama = tiny_llama()
    texts = [["a b"], ["def return"]]
    wanted = ["".join(delta.text for delta in llama.stream(text, 0, max_gen_len=10)) for text in texts]
    streams = [llama.stream(text, 0, max_gen_len=10) for text in texts]
    got = ["", ""]
    while streams[0] or streams[1]:
        for i, stream in enumerate(streams):
            delta = next(stream, None) if stream else None
            got[i] += delta.text if delta else ""
            streams[i] = stream if delta else None
    assert got == wanted


def test_bad_input_raises_at_the_call_of_stream(llama):
    for call in (
        lambda: llama.stream([]),
        lambda: llama.stream("a"),
        lambda: llama.stream(["a"], temperature=-1),
        lambda: llama.stream([5]),
        lambda: llama.stream(["a"] * 2, seed=[1]),
        lambda: llama.stream(["a " * 500]),
    ):
        with pytest.raises(RequestError):
            call()


def test_what_stream_refuses_it_refuses_at_once(llama):
    with pytest.raises(PromptTooLongError):
        llama.stream(["a " * 5000], max_gen_len=1)
