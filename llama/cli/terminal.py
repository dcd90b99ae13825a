"""Lines on stdout, a stdout that cannot be written, and signals."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

from ..printable import say

__all__ = ["TerminatedError", "drop_stdout", "out", "signals_raise"]


def out(line: str) -> None:
    """Print a line of a result on stdout; messages and progress go to stderr, with `printable.tell`."""
    say(line, sys.stdout)


def drop_stdout() -> None:
    """Discard what stdout could not take; else Python tries again at exit, and complains."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):  # a stream without a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (AttributeError, ValueError):  # there is none, or it is closed
        pass


class TerminatedError(BaseException):
    """SIGTERM or SIGHUP, raised so that unfinished work is cleaned up. args: a word, the signal's number."""


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP (a closed terminal) raise, as Ctrl-C does, but TerminatedError."""
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers: list[signal.Signals] = [getattr(signal, name) for name in names]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # Python handles signals in the main thread only
    # nohup ignores SIGHUP; leave it so.
    numbers = [each for each in numbers if signal.getsignal(each) is not signal.SIG_IGN]
    before = [signal.signal(each, _terminated) for each in numbers]
    try:
        yield
    finally:
        for each, handler in zip(numbers, before, strict=True):
            signal.signal(each, handler)


def _terminated(number: int, frame: object) -> NoReturn:
    raise TerminatedError("terminated", number)
