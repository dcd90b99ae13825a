"""How a rank notices that another machine fell silent: lost its power, its network or its cable.

Nobody closes the connections then, and TCP by itself waits: forever where nothing is under way, about 15
minutes where something is. gloo and torch's store leave it at that. So the system's kernel is told to ask the
other kernel whether it is still there, and to end a connection on which nothing came back for
`SILENCE_SECONDS`. A rank that computes, sleeps or is stopped costs nothing and is not mistaken for a dead
one: its kernel answers.

Never imports torch.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator

__all__ = ["SILENCE_SECONDS", "notice_silence", "noticing_silence", "silent", "vanished"]

SILENCE_SECONDS = 60
"""Seconds without an answer from the other machine after which a connection ends. At least 6."""

# Of these seconds, what passes before the first question, and between two.
_IDLE, _INTERVAL = 1 / 3, 1 / 12
# What a connection fails with, at once or after that time, when the other machine cannot be reached.
_UNREACHABLE = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN)


def notice_silence(connection: socket.socket) -> None:
    """Let a TCP connection fail when the other machine has been silent for `SILENCE_SECONDS`.

    Sets what the system offers: keep-alive everywhere, and on Linux TCP_USER_TIMEOUT, which also counts where
    data is under way and the questions of keep-alive are not asked.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    idle, interval = max(1, round(SILENCE_SECONDS * _IDLE)), max(1, round(SILENCE_SECONDS * _INTERVAL))
    options = {
        "TCP_KEEPIDLE": idle,
        "TCP_KEEPALIVE": idle,  # macOS's name for it
        "TCP_KEEPINTVL": interval,
        "TCP_KEEPCNT": max(1, (SILENCE_SECONDS - idle) // interval),
        "TCP_USER_TIMEOUT": 1000 * SILENCE_SECONDS,
    }
    for name, value in options.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


@contextlib.contextmanager
def noticing_silence() -> Iterator[None]:
    """`notice_silence` for every TCP connection that this process opens in the block, whoever opens it.

    For connections that torch makes: it offers no way to them, but the system lists what a process has open.
    """
    before = {inode for _, inode in _open_sockets()}
    yield
    for descriptor, inode in _open_sockets():
        if inode in before:
            continue
        # Another thread may close it, or have opened something else under its number in the meantime.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
            if connection.type == socket.SOCK_STREAM and connection.family in (
                socket.AF_INET,
                socket.AF_INET6,
            ):
                notice_silence(connection)


def silent(error: BaseException) -> bool:
    """Whether an error of a connection, or one that quotes it, says that the other machine is out of reach."""
    if isinstance(error, OSError):
        return error.errno in _UNREACHABLE
    return any(os.strerror(number) in str(error) for number in _UNREACHABLE)


def vanished(who: str) -> str:
    """What a rank is told of another one whose machine fell silent."""
    return (
        f"{who} is gone: its machine cannot be reached, or has not answered for {SILENCE_SECONDS} s; check"
        " that machine and the network"
    )


def _open_sockets() -> list[tuple[int, int]]:
    """(descriptor, inode) of each socket that this process has open; none where the system has no such list."""
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError, ValueError):
                status = os.fstat(int(name))
                if stat.S_ISSOCK(status.st_mode):
                    found.append((int(name), status.st_ino))
    return found
