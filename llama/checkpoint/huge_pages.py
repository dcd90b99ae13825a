"""Memory pages: giving back pages of a mapped file, and moving weights into huge pages.

Both use Linux's madvise and do nothing on other systems.
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
# Collapses pages right away; Linux 6.1 and later. Python's mmap module has no name for it.
_MADV_COLLAPSE = 25
# Bytes of one call, so that the interpreter can exit between two calls.
_STEP = 32 << 20


def drop(address: int, length: int) -> None:
    """Tell the kernel that this process no longer needs a range of a mapped file (it stays cached).

    Only for memory mapped from a file: any other comes back as zeros.
    """
    first, last = _within(address, length, mmap.PAGESIZE)
    if first < last:
        _advise(first, last - first, mmap.MADV_DONTNEED)


def make_huge(x: torch.Tensor) -> threading.Thread | None:
    """Move a CPU tensor's memory into huge pages, in a background thread -> that thread, or None.

    Reading weights then takes a fifth less time (docs/log.md), because the CPU has fewer addresses to
    translate. It is done after loading, in the background: allocating huge pages from the start can take
    several times as long as loading, since a virtual machine may have to get each one from its host.
    """
    first, last = _within(x.data_ptr(), x.nbytes, _HUGE)
    if first >= last or not x.is_cpu or not sys.platform.startswith("linux"):
        return None

    def run(kept: torch.Tensor) -> None:  # the thread keeps the tensor alive, so its memory is not reused
        for at in range(first, last, _STEP):
            length = min(_STEP, last - at)
            if not _advise(at, length, _MADV_COLLAPSE):
                # An older kernel, or no huge page is free: the kernel's background thread may do it later.
                _advise(at, length, mmap.MADV_HUGEPAGE)

    thread = threading.Thread(target=run, args=(x,), name="llama-huge-pages", daemon=True)
    thread.start()
    return thread


def _within(address: int, length: int, page: int) -> tuple[int, int]:
    """The whole pages within a range: address of the first, and one past the last."""
    return -(-address // page) * page, (address + length) // page * page


def _advise(address: int, length: int, advice: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    done: int = _libc().madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), advice)
    return done == 0


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
