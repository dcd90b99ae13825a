"""Where callers leave events for the thread that steps the engine. Never imports torch."""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections import deque
from collections.abc import Iterable

from .protocol import Add, Event

__all__ = ["Inbox"]


class Inbox:
    """A queue of events: many writers, and one reader that can wait for events and sockets at once."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        # Requests that the reader has taken, in all.
        self.requests_taken = 0
        self._asleep = False
        # The reader sleeps in a selector, so an event wakes it through a socket.
        self._wake_writer, self._wake_reader = socket.socketpair()
        self._wake_writer.setblocking(False)
        self._wake_reader.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_reader, selectors.EVENT_READ)

    def put(self, event: Event) -> None:
        """Append an event, and wake the reader if it sleeps. From any thread, at any time."""
        self._events.append(event)
        if self._asleep:
            # Buffer full: the reader will wake anyway. Closed: there is no reader any more.
            with contextlib.suppress(OSError):
                self._wake_writer.send(b"!")

    def watch(self, connections: Iterable[socket.socket]) -> None:
        """Let incoming data on these sockets end a `take` too."""
        for connection in connections:
            self._selector.register(connection, selectors.EVENT_READ)

    def take(self, wait: bool) -> list[Event]:
        """Remove and return all events so far, in order.

        Args:
            wait: sleep until there is an event or a watched socket has data; the result is empty for the
                latter.
        """
        if wait:
            self._asleep = True
            # Checked after the flag is set: an event put before that is seen here, one put after it wakes the
            # select.
            if not self._events:
                self._selector.select()
            self._asleep = False
            with contextlib.suppress(BlockingIOError):
                while self._wake_reader.recv(4096):
                    pass
        events = [self._events.popleft() for _ in range(len(self._events))]
        self.requests_taken += sum([isinstance(event, Add) for event in events])
        return events

    def close(self) -> None:
        """Close the sockets; `put` stays harmless."""
        self._selector.close()
        self._wake_writer.close()
        self._wake_reader.close()
