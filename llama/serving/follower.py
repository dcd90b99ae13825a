"""A rank other than the first, from the start of a service to its end: it follows, and hears signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading

from ..distributed import launcher_watch
from ..engine.engine import Engine
from ..errors import RankError
from ..printable import tell
from . import timeouts
from .channel import FollowerChannel, follow_channel
from .ranks import follow
from .signals import on_signals

__all__ = ["drain_left", "exit_now", "follow_until_over"]


def exit_now(message: str) -> None:
    """End the process with the exit code of SIGTERM, without waiting for any thread."""
    tell(message)
    os._exit(128 + signal.SIGTERM)


def drain_left(seconds: float) -> float:
    """How long a service that was to drain for so many seconds may do so now, after SIGTERM."""
    return min(seconds, timeouts.DRAIN_WITHOUT_LAUNCHER) if launcher_watch.launcher_ended() else seconds


async def follow_until_over(engine: Engine, sigterm: bool, drain: float = 0.0) -> None:
    """Follow rank 0 until it ends the service. Raises as `follow`.

    Args:
        sigterm: handle SIGTERM and SIGINT: wait for rank 0 to end the service, but not for long.
        drain: seconds that rank 0 may let its streams run on after a signal, before it ends the service.
    """
    follower = _Follower(engine, asyncio.get_running_loop())

    def signalled() -> None:
        follower.expect_the_end(drain_left(drain))

    try:
        with on_signals((signal.SIGTERM, signal.SIGINT) if sigterm else (), signalled):
            # Started when signals are heard already: rank 0 may serve as soon as this thread follows.
            threading.Thread(target=follower.work, name="llama-follow", daemon=True).start()
            await asyncio.shield(follower.over)
    except asyncio.CancelledError:
        # As after a signal. A thread that went on by itself would meet the engine's next call.
        follower.expect_the_end()
        await asyncio.wait({follower.over})
        follower.over.exception()
        raise
    finally:
        for timer in follower.timers:
            timer.cancel()


class _Follower:
    """The thread that follows, and the limits of the event loop's patience with it.

    `follow` blocks, so it has a thread of its own; everything but `work` runs on the loop.
    """

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self.engine = engine
        self.over: asyncio.Future[None] = loop.create_future()
        self.timers: list[asyncio.TimerHandle] = []
        self._loop = loop
        self._channel: FollowerChannel | None = None
        self._gave_up: RankError | None = None

    def work(self) -> None:
        """Follow. Runs in the thread."""
        failure: BaseException | None = None
        try:
            self._channel = follow_channel(self.engine.model.parallel, self.engine.model.device)
            follow(self.engine, self._channel)
        except BaseException as error:
            failure = self._gave_up or error
        with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody waits
            self._loop.call_soon_threadsafe(self._finish, failure)

    def expect_the_end(self, drain: float = 0.0) -> None:
        """From now on rank 0 has only so much time to end the service, beside the drain."""
        if not self.timers:
            seconds = timeouts.LEADER_AFTER_SIGTERM + drain
            self.timers.append(self._loop.call_later(seconds, self._give_up, seconds))

    def _finish(self, error: BaseException | None) -> None:
        if not self.over.done():
            self.over.set_result(None) if error is None else self.over.set_exception(error)

    def _give_up(self, seconds: float) -> None:
        """Leave the service without rank 0. Exits the process if the thread is stuck in a step."""
        parallel = self.engine.model.parallel
        self._gave_up = RankError(
            f"rank {parallel.rank} was told to end, and rank 0 did not end the service within {seconds:.1f} s"
        )
        # First the shared memory, so that rank 0 finds this reason also in the middle of a step.
        parallel.give_up(str(self._gave_up))
        if self._channel is not None:
            self._channel.hang_up(str(self._gave_up))
        # Not the usual way out: a thread that is inside torch crashes when the interpreter goes.
        message = f"{self._gave_up}; its own step does not end either"
        self.timers.append(self._loop.call_later(timeouts.STEP_AFTER_HANG_UP, exit_now, message))
