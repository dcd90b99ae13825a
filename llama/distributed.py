"""Ranks: where one stands and its collectives, its device, threads per rank, rank-0 messages.

Knows nothing of models. One `Parallel` value describes where a rank stands; layers and engine get it as an argument.
World size 1 needs no process group. How ranks come together and part is in world.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from .agreement import Step, words_of
from .errors import ConfigError, ParallelismError, RankError
from .groups import Group
from .printable import tell
from .shared import SharedMemory

__all__ = [
    "Parallel",
    "choose_device",
    "environment_number",
    "is_first_rank",
    "local_ranks",
    "log",
    "rank_threads",
    "threads_per_rank",
    "world_size",
]


@dataclass(frozen=True)
class Parallel:
    """Where this rank stands: rank `rank` of `size` that hold one model, replica `replica` of `replicas`.

    `group` joins the ranks of one model, `replica_group` the ranks with the same slice in every
    replica; each is None where it would hold this rank alone. `shared`: memory through which the ranks of the
    model exchange CPU tensors, where all of them are on one machine.

    Collectives raise RankError where another rank is gone, gave up, or does something else. The model cannot be used
    any more then, and every later step and collective says why (agreement.py).
    """

    rank: int = 0
    size: int = 1
    group: Group | None = field(default=None, repr=False)
    replica: int = 0
    replicas: int = 1
    replica_group: Group | None = field(default=None, repr=False)
    shared: SharedMemory | None = field(default=None, repr=False)

    def begin(self, step: Step, device: torch.device) -> None:
        """Say what this rank is about to run; raises RankError, here or in the step's collectives, if others differ."""
        if self.group is not None:
            self.group.health.check()
            if self.shared is not None:
                self.shared.begin(step)
            else:
                self.group.agree(step, device)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum of x over the ranks of the model, in place."""
        if self.shared is not None and self.shared.takes(x):
            self.shared.sum(x)
        elif self.group is not None:
            self.group.all_reduce(x)
        return x

    def all_gather_last(self, x: torch.Tensor) -> torch.Tensor:
        """The ranks' x (..., d) beside one another: (..., size * d)."""
        if self.group is None:
            return x
        if self.shared is not None and x.is_cpu:
            return torch.cat(list(self.shared.gather(x)), dim=-1)
        return torch.cat(self.group.all_gather(x), dim=-1)

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        """The x of the model's first rank, in place on all its ranks."""
        if self.shared is not None and x.is_cpu:
            self.shared.first(x)
        elif self.group is not None:
            self.group.broadcast(x)
        return x

    def give_up(self, reason: str) -> None:
        """Say that this rank left a step that the other ranks of the model may be in.

        They fail with this reason then, instead of waiting for the end of its process. The first reason counts.
        """
        if self.shared is not None:
            self.shared.give_up(reason)
        elif self.group is not None:
            self.group.give_up(reason)

    def failed(self, error: BaseException) -> RankError:
        """`give_up` for an error that struck this rank, and perhaps no other -> what other ranks raise."""
        if self.group is None:
            return RankError(words_of(error))
        health = self.group.health
        health.fail_alone(error)
        self.give_up(health.failure or "")
        return health.error()

    def ended(self, error: BaseException | None) -> None:
        """Let no rank wait for this one, which gives its groups back, after an error or without one."""
        words = "has closed this model" if error is None else f"has left with {words_of(error)}"
        for group in (self.group, self.replica_group):
            if group is not None:
                group.health.fail(f"{group.health.name} {words}")
        if self.shared is not None:
            self.shared.give_up(words)

    def on_any(self, flag: bool, device: torch.device) -> bool:
        """Whether a rank of the model says so; all of them ask at the same place. device: of this rank's model."""
        if self.group is None:
            return flag
        if self.shared is None:
            return self.group.on_any(flag, device)
        return bool(self.all_reduce(torch.tensor([float(flag)])).item())

    def smallest(self, value: int | None, device: torch.device) -> int | None:
        """The smallest value among all ranks of all replicas; None (no limit) where all say so.

        device: of this rank's model; the groups of a host program may reach no other.
        """
        if self.group is None and self.replica_group is None:
            return value
        unlimited = torch.iinfo(torch.int64).max
        least = torch.tensor([unlimited if value is None else value], device=device)
        for group in (self.group, self.replica_group):
            if group is not None:
                group.all_reduce(least, dist.ReduceOp.MIN)
        return None if int(least) == unlimited else int(least)


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
