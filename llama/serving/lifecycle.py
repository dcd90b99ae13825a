"""A service from start to end, on every rank: what a server's script awaits.

Rank 0 runs the script's own coroutine with an AsyncEngine; the other ranks follow. SIGTERM ends the service
in order: rank 0 decides, the others wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

from ..engine.engine import Engine
from ..errors import RequestError
from ..printable import shown
from ..values import real
from . import timeouts
from .async_engine import UNREAD, AsyncEngine
from .follower import drain_left, exit_now, follow_until_over
from .kept_errors import again
from .ranks import check_one_model
from .signals import on_signals

__all__ = ["serve"]

T = TypeVar("T")


async def serve(
    engine: Engine,
    main: Callable[[AsyncEngine], Awaitable[T]],
    *,
    unread: int = UNREAD,
    sigterm: bool = True,
    drain_seconds: float = 0.0,
) -> T | None:
    """Await main(async_engine) on rank 0 while the other ranks follow -> its result; None on the others.

    All ranks call it. The service ends when `main` returns. If the service fails before that, its streams
    raise the reason, and a second later `main` is cancelled.

    Args:
        unread: see `AsyncEngine`.
        sigterm: handle SIGTERM: all streams end with FinishReason.CANCELLED, and `main` is cancelled unless
            it returns within 2 s. If a step of the model is still running 4.5 s after the signal, the process
            exits with code 143.
        drain_seconds: after SIGTERM, streams may run to their own end for so long before that happens. No new
            ones are taken: `accepting` is false at once. The same on all ranks. If the launcher was killed,
            at most 4 s.

    Raises:
        RequestError: drain_seconds is negative or not finite; what `AsyncEngine` raises.
        RankError: on every rank that is left, if one failed or died.
        ParallelismError: the launch holds several replicas.
    """
    check_one_model(engine.model.parallel)
    drain = _checked(drain_seconds)
    if engine.model.parallel.rank:
        await follow_until_over(engine, sigterm, drain)
        return None
    async_engine = AsyncEngine(engine, unread=unread)
    try:
        task = asyncio.ensure_future(main(async_engine))
    except BaseException:  # main is not a coroutine function, or failed before its first await
        await async_engine.close()
        raise
    terminated = asyncio.Event()
    try:
        with on_signals((signal.SIGTERM,) if sigterm else (), terminated.set):
            await _until_over(async_engine, task, terminated, drain)
    finally:
        await _cancelled(task)
        await async_engine.close()
    try:
        if async_engine.failure is not None:
            raise again(async_engine.failure)
        return None if task.cancelled() else task.result()
    finally:
        del task  # or this frame, which the traceback of an error of `main` holds, would hold the error


def _checked(drain_seconds: object) -> float:
    seconds = real(drain_seconds)
    if seconds is None or not 0 <= seconds < math.inf:
        raise RequestError(
            f"drain_seconds is {shown(drain_seconds)}; it must be a finite number of seconds, at least 0"
        )
    return seconds


async def _until_over(
    async_engine: AsyncEngine, task: asyncio.Future[T], terminated: asyncio.Event, drain: float
) -> None:
    """Wait for the end of `main`, or of the service by a failure or SIGTERM, and then for `main` a little."""
    failed, signalled = asyncio.ensure_future(_failed(async_engine)), asyncio.ensure_future(terminated.wait())
    any_of: list[asyncio.Future[Any]] = [task, failed, signalled]
    try:
        await asyncio.wait(any_of, return_when=asyncio.FIRST_COMPLETED)
        if signalled.done() and not task.done():
            drain = drain_left(drain)
            if drain:
                await _drain(async_engine, task, terminated, drain)
            with _step_deadline("the end of the drain" if drain else "SIGTERM"):
                await async_engine.close()
                await asyncio.wait({task}, timeout=timeouts.MAIN_AFTER_SIGTERM)
                await _cancelled(task)
        elif failed.done() and not task.done():
            await asyncio.wait({task}, timeout=timeouts.MAIN_AFTER_FAILURE)
    finally:
        failed.cancel()
        signalled.cancel()


async def _drain(
    async_engine: AsyncEngine, task: asyncio.Future[T], terminated: asyncio.Event, seconds: float
) -> None:
    """Take no more requests, and wait until the streams have ended, or `main`, but only for so long."""
    loop = asyncio.get_running_loop()
    draining, end = asyncio.ensure_future(async_engine.close(drain=True)), loop.time() + seconds
    try:
        while not (task.done() or draining.done()) and loop.time() < end:
            # A launcher that is killed now sends another signal. Little time is left then.
            terminated.clear()
            again = asyncio.ensure_future(terminated.wait())
            any_of: list[asyncio.Future[Any]] = [task, draining, again]
            try:
                await asyncio.wait(any_of, timeout=end - loop.time(), return_when=asyncio.FIRST_COMPLETED)
            finally:
                again.cancel()
            end = min(end, loop.time() + drain_left(seconds))
    finally:
        draining.cancel()


async def _failed(async_engine: AsyncEngine) -> None:
    """Wait for a failure of the service. A `main` that closes its AsyncEngine itself is not one."""
    await async_engine.ended()
    if async_engine.failure is None:
        await asyncio.Event().wait()


async def _cancelled(task: asyncio.Future[T]) -> None:
    """Cancel `main` if it still runs, and wait until it has ended. The caller looks at its errors."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})


@contextlib.contextmanager
def _step_deadline(since: str) -> Iterator[None]:
    """Exit the process if the block takes too long: a step of the model cannot be interrupted."""
    seconds = timeouts.STEP_AFTER_SIGTERM
    message = f"a step is still running {seconds:.1f} s after {since}; exiting without waiting for it"
    timer = threading.Timer(seconds, exit_now, [message])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
