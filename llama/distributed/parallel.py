"""`Parallel`: a rank's position among those that hold one model, and the collectives between them.

A plain value that layers and engine take as an argument. Knows nothing of models. A single rank needs no
process group. world.py makes and destroys the groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from ..errors import RankError
from .agreement import Step, describe
from .groups import Group
from .shared_memory import SharedMemory

__all__ = ["Parallel"]


@dataclass(frozen=True)
class Parallel:
    """This rank is rank `rank` of the `size` ranks of one model, in replica `replica` of `replicas`.

    `group` connects the ranks of one model, `replica_group` the ranks that hold the same slice in each
    replica; None for a group of one. `shared` is the memory through which the ranks of a model exchange CPU
    tensors if all of them are on one machine.

    Collectives raise RankError if another rank is gone, gave up, or does something else. The model cannot be
    used any more then, and every later step and collective repeats the reason (agreement.py).
    """

    rank: int = 0
    size: int = 1
    group: Group | None = field(default=None, repr=False)
    replica: int = 0
    replicas: int = 1
    replica_group: Group | None = field(default=None, repr=False)
    shared: SharedMemory | None = field(default=None, repr=False)

    def begin(self, step: Step, device: torch.device) -> None:
        """Announce the next step. RankError, here or in its collectives, if another rank runs another."""
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
        """Concatenate the ranks' x, each (..., d), to (..., size * d)."""
        if self.group is None:
            return x
        if self.shared is not None and x.is_cpu:
            return torch.cat(list(self.shared.gather(x)), dim=-1)
        return torch.cat(self.group.all_gather(x), dim=-1)

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        """Overwrite x with that of the model's first rank."""
        if self.shared is not None and x.is_cpu:
            self.shared.first(x)
        elif self.group is not None:
            self.group.broadcast(x)
        return x

    def give_up(self, reason: str) -> None:
        """Tell the other ranks of the model that this one left a step.

        Their collectives then fail with this reason, before this process ends. The first reason counts.
        """
        if self.shared is not None:
            self.shared.give_up(reason)
        elif self.group is not None:
            self.group.give_up(reason)

    def failed(self, error: BaseException) -> RankError:
        """`give_up` after an error that perhaps only this rank raised -> the error that the others raise."""
        if self.group is None:
            return RankError(describe(error))
        health = self.group.health
        health.fail_alone(error)
        self.give_up(health.failure or "")
        return health.error()

    def announce_leaving(self, error: BaseException | None) -> None:
        """Tell all ranks not to wait for this one, which is closing the model, because of an error or not."""
        words = "has closed this model" if error is None else f"has left with {describe(error)}"
        for group in (self.group, self.replica_group):
            if group is not None:
                group.health.fail(f"{group.health.name} {words}")
        if self.shared is not None:
            self.shared.give_up(words)

    def on_any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set on any rank of the model. All ranks call it; device: this rank's."""
        if self.group is None:
            return flag
        if self.shared is None:
            return self.group.on_any(flag, device)
        return bool(self.all_reduce(torch.tensor([float(flag)])).item())

    def count_same(self, number: int, device: torch.device) -> int:
        """How many ranks of all replicas have this rank's number, itself included. All ranks call it; device: this
        rank's."""
        numbers = torch.tensor([number], device="cpu")
        for group in (self.group, self.replica_group):
            if group is not None:
                numbers = torch.cat(group.all_gather(numbers.to(group.numbers_on(device))))
        return int((numbers == number).sum())

    def smallest(self, value: int | None, device: torch.device) -> int | None:
        """The smallest value of all ranks of all replicas. None means no limit.

        device: this rank's; a host program's groups may not support any other.
        """
        if self.group is None and self.replica_group is None:
            return value
        unlimited = torch.iinfo(torch.int64).max
        least = unlimited if value is None else value
        for group in (self.group, self.replica_group):
            if group is not None:
                x = torch.tensor([least], device=group.numbers_on(device))
                group.all_reduce(x, dist.ReduceOp.MIN)
                least = int(x)
        return None if least == unlimited else least
