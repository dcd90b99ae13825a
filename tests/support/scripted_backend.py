"""A backend and a reader whose part is written down, and the chat program between them."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama.errors import PromptTooLongError
from llama.terminal.answers import Answers
from llama.terminal.backend import Ask, Chat, End, Sampling
from llama.terminal.chat import ChatProgram
from llama.terminal.conversation import Conversation
from llama.terminal.readers import InputInterruptedError

# An answer that only Ctrl-C ends.
FOREVER = object()


@dataclass
class ScriptedBackend:
    """Answers `answers` in order: texts, errors to raise, or lists of pieces of both and FOREVER.

    asked: what it was asked. A chat has one token for each word; `tells_room` is whether it can count them.
    """

    answers: Sequence[Any]
    context: int | None = None
    tells_room: bool = True
    name: str = "scripted"
    tags: tuple[str, ...] = ("[INST]", "[/INST]")
    asked: list[Ask] = field(default_factory=list)
    closed: int = 0

    def room(self, ask: Ask) -> int | None:
        return self._left(ask) if self.tells_room else None

    def _left(self, ask: Ask) -> int | None:
        if self.context is None or not isinstance(ask, Chat):
            return None
        return self.context - sum(len(message["content"].split()) for message in ask.messages)

    async def stream(self, ask: Ask, sampling: Sampling) -> AsyncGenerator[str | End, None]:
        left = self._left(ask)
        if left is not None and left < 1:
            raise PromptTooLongError(f"no room: {left}")
        answer = self.answers[len(self.asked)]
        self.asked.append(ask)
        try:
            for piece in answer if isinstance(answer, list) else [answer]:
                if isinstance(piece, BaseException):
                    raise piece
                if piece is FOREVER:
                    await asyncio.Event().wait()
                elif isinstance(piece, End):
                    yield piece
                    return
                else:
                    yield piece
            yield End("stop")
        finally:
            self.closed += 1

    @property
    def said(self) -> list[list[str]]:
        """The contents of each chat that was asked."""
        return [
            [message["content"] for message in ask.messages] for ask in self.asked if isinstance(ask, Chat)
        ]


class ScriptedReader:
    """Reads `inputs`: texts, and errors to raise; then the input ends. `stop` is pressed while an answer waits."""

    def __init__(self, inputs: Sequence[str | BaseException], *, interactive: bool, stop: bool) -> None:
        self.interactive = interactive
        self._inputs = iter(inputs)
        self._stop = stop

    async def read(self) -> str:
        found = next(self._inputs, EOFError())
        if isinstance(found, BaseException):
            raise found
        return found

    @contextlib.contextmanager
    def watch(self, stop: Callable[[], object]) -> Iterator[None]:
        handle = asyncio.get_running_loop().call_later(0.05, stop) if self._stop else None
        try:
            yield
        finally:
            if handle is not None:
                handle.cancel()


@dataclass
class Talk:
    """What came of a run."""

    code: int
    out: str
    conversation: Conversation


def talk(
    backend: ScriptedBackend,
    inputs: Sequence[str | BaseException],
    *,
    capability: Any = "chat",
    system: str = "",
    interactive: bool = False,
    stop: bool = False,
    stats: bool = False,
    sampling: Sampling | None = None,
) -> Talk:
    """Run the chat program to its end."""
    out = io.StringIO()
    conversation = Conversation(system)
    reader = ScriptedReader(inputs, interactive=interactive, stop=stop)
    program = ChatProgram(
        backend, reader, Answers(out), conversation, capability, sampling or Sampling(), stats=stats
    )
    code = asyncio.run(asyncio.wait_for(program.run(), 60))
    return Talk(code, out.getvalue(), conversation)


CTRL_C = InputInterruptedError
