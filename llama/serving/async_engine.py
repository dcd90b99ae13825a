"""Many asynchronous callers, one engine.

One thread steps the engine, so no event loop ever waits for the model. Events reach that thread through an
inbox. What a step yields goes to each event loop that has callers in one call. A caller that leaves cancels
its request; one that does not read pauses it.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import itertools
import threading
from collections.abc import AsyncGenerator, Iterable

from ..engine import Delta, Engine, FinishReason, Request, Snapshot
from ..errors import EngineClosedError, RequestError
from . import timeouts
from .inbox import Inbox
from .kept_errors import again, without_variables
from .protocol import Add, Cancel, Pause, Resume, Stop
from .ranks import Result, check_one_model, lead
from .streams import Item, Mailbox, Stream, TextDelta

__all__ = ["UNREAD", "AsyncEngine"]

UNREAD = 256
"""Deltas of a stream that may wait to be read, unless the caller says otherwise."""


class AsyncEngine:
    """Serves callers on any number of event loops, until `close` or the end of an `async with`.

    It has the engine to itself while it is open: no other call may add to it or step it. With several ranks
    it runs on the first, while the others run `follow` (`serve` does both).

    Args:
        engine: an engine without requests.
        unread: how many deltas of a stream may wait to be read. At that number its request pauses; it resumes
            when half of them are read.

    Raises:
        RequestError: the engine is in use, this is not the first rank, or `unread` is below 1.
        ParallelismError: the launch holds several replicas.
    """

    def __init__(self, engine: Engine, *, unread: int = UNREAD) -> None:
        parallel = engine.model.parallel
        check_one_model(parallel)
        if parallel.rank != 0:
            raise RequestError(
                f"AsyncEngine runs on rank 0, and this is rank {parallel.rank}; call `follow` here, or"
                " `serve` on all ranks"
            )
        if unread < 1:
            raise RequestError(f"unread is {unread}; it must be at least 1")
        with engine.lock:
            if engine.exclusive:
                raise RequestError("the engine already has an AsyncEngine; close that one first")
            if engine.unfinished:
                raise RequestError("the engine still runs requests of another call; finish that call first")
            engine.exclusive = True
        self.engine = engine
        self.failure: BaseException | None = None
        self._unread = unread
        self._tickets = itertools.count()
        self._asked = 0  # requests put into the inbox
        # What the engine's thread last saw: the engine, and how many of these it had taken.
        self._seen = (engine.snapshot(), 0)
        self._streams: dict[int, Stream] = {}
        self._mailboxes: dict[asyncio.AbstractEventLoop, Mailbox] = {}
        self._lock = threading.Lock()  # callers may be on several loops
        self._closing = False
        self._inbox = Inbox()
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._ended.set_running_or_notify_cancel()
        # A daemon thread: Python would join any other before it runs the hook that ends this one.
        self._thread = threading.Thread(target=self._work, name="llama-engine", daemon=True)
        atexit.register(self._stop_at_exit)
        self._thread.start()

    # ---- for callers -----------------------------------------------------------------------------

    @property
    def accepting(self) -> bool:
        """Whether a new request would be taken: false from the beginning of `close`, or after a failure."""
        return not self._closing

    @property
    def open_streams(self) -> int:
        """Requests that have been queued and whose stream has not ended: running, waiting or paused."""
        return len(self._streams)

    @property
    def snapshot(self) -> Snapshot:
        """The engine after its last step or batch of events, in numbers. From any thread, at no cost."""
        return self._seen[0]

    @property
    def waiting(self) -> int:
        """Requests that are queued and have not begun, those on their way to the engine's thread included."""
        if self._ended.done():
            return 0
        snapshot, taken = self._seen
        return snapshot.waiting + self._asked - taken

    def stream(self, request: Request) -> AsyncGenerator[TextDelta, None]:
        """Run a request -> the text deltas of all its samples, as they are generated.

        The request is checked now and queued when the first delta is awaited. Joined, a sample's deltas are
        its whole text and its ids; the last one has a finish_reason. Closing the generator, leaving the loop
        over it by an error, or cancelling its task cancels the request.

        Raises:
            RequestError, OutOfMemoryError: at once, as `Engine.check`.
            EngineClosedError: at once or at the first delta, after `close`.
            Exception: from the generator: the error of the model's step.
            RankError: from the generator: the service ended because a rank failed or died.
        """
        self._raise_if_closed()
        self.engine.check(request)
        return self._singly(request)

    def batches(self, request: Request) -> AsyncGenerator[list[TextDelta], None]:
        """As `stream`, but everything that is unread at once: one or more deltas each time.

        For servers: what came while the caller was busy goes out in one write. Raises as `stream`.
        """
        self._raise_if_closed()
        self.engine.check(request)
        return self._read(request)

    async def complete(self, request: Request) -> list[TextDelta]:
        """Run a request -> one delta for each sample, with all its text and ids. Raises as `stream`."""
        found: list[list[TextDelta]] = [[] for _ in range(request.n)]
        async for batch in self.batches(request):
            for delta in batch:
                found[delta.sample].append(delta)
        return [TextDelta.joined(deltas) for deltas in found]

    async def close(self, *, drain: bool = False) -> None:
        """End the service. Every open stream ends at once with FinishReason.CANCELLED. May be called again.

        Returns when the engine's thread has ended, which has to finish its current step.

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
        """Wait until the service has ended, by `close` or by an error; the error is then in `failure`."""
        await asyncio.wrap_future(self._ended)

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await self.close()

    # ---- on a caller's loop ------------------------------------------------------------------------

    async def _singly(self, request: Request) -> AsyncGenerator[TextDelta, None]:
        async with contextlib.aclosing(self._read(request, 1)) as batches:
            async for (delta,) in batches:
                yield delta

    async def _read(self, request: Request, most: int | None = None) -> AsyncGenerator[list[TextDelta], None]:
        stream = self._queue(request)
        try:
            while not stream.over:
                deltas = await stream.next(most)
                if stream.paused and stream.unread <= self._unread // 2:
                    stream.paused = False
                    self._inbox.put(Resume(stream.ticket))
                yield deltas
        finally:
            self._streams.pop(stream.ticket, None)
            if stream.unfinished:
                self._inbox.put(Cancel(stream.ticket))

    def _queue(self, request: Request) -> Stream:
        loop = asyncio.get_running_loop()
        with self._lock:
            mailbox = self._mailboxes.get(loop)
            if mailbox is None:
                self._mailboxes = {each: box for each, box in self._mailboxes.items() if not each.is_closed()}
                mailbox = self._mailboxes[loop] = Mailbox(loop)
        stream = Stream(next(self._tickets), request.n, mailbox)
        self._streams[stream.ticket] = stream
        # Checked after the stream is registered: a close or failure from here on ends this stream too.
        try:
            self._raise_if_closed()
        except BaseException:
            del self._streams[stream.ticket]
            raise
        with self._lock:
            self._asked += 1
        self._inbox.put(Add(stream.ticket, request))
        return stream

    def _raise_if_closed(self) -> None:
        if self.failure is not None:
            raise again(self.failure)
        if self._closing:
            raise EngineClosedError("the engine takes no more requests: it was closed")

    # ---- in the engine's thread ----------------------------------------------------------------------

    def _work(self) -> None:
        try:
            lead(self.engine, self._inbox, self._deliver)
        except BaseException as error:
            self.failure = without_variables(error)
        self._look()
        self._closing = True
        self.engine.exclusive = False
        self._end_streams(None if self.failure is None else again(self.failure))
        atexit.unregister(self._stop_at_exit)
        ended = self._ended
        del self  # this frame belongs to the traceback of a failure, which `self` holds
        ended.set_result(None)

    def _look(self) -> None:
        self._seen = (self.engine.snapshot(), self._inbox.requests_taken)

    def _deliver(self, results: list[Result]) -> None:
        """Send a step's results to their callers, and pause the requests of callers that do not read."""
        self._look()  # before the results: who has the last of them finds its request finished
        items: list[tuple[Stream, Item]] = []
        for ticket, result in results:
            stream = self._streams.get(ticket)
            if stream is None:
                continue  # its caller has left; the Cancel is on its way
            if isinstance(result, Delta):
                delta = TextDelta.of(result)
                if delta is None:
                    continue
                items.append((stream, delta))
            else:
                items.append((stream, result))
            stream.given += 1
            # Before the post, so that the caller has something to read after the Pause, and then resumes.
            if not stream.paused and stream.unread >= self._unread:
                # Event before flag: a caller that reads in between sees the flag at its next read.
                self._inbox.put(Pause(ticket))
                stream.paused = True
        self._post(items)

    def _post(self, items: Iterable[tuple[Stream, Item]]) -> None:
        by_mailbox: dict[Mailbox, list[tuple[Stream, Item]]] = {}
        for stream, item in items:
            by_mailbox.setdefault(stream.mailbox, []).append((stream, item))
        for mailbox, batch in by_mailbox.items():
            if not mailbox.post(batch):
                for stream, _ in batch:
                    if self._streams.pop(stream.ticket, None) is not None:
                        self._inbox.put(Cancel(stream.ticket))

    def _end_streams(self, error: BaseException | None) -> None:
        """End all open streams with an error, or as cancelled. From any thread."""
        ends: list[tuple[Stream, Item]] = []
        for stream in list(self._streams.values()):
            if error is not None:
                ends.append((stream, error))
            else:
                # Samples that have ended in the meantime drop this.
                cancelled = (TextDelta(i, "", FinishReason.CANCELLED) for i in range(stream.samples))
                ends += [(stream, delta) for delta in cancelled]
        self._post(ends)

    def _stop_at_exit(self) -> None:
        """For a program that never closed: a thread inside torch crashes when the interpreter goes."""
        self._inbox.put(Stop())
        self._thread.join(timeouts.STEP_AT_EXIT)
