"""Text on its way to a terminal: one line, no character that a terminal obeys, of bounded length.

Names of files and tensors, keys of a config and the messages that quote them are chosen by strangers. An escape
sequence among them could clear the screen, a newline forge a second line, U+202E turn a name around; a byte that
is no UTF-8, or a terminal that knows ASCII only, would end the program with a UnicodeEncodeError. All that the
package prints goes through `say` or `tell`.
"""

from __future__ import annotations

import contextlib
import reprlib
import sys
from typing import TextIO

__all__ = ["printable", "reason", "say", "shown", "tell"]

# Characters of a line. The longest of our own have a few hundred.
_LONGEST = 4000
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxdict, _BRIEF.maxlist, _BRIEF.maxtuple = 3, 8, 8, 8
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 100


def printable(text: str, longest: int = _LONGEST) -> str:
    """`text` as one printable line of at most `longest` (> 80) characters: escaped as in Python, cut in the middle.

    Its end is kept, since a message says there what to do. A line that was made printable stays as it is.
    """
    if len(text) <= longest and text.isprintable():
        return text
    escaped = "".join(c if c.isprintable() else _escaped(c) for c in _cut(text, longest))
    return _cut(escaped, longest)


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    tail = longest // 4
    head = longest - tail - 40  # room for the words between them
    return f"{text[:head]} [{len(text) - head - tail:,} more characters] {text[-tail:]}"


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file's name that is no UTF-8, as Python carries it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def shown(value: object) -> str:
    """A value as a message names it: its repr, cut where it is long."""
    try:
        return _BRIEF.repr(value)
    except ValueError:  # more digits than Python writes out
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__


def reason(error: BaseException) -> str:
    """What an exception says, for a message: never empty, the file of an OSError behind what is wrong with it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return str(error).strip() or type(error).__name__


def say(text: str, stream: TextIO | None) -> None:
    """Print a line at once. What the stream's encoding has not is escaped; without a stream nothing happens.

    Raises:
        OSError: the stream cannot be written; BrokenPipeError if nobody reads it any more.
    """
    if stream is None:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    line = printable(text).encode(encoding, "backslashreplace").decode(encoding)
    print(line, file=stream, flush=True)


def tell(text: str) -> None:
    """Print a line on stderr. Nothing is raised where nobody can read it."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: it was closed
        say(text, sys.stderr)
