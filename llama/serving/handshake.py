"""How the ranks of one model know each other on a port that anybody can call. Never imports torch.

Both ends know a secret, which never travels: each proves it by a digest over two numbers that are used once, one of
its own and one of the other's. The first rank proves it first, so that a caller tells nothing to something else with
that port. Whoever calls costs the first rank a few bytes for a few seconds, and keeps nobody waiting.
"""

from __future__ import annotations

import hmac
import secrets
import selectors
import socket
import struct
import time
from dataclasses import dataclass, field

__all__ = ["greet", "introduce"]

_ONCE = 32  # bytes of a number that is used once, and of a digest
_CALL = struct.Struct(f"!I{_ONCE}s")  # rank, number
_ACCEPTED = b"!"
# How long a caller may take, and how many may be under way: then the one that has been there longest goes. A rank
# takes three messages in a row; one that is sent away calls again.
_SECONDS = 5.0
_MOST = 64


@dataclass(eq=False)
class _Caller:
    """Somebody on the line: until when, what came in, and what the proof must be once the call was answered."""

    line: socket.socket
    until: float
    said: bytearray = field(default_factory=bytearray)
    rank: int = -1
    proof: bytes = b""

    def hear(self, secret: bytes) -> bool:
        """Take in what there is -> whether this is a rank that proved it.

        Raises:
            OSError: it is none.
        """
        wanted = _ONCE if self.proof else _CALL.size
        part = self.line.recv(wanted - len(self.said))
        self.said += part
        if not part:
            raise ConnectionError("hung up")
        if len(self.said) < wanted:
            return False
        if self.proof:
            if not hmac.compare_digest(self.said, self.proof):
                raise ConnectionError("does not know the secret")
            return self.line.send(_ACCEPTED) == len(_ACCEPTED)
        mine = secrets.token_bytes(_ONCE)
        self.rank = _CALL.unpack(self.said)[0]
        leader, self.proof = _proofs(secret, bytes(self.said), mine)
        self.said.clear()
        if self.line.send(mine + leader) != 2 * _ONCE:
            raise ConnectionError("does not read")
        return False


class _Door:
    """Those who have called and proved nothing yet."""

    def __init__(self, server: socket.socket) -> None:
        self.server = server
        self.callers: dict[_Caller, None] = {}  # the oldest first
        self.selector = selectors.DefaultSelector()
        self.selector.register(server, selectors.EVENT_READ)

    def wait(self, end: float) -> list[_Caller]:
        """Callers that said something before `end`; lets in who is new, and sends away whose time is over."""
        soonest = min([end, *(caller.until for caller in self.callers)])
        ready = self.selector.select(max(0.0, soonest - time.monotonic()))
        now = time.monotonic()
        said = [key.data for key, _ in ready if key.data is not None]
        for caller in [each for each in self.callers if each.until <= now]:
            self.send_away(caller)
        if len(said) < len(ready):
            self._let_in(now)
        return [caller for caller in said if caller in self.callers]

    def _let_in(self, now: float) -> None:
        try:
            line, _ = self.server.accept()
        except OSError:  # gone again
            return
        line.setblocking(False)
        if len(self.callers) == _MOST:
            self.send_away(next(iter(self.callers)))
        caller = _Caller(line, now + _SECONDS)
        self.callers[caller] = None
        self.selector.register(line, selectors.EVENT_READ, caller)

    def let_go(self, caller: _Caller) -> None:
        """It is here no longer; its line stays open."""
        del self.callers[caller]
        self.selector.unregister(caller.line)

    def send_away(self, caller: _Caller) -> None:
        """Hang up."""
        self.let_go(caller)
        caller.line.close()


def greet(server: socket.socket, secret: bytes, ranks: set[int], seconds: float) -> dict[int, socket.socket]:
    """Take the calls of these ranks -> their connections, of those that came within so many seconds."""
    end = time.monotonic() + seconds
    server.setblocking(False)
    peers: dict[int, socket.socket] = {}
    door = _Door(server)
    try:
        while len(peers) < len(ranks) and time.monotonic() < end:
            for caller in door.wait(end):
                try:
                    proved = caller.hear(secret)
                except OSError:
                    door.send_away(caller)
                    continue
                if proved and caller.rank in ranks and caller.rank not in peers:
                    door.let_go(caller)
                    peers[caller.rank] = caller.line
                elif proved:
                    door.send_away(caller)
    finally:
        for caller in list(door.callers):
            door.send_away(caller)
        door.selector.close()
    return peers


def introduce(line: socket.socket, secret: bytes, rank: int) -> bool:
    """Say who calls -> whether the first rank is at the other end and took the call; false after a few seconds.

    Raises:
        OSError: the connection failed.
    """
    end = time.monotonic() + _SECONDS
    call = _CALL.pack(rank, secrets.token_bytes(_ONCE))
    line.sendall(call)
    answer = _exactly(line, 2 * _ONCE, end)
    leader, mine = _proofs(secret, call, answer[:_ONCE])
    if not hmac.compare_digest(answer[_ONCE:], leader):
        return False
    line.sendall(mine)
    return _exactly(line, len(_ACCEPTED), end) == _ACCEPTED


def _proofs(secret: bytes, call: bytes, number: bytes) -> tuple[bytes, bytes]:
    """What proves the first rank, and what proves the caller."""
    return (
        hmac.digest(secret, b"first rank" + call + number, "sha256"),
        hmac.digest(secret, b"other rank" + call + number, "sha256"),
    )


def _exactly(line: socket.socket, count: int, end: float) -> bytes:
    """That many bytes, however they drip, before `end`."""
    parts = bytearray()
    while len(parts) < count:
        line.settimeout(max(0.01, end - time.monotonic()))
        part = line.recv(count - len(parts))
        if not part or time.monotonic() > end:
            raise ConnectionError("no answer of a first rank")
        parts += part
    return bytes(parts)
