"""llama.cpp's /completion and /infill, as llama.vim and llama.vscode use them.

Source of the fields: tools/server/README.md of llama.cpp (October 2026), and what the two plug-ins send.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response

from ....prompts import Prompt
from ..bodies import parse
from ..replies import StreamReply, WholeReply
from ..routes import Call, Route
from .answers import Answers, AnswersEncoder
from .bodies import GenerationBody, LlamaCppCompletionBody, LlamaCppInfillBody, sampling
from .prompts import completion_prompts, infill_window
from .shapes import FAMILY

__all__ = ["FAMILY", "ROUTES"]


def _complete(call: Call) -> Response:
    body = parse(LlamaCppCompletionBody, call.data)
    call.service.check_model(body.model)
    prompts = completion_prompts(call.service, body)
    return _reply(call, body, prompts, [False] * len(prompts))


def _infill(call: Call) -> Response:
    body = parse(LlamaCppInfillBody, call.data)
    call.service.check_model(body.model)
    window = infill_window(call.service, body)
    prompt = call.service.infilling_prompt(window.prefix, window.suffix)
    return _reply(call, body, [prompt], [window.truncated])


def _reply(
    call: Call, body: GenerationBody, prompts: Sequence[Prompt], truncated: Sequence[bool]
) -> Response:
    service = call.service
    run = service.start(service.requests(prompts, **sampling(body, service.tokenizer)))
    answers = Answers(run, body, truncated)
    if body.stream:
        return StreamReply(run, AnswersEncoder(answers, body))
    return WholeReply(run, FAMILY, lambda _: answers.value(), answers.see)


ROUTES = (
    Route(
        "POST", ("/completion", "/completions"), "Continue texts or ids", _complete, (LlamaCppCompletionBody,)
    ),
    Route(
        "POST",
        ("/infill",),
        "Fill the middle at a cursor, with context of other files",
        _infill,
        (LlamaCppInfillBody,),
    ),
)
