"""Prompts of the llama.cpp routes: mixed parts, and the window around a cursor, without a server."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import tiny_llama
from tiny_tokenizers import tiny_tokenizer

from llama.prompts import completion_prompt, infilling_prompt
from llama.serving.http.bodies import parse
from llama.serving.http.llamacpp.bodies import LlamaCppCompletionBody, LlamaCppInfillBody, sampling
from llama.serving.http.llamacpp.prompts import (
    completion_prompts,
    head_that_fits,
    infill_window,
    tail_that_fits,
)
from llama.serving.http.problems import Problem
from llama.serving.http.service import Service
from llama.serving.http.settings import Settings

CONTEXT = 96
TEXT = st.lists(
    st.sampled_from(["def", " return", "\n", "    ", "x", "漢字", "ü", " value", "(", "</s>", " <MID>", "▁"]),
    max_size=60,
).map("".join)


@pytest.fixture(scope="module")
def service() -> Service:
    return Service(tiny_llama(max_seq_len=CONTEXT), None, Settings("tiny"))


def window(service: Service, **fields: object):
    return infill_window(service, parse(LlamaCppInfillBody, fields))


@settings(max_examples=200)
@given(
    before=TEXT,
    line=TEXT,
    after=TEXT,
    extra=st.lists(TEXT, max_size=4),
    n_predict=st.sampled_from([-1, 0, 8, 64, 999]),
)
def test_a_window_is_a_tail_and_a_head_that_fit(
    service: Service, before: str, line: str, after: str, extra: list[str], n_predict: int
) -> None:
    found = window(
        service,
        input_prefix=before,
        prompt=line,
        input_suffix=after,
        input_extra=[{"text": text, "time": [1, 2], "filename": "f"} for text in extra],
        n_predict=n_predict,
    )
    head = "".join(text if text.endswith("\n") else text + "\n" for text in extra)
    assert (head + before + line).endswith(found.prefix)
    assert after.startswith(found.suffix)
    length = len(infilling_prompt(service.tokenizer, found.prefix, found.suffix).tokens)
    whole = len(infilling_prompt(service.tokenizer, head + before + line, after).tokens)
    assert length < CONTEXT
    # An answer of any length may be short; one of a given length has that room, or a quarter of the context.
    assert found.truncated == (whole + max(1, min(n_predict, CONTEXT // 4)) > CONTEXT)
    if not found.truncated:
        assert (found.prefix, found.suffix) == (head + before + line, after)


def test_the_oldest_chunks_go_first(service: Service) -> None:
    chunks = [
        {"text": f"return {name} value list index print range class import none true false\n"}
        for name in "abcdefgh"
    ]
    found = window(service, input_prefix="def", input_suffix="x", input_extra=chunks, n_predict=4)
    kept = found.prefix.removesuffix("def").splitlines(keepends=True)
    assert found.truncated
    assert 0 < len(kept) < 8
    assert kept == [chunk["text"] for chunk in chunks[-len(kept) :]]


def test_around_the_cursor_three_parts_are_prefix_and_one_is_suffix(service: Service) -> None:
    found = window(service, input_prefix="x = (\n" * 200, input_suffix="y = (\n" * 200, n_predict=24)
    tokenizer = service.tokenizer
    before = len(tokenizer.encode(found.prefix, bos=False, eos=False))
    after = len(tokenizer.encode_infilling(found.suffix))
    assert CONTEXT - 24 - 6 <= before + after + 4 <= CONTEXT - 24
    assert 2.5 < before / after < 3.5


def test_a_short_suffix_leaves_its_room_to_the_prefix(service: Service) -> None:
    found = window(service, input_prefix="x = (\n" * 200, input_suffix=")", n_predict=24)
    assert found.suffix == ")"
    assert len(infilling_prompt(service.tokenizer, *found[:2]).tokens) > CONTEXT - 24 - 6


@given(text=TEXT, most=st.integers(0, 40))
def test_cut_texts_have_nearly_as_many_ids_as_they_may(service: Service, text: str, most: int) -> None:
    tokenizer = service.tokenizer
    tail, head = tail_that_fits(tokenizer, text, most), head_that_fits(tokenizer, text, most)
    assert text.endswith(tail)
    assert text.startswith(head)
    sizes = len(tokenizer.encode(tail, bos=False, eos=False)), len(tokenizer.encode_infilling(head))
    assert max(sizes) <= most
    if tail != text:
        assert sizes[0] > most - 12
    if head != text:
        assert sizes[1] > most - 12


def test_prompts_may_be_texts_ids_and_both(service: Service) -> None:
    tokenizer = service.tokenizer

    def tokens(prompt: object) -> list[tuple[int, ...]]:
        return [
            each.tokens
            for each in completion_prompts(service, parse(LlamaCppCompletionBody, {"prompt": prompt}))
        ]

    text = completion_prompt(tokenizer, "def x").tokens
    assert tokens("def x") == tokens(["def x"]) == [text]
    assert tokens([5, 6.0]) == [(5, 6)]
    assert tokens(["def x", 5, "y"]) == [(*text, 5, *tokenizer.encode_infilling("y"))]
    assert tokens([5, "y"]) == [(5, *tokenizer.encode_infilling("y"))]
    assert tokens(["def x", [5, 6], [7, "y"]]) == [text, (5, 6), (7, *tokenizer.encode_infilling("y"))]


def test_ids_of_an_infilling_prompt_stop_where_infilling_does(service: Service) -> None:
    prompt = infilling_prompt(service.tokenizer, "a", "b")
    (made,) = completion_prompts(service, parse(LlamaCppCompletionBody, {"prompt": list(prompt.tokens)}))
    assert (made.tokens, made.stop_ids & prompt.stop_ids) == (prompt.tokens, prompt.stop_ids)


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ([], "prompt"),
        ([[]], "prompt.0"),
        (["a", {}], "prompt.1"),
        (["a", [True]], "prompt.1.0"),
        ([5, -1], "prompt.1"),
        ([5, 10**9], "prompt.1"),
        ([5, 1.5], "prompt.1"),
        ([5, None], "prompt.1"),
        (["a"] * 300, "prompt"),
        ([5] * 200, "prompt"),
    ],
)
def test_other_prompts_are_refused_with_their_place(service: Service, prompt: object, param: str) -> None:
    with pytest.raises(Problem) as raised:
        completion_prompts(service, parse(LlamaCppCompletionBody, {"prompt": prompt}))
    assert (raised.value.status, raised.value.param) == (400, param)


def drawn(**fields: object) -> dict[str, object]:
    return sampling(parse(LlamaCppInfillBody, fields), tiny_tokenizer())


def test_defaults_are_those_of_llama_cpp() -> None:
    made = drawn()
    assert {
        name: made[name] for name in ("temperature", "top_k", "top_p", "min_p", "max_tokens", "seed")
    } == {
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.05,
        "max_tokens": None,
        "seed": None,
    }
    assert made["repetition_penalty"] == 1.0


def test_samplers_that_are_not_listed_are_off() -> None:
    made = drawn(samplers=["top_k"], top_k=7, top_p=0.5, min_p=0.5, temperature=0.2, repeat_penalty=2)
    assert [made[name] for name in ("temperature", "top_k", "top_p", "min_p")] == [1.0, 7, 1.0, 0.0]
    assert "repetition_penalty" not in made


def test_a_text_of_samplers_has_a_letter_for_each() -> None:
    # As llama.vscode sends it with chats.
    assert drawn(samplers="edkypmxt", seed=1) == drawn(seed=1)
    assert drawn(samplers="k", seed=1) == drawn(samplers=["top-k"], seed=1)
    for unknown in ("kZ", ["top_z"]):
        with pytest.raises(Problem, match="no sampler"):
            drawn(samplers=unknown)


@pytest.mark.parametrize(
    ("fields", "temperature"),
    [
        ({"samplers": ["top_k", "infill"]}, 0.0),
        ({"samplers": ["top_k", "infill"], "n_cmpl": 3}, 0.6),
        ({"samplers": ["top_k", "infill"], "temperature": 0.3}, 0.3),
        ({"samplers": ["infill", "temperature"]}, 0.8),
        ({"samplers": []}, 1.0),
        ({"temperature": -1}, 0.0),
        ({"n_predict": 0, "samplers": []}, 0.0),
    ],
)
def test_the_sampler_infill_is_greedy_unless_several_middles_are_wanted(
    fields: dict[str, object], temperature: float
) -> None:
    assert drawn(**fields)["temperature"] == temperature


def test_biases_come_as_pairs_or_as_an_object() -> None:
    ids = tiny_tokenizer().encode("return x", bos=False, eos=False)
    banned = dict.fromkeys(ids, -100.0)
    assert drawn(logit_bias=[[7, 1.5], ["return x", False]])["logit_bias"] == {7: 1.5, **banned}
    assert drawn(logit_bias={"7": 1.5, "return x": False})["logit_bias"] == {7: 1.5, **banned}
    assert drawn(logit_bias=[[7, -1e9], [8, 10**400]])["logit_bias"] == {7: -100.0, 8: 100.0}


@pytest.mark.parametrize(
    "bias", [[[7]], [[7, True]], [[7, "x"]], [[-1, 1]], [[10**6, 1]], [[True, 1]], {"99999": 1}]
)
def test_other_biases_are_refused(bias: object) -> None:
    with pytest.raises(Problem, match=r"logit_bias\.0"):
        drawn(logit_bias=bias)
