"""What a connection may cost before its request is known, and long bodies, which must not hold up anybody else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from http_service import LIMIT, Served, bundled, serving

from llama.serving.http.connection import MOST_HEAD

HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with bundled() as llama, serving(llama, body_timeout=1.0) as served:
        yield served


@pytest.fixture
def connection(server: Served) -> Iterator[socket.socket]:
    with socket.create_connection(server.address, LIMIT) as made:
        yield made


@pytest.mark.parametrize("begun", [b"", b"GET /hea", HEAD, HEAD + b"X: a"])
def test_a_head_that_does_not_come_ends_the_connection(connection: socket.socket, begun: bytes) -> None:
    connection.sendall(begun)
    assert connection.recv(1) == b""


def test_so_does_the_head_of_a_second_request(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"\r\n")
    answer = b""
    while not answer.endswith(b'{"status":"ok"}'):
        answer += connection.recv(4096)
    connection.sendall(b"GET /hea")
    assert connection.recv(1) == b""


def test_a_head_without_end_is_not_collected(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"X: " + b"a" * MOST_HEAD)
    assert connection.recv(4096).startswith(b"HTTP/1.1 431 ")


def test_a_long_head_that_ends_is_read(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"X: " + b"a" * (MOST_HEAD // 2) + b"\r\n\r\n")
    assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_long_text_holds_up_nobody_and_may_take_longer_than_a_head(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = server.service.tokenizer
    encode, began, may_end = tokenizer.encode, threading.Event(), threading.Event()

    def slow(text: str, **how: bool) -> list[int]:
        began.set()
        assert may_end.wait(LIMIT)
        return encode(text, **how)

    monkeypatch.setattr(tokenizer, "encode", slow)
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(server.post, "/tokenize", {"content": "x " * 20_000})
        try:
            assert began.wait(LIMIT)
            with socket.create_connection(server.address, LIMIT) as idle:
                assert idle.recv(1) == b"", "the time for a head is over"
            with httpx.Client(base_url=server.url, timeout=LIMIT) as other:
                assert other.get("/health").status_code == 200
            assert not long.done()
        finally:
            may_end.set()
        assert len(long.result().json()["tokens"]) > 1000
