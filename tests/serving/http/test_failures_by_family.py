"""What goes wrong beside bad fields, in the shapes of TGI, Mistral and Ollama: another model's name, a model that
cannot infill, logits that are not finite, a server that ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from http_service import serving
from tiny_llama import tiny_llama

from llama.engine import FinishReason, Request
from llama.sampling import GREEDY
from llama.serving import TextDelta
from llama.serving.http import mistral, ollama, tgi
from llama.serving.http.problems import Problem
from llama.serving.http.service import Run, Service

# A request of each family, and the same as infilling.
PLAIN: dict[str, dict[str, Any]] = {
    "/generate": {"inputs": "def value", "parameters": {"max_new_tokens": 8}},
    "/v1/fim/completions": {"prompt": "def value", "max_tokens": 8},
    "/api/generate": {"prompt": "def value", "raw": True, "options": {"num_predict": 8}, "stream": False},
    "/api/chat": {
        "messages": [{"role": "user", "content": "def value"}],
        "options": {"num_predict": 8},
        "stream": False,
    },
}
INFILLING: dict[str, dict[str, Any]] = {
    "/generate": {"inputs": "def <FILL_ME> value"},
    "/v1/fim/completions": {"prompt": "def", "suffix": " value"},
    "/api/generate": {"prompt": "def", "suffix": " value"},
}
paths = pytest.mark.parametrize("path", PLAIN)


def message(answer: dict[str, Any], path: str) -> str:
    """The error in an answer, whose shape is checked."""
    if path == "/v1/fim/completions":
        assert answer["object"] == "error"
        assert answer["error"]["message"] == answer["message"]
        return answer["message"]
    assert set(answer) == ({"error", "error_type"} if path == "/generate" else {"error"})
    return answer["error"]


@pytest.fixture(scope="module")
def strict():
    """A model without infilling pieces, which continues text, and is served under its own name alone."""
    with serving(
        tiny_llama(kind="plain"), capability="completion", strict_model=True, model_name="34b"
    ) as served:
        yield served


@paths
def test_another_models_name_is_404_if_the_operator_is_strict(strict, path) -> None:
    answer = strict.post(path, {**PLAIN[path], "model": "70b"})
    assert answer.status_code == 404
    assert "'34b'" in message(answer.json(), path)
    for name in (None, "", "34b"):
        assert strict.post(path, {**PLAIN[path], "model": name}).status_code == 200


def test_ollamas_tag_is_no_part_of_the_name(strict) -> None:
    for path in ("/api/generate", "/api/chat"):
        assert strict.post(path, {**PLAIN[path], "model": "34b:latest"}).status_code == 200
    assert strict.post("/api/show", {"model": "34b:latest"}).status_code == 200
    assert strict.post("/api/show", {"model": "70b"}).status_code == 404


@pytest.mark.parametrize("path", INFILLING)
def test_a_model_that_cannot_infill_says_so(strict, path) -> None:
    answer = strict.post(path, INFILLING[path])
    assert answer.status_code == (422 if path == "/generate" else 400)
    assert "<PRE>" in message(answer.json(), path)


def test_show_has_no_suffix_where_nothing_is_filled(strict) -> None:
    shown = strict.post("/api/show", {"model": "34b"}).json()
    assert shown["template"] == "{{ .Prompt }}"
    assert shown["capabilities"] == ["completion"]


def test_a_prompt_is_continued_where_that_is_the_capability(strict) -> None:
    body = {"prompt": "def value", "options": {"temperature": 0, "num_predict": 8}, "stream": False}
    answers = [strict.post("/api/generate", {**body, "raw": raw}).json() for raw in (True, False)]
    assert answers[0]["response"] == answers[1]["response"]
    assert answers[0]["prompt_eval_count"] == answers[1]["prompt_eval_count"]


@pytest.fixture(scope="module")
def broken():
    """A model whose weights went bad once the server ran."""
    with serving(tiny_llama()) as served:
        served.service.llama.model.norm.weight.fill_(float("nan"))
        yield served


@paths
def test_logits_that_are_not_finite_are_no_reason_to_try_again(broken, path) -> None:
    answer = broken.post(path, PLAIN[path])
    assert answer.status_code == (424 if path == "/generate" else 422)
    assert "finite" in message(answer.json(), path)


@paths
def test_a_stream_that_fails_ends_with_the_error(broken, path) -> None:
    streamed = "/generate_stream" if path == "/generate" else path
    body = {**PLAIN[path], "stream": True}
    answer = broken.post(streamed, body)
    assert answer.status_code == 200
    last = [line for line in answer.text.splitlines() if line][-1]
    assert "finite" in message(json.loads(last.removeprefix("data: ")), path)


class Ending:
    """An engine that is closed in the middle of an answer."""

    async def batches(self, request: Request) -> AsyncGenerator[list[TextDelta], None]:
        yield [TextDelta(0, "a")]
        yield [TextDelta(0, "", FinishReason.CANCELLED)]


def run() -> Run:
    settings = SimpleNamespace(request_timeout=60, ping_seconds=60, model_name="m")
    service = SimpleNamespace(
        engine=Ending(), metrics=SimpleNamespace(ended=lambda sequence: None), settings=settings
    )
    return Run(cast(Service, service), [Request((1, 2), 8, GREEDY)])


def test_an_answer_cut_short_by_the_server_is_an_error() -> None:
    """Never a `stop`: the client would take half an answer for a whole one."""

    async def read() -> None:
        async for _ in run():
            pass

    with pytest.raises(Problem, match="shut down before") as caught:
        asyncio.run(read())
    assert (caught.value.status, caught.value.code) == (503, "incomplete")
    assert tgi.FAMILY.status(caught.value) == 500
    assert tgi.FAMILY.error(caught.value)["error_type"] == "incomplete_generation"
    assert mistral.FAMILY.status(caught.value) == ollama.FAMILY.status(caught.value) == 503
