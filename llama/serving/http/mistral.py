"""Mistral's POST /v1/fim/completions: fill the middle between prompt and suffix. Continue, Tabby and minuet use it.

The answer has the shape of a chat's: `message.content`, and in a stream `delta.content`, a string in every chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field
from starlette.responses import Response

from .answer_fields import answer_head, error_fields, finish_reason
from .bodies import Body, Int, Texts, parse
from .outputs import News, Output
from .problems import Family, Problem
from .replies import Encoder, StreamReply, WholeReply, dumps, joined
from .routes import Call, Route
from .service import Run

__all__ = ["FAMILY", "ROUTES"]


def _error(problem: Problem) -> dict[str, Any]:
    told = error_fields(problem)
    # Mistral's own fields, and below them what Continue looks for in the events of a stream.
    return {"object": "error", **told, "error": told}


FAMILY = Family("Mistral", _error)


class MistralFimBody(Body):
    """The body of /v1/fim/completions; the last four fields are those that Continue adds."""

    INERT: ClassVar[frozenset[str]] = frozenset({"metadata", "prompt_cache_key", "stream_options", "user"})
    REFUSED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"n": (1,)}
    model: str | None = None
    prompt: str
    suffix: str | None = None
    max_tokens: Annotated[Int, Field(ge=0)] | None = None
    min_tokens: Int = Field(default=0, ge=0)
    temperature: float = 0.0
    top_p: float = 1.0
    stop: Texts = Field(default_factory=list)
    random_seed: Int | None = None
    stream: bool = False
    seed: Int | None = None
    max_completion_tokens: Annotated[Int, Field(ge=0)] | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


def _fim(call: Call) -> Response:
    service, body = call.service, parse(MistralFimBody, call.data)
    service.check_model(body.model)
    if body.suffix is None:
        prompt = service.text_prompt(body.prompt)
    else:
        prompt = service.infilling_prompt(body.prompt, body.suffix)
    run = service.start(
        service.requests(
            [prompt],
            temperature=body.temperature,
            top_p=body.top_p,
            max_tokens=body.one_of("max_tokens", "max_completion_tokens"),
            min_tokens=body.min_tokens,
            stop=body.stop,
            seed=body.one_of("random_seed", "seed"),
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
        )
    )
    if body.stream:
        return StreamReply(run, _Encoder(run))
    return WholeReply(run, FAMILY, lambda outputs: _answer(run, outputs[0][0]))


def _head(run: Run, kind: str) -> dict[str, Any]:
    return answer_head(run.service.settings.model_name, kind, "cmpl")


def _usage(output: Output) -> dict[str, int]:
    prompt, completion = len(output.request.prompt), len(output.tokens)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _answer(run: Run, output: Output) -> dict[str, Any]:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": output.text, "tool_calls": None},
        "finish_reason": finish_reason(output.finish_reason),
    }
    return {**_head(run, "chat.completion"), "choices": [choice], "usage": _usage(output)}


class _Encoder(Encoder):
    """One chunk for whatever text is new; the last has the usage."""

    family = FAMILY

    def __init__(self, run: Run) -> None:
        self._run = run
        head = dumps(_head(run, "chat.completion.chunk"))[:-1]
        self._before = f'data: {head},"choices":[{{"index":0,"delta":{{'

    def begin(self) -> bytes:
        return f'{self._before}"role":"assistant","content":""}},"finish_reason":null}}]}}\n\n'.encode()

    def news(self, news: Sequence[News]) -> bytes:
        ((_, delta),) = joined(news)
        reason = finish_reason(delta.finish_reason)
        if reason is None and not delta.text:
            return b""
        usage = "" if reason is None else f',"usage":{dumps(_usage(self._run.outputs[0][0]))}'
        told = f'"content":{dumps(delta.text)}}},"finish_reason":{dumps(reason)}'
        return f"{self._before}{told}}}]{usage}}}\n\n".encode()

    def end(self) -> bytes:
        return b"data: [DONE]\n\n"


ROUTES = (
    Route(
        "POST", ("/v1/fim/completions",), "Fill the middle, as Mistral's clients ask", _fim, (MistralFimBody,)
    ),
)
