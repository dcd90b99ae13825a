"""A progress bar that counts, on a terminal's stderr. Never imports torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

__all__ = ["Progress"]

_INTERVAL = 0.2  # seconds between two drawings


class Progress:
    """Draws how many of `total` are done, and when the rest may be; nothing where stderr is no terminal.

    Args:
        done: those that were done before; the rest's time is not judged by them.
        speaks: False for one that draws nothing, as on the ranks behind the first.
    """

    def __init__(
        self, total: int, done: int, clock: Callable[[], float] = time.monotonic, *, speaks: bool = True
    ) -> None:
        self._total, self._before, self._done, self._clock = total, done, done, clock
        self._started = clock()
        self._drawn = self._started - _INTERVAL
        self._width = 0
        self._stream = sys.stderr
        self._speaks = (
            speaks and self._stream is not None and not self._stream.closed and self._stream.isatty()
        )

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        now = self._clock()
        if now - self._drawn >= _INTERVAL:
            self._drawn = now
            self._draw(now)

    def clear(self) -> None:
        """Remove the bar, so that a line can be printed."""
        self._put(f"\r{' ' * self._width}\r" if self._width else "")
        self._width = 0

    def _draw(self, now: float) -> None:
        share = self._done / max(1, self._total)
        rate = (self._done - self._before) / max(now - self._started, 1e-9)
        left = (self._total - self._done) / rate
        bar = "#" * int(30 * share)
        line = f"[{bar:<30}] {self._done:,} of {self._total:,}, {rate:,.1f}/s, {left:,.0f} s left"
        self._put(f"\r{line:<{self._width}}")
        self._width = len(line)

    def _put(self, text: str) -> None:
        if not self._speaks or not text:
            return
        try:
            print(text, end="", file=self._stream, flush=True)
        except (OSError, ValueError):  # the terminal is gone, but the work goes on
            self._speaks = False
