"""A batch of requests: many in flight, answers written in order. Needs httpx (extra [terminal]).

The requests go to OpenAI's routes, over the network or straight into the server's application in this
process, which needs no socket (and the extra [server]). So an answer is the same as a server's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from ..printable import reason, tell
from .backend import ServerError
from .batch_files import AnswerFile, BatchRequest, Json, count_requests, error_record, read_requests
from .progress import Progress
from .remote import refusal

__all__ = ["Answer", "Batch", "Poster", "run_requests"]

# How far answers may run ahead of the oldest one that is still awaited, in multiples of those in flight.
_AHEAD = 4
# A server that is starting, full, or behind a proxy that has lost it for a moment.
_PASSING = (429, 502, 503, 504)
_TRIES = 8
_LONGEST_WAIT = 30.0


@dataclass(frozen=True)
class Answer:
    """A server's answer to one request."""

    status: int
    body: Any
    request_id: str | None = None


Ask = Callable[[str, Json], Awaitable[Answer]]


class Poster:
    """Posts requests with `client`, and again where a server only cannot answer just now.

    Args:
        check: called behind an answer of 500 and above; raises if nothing can be answered any more, so that
            such answers are not taken for those of the requests.
        sleep: waits some seconds; a test puts its own in.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        check: Callable[[], None] = lambda: None,
        *,
        sleep: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
    ) -> None:
        self._client, self._check, self._sleep = client, check, sleep

    async def __call__(self, url: str, body: Json) -> Answer:
        """Post `body` to the route `url`.

        Raises:
            ServerError: the key is refused, or there is no answer after eight tries.
            Exception: what `check` raises.
        """
        # In ASCII, so that half a surrogate pair gets as far as the server, which refuses it by name.
        content = json.dumps(body).encode("ascii")
        headers = {"Content-Type": "application/json"}
        last = ""
        for attempt in range(_TRIES):
            wait = min(_LONGEST_WAIT, 0.5 * 2**attempt)
            try:
                response = await self._client.post(url, content=content, headers=headers)
            except httpx.TransportError as error:
                last = f"{type(error).__name__}: {reason(error)}"
            else:
                if response.status_code >= 500:
                    self._check()
                if response.status_code in (401, 403):
                    raise refusal(response.status_code, response.content)
                if response.status_code not in _PASSING:
                    return Answer(response.status_code, _body(response), response.headers.get("x-request-id"))
                last = str(refusal(response.status_code, response.content))
                wait = _retry_after(response, wait)
            if attempt < _TRIES - 1:
                await self._sleep(wait)
        raise ServerError(f"{self._client.base_url} gave no answer in {_TRIES} tries; the last: {last}")


def _body(response: httpx.Response) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError):
        return {"error": {"message": response.text[:1000]}}


def _retry_after(response: httpx.Response, default: float) -> float:
    try:
        seconds = float(response.headers["retry-after"])
    except (KeyError, ValueError):  # none, or a date
        return default
    return min(_LONGEST_WAIT, max(0.0, seconds)) if seconds == seconds else default


async def run_requests(
    requests: Iterable[BatchRequest], ask: Ask, in_flight: int, write: Callable[[Json], object]
) -> None:
    """Ask all requests, at most `in_flight` at the same time, and write their records in order.

    Raises:
        ServerError: as `ask`; all records before that request are written.
    """
    slots = asyncio.Semaphore(in_flight)
    pending: deque[asyncio.Task[Json]] = deque()

    async def record(request: BatchRequest) -> Json:
        if request.problem is not None:
            return error_record(request, "invalid_request", request.problem)
        async with slots:
            answer = await ask(request.url, request.body)
        response = {"status_code": answer.status, "request_id": answer.request_id, "body": answer.body}
        return {"id": request.id, "custom_id": request.custom_id, "response": response, "error": None}

    try:
        for request in requests:
            pending.append(asyncio.ensure_future(record(request)))
            while pending and (len(pending) >= _AHEAD * in_flight or pending[0].done()):
                write(await pending[0])
                pending.popleft()
        while pending:
            write(await pending[0])
            pending.popleft()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


class Batch:
    """IN and OUT, opened and checked, until the end of a `with`; `run` does what is left of it.

    Raises:
        ConfigError, OSError: as `AnswerFile` and `read_requests`.
    """

    def __init__(self, source: Path, target: Path) -> None:
        self._source = source
        self._answers = AnswerFile(target, source)
        self._total = count_requests(source)
        if self._answers.torn:
            tell(f"the last line of {target} was incomplete; it is dropped")
        if self._answers.done:
            tell(f"{self._answers.done:,} of {self._total:,} requests are done already")

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        self._answers.__exit__(kind, error, trace)

    @property
    def done(self) -> bool:
        """Whether nothing is left, so that no model has to be loaded."""
        return self._answers.done == self._total

    async def run(self, ask: Ask, in_flight: int) -> int:
        """Ask what is left -> the exit code, 0. Raises ServerError, OSError."""
        with self.writing() as write:
            await run_requests(self.left(), ask, in_flight, write)
        return 0

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[[Json], None]]:
        """A function that appends the record of the next request; the whole is told at the end of the block."""
        progress = Progress(self._total, self._answers.done)
        counts = {"answered": 0, "refused": 0}

        def write(record: Json) -> None:
            self._answers.append(record)
            response = record["response"]
            counts["answered" if response and response["status_code"] == 200 else "refused"] += 1
            progress.advance()

        try:
            yield write
        except BaseException:
            progress.clear()
            done = self._answers.done + sum(counts.values())
            tell(f"{done:,} of {self._total:,} requests are done; run the same command to continue")
            raise
        progress.clear()
        tell(
            f"{counts['answered']:,} requests answered, {counts['refused']:,} refused, in {self._answers.path}"
        )

    def left(self) -> Iterator[BatchRequest]:
        """The requests that have no record yet."""
        return islice(read_requests(self._source), self._answers.done, None)
