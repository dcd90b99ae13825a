"""Laws of noticing a machine that fell silent, without one: which connections are told to, and what is said."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from llama.distributed import silence
from llama.distributed.silence import notice_silence, noticing_silence, silent, vanished


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def connection(stack: ExitStack) -> list[socket.socket]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = stack.enter_context(socket.create_connection(server.getsockname()))
        return [here, stack.enter_context(server.accept()[0])]


def notices(of: socket.socket) -> bool:
    return bool(of.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))


def test_connections_that_are_opened_in_the_block_notice_and_no_others_do(stack: ExitStack) -> None:
    before = connection(stack)
    with noticing_silence():
        within = connection(stack)
        datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        pair = [stack.enter_context(each) for each in socket.socketpair()]
    after = connection(stack)
    assert [notices(each) for each in within] == [True, True]
    assert not any(notices(each) for each in [*before, *after, datagrams, *pair])


def test_a_number_that_is_used_again_is_another_connection(stack: ExitStack) -> None:
    """The system gives a new connection the number of one that was closed."""
    old = connection(stack)[0]
    number = old.fileno()
    with noticing_silence():
        old.close()
        again = [end for _ in range(3) for end in connection(stack)]
    assert number in [end.fileno() for end in again]
    assert all(notices(end) for end in again)


def test_the_last_question_comes_when_the_time_is_over(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For what ships, and for the shortest silence."""
    end, _ = connection(stack)
    for seconds in (silence.SILENCE_SECONDS, 6):
        monkeypatch.setattr(silence, "SILENCE_SECONDS", seconds)
        notice_silence(end)
        found = [
            end.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}"))
            for name in ("KEEPIDLE", "KEEPINTVL", "KEEPCNT")
            if hasattr(socket, f"TCP_{name}")
        ]
        if len(found) == 3:
            idle, interval, count = found
            assert idle + interval * count == seconds
            assert 1 <= interval < idle
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * seconds


def test_errors_of_a_machine_out_of_reach_are_told_from_others() -> None:
    """Of the system, and in the text in which gloo quotes the system."""
    for number in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH):
        assert silent(OSError(number, os.strerror(number)))
        assert silent(
            RuntimeError(f"[pair.cc:537] Read error [10.77.0.2]:45711: {os.strerror(number)}. This is")
        )
    assert not silent(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
    assert not silent(RuntimeError("[pair.cc:544] Connection closed by peer [127.0.0.1]:31337"))
    assert not silent(TimeoutError("timed out")), (
        "a limit of our own, as of settimeout, says nothing of the peer"
    )
    assert f"has not answered for {silence.SILENCE_SECONDS} s" in vanished("rank 3")
