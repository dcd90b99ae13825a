"""llama.cpp's /props, /slots and /apply-template."""

from __future__ import annotations

from typing import Any, ClassVar

from starlette.responses import Response

from .... import __version__
from ....chat_templates import chat_template
from ..bodies import Body, parse
from ..messages import ChatMessage, plain_messages
from ..problems import Problem
from ..replies import JsonReply
from ..routes import Call, Route
from ..token_texts import spelled
from .bodies import GenerationBody
from .shapes import FAMILY

__all__ = ["FAMILY", "ROUTES"]


class LlamaCppTemplateBody(Body):
    """The body of /apply-template."""

    messages: list[ChatMessage]
    INERT = frozenset({"model", "add_generation_prompt", "stream", "tool_choice", "parallel_tool_calls"})
    REFUSED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "tools": ([],),
        "functions": ([],),
        "response_format": ({"type": "text"},),
        "chat_template_kwargs": ({},),
    }


def _props(call: Call) -> Response:
    service = call.service
    tokenizer = service.tokenizer
    defaults = {name: field.default for name, field in GenerationBody.model_fields.items()}
    params = {
        **{name: value for name, value in defaults.items() if isinstance(value, int | float)},
        "temperature": 0.8,
    }
    return JsonReply(
        {
            "default_generation_settings": {"n_ctx": service.max_model_len, "params": params},
            "total_slots": service.llama.model.params.max_batch_size,
            "model_alias": service.settings.model_name,
            # The name, not a path: where an operator keeps files is nobody's business.
            "model_path": service.settings.model_name,
            "chat_template": chat_template(tokenizer),
            "modalities": {"vision": False, "audio": False},
            "bos_token": tokenizer.token_piece(tokenizer.bos_id),
            "eos_token": tokenizer.token_piece(tokenizer.eos_id),
            "build_info": f"codellama-runtime {__version__}",
        }
    )


def _slots(call: Call) -> Response:
    """One entry for each sequence that may run; which request is where is not told."""
    service = call.service
    total = service.llama.model.params.max_batch_size
    running = min(total, service.engine.snapshot.running)
    if call.request.query_params.get("fail_on_no_slot") == "1" and running == total:
        raise Problem(503, "unavailable", f"all {total} slots are busy", headers={"Retry-After": "1"})
    n_ctx = service.max_model_len
    return JsonReply(
        [{"id": i, "n_ctx": n_ctx, "speculative": True, "is_processing": i < running} for i in range(total)]
    )


def _apply_template(call: Call) -> Response:
    """The prompt without bos, which /completion puts in front again. Later control pieces come as text, so
    only a dialog's first turn goes through /completion unchanged."""
    prompt = call.service.chat_prompt(plain_messages(parse(LlamaCppTemplateBody, call.data).messages))
    return JsonReply({"prompt": spelled(call.service.tokenizer, prompt.tokens[1:], begins=True)})


ROUTES = (
    Route("GET", ("/props",), "The context's size, defaults, and the chat format", _props),
    Route("GET", ("/slots",), "How many sequences may run, and how many do", _slots),
    Route(
        "POST",
        ("/apply-template",),
        "Messages as the text of a prompt",
        _apply_template,
        (LlamaCppTemplateBody,),
    ),
)
