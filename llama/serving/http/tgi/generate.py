"""text-generation-inference's routes: POST /, /generate, /generate_stream, GET /info. TGI is Hugging Face's server.

`/` is what Hugging Face's clients call: it streams if `stream` is true, and otherwise answers with a list.
One `<FILL_ME>` or `<FILL>` in the inputs asks for infilling.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import Field
from starlette.responses import Response

from .... import __version__
from ....engine.request import MOST_SAMPLES, MOST_STOPS
from ....prompts import FILL_MARKS, Prompt, split_fill
from ..bodies import Body, Int, Texts, parse
from ..outputs import News, Output
from ..problems import Family, Problem
from ..replies import Encoder, JsonReply, StreamReply, WholeReply, event
from ..routes import Call, Route
from ..service import Run, Service
from .details import TokenRow, TokenRows, details, finish_reason, rows_of, seed

__all__ = ["FAMILY", "ROUTES"]

# Alternatives at each position; as OpenAI's limit.
_MOST_TOP = 20
_MODEL_ERRORS = {
    "queue_full": "overloaded",
    "unavailable": "overloaded",
    "not_finite": "generation",
    "incomplete": "incomplete_generation",
    "internal_error": "incomplete_generation",
    "request_timeout": "incomplete_generation",
}
_UNFIT_BODIES = (
    "invalid_json",
    "invalid_request",
    "unknown_field",
    "unsupported_field",
    "unsupported",
    "context_length_exceeded",
)


def _error(problem: Problem) -> dict[str, str]:
    kind = "validation" if problem.code in _UNFIT_BODIES else _MODEL_ERRORS.get(problem.code, problem.code)
    return {"error": problem.message, "error_type": kind}


FAMILY = Family(
    "text-generation-inference",
    _error,
    {**dict.fromkeys(_UNFIT_BODIES, 422), "not_finite": 424, "incomplete": 500},
)


class TgiParameters(Body):
    """`parameters` of a request. Without do_sample or a warper that changes something it is greedy."""

    REFUSED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "adapter_id": (),
        "grammar": (),
        "typical_p": (1,),
        "watermark": (False,),
    }
    max_new_tokens: Int = Field(default=100, ge=1)
    do_sample: bool = False
    temperature: float = 1.0
    top_k: Int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: Texts = Field(default_factory=list)
    stop_tokens: list[str] = Field(default_factory=list, description="As stop; llm-ls sends it.")
    seed: Int | None = None
    best_of: Int = Field(default=1, ge=1, le=MOST_SAMPLES)
    return_full_text: bool = False
    truncate: Annotated[Int, Field(ge=1)] | None = None
    details: bool = False
    decoder_input_details: bool = False
    top_n_tokens: Int = Field(default=0, ge=0, le=_MOST_TOP)

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn: TGI's rule."""
        warped = self.temperature != 1 or self.top_k != 0 or self.top_p < 1
        return (self.do_sample or warped) and self.temperature != 0


class TgiGenerateBody(Body):
    """The body of all three routes."""

    INERT: ClassVar[frozenset[str]] = frozenset({"options"})  # of Hugging Face's own service: caches, waiting
    PARTS: ClassVar[Mapping[str, type[Body]]] = {"parameters": TgiParameters}
    inputs: str
    parameters: TgiParameters = TgiParameters()
    model: str | None = None
    stream: bool | None = None


# ---- prompts --------------------------------------------------------------------------------------------------


def _prompt(service: Service, text: str, most: int | None) -> tuple[Prompt, str, str]:
    """A prompt of at most `most` tokens, and what `return_full_text` puts in front and behind."""
    if any(mark in text for mark in FILL_MARKS):
        before, after = split_fill(text)
        prompt = service.infilling_prompt(_tail(service, before, after, most), after)
    else:
        before, after = text, ""
        prompt = service.text_prompt(_tail(service, text, "", most))
    return prompt if most is None else _truncated(service, prompt, most), before, after


def _tail(service: Service, text: str, after: str, most: int | None) -> str:
    """The end of a text that is, with what comes after the hole, longer than any prompt may be.

    As a whole such a text would be refused before it is encoded. What is left has `most` tokens or more.
    """
    fewest = service.tokenizer.fewest_ids
    length = len(text) + len(after)
    if most is None or fewest(length) <= service.max_model_len:
        return text
    # Twice as many where there is room: at a cut the first few ids are others.
    least = min(2 * most, service.max_model_len)
    left = bisect_right(range(length), least, key=fewest) - 1 - len(after)
    return text[len(text) - max(0, left) :]


def _truncated(service: Service, prompt: Prompt, most: int) -> Prompt:
    """A prompt of at most `most` tokens: the first of its text go, control ids and a suffix stay.

    Raises:
        Problem: 400; what must stay is longer than that.
    """
    tokens, tokenizer = prompt.tokens, service.tokenizer
    start, end = 1, len(tokens)  # of the text that may go
    if tokenizer.prefix_id is not None and tokens[1:2] == (tokenizer.prefix_id,):
        suffix, middle = tokens.index(tokenizer.suffix_id), tokens.index(tokenizer.middle_id)
        start, end = (2, suffix) if middle == end - 1 else (middle + 1, end)
    excess = max(0, len(tokens) - most)
    if excess > end - start:
        raise Problem(
            400,
            "invalid_request",
            f"truncate is {most}, but the prompt has {len(tokens) - (end - start)} tokens without what may be cut,"
            " the text before the hole; truncate less, or send a shorter suffix",
            "parameters.truncate",
        )
    return replace(prompt, tokens=tokens[:start] + tokens[start + excess :])


# ---- answers --------------------------------------------------------------------------------------------------


def _handler(wrap: Callable[[dict[str, Any]], Any], streams: bool | None) -> Callable[[Call], Response]:
    """The handler of a route.

    Args:
        wrap: what its whole answer is made of: the object, or a list.
        streams: whether it streams; None: if the body says so.
    """

    def generate(call: Call) -> Response:
        service, body = call.service, parse(TgiGenerateBody, call.data)
        service.check_model(body.model)
        if streams is not None and body.stream is not None and body.stream != streams:
            message = (
                f"stream is {body.stream}; POST /generate_stream streams, /generate does not, and / does both"
            )
            raise Problem(400, "invalid_request", message, "stream")
        streamed = body.stream or False if streams is None else streams
        _check(body.parameters, streamed)
        prompt, before, after = _prompt(service, body.inputs, body.parameters.truncate)
        run = _run(service, prompt, body.parameters)
        full = (before, after) if body.parameters.return_full_text else ("", "")
        if streamed:
            return StreamReply(run, _Encoder(run, full, body.parameters.details))
        return WholeReply(
            run, FAMILY, lambda outputs: wrap(_answer(service, outputs[0], full, body.parameters))
        )

    return generate


def _check(given: TgiParameters, streamed: bool) -> None:
    """Refuse combinations that TGI refuses too."""
    if given.best_of > 1 and (streamed or not given.samples):
        why = (
            "the best of several is known only at the end"
            if streamed
            else "all samples of greedy decoding are alike"
        )
        hint = "do not stream" if streamed else "set do_sample or a temperature"
        message = f"best_of is {given.best_of}, but {why}; {hint}"
        raise Problem(400, "invalid_request", message, "parameters.best_of")
    if given.decoder_input_details and streamed:
        message = "decoder_input_details is not possible in a stream; use POST /generate"
        raise Problem(400, "invalid_request", message, "parameters.decoder_input_details")


def _run(service: Service, prompt: Prompt, given: TgiParameters) -> Run:
    return service.start(
        service.requests(
            [prompt],
            temperature=given.temperature if given.samples else 0.0,
            top_p=given.top_p,
            max_tokens=given.max_new_tokens,
            logprobs=given.top_n_tokens or given.decoder_input_details,
            echo=given.decoder_input_details,
            top_k=given.top_k,
            repetition_penalty=given.repetition_penalty,
            presence_penalty=given.presence_penalty,
            frequency_penalty=given.frequency_penalty,
            stop=[*given.stop, *given.stop_tokens],
            seed=given.seed,
            n=given.best_of,
        )
    )


def _answer(
    service: Service, outputs: Sequence[Output], full: tuple[str, str], given: TgiParameters
) -> dict[str, Any]:
    rows = [rows_of(service, output) for output in outputs]
    best = max(range(len(outputs)), key=lambda i: outputs[i].mean_logprob)
    texts = [full[0] + output.text + full[1] for output in outputs]
    answer: dict[str, Any] = {"generated_text": texts[best]}
    if given.details or given.decoder_input_details:
        answer["details"] = details(service, outputs[best], rows[best])
        if len(outputs) > 1:
            answer["details"]["best_of_sequences"] = [
                {"generated_text": texts[i], **details(service, outputs[i], rows[i])}
                for i in range(len(outputs))
                if i != best
            ]
    return answer


class _Encoder(Encoder):
    """One event for each token; the last one has the whole text."""

    family = FAMILY

    def __init__(self, run: Run, full: tuple[str, str], with_details: bool) -> None:
        self._run, self._full, self._with_details = run, full, with_details
        self._rows = TokenRows(run.service, run.requests[0])
        self._sent = 0

    def news(self, news: Sequence[News]) -> bytes:
        told = [self._event(row) for _, delta in news for row in self._rows.take(delta)]
        if news[-1].delta.finish_reason is not None:
            told[-1] |= self._last()
        return b"".join(map(event, told))

    def _event(self, row: TokenRow) -> dict[str, Any]:
        self._sent += 1
        top = {"top_tokens": row.top} if row.top else {}
        return {"index": self._sent, "token": row.token, **top, "generated_text": None, "details": None}

    def _last(self) -> dict[str, Any]:
        (output,) = self._run.outputs[0]
        last: dict[str, Any] = {"generated_text": self._full[0] + output.text + self._full[1]}
        if self._with_details:
            last["details"] = {
                "finish_reason": finish_reason(output.finish_reason),
                "generated_tokens": self._sent,
                "input_length": len(output.request.prompt),
                "seed": seed(output.request),
            }
        return last


def _info(call: Call) -> Response:
    service = call.service
    model, most = service.llama.model, service.max_model_len
    return JsonReply(
        {
            "model_id": service.settings.model_name,
            "model_sha": None,
            "model_dtype": service.dtype,
            "model_device_type": model.device.type,
            "model_pipeline_tag": "text-generation",
            "max_input_length": most - 1,
            "max_input_tokens": most - 1,
            "max_total_tokens": most,
            "max_best_of": MOST_SAMPLES,
            "max_stop_sequences": MOST_STOPS,
            "max_concurrent_requests": model.params.max_batch_size + service.settings.max_queue,
            "max_client_batch_size": 1,
            "max_batch_size": model.params.max_batch_size,
            "validation_workers": 1,
            "router": "codellama-runtime",
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }
    )


ROUTES = (
    Route(
        "POST",
        ("/",),
        "Generate, as Hugging Face's clients ask",
        _handler(lambda one: [one], None),
        (TgiGenerateBody,),
    ),
    Route("POST", ("/generate",), "Generate", _handler(lambda one: one, False), (TgiGenerateBody,)),
    Route(
        "POST",
        ("/generate_stream",),
        "Generate, as events",
        _handler(lambda one: one, True),
        (TgiGenerateBody,),
    ),
    Route("GET", ("/info",), "The model and its limits", _info),
)
