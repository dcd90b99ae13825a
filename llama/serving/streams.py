"""A request's unread deltas, and how they reach the caller's event loop. Never imports torch."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from dataclasses import dataclass
from types import TracebackType

from ..engine.request import FinishReason
from ..engine.sequence import SequenceState

__all__ = ["Item", "Mailbox", "Stream", "TextDelta"]


@dataclass(frozen=True)
class TextDelta:
    """New text of one sample of a request.

    The last delta of a sample has a finish_reason and `sequence`, the engine's record of the sample with its
    tokens and scores. `sequence` is None if `AsyncEngine.close` cancelled the request.
    """

    sample: int
    text: str
    finish_reason: FinishReason | None = None
    sequence: SequenceState | None = None


Item = TextDelta | BaseException
"""What a stream delivers: a delta, or the error that ends it."""


class Stream:
    """One request's unread items. `given` and `read` have one writer each, so they need no lock."""

    def __init__(self, ticket: int, samples: int, mailbox: Mailbox) -> None:
        self.ticket = ticket
        self.samples = samples
        self.mailbox = mailbox
        self.unfinished = set(range(samples))
        self.items: deque[Item] = deque()
        self.given = 0  # written by the engine's thread
        self.read = 0  # written by the caller
        self.paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._trace: TracebackType | None = None

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
        elif self.unfinished:
            self.unfinished.clear()
            self._trace = item.__traceback__
        else:
            return
        self.items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> TextDelta:
        """The next delta. Raises the error that ended the request, if one did."""
        while not self.items:
            self._waiter = self.mailbox.loop.create_future()
            await self._waiter
        item = self.items.popleft()
        self.read += 1
        if isinstance(item, BaseException):
            # One error may end many streams. Each raise would add its frames to the error's traceback.
            raise item.with_traceback(self._trace)
        return item


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
