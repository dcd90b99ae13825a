"""The server's application, called in this process without a socket (extras [server] and [terminal])."""

from __future__ import annotations

import httpx

from ..errors import EngineClosedError
from ..generation import Llama
from ..serving import AsyncEngine
from ..serving.http.app import create_app
from ..serving.http.service import Service
from ..serving.http.settings import Settings
from .remote import open_client

__all__ = ["check_alive", "open_in_process"]

# The caller is the only client, and bounds its requests itself.
_NO_LIMIT = 1 << 30


def open_in_process(llama: Llama, engine: AsyncEngine, name: str) -> httpx.AsyncClient:
    """A client whose requests a model of this process answers, as a server would.

    Args:
        name: of the model, in answers.
    """
    settings = Settings(name, max_queue=_NO_LIMIT, max_body=_NO_LIMIT, request_timeout=_NO_LIMIT)
    service = Service(llama, engine, settings)
    service.ready = True
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    return open_client("http://localhost", None, transport)


def check_alive(engine: AsyncEngine) -> None:
    """Raise the error that the engine ended with, or EngineClosedError, if it takes nothing more."""
    if engine.failure is not None:
        raise engine.failure
    if not engine.accepting:
        raise EngineClosedError("the engine was closed before all requests were answered")
