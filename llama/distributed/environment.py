"""What the launcher told this process through environment variables: its rank, and how many there are.

torchrun sets all of them; Slurm and MPI set some. Where the host program has a process group already, that
group counts instead. Also `log`, since only one rank may print.
"""

from __future__ import annotations

import os
from functools import cache

import torch.distributed as dist

from ..printable import tell

__all__ = ["is_first_rank", "local_ranks", "log", "log_once", "number", "rank", "started_by_torchrun"]
__all__ += ["world_size"]


def number(name: str, default: int) -> int:
    """A non-negative integer from the environment, or the default if there is none."""
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else default


def rank() -> int:
    """This process's global rank."""
    return dist.get_rank() if dist.is_initialized() else number("RANK", 0)


def world_size() -> int:
    """Ranks in the whole launch, on all machines."""
    return dist.get_world_size() if dist.is_initialized() else number("WORLD_SIZE", 1)


def local_ranks() -> int:
    """Ranks that the launcher started on this machine."""
    return max(1, number("LOCAL_WORLD_SIZE", 1))


def started_by_torchrun() -> bool:
    """Whether the parent of this process is torchrun."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first_rank() -> bool:
    """Whether this is global rank 0, the only one that logs."""
    return rank() == 0


def log(message: str) -> None:
    """Print one line to stderr on global rank 0. stdout belongs to the host program."""
    if is_first_rank():
        tell(message)


@cache
def log_once(message: str) -> None:
    """`log` a line, the first time only."""
    log(message)
