"""Replaces one folder by another: in one step where the system can, and uninterrupted by signals."""

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

# Constants of Linux' renameat2(2).
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def take_name(new: Path, old: Path, aside: Path) -> Path:
    """Give the folder `new` the name of the folder `old` -> where the old folder is now.

    All three paths must have the same parent. Where the system and file system support it, the two exchange
    their names in one step. Otherwise it takes two renames: the first moves the old folder to `aside`, and is
    undone if the second fails. Call it within `uninterrupted`. A process killed between the two renames
    leaves `aside`.

    Raises:
        OSError: nothing was renamed.
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
    """Exchange two names in one step -> whether it was done; False if that is not supported here.

    Raises:
        OSError: it failed for a reason that would make two renames fail too.
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
    """Postpone SIGINT, SIGTERM and SIGHUP to the end of the block: a few short steps that belong together.

    Python handles signals in the main thread only; in another thread this does nothing.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def later(number: int, _: Any) -> None:
        came.append(number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # None: a handler that was not set by Python, which cannot be restored.
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
