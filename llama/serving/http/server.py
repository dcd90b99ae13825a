"""From a loaded model to a server that has ended: uvicorn within the event loop that `Llama.serve` owns."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn

from ...generation import Llama
from ...printable import tell
from .. import AsyncEngine
from .app import create_app
from .service import Service
from .settings import Settings

__all__ = ["serve_http"]


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: `Llama.serve` has them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve_http(
    llama: Llama, settings: Settings, *, listening: Callable[[str], object] | None = None
) -> None:
    """Serve on rank 0 until SIGTERM, while the other ranks follow. All ranks call it.

    Args:
        listening: called with the address, once connections are accepted.
    """

    async def main(engine: AsyncEngine) -> None:
        service = Service(llama, engine, settings)
        config = uvicorn.Config(create_app(service), lifespan="off", log_config=None, server_header=False)
        server = _Server(config)
        with _socket(settings) as listener:
            serving = asyncio.ensure_future(server.serve([listener]))
            try:
                (listening or tell)(f"http://{settings.host}:{listener.getsockname()[1]}")
                await _warm(service)
                ended = asyncio.ensure_future(engine.ended())
                await asyncio.wait({serving, ended}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                server.should_exit = True
                await asyncio.wait({serving})

    await llama.serve(main, drain_seconds=settings.drain_seconds)


async def _warm(service: Service) -> None:
    """Make a first token: kernels are chosen and memory is touched before the first client comes."""
    (request,) = service.requests([service.text_prompt("")], temperature=0, top_p=1, max_tokens=1)
    await service.engine.complete(request)
    service.ready = True


@contextlib.contextmanager
def _socket(settings: Settings) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        yield listener
