"""The hardware that a rank computes on: its device and its share of the CPU's cores."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator

import torch

from ..errors import ConfigError, ParallelismError
from . import environment
from .parallel import Parallel

__all__ = ["choose_device", "current_device", "is_lost", "rank_threads", "ranks_on", "threads_per_rank"]

_NOTHING = contextlib.nullcontext()


def choose_device(device: str | torch.device) -> torch.device:
    """This rank's device. "auto" takes cuda, then mps (one rank only), then cpu.

    Under a launcher, each rank of a machine takes the CUDA device with its LOCAL_RANK.

    Raises:
        ConfigError: an unknown name, or a device that this machine or torch build does not have.
        ParallelismError: more ranks on this machine than CUDA devices, or several ranks on mps.
    """
    chosen = _parsed(device)
    if chosen.type == "cpu":
        return torch.device("cpu")
    if chosen.type == "mps":
        return _mps(chosen)
    if chosen.type == "cuda":
        return _cuda(chosen)
    raise ConfigError(f"device {chosen.type!r} is not supported; use auto, cuda, mps or cpu")


def _parsed(device: str | torch.device) -> torch.device:
    if str(device) == "auto":
        if torch.cuda.is_available():
            device = "cuda"
        elif torch.backends.mps.is_available() and environment.world_size() == 1:
            device = "mps"
        else:
            device = "cpu"
    try:
        return torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"torch does not know the device {device!r}; use auto, cuda, cuda:N, mps or cpu"
        ) from error


def _mps(chosen: torch.device) -> torch.device:
    if not torch.backends.mps.is_available():
        raise ConfigError("device mps: this machine or torch build does not have it; use device='cpu'")
    ranks = environment.world_size()
    if ranks > 1:
        raise ParallelismError(f"{ranks} ranks cannot share one mps device; use one rank or device='cpu'")
    return chosen


def _cuda(chosen: torch.device) -> torch.device:
    if not torch.cuda.is_available():
        raise ConfigError("device cuda: torch finds no CUDA device; use device='cpu' or device='auto'")
    devices, ranks = torch.cuda.device_count(), environment.local_ranks()
    if ranks > devices:
        raise ParallelismError(
            f"{ranks} ranks on this machine, but only {devices} CUDA device(s);"
            f" launch with --nproc_per_node {devices} or pass device='cpu'"
        )
    local = environment.number("LOCAL_RANK", torch.cuda.current_device())
    index = chosen.index if chosen.index is not None else local
    if index >= devices:
        raise ConfigError(
            f"device cuda:{index} is not there: this machine has {devices}, numbered 0 to {devices - 1}"
        )
    return torch.device("cuda", index)


def current_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make a CUDA device the current one inside the block; nothing on others.

    Each thread has its own current device, at first cuda:0, and what names no device runs there: kernels that torch
    did not write, events, graphs.
    """
    return torch.cuda.device(device) if device.type == "cuda" else _NOTHING


def is_lost(device: torch.device) -> bool:
    """Whether a CUDA device computes nothing more for this process, to be asked after an error.

    After a kernel that read where nothing is, or that hit an assertion, CUDA gives the same error to every later call
    until the process ends. Having too little memory is no such error.
    """
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def ranks_on(device: torch.device, parallel: Parallel) -> int:
    """How many ranks of the launch compute on this very CUDA device. All ranks call it.

    A device is known by its UUID: its index means another one on another machine, or behind CUDA_VISIBLE_DEVICES.
    """
    if parallel.size * parallel.replicas == 1:
        return 1
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    name = f"{socket.gethostname()} {device}" if uuid is None else str(uuid)
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    return parallel.count_same(number, device)


def threads_per_rank(current: int, cores: int) -> int:
    """How many CPU threads this rank should use, given how many it uses now.

    torchrun sets OMP_NUM_THREADS=1 for several ranks unless the user set it. Only that default is overridden;
    a number that the user or the host program chose stays.
    """
    ranks = environment.local_ranks()
    torchrun_default = os.environ.get("OMP_NUM_THREADS") == "1" and current == 1
    if not environment.started_by_torchrun() or ranks == 1 or not torchrun_default:
        return current
    return max(1, cores // ranks)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def rank_threads(device: torch.device) -> Iterator[None]:
    """Give a CPU rank its share of the cores inside the block; restore the thread count afterwards."""
    before = torch.get_num_threads()
    # Asking for the cores is a call into the system, in every step.
    wanted = threads_per_rank(before, _cores()) if before == 1 and device.type == "cpu" else before
    if wanted != before:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        if wanted != before:
            torch.set_num_threads(before)
