"""OpenAI's /v1/chat/completions: the library's answers, whole and streamed."""

from __future__ import annotations

import json

import pytest
from http_service import bundled, serving
from tiny_llama import tiny_llama

from llama.prompts import answer_message, chat_prompt

DIALOG = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Write a loop."},
    {"role": "assistant", "content": "for i in x: pass"},
    {"role": "user", "content": "Now in C."},
]
GREEDY = {"temperature": 0, "max_tokens": 12}
SAMPLED = {"temperature": 0.9, "top_p": 0.8, "seed": 5, "n": 3, "max_tokens": 8}
PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def served():
    with bundled() as llama:
        expected = {
            "greedy": llama.chat_completion([DIALOG], 0, max_gen_len=12, logprobs=2),
            "sampled": llama.chat_completion([DIALOG], 0.9, 0.8, 8, seed=5, n=3),
        }
        with serving(llama) as server:
            yield server, expected


def answer(server, **body) -> dict:
    reply = server.post(PATH, {"messages": DIALOG, **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


def streamed(server, **body) -> list[dict]:
    """The choices of a stream, put together as those of a whole answer."""
    *events, done = server.events(PATH, {"messages": DIALOG, **body, "stream": True})
    assert done == "[DONE]"
    whole: dict[int, dict] = {}
    for event in events:
        (part,) = json.loads(event)["choices"]
        index, delta = part["index"], part["delta"]
        if index not in whole:
            assert delta == {"role": "assistant", "content": ""}
            whole[index] = {**part, "message": dict(delta)}
            continue
        found = whole[index]
        assert found["finish_reason"] is None
        assert (delta == {}) == (part["finish_reason"] is not None)
        found["message"]["content"] += delta.get("content", "")
        found["finish_reason"] = part["finish_reason"]
        if part["logprobs"] is not None:
            found["logprobs"] = found["logprobs"] or {"content": [], "refusal": None}
            found["logprobs"]["content"] += part["logprobs"]["content"]
        if "token_ids" in part:
            found["token_ids"] = found.get("token_ids", []) + part["token_ids"]
    for found in whole.values():
        del found["delta"]
        found.pop("prompt_token_ids", None)
    return [whole[index] for index in sorted(whole)]


def test_answers_are_the_librarys(server, expected) -> None:
    (choice,) = answer(server, **GREEDY)["choices"]
    assert choice["message"] == expected["greedy"][0]["generation"]
    found = answer(server, **SAMPLED)["choices"]
    assert [each["message"] for each in found] == [each["generation"] for each in expected["sampled"]]
    assert [each["index"] for each in found] == [0, 1, 2]


@pytest.mark.parametrize(
    "more",
    [
        {},
        SAMPLED,
        {"logprobs": True, "top_logprobs": 2, "return_token_ids": True},
        {"stop": ["i", "e"]},
        {"max_tokens": 0},
    ],
)
def test_a_stream_joined_is_the_whole_answer(server, more) -> None:
    body = {**GREEDY, **more}
    found = streamed(server, **body)
    for part, whole in zip(found, answer(server, **body)["choices"], strict=True):
        if whole["logprobs"]:
            part_scores, scores = part.pop("logprobs")["content"], whole.pop("logprobs")["content"]
            assert [each["token"] for each in part_scores] == [each["token"] for each in scores]
            assert [each["logprob"] for each in part_scores] == pytest.approx(
                [each["logprob"] for each in scores], abs=1e-4
            )
        assert part == whole


def test_log_probabilities_are_the_librarys_and_their_tokens_the_text(server, expected) -> None:
    (choice,) = answer(server, logprobs=True, top_logprobs=2, **GREEDY)["choices"]
    (wanted,) = expected["greedy"]
    content = choice["logprobs"]["content"]
    assert [each["logprob"] for each in content] == pytest.approx(wanted["logprobs"], abs=1e-4)
    for each, best in zip(content, wanted["top_logprobs"], strict=True):
        assert [other["logprob"] for other in each["top_logprobs"]] == pytest.approx(
            list(best.values()), abs=1e-4
        )
        assert each["top_logprobs"][0]["token"] == each["token"]
    joined = bytes(byte for each in content for byte in each["bytes"])
    assert joined.decode() == choice["message"]["content"]
    (choice,) = answer(server, logprobs=True, **GREEDY)["choices"]
    assert all(each["top_logprobs"] == [] for each in choice["logprobs"]["content"])


def test_roles_and_parts_of_clients_are_those_of_the_format(server, expected) -> None:
    dialog = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}], "name": None},
        DIALOG[1],
        {**DIALOG[2], "tool_calls": [], "refusal": None, "audio": None},
        {"role": "user", "name": "me", "content": [{"type": "text", "text": "Now in C."}]},
    ]
    (choice,) = answer(server, messages=dialog, **GREEDY)["choices"]
    assert choice["message"] == expected["greedy"][0]["generation"]
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    one, two = (
        answer(server, messages=[{"role": "user", "content": content}], return_token_ids=True, max_tokens=1)
        for content in (parts, "a\nb")
    )
    assert one["prompt_token_ids"] == two["prompt_token_ids"]


def test_no_tokens_fill_the_prefix_cache_and_nothing_is_told(server) -> None:
    """As llama.vim and llama.vscode do when they start."""
    dialog = [{"role": "user", "content": "# a file that nobody sent before\nimport os\n" * 3}]
    body = {
        "id_slot": 0, "messages": dialog, "n_predict": 0, "samplers": [], "cache_prompt": True,
        "t_max_prompt_ms": 1, "t_max_predict_ms": 1, "response_fields": [""], "model": "",
    }  # fmt: skip
    assert server.post(PATH, body).json() == {}
    del body["response_fields"]
    told = server.post(PATH, body).json()
    assert told["choices"][0]["message"]["content"] == ""
    assert told["usage"]["completion_tokens"] == 0
    assert told["usage"]["prompt_tokens_details"]["cached_tokens"] > told["usage"]["prompt_tokens"] // 2


def test_response_fields_pick_parts_of_the_answer(server) -> None:
    found = answer(server, response_fields=["usage/total_tokens", "object", "choices/0", "other"], **GREEDY)
    assert set(found) == {"usage/total_tokens", "object"}


def test_the_usage_comes_last_and_only_when_asked_for(server) -> None:
    body = {"messages": DIALOG, **GREEDY, "n": 2, "stream": True}
    *events, last, _ = server.events(PATH, {**body, "stream_options": {"include_usage": True}})
    assert json.loads(last)["choices"] == []
    prompt = len(server.service.chat_prompt(DIALOG).tokens)
    usage = json.loads(last)["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (prompt, 24)
    assert all(json.loads(event)["usage"] is None for event in events)
    assert all(json.loads(event)["choices"] for event in server.events(PATH, body)[:-1])


def test_a_prediction_never_changes_the_answer(server, expected) -> None:
    right = expected["greedy"][0]["generation"]["content"]
    for text in (right, "something else", [{"type": "text", "text": right}]):
        found = answer(server, prediction={"type": "content", "content": text}, **GREEDY)
        assert found["choices"][0]["message"]["content"] == right
        told = found["usage"]["completion_tokens_details"]
        if text != "something else":
            assert told["accepted_prediction_tokens"] > 0
            assert told["rejected_prediction_tokens"] == 0
    assert "completion_tokens_details" not in answer(server, **GREEDY)["usage"]


@pytest.mark.parametrize(
    ("capability", "text"),
    [("completion", "def return"), ("python", "def return"), ("infilling", "a<FILL>b")],
)
def test_a_deployment_may_continue_or_fill_what_the_user_says(capability: str, text: str) -> None:
    llama = tiny_llama()
    if capability == "infilling":
        (wanted,) = llama.text_infilling(["a"], ["b"], temperature=0, max_gen_len=6)
    else:
        (wanted,) = llama.text_completion([text], 0, max_gen_len=6)
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 6}
    if capability != "infilling":  # which is greedy unless a temperature is given
        body["temperature"] = 0
    with serving(llama, capability=capability) as server:
        (choice,) = server.post(PATH, body).json()["choices"]
    assert choice["message"]["content"] == wanted["generation"]


def test_the_step_format_knows_to_whom_an_answer_went() -> None:
    llama = tiny_llama(kind="step", max_seq_len=512)
    dialog = [
        answer_message(llama.tokenizer, each["content"]) if each["role"] == "assistant" else each
        for each in DIALOG
    ]
    wanted = list(chat_prompt(llama.tokenizer, dialog).tokens)
    with serving(llama) as server:
        found = server.post(PATH, {"messages": DIALOG, "max_tokens": 1, "return_token_ids": True}).json()
    assert found["prompt_token_ids"] == wanted


def test_fields_that_ask_for_nothing_change_nothing(server, expected) -> None:
    body = {
        "tools": [], "tool_choice": "none", "functions": [], "modalities": ["text"], "service_tier": "auto",
        "parallel_tool_calls": True, "safety_identifier": "x", "prompt_cache_key": "x", "logit_bias": None,
        "top_logprobs": 0, "prediction": None, "user": "x", "store": False, "metadata": None,
        # llama.vscode's, which sends every sampler of llama.cpp.
        "samplers": "edkypmxt", "dynatemp_range": 0, "dynatemp_exponent": 1, "typical_p": 1, "xtc_probability": 0,
        "xtc_threshold": 0.1, "repeat_last_n": 64, "repeat_penalty": 1, "presence_penalty": 0,
        "frequency_penalty": 0, "dry_multiplier": 0, "dry_base": 1.75, "dry_allowed_length": 2,
        "dry_penalty_last_n": -1, "timings_per_token": False,
    }  # fmt: skip
    (choice,) = answer(server, **body, **GREEDY)["choices"]
    assert choice["message"] == expected["greedy"][0]["generation"]
