"""A server's model as a `Generator`: any that has OpenAI's /v1/completions. Never imports torch.

Each sample is one request with its own seed. Infilling uses the field `suffix`, chat /v1/chat/completions. Without a
token count from the server a sample has 0, without a finish reason "unknown". Needs httpx, of the extra [eval].
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import queue
import re
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx

from ..errors import ConfigError, EvaluationError, LlamaError, PromptTooLongError
from ..printable import shown
from ..terminal.backend import ServerError
from ..terminal.batch import Answer as Reply
from ..terminal.batch import Poster
from ..terminal.remote import connect, open_client, read_key, refusal
from .generator import PROMPT_TOO_LONG, UNSAFE_TAG, ModelInfo, SampleRequest
from .problem import Answer, Order
from .settings import Settings

__all__ = ["UNKNOWN", "RemoteGenerator", "sample_seed"]

UNKNOWN = "unknown"
"""Finish reason of an answer whose server gives none."""

_COMPLETIONS, _CHAT = "/v1/completions", "/v1/chat/completions"
# The names of OpenAI, text-generation-inference, Anthropic and llama.cpp.
_FINISH = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop_sequence",
    "length": "length",
    "max_tokens": "length",
    "limit": "length",
}
# Most stop strings of OpenAI's own API; servers that keep to it refuse HumanEval's five.
_FEW_STOPS = 4
# What servers without OpenAI's error code say of a prompt that is too long.
_TOO_LONG = re.compile(r"context (length|window|size)|maximum (model )?length|too (many tokens|long)", re.I)
_Item = TypeVar("_Item")


def sample_seed(seed: int, sample: int) -> int:
    """The seed of the request for a sample of a problem with this seed: below 2**31, which every server takes."""
    digest = hashlib.sha256(b"%d\n%d" % (seed, sample)).digest()
    return int.from_bytes(digest[:4], "big") >> 1


class RemoteGenerator:
    """A `Generator` on a server. The server is asked for its model at once, and keeps no connection open between calls.

    Args:
        url: with or without a /v1 at its end.
        model: which of the server's models; by default its first.
        key_file: its first line that is not empty is the API key; by default the environment's CODELLAMA_API_KEY.
        in_flight: most requests at the same time.
        transport, sleep: the network, and what waits between tries; tests put their own in.

    Raises:
        ConfigError: the URL, the key or `in_flight` is invalid, or the server does not have that model.
        ServerError: nobody answers there, or the key is refused.
        OSError: the file of the key cannot be read.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        key_file: Path | None = None,
        *,
        in_flight: int = 32,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
    ) -> None:
        if in_flight < 1:
            raise ConfigError(f"in_flight is {in_flight}; it must be at least 1")
        self._url, self._key, self._in_flight = url, read_key(key_file), in_flight
        self._transport, self._sleep = transport, sleep
        self._most_stops: int | None = None

        async def find(put: Callable[[ModelInfo], None]) -> None:
            async with connect(url, self._key, model, transport) as backend:
                put(ModelInfo(backend.name, max_seq_len=backend.context, url=_shown_url(url)))

        (self._model,) = _in_thread(find)

    @property
    def model(self) -> ModelInfo:
        """Name, context and address; a server does not tell more."""
        return self._model

    def generate(self, requests: Sequence[SampleRequest], settings: Settings) -> Iterator[Answer]:
        """See `Generator`. A server that only cannot answer just now is asked again, eight times in a minute or so.

        Raises:
            EvaluationError: the order is spm, which cannot be asked for; the server ignores or refuses `suffix`; it
                refuses a request for another reason than its length.
            ServerError: it cannot be reached any more, or its answer makes no sense.
        """
        if any(request.order is Order.SPM for request in requests):
            raise EvaluationError(
                "a server lays a hole out in an order of its own, so spm cannot be asked for; take order psm with a URL"
            )

        async def answer_all(put: Callable[[Answer], None]) -> None:
            async with open_client(self._url, self._key, self._transport) as client:
                await self._answer_all(Poster(client, sleep=self._sleep), requests, settings, put)

        return _in_thread(answer_all)

    async def _answer_all(
        self,
        post: Poster,
        requests: Sequence[SampleRequest],
        settings: Settings,
        put: Callable[[Answer], None],
    ) -> None:
        await self._check_suffix(post, requests, settings)
        samples = ((request, sample) for request in requests for sample in request.samples)

        async def work() -> None:
            for request, sample in samples:  # all workers take from the same iterator
                put(await self._answer(post, request, sample, settings))

        workers = [asyncio.ensure_future(work()) for _ in range(self._in_flight)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _check_suffix(
        self, post: Poster, requests: Sequence[SampleRequest], settings: Settings
    ) -> None:
        """Find a server that silently ignores `suffix`: the prompt has no more tokens with it than without."""
        request = max(requests, key=lambda each: len(each.problem.suffix or ""), default=None)
        if request is None or not request.problem.suffix:
            return
        body = {**self._body(request, request.first, settings), "max_tokens": 1, "temperature": 0}
        with_suffix = await post(_COMPLETIONS, body)
        if with_suffix.status != 200:
            self._refused(with_suffix, request, request.first)  # raises, unless this prompt alone is too long
            return
        del body["suffix"]
        longer, shorter = _prompt_tokens(with_suffix), _prompt_tokens(await post(_COMPLETIONS, body))
        if longer is not None and shorter is not None and longer <= shorter:
            raise EvaluationError(
                f"{self._model.url} ignores the field suffix (a prompt has {longer:,} tokens with it, and {shorter:,}"
                " without), so it cannot fill holes; use a server that can, such as codellama serve"
            )

    async def _answer(self, post: Poster, request: SampleRequest, sample: int, settings: Settings) -> Answer:
        route = _CHAT if request.order is Order.CHAT else _COMPLETIONS
        reply = await post(route, self._body(request, sample, settings))
        if reply.status in (400, 422) and self._has_too_many_stops(reply, request):
            self._most_stops = _FEW_STOPS
            reply = await post(route, self._body(request, sample, settings))
        if reply.status != 200:
            return self._refused(reply, request, sample)
        text, finish = _read(reply.body, request.order)
        end = min((at for stop in request.stops if (at := text.find(stop)) >= 0), default=None)
        if end is not None:  # a server that was told only some of the stops, or that includes them
            text, finish = text[:end], "stop_sequence"
        tokens = _count(reply.body, "completion_tokens") or 0
        return request.answer(sample, text, tokens, finish)

    def _body(self, request: SampleRequest, sample: int, settings: Settings) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model.name,
            "max_tokens": settings.max_gen_len,
            "temperature": settings.temperature,
            # At temperature 0 it changes nothing, and some servers refuse the 0 that is allowed here.
            "top_p": settings.top_p if settings.temperature else 1,
            "seed": sample_seed(request.seed, sample),
        }
        if stops := request.stops[: self._most_stops]:
            body["stop"] = list(stops)
        if request.order is Order.CHAT:
            return {**body, "messages": [{"role": "user", "content": request.problem.question}]}
        if request.problem.suffix is not None:
            body["suffix"] = request.problem.suffix
        return {**body, "prompt": request.problem.prompt}

    def _has_too_many_stops(self, reply: Reply, request: SampleRequest) -> bool:
        too_many = self._most_stops is None and len(request.stops) > _FEW_STOPS
        return too_many and "stop" in str(_refusal(reply)).lower()

    def _refused(self, reply: Reply, request: SampleRequest, sample: int) -> Answer:
        """The answer without text that a refusal of this prompt alone stands for; else the error."""
        error = _refusal(reply)
        found = reply.body.get("error") if isinstance(reply.body, dict) else None
        code = found.get("code") if isinstance(found, dict) else None
        why = None
        if isinstance(error, PromptTooLongError) or (
            reply.status in (400, 413, 422) and _TOO_LONG.search(str(error))
        ):
            why = PROMPT_TOO_LONG
        elif code == "unsafe_tag":
            why = UNSAFE_TAG
        if why is not None:
            return request.answer(sample, "", 0, why)
        if reply.status >= 500:
            raise error
        if request.problem.suffix is not None and (code == "unsupported" or "suffix" in str(error)):
            raise EvaluationError(
                f"{self._model.url} cannot fill holes: {error}; use a model that can, on a server whose /v1/completions"
                " takes suffix, such as codellama serve"
            )
        raise EvaluationError(
            f"{self._model.url} refuses {request.problem.task_id} ({reply.status}): {error}"
        )


def _read(body: Any, order: Order) -> tuple[str, str]:
    """Text and finish reason of an answer."""
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(choice, dict):
        holder = choice.get("message") if order is Order.CHAT else choice
        text = holder.get("content" if order is Order.CHAT else "text") if isinstance(holder, dict) else None
        if text is None and order is Order.CHAT and isinstance(holder, dict):
            text = ""  # a message without content, such as a refusal
        if isinstance(text, str):
            finish = choice.get("finish_reason")
            return text, _FINISH.get(finish, finish) if isinstance(finish, str) and finish else UNKNOWN
    raise ServerError(f"the server sent an answer without a text: {shown(body)}")


def _prompt_tokens(reply: Reply) -> int | None:
    return _count(reply.body, "prompt_tokens") if reply.status == 200 else None


def _count(body: Any, name: str) -> int | None:
    usage = body.get("usage") if isinstance(body, dict) else None
    found = usage.get(name) if isinstance(usage, dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None


def _refusal(reply: Reply) -> LlamaError:
    return refusal(reply.status, json.dumps(reply.body).encode("ascii"))


def _shown_url(text: str) -> str:
    """A URL for reports, the same however it was written: without a password and /v1."""
    return str(httpx.URL(text).copy_with(username="", password="")).rstrip("/").removesuffix("/v1")


def _in_thread(main: Callable[[Callable[[_Item], None]], Coroutine[Any, Any, None]]) -> Iterator[_Item]:
    """What `main` puts, as it is put, from an event loop in a thread of its own; closing this cancels `main`.

    The loop runs on while the caller does something else, and the caller may be within an event loop itself.
    """
    found: queue.SimpleQueue[tuple[_Item] | BaseException | None] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    task = loop.create_task(main(lambda item: found.put((item,))))

    def run() -> None:
        end: BaseException | None = None
        try:
            loop.run_until_complete(task)
        except BaseException as error:
            end = error
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
            found.put(end)

    thread = threading.Thread(target=run, name="remote generation", daemon=True)
    thread.start()
    try:
        while (item := found.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
