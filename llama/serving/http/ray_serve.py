"""Replicas of the server on Ray Serve, behind one address (extra [ray]).

A replica is a process with a model of its own, on one rank: the engine, the service and the application of this
package, whose requests Ray's proxy passes on. So all protocols, limits and answers are those of
`codellama serve`; Ray adds the one address, the choice of a replica, and new replicas for dead ones.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import serve
from starlette.types import ASGIApp, Receive, Scope, Send

from ...generation import Llama
from ...printable import tell
from .. import AsyncEngine
from ..follower import exit_now
from ..kept_errors import again
from ..ray_cluster import join_cluster, share
from ..signals import on_signals
from .app import create_app
from .server import warm
from .service import Service
from .settings import Settings

__all__ = ["Replicas", "serve_on_ray"]

_APPLICATION = "codellama"
# Seconds between two looks of Ray at a replica, and after which one that does not answer is replaced.
_HEALTH_PERIOD, _HEALTH_TIMEOUT = 5.0, 30.0
# What a replica may take to hand out its last bytes once nothing runs any more.
_LAST_SECONDS = 5.0
# What Ray may take to end, beside that.
_ENDING_SECONDS = 25.0


@dataclass(frozen=True)
class Replicas:
    """Which model, how often, and where.

    build: keyword arguments of `Llama.build`; paths are the same on all machines.
    cluster: the address of a Ray cluster that runs; None starts one that ends with this program.
    """

    build: Mapping[str, Any]
    count: int = 2
    cluster: str | None = None


class _Replica:
    """A model on one rank, and its application. Ray makes it within the event loop that will serve it."""

    def __init__(self, build: Mapping[str, Any], settings: Settings) -> None:
        self._llama = Llama.build(**build)
        self._engine = AsyncEngine(self._llama.engine)
        self._service = Service(self._llama, self._engine, settings)

    async def __serve_build_asgi_app__(self) -> ASGIApp:  # Ray's name for it
        await warm(self._service)
        return _with_lifespan(create_app(self._service))

    def check_health(self) -> None:
        """Ray replaces a replica for which this raises."""
        if self._engine.failure is not None:
            raise again(self._engine.failure)

    async def __del__(self) -> None:
        """Ray calls it when the replica has had its time to drain."""
        await self._engine.close()
        self._llama.close()


def _with_lifespan(app: ASGIApp) -> ASGIApp:
    """Ray announces start and end to the application, which has nothing to do then."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})

    return application


async def serve_on_ray(replicas: Replicas, settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C, then let running answers end within `settings.drain_seconds`.

    Raises:
        ConfigError: more than one rank was launched, there is no such cluster, or it has too few cores or GPUs.
    """
    join_cluster(replicas.cluster)
    try:
        await asyncio.to_thread(_start, replicas, settings)
        told = asyncio.Event()
        with on_signals((signal.SIGTERM, signal.SIGINT), told.set):
            tell(f"Serving {replicas.count} replicas on {_address(settings)}")
            await told.wait()
            _exit_after(settings.drain_seconds + _ENDING_SECONDS)
            await asyncio.to_thread(serve.delete, _APPLICATION)
    finally:
        if replicas.cluster is None:
            await asyncio.to_thread(serve.shutdown)
        ray.shutdown()


def _exit_after(seconds: float) -> None:
    """Exit the process if it is still there then: Ray waits for ever if its own processes have ended first."""
    timer = threading.Timer(
        seconds, exit_now, [f"Ray did not end within {seconds:.0f} s; exiting without it"]
    )
    timer.daemon = True
    timer.start()


def _start(replicas: Replicas, settings: Settings) -> None:
    """Start proxies and replicas, and wait until all have made a first token."""
    serve.start(
        proxy_location="HeadOnly" if replicas.cluster is None else "EveryNode",
        http_options={
            "host": settings.host,
            "port": settings.port,
            "request_timeout_s": settings.request_timeout + _LAST_SECONDS,
            "ssl_certfile": settings.ssl_certfile and str(settings.ssl_certfile),
            "ssl_keyfile": settings.ssl_keyfile and str(settings.ssl_keyfile),
        },
    )
    deployment = serve.deployment(serve.ingress()(_Replica)).options(
        name="replica",
        num_replicas=replicas.count,
        ray_actor_options=share(replicas.count, str(replicas.build.get("device", "auto"))),
        # The replica's own limits count: `max_queue` beside what runs, then 429.
        max_ongoing_requests=settings.max_queue + int(replicas.build["max_batch_size"]) + 1,
        graceful_shutdown_timeout_s=settings.drain_seconds + _LAST_SECONDS,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=_HEALTH_PERIOD,
        health_check_timeout_s=_HEALTH_TIMEOUT,
        max_constructor_retry_count=2,
    )
    # Ray's proxy speaks TLS.
    inner = replace(settings, ssl_certfile=None, ssl_keyfile=None)
    serve.run(deployment.bind(dict(replicas.build), inner), name=_APPLICATION, route_prefix="/")


def _address(settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http{'s' if settings.ssl_certfile else ''}://{host}:{settings.port}"
