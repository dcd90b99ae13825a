"""OpenAI's /v1/completions: continue texts or ids, or fill the middle before `suffix`."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pydantic import Field
from starlette.responses import Response

from .bodies import Body, Int, parse
from .openai_shapes import FAMILY, finish_reason, new_id
from .problems import Problem
from .replies import SSE, StreamReply, WholeReply, dumps, event
from .routes import Call, Route
from .service import News, Output, Run

__all__ = ["FAMILY", "ROUTES"]


class CompletionBody(Body):
    """The body of /v1/completions."""

    model: str | None = None
    prompt: str | None = None
    suffix: str | None = None
    max_tokens: Int = 16
    temperature: float | None = None
    top_p: float = 1.0
    n: Int = 1
    stop: str | list[str] = Field(default_factory=list)
    stream: bool = False
    seed: Int | None = None


def _complete(call: Call) -> Response:
    service, body = call.service, parse(CompletionBody, call.data)
    service.check_model(body.model)
    if body.suffix is None:
        prompt = service.text_prompt(body.prompt or "")
    else:
        prompt = service.infilling_prompt(body.prompt or "", body.suffix)
    temperature = (
        body.temperature if body.temperature is not None else 0.0 if body.suffix is not None else 1.0
    )
    run = service.start(
        service.requests(
            [prompt],
            temperature=temperature,
            top_p=body.top_p,
            max_tokens=body.max_tokens,
            seed=body.seed,
            n=body.n,
            stop=body.stop,
        )
    )
    if body.stream:
        return StreamReply(run, FAMILY, _Events(run))
    return WholeReply(run, FAMILY, lambda outputs: _answer(run, outputs))


def _answer(run: Run, outputs: list[list[Output]]) -> dict[str, object]:
    flat = [output for each in outputs for output in each]
    return {
        "id": new_id("cmpl"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": run.service.settings.model_name,
        "choices": [
            {
                "index": i,
                "text": each.text,
                "logprobs": None,
                "finish_reason": finish_reason(each.finish_reason),
            }
            for i, each in enumerate(flat)
        ],
    }


class _Events:
    media_type = SSE
    ping = b": ping\n\n"

    def __init__(self, run: Run) -> None:
        head = {
            "id": new_id("cmpl"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": run.service.settings.model_name,
        }
        self._samples = run.requests[0].n
        self._head = "data: " + dumps(head)[:-1] + ',"choices":[{"index":'

    def begin(self) -> bytes:
        return b""

    def news(self, news: Sequence[News]) -> bytes:
        return "".join(
            f'{self._head}{row * self._samples + delta.sample},"text":{dumps(delta.text)},"logprobs":null,'
            f'"finish_reason":{dumps(finish_reason(delta.finish_reason))}}}]}}\n\n'
            for row, delta in news
        ).encode()

    def end(self) -> bytes:
        return b"data: [DONE]\n\n"

    def failed(self, problem: Problem) -> bytes:
        return event(FAMILY.error(problem))


ROUTES = (
    Route("POST", ("/v1/completions",), "Continue a text, or fill its middle", _complete, (CompletionBody,)),
)
