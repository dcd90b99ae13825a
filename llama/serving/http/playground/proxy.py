"""`codellama playground`: the page on this machine, for a server that runs elsewhere.

The page asks only its own origin. What it asks the server for is handed on by this process, so the server needs no
CORS, and an API key stays here: the browser never sees it. Only the paths in `FORWARDED` are handed on.

The page's port is open to this machine, and with a key file it speaks with the key's rights. So a browser that shows
another site must not reach it: a request whose Host is not this address (DNS rebinding), or whose Origin is another
one, is refused. Never imports torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from urllib.parse import urlsplit

import httpx
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ....errors import ConfigError
from ....printable import reason, shown
from ..addresses import host_is_allowed, is_local
from .pages import routes

__all__ = ["FORWARDED", "base_url", "make_app"]

FORWARDED = {
    "/v1/models": "GET",
    "/health": "GET",
    "/v1/completions": "POST",
    "/v1/chat/completions": "POST",
}
MAX_BODY = 8 << 20  # bytes, as the server's own default
CONNECT_SECONDS = 10.0
# What means something to the server, and what to the page; the rest belongs to one of the two connections.
_REQUEST_HEADERS = ("accept", "authorization", "content-type", "x-api-key", "x-request-id")
_ANSWER_HEADERS = ("cache-control", "content-type", "retry-after", "x-request-id")


def base_url(text: str) -> httpx.URL:
    """The address of a server as the user wrote it: http://host:port, a path in front of `/v1` kept.

    Raises:
        ConfigError: it is no address of an HTTP server.
    """
    bare = shown(text.rpartition("@")[2])  # without a password
    try:
        url = httpx.URL(text if "://" in text else f"http://{text}")
    except (httpx.InvalidURL, ValueError) as error:
        raise ConfigError(f"{bare} is not the address of a server: {reason(error)}") from None
    if url.scheme not in ("http", "https") or not url.host or any(each.isspace() for each in text):
        raise ConfigError(f"{bare} is not the address of a server; write it as http://HOST:PORT")
    if url.userinfo or url.query or url.fragment:
        raise ConfigError(
            "the address of the server holds more than host, port and path; pass a key with --api-key-file"
        )
    path = url.path.rstrip("/").removesuffix("/v1")  # people copy the base URL of an OpenAI client
    return url.copy_with(path=path or "/")


def make_app(
    server: httpx.URL,
    *,
    key: str | None = None,
    host: str = "127.0.0.1",
    allowed_hosts: tuple[str, ...] = (),
) -> ASGIApp:
    """The page's files, and the paths of `FORWARDED` at `server`.

    Args:
        server: as `base_url` gives it.
        key: sent as a Bearer token in place of what the page sends.
        host, allowed_hosts: where this listens, and under which further names a browser may ask.
    """
    forward = _Forward(server, key)
    paths = [Route(path, forward, methods=[method]) for path, method in FORWARDED.items()]

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with forward.client:
            yield

    app = Starlette(routes=[*routes(str(server).rstrip("/")), *paths], lifespan=lifespan)
    return _SameOriginOnly(app, host, allowed_hosts)


class _SameOriginOnly:
    """Refuses what a page of another site, or another name for this address, would send."""

    def __init__(self, app: ASGIApp, host: str, allowed_hosts: tuple[str, ...]) -> None:
        self.app, self.host, self.allowed_hosts = app, host, allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (problem := self._problem(Headers(scope=scope))):
            await _error(403, problem)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _problem(self, headers: Headers) -> str | None:
        host = headers.get("host", "")
        if not host_is_allowed(host, self.host, self.allowed_hosts):
            return f"the Host header names {shown(host)}; start with --allowed-hosts to allow that"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return f"pages of {shown(origin)} may not call; open this page itself"
        return None


class _Forward:
    """One request to the server and its answer back, piece by piece as they come."""

    def __init__(self, server: httpx.URL, key: str | None) -> None:
        self.server, self.key = server, key
        # A stream may be silent for as long as a long prompt takes; the server's pings do not bound that.
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        # A proxy of the environment is for other machines.
        self.client = httpx.AsyncClient(timeout=timeout, trust_env=not is_local(server.host))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        if body is None:
            return  # the caller left
        if len(body) > MAX_BODY:
            await _error(413, f"the request is larger than {MAX_BODY:,} bytes")(scope, receive, send)
            return
        answer = asyncio.ensure_future(self._answer(scope, body, send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Cancelling the answer closes its connection; the server takes that as a caller that left.
            for task in (answer, gone):
                task.cancel()
            await asyncio.gather(answer, gone, return_exceptions=True)
        if not answer.cancelled() and (error := answer.exception()) is not None:
            raise error

    async def _answer(self, scope: Scope, body: bytes, send: Send) -> None:
        request = self.client.build_request(
            scope["method"],
            self.server.copy_with(path=self.server.path.rstrip("/") + scope["path"]),
            headers=self._headers(Headers(scope=scope)),
            content=body,
        )
        try:
            answer = await self.client.send(request, stream=True)
        except httpx.HTTPError as error:
            message = f"the server at {self.server} cannot be reached ({reason(error)})"
            await _error(502, message)(scope, _nothing, send)
            return
        try:
            await _hand_on(answer, send)
        finally:
            await answer.aclose()

    def _headers(self, sent: Headers) -> dict[str, str]:
        headers = {name: sent[name] for name in _REQUEST_HEADERS if name in sent}
        headers["accept-encoding"] = "identity"  # pieces of a compressed stream would wait for one another
        if self.key is not None:
            headers.pop("x-api-key", None)
            headers["authorization"] = f"Bearer {self.key}"
        return headers


async def _hand_on(answer: httpx.Response, send: Send) -> None:
    """The answer's status, some headers, and its body; a stream that breaks off ends with an event that says so."""
    kept = [
        (name.encode(), answer.headers[name].encode()) for name in _ANSWER_HEADERS if name in answer.headers
    ]
    await send({"type": "http.response.start", "status": answer.status_code, "headers": kept})
    broken = b""
    try:
        async for piece in answer.aiter_raw():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    except httpx.HTTPError as error:
        message = f"the connection to the server was lost ({reason(error)})"
        broken = f"\n\ndata: {json.dumps(_problem(message, 502))}\n\n".encode()
        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
            raise  # a body cut short: the browser must not take it for a whole one
    await send({"type": "http.response.body", "body": broken})


async def _body(receive: Receive) -> bytes | None:
    """The request's body, read no further than it takes to see that it is too large; None if the caller left."""
    body = b""
    while len(body) <= MAX_BODY:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return body


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _nothing() -> Message:
    raise RuntimeError("an answer reads no request")


def _problem(message: str, status: int) -> Mapping[str, object]:
    """An error in the shape of the OpenAI routes."""
    return {"error": {"message": message, "type": "playground_error", "param": None, "code": status}}


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse(_problem(message, status), status)
