"""What ranks exchange through a process group: tensors, and bytes. No pickle: nothing that arrives is ever run.

Knows torch.distributed; knows neither worlds nor models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from .agreement import Health, Step, UnexplainedError, disagreement, first_difference

__all__ = ["Group"]

# While a rank waits for others that have work of their own: between two looks, and between two looks at their notes.
_NAPS = (2e-5, 1e-3)
_NOTES_SECONDS = 1.0
# In place of a step's hash, which is never negative.
_ASKED = -1


class Group:
    """A process group of ranks that make the same calls in the same order.

    Args:
        raw: torch's.
        health: of this rank in it; a call that fails ends it.
        ours: whether it was made by this package, which then may close it.

    Each call raises RankError where another rank is gone or gave up, with its reason where it left one.
    """

    def __init__(self, raw: Any, health: Health | None = None, *, ours: bool = False) -> None:
        self.raw = raw
        self.health = Health() if health is None else health
        self._ours = ours
        # Calls whose results went through it; only a group of replicas counts them.
        self.calls = 0
        self._size = dist.get_world_size(raw)

    def all_reduce(self, x: torch.Tensor, op: Any = dist.ReduceOp.SUM) -> None:
        """x becomes the sum, or another reduction, over the ranks."""
        self._call(dist.all_reduce, x, op=op)

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """x of every rank; all have the same shape."""
        parts = [torch.empty_like(x) for _ in range(self._size)]
        self._call(dist.all_gather, parts, x.contiguous())
        return parts

    def broadcast(self, x: torch.Tensor) -> None:
        """x becomes that of the first rank."""
        self._call(dist.broadcast, x, group_src=0)

    def agree(self, step: Step, device: torch.device) -> None:
        """Raise RankError, on all ranks alike, unless all are about to run the same step.

        Sizes that differ would end a process in gloo, and hang or mix up rows in NCCL; so this is asked before, of
        a message whose size is always the same: one collective beside two for each layer.
        """
        self._alike(self._steps(step, device), lambda row: row)

    def on_any(self, flag: bool, device: torch.device) -> bool:
        """Whether a rank says so, asked by all before a step.

        In a message as that of `agree`: ranks of which some ask and others begin their step are told so.
        """
        rows = self._steps(Step(_ASKED, 0, int(flag)), device)
        self._alike(rows, lambda row: row[0] if row[0] == _ASKED else row)
        return any(row[2] for row in rows)

    def _steps(self, step: Step, device: torch.device) -> list[list[int]]:
        mine = torch.tensor([*step], dtype=torch.int64, device=device)
        rows: list[list[int]] = torch.stack(self.all_gather(mine)).tolist()
        return rows

    def _alike(self, rows: list[list[int]], word: Callable[[list[int]], Any]) -> None:
        other = first_difference([word(row) for row in rows])
        if other is not None:
            one, two = (
                "the choice of a step" if row[0] == _ASKED else str(Step(*row))
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
        """The data of every rank. Waits as long as it takes, and hears Ctrl-C meanwhile.

        Args:
            device: of this rank's model, for a group that reaches no other.
            tag: numbers that go ahead, as many on every rank.
            check: gets the tags of all ranks before any data goes; may raise on all of them alike.
        """
        where = torch.device("cpu") if device is None or self._reaches_cpu() else device
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
        """Let the other ranks' calls fail: this one left a step that they may be in the middle of.

        Over NCCL they do not notice before this process ends.
        """
        self.health.fail(reason)
        if self._ours and self.raw is not None:
            # gloo hangs up when nothing holds the group any more.
            raw, self.raw = self.raw, None
            dist.destroy_process_group(raw)

    def _reaches_cpu(self) -> bool:
        return "cpu:" in dist.get_backend_config(self.raw)

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
        nap, most = _NAPS
        look = time.monotonic() + _NOTES_SECONDS
        told: str | None = None
        while not work.is_completed():
            time.sleep(nap)
            nap = min(most, 1.1 * nap)
            if time.monotonic() > look:
                if told is not None:
                    self.health.fail(told)
                    raise self.health.error()
                # What it sent before it left may still be on its way, so one second more.
                told = None if self.health.notes is None else self.health.notes.read()
                look = time.monotonic() + _NOTES_SECONDS
        work.wait()

    def _failed(self, error: BaseException) -> None:
        """Note an error within a call, which leaves this rank and the others at different places.

        Raises:
            RankError: it came from outside this rank.
        """
        known = self.health.failure is not None
        if not known and (not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError)):
            self.health.fail(f"{self.health.name} left a collective: {type(error).__name__}")
            return
        reason = None if known or self.health.notes is None else self.health.notes.read()
        if known or reason is not None:
            self.health.fail(reason or "")
            raise self.health.error() from error
        words = str(error).strip().partition("\n")[0]
        self.health.fail(f"another rank is gone, or left; its own output says why ({words})")
        raise UnexplainedError(str(self.health.error())) from error
