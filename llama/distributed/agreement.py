"""What the ranks of one model must have in common, and what becomes of them when they have it no longer.

Never imports torch. Ranks that went apart cannot be brought together again: some are in a step that others have left,
and what they exchange next would not belong together. So the first reason is kept, and every later use repeats it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import RankError

__all__ = ["FailureNotes", "Health", "Step", "UnexplainedError", "disagreement", "words_of"]

# Of a reason that travels to the other ranks.
_REASON_BYTES = 800
_END = "this model cannot be used any more: close it on all ranks and build it again, or end the program"


class UnexplainedError(RankError):
    """An exchange between ranks failed, and no rank has said why."""


class Step(NamedTuple):
    """What a rank is about to run: a hash of 63 bits of all that is in it, and how much that is."""

    digest: int = 0
    sequences: int = 0
    tokens: int = 0

    def __str__(self) -> str:
        return (
            f"a step of {self.sequences} sequence(s) and {self.tokens} token(s), content {self.digest:016x}"
        )


class FailureNotes:
    """Where a rank leaves the reason of its failure for the others: keys of the store that the ranks met in.

    Args:
        store: a torch.distributed store with a prefix of its own.
        rank, ranks: among those that share these notes.
    """

    def __init__(self, store: Any, rank: int, ranks: int) -> None:
        self._store, self._rank, self._ranks = store, rank, ranks

    def leave(self, reason: str) -> None:
        """Write this rank's reason."""
        with contextlib.suppress(RuntimeError):  # the store may have gone with the process that held it
            self._store.set(f"failed/{self._rank}", reason)

    def read(self) -> str | None:
        """The reason of another rank, if one left any."""
        with contextlib.suppress(RuntimeError):
            for rank in range(self._ranks):
                key = f"failed/{rank}"
                if rank != self._rank and self._store.check([key]):
                    return _bounded(bytes(self._store.get(key)).decode(errors="replace"))
        return None


class Health:
    """Whether ranks can still work together; the first reason why not counts, and stays.

    Args:
        name: of this rank, for the others.
        notes: where they look for its reason, where there is such a place.
    """

    def __init__(self, name: str = "this rank", notes: FailureNotes | None = None) -> None:
        self.name = name
        self.notes = notes
        self.failure: str | None = None

    def check(self) -> None:
        """Raise RankError where something went wrong before."""
        if self.failure is not None:
            raise self.error()

    def error(self) -> RankError:
        """What to raise."""
        return RankError(f"{self.failure}; {_END}")

    def fail(self, reason: str) -> None:
        """Remember why, and tell the others."""
        if self.failure is None:
            self.failure = _bounded(reason)
            if self.notes is not None:
                self.notes.leave(self.failure)

    def fail_alone(self, error: BaseException) -> None:
        """The same for an error that struck this rank, and perhaps no other."""
        # One that another rank told of goes on as it is.
        explained = isinstance(error, RankError)
        self.fail(plain(error) if explained else f"{self.name} failed: {words_of(error)}")


def words_of(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def plain(error: BaseException) -> str:
    """The reason that a RankError gives, without what follows from it."""
    return str(error).removesuffix(f"; {_END}")


def disagreement(first: int, one: str, second: int, other: str) -> str:
    """Why two ranks cannot go on together."""
    return (
        f"ranks {first} and {second} do not do the same: rank {first} is in {one}, rank {second} in {other}; all"
        " ranks must make the same calls in the same order, with the same prompts and limits (a set has no order"
        " that they share)"
    )


def first_difference(rows: Sequence[Any]) -> int | None:
    """The first rank whose row is not that of rank 0."""
    return next((rank for rank, row in enumerate(rows) if row != rows[0]), None)


def _bounded(reason: str) -> str:
    """So short that it fits where it travels, and of characters that can be printed."""
    shown = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in reason)
    return shown.encode(errors="replace")[:_REASON_BYTES].decode(errors="ignore")
