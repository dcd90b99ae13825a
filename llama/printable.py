"""Text for a terminal: one line of bounded length, without control characters.

Strangers choose the names of files and tensors, the keys of a config, and so parts of the messages that quote
them. An escape sequence could clear the screen, a newline forge a second line, U+202E reverse a name; a byte
that is not UTF-8, or a terminal that knows ASCII only, would end the program with a UnicodeEncodeError.
Everything the package prints goes through `say` or `tell`; values in messages go through `shown`, exceptions
through `reason`.
"""

from __future__ import annotations

import contextlib
import reprlib
import sys
from typing import TextIO

__all__ = ["printable", "reason", "say", "shown", "tell"]

_MAX_LINE = 4000  # characters; the package's own lines have a few hundred
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxdict, _BRIEF.maxlist, _BRIEF.maxtuple = 3, 8, 8, 8
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 100


def printable(text: str, longest: int = _MAX_LINE) -> str:
    """`text` as one printable line: escaped as in Python, cut in the middle to `longest` (> 80) characters.

    The end is kept, since that is where a message says what to do. Applying it twice changes nothing.
    """
    if len(text) <= longest and text.isprintable():
        return text
    escaped = "".join(c if c.isprintable() else _escaped(c) for c in _cut(text, longest))
    return _cut(escaped, longest)


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    tail = longest // 4
    head = longest - tail - 40  # room for the words in the middle
    return f"{text[:head]} [{len(text) - head - tail:,} more characters] {text[-tail:]}"


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is not UTF-8, as Python decodes it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def shown(value: object) -> str:
    """A value for a message: its repr, shortened."""
    try:
        return _BRIEF.repr(value)
    except ValueError:  # more digits than Python prints
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__


def reason(error: BaseException) -> str:
    """An exception's text for a message: never empty; of an OSError the reason, then the file."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return str(error).strip() or type(error).__name__


def say(text: str, stream: TextIO | None) -> None:
    """Print a line and flush; characters that the encoding lacks are escaped. Without a stream, do nothing.

    Raises:
        OSError: the stream cannot be written; BrokenPipeError if its reader is gone.
    """
    if stream is None:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    line = printable(text).encode(encoding, "backslashreplace").decode(encoding)
    print(line, file=stream, flush=True)


def tell(text: str) -> None:
    """Print a line on stderr; a stderr that cannot be written is ignored."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: it was closed
        say(text, sys.stderr)
