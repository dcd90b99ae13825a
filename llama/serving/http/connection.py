"""uvicorn's connection to a client, with limits of time and size for the head of a request; uvicorn has none.

A stranger needs no key to send a head, so it must neither fill the memory nor hold a connection for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["MOST_HEAD", "allow_many", "connection_class"]

# Bytes of a head that is not complete. What is read at once may be larger, and is then taken.
MOST_HEAD = 64 << 10
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"

_MOST_FILES = 1 << 16


def allow_many() -> None:
    """Let this process open as many connections as it may.

    Systems begin with 1,024 files and a much higher limit that a program may take. The low one is for programs
    that call select(), which nothing here does.
    """
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a system that tells a limit and keeps a lower one
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connection_class(seconds: float) -> type[HttpToolsProtocol]:
    """The class of connections that are closed if a head is not complete after so many seconds.

    They count from the connection's beginning, or from the first byte of a later request; between requests
    uvicorn's own limit holds.
    """

    class Connection(_Connection):
        head_seconds = seconds

    return Connection


class _Connection(HttpToolsProtocol):
    head_seconds: float

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._deadline: asyncio.TimerHandle | None = None
        self._head = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._deadline is not None:
            self._head += len(data)
            if self._head > MOST_HEAD and not self.transport.is_closing():
                self.transport.write(_TOO_LARGE)
                self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._deadline is None:
            self._wait_for_head()

    def on_headers_complete(self) -> None:
        self._head_is_there()
        super().on_headers_complete()

    def _wait_for_head(self) -> None:
        self._head = 0
        self._deadline = self.loop.call_later(self.head_seconds, self._close)

    def _head_is_there(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        # No answer: most of these have not asked for anything.
        self.transport.close()
