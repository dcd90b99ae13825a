"""OpenAI's /v1/completions: continue texts or ids, score them, or fill the middle before `suffix`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, SkipValidation, WithJsonSchema
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from ....engine import FinishReason, Request
from ....engine.request import MOST_SAMPLES
from ....prompts import Prompt
from ... import TextDelta
from ..answer_fields import finish_reason
from ..bodies import Int, parse
from ..outputs import Output
from ..problems import Problem
from ..replies import StreamReply, WholeReply, dumps
from ..routes import Call, Route
from ..service import Run, Service
from ..token_texts import TokenTexts
from .bodies import SamplingBody, flattened
from .logprobs import Positions, completion_logprobs
from .shapes import FAMILY, ChunkEncoder, fields, head, usage

__all__ = ["FAMILY", "ROUTES"]

_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "integer"}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    ]
}


def _prompt_list(value: Any) -> list[str | list[int]] | None:
    """A prompt in any of its four forms as a list of prompts."""
    if value is None or isinstance(value, str):
        return None if value is None else [value]
    if isinstance(value, list) and value:
        if all(type(each) is int for each in value):
            return [value]
        if len(value) > MOST_SAMPLES:
            raise PydanticCustomError("prompts", "must hold at most {most} prompts", {"most": MOST_SAMPLES})
        if all(isinstance(each, str) for each in value):
            return value
        if all(isinstance(each, list) and all(type(token) is int for token in each) for each in value):
            return value
    raise PydanticCustomError("prompt", "must be a text, ids, or a list of one of the two that is not empty")


class OpenAICompletionBody(SamplingBody):
    """The body of /v1/completions."""

    REFUSED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **SamplingBody.REFUSED,
        "prompt_embeds": (),
        # What TGI's clients spread into this body.
        "details": (False,),
        "decoder_input_details": (False,),
        "watermark": (False,),
        "truncate": (),
        "top_n_tokens": (0,),
        "adapter_id": (),
    }

    prompt: Annotated[
        list[str | list[int]] | None,
        SkipValidation,  # once more; it would take seconds for millions of ids
        BeforeValidator(_prompt_list),
        WithJsonSchema(_PROMPT_SCHEMA),
    ] = None
    suffix: str | None = Field(None, description='The text behind the gap to fill; "" is one, null is none.')
    best_of: Int | None = Field(None, ge=1, le=MOST_SAMPLES)
    echo: bool = False
    return_full_text: bool = Field(False, description="As echo.")
    logprobs: Int | None = Field(None, ge=0, le=20)
    do_sample: bool | None = Field(None, description="false: greedy.")
    add_special_tokens: bool = Field(True, description="Begin texts with bos.")

    @property
    def echoes(self) -> bool:
        """Whether answers begin with their prompts."""
        return self.echo or self.return_full_text

    @property
    def scores_prompts(self) -> bool:
        """Whether the ids of prompts get log-probabilities."""
        return self.echoes and self.logprobs is not None


def _complete(call: Call) -> Response:
    service, body = call.service, parse(OpenAICompletionBody, flattened(call.data))
    service.check_model(body.model)
    _check(body, service)
    texts = body.prompt or [""]
    prompts = [_prompt(service, body, text) for text in texts]
    # Nothing to generate and nothing to score: the prompt is read into the prefix cache all the same.
    muted = body.limit(16) == 0 and not body.scores_prompts
    requests = _requests(service, body, prompts, 1 if muted else body.limit(16))
    run = service.start(requests)
    answer = _Answer(run, body, texts, muted)
    if body.stream:
        return StreamReply(run, _Encoder(answer))
    return WholeReply(run, FAMILY, answer.whole)


def _check(body: OpenAICompletionBody, service: Service) -> None:
    """Refuse fields that do not go together."""
    prompts = body.prompt or [""]
    most = service.settings.max_queue
    if len(prompts) > most:
        _refuse("prompt", f"there are {len(prompts)} prompts; {most} are the most")
    samples = len(prompts) * (body.best_of or body.n)
    if samples > MOST_SAMPLES:
        _refuse("n", f"{samples} samples of all prompts together; {MOST_SAMPLES} are the most")
    if body.suffix is not None:
        if body.echoes:
            _refuse("echo", "echo and suffix do not go together: the prompt and its answer are not one text")
        if not body.add_special_tokens or not all(isinstance(each, str) for each in prompts):
            _refuse("suffix", "with suffix, the prompt must be a text, and add_special_tokens true")
    if body.best_of is not None:
        if body.stream:
            _refuse("best_of", "best_of cannot be streamed: the best is known at the end")
        if body.best_of < body.n:
            _refuse("best_of", f"best_of is {body.best_of}; it must be at least n, which is {body.n}")


def _refuse(field: str, message: str) -> None:
    raise Problem(400, "invalid_request", message, field)


def _prompt(service: Service, body: OpenAICompletionBody, text: str | list[int]) -> Prompt:
    if isinstance(text, list):
        return service.ids_prompt(text)
    if body.suffix is not None:
        return service.infilling_prompt(text, body.suffix)
    prompt = service.text_prompt(text)
    return prompt if body.add_special_tokens else replace(prompt, tokens=prompt.tokens[1:])


def _requests(
    service: Service, body: OpenAICompletionBody, prompts: Sequence[Prompt], most: int | None
) -> list[Request]:
    temperature = body.chosen_temperature(service, prompts)
    if body.do_sample is False:
        temperature = 0.0
    elif body.do_sample and body.temperature is None:
        temperature = 1.0
    return service.requests(
        prompts,
        temperature=temperature,
        max_tokens=most,
        # In the library 0 means none; here it means the chosen token's alone.
        logprobs=body.logprobs or body.logprobs is not None,
        echo=body.scores_prompts,
        n=body.best_of or body.n,
        **body.sampling(),
    )


class _Answer:
    """What a run's outputs become. `muted`: the one token that filled the cache is not told."""

    def __init__(
        self, run: Run, body: OpenAICompletionBody, texts: Sequence[str | list[int]], muted: bool
    ) -> None:
        self.run, self.body, self.muted = run, body, muted
        self.head = head(run.service, "text_completion", "cmpl")
        self._echoes = [_echo(run.service, text) if body.echoes else "" for text in texts]

    def choice(self, row: int) -> _Choice:
        """A new choice for a sample of a prompt."""
        return _Choice(self, self.run.requests[row], self._echoes[row])

    def whole(self, outputs: list[list[Output]]) -> dict[str, Any]:
        """The answer that is not streamed."""
        chosen = [each for samples in outputs for each in _best(samples, self.body.n)]
        choices = []
        for index, output in enumerate(chosen):
            text, logprobs, ids = self.choice(output.row).take(output)
            reason = "length" if self.muted else finish_reason(output.finish_reason)
            told = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
            choices.append({**told, **ids})
        return {**self.head, "choices": choices, "usage": usage(outputs, muted=self.muted)}


class _Choice:
    """One choice as its text comes, in parts or at once."""

    def __init__(self, answer: _Answer, request: Request, echo: str) -> None:
        self._answer, self._request, self._echo = answer, request, echo
        self._begun = False
        service = answer.run.service
        self._positions = Positions(
            service.tokenizer, service.token_names, start_of_text=request.start_of_text, offset=len(echo)
        )

    def take(self, part: TextDelta | Output) -> tuple[str, dict[str, Any] | None, dict[str, Any]]:
        """The next part of an output -> its text, logprobs, and the fields for ids."""
        body = self._answer.body
        first, self._begun = not self._begun, True
        text = "" if self._answer.muted else part.text
        ids: dict[str, Any] = {}
        if body.return_token_ids:
            ids = {"token_ids": [] if self._answer.muted else list(part.tokens)}
            if first:
                ids["prompt_token_ids"] = list(self._request.prompt)
        logprobs = None if body.logprobs is None else self._logprobs(part, first)
        return (self._echo + text if first else text), logprobs, ids

    def _logprobs(self, part: TextDelta | Output, first: bool) -> dict[str, Any]:
        positions = []
        if first and self._answer.body.echoes:
            service = self._answer.run.service
            prompt = Positions(service.tokenizer, service.token_names, start_of_text=True)
            positions += prompt.push(self._request.prompt, [None, *part.prompt_scores], final=True)
        if self._answer.muted:
            return completion_logprobs(positions)
        tokens, scores = list(part.tokens), list(part.scores)
        ended = part.sequence if part.finish_reason is FinishReason.STOP else None
        if ended is not None and self._answer.body.echoes:
            # A client that scores texts takes the last token for the one that it had to ask for (lm-eval).
            tokens += [token for token, _ in ended.dropped]
            scores += [score for _, score in ended.dropped]
        positions += self._positions.push(tokens, scores, final=part.finish_reason is not None)
        return completion_logprobs(positions)


def _best(samples: Sequence[Output], count: int) -> Sequence[Output]:
    """The `count` outputs of the highest mean log-probability, if there are more."""
    if len(samples) <= count:
        return samples
    return sorted(samples, key=lambda output: output.mean_logprob, reverse=True)[:count]


def _echo(service: Service, text: str | list[int]) -> str:
    if isinstance(text, str):
        return text
    return "".join(TokenTexts(service.tokenizer, start_of_text=True).push(text, final=True))


class _Encoder(ChunkEncoder):
    def __init__(self, answer: _Answer) -> None:
        super().__init__(answer.run, answer.head, include_usage=answer.body.include_usage, muted=answer.muted)
        self._answer = answer
        self._choices = [
            [answer.choice(row) for _ in range(request.n)] for row, request in enumerate(answer.run.requests)
        ]

    def choices(self, row: int, delta: TextDelta) -> Sequence[str]:
        text, logprobs, ids = self._choices[row][delta.sample].take(delta)
        reason = finish_reason(delta.finish_reason)
        if self.muted and reason is not None:
            reason = "length"
        told = "null" if logprobs is None else dumps(logprobs)
        return (f'"text":{dumps(text)},"logprobs":{told},"finish_reason":{dumps(reason)}{fields(ids)}',)


ROUTES = (
    Route(
        "POST",
        ("/v1/completions",),
        "Continue a text, or fill its middle",
        _complete,
        (OpenAICompletionBody,),
    ),
)
