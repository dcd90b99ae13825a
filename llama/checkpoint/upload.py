"""Weights on their way to a CUDA device: two pinned buffers, one of which is filled while the other is copied."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["Upload"]

# Bytes of a buffer: long enough that a copy runs at the bus's full speed. Pinned memory is taken from everyone.
_BUFFER = 16 << 20


class Upload:
    """Fills tensors of a CUDA device by asynchronous copies. `finish` waits for the last of them.

    Args:
        device: that the tensors are on.
        nbytes: of each of the two buffers. A longer row gets longer ones.
    """

    def __init__(self, device: torch.device, nbytes: int = _BUFFER) -> None:
        self._nbytes = nbytes
        self._buffers: list[torch.Tensor] = []
        self._copied = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._stream = torch.cuda.current_stream(device)
        self._turn = 0

    def fill(self, target: torch.Tensor, read: Callable[[torch.Tensor, int, int], None]) -> None:
        """Fill a tensor, some rows at a time.

        Args:
            read: is given a tensor of the CPU, and the first and last row of `target` that it has to put there.
        """
        row = target[:1].nbytes
        if not self._buffers or row > len(self._buffers[0]):
            self.finish()
            size = max(self._nbytes, row)
            self._buffers = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        step = len(self._buffers[0]) // row
        for first in range(0, len(target), step):
            last = min(first + step, len(target))
            copied = self._copied[self._turn]
            copied.synchronize()  # the buffer's last copy; the first time there is none to wait for
            part = target[first:last]
            block = self._buffers[self._turn][: part.nbytes].view(target.dtype).view(part.shape)
            read(block, first, last)
            part.copy_(block, non_blocking=True)
            copied.record(self._stream)
            self._turn = 1 - self._turn

    def finish(self) -> None:
        """Wait until all copies have arrived."""
        for copied in self._copied:
            copied.synchronize()
