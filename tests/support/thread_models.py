"""A model on several ranks that are threads of this process: sums and gathers without process groups."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from llama.distributed.parallel import Parallel

__all__ = ["on_ranks"]

# A guard against hanging, should one of the threads fail.
_LIMIT = 60.0


@dataclass(frozen=True)
class _Meeting:
    barrier: threading.Barrier
    slots: dict[int, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _ThreadParallel(Parallel):
    meeting: Any = field(default=None, repr=False)

    def _all(self, x: torch.Tensor) -> list[torch.Tensor]:
        meeting: _Meeting = self.meeting
        meeting.slots[self.rank] = x.clone()
        meeting.barrier.wait(_LIMIT)
        found = [meeting.slots[rank] for rank in range(self.size)]
        meeting.barrier.wait(_LIMIT)
        return found

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x.copy_(torch.stack(self._all(x)).float().sum(0))

    def all_gather_last(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._all(x), -1)


def on_ranks(size: int, work: Callable[[Parallel], Any]) -> list[Any]:
    """What each rank's work returns."""
    if size == 1:
        return [work(Parallel())]
    meeting = _Meeting(threading.Barrier(size))
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, [_ThreadParallel(rank, size, meeting=meeting) for rank in range(size)]))
