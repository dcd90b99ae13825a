"""What doors ask of the engine: texts become prompts, prompts requests, and requests a `Run` to read."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Unpack

from ... import __version__
from ...api import arguments
from ...api.options import Logprobs, SamplingOptions
from ...engine import FinishReason, Request
from ...errors import PromptTooLongError
from ...generation import Llama
from ...prompts import (
    Message,
    Prompt,
    answer_message,
    chat_prompt,
    completion_prompt,
    infilling_prompt,
    split_fill,
)
from .. import AsyncEngine
from .metrics import Metrics
from .outputs import News, Output
from .problems import Problem
from .settings import Settings
from .text_fim import looks_like_fim, split_fim
from .token_texts import TokenNames, spelled

__all__ = ["Run", "Service", "fingerprint"]

_MAX_SEED = 1 << 32
_log = logging.getLogger("llama.serving.http")


class Service:
    """A model at work, with the operator's settings.

    ready: whether a first token was made; until then health checks fail. token_names: of the vocabulary.
    dtype: the weights', as a name such as bfloat16. fingerprint: equal where the same request and seed give the same
    answer.
    """

    def __init__(self, llama: Llama, engine: AsyncEngine, settings: Settings) -> None:
        self.llama, self.engine, self.settings = llama, engine, settings
        self.tokenizer = llama.tokenizer
        self.token_names = TokenNames(llama.tokenizer)
        self.max_model_len: int = llama.model.params.max_seq_len
        self.dtype = str(llama.model.dtype).removeprefix("torch.")
        self.fingerprint = fingerprint(llama)
        self.started = int(time.time())
        self.metrics = Metrics(engine)
        self.ready = False
        self._warned_of_fim = False

    # ---- prompts -------------------------------------------------------------------------------------------

    def check_model(self, name: str | None) -> None:
        """Any name is taken, unless the operator wants the true one.

        Raises:
            Problem: 404 model_not_found.
        """
        if self.settings.strict_model and name not in (None, "", self.settings.model_name):
            message = f"there is no model {name!r} here; this server has {self.settings.model_name!r}"
            raise Problem(404, "model_not_found", message, "model")

    def text_prompt(self, text: str, *, text_fim: bool = False) -> Prompt:
        """The prompt that continues a text.

        text_fim: whether infilling written as text with markers is recognised, besides the operator's wish.

        Raises:
            Problem: 400, a marker stands twice in such a text.
            UnsupportedError: such a text, and the model cannot infill.
        """
        self.check_length(text)
        if text_fim or self.settings.text_fim:
            if (found := split_fim(text)) is not None:
                return self.infilling_prompt(found.prefix, found.suffix, suffix_first=found.suffix_first)
        elif not self._warned_of_fim and looks_like_fim(text):
            self._warned_of_fim = True
            _log.warning(
                "a prompt holds <PRE>, <SUF> and <MID>, which are plain text to the model; if clients of this"
                " server send infilling that way, start it with --text-fim"
            )
        return completion_prompt(self.tokenizer, text)

    def infilling_prompt(self, prefix: str, suffix: str, *, suffix_first: bool = False) -> Prompt:
        """The prompt that fills between two texts. Raises UnsupportedError if the model cannot."""
        self.check_length(prefix, suffix)
        return infilling_prompt(self.tokenizer, prefix, suffix, suffix_first=suffix_first)

    def chat_prompt(self, messages: Sequence[Message]) -> Prompt:
        """The prompt that answers messages, by the capability of this deployment.

        chat: the vocabulary's chat format. completion and python continue the last message's text as it is;
        infilling fills its one <FILL>. (The meaning of lmdeploy's capabilities.)

        Raises:
            DialogError, UnsafeTagError, PromptError, UnsupportedError: as the functions of llama/prompts.py.
        """
        contents = [message["content"] for message in messages]
        self.check_length(*contents)
        if self.settings.capability == "chat" or not contents or messages[-1]["role"] != "user":
            return chat_prompt(self.tokenizer, [self._addressed(each) for each in messages])
        if self.settings.capability == "infilling":
            return self.infilling_prompt(*split_fill(contents[-1]))
        return self.text_prompt(contents[-1])

    def _addressed(self, message: Message) -> Message:
        """The <step> format says to whom an answer went, and clients' messages do not: to the user."""
        if message["role"] != "assistant" or "destination" in message:
            return message
        return answer_message(self.tokenizer, message["content"])

    def ids_prompt(self, ids: Sequence[int]) -> Prompt:
        """The prompt that continues ids as they are: no bos is added, control ids are allowed.

        Ids with control ids beside bos and eos are of another format: its stop ids count too.
        """
        tokenizer = self.tokenizer
        stops = {tokenizer.eos_id}
        if not tokenizer.control_ids.isdisjoint(set(ids) - {tokenizer.bos_id, tokenizer.eos_id}):
            stops |= {token for token in (tokenizer.eot_id, tokenizer.step_id) if token is not None}
        return Prompt(tuple(ids), frozenset(stops), start_of_text=False)

    def infills(self, prompt: Prompt) -> bool:
        """Whether a prompt asks for infilling, however the client has asked for it."""
        return self.tokenizer.eot_id in prompt.stop_ids

    # ---- requests ------------------------------------------------------------------------------------------

    def requests(
        self,
        prompts: Sequence[Prompt],
        *,
        temperature: float,
        top_p: float,
        max_tokens: int | None,
        logprobs: Logprobs = False,
        echo: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> list[Request]:
        """The engine's requests, one for each prompt. `max_tokens` is clipped to the room that a prompt leaves.

        Raises:
            Problem: 400 context_length_exceeded, with the numbers.
            RequestError: another value that no step could run.
        """
        # Never the library's own draw, which all ranks would have to make together.
        if options.get("seed") is None:
            options["seed"] = secrets.randbelow(_MAX_SEED)
        for prompt in prompts:
            self.check_room(len(prompt.tokens), 0 if max_tokens == 0 else 1)
        try:
            return self.llama.requests(
                prompts, temperature, top_p, max_tokens, logprobs=logprobs, echo=echo, **options
            )
        except PromptTooLongError as error:
            longest = max(len(prompt.tokens) for prompt in prompts)
            raise self._no_room(str(error), longest) from None

    def check_length(self, *texts: str) -> None:
        """Refuse texts that cannot have room before they are encoded, which may take seconds.

        Raises:
            Problem: 400 context_length_exceeded; its number of tokens is the fewest that they can have.
        """
        try:
            arguments.check_length(self.tokenizer, self.max_model_len, *texts)
        except PromptTooLongError as error:
            raise self._no_room(str(error), self.tokenizer.fewest_ids(sum(map(len, texts)))) from None

    def check_room(self, length: int, least: int = 1) -> None:
        """Refuse a prompt of so many tokens if not even `least` tokens of an answer would fit behind it.

        Raises:
            Problem: 400 context_length_exceeded, with the numbers.
        """
        if length + least > self.max_model_len:
            raise self._no_room(
                f"the prompt has {length:,} tokens, and prompt and answer together may have"
                f" {self.max_model_len:,}; shorten it",
                length,
            )

    def _no_room(self, message: str, length: int) -> Problem:
        details = {"n_prompt_tokens": length, "n_ctx": self.max_model_len}
        return Problem(400, "context_length_exceeded", message, "prompt", details=details)

    def start(self, requests: Sequence[Request]) -> Run:
        """A run of requests. Nothing is queued before it is read.

        Raises:
            Problem: 503 while the server starts or ends, 429 if too many requests wait.
            RequestError, OutOfMemoryError: as `Engine.check`.
        """
        if not self.engine.accepting:
            raise Problem(
                503,
                "unavailable",
                "the server is shutting down; send the request to another one",
                headers={"Retry-After": "1"},
            )
        waiting, most = self.engine.waiting, self.settings.max_queue
        if waiting + len(requests) > most:
            message = (
                f"the queue is full: {waiting} requests are waiting and at most {most} may; try again later"
            )
            raise Problem(429, "queue_full", message, headers={"Retry-After": "1"})
        if self.settings.log_prompts:
            for request in requests:
                # As one line of ASCII: what a prompt holds must not look like other lines of the log.
                _log.info("prompt %s", ascii(spelled(self.tokenizer, request.prompt)))
        return Run(self, requests)


def _ended_early() -> Problem:
    message = "the server shut down before the answer was complete; send the request to another one"
    return Problem(503, "incomplete", message, headers={"Retry-After": "1"})


class Run:
    """The requests of one HTTP request on their way through the engine. Iterate over it once."""

    def __init__(self, service: Service, requests: Sequence[Request]) -> None:
        self.service, self.requests = service, list(requests)
        self.outputs = [
            [Output(row, sample, request) for sample in range(request.n)]
            for row, request in enumerate(requests)
        ]
        self._cut: set[tuple[int, int]] = set()
        # Checked here, so that a request which cannot run fails before an answer begins.
        self._streams = [service.engine.batches(request) for request in self.requests]

    def cut(self, row: int, sample: int) -> None:
        """The door has ended a sample by a rule of its own: its further deltas are dropped, and the request is
        cancelled once all its samples are cut or have ended."""
        self._cut.add((row, sample))

    async def __aiter__(self) -> AsyncGenerator[list[News], None]:
        """Everything unread at each turn. Closing it, or cancelling its task, cancels what still runs.

        Raises:
            Problem: 503, the server ended first.
            Exception: the error that ended a request.
        """
        merged = self._one(0) if len(self._streams) == 1 else self._merged()
        async with aclosing(merged):
            async for news in merged:
                yield news

    async def _one(self, row: int) -> AsyncGenerator[list[News], None]:
        async with aclosing(self._streams[row]) as batches:
            async for deltas in batches:
                news = []
                for delta in deltas:
                    if delta.finish_reason is FinishReason.CANCELLED:
                        raise _ended_early()
                    if (row, delta.sample) not in self._cut:
                        self.outputs[row][delta.sample].take(delta)
                        news.append(News(row, delta))
                    if delta.finish_reason is not None and delta.sequence is not None:
                        self.service.metrics.ended(delta.sequence)
                if news:
                    yield news
                if self._cut and self._over(row):
                    for each in self.outputs[row]:
                        if each.finish_reason is None and each.sequence is not None:
                            self.service.metrics.ended(each.sequence)
                    return

    def _over(self, row: int) -> bool:
        return all(
            each.finish_reason is not None or (row, each.sample) in self._cut for each in self.outputs[row]
        )

    async def _merged(self) -> AsyncGenerator[list[News], None]:
        """The news of several requests as they come. Each waits until its last news were read."""
        # One slot for each: a reader that does not read on holds up the engine as with one request.
        ready: asyncio.Queue[list[News] | BaseException | None] = asyncio.Queue(1)

        async def read(row: int) -> None:
            try:
                async for news in self._one(row):
                    await ready.put(news)
            except Exception as error:
                await ready.put(error)
            else:
                await ready.put(None)

        tasks = [asyncio.ensure_future(read(row)) for row in range(len(self._streams))]
        try:
            open_rows = len(tasks)
            while open_rows:
                item = await ready.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    open_rows -= 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def fingerprint(llama: Llama) -> str:
    """What decides the numbers: device, dtype, ranks; and if they are not plain, the weights, adapter and cache."""
    model, origin = llama.model, llama.origin
    dtype = str(model.dtype).removeprefix("torch.")
    parts = [__version__, model.device.type, dtype, str(model.parallel.size)]
    parts += sorted(set(model.held_bytes) - {dtype})
    if origin is not None and origin.quantization is not None and origin.quantization not in parts:
        parts.append(re.sub(r"\W+", "_", origin.quantization))
    if origin is not None and origin.adapter is not None:
        parts.append(f"lora_{origin.adapter:016x}")
    if model.cache_dtype != "auto":
        parts.append(f"cache_{model.cache_dtype}")
    return "-".join(["codellama", *parts])
