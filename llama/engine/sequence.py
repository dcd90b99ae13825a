"""What the engine keeps for each sequence, and what a step does with it. Never imports torch."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .request import FinishReason, Request

if TYPE_CHECKING:
    from ..detokenizer import Detokenizer
    from .speculation import Drafter

__all__ = [
    "Counts",
    "Delta",
    "JournalEntry",
    "ScheduledBatch",
    "ScheduledSequence",
    "SequenceState",
    "Times",
    "TokenScore",
]

# Random numbers are drawn in bulk: this many at first, then twice as many each time.
_DRAWS = 16


class TokenScore(NamedTuple):
    """Log-probability of a token, and the most probable ids at its position, best first.

    Both are log softmax of the model's logits, before temperature, top-p and penalties.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()

    def best(self, count: int) -> TokenScore:
        """With only the best `count` alternatives."""
        return self if len(self.top) == count else TokenScore(self.logprob, self.top[:count])


@dataclass(frozen=True)
class Counts:
    """Tokens of the prompt, how many of those were reused from a cache, and tokens generated."""

    prompt: int
    reused: int
    generated: int


@dataclass
class Times:
    """When a sequence was queued, first scheduled, gave its first token and ended, by the engine's clock.

    For reporting only: no decision depends on them.
    """

    queued: float = 0.0
    begun: float | None = None
    first_token: float | None = None
    ended: float | None = None

    @property
    def waited(self) -> float | None:
        """Seconds in the queue."""
        return None if self.begun is None else self.begun - self.queued

    @property
    def to_first_token(self) -> float | None:
        """Seconds from the queue to the first token."""
        return None if self.first_token is None else self.first_token - self.queued

    @property
    def total(self) -> float | None:
        """Seconds from the queue to the end."""
        return None if self.ended is None else self.ended - self.queued


class JournalEntry(NamedTuple):
    """What a step added to a sequence.

    text: what it made safe to show. tokens: how many it has since then, prompt included. settled: how many of
    these have had all their text returned; at the end all of them. reason: why it ended, if it did. dropped: at
    the end, ids that were generated and are not part of the output, with their scores: those from a stop string
    on, and the stop id.
    """

    text: str
    tokens: int
    settled: int
    reason: FinishReason | None = None
    dropped: tuple[tuple[int, TokenScore], ...] = ()


@dataclass(eq=False)
class SequenceState:
    """One sample of a request in progress.

    slots: of the batch. Until the prompt is prefilled, the first of the samples that run together stands for
    all of them and holds their slots and memory; afterwards each has its own. rest: further samples of the
    request, which wait until these have begun. is_running: it has its slots. table: the blocks of its
    positions, in order; others may hold some of them too. computed: positions whose keys and values are in them.
    reserved: blocks that are set aside for it and its forks. is_paused: its caller wants no more of it for now.
    drafted, accepted: tokens that were drafted, and right; for reports. digest: of its request, set once ranks
    had to compare it (step_digest.py). leader, shared: an older sequence that is about to compute the first
    `shared` tokens of this one, which waits for them. stale: the model changed since it began, or its logits
    were not finite, so nobody else may use what it computed.

    journal: the truth about it. A step counts once its entry is appended; tokens, scores and the rest follow
    from the journal and the request, and are made again from them after an interrupt (`restore`). read:
    entries that its reader has had. error: what ended it, if something failed.
    """

    request_id: int
    request: Request
    sample: int
    detokenizer: Detokenizer
    tokens: list[int]
    scores: list[TokenScore] = field(default_factory=list)
    prompt_scores: list[TokenScore] = field(default_factory=list)
    journal: list[JournalEntry] = field(default_factory=list)
    read: int = 0
    error: Exception | None = None
    finish_reason: FinishReason | None = None
    times: Times = field(default_factory=Times)
    reused: int = 0
    drafted: int = 0
    accepted: int = 0
    slots: int = 1
    rest: int = 0
    is_running: bool = False
    # Python 3.11 cannot subscript the type, which the API reference does.
    table: array = field(default_factory=lambda: array("i"))  # type: ignore[type-arg]
    computed: int = 0
    reserved: int = 0
    is_paused: bool = False
    drafter: Drafter | None = None
    digest: int | None = None
    leader: SequenceState | None = None
    shared: int = 0
    stale: bool = False

    def __post_init__(self) -> None:
        self._uniforms: list[float] = []

    @property
    def key(self) -> tuple[int, int]:
        """(request id, sample); a smaller key is older."""
        return self.request_id, self.sample

    @property
    def pending(self) -> int:
        """Tokens that the model has not seen yet: one in decode, more in prefill."""
        return len(self.tokens) - self.computed

    @property
    def settled(self) -> int:
        """Tokens that the journal calls settled, prompt included."""
        return self.journal[-1].settled if self.journal else len(self.request.prompt)

    @property
    def text(self) -> list[str]:
        """The text of each step, to be joined."""
        return [entry.text for entry in self.journal]

    @property
    def output(self) -> list[int]:
        """The ids generated so far."""
        return self.tokens[len(self.request.prompt) :]

    @property
    def generated(self) -> int:
        """How many ids were generated so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def dropped(self) -> tuple[tuple[int, TokenScore], ...]:
        """At the end: the ids that were generated and are not part of the output, with their scores."""
        return self.journal[-1].dropped if self.journal else ()

    @property
    def counts(self) -> Counts:
        """Its tokens so far."""
        return Counts(len(self.request.prompt), self.reused, self.generated)

    def name(self, drafted: int = 0) -> str:
        """How an error names this sequence at its next token, or behind so many drafted ones."""
        sample = self.request.first_sample + self.sample
        return f"row {self.request.row}, sample {sample}, step {self.generated + drafted}"

    def uniform(self, index: int) -> float:
        """The random number for output token `index`, in [0, 1).

        It depends on seed, sample and index only, so a token that was drafted, preempted or tried again is
        drawn with the same number.
        """
        count = len(self._uniforms)
        if index >= count:
            while index >= count:
                count = 2 * count or _DRAWS
            entropy = [self.request.seed, self.request.first_sample + self.sample]
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
            # All numbers again, set by one assignment: an interrupt could leave a kept generator between two.
            self._uniforms = generator.random(count).tolist()
        return self._uniforms[index]

    def fork(self, sample: int) -> SequenceState:
        """Another sample of the same prompt, which has no blocks yet. Only before the first output."""
        tokens = list(self.tokens)
        return SequenceState(
            self.request_id,
            self.request,
            sample,
            self.detokenizer.fresh(),
            tokens,
            prompt_scores=list(self.prompt_scores),
            times=Times(self.times.queued, self.times.begun),
            reused=self.reused,
            drafter=None if self.drafter is None else self.drafter.fork(tokens),
            digest=self.digest,
            stale=self.stale,
        )

    def restore(self) -> None:
        """Go back to what the journal says, with nothing computed and no blocks."""
        if self.finish_reason is None:
            prompt = len(self.request.prompt)
            last = self.journal[-1] if self.journal else JournalEntry("", prompt, prompt)
            del self.tokens[last.tokens :]
            del self.scores[last.tokens - prompt :]
            self.finish_reason = last.reason
            detokenizer = self.detokenizer.fresh()
            for token in self.output:
                detokenizer.push(token)
            self.detokenizer = detokenizer
        self.is_running, self.table, self.computed, self.reserved = False, array("i"), 0, 0
        self.leader, self.shared, self.stale = None, 0, False


@dataclass(frozen=True)
class Delta:
    """What a reader has not had of a sequence. The text may be empty; the last delta has a finish reason.

    tokens: the ids whose text is complete with this delta, so that no id comes before its text. Joined, they
    are the sequence's output. scores: of these. prompt_scores: of the prompt from its second id on, with the
    first delta of a sequence whose prompt is scored. The sequence carries `counts` and `times`, which are
    final with the last delta. If the reason is ERROR, `sequence.error` says what happened.
    """

    sequence: SequenceState
    text: str
    finish_reason: FinishReason | None = None
    tokens: tuple[int, ...] = ()
    scores: tuple[TokenScore, ...] = ()
    prompt_scores: tuple[TokenScore, ...] = ()

    @classmethod
    def unread(cls, sequence: SequenceState) -> Delta | None:
        """What the reader of a sequence has not had; from now on it has. None if there is nothing new."""
        read, journal = sequence.read, sequence.journal
        new = journal[read:]
        if not new:
            return None
        sequence.read = read + len(new)
        text = new[0].text if len(new) == 1 else "".join(entry.text for entry in new)
        prompt = len(sequence.request.prompt)
        start, end = journal[read - 1].settled if read else prompt, new[-1].settled
        return cls(
            sequence,
            text,
            new[-1].reason,
            tuple(sequence.tokens[start:end]),
            tuple(sequence.scores[start - prompt : end - prompt]),
            () if read else tuple(sequence.prompt_scores),
        )

    @property
    def key(self) -> tuple[int, int]:
        """(request id, sample)."""
        return self.sequence.key


class ScheduledSequence(NamedTuple):
    """A sequence's part of a step: `length` tokens from position `start` on, the last of them its draft.

    `start` is what was computed before the step; `sequence.computed` grows when the step is recorded.
    """

    sequence: SequenceState
    start: int
    length: int
    draft: Sequence[int] = ()


class ScheduledBatch(list[ScheduledSequence]):
    """The sequences of a step.

    copies: (block, block that takes its place) of sequences that write on in a block which others hold. They
    are made before the forward, all at once; what was made is gone from the list.
    """

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[tuple[int, int]] = []
