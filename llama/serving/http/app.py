"""The ASGI application: the routes of all doors under one schema."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ... import __version__
from . import openai_completions
from .problems import Family, Problem
from .replies import JsonReply
from .routes import Call, Route
from .service import Service

__all__ = ["create_app"]

# Every door. Of routes that answer an unknown path or method, the first family whose path fits has the word.
DOORS: tuple[Any, ...] = (openai_completions,)


def create_app(service: Service) -> FastAPI:
    """The application for a service that is at work. It needs nothing but a running event loop.

    Mount it, or run it with any ASGI server whose `receive` tells of clients that leave.
    """
    app = FastAPI(title="Code Llama", version=__version__, strict_content_type=False)
    routes = [(door.FAMILY, route) for door in DOORS for route in door.ROUTES]
    for family, route in routes:
        for path in route.paths:
            app.add_api_route(
                path,
                _endpoint(service, family, route),
                methods=[route.method],
                summary=route.summary,
                tags=[family.name],
                operation_id=f"{route.method.lower()}{path.replace('/', '_')}",
                response_class=Response,
                openapi_extra=_body_schema(route),
            )
    _answer_unknown_paths(app, [(path, family) for family, route in routes for path in route.paths])
    return app


def _endpoint(service: Service, family: Family, route: Route) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            data = await route.read(request, service.settings) if route.method == "POST" else {}
            return route.handler(Call(service, request, data))
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it; the log shows nginx's code for this
        except Exception as error:
            return JsonReply.of(family, error)

    return endpoint


def _body_schema(route: Route) -> dict[str, Any] | None:
    if not route.bodies:
        return None
    schemas = [body.schema_of_fields() for body in route.bodies]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _answer_unknown_paths(app: FastAPI, paths: Sequence[tuple[str, Family]]) -> None:
    """404 and 405 in the shape of the family whose path is nearest; OpenAI's where none is."""

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        here = request.url.path
        family = next((family for path, family in paths if path == here), paths[0][1])
        if error.status_code == 405:
            allowed = dict(error.headers or {})
            message = f"{request.method} is not possible on {here}; {allowed.get('Allow', 'another')} is"
            problem = Problem(405, "method_not_allowed", message, headers=allowed)
        else:
            problem = Problem(error.status_code, "not_found", f"there is no {here} here; see /docs")
        return JsonReply.of(family, problem)

    app.add_exception_handler(HTTPException, unknown)
