"""A folder takes the name of another: in one step where there is one, and never half done for a signal."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["take_name", "uninterrupted"]

# Of Linux' renameat2(2).
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def take_name(new: Path, old: Path, aside: Path) -> Path:
    """The folder `new` gets the name of the folder `old`; all three names are of one folder -> where the old one is.

    In one step where system and file system know one: the two exchange their names. Else in two renames, of which the
    first puts the old one `aside` and is undone if the second fails; call it within `uninterrupted`. A process that is
    killed between the two leaves `aside`.

    Raises:
        OSError: both are as they were.
    """
    if _exchange(new, old):
        return new
    old.rename(aside)
    try:
        new.rename(old)
    except BaseException:
        aside.rename(old)
        raise
    return aside


def _exchange(first: Path, second: Path) -> bool:
    """Whether two names were exchanged at once; False where that is not to be had.

    Raises:
        OSError: they could not be exchanged for a reason that two renames would meet as well.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    names = os.fsencode(first), os.fsencode(second)
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), os.fspath(second))


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that would end the process, or raise, do so behind it: for steps that take a moment together.

    Only the main thread gets them; in another one nothing changes.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def later(number: int, _: Any) -> None:
        came.append(number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # None: a handler that is not Python's, which cannot be put back.
    before = {each: signal.getsignal(each) for each in numbers}
    before = {each: handler for each, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    try:
        for each in before:
            signal.signal(each, later)
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for number in dict.fromkeys(came):
            signal.raise_signal(number)
