"""A server of the OpenAI routes whose answers a test writes, in a thread: for what is in front of a server.

It speaks the shapes that the playground reads: streams with log-probabilities, usage at the end, errors. As a
program it serves the playground's page too, and `/script` sets the script and tells what was seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from ranks import HANGS
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

PIECES = re.compile(r"\s?\w+|\s+|[^\w\s]")


def pieces(text: str) -> list[str]:
    """The tokens of a script; joined they are the text."""
    return PIECES.findall(text)


@dataclass
class Script:
    """What the server answers, and what it has seen."""

    answer: str = "hello world"
    delay: float = 0.0  # seconds before each token
    hold_after: int | None = None  # tokens after which the answer waits for `go_on`
    break_after: int | None = None  # tokens after which the connection breaks
    refuse: tuple[int, str] | None = None  # status and message
    key: str | None = None
    infill: bool = True
    chat_format: str | None = "inst"
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)  # path, headers, body
    go_on: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)  # a caller closed a stream early
    url: str = ""

    def reset(self) -> None:
        """As if nothing had been asked; the next test's script begins here."""
        self.go_on.set()  # nothing waits any more
        vars(self).update(vars(Script(url=self.url)))


def _error(status: int, message: str) -> Response:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    return JSONResponse(body, status)


def _scores(token: str, place: int, top: int) -> list[tuple[str, float]]:
    """The token and `top` others, with probabilities that depend on their place alone."""
    p = (0.97, 0.62, 0.93, 0.28, 0.99, 0.11, 0.8, 0.03)[place % 8]
    others = [(f" other{i}", math.log((1 - p) / 2 ** (i + 1))) for i in range(top - 1)]
    return [(token, math.log(p)), *others]


def _choice(token: str, place: int, body: dict[str, Any], *, chat: bool) -> dict[str, Any]:
    scores = _scores(token, place, int(body.get("top_logprobs" if chat else "logprobs") or 0))
    choice: dict[str, Any] = {"index": 0, "finish_reason": None}
    if chat:
        choice["delta"] = {"content": token}
        top = [{"token": t, "logprob": p, "bytes": list(t.encode())} for t, p in scores]
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    else:
        choice["text"] = token
        if body.get("logprobs") is not None:
            choice["logprobs"] = {
                "tokens": [token],
                "token_logprobs": [scores[0][1]],
                "top_logprobs": [dict(scores)],
                "text_offset": [0],
            }
    return choice


class _Routes:
    def __init__(self, script: Script) -> None:
        self.script = script

    async def models(self, request: Request) -> Response:
        if not self._allowed(request):
            return _error(401, "a key is needed")
        capabilities = {"infill": self.script.infill, "chat_format": self.script.chat_format}
        one = {"id": "scripted-7b", "object": "model", "max_model_len": 4096, "capabilities": capabilities}
        return JSONResponse({"object": "list", "data": [one]})

    async def generate(self, request: Request) -> Response:
        script = self.script
        body = await request.json()
        script.requests.append((request.url.path, dict(request.headers), body))
        if not self._allowed(request):
            return _error(401, "a key is needed")
        if script.refuse is not None:
            return _error(*script.refuse)
        chat = "chat" in request.url.path
        stream = self._stream(body, chat=chat)
        return StreamingResponse(stream, headers=script.headers, media_type="text/event-stream")

    def _allowed(self, request: Request) -> bool:
        return self.script.key in (None, request.headers.get("authorization", "").removeprefix("Bearer "))

    async def _stream(self, body: dict[str, Any], *, chat: bool) -> AsyncIterator[bytes]:
        script = self.script
        tokens = pieces(script.answer)[: body.get("max_tokens")]
        ended = False
        try:
            yield b": ping\n\n"
            for place, token in enumerate(tokens):
                await asyncio.sleep(script.delay)
                if place == script.hold_after:
                    while not script.go_on.is_set():
                        await asyncio.sleep(0.01)
                if place == script.break_after:
                    raise ConnectionAbortedError("as the script says")
                yield _event({"choices": [_choice(token, place, body, chat=chat)]})
            last = {"index": 0, "finish_reason": "stop", **({"delta": {}} if chat else {"text": ""})}
            yield _event({"choices": [last]})
            usage = {"prompt_tokens": 7, "completion_tokens": len(tokens), "total_tokens": 7 + len(tokens)}
            yield _event({"choices": [], "usage": usage})
            yield b"data: [DONE]\n\n"
            ended = True
        finally:
            if not ended:
                script.left.set()


def _event(body: dict[str, Any]) -> bytes:
    whole = {"id": "cmpl-1", "object": "chunk", "created": 1, "model": "scripted-7b", **body}
    return f"data: {json.dumps(whole)}\n\n".encode()


@contextlib.contextmanager
def served(app: ASGIApp, port: int = 0) -> Iterator[str]:
    """An ASGI application at an address of this machine, in a thread -> its URL."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    listening.listen()  # who comes before the thread is ready waits
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(HANGS)
        listening.close()


def _control(script: Script) -> Route:
    """PUT: fields of the script, all others as at first. POST: further fields. GET: what has been seen."""

    async def control(request: Request) -> Response:
        if request.method == "PUT":
            script.reset()
        if request.method != "GET":
            for name, value in (await request.json()).items():
                if name == "go_on":
                    script.go_on.set()
                else:
                    setattr(script, name, tuple(value) if name == "refuse" and value else value)
        return JSONResponse({"requests": script.requests, "left": script.left.is_set()})

    return Route("/script", control, methods=["GET", "PUT", "POST"])


@contextlib.contextmanager
def scripted_server(*more: BaseRoute, port: int = 0) -> Iterator[Script]:
    """The server, with further routes, while the block runs."""
    script = Script()
    routes = _Routes(script)
    paths = [
        _control(script),
        Route("/v1/models", routes.models),
        Route("/v1/completions", routes.generate, methods=["POST"]),
        Route("/v1/chat/completions", routes.generate, methods=["POST"]),
    ]
    with served(Starlette(routes=[*more, *paths]), port) as script.url:
        yield script


if __name__ == "__main__":
    from llama.serving.http.playground import pages

    with scripted_server(*pages.routes(), port=int(sys.argv[1])) as running:
        print(running.url, flush=True)
        sys.stdin.read()  # until the test closes it, or ends
