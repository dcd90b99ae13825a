"""What the llama.cpp routes share: the shape of an error, and which text is a control piece."""

from __future__ import annotations

from typing import Any

from ....tokenizer import SPACE_SYMBOL, Tokenizer
from ..problems import Family, Problem

__all__ = ["FAMILY", "control_id"]

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}


def _error(problem: Problem) -> dict[str, Any]:
    if problem.code == "context_length_exceeded":
        kind = "exceed_context_size_error"
    else:
        usual = "server_error" if problem.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(problem.status, usual)
    told = {"code": problem.status, "message": problem.message, "type": kind, "param": problem.param}
    return {"error": {**told, **problem.details}}


FAMILY = Family("llama.cpp", _error)


def control_id(tokenizer: Tokenizer, text: str) -> int | None:
    """The id of a text that is exactly one control piece, with or without the space in front; else None."""
    for token in tokenizer.control_ids:
        piece = tokenizer.token_piece(token).replace(SPACE_SYMBOL, " ")
        if text in (piece, piece.lstrip(" ")):
            return token
    return None
