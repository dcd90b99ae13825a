"""Strangers that find the port keep no rank waiting, and learn nothing."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest
from async_engines import LIMIT
from thread_ranks import connected

from llama.serving import channel, handshake, timeouts


def silent(port):
    return socket.create_connection(port)


def one_byte(port):
    line = socket.create_connection(port)
    line.sendall(b"x")
    return line


def wrong_proof(port):
    line = socket.create_connection(port)
    line.sendall(bytes(36))
    line.settimeout(LIMIT)
    assert line.recv(64)
    line.sendall(bytes(32))
    return line


@pytest.mark.parametrize("strangers", [[silent] * 4, [one_byte], [wrong_proof], [silent] * 150], ids=len)
def test_strangers_keep_no_rank_waiting(monkeypatch, strangers):
    """Whoever finds the port may say nothing, too little or the wrong thing; the ranks meet all the same."""
    made, called = [], []
    create = socket.create_server

    def noticed(*args, **kwargs):
        made.append(create(*args, **kwargs))
        return made[0]

    def with_strangers(line, *more):
        if not called:
            called.extend(stranger(made[0].getsockname()) for stranger in strangers)
        return introduce(line, *more)

    introduce = channel.introduce
    monkeypatch.setattr(socket, "create_server", noticed)
    monkeypatch.setattr(channel, "introduce", with_strangers)
    # A stranger's time never ends, the ranks' soon does: none of them may wait for him.
    monkeypatch.setattr(timeouts, "HANDSHAKE", 10 * LIMIT)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with connected(3) as (leader, *followers):
        assert list(leader.peers) == [1, 2]
        leader.send(b"x")
        assert [follower.receive() for follower in followers] == [b"x"] * 2
        # He gets nothing but a number and a proof that is worth nothing elsewhere.
        for line in called:
            line.settimeout(LIMIT)
            with contextlib.suppress(ConnectionError):
                assert line.recv(65) == b""
            line.close()


def test_strangers_hold_only_so_many_lines():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        listener = handshake._Listener(server)
        lines = []
        for _ in range(100):
            lines.append(socket.create_connection(server.getsockname()))
            listener.wait(time.monotonic() + LIMIT)
        assert len(listener.callers) == 64
        # The oldest were sent away.
        assert [line.recv(1) for line in lines[:36]] == [b""] * 36
        for line in (*lines, *(caller.connection for caller in listener.callers)):
            line.close()
        listener.selector.close()


def test_a_stranger_has_his_time_and_no_longer(monkeypatch):
    """One that drips bytes is sent away as one that is silent."""
    with socket.create_server(("127.0.0.1", 0)) as server, silent(server.getsockname()) as line:
        listener = handshake._Listener(server)
        assert listener.wait(time.monotonic() + LIMIT) == []
        (caller,) = listener.callers
        deadline = caller.deadline
        for _ in range(5):
            line.sendall(b"x")
            assert listener.wait(time.monotonic() + LIMIT) == [caller]
            assert not caller.receive(b"secret")
        assert caller.deadline == deadline
        line.sendall(b"x")
        monkeypatch.setattr(handshake.time, "monotonic", lambda: deadline)
        assert listener.wait(deadline + LIMIT) == []
        assert not listener.callers
        listener.selector.close()


@pytest.mark.parametrize("answer", [b"", b"!", bytes(64), bytes(1000)], ids=len)
def test_a_rank_tells_a_stranger_nothing(monkeypatch, answer):
    """Something else that listens at the address of rank 0 learns neither the secret nor a proof."""
    monkeypatch.setattr(timeouts, "HANDSHAKE", 0.1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(answer)
        with contextlib.suppress(OSError):
            assert not handshake.introduce(ours, b"secret", 1)
        assert len(theirs.recv(1000)) == 36
        ours.close()
        with contextlib.suppress(ConnectionResetError):
            assert theirs.recv(1000) == b""
