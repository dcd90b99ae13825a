"""What llama.cpp's /infill and /completion refuse: with which status and field, and nothing is queued."""

from __future__ import annotations

import json

import pytest
from http_service import Served, bundled, serving
from tiny_llama import tiny_llama

from llama.errors import UnsupportedError
from llama.serving.http.llamacpp.completion import ROUTES
from llama.serving.http.routes import Call
from llama.serving.http.service import Service
from llama.serving.http.settings import Settings

BAD = [
    ("/completion", b"{", None),
    ("/completion", b"[]", None),
    ("/completion", b"\xff", None),
    ("/completion", b'{"prompt": "\\ud800"}', None),
    ("/completion", b'{"prompt": "a", "temperature": NaN}', None),
    ("/completion", {}, "prompt"),
    ("/completion", {"prompt": "a", "n_predict": "8"}, "n_predict"),
    ("/completion", {"prompt": "a", "n_cmpl": 0}, "n_cmpl"),
    ("/completion", {"prompt": "a", "unknown": 1}, "unknown"),
    ("/completion", {"prompt": "a", "grammar": "root ::= x"}, "grammar"),
    ("/completion", {"prompt": "a", "json_schema": {}}, "json_schema"),
    ("/completion", {"prompt": "a", "mirostat": 2}, "mirostat"),
    ("/completion", {"prompt": "a", "typical_p": 0.5}, "typical_p"),
    ("/completion", {"prompt": "a", "lora": [{"id": 0}]}, "lora"),
    ("/completion", {"prompt": "a", "top_p": 2}, None),
    ("/completion", {"prompt": "a", "stop": ["x"] * 100}, None),
    ("/completion", {"prompt": "a", "logit_bias": [["a", "b"]]}, "logit_bias.0"),
    ("/completion", {"prompt": [1, 99999]}, "prompt.1"),
    ("/infill", {"input_prefix": 1}, "input_prefix"),
    ("/infill", {"prompt": ["a"]}, "prompt"),
    ("/infill", {"input_extra": "x"}, "input_extra"),
    ("/infill", {"input_extra": [{"filename": "x"}]}, "input_extra.0.text"),
    ("/infill", {"n_indent": -1}, "n_indent"),
]


@pytest.fixture(scope="module")
def server():
    with bundled() as llama, serving(llama) as served:
        yield served


@pytest.mark.parametrize(("path", "body", "param"), BAD)
def test_bad_bodies_are_400_with_the_field_and_nothing_is_queued(
    server: Served, path: str, body: object, param: str | None
) -> None:
    engine = server.service.engine.engine
    queued = engine._next_id
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = server.client.post(path, content=data)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (400, 400, "invalid_request_error")
    assert error["message"]
    if param is not None:
        assert error["param"] == param
    assert engine._next_id == queued


def test_a_prompt_without_room_is_refused_with_the_numbers(server: Served) -> None:
    n_ctx = server.service.max_model_len
    for prompt, length in (([5] * n_ctx, n_ctx), ("x y " * n_ctx, None), ("x" * 100 * n_ctx, None)):
        error = server.post("/completion", {"prompt": prompt}).json()["error"]
        assert (error["code"], error["type"], error["n_ctx"]) == (400, "exceed_context_size_error", n_ctx)
        assert error["n_prompt_tokens"] == length or (length is None and error["n_prompt_tokens"] > n_ctx)


def test_a_model_that_cannot_infill_says_why_without_an_engine() -> None:
    service = Service(tiny_llama(kind="plain"), None, Settings("plain"))
    (infill,) = [route for route in ROUTES if "/infill" in route.paths]
    with pytest.raises(UnsupportedError, match="cannot fill in the middle"):
        infill.handler(Call(service, None, {"input_prefix": "def "}))
