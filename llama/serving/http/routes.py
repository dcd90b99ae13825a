"""A door's table of routes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from .bodies import Body, Json
from .service import Service

__all__ = ["Call", "Route"]


class Call(NamedTuple):
    """One HTTP request at its route: `data` is the body's object, empty without one."""

    service: Service
    request: Request
    data: Json


@dataclass(frozen=True)
class Route:
    """Paths of a door, and what answers there.

    handler: without waiting; whatever the engine has to do is in the reply that it returns. For a long body it is
    called in a thread. It may raise a Problem or an error of this package. bodies: models of the bodies that the
    paths take, for the schema.
    """

    method: str
    paths: tuple[str, ...]
    summary: str
    handler: Callable[[Call], Response]
    bodies: tuple[type[Body], ...] = ()
