"""One engine on all ranks of a model, driven from the first rank.

Each step begins with one packet from the first rank: the events since the last step, often none. All ranks
apply them in the same order and run the same step, so they take the same decisions. While there is nothing to
do no packet is sent, and every rank sleeps in the operating system's kernel until one comes or a rank dies.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..distributed.agreement import UnexplainedError
from ..distributed.devices import is_lost, rank_threads
from ..distributed.parallel import Parallel
from ..engine import Delta, Engine
from ..errors import LlamaError, NumericsError, ParallelismError, RankError
from . import timeouts
from .channel import FollowerChannel, LeaderChannel, follow_channel, lead_channel
from .inbox import Inbox
from .kept_errors import again
from .protocol import Add, Cancel, Event, Pause, Resume, Stop, decode, encode

__all__ = ["RankWorker", "Result", "check_one_model", "follow", "lead"]

Result = tuple[int, Delta | Exception]
"""(ticket of a request, what a step added to one of its samples or the error that ended it)."""


@dataclass
class _OpenRequest:
    """A request that has not ended: its id in the engine, and how many of its samples have not ended."""

    request_id: int
    samples: int


class RankWorker:
    """This rank's engine, and what every rank does in the same way. Used by one thread.

    failure: why the service ended, if it did not end on request.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.failure: str | None = None
        self._stopped = False
        self._draining = False
        self._open: dict[int, _OpenRequest] = {}
        self._ticket_of: dict[int, int] = {}
        self._paused: set[int] = set()

    @property
    def busy(self) -> bool:
        """Whether a step would do anything: some request is not paused."""
        return len(self._paused) < len(self._open) and self.engine.unfinished

    @property
    def over(self) -> bool:
        """Whether the service has ended."""
        return self._stopped or (self._draining and not self._open)

    def apply(self, events: Sequence[Event]) -> list[Result]:
        """Apply events to the engine -> the requests that it refused, with the errors."""
        refused: list[Result] = []
        for event in events:
            if isinstance(event, Add):
                try:
                    request_id = self.engine.add(event.request)
                except LlamaError as error:
                    refused.append((event.ticket, error))
                else:
                    self._open[event.ticket] = _OpenRequest(request_id, event.request.n)
                    self._ticket_of[request_id] = event.ticket
            elif isinstance(event, Stop):
                self._stop(event)
            elif event.ticket in self._open:
                self._change(event)
        return refused

    def step(self) -> list[Result]:
        """Run a step -> what its requests gained, or the errors that ended them.

        A request whose logits are not finite ends alone. Any other error ends all requests of the step.

        Raises:
            Exception: with several ranks, any error but NumericsError. It may be this rank's alone. With one, an
                error after which its device computes nothing more.
        """
        try:
            with rank_threads(self.engine.model.device):
                deltas = self.engine.step()
        except Exception as error:
            if self.engine.model.parallel.size > 1 and not isinstance(error, NumericsError):
                raise
            if is_lost(self.engine.model.device):
                raise
            # Who keeps the error would keep the step's tensors: the memory that the next step needs.
            traceback.clear_frames(error.__traceback__)
            return [(ticket, error) for ticket in self._fail()]
        results: list[Result] = []
        for delta in deltas:
            ticket = self._ticket_of.get(delta.key[0])
            if ticket is not None:
                failure = delta.sequence.error
                results.append((ticket, delta if failure is None else again(failure)))
                if failure is not None:
                    self._forget(ticket)  # all its samples at once
                elif delta.finish_reason is not None:
                    self._open[ticket].samples -= 1
                    if not self._open[ticket].samples:
                        self._forget(ticket)
        return results

    def cancel_all(self) -> None:
        """Leave the engine without requests of the service."""
        for ticket in list(self._open):
            self._cancel(ticket)

    def _change(self, event: Cancel | Pause | Resume) -> None:
        request_id = self._open[event.ticket].request_id
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
        """Cancel the requests of a failed step -> their tickets. The engine is as it was before the step."""
        planned = self.engine.planned
        failed = [ticket for ticket, each in self._open.items() if each.request_id in planned]
        # Scheduling itself failed, and would again: end every request that it may have failed on.
        failed = failed or [ticket for ticket in self._open if ticket not in self._paused]
        for ticket in failed:
            self._cancel(ticket, failed=True)
        return failed

    def _cancel(self, ticket: int, failed: bool = False) -> None:
        self.engine.cancel(self._open[ticket].request_id, failed=failed)
        self._forget(ticket)

    def _forget(self, ticket: int) -> None:
        del self._ticket_of[self._open.pop(ticket).request_id]
        self._paused.discard(ticket)


def lead(engine: Engine, inbox: Inbox, deliver: Callable[[list[Result]], None]) -> None:
    """Run the engine on the first rank until a Stop arrives; the other ranks `follow`.

    Args:
        deliver: called after each batch of events and after each step, with their results, perhaps none; if it
            raises, the service ends.

    Raises:
        RankError: a rank failed or died.
    """
    parallel, device = engine.model.parallel, engine.model.device
    channel, worker = LeaderChannel(), RankWorker(engine)
    try:
        channel = lead_channel(parallel, device)
        inbox.watch(channel.peers.values())
        with torch.inference_mode():
            _run_steps(worker, channel, inbox, deliver)
    except BaseException as error:
        if parallel.size == 1:
            raise
        told = channel.reason() if isinstance(error, UnexplainedError) else None
        failure = told or (error if isinstance(error, RankError) else parallel.failed(error))
        _tell(channel, failure)
        parallel.failed(failure)
        raise failure from error
    finally:
        # After a Stop too: a request that arrived behind it was added like any other.
        worker.cancel_all()
        channel.close()
        inbox.close()


def _run_steps(
    worker: RankWorker, channel: LeaderChannel, inbox: Inbox, deliver: Callable[[list[Result]], None]
) -> None:
    while not worker.over:
        events = inbox.take(wait=not worker.busy)
        if not events and not worker.busy:
            channel.check()
            continue
        if channel.peers:
            channel.send(encode(events))
        if events:
            deliver(worker.apply(events))
        if worker.busy:
            deliver(worker.step())


def follow(engine: Engine, channel: FollowerChannel | None = None) -> None:
    """Run the engine on a rank other than the first, until the first ends the service.

    Sleeps in a system call while there is nothing to do. All ranks enter the service at the same time.

    Args:
        channel: from `follow_channel`, for a caller that wants to hang up from another thread.

    Raises:
        RankError: this or another rank failed or died.
    """
    parallel = engine.model.parallel
    worker = RankWorker(engine)
    channel = channel or follow_channel(parallel, engine.model.device)
    try:
        engine.exclusive = True
        with torch.inference_mode():
            while not worker.over:
                worker.apply(decode(channel.receive()))
                if worker.busy:
                    worker.step()
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
        worker.cancel_all()
        engine.exclusive = False
        channel.close()
    if worker.failure is not None:
        raise RankError(worker.failure)


def _why(channel: FollowerChannel, error: UnexplainedError) -> RankError:
    """The first rank's reason for an exchange that failed here without one, if it sends it soon."""
    try:
        told = decode(channel.receive(timeouts.REASON))
    except TimeoutError:
        return error
    except RankError as gone:
        return gone
    reasons = (event.failure for event in told if isinstance(event, Stop) and event.failure is not None)
    return next((RankError(reason) for reason in reasons), error)


def check_one_model(parallel: Parallel) -> None:
    """Raise ParallelismError if the launch holds several replicas: a service runs one model."""
    if parallel.replicas > 1:
        raise ParallelismError(
            f"the launch holds {parallel.replicas} replicas of {parallel.size} rank(s), but a service runs"
            f" one model; build with model_parallel_size={parallel.size * parallel.replicas}, or launch one"
            f" service of {parallel.size} rank(s) for each replica"
        )


def _tell(channel: LeaderChannel, failure: RankError) -> None:
    for rank, peer in channel.peers.items():
        with contextlib.suppress(RankError):  # this may be the rank that died
            LeaderChannel({rank: peer}).send(encode([Stop(failure=str(failure))]))
