"""Ollama's /api/generate and /api/chat. Streams are lines of JSON (NDJSON), and the default.

`raw`, or the template `{{ .Prompt }}`, sends a prompt that the client has formatted itself: infilling written as
text with markers is recognised in it. Otherwise a prompt means what the capability of this deployment says; with
--text-fim such infilling (Twinny's) is recognised there too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

from pydantic import Field
from starlette.responses import Response

from ....prompts import Message, Prompt
from ... import TextDelta
from ..answer_fields import finish_reason
from ..bodies import Body, Int, Texts, parse, seed_of
from ..outputs import News, Output
from ..problems import Problem
from ..replies import Encoder, JsonReply, StreamReply, WholeReply, dumps, joined
from ..routes import Call, Route
from ..service import Run, Service
from ..text_fim import split_fim
from ..token_texts import token_bytes
from .models import FAMILY, check_model, timestamp

__all__ = ["FAMILY", "ROUTES"]

_PLAIN_TEMPLATE = re.compile(r"\s*\{\{-?\s*\.Prompt\s*-?\}\}\s*")
# How Ollama would load the model: this server has loaded it already.
_PLACEMENT = frozenset(
    (
        *("num_ctx", "num_batch", "num_gpu", "num_gqa", "num_keep", "num_thread", "numa", "main_gpu"),
        *("low_vram", "f16_kv", "logits_all", "vocab_only", "use_mmap", "use_mlock", "embedding_only"),
    )
)
_NANOSECONDS = 1_000_000_000


class OllamaOptions(Body):
    """`options` of a request. Of two requests with the same seed and options the answers are the same.

    The penalties reach over the whole prompt (repeat) or the whole answer; a repeat_last_n of 0 switches them off.
    """

    INERT: ClassVar[frozenset[str]] = _PLACEMENT | {"penalize_newline", "mirostat_tau", "mirostat_eta"}
    REFUSED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"mirostat": (0,), "tfs_z": (1,), "typical_p": (1,)}
    temperature: float | None = None
    top_k: Int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: Int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    num_predict: Int = -1
    seed: Int = -1
    stop: Texts = Field(default_factory=list)


class _Request(Body):
    """What both routes take. `stop` belongs into the options; jupyterlab-cellsense sends it beside them."""

    INERT: ClassVar[frozenset[str]] = frozenset({"keep_alive", "truncate", "shift"})
    REFUSED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"format": ("",), "think": (False,), "tools": ([],)}
    PARTS: ClassVar[Mapping[str, type[Body]]] = {"options": OllamaOptions}
    model: str | None = None
    stream: bool = True
    options: OllamaOptions = OllamaOptions()
    stop: Texts = Field(default_factory=list)
    logprobs: bool = False
    top_logprobs: Int = Field(default=0, ge=0, le=20)


class OllamaGenerateBody(_Request):
    """The body of /api/generate."""

    REFUSED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **_Request.REFUSED,
        "images": ([],),
        "context": ([],),
        "width": (0,),
        "height": (0,),
        "steps": (0,),
    }
    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = ""
    raw: bool = False


class OllamaMessage(Body):
    """A message of /api/chat."""

    REFUSED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "images": ([],),
        "thinking": ("",),
        "tool_calls": ([],),
        "tool_name": ("",),
    }
    role: Literal["system", "user", "assistant"]
    content: str = ""


class OllamaChatBody(_Request):
    """The body of /api/chat."""

    PARTS: ClassVar[Mapping[str, type[Body]]] = {**_Request.PARTS, "messages": OllamaMessage}
    messages: list[OllamaMessage] = Field(default_factory=list)


# ---- prompts --------------------------------------------------------------------------------------------------


def _generate(call: Call) -> Response:
    service, body = call.service, parse(OllamaGenerateBody, call.data)
    check_model(service, body.model)
    answer = _Answer(service, body, chat=False)
    if not body.prompt and not body.suffix:
        return answer.load()
    return answer.reply(_prompt(service, body))


def _prompt(service: Service, body: OllamaGenerateBody) -> Prompt:
    formatted = body.raw or bool(body.template)
    if body.raw and body.template:
        raise Problem(
            400, "invalid_request", "raw mode does not support template; send one of them", "template"
        )
    if body.template and not _PLAIN_TEMPLATE.fullmatch(body.template):
        message = "template can only be '{{ .Prompt }}' here: send the prompt in its final form, with raw"
        raise Problem(400, "unsupported_field", message, "template")
    if body.system and (formatted or body.suffix):
        what = "suffix" if body.suffix else "raw" if body.raw else "template"
        raise Problem(
            400, "invalid_request", f"system has no place in a prompt with {what}; leave it out", "system"
        )
    if body.suffix:
        return service.infilling_prompt(body.prompt, body.suffix)
    if formatted or (service.settings.text_fim and split_fim(body.prompt) is not None):
        return service.text_prompt(body.prompt, text_fim=True)
    messages: list[Message] = [{"role": "system", "content": body.system}] if body.system else []
    return service.chat_prompt([*messages, {"role": "user", "content": body.prompt}])


def _chat(call: Call) -> Response:
    service, body = call.service, parse(OllamaChatBody, call.data)
    check_model(service, body.model)
    answer = _Answer(service, body, chat=True)
    if not body.messages:
        return answer.load()
    messages: list[Message] = [{"role": each.role, "content": each.content} for each in body.messages]
    return answer.reply(service.chat_prompt(messages))


# ---- answers --------------------------------------------------------------------------------------------------


class _Answer(Encoder):
    """The answer to one request, whole or as the encoder of a stream."""

    family = FAMILY
    media_type = "application/x-ndjson"
    ping = b""  # no line of this protocol is skipped by its clients

    def __init__(self, service: Service, body: _Request, *, chat: bool) -> None:
        self._service, self._body, self._chat = service, body, chat

    def load(self) -> Response:
        """What a request without a prompt asks for: that the model be in memory, where it always is."""
        return JsonReply({**self._line("", None), "done": True, "done_reason": "load"})

    def reply(self, prompt: Prompt) -> Response:
        """Run a prompt."""
        self._run = self._start(prompt)
        if self._body.stream:
            return StreamReply(self._run, self)
        return WholeReply(self._run, FAMILY, lambda outputs: self._whole(outputs[0][0]))

    def _start(self, prompt: Prompt) -> Run:
        service, body, options = self._service, self._body, self._body.options
        penalized = options.repeat_last_n != 0
        temperature = options.temperature
        if temperature is None:
            temperature = 0.0 if service.infills(prompt) else 0.8
        return service.start(
            service.requests(
                [prompt],
                temperature=temperature,
                top_p=options.top_p,
                # As in Ollama, nothing above 0 is no limit but the context's.
                max_tokens=options.num_predict if options.num_predict > 0 else None,
                logprobs=body.logprobs and (body.top_logprobs or True),
                top_k=max(0, options.top_k),
                min_p=options.min_p,
                repetition_penalty=options.repeat_penalty if penalized else 1.0,
                presence_penalty=options.presence_penalty if penalized else 0.0,
                frequency_penalty=options.frequency_penalty if penalized else 0.0,
                stop=[*options.stop, *body.stop],
                seed=seed_of(options.seed, bits=32),  # Tabby's are signed
            )
        )

    def _whole(self, output: Output) -> dict[str, Any]:
        delta = TextDelta(0, output.text, None, None, tuple(output.tokens), tuple(output.scores))
        return {**self._line(output.text, delta), **_last(output)}

    def _line(self, text: str, delta: TextDelta | None) -> dict[str, Any]:
        line = {
            "model": self._service.settings.model_name,
            "created_at": timestamp(datetime.now(UTC)),
            **({"message": {"role": "assistant", "content": text}} if self._chat else {"response": text}),
            "done": False,
        }
        if delta is not None and self._body.logprobs:
            line["logprobs"] = self._logprobs(delta)
        return line

    def _logprobs(self, delta: TextDelta) -> list[dict[str, Any]]:
        count = self._body.top_logprobs
        return [
            {
                **self._token(token, score.logprob),
                **({"top_logprobs": [self._token(*each) for each in score.top[:count]]} if count else {}),
            }
            for token, score in zip(delta.tokens, delta.scores, strict=True)
        ]

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        names, tokenizer = self._service.token_names, self._service.tokenizer
        return {"token": names[token], "logprob": logprob, "bytes": list(token_bytes(tokenizer, token))}

    # ---- a stream ----------------------------------------------------------------------------------------------

    def news(self, news: Sequence[News]) -> bytes:
        ((_, delta),) = joined(news)
        if not (delta.text or (delta.tokens and self._body.logprobs)):
            return b""
        return f"{dumps(self._line(delta.text, delta))}\n".encode()

    def end(self) -> bytes:
        return f"{dumps({**self._line('', None), **_last(self._run.outputs[0][0])})}\n".encode()

    def failed(self, problem: Problem) -> bytes:
        return f"{dumps(FAMILY.error(problem))}\n".encode()


def _last(output: Output) -> dict[str, Any]:
    """What the last line tells: why it ended, and counts and times. Durations are in nanoseconds."""
    sequence = output.sequence
    assert sequence is not None  # the run has ended
    times, counts = sequence.times, sequence.counts
    begun = times.queued if times.begun is None else times.begun
    ended = begun if times.ended is None else times.ended
    first = ended if times.first_token is None else times.first_token
    return {
        "done": True,
        "done_reason": finish_reason(output.finish_reason),
        "total_duration": _nanoseconds(ended - times.queued),
        "load_duration": _nanoseconds(begun - times.queued),
        "prompt_eval_count": counts.prompt,
        "prompt_eval_duration": _nanoseconds(first - begun),
        "eval_count": counts.generated,
        "eval_duration": _nanoseconds(ended - first),
    }


def _nanoseconds(seconds: float) -> int:
    """At least one: clients divide by durations."""
    return max(1, round(seconds * _NANOSECONDS))


ROUTES = (
    Route(
        "POST",
        ("/api/generate",),
        "Continue or fill in, as Ollama's clients ask",
        _generate,
        (OllamaGenerateBody,),
    ),
    Route("POST", ("/api/chat",), "Answer messages, as Ollama's clients ask", _chat, (OllamaChatBody,)),
)
