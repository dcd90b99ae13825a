"""Whose turn it is to change an engine, where several threads may want to."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable

__all__ = ["FairLock"]


class FairLock:
    """A lock that goes to whoever waits, and not again to whoever just had it: `with turn:`.

    A plain lock, given back and wanted again at once, as between two steps, hardly ever changes hands.

    Python runs signal handlers behind a call into C, on the way into a function and at the end of a loop's body. An
    interrupt there must neither leave the lock closed nor open somebody else's. Hence the odd forms: what takes the
    lock notes it in the same call, and what gives it back is the first call there.
    """

    def __init__(self) -> None:
        self._queue = threading.Lock()  # held by the next one
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        had: list[bool] = []
        try:
            with self._queue:
                had.extend(map(self._lock.acquire, (True,)))
        except BaseException:
            if had:
                self._lock.release()
            raise

    # `with` looks this up before it enters, so that leaving is one call into C, of the lock's own method.
    __exit__ = property(operator.attrgetter("_lock.__exit__"))

    def if_free(self, work: Callable[[], None]) -> None:
        """Do `work` if nobody is in; never waits, so that whoever is in may ask too."""
        had: list[bool] = []
        try:
            had.extend(map(self._lock.acquire, (False,)))
            if had[0]:
                work()
        finally:
            if True in had:
                self._lock.release()
