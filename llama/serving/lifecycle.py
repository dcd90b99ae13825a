"""A service from its start to its end, on every rank: what a server's script awaits.

Rank 0 runs the script's own coroutine with a front; the other ranks follow. SIGTERM ends all of it in
order: the first rank decides, the others wait for its word.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..engine.engine import Engine
from ..errors import RankError
from ..printable import tell
from .async_engine import AsyncEngine
from .channel import FollowerChannel, check_one_model, follow_channel
from .ranks import follow

__all__ = ["serve"]

T = TypeVar("T")

# SIGTERM: streams end at once; callers have this long to say so to whoever asked them, then they are
# cancelled; a step that takes longer than all of it is not waited for.
_GRACE_SECONDS = 2.0
_LAST_SECONDS = 4.5
# For another rank, which waits for the first one to end the service.
_FOLLOWER_SECONDS = 8.0
_TERMINATED = 128 + signal.SIGTERM


@dataclass
class _Listeners:
    """What a signal did before, and what it does now."""

    before: Any
    actions: list[Callable[[], object]] = field(default_factory=list)

    def tell(self) -> None:
        for action in list(self.actions):
            action()


# A loop has one handler for a signal, but may have several services.
_LISTENERS: dict[tuple[asyncio.AbstractEventLoop, signal.Signals], _Listeners] = {}


async def serve(
    engine: Engine, main: Callable[[AsyncEngine], Awaitable[T]], *, unread: int = 256, sigterm: bool = True
) -> T | None:
    """Await main(front) on rank 0 while the other ranks follow -> its result; None on the others.

    All ranks call it. The service ends with `main`. If it fails first, `main` is cancelled, a second after
    its streams have raised the reason.

    Args:
        unread: see `AsyncEngine`.
        sigterm: handle SIGTERM: all streams end with FinishReason.CANCELLED, and `main` is cancelled unless
            it returns within 2 s. If the process has not come to its end 4.5 s after the signal, because one
            step takes that long, it exits there and then with code 143.

    Raises:
        RankError: on every rank that is left, if one failed or is gone.
        ParallelismError: several replicas.
    """
    check_one_model(engine.model.parallel)
    if engine.model.parallel.rank:
        await _follow(engine, sigterm)
        return None
    front = AsyncEngine(engine, unread=unread)
    try:
        task = asyncio.ensure_future(main(front))
    except BaseException:  # main is no coroutine function, or failed before its first await
        await front.close()
        raise
    told = asyncio.Event()
    try:
        with _on_signals((signal.SIGTERM,) if sigterm else (), told.set):
            await _until_over(front, task, told)
    finally:
        await _cancelled(task)
        await front.close()
    if front.failure is not None:
        raise front.failure
    return None if task.cancelled() else task.result()


async def _until_over(front: AsyncEngine, task: asyncio.Future[T], told: asyncio.Event) -> None:
    """Wait for the end of main, a failure of the service, or a signal; what follows has its time limit."""
    ended, signalled = asyncio.ensure_future(_failed(front)), asyncio.ensure_future(told.wait())
    any_of: list[asyncio.Future[Any]] = [task, ended, signalled]
    try:
        await asyncio.wait(any_of, return_when=asyncio.FIRST_COMPLETED)
        if signalled.done() and not task.done():
            with _deadline():
                await front.close()
                await asyncio.wait({task}, timeout=_GRACE_SECONDS)
                await _cancelled(task)
        elif ended.done() and not task.done():
            await asyncio.wait({task}, timeout=_GRACE_SECONDS / 2)
    finally:
        ended.cancel()
        signalled.cancel()


async def _failed(front: AsyncEngine) -> None:
    """Wait for a failure: that main closed its front itself ends nothing else."""
    await front.ended()
    if front.failure is None:
        await asyncio.Event().wait()


async def _cancelled(task: asyncio.Future[T]) -> None:
    """Cancel main if it is under way, and wait for it; its errors are looked at later."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    """Ends the process if what is inside takes too long: no step of a model can be interrupted."""
    words = f"a step is still under way {_LAST_SECONDS:.1f} s after SIGTERM; exiting without waiting for it"
    timer = threading.Timer(_LAST_SECONDS, _exit, [words])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _exit(words: str) -> None:
    tell(words)
    os._exit(_TERMINATED)


async def _follow(engine: Engine, sigterm: bool) -> None:
    """Follow in a thread, so that this rank hears signals, and waits with them for rank 0."""
    parallel, loop = engine.model.parallel, asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()
    channels: list[FollowerChannel] = []
    late: list[RankError] = []
    timers: list[asyncio.TimerHandle] = []

    def finish(error: BaseException | None) -> None:
        if not over.done():
            over.set_result(None) if error is None else over.set_exception(error)

    def work() -> None:
        failure: BaseException | None = None
        try:
            channels.append(follow_channel(parallel, engine.model.device))
            follow(engine, channels[0])
        except BaseException as error:
            failure = late[0] if late else error
        with contextlib.suppress(RuntimeError):  # the loop is gone, and nobody waits
            loop.call_soon_threadsafe(finish, failure)

    def leave() -> None:
        """On its own: with the reason, when the thread has ended; without it if that is stuck in a step."""
        late.append(
            RankError(
                f"rank {parallel.rank} was told to end, and rank 0 did not end the service within"
                f" {_FOLLOWER_SECONDS:.1f} s"
            )
        )
        # First, so that rank 0 finds this reason also in the middle of a step.
        parallel.give_up(str(late[0]))
        for channel in channels:
            channel.hang_up(str(late[0]))
        # A thread inside torch may not outlive the interpreter, so that is not ended in the usual way.
        timers.append(loop.call_later(_GRACE_SECONDS, _exit, f"{late[0]}; its step does not end either"))

    def told() -> None:
        if not timers:
            timers.append(loop.call_later(_FOLLOWER_SECONDS, leave))

    try:
        with _on_signals((signal.SIGTERM, signal.SIGINT) if sigterm else (), told):
            # Once signals are heard: rank 0 may serve as soon as this thread follows.
            threading.Thread(target=work, name="llama-follow", daemon=True).start()
            await asyncio.shield(over)
    except asyncio.CancelledError:
        # As after a signal: a thread that went on by itself would meet the next call in the engine.
        told()
        await asyncio.wait({over})
        over.exception()
        raise
    finally:
        for timer in timers:
            timer.cancel()


@contextlib.contextmanager
def _on_signals(signals: tuple[signal.Signals, ...], action: Callable[[], object]) -> Iterator[None]:
    """Call `action` on the loop for these signals, where this thread can hear them; as before after the last."""
    loop = asyncio.get_running_loop()
    heard = []
    if threading.current_thread() is threading.main_thread():
        for each in signals:
            with contextlib.suppress(NotImplementedError):  # loops on Windows
                if (loop, each) not in _LISTENERS:
                    listeners = _Listeners(signal.getsignal(each))
                    loop.add_signal_handler(each, listeners.tell)
                    _LISTENERS[loop, each] = listeners
                _LISTENERS[loop, each].actions.append(action)
                heard.append(each)
    try:
        yield
    finally:
        for each in heard:
            listeners = _LISTENERS[loop, each]
            listeners.actions.remove(action)
            if not listeners.actions:
                del _LISTENERS[loop, each]
                loop.remove_signal_handler(each)
                # Of a handler that the host gave to the loop nothing is left but asyncio's own, which does nothing.
                lost = getattr(listeners.before, "__module__", "").startswith("asyncio.")
                signal.signal(
                    each, listeners.before if listeners.before is not None and not lost else signal.SIG_DFL
                )
