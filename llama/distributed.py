"""Ranks: process groups, the device of a rank, collectives, threads per rank, rank-0 messages.

Knows torch.distributed and fairscale's group registry; knows nothing of models. One `Parallel` value
describes where a rank stands; layers and engine get it as an argument. World size 1 needs no process
group. Groups that `join` made are torn down by `leave`, at the latest when the interpreter ends; a
group that the host program made is used and left alone.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from fairscale.nn.model_parallel import initialize as fairscale_groups

from .errors import ConfigError, LlamaError, ParallelismError, RankError
from .printable import tell
from .shared import SharedMemory, meet

__all__ = [
    "Parallel",
    "choose_device",
    "host_parallel",
    "is_first_rank",
    "join",
    "leave",
    "local_ranks",
    "log",
    "rank_threads",
    "threads_per_rank",
    "world_size",
]

_MEETING_SECONDS = 20
# gloo beside NCCL carries Python objects and CPU tensors, and never waits for a busy GPU.
_BACKENDS = {"cuda": "cpu:gloo,cuda:nccl", "cpu": "gloo"}


@dataclass(frozen=True)
class Parallel:
    """Where this rank stands: rank `rank` of `size` that hold one model, replica `replica` of `replicas`.

    `group` joins the ranks of one model, `replica_group` the ranks with the same slice in every
    replica; each is None where it would hold this rank alone. `shared`: memory through which the ranks of the
    model exchange CPU tensors, where all of them are on one machine.
    """

    rank: int = 0
    size: int = 1
    group: Any = field(default=None, repr=False)
    replica: int = 0
    replicas: int = 1
    replica_group: Any = field(default=None, repr=False)
    shared: SharedMemory | None = field(default=None, repr=False)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum of x over the ranks of the model, in place."""
        if self.shared is not None and self.shared.takes(x):
            self.shared.sum(x)
        elif self.group is not None:
            dist.all_reduce(x, group=self.group)
        return x

    def all_gather_last(self, x: torch.Tensor) -> torch.Tensor:
        """The ranks' x (..., d) beside one another: (..., size * d)."""
        if self.group is None:
            return x
        if self.shared is not None and x.is_cpu:
            return torch.cat(list(self.shared.gather(x)), dim=-1)
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts, dim=-1)

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        """The x of the model's first rank, in place on all its ranks."""
        if self.shared is not None and x.is_cpu:
            self.shared.first(x)
        elif self.group is not None:
            dist.broadcast(x, src=dist.get_global_rank(self.group, 0), group=self.group)
        return x

    def give_up(self) -> None:
        """Say that this rank left a step that the other ranks of the model may be in, where that can be said.

        They fail then, instead of waiting for this process to end. The model cannot be used any more.
        """
        if self.shared is not None:
            self.shared.give_up()

    def on_any(self, flag: bool, device: torch.device) -> bool:
        """Whether a rank of the model says so; all of them ask at the same place. device: of this rank's model."""
        if self.size == 1:
            return flag
        return bool(self.all_reduce(torch.tensor([float(flag)], device=device)).item())

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
                dist.all_reduce(least, op=dist.ReduceOp.MIN, group=group)
        return None if int(least) == unlimited else int(least)

    def gather_replicas(self, value: Any) -> list[Any]:
        """The value (anything picklable) of every replica, in replica order, on every rank."""
        if self.replica_group is None:
            return [value]
        values: list[Any] = [None] * self.replicas
        dist.all_gather_object(values, value, group=self.replica_group)
        return values


def _environment(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else default


def world_size() -> int:
    """Ranks in the world: the host's process group if there is one, else what the launcher promised."""
    return dist.get_world_size() if dist.is_initialized() else _environment("WORLD_SIZE", 1)


def local_ranks() -> int:
    """Ranks that the launcher started on this machine."""
    return max(1, _environment("LOCAL_WORLD_SIZE", 1))


def is_first_rank() -> bool:
    """True on the one rank that speaks to people."""
    return (dist.get_rank() if dist.is_initialized() else _environment("RANK", 0)) == 0


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
        chosen.index if chosen.index is not None else _environment("LOCAL_RANK", torch.cuda.current_device())
    )
    if index >= devices:
        raise ConfigError(f"device cuda:{index} was asked for, but there are {devices} (0 to {devices - 1})")
    return torch.device("cuda", index)


class _World:
    """What this module made in torch.distributed, so that just this is torn down again.

    The default process group is global in torch, so its bookkeeping is too.
    """

    def __init__(self) -> None:
        self.made_default = False
        self.made = 0
        self.store: Any = None
        self.meeting: Any = None
        self.users = 0
        self.splits: dict[tuple[int, str], Parallel] = {}

    def start(self, device: torch.device) -> None:
        """Join the launcher's world, if no process group is there yet."""
        if dist.is_initialized():
            return
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise ParallelismError(
                f"WORLD_SIZE is {world_size()}, but {', '.join(missing)} is not set;"
                " launch with torchrun --nproc_per_node N, or unset WORLD_SIZE for a single rank"
            )
        if self.store is None:
            self.store, _, _ = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
        self.made += 1
        # A prefix of its own, or this group would find the addresses of one that is gone.
        prefix = f"llama/{self.made}"
        self.meeting = dist.PrefixStore(f"{prefix}/end", self.store)  # type: ignore[attr-defined]
        dist.init_process_group(
            _BACKENDS[device.type],
            store=dist.PrefixStore(prefix, self.store),  # type: ignore[attr-defined]
            rank=_environment("RANK", 0),
            world_size=world_size(),
            timeout=timedelta(minutes=30),
            device_id=device if device.type == "cuda" else None,
        )
        self.splits = {}
        self.made_default = True
        atexit.register(self.stop, at_exit=True)

    def split(self, size: int, device: torch.device) -> Parallel:
        """Groups of `size` consecutive ranks that hold one model each. Made once for each size."""
        # Named, since a host's own world may have a backend that reaches no CPU tensor.
        backend = _BACKENDS[device.type]
        if (size, backend) not in self.splits:
            world, rank = dist.get_world_size(), dist.get_rank()
            replicas = world // size
            group = replica_group = None
            # Every rank must take part in making every group, in the same order.
            if size > 1:
                for first in range(0, world, size):
                    made = dist.new_group(list(range(first, first + size)), backend=backend)
                    group = made if first <= rank < first + size else group
            if replicas > 1:
                for first in range(size):
                    made = dist.new_group(list(range(first, world, size)), backend=backend)
                    replica_group = made if rank % size == first else replica_group
            shared = None
            if group is not None and device.type == "cpu":
                shared = meet(group, rank % size, size, local_ranks() == world)
            self.splits[size, backend] = Parallel(
                rank % size, size, group, rank // size, replicas, replica_group, shared
            )
        return self.splits[size, backend]

    def stop(self, at_exit: bool = False, failed: bool = False) -> None:
        """Destroy what was made. All ranks meet first, or one that is still talking would abort.

        After a failure of this rank alone the others are not waited for: they wait for this rank.
        """
        splits, self.splits = self.splits, {}
        if not dist.is_initialized():
            self.made_default = False
            return
        failed = failed or (at_exit and alone(getattr(sys, "last_value", None)))
        if self.made_default:
            self.made_default = False
            if not failed:
                _meet(self.meeting, dist.get_rank(), dist.get_world_size())
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()
        else:
            for parallel in splits.values():
                for group in (parallel.group, parallel.replica_group):
                    if group is not None:
                        if not failed and dist.get_backend(group) == dist.Backend.GLOO:
                            dist.barrier(group)
                        dist.destroy_process_group(group)


def _meet(store: Any, rank: int, ranks: int) -> None:
    """Wait until all ranks are here, or for a while: a peer may have died, or stay away.

    Not a barrier of a process group: gloo's, monitored or not, keeps a rank for the group's whole
    timeout, deaf to Ctrl-C.
    """
    with contextlib.suppress(RuntimeError):  # the store may have gone with the process that held it
        store.set(f"left/{rank}", "")
        end = time.monotonic() + _MEETING_SECONDS
        while not store.check([f"left/{each}" for each in range(ranks)]) and time.monotonic() < end:
            time.sleep(0.01)


def alone(error: BaseException | None) -> bool:
    """Whether other ranks may not be there any more. The errors of this package strike all ranks alike, but one."""
    return error is not None and (not isinstance(error, LlamaError) or isinstance(error, RankError))


_WORLD = _World()


def host_parallel() -> Parallel:
    """The group that a host program set up through fairscale, or a single rank.

    Lets `Transformer(args)` be made directly, as code for the reference does.
    """
    if not fairscale_groups.model_parallel_is_initialized():
        return Parallel()
    size = fairscale_groups.get_model_parallel_world_size()
    replicas = fairscale_groups.get_data_parallel_world_size()
    return Parallel(
        fairscale_groups.get_model_parallel_rank(),
        size,
        fairscale_groups.get_model_parallel_group() if size > 1 else None,
        fairscale_groups.get_data_parallel_rank(),
        replicas,
        fairscale_groups.get_data_parallel_group() if replicas > 1 else None,
    )


def join(size: int, device: torch.device) -> Parallel:
    """This rank's place when `size` ranks hold one model; the rest of the world are replicas.

    Pair it with `leave`.

    Raises:
        ParallelismError: a world that is not a multiple of `size`, or no launcher around.
    """
    world = world_size()
    if world % size != 0:
        raise ParallelismError(
            f"{world} ranks cannot be shared out among models of {size} ranks;"
            f" launch a multiple of {size}, e.g. torchrun --nproc_per_node {size}"
        )
    if world == 1:
        return Parallel()
    parallel = host_parallel()
    if parallel.size != size or parallel.size * parallel.replicas != world:
        _WORLD.start(device)
        parallel = _WORLD.split(size, device)
    _WORLD.users += 1
    return parallel


def leave(parallel: Parallel, error: BaseException | None = None) -> None:
    """Give a `join` back; the last one tears down the groups that were made. All ranks call it.

    Args:
        error: what made this rank leave, if anything did.
    """
    if parallel.size * parallel.replicas == 1:
        return
    _WORLD.users -= 1
    if _WORLD.users == 0:
        _WORLD.stop(failed=alone(error))


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
