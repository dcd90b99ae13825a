"""OpenAI's /v1/completions: the library's texts and scores, whole and streamed."""

from __future__ import annotations

import json

import pytest
from http_service import bundled, serving
from openai_calls import GREEDY, TEXTS, assert_close, choices, streamed
from tiny_llama import tiny_llama

INFILL = ("def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n")
PENALTIES = {"presence_penalty": 1.5, "frequency_penalty": 0.5}
SAMPLED = {"temperature": 0.8, "top_p": 0.9, "seed": 7, "n": 3, "max_tokens": 8}


def expectations(llama) -> dict[str, list]:
    """What the library says; nobody may ask it while it serves."""
    infilled = llama.text_infilling([INFILL[0]], [INFILL[1]], temperature=0, max_gen_len=12)
    return {
        "greedy": llama.text_completion(TEXTS, 0, max_gen_len=12, echo=True),
        "sampled": llama.text_completion(TEXTS, 0.8, 0.9, 8, seed=7, n=3),
        "penalties": llama.text_completion(TEXTS[:1], 0, max_gen_len=24, **PENALTIES),
        "biased": llama.text_completion(TEXTS[:1], 0, max_gen_len=6, logit_bias={300: 100.0}),
        "empty": llama.text_completion([""], 0, max_gen_len=12),
        "infilled": infilled,
        "no suffix": llama.text_infilling([INFILL[0]], [""], temperature=0, max_gen_len=12),
        "penalty": llama.text_completion(TEXTS[:1], 0, max_gen_len=12, repetition_penalty=1.5),
    }


@pytest.fixture(scope="module")
def served():
    with bundled() as llama:
        expected = expectations(llama)
        with serving(llama) as server:
            yield server, expected


# ---- prompts -------------------------------------------------------------------------------------------------


def test_texts_and_ids_in_lists_or_alone_give_the_librarys_texts(server, expected) -> None:
    texts = [
        each["generation"].removeprefix(text) for each, text in zip(expected["greedy"], TEXTS, strict=True)
    ]
    ids = [server.service.llama.tokenizer.encode(text, bos=True, eos=False) for text in TEXTS]
    for prompt in (TEXTS, ids):
        assert [each["text"] for each in choices(server, prompt=prompt, **GREEDY)] == texts
        assert [each["text"] for each in choices(server, prompt=prompt[0], **GREEDY)] == texts[:1]


def test_samples_of_prompts_follow_one_another(server, expected) -> None:
    found = choices(server, prompt=TEXTS, **SAMPLED)
    assert [each["index"] for each in found] == list(range(6))
    assert [each["text"] for each in found] == [each["generation"] for each in expected["sampled"]]


def test_no_prompt_is_bos_alone(server, expected) -> None:
    for body in ({}, {"prompt": None}, {"prompt": ""}, {"prompt": [1]}):
        (choice,) = choices(server, **body, **GREEDY)
        text = choice["text"]
        if body.get("prompt") == [1]:
            text = text.removeprefix(" ")  # ids are continued, so that the first space of a text stays
        assert text == expected["empty"][0]["generation"]


def test_a_suffix_means_infilling_even_an_empty_one(server, expected) -> None:
    (choice,) = choices(server, prompt=INFILL[0], suffix=INFILL[1], max_tokens=12)
    assert choice["text"] == expected["infilled"][0]["generation"]
    (choice,) = choices(server, prompt=INFILL[0], suffix="", max_tokens=12)
    assert choice["text"] == expected["no suffix"][0]["generation"]
    (choice,) = choices(server, prompt=TEXTS[0], suffix=None, **GREEDY)
    assert TEXTS[0] + choice["text"] == expected["greedy"][0]["generation"]


def test_texts_without_special_tokens_begin_without_bos(server) -> None:
    asked = {"prompt": "def fib(", "return_token_ids": True, **GREEDY}
    with_bos, without = (
        choices(server, **asked, add_special_tokens=special)[0]["prompt_token_ids"]
        for special in (True, False)
    )
    assert with_bos == [server.service.llama.tokenizer.bos_id, *without]


# ---- streams -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"n": 2, "temperature": 0.9, "seed": 3},
        {"logprobs": 2, "return_token_ids": True},
        {"logprobs": 0, "echo": True},
        {"echo": True, "stop": ["(", "self"]},
        {"max_tokens": 0},
        {"max_tokens": 0, "echo": True, "logprobs": 1},
    ],
)
def test_a_stream_joined_is_the_whole_answer(server, more) -> None:
    body = {"prompt": TEXTS, **GREEDY, **more}
    found = streamed(server, **body)
    for part, whole in zip(found, choices(server, **body), strict=True):
        if whole["logprobs"]:
            for name in ("token_logprobs", "top_logprobs"):
                assert_close(part["logprobs"].pop(name), whole["logprobs"].pop(name))
        assert part == whole


def test_the_usage_comes_last_and_only_when_asked_for(server) -> None:
    body = {"prompt": TEXTS, **GREEDY}
    usage = server.post("/v1/completions", body).json()["usage"]
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    *events, last, done = server.events("/v1/completions", asked)
    assert done == "[DONE]"
    last = json.loads(last)
    assert last["choices"] == []
    # The prefixes of the second run were there already.
    for told in (usage, last["usage"]):
        told.pop("prompt_tokens_details")
    prompts = sum(len(server.service.text_prompt(text).tokens) for text in TEXTS)
    wanted = {"prompt_tokens": prompts, "completion_tokens": 24, "total_tokens": prompts + 24}
    assert last["usage"] == usage == wanted
    assert all(json.loads(event)["usage"] is None for event in events)
    for event in server.events("/v1/completions", {**body, "stream": True})[:-1]:
        assert json.loads(event)["choices"]
        assert "usage" not in json.loads(event)


def test_all_events_of_an_answer_have_one_head(server) -> None:
    events = server.events("/v1/completions", {"prompt": "x", **GREEDY, "stream": True, "model": "other"})[
        :-1
    ]
    heads = [{**json.loads(event), "choices": None} for event in events]
    assert all(head == heads[0] for head in heads)
    assert heads[0]["object"] == "text_completion"
    assert heads[0]["model"] == "CodeLlama-tiny"
    assert heads[0]["system_fingerprint"]


# ---- limits and options --------------------------------------------------------------------------------------


def test_no_tokens_fill_the_prefix_cache(server) -> None:
    prompt = "# a text that nobody sent before\nimport os\n" * 3
    answer = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 0}).json()
    assert answer["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}]
    assert answer["usage"]["completion_tokens"] == 0
    usage = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 1}).json()["usage"]
    # Prefixes are kept in blocks.
    assert usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"] // 2


def test_tokens_beyond_the_room_are_not_asked_for(server) -> None:
    room = 5
    ids = [1] + [300] * (server.service.llama.model.params.max_seq_len - 1 - room)
    for most in (10_000, -1):
        body = {"prompt": ids, "max_tokens": most, "temperature": 0, "return_token_ids": True}
        (choice,) = choices(server, **body)
        assert choice["finish_reason"] == "length"
        assert len(choice["token_ids"]) == room


def test_stop_strings_end_the_text_and_are_not_in_it(server, expected) -> None:
    text = expected["greedy"][1]["generation"].removeprefix(TEXTS[1])
    stop = text.strip()[1:4]
    others = [f"<{i}>" for i in range(20)]
    for given in (stop, [*others, stop]):
        (choice,) = choices(server, prompt=TEXTS[1], stop=given, **GREEDY)
        assert choice["text"] == text[: text.index(stop)]
        assert choice["finish_reason"] == "stop"


def test_penalties_and_biases_are_the_librarys(server, expected) -> None:
    body = {"prompt": TEXTS[0], "echo": True, "temperature": 0}
    (choice,) = choices(server, **body, max_tokens=24, **PENALTIES)
    assert choice["text"] == TEXTS[0] + expected["penalties"][0]["generation"]
    (choice,) = choices(server, **body, max_tokens=6, logit_bias={"300": 100})
    assert choice["text"] == TEXTS[0] + expected["biased"][0]["generation"]


def test_names_of_other_servers_mean_the_same(server, expected) -> None:
    wanted = expected["penalty"][0]["generation"]
    for body in (
        {"max_completion_tokens": 12, "temperature": 0, "repeat_penalty": 1.5},
        {"n_predict": 12, "do_sample": False, "repetition_penalty": 1.5, "return_full_text": False},
        {"options": {"num_predict": 12, "temperature": 0, "repeat_penalty": 1.5, "num_ctx": 4096}},
        {
            "max_tokens": 12,
            "temperature": 0,
            "repeat_penalty": 1.5,
            "options": {"temperature": 1, "num_predict": 3},
        },
    ):
        assert choices(server, prompt=TEXTS[0], **body)[0]["text"] == wanted


def test_fields_that_ask_for_nothing_change_nothing(server, expected) -> None:
    body = {
        "user": "me", "metadata": {}, "store": False, "request_id": "1", "cache_prompt": True, "id_slot": 0,
        "lora": [], "bad_words": [], "use_beam_search": False, "details": False, "watermark": False,
        "typical_p": 1, "top_n_tokens": 0, "response_format": {"type": "text"}, "stop": [], "top_k": -1,
        "logit_bias": {}, "presence_penalty": 0, "stream_options": {"include_usage": True}, "best_of": 1,
    }  # fmt: skip
    (choice,) = choices(server, prompt=TEXTS[0], **GREEDY, **body)
    assert TEXTS[0] + choice["text"] == expected["greedy"][0]["generation"]


def test_infilling_as_text_is_greedy_too() -> None:
    llama = tiny_llama()
    (wanted,) = llama.text_infilling(["def a"], ["return"], temperature=0, max_gen_len=8)
    with serving(llama, text_fim=True) as server:
        (choice,) = choices(server, prompt="<PRE> def a <SUF>return <MID>", max_tokens=8)
        (plain,) = choices(server, prompt="def a", suffix="return", max_tokens=8, do_sample=False)
    assert choice["text"] == plain["text"] == wanted["generation"]


@pytest.mark.parametrize("count", [0, 3])
def test_no_end_before_so_many_tokens(server, count: int) -> None:
    """The bias makes the end certain, where nothing forbids it."""
    body = {"prompt": TEXTS[0], **GREEDY, "logit_bias": {"2": 100}, "return_token_ids": True}
    (choice,) = choices(server, **body, min_tokens=count)
    assert len(choice["token_ids"]) == count
    assert choice["finish_reason"] == "stop"
    (choice,) = choices(server, **body, ignore_eos=True)
    assert choice["token_ids"] == [2] * GREEDY["max_tokens"]
    assert choice["finish_reason"] == "length"
