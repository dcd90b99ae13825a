"""What the user says: a `Reader`, and the one for an input that is no terminal. Never imports torch."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from .files import decoded

__all__ = ["END_MARK", "PROMPT", "InputInterruptedError", "LineReader", "Reader", "is_command"]

END_MARK = "!!"
PROMPT = "enter !! to end the input >>>"  # lmdeploy's words, which scripts may wait for
_COMMAND = re.compile(r"exit|end|/[a-z]+(\s.*)?")


class InputInterruptedError(Exception):
    """Ctrl-C at the prompt."""


class Reader(Protocol):
    """Reads what the user says.

    interactive: somebody sits there, and is not an input that a program made.
    """

    interactive: bool

    async def read(self) -> str:
        """The next input: a command, or a text without the `!!` that ended it.

        Raises:
            EOFError: there is no more.
            InputInterruptedError: Ctrl-C; what was typed is dropped.
        """
        ...

    def watch(self, stop: Callable[[], object]) -> AbstractContextManager[None]:
        """While an answer is written: call `stop` at Ctrl-C, as far as the reader gets to see it."""
        ...


def is_command(line: str) -> bool:
    """Whether a first line is a command, which needs no `!!`: exit, end, or a slash and a word.

    A path, such as /usr/bin, is not. A text that begins like a command can be given a blank in front.
    """
    return _COMMAND.fullmatch(line.rstrip()) is not None


class LineReader:
    """Lines of a pipe or a file, without an editor; the last text may end with the input itself.

    Args:
        descriptor: of the input; None for one that is closed.
    """

    interactive = False

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._rest = b""
        self._line = 0

    async def read(self) -> str:
        """See `Reader`. Raises PromptError for a text that is not UTF-8; the input goes on behind it."""
        lines: list[bytes] = []
        begin = self._line + 1
        while (line := await self._next_line()) is not None:
            if not lines and is_command(first := line.decode("utf-8", "replace")):
                return first.rstrip()
            if line.rstrip() == END_MARK.encode():
                break
            lines.append(line.removesuffix(b"\r"))
        else:
            if not any(line.strip() for line in lines):
                raise EOFError
        return decoded(b"\n".join(lines), f"the text that begins in line {begin:,} of the input")

    def watch(self, stop: Callable[[], object]) -> AbstractContextManager[None]:
        """See `Reader`. Ctrl-C comes as a signal here, which the program hears itself."""
        return contextlib.nullcontext()

    async def _next_line(self) -> bytes | None:
        """The next line without its line break; None at the end."""
        while b"\n" not in self._rest:
            chunk = await self._chunk()
            if not chunk:
                line, self._rest = self._rest, b""
                self._line += bool(line)
                return line or None
            self._rest += chunk
        self._line += 1
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    async def _chunk(self) -> bytes:
        if self._descriptor is None:
            return b""
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        try:
            loop.add_reader(self._descriptor, _settle, ready)
        except PermissionError:  # a file, which epoll does not take: it is always ready
            return os.read(self._descriptor, 65536)
        try:
            await ready
        finally:
            loop.remove_reader(self._descriptor)
        return os.read(self._descriptor, 65536)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
