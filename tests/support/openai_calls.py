"""Calls of /v1/completions, and their answers put together, for the tests of that route."""

from __future__ import annotations

import json

import pytest
from http_service import Served

TEXTS = ["def fib(", "class Stack:\n    def"]
GREEDY = {"temperature": 0, "max_tokens": 12}


def choices(server: Served, **body: object) -> list[dict]:
    answer = server.post("/v1/completions", body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


def streamed(server: Served, **body: object) -> list[dict]:
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


def assert_close(found: list, wanted: list) -> None:
    """Scores that may differ in their last digits, by how a batch was made up."""
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a == (b if b is None else pytest.approx(b, abs=1e-4))
