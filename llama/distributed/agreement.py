"""Ranks of one model must run the same steps. How a rank records, and tells others, that they no longer do.

Never imports torch. Ranks that diverged cannot be brought back in step: some are inside a collective that
others have left, so the next exchange would mix unrelated data. The first failure is therefore final, and
every later call repeats its reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import RankError

__all__ = [
    "FailureNotes",
    "Health",
    "Step",
    "UnexplainedError",
    "describe",
    "disagreement",
    "first_difference",
    "gone",
]

# The longest reason that is sent to the other ranks.
_REASON_BYTES = 800
_END = "this model cannot be used any more: close it on all ranks and build it again, or end the program"


class UnexplainedError(RankError):
    """A collective failed, and no rank left a reason."""


class Step(NamedTuple):
    """What a rank is about to run: a 63-bit hash of the whole step, and the step's size."""

    digest: int = 0
    sequences: int = 0
    tokens: int = 0

    def __str__(self) -> str:
        return (
            f"a step of {self.sequences} sequence(s) and {self.tokens} token(s), content {self.digest:016x}"
        )


class FailureNotes:
    """Where a rank leaves the reason of its failure for the others: keys in the launch's store.

    Args:
        store: a torch.distributed store with a prefix of its own.
        rank, ranks: this rank's number, and how many ranks share these notes.
    """

    def __init__(self, store: Any, rank: int, ranks: int) -> None:
        self._store, self._rank, self._ranks = store, rank, ranks

    def leave(self, reason: str) -> None:
        """Write this rank's reason."""
        with contextlib.suppress(RuntimeError):  # the process that hosts the store may be gone
            self._store.set(f"failed/{self._rank}", reason)

    def read(self) -> str | None:
        """The reason that another rank left, if there is one."""
        with contextlib.suppress(RuntimeError):
            for rank in range(self._ranks):
                key = f"failed/{rank}"
                if rank != self._rank and self._store.check([key]):
                    return _bounded(bytes(self._store.get(key)).decode(errors="replace"))
        return None


class Health:
    """Whether the ranks of a group can still work together. The first failure is kept.

    Args:
        name: what the other ranks call this one.
        notes: where the other ranks look for its reason, if there is such a place.
    """

    def __init__(self, name: str = "this rank", notes: FailureNotes | None = None) -> None:
        self.name = name
        self.notes = notes
        self.failure: str | None = None

    def check(self) -> None:
        """Raise RankError if something went wrong before."""
        if self.failure is not None:
            raise self.error()

    def error(self) -> RankError:
        """The error to raise."""
        return RankError(f"{self.failure}; {_END}")

    def fail(self, reason: str) -> None:
        """Keep the reason, unless there is one already, and leave it for the other ranks."""
        if self.failure is None:
            self.failure = _bounded(reason)
            if self.notes is not None:
                self.notes.leave(self.failure)

    def fail_alone(self, error: BaseException) -> None:
        """`fail` with an error that this rank raised, and perhaps no other."""
        if isinstance(error, RankError):  # it names the rank that failed first
            self.fail(_without_advice(error))
        else:
            self.fail(f"{self.name} failed: {describe(error)}")


def describe(error: BaseException) -> str:
    """An error's type and text. Unlike `printable.reason`, for errors of any kind, read on another rank."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def gone(rank: int) -> str:
    """What other ranks are told of one whose process ended before it could say why."""
    return f"rank {rank} is gone: its process ended without a word; see its own output"


def _without_advice(error: BaseException) -> str:
    """A RankError's reason, without the advice that `Health.error` adds."""
    return str(error).removesuffix(f"; {_END}")


def disagreement(first: int, one: str, second: int, other: str) -> str:
    """The reason when two ranks are about to do different things."""
    return (
        f"ranks {first} and {second} do not do the same: rank {first} is in {one}, rank {second} in {other};"
        " all ranks must make the same calls in the same order, with the same prompts and limits"
        " (a set has another order on each rank)"
    )


def first_difference(rows: Sequence[Any]) -> int | None:
    """The first rank, or replica, whose row differs from the first row; None if all are equal."""
    return next((rank for rank, row in enumerate(rows) if row != rows[0]), None)


def _bounded(reason: str) -> str:
    """Printable, and short enough for the place it is sent through."""
    clean = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in reason)
    return clean.encode(errors="replace")[:_REASON_BYTES].decode(errors="ignore")
