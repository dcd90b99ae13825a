"""A server of the HTTP room within the test's process, on a port of its own, in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
from ranks import ROOT

from llama import Llama
from llama.serving.http.server import serve_http
from llama.serving.http.service import Service
from llama.serving.http.settings import Settings

# Seconds. A guard against hanging, far above what anything here takes on a busy machine.
LIMIT = 120.0


@dataclass
class Served:
    """A server that runs: its address, the service (whose model nobody else may use meanwhile), and a client."""

    url: str
    service: Service
    client: httpx.Client

    @property
    def address(self) -> tuple[str, int]:
        """For sockets."""
        host, _, port = self.url.rpartition("://")[2].rpartition(":")
        return host, int(port)

    def post(self, path: str, body: object, **more: object) -> httpx.Response:
        return self.client.post(path, json=body, **more)

    def events(self, path: str, body: object) -> list[str]:
        """The data of a stream's events, in order."""
        with self.client.stream("POST", path, json=body) as answer:
            assert answer.status_code == 200, answer.read()
            return [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]


def bundled(**options: object) -> Llama:
    """The bundled checkpoint in float32, whose text does not depend on how requests are batched."""
    return Llama.build(ROOT / "CodeLlama-tiny", None, 512, 8, device="cpu", dtype="float32", **options)


@contextlib.contextmanager
def serving(llama: Llama, listener: socket.socket | None = None, **settings: object) -> Iterator[Served]:
    """Serve a model until the block ends. `settings` are fields of Settings."""
    given = Settings(**{"model_name": "CodeLlama-tiny", "port": 0, **settings})
    found: list[tuple[Service, str]] = []
    listening, loops = threading.Event(), []

    def note(service: Service, url: str) -> None:
        found.append((service, url))
        listening.set()

    async def main() -> None:
        loops.append((asyncio.get_running_loop(), asyncio.current_task()))
        with contextlib.suppress(asyncio.CancelledError):
            await serve_http(llama, given, listener, ready=note)

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    assert listening.wait(LIMIT), "the server did not start"
    try:
        service, url = found[0]
        with httpx.Client(base_url=url, timeout=LIMIT) as client:
            yield Served(url, service, client)
    finally:
        loop, task = loops[0]
        loop.call_soon_threadsafe(task.cancel)
        thread.join(LIMIT)
        assert not thread.is_alive(), "the server did not end"
