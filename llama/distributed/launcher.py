"""The end of the launcher: ranks that torchrun started end with it, also where it was killed without a word.

A parent that is killed tells its children nothing, and a rank that waits for work would wait for good, with the
model in memory. Not by prctl's PR_SET_PDEATHSIG: that is bound to the thread that started the process, not to the
launcher as a whole, and exists on Linux only. A process is given to another parent when its own has ended, so a
thread looks who the parent is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

__all__ = ["unwatch", "watch"]

_LOOK_SECONDS = 1.0
# SIGTERM ends a service in order, and what waits in Python; more than a service takes at most.
_GRACE_SECONDS = 15.0


class _Watch:
    """A thread that looks after the parent, as long as somebody has a model under a launcher."""

    def __init__(self) -> None:
        self.users = 0
        self.over = threading.Event()

    def start(self) -> None:
        self.over = threading.Event()
        arguments = (os.getppid(), self.over)
        threading.Thread(target=_look, args=arguments, name="llama-launcher", daemon=True).start()


_WATCH = _Watch()


def watch() -> None:
    """End this process when its launcher ends, until as many `unwatch`. Does nothing without a launcher."""
    _WATCH.users += 1
    if _WATCH.users == 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        _WATCH.start()


def unwatch() -> None:
    """Take a `watch` back."""
    _WATCH.users -= 1
    if _WATCH.users == 0:
        _WATCH.over.set()


def _look(parent: int, over: threading.Event) -> None:
    while not over.wait(_LOOK_SECONDS):
        if os.getppid() != parent:
            _end(parent, over)
            return


def _end(parent: int, over: threading.Event) -> None:
    """As the launcher would have: SIGTERM, and after a while without asking."""
    with contextlib.suppress(OSError, ValueError):  # its pipes may be gone too
        rank = os.environ.get("RANK", "0")
        print(
            f"rank {rank}: the launcher (process {parent}) has ended; ending too", file=sys.stderr, flush=True
        )
    os.kill(os.getpid(), signal.SIGTERM)
    if not over.wait(_GRACE_SECONDS):
        os._exit(128 + signal.SIGTERM)
