"""Pages of memory: giving mapped ones back, and turning small ones into huge ones.

Both are advice to Linux and do nothing elsewhere; what is stored never changes.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from functools import cache

import torch

__all__ = ["drop", "make_huge"]

_HUGE = 2 << 20
# madvise's number for collapsing right away, Linux 6.1 and later; Python's mmap does not name it.
_MADV_COLLAPSE = 25
# Bytes of one call: the interpreter may end between two of them.
_STEP = 32 << 20


def drop(address: int, length: int) -> None:
    """Tell the kernel that a mapped range of a file is no longer needed here (it stays in the page cache)."""
    first, last = _within(address, length, mmap.PAGESIZE)
    if first < last:
        _advise(first, last - first, mmap.MADV_DONTNEED)


def make_huge(x: torch.Tensor) -> threading.Thread | None:
    """Move a CPU tensor's memory into huge pages, in a thread of its own -> that thread, or None.

    Reading weights takes a fifth less time then (docs/log.md), since the CPU looks up fewer addresses. It
    is done after loading and beside it, because taking huge pages from the start can cost several times the
    time of loading: a virtual machine may have to get each of them from its host first.
    """
    first, last = _within(x.data_ptr(), x.nbytes, _HUGE)
    if first >= last or not x.is_cpu or not sys.platform.startswith("linux"):
        return None

    def run(kept: torch.Tensor) -> None:  # the thread holds the tensor, so the memory stays its own
        for at in range(first, last, _STEP):
            length = min(_STEP, last - at)
            if not _advise(at, length, _MADV_COLLAPSE):
                # An older kernel, or no huge page free now: its own background thread may do it later.
                _advise(at, length, mmap.MADV_HUGEPAGE)

    thread = threading.Thread(target=run, args=(x,), name="llama-huge-pages", daemon=True)
    thread.start()
    return thread


def _within(address: int, length: int, page: int) -> tuple[int, int]:
    """The whole pages of a range: first address, and the one behind the last."""
    return -(-address // page) * page, (address + length) // page * page


def _advise(address: int, length: int, advice: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    done: int = _libc().madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), advice)
    return done == 0


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
