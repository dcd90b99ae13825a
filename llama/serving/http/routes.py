"""A door's table of routes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from .bodies import Body, Json, read_object
from .service import Service
from .settings import Settings

__all__ = ["Call", "Route"]


class Call(NamedTuple):
    """One HTTP request at its route: `data` is the body's object, empty without one."""

    service: Service
    request: Request
    data: Json


@dataclass(frozen=True)
class Route:
    """A path of a door, and what answers there.

    handler: quick and without waiting; whatever takes time is in the reply that it returns. It may raise a
    Problem or an error of this package. bodies: models of the bodies that the path takes, for the schema.
    """

    method: str
    paths: tuple[str, ...]
    summary: str
    handler: Callable[[Call], Response]
    bodies: tuple[type[Body], ...] = ()

    async def read(self, request: Request, settings: Settings) -> Json:
        """The body's object. Raises as `read_object`."""
        return await read_object(request, settings.max_body, settings.body_timeout)
