"""Whose turn it is to change an engine, where several threads may want to."""

from __future__ import annotations

import threading
from types import TracebackType

__all__ = ["Turn"]


class Turn:
    """A lock that goes to whoever waits, and not again to whoever just had it.

    A plain lock, given back and wanted again at once, as between two steps, hardly ever changes hands.
    """

    def __init__(self) -> None:
        self._queue = threading.Lock()  # held by the next one
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._queue:
            self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def take(self) -> bool:
        """Enter, if nobody is in; never waits, so that whoever is in may ask too."""
        return self._lock.acquire(blocking=False)

    def give(self) -> None:
        """Leave, after `take`."""
        self._lock.release()
