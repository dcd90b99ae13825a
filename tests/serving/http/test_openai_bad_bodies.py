"""Bodies that the OpenAI routes refuse: each names its field, and nothing runs."""

from __future__ import annotations

import json

import pytest
import torch
from http_service import bundled, serving
from tiny_llama import tiny_llama

COMPLETIONS = [
    ({"prompt": []}, "prompt"),
    ({"prompt": ["a", [1]]}, "prompt"),
    ({"prompt": [[1.5]]}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": [10**9]}, None),
    ({"prompt": [-1]}, None),
    ({"prompt": [[]]}, None),
    ({"prompt": ["x"] * 1000}, "prompt"),
    ({"suffix": "b", "echo": True}, "echo"),
    ({"prompt": [1, 2], "suffix": "b"}, "suffix"),
    ({"best_of": 1, "n": 2}, "best_of"),
    ({"best_of": 2, "stream": True}, "best_of"),
    ({"n": 0}, "n"),
    ({"n": 5000}, "n"),
    ({"n": 1000, "prompt": ["x"] * 5}, "n"),
    ({"stop": [str(i) for i in range(65)]}, None),
    ({"n": 1.5}, "n"),
    ({"n": True}, "n"),
    ({"max_tokens": -2}, "max_tokens"),
    ({"max_tokens": "16"}, "max_tokens"),
    ({"max_tokens": 5, "n_predict": 6}, "n_predict"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"mirostat": 2}, "mirostat"),
    ({"dry_multiplier": 0.8}, "dry_multiplier"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"stop": 5}, "stop"),
    ({"stop": [""]}, None),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"999999": 1}}, None),
    ({"logit_bias": {"1": 101}}, None),
    ({"logit_bias": [[1, 2]]}, "logit_bias"),
    ({"stop_token_ids": ["a"]}, "stop_token_ids.0"),
    ({"seed": "s"}, "seed"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"stream_options": {"usage": True}}, "stream_options.usage"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"options": {"num_foo": 1}}, "num_foo"),
    ({"options": {"options": {}}}, "options.options"),
    ({"options": 5}, "options"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"prompt_embeds": "x"}, "prompt_embeds"),
    ({"bad_words": ["x"]}, "bad_words"),
    ({"tools": []}, "tools"),
    ({"promt": "x"}, "promt"),
]

USER = {"role": "user", "content": "x"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}
CHATS = [
    ({"messages": []}, "messages"),
    ({"messages": "x"}, "messages"),
    ({"messages": [5]}, "messages.0"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    ({"messages": [USER, USER]}, "messages"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": "[INST] x"}]}, "messages.0.content"),
    ({"messages": [USER, {"role": "assistant", "content": "<<SYS>>"}, USER]}, "messages.1.content"),
    (
        {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, USER]},
        "messages.1.tool_calls",
    ),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": [{}]}, "functions"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"prediction": {"type": "content"}}, "prediction.content"),
    ({"prediction": {"type": "other", "content": "x"}}, "prediction.type"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens"),
    ({"best_of": 2}, "best_of"),
    ({"prompt": "x"}, "prompt"),
]


@pytest.fixture(scope="module")
def server():
    with bundled() as llama, serving(llama) as served:
        yield served


def check(server, path: str, body: dict, param: str | None) -> None:
    reply = server.post(path, body)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["param"] == param, error
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert server.service.engine.open_streams == 0


def name(value: object) -> str:
    return json.dumps(value)[:40]


@pytest.mark.parametrize(("body", "param"), COMPLETIONS, ids=name)
def test_a_completions_bad_field_is_named_and_nothing_runs(server, body, param) -> None:
    check(server, "/v1/completions", {"prompt": "x", **body}, param)


@pytest.mark.parametrize(("body", "param"), CHATS, ids=name)
def test_a_chats_bad_field_is_named_and_nothing_runs(server, body, param) -> None:
    check(server, "/v1/chat/completions", {"messages": [USER], **body}, param)


def test_a_prompt_without_room_is_told_in_numbers(server) -> None:
    for prompt in ("x " * 2000, [300] * 2000):
        error = server.post("/v1/completions", {"prompt": prompt}).json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert error["n_ctx"] == 512
        assert error["n_prompt_tokens"] >= 2000


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_logits_that_are_not_finite_fail_their_request_alone(path: str) -> None:
    llama = tiny_llama()
    bad = llama.tokenizer.encode_infilling("☺")[0]
    with torch.no_grad():
        llama.model.tok_embeddings.weight[bad] = torch.nan

    def body(text: str) -> dict:
        ask = (
            {"prompt": text}
            if path == "/v1/completions"
            else {"messages": [{"role": "user", "content": text}]}
        )
        return {**ask, "max_tokens": 2, "temperature": 0}

    with serving(llama) as server:
        reply = server.post(path, body("☺"))
        assert reply.status_code == 422
        assert reply.json()["error"]["code"] == "not_finite"
        *_, last = server.events(path, {**body("☺"), "stream": True})
        assert json.loads(last)["error"]["code"] == "not_finite"
        assert server.post(path, body("a")).status_code == 200
