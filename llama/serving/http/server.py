"""From a loaded model to a server that has ended: uvicorn within the event loop that `Llama.serve` owns."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn

from ...errors import ConfigError
from ...generation import Llama
from ...printable import reason, tell
from .. import AsyncEngine
from .addresses import listen, url_of
from .app import create_app
from .connection import connection_class
from .service import Service
from .settings import Settings

__all__ = ["bind", "serve_http", "warm"]

# Seconds that answers have to leave for their clients once nothing runs any more.
_LAST_BYTES = 1.0


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: `Llama.serve` has them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(settings: Settings) -> socket.socket:
    """The server's address, taken but not yet open: clients are refused until the model is there.

    Raises:
        ConfigError: the address cannot be had.
    """
    return listen(settings.host, settings.port)


async def serve_http(
    llama: Llama,
    settings: Settings,
    listener: socket.socket | None = None,
    *,
    ready: Callable[[Service, str], object] | None = None,
) -> None:
    """Serve on rank 0 until SIGTERM, while the other ranks follow. All ranks call it.

    Args:
        listener: from `bind`, on rank 0; by default made here.
        ready: called with the service and its address when the first token was made.

    Raises:
        ConfigError: the address or the TLS files cannot be used.
        RankError: a rank failed or died.
    """

    async def main(engine: AsyncEngine) -> None:
        service = Service(llama, engine, settings)
        server = _Server(_config(service))
        with listener or bind(settings) as bound:
            serving = asyncio.ensure_future(server.serve([bound]))
            over = asyncio.ensure_future(engine.ended())
            try:
                await warm(service)
                (ready or _announce)(
                    service, url_of(settings.host, bound, tls=settings.ssl_certfile is not None)
                )
                await asyncio.wait({serving, over}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                over.cancel()
                server.should_exit = True
                # After Ctrl-C answers still run; this ends them, and their clients are told so.
                await asyncio.wait({serving, asyncio.ensure_future(engine.close())})
            serving.result()

    await llama.serve(main, drain_seconds=settings.drain_seconds)


def _config(service: Service) -> uvicorn.Config:
    settings = service.settings
    config = uvicorn.Config(
        create_app(service),
        http=connection_class(settings.body_timeout),
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_LAST_BYTES,  # type: ignore[arg-type]  # it is given to asyncio.wait_for
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError among them
        raise ConfigError(f"the TLS files cannot be used: {reason(error)}") from None
    return config


async def warm(service: Service) -> None:
    """Make a first token: kernels are chosen and memory is touched before the first client comes."""
    (request,) = service.requests([service.text_prompt("")], temperature=0, top_p=1, max_tokens=1)
    await service.engine.complete(request)
    service.ready = True


def _announce(service: Service, address: str) -> None:
    tell(f"Serving on {address}")
