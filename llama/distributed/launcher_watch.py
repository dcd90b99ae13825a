"""Ends a rank when its torchrun launcher has ended, even if the launcher was killed.

A killed parent tells its children nothing: a rank that waits for work would wait forever and keep its model
in memory. A thread therefore checks once a second whether this process still has the parent it started with;
the system gives an orphan another one. Linux's PR_SET_PDEATHSIG would not do: it fires when the parent's
*thread* ends, not its process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

from . import environment

__all__ = ["launcher_ended", "unwatch", "watch"]

_CHECK_SECONDS = 1.0
# Between SIGTERM, on which a service shuts down in order, and a hard exit. A service takes less (it drains for
# a few seconds only, see llama/serving/timeouts.py).
_GRACE_SECONDS = 15.0


class _Watch:
    """The thread, which runs while a model is loaded under a launcher, and its number of users."""

    def __init__(self) -> None:
        self.users = 0
        self.over = threading.Event()
        self.launcher_ended = False

    def start(self) -> None:
        self.over = threading.Event()
        arguments = (os.getppid(), self.over)
        threading.Thread(target=_check, args=arguments, name="llama-launcher", daemon=True).start()


_WATCH = _Watch()


def watch() -> None:
    """End this process when torchrun ends, if it was started by it. Each call needs an `unwatch`."""
    _WATCH.users += 1
    if _WATCH.users == 1 and environment.started_by_torchrun():
        _WATCH.start()


def unwatch() -> None:
    """Undo one `watch`."""
    _WATCH.users -= 1
    if _WATCH.users == 0:
        _WATCH.over.set()


def launcher_ended() -> bool:
    """Whether a launcher that was watched has ended, so that this process has sent itself SIGTERM."""
    return _WATCH.launcher_ended


def _check(parent: int, over: threading.Event) -> None:
    while not over.wait(_CHECK_SECONDS):
        if os.getppid() != parent:
            _end(parent, over)
            return


def _end(parent: int, over: threading.Event) -> None:
    """End as the launcher would have ended us: SIGTERM, then by force."""
    with contextlib.suppress(OSError, ValueError):  # stderr may be a pipe that nobody reads any more
        message = (
            f"rank {environment.number('RANK', 0)}: the launcher (process {parent}) has ended; ending too"
        )
        print(message, file=sys.stderr, flush=True)
    _WATCH.launcher_ended = True
    os.kill(os.getpid(), signal.SIGTERM)
    if not over.wait(_GRACE_SECONDS):
        os._exit(128 + signal.SIGTERM)
