"""`codellama serve --ray` as a process, and who is who among Ray's."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "CodeLlama-tiny"
LIMIT = 300.0  # a guard against a hang, far above what a start of Ray takes on a busy machine


class RayServer:
    """A running server with two replicas."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log

    def replicas(self) -> list[psutil.Process]:
        """The processes that hold a model."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if child.cmdline() and child.cmdline()[0].startswith("ray::ServeReplica"):
                    found.append(child)
        return found

    def wait_for_replicas(self, number: int, besides: int = 0) -> None:
        """Until so many are there, none of which is process `besides`."""
        end = time.monotonic() + LIMIT
        while len([each for each in self.replicas() if each.pid != besides]) != number:
            assert time.monotonic() < end, self.log.read_text()[-4000:]
            time.sleep(0.2)

    def get(self, path: str) -> tuple[int, bytes]:
        return self._ask("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON of an answer, or its text where that is none; 0 and the error if none came."""
        try:
            status, content = self._ask("POST", path, json.dumps(body).encode())
        except (OSError, http.client.HTTPException) as error:
            return 0, repr(error)
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content.decode(errors="replace")

    def stream(self, path: str, body: dict[str, Any]) -> tuple[int, list[str]]:
        """Status and lines of a streamed answer, as far as it came."""
        lines: list[str] = []
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        with contextlib.closing(connection):
            connection.request("POST", path, json.dumps({**body, "stream": True}))
            response = connection.getresponse()
            try:
                lines += [line.decode().strip() for line in response if line.strip()]
            except (OSError, http.client.HTTPException) as error:
                lines.append(repr(error))
            return response.status, lines

    def _ask(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        with contextlib.closing(connection):
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def ray_server(*flags: str) -> Iterator[RayServer]:
    """A server with two replicas on a cluster of its own, which leaves no process behind."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [
            sys.executable,
            "-m",
            "llama",
            "serve",
            TINY,
            "--device",
            "cpu",
            "--ray",
            "--replicas",
            "2",
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*map(str, command), "--port", str(port), *flags],
                cwd=ROOT,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        family: list[psutil.Process] = []
        try:
            end = time.monotonic() + LIMIT
            while "Serving 2 replicas on" not in log.read_text():
                assert process.poll() is None, log.read_text()[-4000:]
                assert time.monotonic() < end, log.read_text()[-4000:]
                time.sleep(0.2)
            family = psutil.Process(process.pid).children(recursive=True)
            yield RayServer(process, port, log)
        finally:
            if process.poll() is None:
                family = psutil.Process(process.pid).children(recursive=True)
                process.kill()
            process.wait()
            for each in family:
                with contextlib.suppress(psutil.Error):
                    each.kill()
