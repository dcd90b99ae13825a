"""Collectives of CPU ranks on one machine through shared memory; csrc/ranks.c says how.

A sum of one token's row takes a few microseconds this way; gloo's way through a socket took 1.6 ms
on two cores (docs/log.md). Ranks on several machines, on GPUs, or without the compiled file use
their process group as ever.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from . import native

__all__ = ["SharedMemory", "meet"]

# Bytes of a slot; what is larger goes in pieces.
_SLOT = 1 << 20
_KINDS = {torch.float32: 0, torch.bfloat16: 1}
_AGAIN = -1
# Of each rank, as in csrc/ranks.c: number, process id; behind them, whether it gave up.
_HEADER = 128
_RANK = struct.Struct("=Qq?")


class SharedMemory:
    """The memory of one group of ranks. Every rank makes the same calls in the same order.

    Args:
        path: a file of the right size, the same for all ranks.
        rank, size: of the group.

    Each method raises RuntimeError where another rank's process has ended, or gave up.
    """

    def __init__(self, path: str, rank: int, size: int) -> None:
        library = native.ranks_library()
        assert library is not None
        self._library, self._rank, self._size = library, rank, size
        with open(path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._number = 0
        library.llama_ranks_enter(self._base, rank)

    @staticmethod
    def takes(x: torch.Tensor) -> bool:
        """Whether a sum can be taken of x."""
        return x.is_cpu and x.dtype in _KINDS and x.is_contiguous()

    def sum(self, x: torch.Tensor) -> None:
        """x becomes its sum over the ranks, added in float32 in rank order and rounded once."""
        item = x.element_size()
        for first in range(0, x.numel(), _SLOT // item):
            count = min(_SLOT // item, x.numel() - first)
            at = x.data_ptr() + first * item
            self._call(self._library.llama_ranks_sum, at, count, _KINDS[x.dtype])

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """(size, *x.shape): x of every rank."""
        x = x.contiguous()
        nbytes = x.numel() * x.element_size()
        out = x.new_empty(self._size, *x.shape)
        if nbytes <= _SLOT:
            self._call(self._library.llama_ranks_gather, x.data_ptr(), out.data_ptr(), nbytes)
            return out
        flat, parts = x.view(-1), out.view(self._size, -1)
        step = _SLOT // x.element_size()
        for first in range(0, flat.numel(), step):
            parts[:, first : first + step] = self.gather(flat[first : first + step])
        return out

    def first(self, x: torch.Tensor) -> None:
        """x becomes that of rank 0."""
        given = self.gather(x)[0]
        if self._rank:
            x.copy_(given)

    def give_up(self) -> None:
        """Let no other rank wait for this one any more: it left a step that the others are in the middle of."""
        self._memory[self._rank * _HEADER + _RANK.size - 1] = True

    def _call(self, function: Any, *arguments: int) -> None:
        self._number += 1
        code = _AGAIN
        write = 1
        while code == _AGAIN:  # between two tries Python hears of signals
            where = (self._base, self._rank, self._size, _SLOT, self._number)
            code = function(*where, *arguments, write)
            write = 0
            if code == _AGAIN:
                code = next((1 + rank for rank in range(self._size) if self._left(rank)), _AGAIN)
        if code:
            raise RuntimeError(f"rank {code - 1} of this model is gone; its own messages say why")

    def _left(self, rank: int) -> bool:
        """Whether a rank will not come to this collective, though the system still knows its process."""
        at = rank * _HEADER
        _, pid, gave_up = _RANK.unpack_from(self._memory, at)
        # Its number last: it may have come, and ended, since.
        return (gave_up or _is_zombie(pid)) and _RANK.unpack_from(self._memory, at)[0] < self._number


def meet(group: Any, rank: int, size: int, local: bool) -> SharedMemory | None:
    """Shared memory for the ranks of a group, or None where not all of them can have it. All ranks call it.

    Args:
        local: whether this rank knows all ranks to be on its machine.
    """
    library = native.ranks_library() if local else None
    name: list[Any] = [None]
    if rank == 0 and library is not None:
        with contextlib.suppress(OSError):
            name = [_make(library.llama_ranks_bytes(size, _SLOT))]
    made = name[0]
    try:
        dist.broadcast_object_list(name, src=dist.get_global_rank(group, 0), group=group)
        memory = None
        if name[0] is not None and library is not None:
            with contextlib.suppress(OSError, ValueError):
                memory = SharedMemory(name[0], rank, size)
        have: list[Any] = [None] * size
        dist.all_gather_object(have, memory is not None, group=group)
    finally:
        if made is not None:
            # Everybody has mapped it, or never will: nothing is left behind, whatever becomes of the ranks.
            with contextlib.suppress(OSError):
                os.unlink(made)
    return memory if all(have) else None


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended, but whoever started it has not looked yet: kill(2) does not tell."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    return False


def _make(nbytes: int) -> str:
    """A file of zeros in memory."""
    folder = "/dev/shm" if Path("/dev/shm").is_dir() else None
    descriptor, name = tempfile.mkstemp(prefix="llama-ranks-", dir=folder)
    try:
        # Taken now: memory that is not there would end a rank in the middle of a write.
        os.posix_fallocate(descriptor, 0, nbytes)
    except OSError:
        os.unlink(name)
        raise
    finally:
        os.close(descriptor)
    return name
