"""The lock of an engine that several threads share."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable

__all__ = ["FairLock"]


class FairLock:
    """FIFO lock: releasing and re-acquiring cannot starve waiters. Use it as `with lock:`.

    A plain lock that is released and taken again at once, as between two steps, hardly ever changes hands.

    Python runs signal handlers after a call into C, on entry to a function and at the end of a loop's body.
    An interrupt there must neither leave the lock taken nor release another thread's. Hence the odd forms: the
    call that takes the lock also notes it, and the release is the first call on the way out.
    """

    def __init__(self) -> None:
        self._queue = threading.Lock()  # held by the next in line
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

    # `with` looks this up before it enters, so leaving is one call into C, of the lock's own method.
    __exit__ = property(operator.attrgetter("_lock.__exit__"))

    def if_free(self, work: Callable[[], None]) -> None:
        """Do `work` if the lock is free. Never waits, so its holder may call this too."""
        had: list[bool] = []
        try:
            had.extend(map(self._lock.acquire, (False,)))
            if had[0]:
                work()
        finally:
            if True in had:
                self._lock.release()
