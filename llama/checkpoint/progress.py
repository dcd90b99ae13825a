"""A progress bar in bytes, on stderr. Written here because the package's five dependencies are fixed."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from ..distributed.environment import is_first_rank
from ..sizing.budget import GIB

__all__ = ["Progress"]

# Work that ends sooner shows no bar.
_QUIET_SECONDS = 3.0


class Progress:
    """A bar on stderr, only on rank 0 and on a terminal, and only if the work takes more than a few seconds.

    Args:
        total: bytes to do.
        verb: what is being done, e.g. "loading".
    """

    def __init__(self, total: int, verb: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._verb, self._clock = total, verb, clock
        self._done = 0
        self._started = self._shown = clock()
        # A host program may have closed stderr, or may have none.
        self._stream = sys.stderr
        self._speaks = (
            is_first_rank() and self._stream is not None and not self._stream.closed and self._stream.isatty()
        )
        self._lock = threading.Lock()

    def __call__(self, nbytes: int) -> None:
        """Report `nbytes` more bytes done. Any thread may call it."""
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
        except (OSError, ValueError):  # the terminal is gone, but the work goes on
            self._speaks = False
