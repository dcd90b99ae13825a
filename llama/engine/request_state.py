"""Requests in progress and their readers: all that the engine knows for certain. Never imports torch.

An interrupt (Ctrl-C, a timeout's signal) may strike between any two bytecodes. So each fact here changes by
one assignment or one call into C, and everything else (the scheduler's lists, who holds which blocks,
detokenizers) can be rebuilt from these facts.
"""

from __future__ import annotations

import bisect
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..detokenizer import Detokenizer, Stops
from .output import finish
from .request import FinishReason, Request
from .sequence import Delta, JournalEntry, SequenceState, Times
from .speculation import Drafter, Lookup

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

__all__ = ["Feed", "RequestState"]


class Feed:
    """One reader of any number of requests. When the reader drops it, its requests are cancelled.

    news: sequences that may have something unread; one that is there twice, or has nothing new, does no harm.

    Args:
        ended_only: the reader takes a sample as a whole, so it is told of it when it has ended.
    """

    def __init__(self, *, ended_only: bool = False) -> None:
        self.ended_only = ended_only
        self.news: list[SequenceState] = []

    def read(self) -> list[Delta]:
        """Everything unread, one delta for each sequence."""
        news, self.news = self.news, []
        deltas: list[Delta] = []
        for sequence in news:
            delta = Delta.unread(sequence)
            if delta is not None:
                deltas.append(delta)
        return deltas

    def forget(self, request_id: int) -> None:
        """Drop the unread part of a request."""
        if any(sequence.request_id == request_id for sequence in self.news):
            self.news = [sequence for sequence in self.news if sequence.request_id != request_id]


@dataclass(eq=False)
class RequestState:
    """A request in progress.

    feed: its reader, if that is still there. samples: its sequences in order; none before it begins, one that
    stands for several until its prompt is prefilled. left: samples that have not ended, begun or not. stops,
    prompt, prediction: lookup tables, made once for all samples.
    """

    request_id: int
    request: Request
    queued: float
    feed: weakref.ref[Feed]
    samples: list[SequenceState] = field(default_factory=list)
    left: int = field(init=False)
    stops: Stops = field(init=False)
    prompt: Lookup = field(init=False)
    prediction: Lookup = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.request.n

    @property
    def error(self) -> Exception | None:
        """What failed, if anything did; no further sample begins then."""
        return next((sequence.error for sequence in self.samples if sequence.error is not None), None)

    def new_sequence(self, sample: int, tokenizer: Tokenizer, speculate: bool) -> SequenceState:
        """Add the first of the samples that begin together; it stands for all until the prompt is prefilled.

        The lookup tables are made with the first, so that a waiting request holds only its request.
        """
        request = self.request
        if not self.samples:
            self.stops = Stops(request.stop)
            self.prompt, self.prediction = Lookup(request.prompt), Lookup(request.prediction)
        tokens = list(request.prompt)
        detokenizer = Detokenizer(
            tokenizer,
            start_of_text=request.start_of_text,
            stop=self.stops,
            stop_after=request.min_new_tokens,
        )
        times = Times(self.queued)
        sequence = SequenceState(self.request_id, request, sample, detokenizer, tokens, times=times)
        if self.samples:
            sequence.digest = self.samples[0].digest
        if speculate and request.speculate and request.max_new_tokens > 1:
            sequence.drafter = Drafter(tokens, len(tokens), self.prediction, self.prompt)
        self.samples = [*self.samples, sequence]
        return sequence

    def add_forks(self, sequence: SequenceState, forks: Sequence[SequenceState]) -> None:
        """Add the forks of a sample behind it."""
        behind = 1 + bisect.bisect_left(self.samples, sequence.sample, key=lambda each: each.sample)
        self.samples = [*self.samples[:behind], *forks, *self.samples[behind:]]

    def restore(self) -> None:
        """Go back to what the journals say, with nothing computed; see `SequenceState.restore`."""
        self.notify()
        left = self.request.n
        for sequence in self.samples:
            sequence.restore()
            left -= sequence.finish_reason is not None
        self.left = left

    def finish_at_once(self) -> None:
        """End a request that asks for no tokens and no scores, whose first sequence is there."""
        (first,) = self.samples
        finish(first, "", len(first.tokens), FinishReason.LENGTH, self.queued)
        # Nothing changes any more, so the other samples share everything.
        self.samples = [first, *(replace(first, sample=sample) for sample in range(1, self.request.n))]
        self.notify()

    def fail(self, error: Exception) -> None:
        """Enter an error as the end of all samples that have not ended."""
        for sequence in self.samples:
            if sequence.finish_reason is None:
                sequence.error = error.with_traceback(None)  # the traceback holds the step's tensors
                sequence.journal.append(
                    JournalEntry("", len(sequence.tokens), sequence.settled, FinishReason.ERROR)
                )
                sequence.stale = True  # nobody may reuse what it computed
        self.notify()

    def end(self, reason: FinishReason, now: float) -> None:
        """Say of all samples that have not ended why they do; their readers are not told."""
        for sequence in self.samples:
            if sequence.finish_reason is None:
                sequence.finish_reason, sequence.times.ended = reason, now

    def notify(self) -> None:
        """Let the reader look at all samples."""
        feed = self.feed()
        if feed is not None:
            feed.news += self.samples
