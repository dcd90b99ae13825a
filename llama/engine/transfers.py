"""What a step needs on a CUDA device goes there in one copy, and what it decided comes back in one.

Copies are asynchronous and go through pinned memory, so the host waits once in a step: for the packet that comes back.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["Transfers"]

# Bytes at a multiple of which each array begins: what a view of any dtype needs, and what kernels read at once.
_ALIGNED = 16
# Bytes of the first buffers. They grow to the next power of two.
_SMALLEST = 1 << 12
_DTYPES = {
    np.dtype(f"{each}".removeprefix("torch.")): each for each in (torch.int64, torch.float64, torch.float32)
}


class Transfers:
    """The buffers of a device, on both sides.

    Args:
        device: a CUDA device. It is the current one whenever a method is called.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # Two of them in turn: one step can be prepared while the copy of the step before waits for its turn.
        self._hosts = [_pinned(_SMALLEST, torch.uint8) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._turn = 0
        self._there = torch.empty(_SMALLEST, dtype=torch.uint8, device=device)
        self._back = _pinned(_SMALLEST, torch.float32)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def send(self, arrays: Sequence[np.ndarray[Any, Any]]) -> list[torch.Tensor]:
        """Copy arrays of int64, float64 or float32 to the device at once -> the same there, until the next call.

        Arrays of the same shapes are at the same addresses each time, so that work on them can be recorded and
        repeated.
        """
        sizes = [-(-each.nbytes // _ALIGNED) * _ALIGNED for each in arrays]
        starts = [0, *itertools.accumulate(sizes)]
        total = starts.pop()
        turn = self._turn = 1 - self._turn
        copied = self._copied[turn]
        # Done long ago, unless two steps in a row had nothing to bring back.
        if not copied.query():  # type: ignore[no-untyped-call]
            copied.synchronize()
        if total > len(self._there):
            self._there = torch.empty(_room(total), dtype=torch.uint8, device=self.device)
        if total > len(self._hosts[turn]):
            self._hosts[turn] = _pinned(_room(total), torch.uint8)
        host = self._hosts[turn]
        memory = host.numpy()
        for start, each in zip(starts, arrays, strict=True):
            memory[start : start + each.nbytes].view(each.dtype).reshape(each.shape)[...] = each
        self._there[:total].copy_(host[:total], non_blocking=True)
        copied.record(torch.cuda.current_stream(self.device))
        return [
            self._there[start : start + each.nbytes].view(_DTYPES[each.dtype]).view(each.shape)
            for start, each in zip(starts, arrays, strict=True)
        ]

    def fetch(self, packet: torch.Tensor) -> list[list[float]]:
        """Wait for rows of float32, and for all work before them -> the rows."""
        if packet.numel() > len(self._back):
            self._back = _pinned(_room(packet.numel()), torch.float32)
        back = self._back[: packet.numel()].view(packet.shape)
        back.copy_(packet, non_blocking=True)
        self._arrived.record(torch.cuda.current_stream(self.device))
        self._arrived.synchronize()
        rows: list[list[float]] = back.tolist()
        return rows


def _pinned(size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(size, dtype=dtype, device="cpu", pin_memory=True)


def _room(size: int) -> int:
    """The next power of two, so that buffers grow a few times only."""
    return 1 << (size - 1).bit_length()
