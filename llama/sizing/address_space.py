"""How large a cache the system lets a process reserve, on a CPU.

A pool's memory is taken as tokens come, but reserved from the start. A process with a limit of address space
(`ulimit -v`), or on a system that counts what is reserved (vm.overcommit_memory=2), may get less than there is free.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from ..distributed.parallel import Parallel
from ..errors import OutOfMemoryError

__all__ = ["reservable"]

# Halvings between what can be reserved and what cannot: the result is right to a 64th of what was asked for.
_HALVINGS = 6
# Bytes that must be left beside the cache, for steps and threads; at least a quarter of the cache.
_BESIDE = 512 << 20


def reservable(
    tokens: int,
    least: int,
    per_token: int,
    reserve: Callable[[int], object],
    parallel: Parallel,
    device: torch.device,
) -> int:
    """How many of these tokens of cache all ranks can reserve, with room for steps beside it; the same on all ranks.

    On a CPU alone: elsewhere, all of them.

    Args:
        least: the result if not even so many can be.
        per_token: bytes of a token.
        reserve: reserves memory for so many tokens, as long as its result is held. OutOfMemoryError if that cannot be.
    """
    if device.type != "cpu":
        return tokens

    def works(count: int) -> bool:
        held: object = None
        with contextlib.suppress(OutOfMemoryError):
            held = reserve(count + max(count // 4, _BESIDE // per_token))
        # Held until all ranks have tried: together they may be too many.
        found = parallel.smallest(int(held is not None), device)
        del held
        return found == 1

    if works(tokens):
        return tokens
    low, high = min(least, tokens), tokens
    for _ in range(_HALVINGS):
        middle = (low + high) // 2
        low, high = (middle, high) if works(middle) else (low, middle)
    return low
