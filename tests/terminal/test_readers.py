"""Laws of reading what the user says: lines of a pipe, and keys of a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from llama.errors import PromptError
from llama.terminal.line_editor import LineEditor
from llama.terminal.readers import InputInterruptedError, LineReader, is_command


@pytest.mark.parametrize(
    "line", ["exit", "end", "/help", "/system be brief", "/save /tmp/x", "end  ", "/typo"]
)
def test_commands(line: str) -> None:
    assert is_command(line)


@pytest.mark.parametrize(
    "line", ["", "exit now", "ending", "/usr/bin/env", "// a comment", "/", "/* x */", " exit"]
)
def test_texts_that_are_no_commands(line: str) -> None:
    assert not is_command(line)


async def everything(reader: LineReader) -> list[str]:
    found = []
    with contextlib.suppress(EOFError):
        while True:
            found.append(await reader.read())
    return found


def read_pipe(content: bytes, pieces: list[int] = []) -> list[str]:  # noqa: B006
    """What a reader finds in a pipe that is fed in pieces."""

    async def main() -> list[str]:
        source, sink = os.pipe()
        cuts = sorted({0, len(content), *(cut % (len(content) + 1) for cut in pieces)})

        async def feed() -> None:
            for begin, end in pairwise(cuts):
                os.write(sink, content[begin:end])
                await asyncio.sleep(0)
            os.close(sink)

        try:
            found, _ = await asyncio.gather(everything(LineReader(source)), feed())
        finally:
            os.close(source)
        return found

    return asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"", []),
        (b"!!\n", [""]),
        (b"a\n!!\n", ["a"]),
        (b"a\n  b\n\n!!\nc\n!! \n", ["a\n  b\n", "c"]),
        (b"/help\na\n/help\n!!\nexit\n", ["/help", "a\n/help", "exit"]),
        (b"a\r\nb\r\n!!\r\n", ["a\nb"]),
        (b"a\n!!x\n!!\n", ["a\n!!x"]),
        (b"the end has none", ["the end has none"]),
        (b"a\n!!\n\n\n", ["a"]),
        ("東\u2028x\x0c\n!!\n".encode(), ["東\u2028x\x0c"]),
    ],
)
def test_a_pipe_has_texts_that_end_with_two_marks(content: bytes, texts: list[str], tmp_path: Path) -> None:
    assert read_pipe(content) == texts
    (tmp_path / "input").write_bytes(content)
    with (tmp_path / "input").open("rb") as file:  # a file, which no selector takes
        assert asyncio.run(everything(LineReader(file.fileno()))) == texts


@given(st.lists(st.integers(0, 50)))
def test_how_a_pipe_is_fed_makes_no_difference(pieces: list[int]) -> None:
    content = "def é():\n  東\n!!\n/system x\nexit\n".encode()
    assert read_pipe(content, pieces) == ["def é():\n  東", "/system x", "exit"]


def test_a_closed_input_has_ended() -> None:
    with pytest.raises(EOFError):
        asyncio.run(LineReader(None).read())


def test_bytes_that_are_no_text_are_named_and_the_input_goes_on(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"a\n!!\nok\n\xff\nrest\n!!\nnext\n!!\n")

    async def main(reader: LineReader) -> str:
        assert await reader.read() == "a"
        with pytest.raises(PromptError, match=r"begins in line 3 of the input .* in line 2"):
            await reader.read()
        return await reader.read()

    with (tmp_path / "input").open("rb") as file:
        assert asyncio.run(main(LineReader(file.fileno()))) == "next"


# ---- the line editor ---------------------------------------------------------------------------------


@contextlib.contextmanager
def editor(keys: str) -> Iterator[LineEditor]:
    with create_pipe_input() as source:
        source.send_text(keys)
        yield LineEditor(source, DummyOutput())


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("def f():\r  return\r!!\r", "def f():\n  return"),
        ("/help\r", "/help"),
        ("exit\r", "exit"),
        ("a\r/help\r!!\r", "a\n/help"),
        ("a\x1b\r", "a"),  # Alt-Enter
        ("ac\x1b[Db\r!!\x1b[C\r!!\r", "ab\n!!c"),  # arrow left; Enter within the text is a line break
        ("\x1b[200~def f():\n    x\n!!\n\x1b[201~\r", "def f():\n    x"),  # pasted
        ("    a\rb\r!!\r", "    a\nb"),  # no indentation is added
    ],
)
def test_keys_become_a_text(keys: str, text: str) -> None:
    with editor(keys) as reader:
        assert asyncio.run(asyncio.wait_for(reader.read(), 60)) == text


def test_ctrl_c_drops_what_was_typed_and_ctrl_d_ends() -> None:
    async def main(reader: LineReader) -> None:
        with pytest.raises(InputInterruptedError):
            await reader.read()
        assert await reader.read() == "b"
        with pytest.raises(EOFError):
            await reader.read()

    with editor("a\x03b\r!!\r\x04") as reader:
        asyncio.run(asyncio.wait_for(main(reader), 60))


def test_while_an_answer_runs_ctrl_c_stops_and_other_keys_wait() -> None:
    async def main() -> None:
        with create_pipe_input() as source:
            reader = LineEditor(source, DummyOutput())
            stopped = asyncio.Event()
            with reader.watch(stopped.set):
                source.send_text("/he")
                await asyncio.sleep(0.05)
                assert not stopped.is_set()
                source.send_text("lp\x03\r")
                await stopped.wait()
            assert await reader.read() == "/help"

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_terminal_that_goes_away_stops_the_answer() -> None:
    async def main() -> None:
        with create_pipe_input() as source:
            reader = LineEditor(source, DummyOutput())
            stopped = asyncio.Event()
            with reader.watch(stopped.set):
                source.close()
                await stopped.wait()

    asyncio.run(asyncio.wait_for(main(), 60))
