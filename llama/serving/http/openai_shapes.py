"""What the OpenAI routes share: the shape of an error, ids, and the reasons why an answer ended."""

from __future__ import annotations

import secrets
from typing import Any

from ...engine import FinishReason
from .problems import Family, Problem

__all__ = ["FAMILY", "finish_reason", "new_id"]

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


def _error(problem: Problem) -> dict[str, Any]:
    kind = _TYPES.get(problem.status, "server_error" if problem.status >= 500 else "invalid_request_error")
    told = {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code}
    return {"error": {**told, **problem.details}}


FAMILY = Family("OpenAI", _error)


def new_id(prefix: str) -> str:
    """An id for an answer."""
    return f"{prefix}-{secrets.token_hex(12)}"


def finish_reason(reason: FinishReason | None) -> str | None:
    """stop or length; clients know no others."""
    if reason is None:
        return None
    return "length" if reason is FinishReason.LENGTH else "stop"
