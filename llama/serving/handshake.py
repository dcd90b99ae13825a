"""How the ranks of one model recognize each other on a port that anybody can connect to. Never imports torch.

Both ends know a secret, which is never sent. Each proves that it knows it by a digest over two nonces, one
from each end. The first rank proves it first, so a rank that reached another program by mistake tells it
nothing useful. A stranger costs the first rank a few bytes for a few seconds, and delays nobody.
"""

from __future__ import annotations

import hmac
import secrets
import selectors
import socket
import struct
import time
from dataclasses import dataclass, field

from . import timeouts

__all__ = ["accept_ranks", "introduce"]

_NONCE = 32  # bytes of a nonce, and of a digest
_CALL = struct.Struct(f"!I{_NONCE}s")  # rank, nonce
_ACCEPTED = b"!"
# Handshakes at the same time. One more drops the oldest; a rank that is dropped calls again.
_MOST = 64


@dataclass(eq=False)
class _Caller:
    """A connection that has proved nothing yet: its deadline, its bytes so far, the proof it must send."""

    connection: socket.socket
    deadline: float
    received: bytearray = field(default_factory=bytearray)
    rank: int = -1
    proof: bytes = b""

    def receive(self, secret: bytes) -> bool:
        """Read what has arrived -> whether the caller has now proved that it is a rank.

        Raises:
            OSError: it hung up, or sent something wrong.
        """
        wanted = _NONCE if self.proof else _CALL.size
        part = self.connection.recv(wanted - len(self.received))
        self.received += part
        if not part:
            raise ConnectionError("hung up")
        if len(self.received) < wanted:
            return False
        if self.proof:
            if not hmac.compare_digest(self.received, self.proof):
                raise ConnectionError("does not know the secret")
            return self.connection.send(_ACCEPTED) == len(_ACCEPTED)
        mine = secrets.token_bytes(_NONCE)
        self.rank = _CALL.unpack(self.received)[0]
        leader, self.proof = _proofs(secret, bytes(self.received), mine)
        self.received.clear()
        if self.connection.send(mine + leader) != 2 * _NONCE:
            raise ConnectionError("does not read")
        return False


class _Listener:
    """The listening socket, and the callers that have proved nothing yet."""

    def __init__(self, server: socket.socket) -> None:
        self.server = server
        self.callers: dict[_Caller, None] = {}  # an ordered set, the oldest first
        self.selector = selectors.DefaultSelector()
        self.selector.register(server, selectors.EVENT_READ)

    def wait(self, end: float) -> list[_Caller]:
        """Wait until `end` -> callers that sent something.

        Accepts a new caller, and drops those past their deadline.
        """
        soonest = min([end, *(caller.deadline for caller in self.callers)])
        ready = self.selector.select(max(0.0, soonest - time.monotonic()))
        now = time.monotonic()
        heard = [key.data for key, _ in ready if key.data is not None]
        for caller in [each for each in self.callers if each.deadline <= now]:
            self.drop(caller)
        if len(heard) < len(ready):
            self._accept(now)
        return [caller for caller in heard if caller in self.callers]

    def _accept(self, now: float) -> None:
        try:
            connection, _ = self.server.accept()
        except OSError:  # it has hung up already
            return
        connection.setblocking(False)
        if len(self.callers) == _MOST:
            self.drop(next(iter(self.callers)))
        caller = _Caller(connection, now + timeouts.HANDSHAKE)
        self.callers[caller] = None
        self.selector.register(connection, selectors.EVENT_READ, caller)

    def release(self, caller: _Caller) -> None:
        """Forget a caller; its connection stays open."""
        del self.callers[caller]
        self.selector.unregister(caller.connection)

    def drop(self, caller: _Caller) -> None:
        """Forget a caller, and hang up."""
        self.release(caller)
        caller.connection.close()


def accept_ranks(
    server: socket.socket, secret: bytes, ranks: set[int], seconds: float
) -> dict[int, socket.socket]:
    """Accept calls from these ranks -> connections of those that proved themselves within `seconds`."""
    end = time.monotonic() + seconds
    server.setblocking(False)
    peers: dict[int, socket.socket] = {}
    listener = _Listener(server)
    try:
        while len(peers) < len(ranks) and time.monotonic() < end:
            for caller in listener.wait(end):
                try:
                    proved = caller.receive(secret)
                except OSError:
                    listener.drop(caller)
                    continue
                if proved and caller.rank in ranks and caller.rank not in peers:
                    listener.release(caller)
                    peers[caller.rank] = caller.connection
                elif proved:
                    listener.drop(caller)
    finally:
        for caller in list(listener.callers):
            listener.drop(caller)
        listener.selector.close()
    return peers


def introduce(connection: socket.socket, secret: bytes, rank: int) -> bool:
    """Do the caller's part -> whether the other end proved to be the first rank, and accepted.

    Raises:
        OSError: the connection failed, or no answer came within `timeouts.HANDSHAKE`.
    """
    end = time.monotonic() + timeouts.HANDSHAKE
    call = _CALL.pack(rank, secrets.token_bytes(_NONCE))
    connection.sendall(call)
    answer = _exactly(connection, 2 * _NONCE, end)
    leader, mine = _proofs(secret, call, answer[:_NONCE])
    if not hmac.compare_digest(answer[_NONCE:], leader):
        return False
    connection.sendall(mine)
    return _exactly(connection, len(_ACCEPTED), end) == _ACCEPTED


def _proofs(secret: bytes, call: bytes, nonce: bytes) -> tuple[bytes, bytes]:
    """The digests that prove the first rank, and the caller."""
    return (
        hmac.digest(secret, b"first rank" + call + nonce, "sha256"),
        hmac.digest(secret, b"other rank" + call + nonce, "sha256"),
    )


def _exactly(connection: socket.socket, count: int, end: float) -> bytes:
    """Read `count` bytes before `end`, however slowly they arrive."""
    parts = bytearray()
    while len(parts) < count:
        connection.settimeout(max(0.01, end - time.monotonic()))
        part = connection.recv(count - len(parts))
        if not part or time.monotonic() > end:
            raise ConnectionError("rank 0 did not answer")
        parts += part
    return bytes(parts)
