"""The chat program: reads, asks, prints, and keeps the history. Never imports torch."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from ..errors import NumericsError, OutOfMemoryError, PromptTooLongError, RequestError
from ..printable import reason, tell
from ..prompts import split_fill
from ..serving.http.settings import Capability
from ..serving.signals import on_signals
from .answers import Answers
from .backend import Ask, Backend, Chat, Completion, End, Infilling, Sampling, ServerError
from .commands import Commands
from .conversation import Conversation, Turn
from .readers import InputInterruptedError, Reader, is_command

__all__ = ["ChatProgram"]

T = TypeVar("T")

# Errors of one ask; the program goes on. Any other one ends it.
_PASSING = (RequestError, NumericsError, OutOfMemoryError, ServerError)


class ChatProgram:
    """Asks the backend what the reader reads, until that ends.

    Only `chat` sends the earlier turns along. With the others each text stands alone, as it does when the
    model is called; they are kept for /save.

    Args:
        capability: how a text becomes a prompt, by lmdeploy's names; completion and python are the same here.
        stats: after each answer tell tokens, and how many came from the cache, on stderr.
    """

    def __init__(
        self,
        backend: Backend,
        reader: Reader,
        answers: Answers,
        conversation: Conversation,
        capability: Capability,
        sampling: Sampling,
        *,
        stats: bool = False,
    ) -> None:
        if conversation.system and capability != "chat":
            raise RequestError(f"--sys-instruct needs --cap chat; --cap is {capability}")
        self._backend, self._reader, self._answers = backend, reader, answers
        self._capability, self._sampling, self._stats = capability, sampling, stats
        self._conversation = conversation
        self._commands = Commands(conversation, with_system=capability == "chat")
        self._interrupt: Callable[[], object] = lambda: None

    async def run(self) -> int:
        """Run the program -> its exit code.

        0 at `exit` and at the input's end; without somebody at the terminal 1 if anything was refused or
        failed, and 130 at Ctrl-C while it waits for input.
        """
        failed = False
        if self._reader.interactive:
            tell(self._greeting())
        with on_signals((signal.SIGINT,), lambda: self._interrupt()):
            while True:
                try:
                    text = await self._interruptible(self._reader.read())
                except EOFError:
                    break
                except InputInterruptedError:
                    if not self._reader.interactive:
                        tell("interrupted")
                        return 128 + signal.SIGINT
                    continue
                except RequestError as error:
                    tell(f"error: {reason(error)}")
                    failed = True
                    continue
                if text.strip() == "exit":
                    break
                if is_command(text):
                    failed |= not self._commands.run(text)
                elif text.strip():
                    failed |= not await self._answer(text)
        return 1 if failed and not self._reader.interactive else 0

    async def _answer(self, text: str) -> bool:
        """Ask, print the answer and keep the turn -> whether there was one. Ctrl-C keeps what is there."""
        said: list[str] = []
        end: End | None = None
        try:
            ask = self._ask(text)
            with self._reader.watch(lambda: self._interrupt()):
                end = await self._interruptible(self._print(ask, said))
        except InputInterruptedError:
            self._answers.end()
            tell("stopped")
        except _PASSING as error:
            self._answers.end()
            tell(f"error: {reason(error)}")
            return False
        self._answers.end()
        if said:
            self._keep(text, "".join(said))
        if end is not None:
            self._comment(end)
        return True

    def _ask(self, text: str) -> Ask:
        if self._capability == "infilling":
            return Infilling(*split_fill(text))
        if self._capability != "chat":
            return Completion(text)
        return self._fitting(text)

    def _fitting(self, text: str) -> Chat:
        """The conversation with `text`, without its oldest turns if the answer would have no room.

        An answer should have a quarter of the context, or --max-gen-len tokens if that is less. If it does not
        fit, enough turns are dropped for twice that room: dropping a turn means that all later ones are computed
        again, and a conversation that dropped one at each turn would be slow from then on.
        """
        context = self._backend.context
        if context is not None:
            least = min(self._sampling.max_gen_len or context, context // 4)
            if not self._has_room(text, least):
                self._drop(lambda: self._has_room(text, 2 * least))
        return Chat(self._conversation.dialog(text))

    def _has_room(self, text: str, tokens: int) -> bool:
        room = self._backend.room(Chat(self._conversation.dialog(text)))
        return room is None or room >= tokens

    def _has_at_most(self, turns: int) -> bool:
        return len(self._conversation.turns) <= turns

    def _drop(self, enough: Callable[[], bool]) -> None:
        dropped = self._conversation.forget_oldest(enough)
        if dropped:
            turns = "the oldest turn is" if dropped == 1 else f"the {dropped} oldest turns are"
            tell(f"the context is full ({self._size()}): {turns} forgotten")

    async def _print(self, ask: Ask, said: list[str]) -> End | None:
        """Print the answer and append its pieces to `said`. Drop turns if a server finds the prompt too long."""
        while True:
            try:
                return await self._stream(ask, said)
            except PromptTooLongError:
                if said or not isinstance(ask, Chat) or not self._conversation.turns:
                    raise
                left = len(self._conversation.turns) // 2
                self._drop(partial(self._has_at_most, left))
                ask = Chat(self._conversation.dialog(ask.messages[-1]["content"]))

    async def _stream(self, ask: Ask, said: list[str]) -> End | None:
        end = None
        async with contextlib.aclosing(self._backend.stream(ask, self._sampling)) as pieces:
            async for piece in pieces:
                if isinstance(piece, End):
                    end = piece
                else:
                    said.append(piece)
                    self._answers.write(piece)
        return end

    def _keep(self, question: str, answer: str) -> None:
        if self._capability == "chat":
            # Every later prompt would be refused for it.
            for tag in self._backend.tags:
                if tag in answer:
                    tell(f"the answer holds {tag}, a tag of the chat format; this turn is not kept")
                    return
        self._conversation.turns.append(Turn(question, answer))

    def _comment(self, end: End) -> None:
        if end.finish_reason == "length":
            limit = self._sampling.max_gen_len
            if limit is not None and (end.generated is None or end.generated >= limit):
                tell(f"cut at {limit:,} tokens (--max-gen-len)")
            else:
                tell(f"the context is full ({self._size()}): the answer was cut")
        if self._stats:
            known = [
                f"{count:,} {name}"
                for name, count in (
                    ("tokens of the prompt", end.prompt),
                    ("of them reused", end.reused),
                    ("generated", end.generated),
                )
                if count is not None
            ]
            tell(", ".join(known) or "the server reports no token counts")

    def _greeting(self) -> str:
        size = "" if self._backend.context is None else f", {self._size()}"
        return f"{self._backend.name}{size}, --cap {self._capability}; /help lists the commands"

    def _size(self) -> str:
        return "size unknown" if self._backend.context is None else f"{self._backend.context:,} tokens"

    async def _interruptible(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`, which Ctrl-C ends. Raises InputInterruptedError then, else what `work` raises."""
        task = asyncio.ensure_future(work)
        self._interrupt = task.cancel
        try:
            await asyncio.wait({task})
        finally:  # also where the program itself is cancelled
            self._interrupt = lambda: None
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
                if not task.cancelled():
                    task.exception()  # looked at, or asyncio complains
        if task.cancelled():
            raise InputInterruptedError
        return task.result()
