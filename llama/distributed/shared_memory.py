"""Collectives of CPU ranks on one machine through shared memory. csrc/ranks.c has the protocol.

An all-reduce of one token's row takes a few microseconds this way; gloo, through a socket, took 1.6 ms on two
cores (docs/log.md). Ranks on several machines, on GPUs, or without the compiled kernels use a process group.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..kernels.collectives import library as compiled_collectives
from .agreement import Health, Step, disagreement, first_difference, gone

if TYPE_CHECKING:
    from .groups import Group

__all__ = ["SharedMemory", "share_memory"]

# Bytes that a rank exchanges at a time; larger tensors go in pieces.
_SLOT = 1 << 20
_KINDS = {torch.float32: 0, torch.bfloat16: 1}
_GATHER, _FIRST = 2, 3
_NAMES = ("a sum in float32", "a sum in bfloat16", "a gather", "a broadcast")
# What a compiled collective returns, beside 0 (done) and 1 + rank (that rank is gone): call it again; the
# ranks are not in the same collective.
_AGAIN, _DIFFER = -1, -2
# Each rank's header, as csrc/ranks.c lays it out: number of its collective, two times three words that
# describe it, process id, whether it gave up, and the reason.
_HEADER = 1024
_RANK = struct.Struct("=Q48xq?")
_WORDS = struct.Struct("=QQQ")
_WORDS_AT = 8
_NOTE_AT = 128


class SharedMemory:
    """Memory that one group of ranks shares. All ranks make the same calls in the same order.

    Args:
        path: a file of the right size, the same for all ranks.
        rank, size: this rank's number in the group, and how many there are.
        health: this rank's health. A collective that fails ends it.

    Each collective raises RankError if another rank's process has ended, if a rank gave up (with its reason),
    and if the ranks are not in the same collective of the same step. The memory is of no use afterwards.
    """

    def __init__(self, path: str, rank: int, size: int, health: Health | None = None) -> None:
        library = compiled_collectives()
        assert library is not None
        self._library, self._rank, self._size = library, rank, size
        self.health = Health(f"rank {rank}") if health is None else health
        with open(path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._number = 0
        self._step = self._extent = 0
        library.llama_ranks_enter(self._base, rank)

    def begin(self, step: Step) -> None:
        """Set the step of the next collectives. They fail on all ranks if it is not the same on all."""
        self._step = step.digest
        self._extent = step.sequences << 32 | step.tokens

    @staticmethod
    def takes(x: torch.Tensor) -> bool:
        """Whether `sum` can reduce x."""
        return x.is_cpu and x.dtype in _KINDS and x.is_contiguous()

    def sum(self, x: torch.Tensor) -> None:
        """All-reduce x in place: summed in float32, in rank order, rounded once."""
        item, kind = x.element_size(), _KINDS[x.dtype]
        what = _code(kind, x)
        for first in range(0, x.numel(), _SLOT // item):
            count = min(_SLOT // item, x.numel() - first)
            self._call(self._library.llama_ranks_sum, what, x.data_ptr() + first * item, count, kind)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """The x of every rank, stacked: (size, *x.shape)."""
        return self._gather(x, _code(_GATHER, x))

    def first(self, x: torch.Tensor) -> None:
        """Overwrite x with rank 0's."""
        given = self._gather(x, _code(_FIRST, x))[0]
        if self._rank:
            x.copy_(given)

    def give_up(self, reason: str) -> None:
        """Tell the other ranks not to wait for this one: it left a step that they may still be in."""
        self.health.fail(reason)
        assert self.health.failure is not None
        at = self._rank * _HEADER
        note = self.health.failure.encode()[: _HEADER - _NOTE_AT - 1] + b"\0"
        if not self._memory[at + _RANK.size - 1]:
            self._memory[at + _NOTE_AT : at + _NOTE_AT + len(note)] = note
            self._memory[at + _RANK.size - 1] = True

    def _gather(self, x: torch.Tensor, what: int) -> torch.Tensor:
        x = x.contiguous()
        nbytes = x.numel() * x.element_size()
        out = x.new_empty(self._size, *x.shape)
        if nbytes <= _SLOT:
            self._call(self._library.llama_ranks_gather, what, x.data_ptr(), out.data_ptr(), nbytes)
            return out
        flat, parts = x.view(-1), out.view(self._size, -1)
        step = _SLOT // x.element_size()
        for first in range(0, flat.numel(), step):
            parts[:, first : first + step] = self._gather(flat[first : first + step], what)
        return out

    def _call(self, function: Any, what: int, *arguments: int) -> None:
        if self.health.failure is not None:
            raise self.health.error()
        try:
            self._number += 1
            where = (self._base, self._rank, self._size, _SLOT, self._number, what, self._step, self._extent)
            code = function(*where, *arguments, 1)
            while code == _AGAIN:  # back in Python from time to time, so that signals are handled
                code = next((1 + rank for rank in range(self._size) if self._left(rank)), _AGAIN)
                code = function(*where, *arguments, 0) if code == _AGAIN else code
        except BaseException as error:
            # The others have done this collective, or wait in it.
            self.give_up(f"{self.health.name} left a collective: {type(error).__name__}")
            raise
        if code:
            self.give_up(self._difference() if code == _DIFFER else self._reason(code - 1))
            raise self.health.error()

    def _left(self, rank: int) -> bool:
        """Whether a rank will never join this collective: it gave up, or it is a zombie."""
        at = rank * _HEADER
        _, pid, gave_up = _RANK.unpack_from(self._memory, at)
        # Read its number last: it may have joined, and ended, in the meantime.
        return (gave_up or _is_zombie(pid)) and _RANK.unpack_from(self._memory, at)[0] < self._number

    def _reason(self, rank: int) -> str:
        """Why a rank does not come."""
        at = rank * _HEADER
        note = bytes(self._memory[at + _NOTE_AT : at + _HEADER]).partition(b"\0")[0].decode(errors="replace")
        return note if _RANK.unpack_from(self._memory, at)[2] and note else gone(rank)

    def _difference(self) -> str:
        """The reason when the ranks are not in the same collective."""
        at = _WORDS_AT + (self._number & 1) * _WORDS.size
        rows = [_WORDS.unpack_from(self._memory, rank * _HEADER + at) for rank in range(self._size)]
        other = first_difference(rows)
        assert other is not None
        return disagreement(0, _named(*rows[0]), other, _named(*rows[other]))


def share_memory(group: Group, rank: int, size: int, local: bool) -> SharedMemory | None:
    """Shared memory for the ranks of a group, or None unless all of them could map it. All ranks call it.

    Args:
        local: whether all ranks of the group are on this machine, as far as this rank knows.
    """
    library = compiled_collectives() if local else None
    made = b""
    if rank == 0 and library is not None:
        with contextlib.suppress(OSError):
            made = os.fsencode(_make(library.llama_ranks_bytes(size, _SLOT)))
    try:
        name = group.gather_bytes(made)[0]
        memory = None
        if name and library is not None:
            with contextlib.suppress(OSError, ValueError):
                memory = SharedMemory(os.fsdecode(name), rank, size, group.health)
        have = group.gather_bytes(b"" if memory is None else b"!")
    finally:
        if made:
            # Every rank has mapped the file, or never will. Without a name it is freed with the last process.
            with contextlib.suppress(OSError):
                os.unlink(made)
    return memory if all(have) else None


def _code(kind: int, x: torch.Tensor) -> int:
    """A collective as one number: its kind, and the bytes of all its pieces."""
    return x.numel() * x.element_size() << 8 | kind


def _named(what: int, digest: int, extent: int) -> str:
    """The same for people, with the step it belongs to."""
    collective = f"{_NAMES[what & 255]} of {what >> 8:,} bytes"
    return f"{collective} in {Step(digest, extent >> 32, extent & 0xFFFFFFFF)}" if digest else collective


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended but its parent has not reaped it yet, which kill(2) does not show."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    return False


def _make(nbytes: int) -> str:
    """Create a file of zeros, in memory if possible -> its path."""
    folder = "/dev/shm" if Path("/dev/shm").is_dir() else None
    descriptor, name = tempfile.mkstemp(prefix="llama-ranks-", dir=folder)
    try:
        # Reserve it now: if memory ran out later, a rank would be killed in the middle of a write.
        os.posix_fallocate(descriptor, 0, nbytes)
    except OSError:
        os.unlink(name)
        raise
    finally:
        os.close(descriptor)
    return name
