"""Errors on their way to a client: one neutral form, which each family of routes puts into its own shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import (
    EngineClosedError,
    NumericsError,
    OutOfMemoryError,
    PromptTooLongError,
    RankError,
    RequestError,
    UnsupportedError,
)

__all__ = ["Family", "Problem", "problem_of"]


class Problem(Exception):  # noqa: N818 - the term of RFC 9457
    """Why a request is not answered.

    Args:
        status: of HTTP.
        code: for programs: invalid_json, invalid_request, unknown_field, unsupported_field,
            context_length_exceeded, unsupported, unauthorized, forbidden, not_found, model_not_found,
            method_not_allowed, body_too_large, body_timeout, request_timeout, queue_full, unavailable, incomplete,
            not_finite, internal_error.
        message: for people.
        param: the field of the body that is wrong, such as `stop.0`.
        headers: of the answer.
        details: numbers that some families add to the error.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers, self.details = dict(headers or {}), dict(details or {})


@dataclass(frozen=True)
class Family:
    """How the routes of one protocol tell an error.

    error: a problem -> the body of the answer. statuses: by code, where the protocol's status is another.
    """

    name: str
    error: Callable[[Problem], Any]
    statuses: Mapping[str, int] = field(default_factory=dict)

    def status(self, problem: Problem) -> int:
        """The status of the answer."""
        return self.statuses.get(problem.code, problem.status)


# An error of the engine -> status and code. The first class that fits counts.
_KNOWN: tuple[tuple[type[BaseException], int, str], ...] = (
    (PromptTooLongError, 400, "context_length_exceeded"),
    (UnsupportedError, 400, "unsupported"),
    (RequestError, 400, "invalid_request"),
    # A request that the whole cache could not hold; one that has to wait for memory waits.
    (OutOfMemoryError, 400, "invalid_request"),
    # Not 500: the same request would fail again, and clients retry from 500 on.
    (NumericsError, 422, "not_finite"),
    (EngineClosedError, 503, "unavailable"),
    (RankError, 500, "internal_error"),
)


def problem_of(error: BaseException) -> Problem:
    """An exception as a problem. What is not an error of this package is not told to strangers in detail."""
    if isinstance(error, Problem):
        return error
    for kind, status, code in _KNOWN:
        if isinstance(error, kind):
            headers = {"Retry-After": "1"} if status == 503 else {}
            return Problem(status, code, str(error), headers=headers)
    return Problem(500, "internal_error", f"the server failed ({type(error).__name__}); its log says more")
