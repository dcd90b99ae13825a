"""One engine on all ranks of a model, fed from the first rank.

Every step begins with one packet from the first rank: the events since the last step, often none. Every
rank applies them in that order and runs the same step, so all take the same decisions. While there is
nothing to do no packet goes out, and every rank sleeps in the kernel until one comes or a rank dies.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch

from ..distributed.agreement import UnexplainedError
from ..distributed.devices import rank_threads
from ..engine import Delta, Engine
from ..errors import LlamaError, NumericsError, RankError
from ..sampling import SamplingParams
from .channel import REASON_SECONDS, FollowerChannel, LeaderChannel, follow_channel, lead_channel
from .protocol import Add, Cancel, Event, Pause, Resume, Stop, decode, encode

__all__ = ["Inbox", "RankWorker", "Result", "follow", "lead"]

Result = tuple[int, Delta | Exception]
"""(ticket, what a step added to its request, or what ended it)."""


@dataclass
class _Live:
    """A request that has not ended: its id in the engine, and how many of its samples are still to end."""

    request_id: int
    samples: int


class RankWorker:
    """This rank's engine, and all that every rank does alike. Belongs to one thread.

    `over` is set when the service has ended; `failure` says why, if it was not asked to.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.failure: str | None = None
        self._stopped = False
        self._draining = False
        self._live: dict[int, _Live] = {}
        self._ticket_of: dict[int, int] = {}
        self._paused: set[int] = set()

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return len(self._paused) < len(self._live) and self.engine.unfinished

    @property
    def over(self) -> bool:
        """Whether the service has ended."""
        return self._stopped or (self._draining and not self._live)

    def apply(self, events: Rows[Event]) -> list[Result]:
        """Tell the engine what happened -> requests that it refused, with its errors."""
        refused: list[Result] = []
        for event in events:
            if isinstance(event, Add):
                try:
                    request_id = self.engine.add(event.request)
                except LlamaError as error:
                    refused.append((event.ticket, error))
                else:
                    self._live[event.ticket] = _Live(request_id, event.request.n)
                    self._ticket_of[request_id] = event.ticket
            elif isinstance(event, Stop):
                self._stop(event)
            elif event.ticket in self._live:
                self._change(event)
        return refused

    def step(self) -> list[Result]:
        """Run a step -> what its requests gained, or what ended them: logits of their own that are not finite, or an
        error that names no request and ends all of this batch.

        Raises:
            Exception: with several ranks, one that may not have struck all of them. Only NumericsError does.
        """
        try:
            with rank_threads(self.engine.model.device):
                deltas = self.engine.step()
        except Exception as error:
            if self.engine.model.parallel.size > 1 and not isinstance(error, NumericsError):
                raise
            return [(ticket, error) for ticket in self._fail()]
        results: list[Result] = []
        for delta in deltas:
            ticket = self._ticket_of.get(delta.key[0])
            if ticket is not None:
                failure = delta.sequence.error
                results.append((ticket, failure or delta))
                if failure is not None:
                    self._forget(ticket)  # with all samples
                elif delta.finish_reason is not None:
                    self._live[ticket].samples -= 1
                    if not self._live[ticket].samples:
                        self._forget(ticket)
        return results

    def cancel_all(self) -> None:
        """Leave the engine as it was before the service."""
        for ticket in list(self._live):
            self._cancel(ticket)

    def _change(self, event: Cancel | Pause | Resume) -> None:
        request_id = self._live[event.ticket].request_id
        if isinstance(event, Cancel):
            self._cancel(event.ticket)
        elif isinstance(event, Pause):
            self._paused.add(event.ticket)
            self.engine.pause(request_id)
        else:
            self._paused.discard(event.ticket)
            self.engine.resume(request_id)

    def _stop(self, event: Stop) -> None:
        self.failure = event.failure
        if event.drain:
            self._draining = True
        else:
            self._stopped = True
            self.cancel_all()

    def _fail(self) -> list[int]:
        """Cancel what was in a step that failed -> its tickets. The engine is as it was before the step."""
        planned = self.engine.planned
        failed = [ticket for ticket, live in self._live.items() if live.request_id in planned]
        # A plan that failed before it named anybody would fail again: it ends all that could have been in it.
        failed = failed or [ticket for ticket in self._live if ticket not in self._paused]
        for ticket in failed:
            self._cancel(ticket)
        return failed

    def _cancel(self, ticket: int) -> None:
        self.engine.cancel(self._live[ticket].request_id)
        self._forget(ticket)

    def _forget(self, ticket: int) -> None:
        del self._ticket_of[self._live.pop(ticket).request_id]
        self._paused.discard(ticket)


class Inbox:
    """Events on their way from any thread to the one that steps the engine."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._asleep = False
        self._alarm, self._bed = socket.socketpair()
        self._alarm.setblocking(False)
        self._bed.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._bed, selectors.EVENT_READ)

    def put(self, event: Event) -> None:
        """Hand over an event; wakes the reader if it sleeps. From any thread, at any time."""
        self._events.append(event)
        if self._asleep:
            # No room: enough alarms are there. Closed: nobody sleeps there any more.
            with contextlib.suppress(OSError):
                self._alarm.send(b"!")

    def watch(self, connections: Iterable[socket.socket]) -> None:
        """Let news on these end a `take` too."""
        for connection in connections:
            self._selector.register(connection, selectors.EVENT_READ)

    def take(self, wait: bool) -> list[Event]:
        """All events so far, in order. With `wait`, sleeps while there are none and nothing else happens."""
        if wait:
            self._asleep = True
            # Looked at after the flag is up: an event before it is seen here, one after it sends an alarm.
            if not self._events:
                self._selector.select()
            self._asleep = False
            with contextlib.suppress(BlockingIOError):
                while self._bed.recv(4096):
                    pass
        return [self._events.popleft() for _ in range(len(self._events))]

    def close(self) -> None:
        """Give the descriptors back; `put` stays harmless."""
        self._selector.close()
        self._alarm.close()
        self._bed.close()


def lead(engine: Engine, inbox: Inbox, deliver: Callable[[list[Result]], None]) -> None:
    """Run the engine on the first rank until a Stop comes in; the other ranks `follow`.

    Args:
        deliver: gets what each step yielded; what it raises ends the service.

    Raises:
        RankError: a rank failed or is gone.
    """
    parallel, device = engine.model.parallel, engine.model.device
    channel, replica = LeaderChannel(), RankWorker(engine)
    try:
        channel = lead_channel(parallel, device)
        inbox.watch(channel.peers.values())
        with torch.inference_mode(), _current(device):
            _lead(replica, channel, inbox, deliver)
    except BaseException as error:
        if parallel.size == 1:
            raise
        told = channel.reason() if isinstance(error, UnexplainedError) else None
        failure = told or (error if isinstance(error, RankError) else parallel.failed(error))
        _tell(channel, failure)
        parallel.failed(failure)
        raise failure from error
    finally:
        # Also after a Stop: what came in behind it was added like anything else.
        replica.cancel_all()
        channel.close()
        inbox.close()


def _lead(
    replica: RankWorker, channel: LeaderChannel, inbox: Inbox, deliver: Callable[[list[Result]], None]
) -> None:
    while not replica.over:
        events = inbox.take(wait=not replica.busy)
        if not events and not replica.busy:
            channel.check()
            continue
        if channel.peers:
            channel.send(encode(events))
        results = replica.apply(events)
        if replica.busy:
            results += replica.step()
        if results:
            deliver(results)


def follow(engine: Engine, channel: FollowerChannel | None = None) -> None:
    """Run the engine on a rank other than the first, until the first ends the service.

    Waits in a system call while there is nothing to do. All ranks enter the service at the same time.

    Args:
        channel: from `follow_channel`, for a caller that wants to hang up from another thread.

    Raises:
        RankError: this or another rank failed, or is gone.
    """
    parallel = engine.model.parallel
    replica = RankWorker(engine)
    channel = channel or follow_channel(parallel, engine.model.device)
    try:
        engine.exclusive = True
        with torch.inference_mode(), _current(engine.model.device):
            while not replica.over:
                replica.apply(decode(channel.receive(), SamplingParams))
                if replica.busy:
                    replica.step()
    except RankError as error:
        failure = _why(channel, error) if isinstance(error, UnexplainedError) else error
        parallel.failed(failure)
        raise failure from error.__cause__
    except BaseException as error:
        failure = parallel.failed(error)
        channel.send(str(failure))
        if isinstance(error, Exception):
            raise failure from error
        raise
    finally:
        replica.cancel_all()
        engine.exclusive = False
        channel.close()
    if replica.failure is not None:
        raise RankError(replica.failure)


def _why(channel: FollowerChannel, error: UnexplainedError) -> RankError:
    """What the first rank knows of the end of an exchange that failed here."""
    try:
        told = decode(channel.receive(REASON_SECONDS), SamplingParams)
    except TimeoutError:
        return error
    except RankError as gone:
        return gone
    reasons = (event.failure for event in told if isinstance(event, Stop) and event.failure is not None)
    return next((RankError(reason) for reason in reasons), error)


def _current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A thread has a CUDA device of its own, at first always the machine's first one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _tell(channel: LeaderChannel, failure: RankError) -> None:
    for rank, peer in channel.peers.items():
        with contextlib.suppress(RankError):  # it may be the one that is gone
            LeaderChannel({rank: peer}).send(encode([Stop(failure=str(failure))]))
