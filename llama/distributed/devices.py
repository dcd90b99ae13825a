"""What the launcher says of this rank: its device, its CPU threads, whether it is the one that logs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist

from ..errors import ConfigError, ParallelismError
from ..printable import tell

__all__ = [
    "choose_device",
    "environment_number",
    "is_first_rank",
    "local_ranks",
    "log",
    "rank_threads",
    "threads_per_rank",
    "world_size",
]


def environment_number(name: str, default: int) -> int:
    """A number that the launcher set, or the default."""
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else default


def world_size() -> int:
    """Ranks in the world: the host's process group if there is one, else what the launcher promised."""
    return dist.get_world_size() if dist.is_initialized() else environment_number("WORLD_SIZE", 1)


def local_ranks() -> int:
    """Ranks that the launcher started on this machine."""
    return max(1, environment_number("LOCAL_WORLD_SIZE", 1))


def is_first_rank() -> bool:
    """True on the one rank that speaks to people."""
    return (dist.get_rank() if dist.is_initialized() else environment_number("RANK", 0)) == 0


def log(message: str) -> None:
    """One line on stderr, from rank 0 only: stdout belongs to the host program."""
    if is_first_rank():
        tell(message)


def choose_device(device: str | torch.device) -> torch.device:
    """This rank's device. "auto" takes cuda, then mps (one rank only), then cpu.

    Under a launcher each rank of a machine takes the CUDA device of its LOCAL_RANK.

    Raises:
        ConfigError: an unknown name, or a device that this machine or torch build does not have.
        ParallelismError: more ranks on this machine than CUDA devices.
    """
    if str(device) == "auto":
        if torch.cuda.is_available():
            device = "cuda"
        elif torch.backends.mps.is_available() and world_size() == 1:
            device = "mps"
        else:
            device = "cpu"
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"device {device!r} is not known to torch; use auto, cuda, cuda:N, mps or cpu"
        ) from error
    if chosen.type == "cpu":
        return torch.device("cpu")
    if chosen.type == "mps":
        if not torch.backends.mps.is_available():
            raise ConfigError(
                "device mps was asked for, but this machine or torch build has none; use device='cpu'"
            )
        if world_size() > 1:
            raise ParallelismError(
                f"{world_size()} ranks cannot share one mps device; use one rank or device='cpu'"
            )
        return chosen
    if chosen.type != "cuda":
        raise ConfigError(f"device {chosen.type!r} is not supported; use auto, cuda, mps or cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "device cuda was asked for, but torch sees no CUDA device; use device='cpu' or device='auto'"
        )
    devices = torch.cuda.device_count()
    if local_ranks() > devices:
        raise ParallelismError(
            f"{local_ranks()} ranks on this machine, but it has {devices} CUDA device(s);"
            f" launch with --nproc_per_node {devices} or pass device='cpu'"
        )
    index = (
        chosen.index
        if chosen.index is not None
        else environment_number("LOCAL_RANK", torch.cuda.current_device())
    )
    if index >= devices:
        raise ConfigError(f"device cuda:{index} was asked for, but there are {devices} (0 to {devices - 1})")
    return torch.device("cuda", index)


def threads_per_rank(environment: Mapping[str, str], current: int, cores: int) -> int:
    """CPU threads that this rank should use.

    torchrun gives each of several ranks OMP_NUM_THREADS=1 where the user set nothing. Only that
    default is overruled: a number that the user or the host program chose is kept.
    """
    launched = "TORCHELASTIC_RUN_ID" in environment
    ranks = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    if not launched or ranks == 1 or environment.get("OMP_NUM_THREADS") != "1" or current != 1:
        return current
    return max(1, cores // ranks)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def rank_threads(device: torch.device) -> Iterator[None]:
    """Within it, a CPU rank uses its share of the cores; after it, the number of threads is as before."""
    before = torch.get_num_threads()
    wanted = threads_per_rank(os.environ, before, _cores()) if device.type == "cpu" else before
    if wanted != before:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        if wanted != before:
            torch.set_num_threads(before)
