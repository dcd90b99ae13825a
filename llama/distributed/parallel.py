"""`Parallel`: a rank's place among those that hold one model, and the collectives between them.

Knows nothing of models. One `Parallel` value describes where a rank stands; layers and engine get it as an argument.
World size 1 needs no process group. How ranks come together and part is in world.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from ..errors import RankError
from .agreement import Step, words_of
from .groups import Group
from .shared_memory import SharedMemory

__all__ = ["Parallel"]


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
