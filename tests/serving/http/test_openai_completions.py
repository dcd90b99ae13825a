"""OpenAI's /v1/completions."""

from __future__ import annotations

import json

import pytest
from http_service import bundled, serving


@pytest.fixture(scope="module")
def server():
    with bundled() as llama, serving(llama) as served:
        yield served


def test_a_stream_joined_is_the_whole_answer(server) -> None:
    body = {"prompt": "def fib(", "max_tokens": 12, "temperature": 0}
    (choice,) = server.post("/v1/completions", body).json()["choices"]
    *events, done = server.events("/v1/completions", {**body, "stream": True})
    assert done == "[DONE]"
    assert "".join(json.loads(each)["choices"][0]["text"] for each in events) == choice["text"]
