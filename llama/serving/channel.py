"""How events reach the other ranks of a model: one TCP connection each, from the first rank to every other.

Not a collective of a process group: those have a timeout, which would end a service that idles, they
notice a peer that died only when they next speak, and gloo's broadcast waits for an answer (0.5 ms on the
machine where a send here takes 0.02). A connection blocks without end at no cost, and ends at once with
either process. Addresses and a secret travel through the model's own group, once.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import socket
import struct
import time

import torch

from ..distributed.environment import local_ranks
from ..distributed.parallel import Parallel
from ..errors import ParallelismError, RankError
from .handshake import greet, introduce

__all__ = [
    "REASON_SECONDS",
    "FollowerChannel",
    "LeaderChannel",
    "check_one_model",
    "follow_channel",
    "lead_channel",
]

_LENGTH = struct.Struct("!I")
_CARD_BYTES = 1024
_CONNECT_SECONDS = 60.0
_AGAIN_SECONDS = 0.05
# How long a rank whose step failed looks for another rank's reason before it gives its own.
REASON_SECONDS = 1.0


class LeaderChannel:
    """The first rank's end. With one rank there are no peers, and nothing here costs anything."""

    def __init__(self, peers: dict[int, socket.socket] | None = None) -> None:
        self.peers = peers or {}

    def send(self, packet: bytes) -> None:
        """Give a packet, empty or not, to every other rank.

        Raises:
            RankError: a rank is gone.
        """
        for rank, peer in self.peers.items():
            try:
                peer.sendall(_LENGTH.pack(len(packet)) + packet)
            except OSError as error:
                raise self._gone(rank) from error

    def check(self) -> None:
        """Look whether all ranks are still there. Raises as `send`: they never speak but to say why they end."""
        for rank in self._speaking(0):
            raise self._gone(rank)

    def reason(self) -> RankError | None:
        """Why another rank ended, if one did within a second: for a step that failed here."""
        return next((self._gone(rank) for rank in self._speaking(REASON_SECONDS)), None)

    def close(self) -> None:
        """Give the connections back."""
        for peer in self.peers.values():
            peer.close()

    def _speaking(self, timeout: float) -> list[int]:
        """Ranks that said something or hung up, waiting `timeout` seconds for the first."""
        if not self.peers:
            return []
        with selectors.DefaultSelector() as selector:
            for rank, peer in self.peers.items():
                selector.register(peer, selectors.EVENT_READ, rank)
            return [key.data for key, _ in selector.select(timeout)]

    def _gone(self, rank: int) -> RankError:
        words = b""
        with contextlib.suppress(OSError):
            self.peers[rank].settimeout(REASON_SECONDS)
            words = _receive(self.peers[rank])
        return RankError(
            words.decode(errors="replace")
            or f"rank {rank} is gone: its process ended without a word; see its own output"
        )


class FollowerChannel:
    """The end of any other rank."""

    def __init__(self, leader: socket.socket) -> None:
        self.leader = leader

    def receive(self, seconds: float | None = None) -> bytes:
        """The next packet; waits for it as long as the first rank lives, or for so many seconds.

        Raises:
            RankError: the first rank is gone.
            TimeoutError: nothing came.
        """
        self.leader.settimeout(seconds)
        try:
            return _receive(self.leader)
        except TimeoutError:
            raise
        except OSError as error:
            raise RankError(
                "rank 0 is gone: its process ended, or left the service, without a word; see its own output"
            ) from error

    def send(self, words: str) -> None:
        """Tell the first rank why this one ends, as the last that it says. Waits up to a second."""
        packet = words.encode()
        with contextlib.suppress(OSError):
            self.leader.sendall(_LENGTH.pack(len(packet)) + packet)
            self.leader.shutdown(socket.SHUT_WR)
            # A connection closed with something unread in it is reset, and the words would be lost.
            self.leader.settimeout(REASON_SECONDS)
            while self.leader.recv(4096):
                pass

    def hang_up(self, words: str) -> None:
        """`send`, and end with RankError a `receive` that is under way in another thread, and all later ones.

        Reads nothing itself: two readers of one connection would lose packets to each other.
        """
        packet = words.encode()
        with contextlib.suppress(OSError):
            self.leader.sendall(_LENGTH.pack(len(packet)) + packet)
            self.leader.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the connection back."""
        self.leader.close()


def check_one_model(parallel: Parallel) -> None:
    """Raise ParallelismError where the launch holds several replicas: a service runs one model."""
    if parallel.replicas > 1:
        raise ParallelismError(
            f"the launch holds {parallel.replicas} replicas of {parallel.size} rank(s), but a service runs one"
            f" model; build with model_parallel_size={parallel.size * parallel.replicas}, or launch one service"
            f" of {parallel.size} rank(s) for each replica"
        )


def lead_channel(parallel: Parallel, device: torch.device) -> LeaderChannel:
    """The first rank's end, when all others have come. They call `follow_channel` at the same time.

    Raises:
        RankError: a rank did not come within a minute.
    """
    if parallel.size == 1:
        return LeaderChannel()
    here = local_ranks() >= parallel.size
    secret = secrets.token_bytes(32)
    # Open to the network only where ranks on other machines must reach it.
    with socket.create_server(("127.0.0.1" if here else "", 0)) as server:
        names = [os.environ.get("MASTER_ADDR", ""), socket.gethostname(), "127.0.0.1"]
        hosts = ["127.0.0.1"] if here else [name for name in names if name]
        card = {"hosts": hosts, "port": server.getsockname()[1], "secret": secret.hex()}
        _share(parallel, device, json.dumps(card).encode())
        ranks = set(range(1, parallel.size))
        peers = greet(server, secret, ranks, _CONNECT_SECONDS)
    channel = LeaderChannel({rank: _tuned(peers[rank]) for rank in sorted(peers)})
    if missing := sorted(ranks - set(peers)):
        channel.close()
        raise RankError(
            f"rank(s) {missing} did not reach rank 0 at {' or '.join(hosts)} port {card['port']} within"
            f" {_CONNECT_SECONDS:.0f} s; check that every rank serves, and the machines' firewall"
        )
    return channel


def follow_channel(parallel: Parallel, device: torch.device) -> FollowerChannel:
    """The end of a rank other than the first.

    Raises:
        RankError: the first rank cannot be reached.
    """
    card = json.loads(_share(parallel, device, b""))
    failure: OSError | None = None
    secret, end, answered = bytes.fromhex(card["secret"]), time.monotonic() + _CONNECT_SECONDS, True
    while answered and time.monotonic() < end:
        # Again where somebody answered: rank 0 sends callers away when there are too many of them.
        answered = False
        for host in card["hosts"]:
            try:
                leader = socket.create_connection((host, card["port"]), timeout=_CONNECT_SECONDS / 4)
            except OSError as error:
                failure = error
                continue
            answered = True
            try:
                if introduce(leader, secret, parallel.rank):
                    return FollowerChannel(_tuned(leader))
                failure = ConnectionError("something else answers there")
            except OSError as error:
                failure = error
            leader.close()
        time.sleep(_AGAIN_SECONDS)
    raise RankError(
        f"rank {parallel.rank} cannot reach rank 0 at {' or '.join(card['hosts'])} port {card['port']}"
        f" ({failure}); check the machines' names and firewall"
    )


def _share(parallel: Parallel, device: torch.device, card: bytes) -> bytes:
    """The first rank's card, on every rank, through the group of the model."""
    rows = torch.tensor(list(card.ljust(_CARD_BYTES)), dtype=torch.uint8, device=device)
    return bytes(parallel.broadcast(rows).tolist()).strip()


def _tuned(connection: socket.socket) -> socket.socket:
    """Packets leave at once; a machine that vanished without a word is noticed within a minute or two."""
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _receive(connection: socket.socket) -> bytes:
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    return _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes:
    """That many bytes. Raises ConnectionError where the connection ends before."""
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(count - len(parts))
        if not part:
            raise ConnectionError("the connection was closed")
        parts += part
    return bytes(parts)
