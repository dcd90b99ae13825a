"""/tokenize and /detokenize for three protocols, which share these paths: llama.cpp's, vLLM's and TGI's.

A body's field says whose it is: `content`, `prompt` or `messages`, `inputs`. In all of them text stays text,
with one exception that programs rely on: a text that is exactly one control piece (`</s>`) is its id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from pydantic import Field
from starlette.responses import Response

from ..bodies import Body, Int, Json, parse
from ..messages import ChatMessage, plain_messages
from ..problems import Problem
from ..replies import JsonReply
from ..routes import Call, Route
from ..service import Service
from ..token_texts import TokenTexts, token_bytes
from .shapes import FAMILY, control_id

__all__ = ["FAMILY", "ROUTES"]


# Characters, and ids, of one request: other requests wait for so long.
_MOST = 1 << 18


class LlamaCppTokenizeBody(Body):
    """llama.cpp's: with_pieces gives {id, piece} for each; parse_special lets control pieces become ids."""

    content: str
    add_special: bool = False
    parse_special: bool = False
    with_pieces: bool = False


class VllmTokenizeBody(Body):
    """vLLM's, as lm-eval sends it."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class VllmChatTokenizeBody(Body):
    """vLLM's, of a chat's prompt."""

    model: str | None = None
    messages: list[ChatMessage]
    return_token_strs: bool = False
    INERT = frozenset({"add_special_tokens", "add_generation_prompt"})
    REFUSED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "tools": ([],),
        "continue_final_message": (False,),
        "chat_template": (),
        "chat_template_kwargs": ({},),
    }


class TgiTokenizeBody(Body):
    """text-generation-inference's."""

    inputs: str
    INERT = frozenset({"parameters"})


class DetokenizeBody(Body):
    """The ids of a text. Control ids give no text."""

    model: str | None = None
    tokens: list[Int] = Field(max_length=_MOST)


def _tokenize(call: Call) -> Response:
    for field, answer in _BY_FIELD.items():
        if call.data.get(field) is not None:
            return JsonReply(answer(call.service, call.data))
    raise Problem(
        400,
        "invalid_request",
        "there is no text; send content (llama.cpp), prompt or messages (vLLM), or inputs (TGI)",
    )


def _for_llama_cpp(service: Service, data: Json) -> Any:
    body = parse(LlamaCppTokenizeBody, data)
    ids = _ids(service, body.content, body.add_special, allow_control=body.parse_special)
    if not body.with_pieces:
        return {"tokens": ids}
    return {
        "tokens": [{"id": token, "piece": _piece(token_bytes(service.tokenizer, token))} for token in ids]
    }


def _piece(told: bytes) -> str | list[int]:
    try:
        return told.decode()
    except UnicodeDecodeError:
        return list(told)


def _for_vllm(service: Service, data: Json) -> Any:
    body = parse(VllmTokenizeBody, data)
    service.check_model(body.model)
    return _counted(service, _ids(service, body.prompt, body.add_special_tokens), body.return_token_strs)


def _chat_for_vllm(service: Service, data: Json) -> Any:
    body = parse(VllmChatTokenizeBody, data)
    service.check_model(body.model)
    prompt = service.chat_prompt(plain_messages(body.messages))
    return _counted(service, prompt.tokens, body.return_token_strs)


def _counted(service: Service, ids: Sequence[int], names: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"count": len(ids), "max_model_len": service.max_model_len, "tokens": list(ids)}
    if names:
        told["token_strs"] = [service.tokenizer.token_piece(token) for token in ids]
    return told


def _for_tgi(service: Service, data: Json) -> Any:
    body = parse(TgiTokenizeBody, data)
    ids = _ids(service, body.inputs, bos=False)
    if control_id(service.tokenizer, body.inputs) is not None:
        return [{"id": ids[0], "text": body.inputs, "start": 0, "stop": len(body.inputs)}]
    told, at = [], 0
    for token, text in zip(ids, TokenTexts(service.tokenizer, start_of_text=True).push(ids), strict=True):
        told.append({"id": token, "text": text, "start": at, "stop": at + len(text)})
        at += len(text)
    return told


_BY_FIELD: dict[str, Callable[[Service, Json], Any]] = {
    "content": _for_llama_cpp,
    "prompt": _for_vllm,
    "messages": _chat_for_vllm,
    "inputs": _for_tgi,
}


def _ids(service: Service, text: str, bos: bool, *, allow_control: bool = False) -> list[int]:
    tokenizer = service.tokenizer
    if len(text) > _MOST:
        message = f"the text has {len(text):,} characters; {_MOST:,} are the most of one request; split it"
        raise Problem(400, "invalid_request", message)
    single = control_id(tokenizer, text)
    if single is not None:
        return [tokenizer.bos_id] * bos + [single]
    return tokenizer.encode(text, bos=bos, eos=False, allow_control=allow_control)


def _detokenize(call: Call) -> Response:
    body = parse(DetokenizeBody, call.data)
    call.service.check_model(body.model)
    words = call.service.tokenizer.n_words
    for i, token in enumerate(body.tokens):
        if not 0 <= token < words:
            message = f"tokens.{i}: {token} is not an id of this vocabulary, which are 0 to {words - 1}"
            raise Problem(400, "invalid_request", message, f"tokens.{i}")
    text = call.service.tokenizer.decode(body.tokens)
    return JsonReply({"content": text, "prompt": text})


_TOKENIZE = (LlamaCppTokenizeBody, VllmTokenizeBody, VllmChatTokenizeBody, TgiTokenizeBody)
ROUTES = (
    Route(
        "POST", ("/tokenize",), "The ids of a text, for llama.cpp, vLLM and TGI clients", _tokenize, _TOKENIZE
    ),
    Route("POST", ("/detokenize",), "The text of ids", _detokenize, (DetokenizeBody,)),
)
