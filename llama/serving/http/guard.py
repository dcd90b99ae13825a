"""What stands before all routes: request ids, keys, hosts, origins, one line in the log. Pure ASGI.

A server on a developer's machine is reachable by every page that the developer opens. A page of another
origin is stopped by its Origin header, and one whose name was made to point here (DNS rebinding) by its Host
header.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable

from opentelemetry import propagate, trace
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .addresses import host_is_allowed
from .problems import Family, Problem
from .replies import JsonReply
from .service import Service
from .settings import Settings

__all__ = ["Guard"]

_tracer = trace.get_tracer("llama.serving.http")
_log = logging.getLogger("llama.serving.http")
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_CLIENT_LEFT = 499
# Probes have no key, and a page has none before it is loaded.
_OPEN_PATHS = ("/health", "/v1/health")


class _Answer:
    """An answer on its way: it gets a request id, and is remembered for the log.

    status: as sent. begun: whether any of it was. over: whether the client had all of it.
    """

    def __init__(self, scope: Scope, headers: Headers, send: Send) -> None:
        self._scope, self._send, self._began = scope, send, time.monotonic()
        given = headers.get("x-request-id", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"
        self.status, self.begun, self.over = _CLIENT_LEFT, False, False

    @property
    def final_status(self) -> int:
        """As sent; 499, nginx's code, where the client left before the end."""
        return self.status if self.over else _CLIENT_LEFT

    @property
    def route(self) -> str:
        """The path of the route, which the router leaves in the scope: strangers must not invent names."""
        return getattr(self._scope.get("route"), "path", "unknown")

    async def send(self, message: Message) -> None:
        """Hand a part of the answer on."""
        if message["type"] == "http.response.start":
            self.status, self.begun = message["status"], True
            MutableHeaders(scope=message)["x-request-id"] = self.request_id
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.over = True

    def __str__(self) -> str:
        seconds, path = time.monotonic() - self._began, ascii(self._scope["path"])[1:-1]
        return f"{self.request_id} {self._scope['method']} {path} {self.final_status} {seconds:.3f} s"


class Guard:
    """Lets a request through to the application, or answers itself.

    Args:
        family_of: a path -> the family in whose shape errors are told there.
    """

    def __init__(self, app: ASGIApp, service: Service, family_of: Callable[[str], Family]) -> None:
        self.app, self.service, self.family_of = app, service, family_of
        self._keys = [_digest(key.encode()) for key in service.settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # Without an SDK of OpenTelemetry these are empty calls.
        with _tracer.start_as_current_span(
            scope["method"],
            propagate.extract(headers),
            trace.SpanKind.SERVER,
            {"http.request.method": scope["method"], "url.path": scope["path"]},
        ) as span:
            answer = _Answer(scope, headers, send)
            try:
                problem = self._problem(scope, headers)
                if problem is None:
                    await self.app(scope, receive, answer.send)
                else:
                    await JsonReply.of(self.family_of(scope["path"]), problem)(scope, receive, answer.send)
            except asyncio.CancelledError:
                # The server ends, and this client has not sent all of its body, or not read all of its answer.
                if not answer.begun:
                    problem = Problem(503, "unavailable", "the server is about to end; try another one")
                    await JsonReply.of(self.family_of(scope["path"]), problem)(scope, receive, answer.send)
            finally:
                route = answer.route
                span.update_name(f"{scope['method']} {route}")
                span.set_attributes({"http.route": route, "http.response.status_code": answer.final_status})
                self.service.metrics.answered(route, answer.final_status)
                _log.info("%s", answer)

    def _problem(self, scope: Scope, headers: Headers) -> Problem | None:
        """Why a request is not let through, or None."""
        settings = self.service.settings
        host = headers.get("host", "")
        if not host_is_allowed(host, settings.host, settings.allowed_hosts):
            message = f"the Host header names {host!a}; start the server with --allowed-hosts to allow that"
            return Problem(403, "forbidden", message)
        origin = headers.get("origin")
        if origin is not None and not _origin_is_allowed(origin, host, settings):
            message = f"pages of {origin!a} may not call; start the server with --cors-origin to allow that"
            return Problem(403, "forbidden", message)
        if self._keys and not _is_open(scope) and not self._has_key(headers):
            message = "no valid API key; send it as Authorization: Bearer or X-Api-Key"
            return Problem(401, "unauthorized", message, headers={"WWW-Authenticate": "Bearer"})
        return None

    def _has_key(self, headers: Headers) -> bool:
        kind, _, token = headers.get("authorization", "").partition(" ")
        given = [token.strip()] if kind.lower() == "bearer" else []
        given.append(headers.get("x-api-key", ""))
        # All keys are compared, and digests of one length: the time says nothing about how near a guess was.
        found = [
            hmac.compare_digest(_digest(each.encode("latin-1")), key) for each in given for key in self._keys
        ]
        return any(found)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _is_open(scope: Scope) -> bool:
    path = scope["path"]
    page = scope["method"] in ("GET", "HEAD") and (path == "/" or path.startswith("/playground"))
    # A browser asks by OPTIONS, without a key, whether its page may send one.
    return path in _OPEN_PATHS or page or scope["method"] == "OPTIONS"


def _origin_is_allowed(origin: str, host: str, settings: Settings) -> bool:
    if "*" in settings.cors_origins or origin in settings.cors_origins:
        return True
    # Not parsed: strangers write it, and urlsplit raises for some of that.
    return bool(host) and origin.partition("://")[2] == host
