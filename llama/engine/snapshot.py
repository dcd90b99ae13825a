"""What an engine holds and has done, in numbers, for gauges and queue limits. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .sequence import SequenceState

if TYPE_CHECKING:
    from .scheduler import Scheduler

__all__ = ["Counters", "Snapshot"]


@dataclass
class Counters:
    """What an engine has done since its start; none of these ever falls.

    prompt_tokens, reused_tokens: of prompts whose prefill is complete; samples that begin together count once.
    generated_tokens: whose text was returned, so that they add up to the outputs. drafted_tokens,
    accepted_tokens: proposed and right. finished, cancelled, failed: requests, each in one of these. An interrupt
    (never in a service's thread) may leave out a request or a step that it struck.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0

    def count_prompt(self, sequence: SequenceState) -> None:
        """A sequence is prefilled, for the first time and not after a preemption."""
        self.prompt_tokens += len(sequence.request.prompt)
        self.reused_tokens += sequence.reused

    def count_output(self, settled: int, drafted: int, accepted: int) -> None:
        """A step added so many settled tokens, and decided drafts."""
        self.generated_tokens += settled
        self.drafted_tokens += drafted
        self.accepted_tokens += accepted


class Snapshot(NamedTuple):
    """An engine between two steps.

    running: samples in the batch. waiting: requests that have not begun. paused: samples of either, whose
    callers do not read on. cache_tokens: positions that the cache may hold; cache_used: those that running
    samples hold, what several hold counted once; cache_retained: those kept for reuse, which any request may
    take. preemptions: samples that lost their place for lack of memory. The others: see `Counters`.
    """

    running: int
    waiting: int
    paused: int
    cache_tokens: int
    cache_used: int
    cache_retained: int
    preemptions: int
    # As in `Counters`, in its order.
    prompt_tokens: int
    reused_tokens: int
    generated_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    finished: int
    cancelled: int
    failed: int

    @classmethod
    def of(cls, scheduler: Scheduler, counters: Counters) -> Snapshot:
        """The numbers as they are now. For the thread that steps the engine."""
        blocks, prefixes = scheduler.blocks, scheduler.prefixes
        retained = 0 if prefixes is None else prefixes.unheld
        return cls(
            sum([sequence.slots for sequence in scheduler.running]),
            scheduler.not_begun,
            scheduler.paused,
            blocks.total * blocks.size,
            (blocks.used - retained) * blocks.size,
            retained * blocks.size,
            scheduler.preemptions,
            *vars(counters).values(),
        )
