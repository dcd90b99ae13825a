"""A progress bar in bytes, on stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from ..distributed.environment import is_first_rank
from ..sizing.budget import GIB

__all__ = ["Progress"]

# What is over sooner than this shows no bar.
_QUIET_SECONDS = 3.0


class Progress:
    """A bar on stderr, on rank 0 and on a terminal only, once the work has taken a few seconds.

    Args:
        total: bytes of the whole work.
        verb: what is being done, e.g. "loading".
    """

    def __init__(self, total: int, verb: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._verb, self._clock = total, verb, clock
        self._done = 0
        self._started = self._shown = clock()
        # A host program may have closed stderr, or have none.
        self._stream = sys.stderr
        self._speaks = (
            is_first_rank() and self._stream is not None and not self._stream.closed and self._stream.isatty()
        )
        self._lock = threading.Lock()

    def __call__(self, nbytes: int) -> None:
        """So many more bytes are done. Any thread may say so."""
        with self._lock:
            self._done += nbytes
            now = self._clock()
            if not self._speaks or now - self._started < _QUIET_SECONDS:
                return
            if now - self._shown < 0.2 and self._done < self._total:
                return
            self._shown = now
            self._show(now)

    def _show(self, now: float) -> None:
        share = min(1.0, self._done / max(1, self._total))
        left = (now - self._started) * (1 - share) / max(share, 1e-9)
        bar = "#" * int(30 * share)
        line = f"\r{self._verb} [{bar:<30}] {self._done / GIB:.1f} of {self._total / GIB:.1f} GiB, {left:.0f} s left "
        end = "\r" + " " * len(line) + "\r" if self._done >= self._total else ""
        try:
            print(line + end, end="", file=self._stream, flush=True)
        except (OSError, ValueError):  # the terminal is gone; the work is not
            self._speaks = False
