"""Answers as ASGI applications: at once, whole after a run, or streamed. Pure ASGI, since a token is one event.

While a run goes on, a watcher listens for the client to leave: the run is then cancelled before the engine's
next step. It also keeps a silent stream alive.
"""

from __future__ import annotations

import asyncio
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .. import TextDelta
from .outputs import News, Output
from .problems import Family, Problem, problem_of
from .service import Run

__all__ = ["Encoder", "JsonReply", "StreamReply", "WholeReply", "dumps", "event", "joined"]

_log = logging.getLogger("llama.serving.http")


# One encoder for all calls: json.dumps would make a new one for each, and a token needs several.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def dumps(value: Any) -> str:
    """JSON on one line without spaces, since llama.vim searches the text for `"content":`."""
    return _encode(value)


def event(value: Any) -> bytes:
    """A server-sent event with a JSON value."""
    return f"data: {dumps(value)}\n\n".encode()


def joined(news: Sequence[News]) -> Sequence[News]:
    """News with one delta for each sample: what a client did not read in time goes out as one event."""
    if len(news) == 1:
        return news
    found: dict[tuple[int, int], list[TextDelta]] = {}
    for row, delta in news:
        found.setdefault((row, delta.sample), []).append(delta)
    return [News(row, TextDelta.joined(deltas)) for (row, _), deltas in found.items()]


class Encoder(ABC):
    """Turns a run's news into the bytes of a family's stream, by default server-sent events.

    media_type: of the stream. ping: sent when the stream has been silent; empty where the protocol has no
    line that clients skip.
    """

    family: ClassVar[Family]
    media_type: ClassVar[str] = "text/event-stream"
    ping: ClassVar[bytes] = b": ping\n\n"

    def begin(self) -> bytes:
        """Sent with the head of the answer."""
        return b""

    @abstractmethod
    def news(self, news: Sequence[News]) -> bytes:
        """New text of some samples. Several deltas of a sample may become one event."""

    def end(self) -> bytes:
        """Sent after the last news."""
        return b""

    def failed(self, problem: Problem) -> bytes:
        """The last event of a stream that failed."""
        return event(self.family.error(problem))


class JsonReply(Response):
    """A JSON value that is there already."""

    media_type = "application/json"

    def __init__(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(dumps(value).encode(), status, headers)

    @classmethod
    def of(cls, family: Family, error: BaseException) -> JsonReply:
        """The answer of a family to an error; one that is not expected goes to the log with its traceback."""
        problem = problem_of(error)
        if problem.status >= 500 and not isinstance(error, Problem):
            _log.error("a request failed", exc_info=error)
        return cls(family.error(problem), family.status(problem), problem.headers)


class _RunReply(Response):
    """What answers made by a run share: it goes on only as long as its client is there."""

    def __init__(self, run: Run, family: Family) -> None:
        self.run, self.family = run, family
        self.background = None
        self._last_sent = 0.0

    @property
    def seconds(self) -> float:
        """The longest that the run may take."""
        return self.run.service.settings.request_timeout

    async def _while_connected(
        self, work: Any, receive: Receive, ping: Callable[[], Any] | None = None
    ) -> None:
        """Await `work`; cancel it if the client leaves."""
        task = asyncio.ensure_future(work)
        watcher = asyncio.ensure_future(self._watch(receive, ping))
        try:
            await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watcher.cancel()
            task.cancel()
            await asyncio.wait({task, watcher})
        if not task.cancelled():
            task.result()

    async def _watch(self, receive: Receive, ping: Callable[[], Any] | None) -> None:
        """Return when the client has left. Meanwhile `ping` after each spell of silence."""
        loop = asyncio.get_running_loop()
        silence = self.run.service.settings.ping_seconds
        while True:
            wait = max(0.0, self._last_sent + silence - loop.time()) if ping else None
            try:
                async with asyncio.timeout(wait):
                    if (await receive())["type"] == "http.disconnect":
                        return
            except TimeoutError:
                if ping is not None and loop.time() - self._last_sent >= silence:
                    await ping()

    async def _timed(self, work: Any) -> None:
        try:
            async with asyncio.timeout(self.seconds):
                await work
        except TimeoutError:
            message = f"the answer was not complete after {self.seconds:g} s; ask for fewer tokens"
            raise Problem(408, "request_timeout", message) from None


class WholeReply(_RunReply):
    """One JSON value, made of the run's outputs.

    Args:
        render: the outputs of each prompt -> the value. It may raise a Problem.
        watch: called with all news as they come, for doors that may cut samples.
    """

    def __init__(
        self,
        run: Run,
        family: Family,
        render: Callable[[list[list[Output]]], Any],
        watch: Callable[[Sequence[News]], object] | None = None,
    ) -> None:
        super().__init__(run, family)
        self._value, self._seen = render, watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def collect() -> None:
            async for news in self.run:
                if self._seen is not None:
                    self._seen(news)

        async def answer() -> None:
            try:
                await self._timed(collect())
                reply = JsonReply(self._value(self.run.outputs))
            except Exception as error:
                reply = JsonReply.of(self.family, error)
            await reply(scope, receive, send)

        await self._while_connected(answer(), receive)


class StreamReply(_RunReply):
    """A run's news as they come, in its family's encoding. The head is sent at once."""

    def __init__(self, run: Run, encoder: Encoder) -> None:
        super().__init__(run, encoder.family)
        self.encoder = encoder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        encoder = self.encoder
        loop = asyncio.get_running_loop()

        async def put(body: bytes, more: bool = True) -> None:
            if body or not more:
                await send({"type": "http.response.body", "body": body, "more_body": more})
                self._last_sent = loop.time()

        async def pump() -> None:
            async for news in self.run:
                await put(encoder.news(news))

        async def answer() -> None:
            head = [
                (b"content-type", encoder.media_type.encode()),
                (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),  # nginx would collect the events
            ]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            await put(encoder.begin())
            try:
                await self._timed(pump())
                last = encoder.end()
            except Exception as error:
                problem = problem_of(error)
                if problem.status >= 500 and not isinstance(error, Problem):
                    _log.error("a stream failed", exc_info=error)
                last = encoder.failed(problem)
            await put(last, more=False)

        self._last_sent = loop.time()
        ping = (lambda: put(encoder.ping)) if encoder.ping else None
        await self._while_connected(answer(), receive, ping)
