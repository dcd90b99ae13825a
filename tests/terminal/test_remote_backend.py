"""Laws of a server as backend: what is sent, what is read, and what every failure is called."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from llama.errors import ConfigError, LlamaError, PromptTooLongError, RequestError
from llama.terminal.backend import Ask, Chat, Completion, End, Infilling, Sampling, ServerError
from llama.terminal.remote import KEY_VARIABLE, connect, read_key

MODELS = {"data": [{"id": "tiny", "max_model_len": 512}, {"id": "other"}]}
ASK = Chat(({"role": "user", "content": "hello you"},))
Handler = Callable[[httpx.Request], httpx.Response]


def sse(*events: object) -> httpx.Response:
    data = [each if isinstance(each, str) else json.dumps(each) for each in events]
    return httpx.Response(200, content="".join(f"data: {each}\n\n" for each in data).encode())


def ask(
    answer: httpx.Response | Handler,
    what: Ask = ASK,
    *,
    url: str = "http://server:1/v1",
    key: str | None = None,
    model: str | None = None,
    models: httpx.Response | None = None,
    sampling: Sampling | None = None,
) -> tuple[list[str | End], list[httpx.Request], Any]:
    """Ask once -> pieces, requests, the backend."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.url.path.endswith("/models"):
            return models or httpx.Response(200, json=MODELS)
        return answer(request) if callable(answer) else answer

    async def main():
        async with connect(url, key, model, httpx.MockTransport(handle)) as backend:
            return [piece async for piece in backend.stream(what, sampling or Sampling())], seen, backend

    return asyncio.run(main())


CHAT = sse(
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {"content": "he\u2028"}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {"content": "llo"}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]},
    {
        "choices": [],
        "usage": {"prompt_tokens": 4, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}},
    },
    "[DONE]",
)
TEXT = sse(
    {"choices": [{"index": 0, "text": "he", "finish_reason": None}]},
    {"choices": [{"index": 0, "text": "llo", "finish_reason": "stop"}]},
    "[DONE]",
)


def test_a_chat_is_read_to_its_end() -> None:
    pieces, seen, backend = ask(CHAT, sampling=Sampling(0.5, 0.8, 7, 3))
    assert pieces == ["he\u2028", "llo", End("length", 4, 3, 2)]
    assert (backend.name, backend.context) == ("tiny", 512)
    assert [str(request.url) for request in seen] == [
        "http://server:1/v1/models",
        "http://server:1/v1/chat/completions",
    ]
    assert json.loads(seen[1].content) == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello you"}],
        "temperature": 0.5,
        "top_p": 0.8,
        "max_tokens": 7,
        "seed": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize(
    ("what", "fields"),
    [
        (Completion("def"), {"prompt": "def"}),
        (Infilling("a", "b"), {"prompt": "a", "suffix": "b"}),
        (Infilling("a", ""), {"prompt": "a", "suffix": ""}),
    ],
)
def test_texts_go_to_completions(what: Ask, fields: dict[str, str]) -> None:
    pieces, seen, _ = ask(TEXT, what)
    assert pieces == ["he", "llo", End("stop")]
    assert seen[1].url.path == "/v1/completions"
    body = json.loads(seen[1].content)
    assert {name: body.get(name) for name in ("prompt", "suffix")} == {
        "prompt": None,
        "suffix": None,
        **fields,
    }
    assert not {"max_tokens", "seed"} & body.keys()


@pytest.mark.parametrize(
    "url", ["http://server:1", "http://server:1/", "http://server:1/v1", "http://server:1/v1/"]
)
def test_a_url_may_end_as_it_likes(url: str) -> None:
    assert str(ask(TEXT, url=url)[1][1].url) == "http://server:1/v1/chat/completions"


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "https://",
        "http://server:port",
        "http://a b",
        "http://server:1\n",
        "server:1",
        "ftp://server",
    ],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="URL of a server"):
        ask(TEXT, url=url)


def test_the_key_goes_along_and_is_not_in_messages() -> None:
    assert ask(CHAT, key="secret")[1][0].headers["authorization"] == "Bearer secret"
    assert "authorization" not in ask(CHAT)[1][0].headers
    with pytest.raises(ServerError, match="api-key-file") as raised:
        ask(httpx.Response(401, json={"error": {"message": "wrong key"}}), key="secret")
    assert "secret" not in str(raised.value)


def test_room_is_judged_by_the_last_answer() -> None:
    *_, backend = ask(CHAT)
    assert backend.room(ASK) == 512 - 4
    assert backend.room(Chat((*ASK.messages, *ASK.messages))) == 512 - 8
    *_, backend = ask(CHAT, models=httpx.Response(404))
    assert backend.room(ASK) is None


def test_a_model_is_chosen() -> None:
    *_, backend = ask(CHAT, model="other")
    assert (backend.name, backend.context) == ("other", None)
    with pytest.raises(ConfigError, match=r"no model 'x'; it has tiny, other"):
        ask(CHAT, model="x")
    # A server that does not list its models gets what was said.
    assert json.loads(ask(CHAT, model="x", models=httpx.Response(404))[1][1].content)["model"] == "x"
    assert json.loads(ask(CHAT, models=httpx.Response(405))[1][1].content)["model"] == ""
    with pytest.raises(ServerError, match="--model"):
        ask(CHAT, models=httpx.Response(200, json={"data": []}))


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (
            httpx.Response(400, json={"error": {"message": "600 tokens", "code": "context_length_exceeded"}}),
            PromptTooLongError,
            "600 tokens",
        ),
        (httpx.Response(400, json={"error": {"message": "no suffix"}}), RequestError, "no suffix"),
        (httpx.Response(422, json={"error": "bad", "error_type": "validation"}), RequestError, "bad"),
        (httpx.Response(404, text="nothing here"), RequestError, "nothing here"),
        (httpx.Response(400, text=""), RequestError, "answers 400"),
        (httpx.Response(503, json={"error": {"message": "loading"}}), ServerError, "503: loading"),
        (httpx.Response(500, content=b"\xff<html>"), ServerError, "500"),
        (httpx.Response(302, headers={"location": "http://other/"}), ServerError, "302"),
        (sse({"error": {"message": "nan"}}), ServerError, "nan"),
        (sse({"choices": [{"delta": {"content": "x"}}]}), ServerError, "broke the answer off"),
        (sse({"choices": [{"delta": {"content": "x"}}]}, "[DONE]"), ServerError, "broke the answer off"),
        (sse("{"), ServerError, "not a JSON object"),
        (sse("[" * 100_000), ServerError, "not a JSON object"),
        (sse({"choices": ["x"]}), ServerError, "not an object"),
    ],
    ids=str,
)
def test_every_failure_has_a_name(answer: httpx.Response, error: type[LlamaError], words: str) -> None:
    with pytest.raises(error, match=words) as raised:
        ask(answer)
    assert type(raised.value) is error


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (httpx.ConnectError("refused"), "no server answers at http://server:1"),
        (httpx.ReadTimeout("slow"), "does not answer in time"),
        (httpx.RemoteProtocolError("closed"), "failed: closed"),
    ],
    ids=str,
)
def test_a_connection_that_fails_has_a_name(failure: Exception, words: str) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise failure

    with pytest.raises(ServerError, match=words):
        ask(fail)


def test_usage_that_makes_no_sense_is_left_out() -> None:
    answer = sse(
        {"choices": [{"text": 5, "delta": None, "finish_reason": "stop"}], "usage": {"prompt_tokens": "many"}}
    )
    assert ask(answer)[0] == [End("stop")]


def test_the_key_comes_from_the_file_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert read_key(None) is None
    monkeypatch.setenv(KEY_VARIABLE, " from-env ")
    assert read_key(None) == "from-env"
    file = tmp_path / "key"
    file.write_text("\n  from-file \nsecond\n")
    assert read_key(file) == "from-file"
    for content in ("", " \n", "two words", "schlüssel", "a\x1bb"):
        file.write_text(content)
        with pytest.raises(ConfigError) as raised:
            read_key(file)
        assert "words" not in str(raised.value)
    with pytest.raises(FileNotFoundError):
        read_key(tmp_path / "none")
