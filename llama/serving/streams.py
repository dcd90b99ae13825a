"""A request's unread deltas, and how they reach the caller's event loop. Never imports torch."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from ..engine.request import FinishReason
from ..engine.sequence import Delta, SequenceState, TokenScore

__all__ = ["Item", "Mailbox", "Stream", "TextDelta"]


@dataclass(frozen=True)
class TextDelta:
    """New text and tokens of one sample of a request.

    tokens: the ids whose text is complete with this delta. No id comes before its text, and all of a sample
    joined are its output. scores: of these, always; their alternatives only if the request's `top` asks for
    some. prompt_scores: of the prompt from its second id on, with the first delta of a sample, if the request
    asks for them. The last delta of a sample has a finish_reason. sequence: the engine's record of the sample,
    whose counts and times are final with the last delta; None if `AsyncEngine.close` cancelled the request.
    """

    sample: int
    text: str
    finish_reason: FinishReason | None = None
    sequence: SequenceState | None = None
    tokens: tuple[int, ...] = ()
    scores: tuple[TokenScore, ...] = ()
    prompt_scores: tuple[TokenScore, ...] = ()

    @classmethod
    def of(cls, delta: Delta) -> TextDelta | None:
        """From what the engine yields; None if there is nothing in it for a caller."""
        reason = delta.finish_reason
        if not (delta.text or delta.tokens or reason or delta.prompt_scores):
            return None
        told = (delta.tokens, delta.scores, delta.prompt_scores)
        return cls(delta.key[1], delta.text, reason, delta.sequence, *told)

    @classmethod
    def joined(cls, deltas: Sequence[TextDelta]) -> TextDelta:
        """The deltas of one sample as one, from the first of them to the last."""
        first, last = deltas[0], deltas[-1]
        return cls(
            last.sample,
            "".join(each.text for each in deltas),
            last.finish_reason,
            last.sequence,
            tuple(token for each in deltas for token in each.tokens),
            tuple(score for each in deltas for score in each.scores),
            first.prompt_scores,
        )


Item = TextDelta | BaseException
"""What a stream delivers: a delta, or the error that ends it."""


class Stream:
    """One request's unread items. `given` and `read` have one writer each, so they need no lock."""

    def __init__(self, ticket: int, samples: int, mailbox: Mailbox) -> None:
        self.ticket = ticket
        self.samples = samples
        self.mailbox = mailbox
        self.unfinished = set(range(samples))
        self.items: deque[TextDelta] = deque()
        self.error: BaseException | None = None  # raised once the items are read
        self.given = 0  # written by the engine's thread
        self.read = 0  # written by the caller
        self.paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._trace: TracebackType | None = None

    @property
    def over(self) -> bool:
        """Whether nothing is left to read, and nothing will come."""
        return not (self.unfinished or self.items or self.error)

    @property
    def unread(self) -> int:
        """Deltas that the caller has not read, including those on their way to its loop."""
        return self.given - self.read

    def take_in(self, item: Item) -> None:
        """Append an item, on the caller's loop. Items of a sample that has ended are dropped."""
        if isinstance(item, TextDelta):
            if item.sample not in self.unfinished:
                return
            if item.finish_reason is not None:
                self.unfinished.discard(item.sample)
            self.items.append(item)
        elif self.unfinished:
            self.unfinished.clear()
            self.error, self._trace = item, item.__traceback__
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self, most: int | None = None) -> list[TextDelta]:
        """The unread deltas, at least one and at most `most`. Raises the error that ended the request, if any."""
        while not self.items:
            if self.error is not None:
                # One error may end many streams. Each raise would add its frames to the error's traceback. And what
                # raises an error must not hold it: both would stay until the garbage collector comes.
                (error, self.error), (trace, self._trace) = (self.error, None), (self._trace, None)
                try:
                    raise error.with_traceback(trace)
                finally:
                    del error, trace
            self._waiter = self.mailbox.loop.create_future()
            await self._waiter
        count = len(self.items) if most is None else min(most, len(self.items))
        self.read += count
        return [self.items.popleft() for _ in range(count)]


class Mailbox:
    """New items for the callers on one event loop. At most one wake-up of the loop is pending at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._lock = threading.Lock()
        self._items: list[tuple[Stream, Item]] = []
        self._woken = False

    def post(self, items: list[tuple[Stream, Item]]) -> bool:
        """Send items to their streams, from any thread -> False if the loop is closed."""
        with self._lock:
            if self.loop.is_closed():
                return False
            self._items += items
            if self._woken:
                return True
            self._woken = True
        try:
            self.loop.call_soon_threadsafe(self._empty)
        except RuntimeError:  # closed in between
            return False
        return True

    def _empty(self) -> None:
        with self._lock:
            items, self._items = self._items, []
            self._woken = False
        for stream, item in items:
            stream.take_in(item)
