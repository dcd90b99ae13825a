"""Laws of complete and infill: where the cursor is, what is asked, and what is written."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_backend import ScriptedBackend

from llama.errors import ConfigError, PromptError
from llama.terminal.answers import Answers
from llama.terminal.backend import Completion, End, Infilling, Sampling, ServerError
from llama.terminal.files import FileChangedError
from llama.terminal.fill import at_cursor, prepare


@given(st.text("ab\té東\n"), st.data())
def test_every_place_of_a_text_is_one_line_and_column(text: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text)))
    line = text.count("\n", 0, at) + 1
    column = at - (text.rfind("\n", 0, at) + 1) + 1
    assert at_cursor(text, line, column) == (text[:at], text[at:])


@pytest.mark.parametrize(
    ("text", "line", "column", "prefix"),
    [
        ("a\nbc\n", 1, None, "a"),
        ("a\nbc\n", 2, None, "a\nbc"),
        ("a\nbc\n", 3, 1, "a\nbc\n"),
        ("", 1, 1, ""),
        ("a\r\nb", 1, None, "a"),
        ("a\r\nb", 1, 2, "a"),
        ("\r\nb", 1, None, ""),
        ("a\r", 1, None, "a\r"),
    ],
)
def test_the_end_of_a_line_is_before_its_line_break(
    text: str, line: int, column: int | None, prefix: str
) -> None:
    assert at_cursor(text, line, column) == (prefix, text[len(prefix) :])


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("a\nb", 3, 1, "--line is 3, but the text has 2 lines"),
        ("a\nbc", 2, 4, "--column is 4, but line 2 has 2 characters: its end is column 3"),
        ("a\r\nb", 1, 3, "--column is 3, but line 1 has 1 characters"),
    ],
)
def test_a_place_that_is_not_there_is_named(text: str, line: int, column: int, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        at_cursor(text, line, column)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "f.py"
    path.write_text("one\ntwo\n")
    return path


def run(task, answers, **limits):
    out = io.StringIO()
    backend = ScriptedBackend(answers)
    code = asyncio.run(task.run(backend, Sampling(**limits), Answers(out)))
    return code, out.getvalue(), backend.asked


def test_what_is_asked_is_the_text_around_the_place(file: Path) -> None:
    plain = {"in_place": False, "full": False}
    assert run(prepare("complete", file, None, None, **plain), ["x"]) == (0, "x", [Completion("one\ntwo\n")])
    assert run(prepare("complete", file, 1, 2, **plain), ["x"]) == (0, "x", [Completion("o")])
    assert run(prepare("infill", file, 1, 2, **plain), ["x"]) == (0, "x", [Infilling("o", "ne\ntwo\n")])
    file.write_text("a <FILL> b <FILL_ME")
    assert run(prepare("infill", file, None, None, **plain), ["x"])[2] == [Infilling("a ", " b <FILL_ME")]


def test_a_mark_in_a_text_with_a_cursor_is_text(file: Path) -> None:
    file.write_text("<FILL>\n<FILL>\n")
    assert run(prepare("infill", file, 2, 1, in_place=False, full=False), ["x"])[2] == [
        Infilling("<FILL>\n", "<FILL>\n")
    ]


def test_full_prints_the_text_around_the_answer(file: Path) -> None:
    for kind in ("complete", "infill"):
        assert run(prepare(kind, file, 1, 2, in_place=False, full=True), [["X", "Y"]])[1] == "oXYne\ntwo\n"


def test_in_place_writes_the_file_and_prints_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(prepare("infill", file, 2, 4, in_place=True, full=False), [["X", "Y"]])[:2] == (0, "")
    assert file.read_text() == "one\ntwoXY\n"
    assert "2 characters written into" in capsys.readouterr().err


def test_an_answer_that_fails_writes_nothing(file: Path) -> None:
    task = prepare("infill", file, 2, 4, in_place=True, full=False)
    with pytest.raises(ServerError):
        run(task, [["X", ServerError("gone")]])
    assert file.read_text() == "one\ntwo\n"


def test_a_file_changed_while_the_model_wrote_is_left_as_it_is(file: Path) -> None:
    task = prepare("infill", file, 2, 4, in_place=True, full=False)
    file.write_text("mine\n")
    with pytest.raises(FileChangedError):
        run(task, ["X"])
    assert file.read_text() == "mine\n"


@pytest.mark.parametrize(
    "options",
    [
        {"file": False, "in_place": True},
        {"in_place": True, "full": True},
        {"column": 2},
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_refused(file: Path, options: dict) -> None:
    given = {"in_place": False, "full": False, "column": None, **options}
    with pytest.raises(ConfigError):
        prepare("infill", None if given.pop("file", True) is False else file, None, **given)


def test_an_answer_that_was_cut_says_why(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = prepare("complete", file, None, None, in_place=False, full=False)
    run(task, [["x", End("length", 3, 0, 7)]], max_gen_len=7)
    assert "cut at 7 tokens" in capsys.readouterr().err
    run(task, [["x", End("length", 3, 0, 6)]], max_gen_len=7)
    assert "the context is full" in capsys.readouterr().err
