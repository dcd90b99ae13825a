"""Collectives of a process group, for tensors and bytes. No pickle, so received data is never executed.

Knows torch.distributed; knows neither launches nor models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from .agreement import Health, Step, UnexplainedError, disagreement, first_difference
from .silence import silent, vanished

__all__ = ["Group", "destroy"]

# Polling a collective whose other ranks may be busy: from the first pause to the longest, in seconds, and how
# often to look for notes of ranks that failed.
_PAUSES = (2e-5, 1e-3)
_NOTES_SECONDS = 1.0
# Stands in for a step's hash, which is never negative, in the message of `on_any`.
_ASKING = -1


def destroy(raw: Any = None, *, alone: bool) -> None:
    """Destroy a process group, or the world and all groups.

    Args:
        alone: whether perhaps not all of its ranks do that now. NCCL waits for them and for what is under way on the
            GPU, which may be waiting for this rank; so its work is aborted.
    """
    if alone and "nccl" in dist.get_backend_config(raw):
        dist.distributed_c10d._abort_process_group(raw)
    else:
        dist.destroy_process_group(raw)


class Group:
    """A process group whose ranks make the same calls in the same order.

    Args:
        raw: torch's process group.
        health: this rank's health in the group. A collective that fails ends it.
        ours: whether this package made the group, and so may destroy it.

    Every collective raises RankError if another rank is gone or gave up, with its reason if it left one.
    """

    def __init__(self, raw: Any, health: Health | None = None, *, ours: bool = False) -> None:
        self.raw = raw
        self.health = Health() if health is None else health
        self._ours = ours
        # Calls whose results were gathered here. Only the group of the replicas counts them.
        self.calls = 0
        self._size = dist.get_world_size(raw)

    def all_reduce(self, x: torch.Tensor, op: Any = dist.ReduceOp.SUM) -> None:
        """Sum x over the ranks, or reduce it by `op`, in place."""
        self._call(dist.all_reduce, x, op=op)

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The x of every rank. All must have the same shape."""
        parts = [torch.empty_like(x) for _ in range(self._size)]
        self._call(dist.all_gather, parts, x.contiguous())
        return parts

    def broadcast(self, x: torch.Tensor) -> None:
        """Overwrite x with the first rank's."""
        self._call(dist.broadcast, x, group_src=0)

    def agree(self, step: Step, device: torch.device) -> None:
        """Raise RankError, on all ranks, unless all are about to run the same step.

        Collectives of different sizes crash a process in gloo, and hang or mix up rows in NCCL. So the ranks
        compare their steps first, in a message of fixed size: one extra collective beside two per layer.
        """
        rows = self._steps(step, device)
        self._check_same(rows, rows)

    def on_any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set on any rank. All ranks call it, between steps.

        The message has the form of `agree`'s, so it is an error if another rank begins a step meanwhile.
        """
        rows = self._steps(Step(_ASKING, 0, int(flag)), device)
        # The flags may differ, but all ranks must be asking.
        self._check_same(rows, [row[0] if row[0] == _ASKING else row for row in rows])
        return any(row[2] for row in rows)

    def _steps(self, step: Step, device: torch.device) -> list[list[int]]:
        mine = torch.tensor([*step], dtype=torch.int64, device=self.numbers_on(device))
        rows: list[list[int]] = torch.stack(self.all_gather(mine)).tolist()
        return rows

    def _check_same(self, rows: list[list[int]], keys: Sequence[Any]) -> None:
        """Raise RankError, naming the steps in `rows`, unless all keys are equal."""
        other = first_difference(keys)
        if other is not None:
            one, two = (
                "a check between steps" if row[0] == _ASKING else str(Step(*row))
                for row in (rows[0], rows[other])
            )
            self.health.fail(disagreement(0, one, other, two))
            raise self.health.error()

    def gather_bytes(
        self,
        data: bytes,
        device: torch.device | None = None,
        tag: Sequence[int] = (),
        check: Callable[[list[list[int]]], None] | None = None,
    ) -> list[bytes]:
        """The data of every rank. Waits as long as it takes; Ctrl-C interrupts.

        Args:
            device: this rank's device, used if the group's backend cannot exchange CPU tensors.
            tag: numbers sent ahead of the data, the same count on every rank.
            check: called with the tags of all ranks before any data is sent; may raise, on all ranks.
        """
        where = torch.device("cpu") if device is None else self.numbers_on(device)
        head = torch.tensor([*tag, len(data)], dtype=torch.int64, device=where)
        heads = torch.stack(self._gather_patiently(head)).tolist()
        if check is not None:
            check([row[:-1] for row in heads])
        lengths = [row[-1] for row in heads]
        if not max(lengths):
            return [b""] * self._size
        padded = torch.from_numpy(np.frombuffer(data.ljust(max(lengths), b"\0"), dtype=np.uint8).copy())
        rows = self._gather_patiently(padded.to(where))
        return [row.cpu().numpy().tobytes()[:length] for row, length in zip(rows, lengths, strict=True)]

    def give_up(self, reason: str) -> None:
        """Make the other ranks' collectives fail, since this rank left a step that they may still be in.

        Over NCCL they only notice when this process ends.
        """
        self.health.fail(reason)
        if self._ours and self.raw is not None:
            # gloo closes its connections with the last reference to the group.
            raw, self.raw = self.raw, None
            destroy(raw, alone=True)

    def numbers_on(self, device: torch.device) -> torch.device:
        """Where numbers that the host reads are exchanged: on the CPU if the group's backend can.

        gloo then tells of a rank that is gone, and no GPU is waited for. NCCL would leave the host waiting.
        """
        self.health.check()  # there may be no group any more
        return torch.device("cpu") if "cpu:" in dist.get_backend_config(self.raw) else device

    def _call(self, function: Callable[..., Any], *args: Any, **more: Any) -> Any:
        self.health.check()
        try:
            return function(*args, group=self.raw, **more)
        except BaseException as error:
            self._failed(error)
            raise

    def _gather_patiently(self, x: torch.Tensor) -> list[torch.Tensor]:
        parts = [torch.empty_like(x) for _ in range(self._size)]
        work = self._call(dist.all_gather, parts, x, async_op=True)
        try:
            self._wait(work)
        except BaseException as error:
            self._failed(error)
            raise
        return parts

    def _wait(self, work: Any) -> None:
        pause, longest = _PAUSES
        look = time.monotonic() + _NOTES_SECONDS
        told: str | None = None
        while not work.is_completed():
            time.sleep(pause)
            pause = min(longest, 1.1 * pause)
            if time.monotonic() > look:
                if told is not None:
                    self.health.fail(told)
                    raise self.health.error()
                # Data that the rank sent before it failed may still arrive, so wait one round more.
                told = None if self.health.notes is None else self.health.notes.read()
                look = time.monotonic() + _NOTES_SECONDS
        work.wait()

    def _failed(self, error: BaseException) -> None:
        """Record an error inside a collective: this rank and the others are now at different places.

        Raises:
            RankError: the error came from another rank. Otherwise the caller re-raises its own.
        """
        known = self.health.failure is not None
        if not known and (not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError)):
            self.health.fail(f"{self.health.name} left a collective: {type(error).__name__}")
            return
        reason = None if known or self.health.notes is None else self.health.notes.read()
        if known or reason is not None:
            self.health.fail(reason or "")
            raise self.health.error() from error
        first_line = str(error).strip().partition("\n")[0]
        what = (
            vanished("another rank") if silent(error) else "another rank is gone, or left; see its own output"
        )
        self.health.fail(f"{what} ({first_line})")
        raise UnexplainedError(str(self.health.error())) from error
