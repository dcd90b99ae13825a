"""Laws of printed text: one printable line of bounded length, for a terminal of any encoding, open or closed."""

from __future__ import annotations

import errno
import io
import os
import sys

import pytest
from hostile_text import ESCAPED, HOSTILE
from hypothesis import given
from hypothesis import strategies as st

from llama.checkpoint import progress
from llama.distributed import environment
from llama.printable import printable, reason, say, tell


@given(text=st.text(max_size=300), longest=st.integers(81, 200))
def test_any_text_becomes_one_printable_line_of_bounded_length(text: str, longest: int) -> None:
    found = printable(text, longest)
    assert found.isprintable()
    assert len(found) <= longest
    assert printable(found, longest) == found
    if len(found) < longest and text.isascii():
        # Nothing is lost: the escapes are those of Python's strings.
        assert found.replace("\\", "") == "".join(
            c if c.isprintable() else ascii(c)[1:-1] for c in text
        ).replace("\\", "")
    if text.isprintable() and len(text) <= longest:
        assert found == text


def test_a_long_line_keeps_its_beginning_and_its_end() -> None:
    found = printable("begin" + "\x1b" * 10_000_000 + "download it again")
    assert found.startswith("begin\\x1b")
    assert found.endswith("download it again")
    assert len(found) <= 4000
    assert "more characters" in found


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(), "OSError"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), os.strerror(errno.EIO)),
        (OSError(errno.EIO, "bad disk", "a"), "bad disk: a"),
        (ValueError(""), "ValueError"),
        (ValueError("\n"), "ValueError"),
        (MemoryError(), "MemoryError"),
        (ValueError("why"), "why"),
    ],
    ids=repr,
)
def test_a_reason_is_never_empty(error: Exception, text: str) -> None:
    assert reason(error) == text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252", "utf-16", None])
def test_a_line_goes_to_a_terminal_of_any_encoding(encoding: str | None) -> None:
    raw = io.BytesIO()
    stream = io.StringIO() if encoding is None else io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    say(f"é漢{HOSTILE}", stream)
    text = stream.getvalue() if isinstance(stream, io.StringIO) else raw.getvalue().decode(str(encoding))
    both = ("é" if encoding != "ascii" else "\\xe9") + (
        "漢" if encoding in ("utf-8", "utf-16", None) else "\\u6f22"
    )
    assert text == both + ESCAPED.replace(r"\xe9z", r"\x00\ud800\xe9z") + "\n"
    say("nothing to print it on", None)


class Broken(io.StringIO):
    """A stream whose other end is gone, or whose disk is full."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise self.error


def test_a_message_that_nobody_can_read_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed, Broken(BrokenPipeError()), Broken(OSError(errno.EIO, "gone"))):
        monkeypatch.setattr(sys, "stderr", stream)
        tell("lost")
        environment.log("lost")


def test_work_goes_on_when_the_terminal_of_its_bar_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(0, 1000, 10))
    for stream in (Broken(OSError(errno.EIO, "gone")), None):
        monkeypatch.setattr(sys, "stderr", stream)
        bar = progress.Progress(100, "converting", lambda: next(times))
        for _ in range(10):
            bar(10)


def test_what_is_logged_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    environment.log(f"Loaded {HOSTILE}")
    assert capsys.readouterr().err == printable(f"Loaded {HOSTILE}") + "\n"
