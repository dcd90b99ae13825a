"""Fields of answers and errors that several protocols share: OpenAI's, and those modelled on it."""

from __future__ import annotations

import secrets
import time
from typing import Any

from ...engine import FinishReason
from .problems import Problem

__all__ = ["answer_head", "error_fields", "finish_reason"]

_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


def error_fields(problem: Problem) -> dict[str, Any]:
    """OpenAI's four fields of an error. `type` follows from the status."""
    usual = "server_error" if problem.status >= 500 else "invalid_request_error"
    kind = _ERROR_TYPES.get(problem.status, usual)
    return {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code}


def answer_head(model: str, kind: str, prefix: str) -> dict[str, Any]:
    """The first fields of an answer, the same in all chunks of a stream.

    Args:
        kind: its `object`.
        prefix: of its id, which is new.
    """
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def finish_reason(reason: FinishReason | None) -> str | None:
    """stop or length, the only two that clients know; None while the sample is running."""
    if reason is None:
        return None
    return "length" if reason is FinishReason.LENGTH else "stop"
