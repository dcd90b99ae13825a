"""How ranks come together and part: the launcher's world, the groups of models and replicas, the end of a program.

Knows torch.distributed and fairscale's group registry. Groups that `join` made are torn down by `leave`, at the latest
when the interpreter ends; a group that the host program made is used and left alone.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from fairscale.nn.model_parallel import initialize as fairscale_groups

from ..errors import LlamaError, ParallelismError, RankError
from . import launcher
from .agreement import FailureNotes, Health
from .devices import environment_number, local_ranks, world_size
from .groups import Group
from .parallel import Parallel
from .shared_memory import meet

__all__ = ["host_parallel", "join", "leave"]

# How long the end of a rank waits for that of the others; and where an error ends it that should strike all alike.
_MEETING_SECONDS = 20.0
_ERROR_SECONDS = 2.0
# gloo beside NCCL carries bytes and CPU tensors, and never waits for a busy GPU.
_BACKENDS = {"cuda": "cpu:gloo,cuda:nccl", "cpu": "gloo"}


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
        self.watching = 0
        self.splits: dict[tuple[int, str], Parallel] = {}

    def watch(self) -> None:
        """Look after the launcher, unless the world is the host program's, whose end is its own affair."""
        if self.made_default or not dist.is_initialized():
            self.watching += 1
            launcher.watch()

    def unwatch(self) -> None:
        """Take a `watch` back."""
        if self.watching:
            self.watching -= 1
            launcher.unwatch()

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
            rank=environment_number("RANK", 0),
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
            replicas, replica = world // size, rank // size
            name = f"rank {rank % size}" + (f" of replica {replica}" if replicas > 1 else "")
            models = [range(first, first + size) for first in range(0, world, size)]
            slices = [range(first, world, size) for first in range(size)]
            group = self._group("model", models, backend, name) if size > 1 else None
            replica_group = (
                self._group("replicas", slices, backend, f"replica {replica}") if replicas > 1 else None
            )
            shared = None
            if group is not None and device.type == "cpu":
                shared = meet(group, rank % size, size, local_ranks() == world)
            self.splits[size, backend] = Parallel(
                rank % size, size, group, replica, replicas, replica_group, shared
            )
        return self.splits[size, backend]

    def _group(self, kind: str, parts: list[range], backend: str, name: str) -> Group:
        """A group for each part -> this rank's. Every rank takes part in making all of them, in the same order."""
        found = None
        for part in parts:
            made = dist.new_group(list(part), backend=backend)
            if dist.get_rank() in part:
                notes = None
                if self.made_default:
                    prefix = f"{len(self.splits)}/{kind}/{part[0]}"
                    store = dist.PrefixStore(prefix, self.meeting)  # type: ignore[attr-defined]
                    notes = FailureNotes(store, part.index(dist.get_rank()), len(part))
                found = Group(made, Health(name, notes), ours=True)
        assert found is not None
        return found

    def stop(self, at_exit: bool = False, error: BaseException | None = None) -> None:
        """Destroy what was made. All ranks meet first, or one that is still talking would abort.

        After a failure of this rank alone the others are not waited for: they wait for this rank.
        """
        splits, self.splits = self.splits, {}
        if not dist.is_initialized():
            self.made_default = False
            return
        if error is None and at_exit:
            error = getattr(sys, "last_value", None)
        failed = alone(error)
        groups = []
        for parallel in splits.values():
            parallel.ended(error)
            groups += [group for group in (parallel.group, parallel.replica_group) if group and group.raw]
        if self.made_default:
            self.made_default = False
            seconds = 0.0 if failed else _MEETING_SECONDS if error is None else _ERROR_SECONDS
            _meet(self.meeting, dist.get_rank(), dist.get_world_size(), seconds)
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()
        else:
            for group in groups:
                if error is None and dist.get_backend(group.raw) == dist.Backend.GLOO:
                    dist.barrier(group.raw)
                dist.destroy_process_group(group.raw)
        for group in groups:
            group.raw = None


def _meet(store: Any, rank: int, ranks: int, seconds: float) -> None:
    """Say that this rank leaves, and wait until all do, or for a while: a peer may have died, or stay away.

    Not a barrier of a process group: gloo's, monitored or not, keeps a rank for the group's whole
    timeout, deaf to Ctrl-C.
    """
    with contextlib.suppress(RuntimeError):  # the store may have gone with the process that held it
        store.set(f"left/{rank}", "")
        end = time.monotonic() + seconds
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
        Group(fairscale_groups.get_model_parallel_group()) if size > 1 else None,
        fairscale_groups.get_data_parallel_rank(),
        replicas,
        Group(fairscale_groups.get_data_parallel_group()) if replicas > 1 else None,
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
    _WORLD.watch()
    if world == 1:
        return Parallel()
    try:
        parallel = host_parallel()
        if parallel.size != size or parallel.size * parallel.replicas != world:
            _WORLD.start(device)
            parallel = _WORLD.split(size, device)
    except BaseException:
        _WORLD.unwatch()
        raise
    _WORLD.users += 1
    return parallel


def leave(parallel: Parallel, error: BaseException | None = None) -> None:
    """Give a `join` back; the last one tears down the groups that were made. All ranks call it.

    Args:
        error: what made this rank leave, if anything did.
    """
    _WORLD.unwatch()
    if parallel.size * parallel.replicas == 1:
        return
    _WORLD.users -= 1
    if _WORLD.users == 0:
        _WORLD.stop(error=error)
