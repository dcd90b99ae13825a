"""`RemoteBackend`: a server answers, over OpenAI's routes. Needs httpx (extra [terminal])."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from ..errors import ConfigError, LlamaError, PromptTooLongError, RequestError
from ..printable import reason, shown
from ..prompts import SPECIAL_TAGS
from .backend import Ask, Chat, Completion, End, Infilling, Sampling, ServerError
from .sse import events

__all__ = ["KEY_VARIABLE", "RemoteBackend", "connect", "open_client", "read_key", "refusal"]

KEY_VARIABLE = "CODELLAMA_API_KEY"
# Seconds. A server answers only once a prompt is computed, or its queue has come that far.
_TIMEOUT = httpx.Timeout(600.0, connect=10.0)


class RemoteBackend:
    """A `Backend` on an open connection to a server; `connect` makes one."""

    def __init__(self, client: httpx.AsyncClient, name: str, context: int | None) -> None:
        self.name, self.context = name, context
        # The vocabulary is the server's to know, so the tags of both chat formats count.
        self.tags = tuple(SPECIAL_TAGS)
        self._client = client
        self._tokens_per_character: float | None = None

    def room(self, ask: Ask) -> int | None:
        """See `Backend`. Estimated from the last answer's prompt; the server has the last word."""
        if self.context is None or self._tokens_per_character is None:
            return None
        return self.context - math.ceil(_characters(ask) * self._tokens_per_character)

    async def stream(self, ask: Ask, sampling: Sampling) -> AsyncGenerator[str | End, None]:
        """See `Backend`."""
        path, body = self._body(ask, sampling)
        finish: str | None = None
        usage: dict[str, Any] = {}
        with _named(self._client):
            async with self._client.stream("POST", path, json=body) as response:
                if response.status_code != 200:
                    raise refusal(response.status_code, await response.aread())
                async with contextlib.aclosing(events(response.aiter_bytes())) as each:
                    async for data in each:
                        if data == "[DONE]":
                            break
                        text, reason_given, counts = _read(data)
                        finish, usage = reason_given or finish, counts or usage
                        if text:
                            yield text
        if finish is None:
            raise ServerError("the server broke the answer off")
        yield self._end(ask, finish, usage)

    def _body(self, ask: Ask, sampling: Sampling) -> tuple[str, dict[str, Any]]:
        body: dict[str, Any] = {
            "model": self.name,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if sampling.max_gen_len is not None:
            body["max_tokens"] = sampling.max_gen_len
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        match ask:
            case Completion(text):
                return "/v1/completions", {**body, "prompt": text}
            case Infilling(prefix, suffix):
                return "/v1/completions", {**body, "prompt": prefix, "suffix": suffix}
            case Chat(messages):
                return "/v1/chat/completions", {**body, "messages": list(messages)}

    def _end(self, ask: Ask, finish: str, usage: dict[str, Any]) -> End:
        prompt, generated = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        details = usage.get("prompt_tokens_details")
        reused = _count(details, "cached_tokens") if isinstance(details, dict) else None
        if prompt:
            self._tokens_per_character = prompt / max(1, _characters(ask))
        return End(finish, prompt, reused, generated)


@contextlib.asynccontextmanager
async def connect(
    url: str, key: str | None, model: str | None, transport: httpx.AsyncBaseTransport | None = None
) -> AsyncIterator[RemoteBackend]:
    """A backend on the server at `url`, which is asked for its model's name and context.

    Args:
        key: the API key.
        model: which of the server's models; by default its first.
        transport: by default the network.

    Raises:
        ServerError: nobody answers there, or the key is refused.
        ConfigError: the server does not have that model.
    """
    async with open_client(url, key, transport) as client:
        with _named(client):
            response = await client.get("/v1/models")
        if response.status_code in (404, 405):  # a server that does not list its models
            yield RemoteBackend(client, model or "", None)
            return
        if response.status_code != 200:
            raise refusal(response.status_code, response.content)
        found = _models(response.content)
        if model is None and not found:
            raise ServerError("the server names no model; name one with --model")
        if model is not None and found and model not in found:
            raise ConfigError(f"the server has no model {shown(model)}; it has {', '.join(found)}")
        name = model or next(iter(found))
        yield RemoteBackend(client, name, found.get(name))


def open_client(
    url: str, key: str | None, transport: httpx.AsyncBaseTransport | None = None
) -> httpx.AsyncClient:
    """A client whose paths begin at `url`; a /v1 at its end is dropped, since the paths have it.

    Raises:
        ConfigError: it is no URL of a server.
    """
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(
        base_url=_base(url), headers=headers, timeout=_TIMEOUT, limits=limits, transport=transport
    )


def _base(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text.rstrip("/").removesuffix("/v1"))
    except httpx.InvalidURL as error:
        raise ConfigError(f"{shown(text)} is not the URL of a server: {reason(error)}") from None
    if url.scheme not in ("http", "https") or not url.host or not text.isprintable() or " " in text:
        raise ConfigError(f"{shown(text)} is not the URL of a server, such as http://127.0.0.1:8000")
    return url


def read_key(file: Path | None) -> str | None:
    """The API key: the first line of `file` that is not empty, else the environment's, else None.

    Raises:
        ConfigError: the file has no such line, or the key cannot be sent in a header.
        OSError: it cannot be read.
    """
    if file is None:
        key = os.environ.get(KEY_VARIABLE, "").strip()
        source = KEY_VARIABLE
    else:
        key = next(filter(None, map(str.strip, file.read_text("utf-8", "replace").splitlines())), "")
        source = str(file)
        if not key:
            raise ConfigError(f"{source} holds no API key")
    if not all("!" <= character <= "~" for character in key):
        raise ConfigError(f"the API key in {source} holds a blank, or a character outside of ASCII")
    return key or None


def refusal(status: int, content: bytes) -> LlamaError:
    """The error that a server's answer other than 200 stands for."""
    message, code = _message(content)
    if code == "context_length_exceeded" or (status == 400 and "exceed_context" in str(code)):
        return PromptTooLongError(message)
    if status in (401, 403):
        return ServerError(
            f"the server refuses: {message or status} (a key is given by --api-key-file or {KEY_VARIABLE})"
        )
    if status in (400, 404, 413, 422):
        return RequestError(message or f"the server answers {status}")
    return ServerError(f"the server answers {status}{': ' * bool(message)}{message}")


@contextlib.contextmanager
def _named(client: httpx.AsyncClient) -> Any:
    """Turn httpx's errors into a ServerError that names the server."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise ServerError(f"{client.base_url} does not answer in time ({type(error).__name__})") from error
    except httpx.ConnectError as error:
        raise ServerError(f"no server answers at {client.base_url} ({reason(error)})") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServerError(f"the connection to {client.base_url} failed: {reason(error)}") from error


def _read(data: str) -> tuple[str, str | None, dict[str, Any] | None]:
    """One event -> its text, finish reason and usage, as far as it has them."""
    event = _parsed(data)
    if "error" in event:
        raise ServerError(f"the server ended the answer: {_message(data.encode('utf-8', 'replace'))[0]}")
    usage = event.get("usage")
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    if not isinstance(choice, dict):
        raise ServerError(f"the server sent a choice that is not an object: {shown(choice)}")
    delta = choice.get("delta")
    text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
    finish = choice.get("finish_reason")
    return (
        text if isinstance(text, str) else "",
        finish if isinstance(finish, str) else None,
        usage if isinstance(usage, dict) else None,
    )


def _parsed(data: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ServerError(f"the server sent what is not a JSON object: {shown(data)}")
    return found


def _models(content: bytes) -> dict[str, int | None]:
    """Name -> context of each model that the server lists."""
    listed = _parsed(content).get("data")
    entries = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    return {each["id"]: _count(each, "max_model_len") for each in entries if isinstance(each.get("id"), str)}


def _message(content: bytes) -> tuple[str, object]:
    """Message and code of an error's body, whichever family's shape it has."""
    try:
        error = _parsed(content).get("error", "")
    except ServerError:
        return content[:500].decode("utf-8", "replace").strip(), None
    if isinstance(error, dict):
        return str(error.get("message", "")), error.get("code") or error.get("type")
    return str(error), None


def _count(values: dict[str, Any], name: str) -> int | None:
    found = values.get(name)
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None


def _characters(ask: Ask) -> int:
    match ask:
        case Completion(text):
            return len(text)
        case Infilling(prefix, suffix):
            return len(prefix) + len(suffix)
        case Chat(messages):
            return sum(len(message["content"]) for message in messages)
