"""The HTTP server under clients that misbehave: nothing may be lost, wrong, or left behind.

    python benchmarks/server_faults.py
    python benchmarks/server_faults.py --requests 5000 --at_once 64

500 requests of all protocols on the bundled model, streamed and whole; 10 % hang up at a random moment, 5 %
have a bad body, beside 1,000 idle connections and one whose body comes a byte a second. Every answer that is
waited for must be the library's own greedy text, every bad body a 4xx, and afterwards no stream may be open
and the process may be at most 5 % larger than after a first round.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
import psutil
from load_server import served

from llama.generation import Llama

_FOLDER = Path(__file__).parent.parent / "CodeLlama-tiny"
_PROMPTS = [
    "def add(a, b):\n",
    "import os\nimport sys\n\n\ndef main(",
    "class Stack:\n    def push(self, item",
    "for i in range(",
    "# \u00fcber \u4f60\u597d \U0001f600\nname = ",
]
_BAD = [
    b"{",
    b'{"prompt": NaN}',
    b'{"prompt": "\xff"}',
    b'{"promt": "x"}',
    b'{"max_tokens": "many"}',
    b"[" * 5000,
    b"",
]
_NEW = (1, 7, 24, 60)


def _openai(body: Any) -> str:
    return str(body["choices"][0]["text"])


# Path, (prompt, new tokens) -> the body, the answer -> its text, an event -> its text.
_DOORS: list[tuple[str, Callable[[str, int], dict[str, Any]], Callable[[Any], str], Callable[[Any], str]]] = [
    ("/v1/completions", lambda p, n: {"prompt": p, "max_tokens": n, "temperature": 0}, _openai, _openai),
    (
        "/completion",
        lambda p, n: {"prompt": p, "n_predict": n, "temperature": 0},
        lambda body: str(body["content"]),
        lambda event: str(event["content"]),
    ),
    (
        "/generate",
        lambda p, n: {"inputs": p, "parameters": {"max_new_tokens": n}},
        lambda body: str(body["generated_text"]),
        lambda event: str(event["token"]["text"]),
    ),
    (
        "/v1/fim/completions",
        lambda p, n: {"prompt": p, "max_tokens": n, "temperature": 0},
        lambda body: str(body["choices"][0]["message"]["content"]),
        lambda event: str(event["choices"][0]["delta"]["content"]),
    ),
    (
        "/api/generate",
        lambda p, n: {"prompt": p, "raw": True, "options": {"num_predict": n, "temperature": 0}},
        lambda body: str(body["response"]),
        lambda event: str(event["response"]),
    ),
]


async def _send(port: int, path: str, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    writer.write(head.encode() + data)
    return reader, writer


def _text_of_stream(body: str, text: Callable[[Any], str]) -> str:
    lines = [line.removeprefix("data:").strip() for line in body.splitlines()]
    return "".join(text(json.loads(line)) for line in lines if line.startswith("{"))


def _unchunked(raw: bytes) -> bytes:
    body = b""
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        count = int(size, 16)
        body, raw = body + raw[:count], raw[count + 2 :]
    return body


class _Clients:
    """Requests of all kinds against one server, and how they ended."""

    def __init__(self, port: int, expected: dict[tuple[str, int], str], seed: int) -> None:
        self.port, self.expected, self.dice = port, expected, random.Random(seed)
        self.ends: Counter[str] = Counter()

    async def one(self) -> None:
        dice = self.dice.random()
        path, make, whole, event = self.dice.choice(_DOORS)
        prompt, new, stream = self.dice.choice(_PROMPTS), self.dice.choice(_NEW), self.dice.random() < 0.5
        if path == "/generate":
            path, body = ("/generate_stream" if stream else path), make(prompt, new)
        else:
            body = {**make(prompt, new), "stream": stream}
        data = self.dice.choice(_BAD) if dice < 0.05 else json.dumps(body).encode()
        reader, writer = await _send(self.port, path, data)
        try:
            if 0.05 <= dice < 0.15:
                await asyncio.sleep(self.dice.random() * 0.3)
                self.ends["hung up"] += 1
                return
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            raw = await reader.read()
            status = int(head.split()[1])
            if dice < 0.05:
                self.ends["bad body: 4xx" if 400 <= status < 500 else f"WRONG: bad body, {status}"] += 1
                return
            text = (_unchunked(raw) if "chunked" in head.lower() else raw).decode()
            if status != 200:
                self.ends[f"WRONG: {status} {text[:200]}"] += 1
                return
            found = _text_of_stream(text, event) if stream else whole(json.loads(text))
            same = found == self.expected[prompt, new]
            self.ends["right" if same else f"WRONG: {path} {found!r} not {self.expected[prompt, new]!r}"] += 1
        except (OSError, asyncio.IncompleteReadError) as error:
            self.ends[f"LOST: {type(error).__name__}"] += 1
        finally:
            writer.close()

    async def many(self, count: int, at_once: int) -> None:
        slots = asyncio.Semaphore(at_once)

        async def taking_turns() -> None:
            async with slots:
                await self.one()

        await asyncio.gather(*(taking_turns() for _ in range(count)))


async def _trickle(port: int) -> None:
    """A body of one byte a second, until it is cancelled."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(OSError, asyncio.CancelledError):
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n")
        while True:
            writer.write(b" ")
            await asyncio.sleep(1)
    writer.close()


async def _attack(
    port: int, expected: dict[tuple[str, int], str], requests: int, at_once: int, seed: int
) -> Counter[str]:
    idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(1000)]
    trickle = asyncio.ensure_future(_trickle(port))
    clients = _Clients(port, expected, seed)
    await clients.many(requests, at_once)
    trickle.cancel()
    for _, writer in idle:
        writer.close()
    return clients.ends


def main(requests: int = 500, at_once: int = 32, seed: int = 0) -> None:
    """Two rounds of the same size, since the first one allocates what is kept; prints how requests ended."""
    llama = Llama.build(_FOLDER, None, 512, 16, device="cpu", dtype="float32")
    expected = {}
    for new in _NEW:
        outputs = llama.text_completion(_PROMPTS, temperature=0, max_gen_len=new)
        expected |= {
            (prompt, new): each["generation"] for prompt, each in zip(_PROMPTS, outputs, strict=True)
        }
    process, sizes = psutil.Process(), []
    with served(llama, max_queue=requests) as (port, service):
        for i in range(2):
            ends = asyncio.run(_attack(port, expected, requests, at_once, seed + i))
            while service.engine.open_streams:
                pass
            sizes.append(process.memory_info().rss)
            print(f"round {i + 1}: " + ", ".join(f"{count} {end}" for end, count in sorted(ends.items())))
            if any(end.startswith(("WRONG", "LOST")) for end in ends):
                raise SystemExit("something was wrong or lost")
    growth = 100 * (sizes[1] / sizes[0] - 1)
    print(f"memory: {sizes[0] / 2**20:.0f} MiB after the first round, {growth:+.1f} % after the second")
    if sizes[1] > 1.05 * sizes[0]:
        raise SystemExit("the process has grown by more than 5 %")


if __name__ == "__main__":
    fire.Fire(main)
