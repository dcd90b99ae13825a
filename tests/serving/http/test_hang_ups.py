"""Clients that leave, that read slowly, and that come in too great a number."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from async_engines import LIMIT, LONG, TOKENIZER, Gated, model
from http_service import serving

from llama import Llama

PROMPT = "def return self value list"
LONG_PROMPT = " ".join([PROMPT] * 12)


@pytest.fixture(scope="module")
def server():
    """A server whose steps a test can hold: two sequences at a time, prompts in chunks of 8 tokens."""
    llama = Llama(model(2, 2 * LONG), TOKENIZER)
    llama.engine = Gated(llama.model, TOKENIZER, step_tokens=8, prefix_reuse=False)
    # Small buffers of the kernel: a client that does not read is felt soon.
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    listener.bind(("127.0.0.1", 0))
    with serving(llama, listener, max_queue=3) as served:
        yield served


@pytest.fixture
def engine(server):
    engine = server.service.engine.engine
    yield engine
    engine.open.set()
    until(lambda: server.service.engine.open_streams == 0)


def until(condition):
    """Wait for a condition; fails rather than hangs."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.002)


def let(engine, steps):
    """Allow so many steps, and wait until the next one is held."""
    for _ in range(steps):
        done = engine.steps
        engine.allowed.release()
        until(lambda done=done: engine.steps > done)


def send(server, **body):
    """A raw client that has sent a request; it never reads by itself."""
    client = socket.socket()
    client.settimeout(LIMIT)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(server.address)
    data = json.dumps({"prompt": PROMPT, "max_tokens": LONG, "seed": 1, **body}).encode()
    client.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(data) + data
    )
    return client


def hold(server, engine):
    """Hold the engine in front of a step; from now on `let` moves it."""
    engine.open.clear()


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("moment", ["queued", "prefill", "decode"])
def test_a_client_that_leaves_is_cancelled_before_the_next_step(server, engine, moment, stream) -> None:
    hold(server, engine)
    kept = [send(server, stream=True) for _ in range(2 if moment == "queued" else 0)]
    until(lambda: server.service.engine.open_streams == len(kept))
    if kept:
        until(engine.inside.is_set)
        let(engine, 6)
    lost = send(server, stream=stream, prompt=LONG_PROMPT)
    until(lambda: server.service.engine.open_streams == len(kept) + 1)
    until(engine.inside.is_set)
    let(engine, {"queued": 2, "prefill": 3, "decode": 20}[moment])
    running, waiting = len(engine.scheduler.running), engine.scheduler.waiting
    assert (running, waiting) == ((2, 1) if moment == "queued" else (1, 0))
    if moment != "queued":
        (sequence,) = engine.scheduler.running
        assert (sequence.generated > 0) == (moment == "decode")
    lost.close()
    # The server has noticed while the engine stands still: what follows is the first step after that.
    until(lambda: server.service.engine.open_streams == len(kept))
    engine.allowed.release()  # the step that is held was planned before
    until(lambda: len(engine.scheduler.running) == len(kept) and not engine.scheduler.waiting)
    for client in kept:
        client.close()


def test_several_prompts_of_one_client_leave_together(server, engine) -> None:
    hold(server, engine)
    client = send(server, n=2, stream=True)
    until(lambda: server.service.engine.open_streams == 1 and engine.inside.is_set())
    let(engine, 4)
    client.close()
    until(lambda: server.service.engine.open_streams == 0)
    engine.open.set()
    until(lambda: engine.empty)


def test_a_full_queue_is_429_and_nothing_is_queued(server, engine) -> None:
    hold(server, engine)
    clients = [send(server, stream=True) for _ in range(2)]
    until(lambda: server.service.engine.open_streams == 2)
    until(engine.inside.is_set)
    let(engine, 4)
    until(lambda: server.service.engine.waiting == 0)
    clients += [send(server, stream=True) for _ in range(3)]
    until(lambda: server.service.engine.open_streams == 5)
    answer = server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 1})
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert "3 may" in answer.json()["error"]["message"]
    assert server.service.engine.open_streams == 5
    for client in clients:
        client.close()
    engine.open.set()
    until(lambda: server.service.engine.waiting == 0)
    assert server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 1}).status_code == 200


def test_a_client_that_does_not_read_pauses_only_itself_and_loses_nothing(server, engine) -> None:
    client = send(server, max_tokens=LONG, temperature=0, stream=True, ignore_eos=True)
    until(lambda: server.service.engine.snapshot.paused == 1)
    # Beside it others are served, as fast as ever.
    ask = {"prompt": PROMPT, "max_tokens": 5}
    with ThreadPoolExecutor(2) as pool:  # the queue takes three
        beside = list(pool.map(lambda _: server.post("/v1/completions", ask).status_code, range(8)))
    assert set(beside) == {200}
    assert server.service.engine.snapshot.paused == 1
    # What it reads in the end goes on behind the place where it stood still.
    tokens = int(server.service.engine.snapshot.generated_tokens) + 100
    same = {**ask, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    whole = server.post("/v1/completions", same).json()["choices"][0]["text"]
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    data, text = b"", ""
    while len(text) < len(whole):
        data += client.recv(1 << 16)
        lines = data.split(b"\n")
        data = lines.pop()
        events = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
        text += "".join(each["choices"][0]["text"] for each in events)
    client.close()
    assert text.startswith(whole)


def test_readers_that_stand_still_in_every_slot_keep_nobody_out(server, engine) -> None:
    """The engine's batch is full of them, and gives their places to whoever waits."""
    clients = [
        send(server, max_tokens=LONG, temperature=0, stream=True, ignore_eos=True, prompt=f"def {name}")
        for name in ("self", "value")
    ]
    until(lambda: server.service.engine.snapshot.paused == 2)
    assert server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 5}).status_code == 200
    assert server.service.engine.open_streams == 2
    for client in clients:
        client.close()


def test_idle_and_trickling_connections_hold_up_nobody(server, engine) -> None:
    idle = [socket.create_connection(server.address, timeout=LIMIT) for _ in range(200)]
    slow = socket.create_connection(server.address, timeout=LIMIT)
    slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    assert server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 3}).status_code == 200
    slow.sendall(b'"')
    slow.close()
    for each in idle:
        each.close()
    assert server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 3}).status_code == 200
