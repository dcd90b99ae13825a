"""What a part measures with: the device, its free memory, rounds, and where figures go."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .figures import Figure

__all__ = ["Workplace", "seconds"]


@dataclass(frozen=True)
class Workplace:
    """Handed to each part.

    Attributes:
        tiny: the GPU is pretended, so shapes and rounds are as small as they can be.
        emit: takes each figure as soon as it is there.
        lacks: takes what could not be measured here, and why.
    """

    device: torch.device
    tiny: bool
    emit: Callable[[Figure], None]
    lacks: Callable[[str], None]

    def free(self) -> int:
        """Bytes that are free on the device, once what nobody uses is given back."""
        gc.collect()
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.device)[0])

    def rounds(self, count: int) -> int:
        return 2 if self.tiny else count


def seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """Wall time of one of several runs behind one another, from an idle device to an idle device."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats
