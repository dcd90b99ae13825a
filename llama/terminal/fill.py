"""`complete` and `infill`: one text, a place in it, and what the model writes there. Never imports torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import ConfigError, PromptError
from ..printable import tell
from ..prompts import split_fill
from .answers import Answers
from .backend import Ask, Backend, Completion, End, Infilling, Sampling
from .files import TextFile, read_stdin

__all__ = ["Task", "at_cursor", "prepare"]


@dataclass(frozen=True)
class Task:
    """What is around the place, and where the result goes.

    full: print the text around the answer too.
    target: the file to write the result to; None for stdout.
    """

    kind: Literal["complete", "infill"]
    prefix: str
    suffix: str
    full: bool = False
    target: TextFile | None = None

    async def run(self, backend: Backend, sampling: Sampling, answers: Answers) -> int:
        """Ask, and write as the text comes -> the exit code, 0. Raises as `Backend.stream` and the writers."""
        ask: Ask = Infilling(self.prefix, self.suffix) if self.kind == "infill" else Completion(self.prefix)
        write: Callable[[str], object] = answers.write if self.target is None else lambda _: None
        if self.full:
            write(self.prefix)
        said: list[str] = []
        end: End | None = None
        try:
            async with contextlib.aclosing(backend.stream(ask, sampling)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, str):
                        said.append(piece)
                        write(piece)
                    else:
                        end = piece
            if self.full:
                write(self.suffix)
        finally:
            if self.target is None:
                answers.end(line=False)
        _comment(end, sampling)
        if self.target is not None:
            text = "".join(said)
            self.target.replace(self.prefix + text + self.suffix)
            tell(f"{len(text):,} characters written into {self.target.path}")
        return 0


def _comment(end: End | None, sampling: Sampling) -> None:
    if end is not None and end.finish_reason == "length":
        limit = sampling.max_gen_len
        by_limit = limit is not None and (end.generated is None or end.generated >= limit)
        tell(f"cut at {limit:,} tokens (--max-gen-len)" if by_limit else "cut: the context is full")


def prepare(
    kind: Literal["complete", "infill"],
    file: Path | None,
    line: int | None,
    column: int | None,
    *,
    in_place: bool,
    full: bool,
) -> Task:
    """Read the text, from `file` or standard input, and find the place.

    Args:
        line, column: as in `at_cursor`. Without a line the place is the end of the text for `complete`, and its
            <FILL> for `infill`.
        in_place: write the result into the file.
        full: print the text around the answer too.

    Raises:
        ConfigError: options that do not go together.
        PromptError: the text is not UTF-8, or has no such place.
        OSError: the file cannot be read.
    """
    if in_place and file is None:
        raise ConfigError("--in-place needs FILE")
    if in_place and full:
        raise ConfigError("--in-place writes to the file and --full to standard output; give one of them")
    if column is not None and line is None:
        raise ConfigError("--column needs --line")
    source = None if file is None else TextFile.read(file)
    text = read_stdin() if source is None else source.text
    if line is not None:
        prefix, suffix = at_cursor(text, line, column)
    elif kind == "infill":
        prefix, suffix = split_fill(text)
    else:
        prefix, suffix = text, ""
    return Task(kind, prefix, suffix, full, source if in_place else None)


def at_cursor(text: str, line: int, column: int | None) -> tuple[str, str]:
    """What is before and behind a cursor.

    Args:
        line: from 1.
        column: from 1, in characters (Unicode code points; a tab is one): the cursor stands before that
            character. One more than the line has is its end, as is None.

    Raises:
        PromptError: the text has no such place; the message gives the numbers.
    """
    starts = [0]
    while (found := text.find("\n", starts[-1])) >= 0:
        starts.append(found + 1)
    if line > len(starts):
        raise PromptError(f"--line is {line:,}, but the text has {len(starts):,} lines")
    begin = starts[line - 1]
    end = starts[line] - 1 if line < len(starts) else len(text)
    if text.startswith("\r\n", end - 1) and end > begin:
        end -= 1
    if column is None:
        column = end - begin + 1
    if column > end - begin + 1:
        raise PromptError(
            f"--column is {column:,}, but line {line:,} has {end - begin:,} characters: its end is column"
            f" {end - begin + 1:,}"
        )
    at = begin + column - 1
    return text[:at], text[at:]
