"""OpenAI's /v1/models, with what other servers add to it, and vLLM's /tokenizer_info."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from ....chat_templates import chat_template
from ....sizing.budget import parameter_count
from ....sizing.family import context_of
from ..replies import JsonReply
from ..routes import Call, Route
from ..service import Service
from .shapes import FAMILY

__all__ = ["FAMILY", "ROUTES"]


def _models(call: Call) -> Response:
    return JsonReply({"object": "list", "data": [_model(call.service)]})


def _one_model(call: Call) -> Response:
    call.service.check_model(call.request.path_params["model"])
    return JsonReply(_model(call.service))


def _model(service: Service) -> dict[str, Any]:
    """The model that this server has. `max_model_len` is vLLM's, `meta` llama.cpp's, `completion_*` Mistral's.

    Mistral's client refuses a model without `type`.
    """
    tokenizer, args = service.tokenizer, service.llama.model.params
    context = service.max_model_len
    return {
        "id": service.settings.model_name,
        "object": "model",
        "type": "base",
        "created": service.started,
        "owned_by": "codellama",
        "max_model_len": context,
        "meta": {
            "n_ctx": context,
            # Where the shape is none of the family's, nobody knows; clients want a number.
            "n_ctx_train": context_of(args) or context,
            "n_vocab": tokenizer.n_words,
            "n_params": parameter_count(args),
        },
        "capabilities": {
            "infill": tokenizer.supports_infilling,
            "chat_format": "inst" if tokenizer.step_id is None else "step",
            "capability": service.settings.capability,
            "completion_fim": tokenizer.supports_infilling,
            "completion_chat": True,
        },
    }


def _tokenizer_info(call: Call) -> Response:
    tokenizer = call.service.tokenizer
    names = call.service.token_names
    return JsonReply(
        {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": names[tokenizer.bos_id],
            "eos_token": names[tokenizer.eos_id],
            "unk_token": names[tokenizer.unk_id],
            "pad_token": None if tokenizer.pad_id < 0 else names[tokenizer.pad_id],
            "model_max_length": call.service.max_model_len,
            "chat_template": chat_template(tokenizer),
        }
    )


ROUTES = (
    Route("GET", ("/v1/models",), "The model of this server", _models),
    Route("GET", ("/v1/models/{model:path}",), "The model of this server", _one_model),
    Route("GET", ("/tokenizer_info",), "Special tokens, for clients that score texts", _tokenizer_info),
)
