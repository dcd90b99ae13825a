"""The ASGI application: the routes of all doors under one schema, behind one guard."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp

from ... import __version__
from . import llamacpp, mistral, ollama, openai, operations, tgi
from .bodies import Body, json_object, read_body
from .guard import Guard
from .playground.pages import routes as playground_routes
from .problems import Family, Problem
from .replies import JsonReply
from .routes import Call, Route
from .service import Service

__all__ = ["DOORS", "create_app"]

# Every door, each with its FAMILY and ROUTES. The first is the one whose errors an unknown path gets.
DOORS: tuple[Any, ...] = (openai, llamacpp, tgi, mistral, ollama, operations)

# Bytes. A longer body is read and encoded in a thread: 1 MiB takes a second, in which no stream could go on.
_SHORT_BODY = 16 << 10


def create_app(service: Service) -> ASGIApp:
    """The application for a service that is at work. It needs nothing but a running event loop.

    Mount it, or run it with any ASGI server whose `receive` tells of clients that leave.
    """
    app = FastAPI(title="Code Llama", version=__version__, strict_content_type=False)
    workers = ThreadPoolExecutor(2, "http-bodies")
    families: dict[str, Family] = {}
    default: Family = DOORS[0].FAMILY
    for family, route in [(door.FAMILY, route) for door in DOORS for route in door.ROUTES]:
        for path in route.paths:
            families.setdefault(path, family)
            _add(app, service, workers, family, route, path)
    if service.settings.playground:
        app.router.routes.extend(playground_routes())
    else:
        _add(app, service, workers, operations.FAMILY, operations.HOME, "/", in_schema=False)
    _describe_bodies(app, [route for door in DOORS for route in door.ROUTES])

    def family_of(path: str) -> Family:
        return families.get(path, default)

    _answer_unknown_paths(app, family_of)
    origins = service.settings.cors_origins
    inner: ASGIApp = app
    if origins:
        inner = CORSMiddleware(
            app, origins, allow_methods=["*"], allow_headers=["*"], expose_headers=["x-request-id"]
        )
    return Guard(inner, service, family_of)


def _add(
    app: FastAPI,
    service: Service,
    workers: Executor,
    family: Family,
    route: Route,
    path: str,
    *,
    in_schema: bool = True,
) -> None:
    endpoint = _endpoint(service, family, route, workers)
    if route.method == "GET":
        # Load balancers ask so, and Ollama's own program before anything else.
        app.add_api_route(path, endpoint, methods=["HEAD"], response_class=Response, include_in_schema=False)
    app.add_api_route(
        path,
        endpoint,
        methods=[route.method],
        summary=route.summary,
        tags=[family.name],
        operation_id=route.method.lower() + re.sub(r"\W+", "_", path),
        response_class=Response,
        include_in_schema=in_schema,
        openapi_extra=_parameters(path) | _request_body(route),
    )


def _endpoint(
    service: Service, family: Family, route: Route, workers: Executor
) -> Callable[[Request], Awaitable[Response]]:
    settings = service.settings

    def answer(request: Request, body: bytes | None) -> Response:
        return route.handler(Call(service, request, {} if body is None else json_object(body)))

    async def endpoint(request: Request) -> Response:
        try:
            body = None
            if route.method == "POST":
                body = await read_body(request, settings.max_body, settings.body_timeout)
            if body is None or len(body) <= _SHORT_BODY:
                return answer(request, body)
            return await asyncio.get_running_loop().run_in_executor(workers, answer, request, body)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it; the log shows nginx's code for this
        except Exception as error:
            return JsonReply.of(family, error)

    return endpoint


def _parameters(path: str) -> dict[str, Any]:
    """Of `/v1/models/{model:path}`: the handler takes them from the request, where FastAPI does not see them."""
    names = re.findall(r"{(\w+)", path)
    told = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    return {"parameters": told} if told else {}


def _request_body(route: Route) -> dict[str, Any]:
    if not route.bodies:
        return {}
    refs = [{"$ref": f"#/components/schemas/{body.__name__}"} for body in route.bodies]
    schema = refs[0] if len(refs) == 1 else {"anyOf": refs}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _describe_bodies(app: FastAPI, routes: list[Route]) -> None:
    """Put the models of all bodies into the schema, which FastAPI makes when it is first asked for."""
    made = app.openapi
    bodies: dict[str, type[Body]] = {body.__name__: body for route in routes for body in route.bodies}

    def openapi() -> dict[str, Any]:
        schema = made()
        components = schema.setdefault("components", {}).setdefault("schemas", {})
        for name, body in bodies.items():
            if name not in components:
                fields = body.schema_of_fields()
                components.update(fields.pop("$defs", {}))
                components[name] = fields
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _answer_unknown_paths(app: FastAPI, family_of: Callable[[str], Family]) -> None:
    """404 and 405 in the shape of the path's family."""

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        here = request.url.path
        if error.status_code == 405:
            allowed = dict(error.headers or {})
            message = f"{here} does not take {request.method}; use {allowed.get('Allow', 'another method')}"
            problem = Problem(405, "method_not_allowed", message, headers=allowed)
        else:
            problem = Problem(error.status_code, "not_found", f"there is no {here} on this server; see /docs")
        return JsonReply.of(family_of(here), problem)

    app.add_exception_handler(HTTPException, unknown)
