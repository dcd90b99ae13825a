"""OpenAI's /v1/chat/completions: answer messages in the vocabulary's chat format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from ....engine import Request
from ....errors import DialogError, UnsafeTagError
from ....prompts import Prompt
from ... import TextDelta
from ..answer_fields import finish_reason
from ..bodies import Int, parse
from ..messages import ChatMessage, Content, plain_messages
from ..outputs import Output
from ..problems import Problem
from ..replies import StreamReply, WholeReply, dumps
from ..response_fields import pick
from ..routes import Call, Route
from ..service import Run, Service
from .bodies import SamplingBody, flattened
from .logprobs import Positions, chat_logprobs
from .shapes import FAMILY, ChunkEncoder, fields, head, usage

__all__ = ["FAMILY", "ROUTES"]


class OpenAIPrediction(BaseModel):
    """Text that the answer is likely to repeat, such as a file before an edit."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["content"]
    content: Content


class OpenAIChatBody(SamplingBody):
    """The body of /v1/chat/completions."""

    INERT: ClassVar[frozenset[str]] = SamplingBody.INERT | {"parallel_tool_calls"}
    REFUSED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **SamplingBody.REFUSED,
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "web_search_options": (),
        "reasoning_effort": ("none",),
        "echo": (False,),
        "add_generation_prompt": (True,),
        "continue_final_message": (False,),
    }

    messages: list[ChatMessage]
    logprobs: bool = False
    top_logprobs: Int | None = Field(None, ge=0, le=20)
    prediction: OpenAIPrediction | None = None
    response_fields: list[str] | None = Field(None, description="llama.cpp's: the parts to answer with.")


def _chat(call: Call) -> Response:
    service, body = call.service, parse(OpenAIChatBody, flattened(call.data))
    service.check_model(body.model)
    if body.top_logprobs and not body.logprobs:
        raise Problem(400, "invalid_request", "top_logprobs needs logprobs: true", "top_logprobs")
    prompt = _prompt(service, body)
    # Clients fill the prefix cache by asking for no token; the one that it takes is not told.
    muted = body.limit(None) == 0
    requests = _requests(service, body, prompt, 1 if muted else body.limit(None))
    answer = _Answer(service.start(requests), body, muted)
    if body.stream:
        return StreamReply(answer.run, _Encoder(answer))
    return WholeReply(answer.run, FAMILY, answer.whole)


def _prompt(service: Service, body: OpenAIChatBody) -> Prompt:
    try:
        return service.chat_prompt(plain_messages(body.messages))
    except UnsafeTagError as error:
        raise Problem(400, "unsafe_tag", str(error), f"messages.{error.index}.content") from None
    except DialogError as error:
        raise Problem(400, "invalid_request", str(error), "messages") from None


def _requests(service: Service, body: OpenAIChatBody, prompt: Prompt, most: int | None) -> list[Request]:
    options = body.sampling()
    if body.prediction is not None:
        options["prediction"] = body.prediction.content
    return service.requests(
        [prompt],
        temperature=body.chosen_temperature(service, [prompt]),
        max_tokens=most,
        logprobs=body.top_logprobs or body.logprobs,
        n=body.n,
        **options,
    )


class _Answer:
    """What a run's outputs become. `muted`: see `usage`."""

    def __init__(self, run: Run, body: OpenAIChatBody, muted: bool) -> None:
        self.run, self.body, self.muted = run, body, muted
        self.head = head(
            run.service, "chat.completion.chunk" if body.stream else "chat.completion", "chatcmpl"
        )

    def positions(self) -> Positions | None:
        """For the log-probabilities of a new choice, if they are asked for."""
        if not self.body.logprobs:
            return None
        service, (request,) = self.run.service, self.run.requests
        return Positions(service.tokenizer, service.token_names, start_of_text=request.start_of_text)

    def logprobs(self, positions: Positions | None, part: TextDelta | Output) -> dict[str, Any] | None:
        """Of the next part of a choice."""
        if positions is None or self.muted:
            return None
        final = part.finish_reason is not None
        return chat_logprobs(positions.push(part.tokens, part.scores, final=final))

    def ids(self, part: TextDelta | Output) -> dict[str, Any]:
        """The field for ids, if it is asked for."""
        if not self.body.return_token_ids:
            return {}
        return {"token_ids": [] if self.muted else list(part.tokens)}

    def prompt_ids(self) -> dict[str, Any]:
        """The field for the prompt's ids, if it is asked for."""
        (request,) = self.run.requests
        return {"prompt_token_ids": list(request.prompt)} if self.body.return_token_ids else {}

    def whole(self, outputs: list[list[Output]]) -> dict[str, Any]:
        """The answer that is not streamed."""
        (samples,) = outputs
        choices = [
            {
                "index": each.sample,
                "message": {"role": "assistant", "content": "" if self.muted else each.text},
                "logprobs": self.logprobs(self.positions(), each),
                "finish_reason": "length" if self.muted else finish_reason(each.finish_reason),
                **self.ids(each),
            }
            for each in samples
        ]
        told = usage(outputs, muted=self.muted, predicted=self.body.prediction is not None)
        return pick(
            {**self.head, "choices": choices, "usage": told, **self.prompt_ids()}, self.body.response_fields
        )


class _Encoder(ChunkEncoder):
    def __init__(self, answer: _Answer) -> None:
        super().__init__(answer.run, answer.head, include_usage=answer.body.include_usage, muted=answer.muted)
        self._answer = answer
        self._positions = [answer.positions() for _ in range(answer.body.n)]

    def begin(self) -> bytes:
        role = '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        more = fields(self._answer.prompt_ids())
        return "".join(self.event(index, role + more) for index in range(self._answer.body.n)).encode()

    def choices(self, row: int, delta: TextDelta) -> Sequence[str]:
        answer, made = self._answer, []
        if not self.muted and (delta.text or delta.tokens):
            logprobs = answer.logprobs(self._positions[delta.sample], delta)
            told = "null" if logprobs is None else dumps(logprobs)
            made.append(
                f'"delta":{{"content":{dumps(delta.text)}}},"logprobs":{told},"finish_reason":null'
                f"{fields(answer.ids(delta))}"
            )
        if delta.finish_reason is not None:
            reason = "length" if self.muted else finish_reason(delta.finish_reason)
            made.append(f'"delta":{{}},"logprobs":null,"finish_reason":"{reason}"')
        return made


ROUTES = (Route("POST", ("/v1/chat/completions",), "Answer messages", _chat, (OpenAIChatBody,)),)
