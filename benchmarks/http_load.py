"""A client of its own process for load_server.py: many streams at once, over plain sockets.

Started as `python http_load.py HOST PORT PATH` with a JSON list of bodies on stdin; prints, for each, when its
first event came and when it ended (seconds from the start), and how many events and bytes it had.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Seen:
    """One stream as its client saw it: times in seconds from the start of all."""

    first: float
    end: float
    events: int
    bytes: int
    status: int
    last: str


async def _read(host: str, port: int, path: str, body: Any, started: float, begun: asyncio.Event) -> Seen:
    reader, writer = await asyncio.open_connection(host, port)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    await begun.wait()
    writer.write(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
    status = int((await reader.readuntil(b"\r\n")).split()[1])
    await reader.readuntil(b"\r\n\r\n")
    first, events, size, tail = 0.0, 0, 0, b""
    while chunk := await reader.read(1 << 16):
        found = chunk.count(b"data: {")
        if found and not first:
            first = time.perf_counter() - started
        events, size, tail = events + found, size + len(chunk), (tail + chunk)[-400:]
    writer.close()
    return Seen(first, time.perf_counter() - started, events, size, status, tail.decode(errors="replace"))


async def _main(host: str, port: int, path: str, bodies: list[Any]) -> list[Seen]:
    begun = asyncio.Event()
    started = time.perf_counter()
    tasks = [asyncio.ensure_future(_read(host, port, path, body, started, begun)) for body in bodies]
    await asyncio.sleep(0.05)  # all are connected
    offset = time.perf_counter() - started
    begun.set()
    seen = await asyncio.gather(*tasks)
    for each in seen:
        each.first, each.end = each.first - offset, each.end - offset
    return seen


def load(host: str, port: int, path: str, bodies: list[Any]) -> list[Seen]:
    """Run the client in a process of its own -> what each stream saw."""
    command = [sys.executable, __file__, host, str(port), path]
    done = subprocess.run(command, input=json.dumps(bodies), capture_output=True, text=True, check=True)
    return [Seen(**each) for each in json.loads(done.stdout)]


if __name__ == "__main__":
    _host, _port, _path = sys.argv[1:]
    print(
        json.dumps(
            [asdict(each) for each in asyncio.run(_main(_host, int(_port), _path, json.load(sys.stdin)))]
        )
    )
