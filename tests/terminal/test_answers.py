"""Laws of the answers on stdout: exact for a program, harmless on a terminal."""

from __future__ import annotations

import io

import pytest
from hostile_text import HOSTILE
from hypothesis import given
from hypothesis import strategies as st

from llama.terminal.answers import Answers, harmless

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


class Terminal(io.TextIOWrapper):
    """A terminal that remembers."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="")

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


class Pipe(Terminal):
    def isatty(self) -> bool:
        return False


@given(st.lists(TEXTS), st.sampled_from(["utf-8", "ascii", "latin-1"]))
def test_a_pipe_gets_the_texts_own_bytes(pieces: list[str], encoding: str) -> None:
    pipe = Pipe(encoding)
    answers = Answers(pipe)
    for piece in pieces:
        answers.write(piece)
    answers.end(line=False)
    assert pipe.buffer.getvalue() == "".join(pieces).encode()  # type: ignore[attr-defined]


@given(st.lists(TEXTS))
def test_a_terminal_gets_the_same_text_however_it_is_cut_and_no_control_characters(pieces: list[str]) -> None:
    cut, whole = Terminal(), Terminal()
    answers = Answers(cut)
    for piece in pieces:
        answers.write(piece)
    answers.end()
    once = Answers(whole)
    once.write("".join(pieces))
    once.end()
    assert cut.text() == whole.text()
    assert all(c.isprintable() or c in "\n\t\u200c\u200d" or c.isspace() for c in cut.text())
    assert not {"\x1b", "\r", "\x07", "\x9b", "\u202e", "\u2028", "\x85", "\x0b"} & set(cut.text())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("a\r\nb", "a\nb"),
        ("50%\r60%", "50%\\r60%"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b2J", "\\x9b2J"),
        ("a\u202eb", "a\\u202eb"),
        ("Straße 東京 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u00a0|", None),
        (HOSTILE, None),
    ],
)
def test_what_a_terminal_shows(text: str, shown: str | None) -> None:
    terminal = Terminal()
    answers = Answers(terminal)
    for character in text:
        answers.write(character)
    answers.end()
    found = terminal.text().removesuffix("\n")
    assert "\x1b" not in found
    assert found == (harmless(text) if shown is None else shown)
    if text.startswith("Straße"):
        assert found == text


def test_an_answer_ends_its_line_once() -> None:
    for text in ("a", "a\n", "a\r\n", ""):
        terminal = Terminal()
        answers = Answers(terminal)
        answers.write(text)
        answers.end(line=False)
        answers.end()
        assert terminal.text() == ("a\n" if text else "")


def test_a_terminal_of_ascii_shows_the_rest_escaped() -> None:
    terminal = Terminal("ascii")
    answers = Answers(terminal)
    answers.write("é東")
    answers.end()
    assert terminal.text() == "\\xe9\\u6771\n"


def test_without_a_stdout_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    answers = Answers()
    answers.write("x")
    answers.end()
