"""llama.cpp's two limits for code: a least indentation (n_indent), and a time after which a line is the last.

Both end a text at the beginning of a line, so text goes out as soon as neither can cut it off any more: only
white space at the beginning of a line is held back, and only until its indentation is decided.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["LineLimits"]


class LineLimits:
    """Cuts one sample's text, which comes in parts.

    Args:
        n_indent: least number of spaces and tabs before the first other character of every line but the
            first, which continues the line of the cursor. The text ends before the first line with fewer. A
            line of white space is blank and may have any number. 0 is off.
        seconds: once they have passed since the first part came, the text ends after the next line break.
            0 is off.
        clock: in seconds.
    """

    def __init__(
        self, n_indent: int = 0, seconds: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.n_indent, self.seconds, self.clock = n_indent, seconds, clock
        self.ended = False  # whether a limit has cut the text
        self._held = ""  # white space at the beginning of a line
        self._undecided = False  # whether the next character stands at the beginning of a later line
        self._first: float | None = None

    @property
    def on(self) -> bool:
        """Whether any limit is set."""
        return self.n_indent > 0 or self.seconds > 0

    def feed(self, text: str, *, final: bool = False) -> str:
        """The next part of the text -> what no limit can cut off any more; nothing once `ended` is set.

        Args:
            final: no text follows, so what is held back is a blank line.
        """
        if self._first is None:
            self._first = self.clock()
        if self.ended:
            return ""
        late = self.seconds > 0 and self.clock() - self._first >= self.seconds
        text, self._held = self._held + text, ""
        at = 0
        while at < len(text):
            if self._undecided and not self._decide(text, at, final):
                if not self.ended:
                    self._held = text[at:]
                return text[:at]
            line_break = text.find("\n", at)
            if line_break < 0:
                break
            at = line_break + 1
            self._undecided = self.n_indent > 0
            if late:
                self.ended = True
                return text[:at]
        return text

    def _decide(self, text: str, at: int, final: bool) -> bool:
        """Whether the line that begins at `at` may stay. If not, it is cut off, or its end must be awaited."""
        rest = text[at:]
        code = rest.lstrip()
        blank = "\n" in rest[: len(rest) - len(code)]
        indentation = len(rest) - len(rest.lstrip(" \t"))
        if blank or indentation >= self.n_indent or (final and not code):
            self._undecided = False
            return True
        self.ended = bool(code)
        return False
