"""Log-probabilities of /v1/completions: the library's, of answers and of whole texts."""

from __future__ import annotations

import contextlib

import pytest
from http_service import bundled, serving
from hypothesis import given
from hypothesis import strategies as st
from openai_calls import GREEDY, TEXTS, assert_close, choices
from tiny_tokenizers import tiny_tokenizer

from llama.serving.http.openai.logprobs import Positions
from llama.serving.http.token_texts import TokenNames

IDS = st.lists(st.integers(0, tiny_tokenizer("plain").n_words - 1), max_size=24)

SCORED = "for key, value in pairs:\n    print(key)\n"


@pytest.fixture(scope="module")
def served():
    with bundled() as llama:
        expected = {
            "greedy": llama.text_completion(TEXTS, 0, max_gen_len=12, logprobs=3, echo=True),
            "scored": llama.text_completion([SCORED], 0, max_gen_len=0, logprobs=True, echo=True),
        }
        with serving(llama) as server:
            yield server, expected


def test_log_probabilities_are_the_librarys(server, expected) -> None:
    found = choices(server, prompt=TEXTS, echo=True, logprobs=3, **GREEDY)
    for choice, wanted in zip(found, expected["greedy"], strict=True):
        told = choice["logprobs"]
        assert choice["text"] == wanted["generation"]
        # The first id of a text is given, so that it has no probability.
        assert_close(told["token_logprobs"], [None, *wanted["logprobs"][1:]])
        assert told["tokens"][0] == "<s>"
        assert told["top_logprobs"][0] is None
        for top, best in zip(told["top_logprobs"][1:], wanted["top_logprobs"][1:], strict=True):
            assert_close(sorted(top.values(), reverse=True)[:3], list(best.values()))
        assert len(told["tokens"]) == len(wanted["tokens"])


def test_offsets_cut_the_text_into_the_texts_of_its_tokens(server) -> None:
    prompt = "s = 'é🙂 ü'\nprint("
    (choice,) = choices(server, prompt=prompt, echo=True, logprobs=0, **GREEDY)
    text, told = choice["text"], choice["logprobs"]
    offsets = told["text_offset"]
    assert offsets == sorted(offsets)
    for name, start, end in zip(told["tokens"], offsets, [*offsets[1:], len(text)], strict=True):
        if name.startswith("bytes:") or name == "<s>":
            assert end - start <= 1
        else:
            # Only the first token of a text goes without the space that stands in front of its piece.
            assert text[start:end] == (name if start else name.removeprefix(" "))
    (alone,) = choices(server, prompt=prompt, logprobs=0, **GREEDY)
    assert alone["logprobs"]["text_offset"] == [each - len(prompt) for each in offsets if each >= len(prompt)]


def test_the_chosen_token_is_always_among_the_top_ones(server) -> None:
    for count in (0, 1, 2):
        asked = {"prompt": "x", "temperature": 2, "seed": 1, "max_tokens": 24, "logprobs": count}
        told = choices(server, **asked)[0]["logprobs"]
        for name, value, top in zip(
            *(told[key] for key in ("tokens", "token_logprobs", "top_logprobs")), strict=True
        ):
            assert top[name] == value
            assert count <= len(top) <= count + 1


def test_no_tokens_and_echo_score_a_text(server, expected) -> None:
    text = SCORED
    (choice,) = choices(server, prompt=text, max_tokens=0, echo=True, logprobs=0)
    assert choice["text"] == text
    assert choice["finish_reason"] == "length"
    ids = server.service.llama.tokenizer.encode(text, bos=True, eos=False)
    assert len(choice["logprobs"]["tokens"]) == len(ids)
    assert_close(choice["logprobs"]["token_logprobs"], [None, *expected["scored"][0]["logprobs"][1:]])


def test_a_text_that_fills_the_context_can_be_scored(server) -> None:
    ids = [1] + [300] * (server.service.llama.model.params.max_seq_len - 1)
    (choice,) = choices(server, prompt=ids, max_tokens=0, echo=True, logprobs=0)
    assert len(choice["logprobs"]["tokens"]) == len(ids)
    assert server.post("/v1/completions", {"prompt": ids, "max_tokens": 1}).status_code == 400


def test_an_echo_with_scores_tells_the_end_token(server) -> None:
    """lm-eval asks for one token and drops the last score, whatever that token is."""
    body = {"prompt": TEXTS[0], "echo": True, "logprobs": 1, "temperature": 0, "max_tokens": 1}
    (plain,) = choices(server, **body, return_token_ids=True)
    (last,) = plain["token_ids"]
    (at_eos,) = choices(server, **body, logit_bias={"2": 100})
    assert at_eos["text"] == TEXTS[0]
    assert at_eos["logprobs"]["tokens"] == [*plain["logprobs"]["tokens"][:-1], "</s>"]
    (ended,) = choices(server, **body, stop_token_ids=[last])
    assert ended["text"] == TEXTS[0]
    assert ended["finish_reason"] == "stop"
    assert ended["logprobs"]["tokens"] == plain["logprobs"]["tokens"]
    assert_close(ended["logprobs"]["token_logprobs"], plain["logprobs"]["token_logprobs"])


def test_best_of_gives_those_of_the_highest_mean_log_probability(server) -> None:
    body = {"prompt": TEXTS[0], "temperature": 1.2, "seed": 11, "max_tokens": 8, "logprobs": 0}
    samples = choices(server, **body, n=5)
    means = {}
    for each in samples:
        values = each["logprobs"]["token_logprobs"]
        means[each["text"]] = sum(values) / len(values)
    best = sorted(means, key=means.__getitem__, reverse=True)[:2]
    assert [each["text"] for each in choices(server, **body, n=2, best_of=5)] == best


@given(ids=IDS, starts=st.booleans())
def test_text_stands_at_the_offset_of_its_token_whatever_bytes_are_around_it(
    ids: list[int], starts: bool
) -> None:
    tokenizer = tiny_tokenizer("plain")
    text = (tokenizer.decode if starts else tokenizer.decode_infilling)(ids)
    positions = Positions(tokenizer, TokenNames(tokenizer), start_of_text=starts).push(
        ids, [None] * len(ids), final=True
    )
    for each in positions:
        with contextlib.suppress(UnicodeDecodeError):
            own = each.text.decode()
            assert text[each.offset : each.offset + len(own)] == own
