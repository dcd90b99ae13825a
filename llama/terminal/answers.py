"""The model's text on stdout: exact in a pipe or a file, and without control of the terminal on one.

A model may write anything, an escape sequence that clears the screen included. On a terminal control
characters and those that reorder text are shown escaped, as in Python; line breaks and tabs stay. Elsewhere
the bytes are the text's own in UTF-8, so that a program that reads them gets what was generated.
"""

from __future__ import annotations

import sys
import unicodedata
from typing import TextIO

__all__ = ["Answers", "harmless"]

# Not printable by Python's rule, but part of ordinary text: joiners of emoji and of Indic and Persian letters.
_JOINERS = "\u200c\u200d"


def harmless(text: str) -> str:
    """`text` with what could control a terminal escaped; line breaks and tabs stay."""
    if text.isprintable():
        return text
    return "".join(character if _is_text(character) else _escaped(character) for character in text)


def _is_text(character: str) -> bool:
    return (
        character.isprintable()
        or character in "\n\t"
        or character in _JOINERS
        or unicodedata.category(character) == "Zs"
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class Answers:
    """Writes answers piece by piece.

    Args:
        stream: by default stdout.

    Raises:
        OSError: from every method; BrokenPipeError if the reader is gone.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self.on_terminal = self._stream is not None and not self._stream.closed and self._stream.isatty()
        self._at_line_start = True
        self._held = ""  # a "\r" that may be half of a line break

    def write(self, text: str) -> None:
        """Write a piece and flush."""
        if not text or self._stream is None:
            return
        if self.on_terminal:
            text = self._held + text
            self._held = "\r" if text.endswith("\r") else ""
            text = harmless(text[: len(text) - len(self._held)].replace("\r\n", "\n"))
        self._put(text)

    def end(self, *, line: bool = True) -> None:
        """End an answer.

        Args:
            line: end its last line too, if it has not ended; on a terminal this always happens.
        """
        if self._held:
            self._put(harmless(self._held))
            self._held = ""
        if (line or self.on_terminal) and not self._at_line_start:
            self._put("\n")
        self._at_line_start = True

    def _put(self, text: str) -> None:
        if not text or self._stream is None:
            return
        self._at_line_start = text.endswith("\n")
        buffer = getattr(self._stream, "buffer", None)
        if self.on_terminal or buffer is None:
            encoding = getattr(self._stream, "encoding", None) or "utf-8"
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()
        else:  # UTF-8 and no translation of line breaks, whatever the locale
            self._stream.flush()
            buffer.write(text.encode("utf-8", "backslashreplace"))
            buffer.flush()
