"""Many asynchronous callers, one engine.

The engine steps in one thread of its own, never on an event loop. Events go to it through an inbox, what a
step yields comes back in one call to each loop that has callers. A caller that leaves cancels its request,
one that stops reading pauses it.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import itertools
import threading
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from types import TracebackType

from ..engine import Delta, Engine, FinishReason, Request, SequenceState
from ..errors import EngineClosedError, RequestError
from .channel import check_one_model
from .protocol import Add, Cancel, Pause, Resume, Stop
from .ranks import Inbox, Result, lead

__all__ = ["AsyncEngine", "TextDelta"]

_EXIT_SECONDS = 5.0


@dataclass(frozen=True)
class TextDelta:
    """New text of one sample of a request.

    The last one of a sample has a finish_reason, and the engine's record of the sample with tokens and
    scores; that is None where the request was cancelled by `AsyncEngine.close`.
    """

    sample: int
    text: str
    finish_reason: FinishReason | None = None
    sequence: SequenceState | None = None


_Item = TextDelta | BaseException


class _Stream:
    """One request: what is unread, and who waits for it. Counters have one writer each, so need no lock."""

    def __init__(self, ticket: int, samples: int, mailbox: _Mailbox) -> None:
        self.ticket = ticket
        self.samples = samples
        self.mailbox = mailbox
        self.unfinished = set(range(samples))
        self.items: deque[_Item] = deque()
        self.given = 0  # by the engine's thread
        self.read = 0  # by the caller
        self.paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._trace: TracebackType | None = None

    @property
    def unread(self) -> int:
        """Deltas on their way or waiting to be read."""
        return self.given - self.read

    def take_in(self, item: _Item) -> None:
        """Hand an item to the caller, on its loop; each sample ends once, whatever comes later."""
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
        """The next delta. Raises what ended the request, if an error did."""
        while not self.items:
            self._waiter = self.mailbox.loop.create_future()
            await self._waiter
        item = self.items.popleft()
        self.read += 1
        if isinstance(item, BaseException):
            # One error may end many streams: without this its trace would grow by the way of each of them.
            raise item.with_traceback(self._trace)
        return item


class _Mailbox:
    """What is new for the callers on one event loop: at most one wake-up is under way at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._lock = threading.Lock()
        self._items: list[tuple[_Stream, _Item]] = []
        self._woken = False

    def post(self, items: list[tuple[_Stream, _Item]]) -> bool:
        """From any thread -> whether the loop is still there to read it."""
        with self._lock:
            if self.loop.is_closed():
                return False
            self._items += items
            if self._woken:
                return True
            self._woken = True
        try:
            self.loop.call_soon_threadsafe(self._empty)
        except RuntimeError:  # closed meanwhile
            return False
        return True

    def _empty(self) -> None:
        with self._lock:
            items, self._items = self._items, []
            self._woken = False
        for stream, item in items:
            stream.take_in(item)


class AsyncEngine:
    """An engine for callers on any number of event loops, until `close`. As an async context manager it closes.

    While it is open the engine is its own: no other call may add to it or step it. With several ranks it
    stands on the first; the others run `follow` at the same time (`serve` does both).

    Args:
        engine: with nothing under way.
        unread: deltas of a stream that may wait to be read; its request pauses there, and goes on when half
            of them are read.

    Raises:
        RequestError: the engine is in use, or `unread` is below 1.
        ParallelismError: several replicas, or not the first rank.
    """

    def __init__(self, engine: Engine, *, unread: int = 256) -> None:
        parallel = engine.model.parallel
        check_one_model(parallel)
        if parallel.rank != 0:
            raise RequestError(
                f"requests come in on rank 0; this is rank {parallel.rank}, which should follow"
            )
        if unread < 1:
            raise RequestError(f"unread is {unread}; at least 1 delta of a stream must be able to wait")
        with engine.lock:
            if engine.exclusive:
                raise RequestError("the engine already serves another front; close that one first")
            if engine.unfinished:
                raise RequestError("the engine still runs requests of another call; end that one first")
            engine.exclusive = True
        self.engine = engine
        self.failure: BaseException | None = None
        # Where that came from, without the ways on which it was raised again.
        self._trace: TracebackType | None = None
        self._unread = unread
        self._tickets = itertools.count()
        self._streams: dict[int, _Stream] = {}
        self._mailboxes: dict[asyncio.AbstractEventLoop, _Mailbox] = {}
        self._mailboxes_lock = threading.Lock()  # callers may be on several loops
        self._closing = False
        self._inbox = Inbox()
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._ended.set_running_or_notify_cancel()
        # A daemon, ended by the hook below: Python would wait for any other kind before it runs the hook.
        self._thread = threading.Thread(target=self._work, name="llama-engine", daemon=True)
        atexit.register(self._leave_at_exit)
        self._thread.start()

    # ---- callers ---------------------------------------------------------------------------------

    def stream(self, request: Request) -> AsyncGenerator[TextDelta, None]:
        """Run a request -> its text as it comes, of all samples; it is queued when the first delta is asked for.

        The joined text of a sample's deltas is its whole text, and its last delta has a finish_reason.
        Closing the generator, an error in the loop over it, or the end of its task cancels the request.

        Raises:
            RequestError, OutOfMemoryError: here, what `Engine.check` raises.
            EngineClosedError: here, or at the first delta, after `close`.
            Exception: from the generator, what made the model's step fail.
            RankError: from the generator, if the service ended because a rank did.
        """
        self._raise_if_closed()
        self.engine.check(request)
        return self._read(request)

    async def complete(self, request: Request) -> list[TextDelta]:
        """Run a request -> for each sample one delta with all of its text. Raises as `stream`."""
        texts: list[list[str]] = [[] for _ in range(request.n)]
        last: dict[int, TextDelta] = {}
        async for delta in self.stream(request):
            texts[delta.sample].append(delta.text)
            last[delta.sample] = delta
        return [
            TextDelta(i, "".join(text), last[i].finish_reason, last[i].sequence)
            for i, text in enumerate(texts)
        ]

    async def close(self, *, drain: bool = False) -> None:
        """End the service: every open stream ends at once with FinishReason.CANCELLED. Twice is fine.

        Returns when the engine's thread has ended, which takes as long as the step under way.

        Args:
            drain: let open streams run to their own end first, as long as their callers read.
        """
        self._closing = True
        self._inbox.put(Stop(drain=drain))
        if not drain:
            self._end_streams(None)
        await self.ended()
        self._thread.join()

    async def ended(self) -> None:
        """Wait until the service has ended, by `close` or by a failure (see `failure`)."""
        await asyncio.wrap_future(self._ended)

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await self.close()

    # ---- on a caller's loop ------------------------------------------------------------------------

    async def _read(self, request: Request) -> AsyncGenerator[TextDelta, None]:
        stream = self._queue(request)
        try:
            while stream.unfinished or stream.items:
                delta = await stream.next()
                if stream.paused and stream.unread <= self._unread // 2:
                    stream.paused = False
                    self._inbox.put(Resume(stream.ticket))
                yield delta
        finally:
            self._streams.pop(stream.ticket, None)
            if stream.unfinished:
                self._inbox.put(Cancel(stream.ticket))

    def _queue(self, request: Request) -> _Stream:
        loop = asyncio.get_running_loop()
        with self._mailboxes_lock:
            mailbox = self._mailboxes.get(loop)
            if mailbox is None:
                self._mailboxes = {each: box for each, box in self._mailboxes.items() if not each.is_closed()}
                mailbox = self._mailboxes[loop] = _Mailbox(loop)
        stream = _Stream(next(self._tickets), request.n, mailbox)
        self._streams[stream.ticket] = stream
        # Looked at once the stream is known: what ends after this ends the stream too.
        try:
            self._raise_if_closed()
        except BaseException:
            del self._streams[stream.ticket]
            raise
        self._inbox.put(Add(stream.ticket, request))
        return stream

    def _raise_if_closed(self) -> None:
        if self.failure is not None:
            raise self.failure.with_traceback(self._trace)
        if self._closing:
            raise EngineClosedError("the engine takes no more requests: it was closed")

    # ---- in the engine's thread ----------------------------------------------------------------------

    def _work(self) -> None:
        try:
            lead(self.engine, self._inbox, self._deliver)
        except BaseException as error:
            self._trace = error.__traceback__
            self.failure = error
        self._closing = True
        self.engine.exclusive = False
        self._end_streams(self.failure)
        atexit.unregister(self._leave_at_exit)
        self._ended.set_result(None)

    def _deliver(self, results: list[Result]) -> None:
        """Send what a step yielded to its callers, and pause those that do not read."""
        items: list[tuple[_Stream, _Item]] = []
        for ticket, result in results:
            stream = self._streams.get(ticket)
            if stream is None:
                continue  # its caller is gone, and the Cancel on its way
            if isinstance(result, Delta):
                if not result.text and result.finish_reason is None:
                    continue
                record = None if result.finish_reason is None else result.sequence
                items.append((stream, TextDelta(result.key[1], result.text, result.finish_reason, record)))
            else:
                items.append((stream, result))
            stream.given += 1
            # Before it is posted: so the caller has something to read after the pause, and then ends it.
            if not stream.paused and stream.unread >= self._unread:
                # In this order: a caller that reads in between leaves the flag alone, and finds it at its next read.
                self._inbox.put(Pause(ticket))
                stream.paused = True
        self._post(items)

    def _post(self, items: Iterable[tuple[_Stream, _Item]]) -> None:
        for_loop: dict[_Mailbox, list[tuple[_Stream, _Item]]] = {}
        for stream, item in items:
            for_loop.setdefault(stream.mailbox, []).append((stream, item))
        for mailbox, theirs in for_loop.items():
            if not mailbox.post(theirs):
                for stream, _ in theirs:
                    if self._streams.pop(stream.ticket, None) is not None:
                        self._inbox.put(Cancel(stream.ticket))

    def _end_streams(self, error: BaseException | None) -> None:
        """End what is open, from any thread: with an error, or as cancelled."""
        ends: list[tuple[_Stream, _Item]] = []
        for stream in list(self._streams.values()):
            if error is not None:
                ends.append((stream, error))
            else:
                # A sample that has ended meanwhile ignores this.
                cancelled = (TextDelta(i, "", FinishReason.CANCELLED) for i in range(stream.samples))
                ends += [(stream, delta) for delta in cancelled]
        self._post(ends)

    def _leave_at_exit(self) -> None:
        """The end of a program that did not close: a thread inside torch may not outlive the interpreter."""
        self._inbox.put(Stop())
        self._thread.join(_EXIT_SECONDS)
