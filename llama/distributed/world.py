"""Makes and destroys the process groups of a launch: the world, the ranks of a model, the replicas.

Knows torch.distributed and fairscale's group registry. `leave` destroys the groups that `join` made, at the
latest when the interpreter exits. Groups that the host program made are used, and left alone.
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
from . import environment, launcher_watch
from .agreement import FailureNotes, Health, describe
from .groups import Group, destroy
from .parallel import Parallel
from .shared_memory import share_memory
from .silence import noticing_silence

__all__ = ["host_parallel", "join", "leave"]

# How long a rank that leaves waits for the others to leave too, and how long if an error made them all leave.
_MEETING_SECONDS = 20.0
_ERROR_SECONDS = 2.0
# With NCCL also gloo: it exchanges bytes and CPU tensors, and never waits for a busy GPU.
_BACKENDS = {"cuda": "cpu:gloo,cuda:nccl", "cpu": "gloo"}


class _World:
    """What this module made in torch.distributed, so that it destroys just that.

    There is one per process, since torch's default process group is global.
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
        """End with the launcher, unless the host program made the world and so decides when to end."""
        if self.made_default or not dist.is_initialized():
            self.watching += 1
            launcher_watch.watch()

    def unwatch(self) -> None:
        """Undo one `watch`."""
        if self.watching:
            self.watching -= 1
            launcher_watch.unwatch()

    def start(self, device: torch.device) -> None:
        """Initialize torch.distributed from the launcher's environment, unless it is initialized."""
        if dist.is_initialized():
            return
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise ParallelismError(
                f"WORLD_SIZE is {environment.world_size()}, but {', '.join(missing)} is not set;"
                " launch with torchrun --nproc_per_node N, or unset WORLD_SIZE for a single rank"
            )
        try:
            with noticing_silence():
                self._connect(device)
        except dist.DistError as error:
            raise RankError(
                f"rank {environment.rank()} could not connect to the others ({describe(error)});"
                " check that all launchers run, and that MASTER_ADDR and MASTER_PORT reach the first"
            ) from error
        self.splits = {}
        self.made_default = True
        atexit.register(self.stop, at_exit=True)

    def _connect(self, device: torch.device) -> None:
        if self.store is None:
            self.store, _, _ = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
        self.made += 1
        # Each world gets its own prefix, or it would find the addresses of an earlier one.
        prefix = f"llama/{self.made}"
        self.meeting = dist.PrefixStore(f"{prefix}/end", self.store)  # type: ignore[attr-defined]
        dist.init_process_group(
            _BACKENDS[device.type],
            store=dist.PrefixStore(prefix, self.store),  # type: ignore[attr-defined]
            rank=environment.rank(),
            world_size=environment.world_size(),
            timeout=timedelta(minutes=30),
            device_id=device if device.type == "cuda" else None,
        )

    def split(self, size: int, device: torch.device) -> Parallel:
        """Split the world into models of `size` consecutive ranks. The groups are made once per size."""
        # Named explicitly: the host program's default group may not support CPU tensors.
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
                shared = share_memory(group, rank % size, size, _on_one_machine(models[replica]))
            self.splits[size, backend] = Parallel(
                rank % size, size, group, replica, replicas, replica_group, shared
            )
        return self.splits[size, backend]

    def _group(self, kind: str, parts: list[range], backend: str, name: str) -> Group:
        """Make a group for each part -> this rank's. All ranks must make all groups, in the same order."""
        found = None
        for part in parts:
            with noticing_silence():
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
        """Destroy what was made. First wait for all ranks, since one that is still communicating would abort.

        A rank that failed alone does not wait: the others are waiting for it.
        """
        splits, self.splits = self.splits, {}
        if not dist.is_initialized():
            self.made_default = False
            return
        if error is None and at_exit:
            error = getattr(sys, "last_value", None)
        failed_alone = _may_be_alone(error)
        groups = []
        for parallel in splits.values():
            parallel.announce_leaving(error)
            groups += [group for group in (parallel.group, parallel.replica_group) if group and group.raw]
        if self.made_default:
            self.made_default = False
            seconds = 0.0 if failed_alone else _MEETING_SECONDS if error is None else _ERROR_SECONDS
            came = _wait_for_all(self.meeting, dist.get_rank(), dist.get_world_size(), seconds)
            with contextlib.suppress(RuntimeError):
                destroy(alone=failed_alone or not came)
        else:
            for group in groups:
                if error is None and dist.get_backend(group.raw) == dist.Backend.GLOO:
                    dist.barrier(group.raw)
                destroy(group.raw, alone=error is not None)
        for group in groups:
            group.raw = None


def _on_one_machine(ranks: range) -> bool:
    """Whether these ranks share a machine: torchrun gives each machine consecutive ranks, equally many."""
    local = environment.local_ranks()
    return ranks[0] // local == ranks[-1] // local


def _wait_for_all(store: Any, rank: int, ranks: int, seconds: float) -> bool:
    """Note that this rank leaves, and wait until all have, or for some seconds: another may have died -> whether all
    have.

    Not gloo's barrier: monitored or not, it blocks for the group's whole timeout and ignores Ctrl-C.
    """
    with contextlib.suppress(RuntimeError):  # the process that hosts the store may be gone
        store.set(f"left/{rank}", "")
        end = time.monotonic() + seconds
        while not (came := bool(store.check([f"left/{each}" for each in range(ranks)]))):
            if time.monotonic() > end:
                break
            time.sleep(0.01)
        return came
    return False


def _may_be_alone(error: BaseException | None) -> bool:
    """Whether perhaps only this rank raised it. All ranks raise this package's errors, except RankError."""
    return error is not None and (not isinstance(error, LlamaError) or isinstance(error, RankError))


_WORLD = _World()


def host_parallel() -> Parallel:
    """The model-parallel group that the host program made through fairscale, or a single rank.

    With it, code written for the reference can call `Transformer(args)` directly.
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
    """This rank's position, with models of `size` ranks each; more ranks are replicas. Pair it with `leave`.

    Raises:
        ParallelismError: the world size is not a multiple of `size`, or the launcher's variables are missing.
        RankError: the ranks could not connect.
    """
    world = environment.world_size()
    if world % size != 0:
        raise ParallelismError(
            f"{world} ranks cannot be divided into models of {size} ranks each;"
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
    """Undo one `join`; the last one destroys the groups that were made. All ranks call it.

    Args:
        error: the error that made this rank leave, if one did.
    """
    _WORLD.unwatch()
    if parallel.size * parallel.replicas == 1:
        return
    _WORLD.users -= 1
    if _WORLD.users == 0:
        _WORLD.stop(error=error)
