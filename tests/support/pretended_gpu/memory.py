"""How much of the pretended device's memory is taken, and what `torch.cuda` says of it."""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from .state import Gpu
from .tensor import GpuTensor

__all__ = ["Memory", "counted_memory"]


class Memory:
    """Bytes of the tensors that are there, on all devices: each piece of memory once, as long as a tensor is in it.

    What an operator takes for itself while it runs is not seen.
    """

    def __init__(self) -> None:
        self.taken = self.peak = 0
        self._tensors: Counter[int] = Counter()  # by piece of memory

    def enter(self, tensor: GpuTensor) -> None:
        """Count a tensor that was made."""
        storage = tensor.host.untyped_storage()
        piece, nbytes = storage._cdata, storage.nbytes()
        if not self._tensors[piece]:
            self.taken += nbytes
            self.peak = max(self.peak, self.taken)
        self._tensors[piece] += 1
        weakref.finalize(tensor, self._leave, piece, nbytes).atexit = False

    def _leave(self, piece: int, nbytes: int) -> None:
        self._tensors[piece] -= 1
        if not self._tensors[piece]:
            del self._tensors[piece]
            self.taken -= nbytes

    def forget_peak(self) -> None:
        """Let the peak count from here."""
        self.peak = self.taken


@contextlib.contextmanager
def counted_memory(gpu: Gpu) -> Iterator[Memory]:
    """Within it, tensors that are made take memory, and torch.cuda tells how much of `gpu.memory`."""
    memory, make = Memory(), GpuTensor.__init__

    def making(self: GpuTensor, *args: Any) -> None:
        make(self, *args)
        memory.enter(self)

    told = {
        "mem_get_info": lambda device=None: (gpu.memory - memory.taken, gpu.memory),
        "memory_allocated": lambda device=None: memory.taken,
        "memory_reserved": lambda device=None: memory.taken,
        "max_memory_allocated": lambda device=None: memory.peak,
        "reset_peak_memory_stats": lambda device=None: memory.forget_peak(),
    }
    with mock.patch.multiple(torch.cuda, **told), mock.patch.object(GpuTensor, "__init__", making):
        yield memory
