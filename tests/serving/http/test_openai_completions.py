"""OpenAI's /v1/completions: the library's texts and scores, whole and streamed."""

from __future__ import annotations

import json

import pytest
from http_service import bundled, serving

TEXTS = ["def fib(", "class Stack:\n    def"]
INFILL = ("def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n")
SCORED = "for key, value in pairs:\n    print(key)\n"
PENALTIES = {"presence_penalty": 1.5, "frequency_penalty": 0.5}
GREEDY = {"temperature": 0, "max_tokens": 12}
SAMPLED = {"temperature": 0.8, "top_p": 0.9, "seed": 7, "n": 3, "max_tokens": 8}


def expectations(llama) -> dict[str, list]:
    """What the library says; nobody may ask it while it serves."""
    infilled = llama.text_infilling([INFILL[0]], [INFILL[1]], temperature=0, max_gen_len=12)
    return {
        "greedy": llama.text_completion(TEXTS, 0, max_gen_len=12, logprobs=3, echo=True),
        "sampled": llama.text_completion(TEXTS, 0.8, 0.9, 8, seed=7, n=3),
        "scored": llama.text_completion([SCORED], 0, max_gen_len=0, logprobs=True, echo=True),
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


@pytest.fixture(scope="module")
def server(served):
    return served[0]


@pytest.fixture(scope="module")
def expected(served):
    return served[1]


def choices(server, **body) -> list[dict]:
    answer = server.post("/v1/completions", body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


def streamed(server, **body) -> list[dict]:
    """The choices of a stream, put together: texts, scores and ids joined by index."""
    *events, done = server.events("/v1/completions", {**body, "stream": True})
    assert done == "[DONE]"
    whole: dict[int, dict] = {}
    for event in events:
        (part,) = json.loads(event)["choices"]
        found = whole.get(part["index"])
        if found is None:
            whole[part["index"]] = part
            continue
        assert found["finish_reason"] is None
        found["text"] += part["text"]
        found["finish_reason"] = part["finish_reason"]
        if part["logprobs"]:
            for name, values in part["logprobs"].items():
                found["logprobs"][name] += values
        if "token_ids" in part:
            found["token_ids"] += part["token_ids"]
            assert "prompt_token_ids" not in part
    return [whole[index] for index in sorted(whole)]


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


# ---- scores --------------------------------------------------------------------------------------------------


def assert_close(found: list, wanted: list) -> None:
    """Scores that may differ in their last digits, by how a batch was made up."""
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a == (b if b is None else pytest.approx(b, abs=1e-4))


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
