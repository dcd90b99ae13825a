"""How events reach the other ranks of a model: one TCP connection from the first rank to each of the others.

Why not a collective of the process group: collectives have a timeout, which would end a service that idles;
they notice a dead peer only at the next call; and gloo's broadcast waits for an answer (0.5 ms on the machine
where a send here takes 0.02 ms). A TCP connection can block forever at no cost, and ends as soon as either
process does. The address and a secret travel once, through the model's process group.
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

from ..distributed.agreement import gone
from ..distributed.environment import local_ranks
from ..distributed.parallel import Parallel
from ..distributed.silence import notice_silence, silent, vanished
from ..errors import RankError
from . import timeouts
from .handshake import accept_ranks, introduce

__all__ = ["FollowerChannel", "LeaderChannel", "follow_channel", "lead_channel"]

_LENGTH = struct.Struct("!I")
# The first rank's address and secret, as JSON padded to a fixed size, because a broadcast needs one.
_CARD_BYTES = 1024


class LeaderChannel:
    """The first rank's end of all connections. With one rank it has no peers, and its methods do nothing."""

    def __init__(self, peers: dict[int, socket.socket] | None = None) -> None:
        self.peers = peers or {}

    def send(self, packet: bytes) -> None:
        """Send a packet, which may be empty, to every other rank.

        Raises:
            RankError: a rank died.
        """
        for rank, peer in self.peers.items():
            try:
                peer.sendall(_LENGTH.pack(len(packet)) + packet)
            except OSError as error:
                raise self._gone(rank, error) from error

    def check(self) -> None:
        """Raise as `send` if a rank has died or sent something: ranks only ever send why they end."""
        for rank in self._heard(0):
            raise self._gone(rank)

    def reason(self) -> RankError | None:
        """Why another rank ended, if one does so within `timeouts.REASON`. For a step that failed here."""
        return next((self._gone(rank) for rank in self._heard(timeouts.REASON)), None)

    def close(self) -> None:
        """Close the connections."""
        for peer in self.peers.values():
            peer.close()

    def _heard(self, timeout: float) -> list[int]:
        """Ranks that sent something or closed their connection, waiting `timeout` seconds for the first."""
        if not self.peers:
            return []
        with selectors.DefaultSelector() as selector:
            for rank, peer in self.peers.items():
                selector.register(peer, selectors.EVENT_READ, rank)
            return [key.data for key, _ in selector.select(timeout)]

    def _gone(self, rank: int, error: OSError | None = None) -> RankError:
        words = b""
        try:
            self.peers[rank].settimeout(timeouts.REASON)
            words = _receive(self.peers[rank])
        except OSError as failure:
            error = error or failure
        lost = vanished(f"rank {rank}") if error is not None and silent(error) else gone(rank)
        return RankError(words.decode(errors="replace") or lost)


class FollowerChannel:
    """Another rank's end of its connection."""

    def __init__(self, leader: socket.socket) -> None:
        self.leader = leader

    def receive(self, seconds: float | None = None) -> bytes:
        """Wait for the next packet, as long as the first rank lives or for so many seconds.

        Raises:
            RankError: the first rank died or left.
            TimeoutError: nothing arrived in time.
        """
        self.leader.settimeout(seconds)
        try:
            return _receive(self.leader)
        except OSError as error:
            if silent(error):
                raise RankError(vanished("rank 0")) from error
            if isinstance(error, TimeoutError):
                raise
            raise RankError(
                "rank 0 is gone: its process ended, or left the service, without a word; see its own output"
            ) from error

    def send(self, words: str) -> None:
        """Tell the first rank why this one ends. Nothing is sent after it. Waits up to `timeouts.REASON`."""
        packet = words.encode()
        with contextlib.suppress(OSError):
            self.leader.sendall(_LENGTH.pack(len(packet)) + packet)
            self.leader.shutdown(socket.SHUT_WR)
            # Closing a socket that holds unread data resets the connection, and what was sent would be lost.
            self.leader.settimeout(timeouts.REASON)
            while self.leader.recv(4096):
                pass

    def hang_up(self, words: str) -> None:
        """`send`, then make `receive` raise RankError, also one that waits in another thread.

        Does not read: two readers of one connection would take parts of each other's packets.
        """
        packet = words.encode()
        with contextlib.suppress(OSError):
            self.leader.sendall(_LENGTH.pack(len(packet)) + packet)
            self.leader.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self.leader.close()


def lead_channel(parallel: Parallel, device: torch.device) -> LeaderChannel:
    """The first rank's end, once all others have connected. They call `follow_channel` at the same time.

    Raises:
        RankError: a rank did not connect within `timeouts.CONNECT`.
    """
    if parallel.size == 1:
        return LeaderChannel()
    here = local_ranks() >= parallel.size
    secret = secrets.token_bytes(32)
    # Open to the network only if some ranks are on other machines.
    with socket.create_server(("127.0.0.1" if here else "", 0)) as server:
        names = [os.environ.get("MASTER_ADDR", ""), socket.gethostname(), "127.0.0.1"]
        hosts = ["127.0.0.1"] if here else [name for name in names if name]
        card = {"hosts": hosts, "port": server.getsockname()[1], "secret": secret.hex()}
        _share(parallel, device, json.dumps(card).encode())
        ranks = set(range(1, parallel.size))
        peers = accept_ranks(server, secret, ranks, timeouts.CONNECT)
    channel = LeaderChannel({rank: _tuned(peers[rank]) for rank in sorted(peers)})
    if missing := sorted(ranks - set(peers)):
        channel.close()
        raise RankError(
            f"rank(s) {missing} did not reach rank 0 at {' or '.join(hosts)} port {card['port']} within"
            f" {timeouts.CONNECT:.0f} s; check that every rank calls `serve`, and the machines' firewalls"
        )
    return channel


def follow_channel(parallel: Parallel, device: torch.device) -> FollowerChannel:
    """The end of a rank other than the first, connected.

    Raises:
        RankError: the first rank cannot be reached.
    """
    card = json.loads(_share(parallel, device, b""))
    failure: OSError | None = None
    secret, end, answered = bytes.fromhex(card["secret"]), time.monotonic() + timeouts.CONNECT, True
    while answered and time.monotonic() < end:
        # If somebody answered, try again: rank 0 drops callers while there are too many of them.
        answered = False
        for host in card["hosts"]:
            try:
                leader = socket.create_connection((host, card["port"]), timeout=timeouts.CONNECT / 4)
            except OSError as error:
                failure = error
                continue
            answered = True
            try:
                if introduce(leader, secret, parallel.rank):
                    return FollowerChannel(_tuned(leader))
                failure = ConnectionError("another program answers there")
            except OSError as error:
                failure = error
            leader.close()
        time.sleep(timeouts.CONNECT_RETRY)
    raise RankError(
        f"rank {parallel.rank} cannot reach rank 0 at {' or '.join(card['hosts'])} port {card['port']}"
        f" ({failure}); check the machines' names and firewalls"
    )


def _share(parallel: Parallel, device: torch.device, card: bytes) -> bytes:
    """Broadcast the first rank's card to all ranks of the model."""
    rows = torch.tensor(list(card.ljust(_CARD_BYTES)), dtype=torch.uint8, device=device)
    return bytes(parallel.broadcast(rows).tolist()).strip()


def _tuned(connection: socket.socket) -> socket.socket:
    """Send packets at once (no Nagle), and notice a machine that vanished."""
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    notice_silence(connection)
    return connection


def _receive(connection: socket.socket) -> bytes:
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    return _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes:
    """Read `count` bytes. Raises ConnectionError if the connection ends before."""
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(count - len(parts))
        if not part:
            raise ConnectionError("the connection was closed")
        parts += part
    return bytes(parts)
