"""What is asked of the engine, and what it remembers of each sequence. Never imports torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import RequestError
from ..printable import shown
from ..values import integer, rows

if TYPE_CHECKING:
    from ..detokenizer import Detokenizer
    from ..kv_cache import KVCache
    from ..sampling import SamplingParams
    from .speculation import Drafter

__all__ = [
    "MOST_SAMPLES",
    "Counts",
    "Delta",
    "Entry",
    "FinishReason",
    "Request",
    "ScheduledBatch",
    "SequenceState",
    "Times",
    "TokenScore",
]

# Of a request, and the least that each may be.
_INTEGERS = {"max_new_tokens": 0, "n": 1, "top": 0, "seed": 0, "first_sample": 0}
# Samples of a prompt: whoever asks keeps all of them.
MOST_SAMPLES = 4096
# Stop strings: each character of a text is compared with every string, and their tables are made within a step, which
# at these limits takes a few milliseconds.
_MOST_STOPS = 64
_MOST_STOP_CHARACTERS = 8192
# Random numbers of a sequence: so many at first.
_DRAWS = 16


class FinishReason(str, Enum):
    """Why a sequence ended: a stop id, the limit of tokens, a stop string, its caller, or a failure."""

    STOP = "stop"
    LENGTH = "length"
    STOP_SEQUENCE = "stop_sequence"
    CANCELLED = "cancelled"
    ERROR = "error"


def stop_problem(stop: Collection[object]) -> str | None:
    """What is wrong with stop strings, if anything is; their number and length is looked at first."""
    if len(stop) > _MOST_STOPS:
        return f"there are {len(stop)} stop strings; {_MOST_STOPS} are the most"
    if not all(isinstance(text, str) and text for text in stop):
        return f"stop is {stop!r}; it must hold strings that are not empty"
    characters = sum(len(str(text)) for text in stop)
    if characters > _MOST_STOP_CHARACTERS:
        return f"the stop strings have {characters:,} characters together; {_MOST_STOP_CHARACTERS:,} are the most"
    return None


@dataclass(frozen=True)
class TokenScore:
    """log softmax of the model at a token, and at the most probable ids of that position, best first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()

    def best(self, count: int) -> TokenScore:
        """With only the best `count` alternatives."""
        return self if len(self.top) == count else TokenScore(self.logprob, self.top[:count])


@dataclass(frozen=True)
class Request:
    """One prompt and how to continue it.

    prompt: ids, at least one. max_new_tokens: may be 0, to score the prompt only. stop_ids end a
    sequence and are not part of it; stop strings likewise, in its text: at most 64, of 8,192 characters
    together. n: samples, at most 4,096; as many as batch and cache hold together share one prefill, the
    others follow; sample j draws from the generator of (seed, first_sample + j). start_of_text: the text
    begins at its first token, so that one's dummy space is dropped. top: alternatives wanted with each
    score. score_prompt: whether scores of the prompt's tokens are wanted. row: the prompt's place in its
    call, for errors. speculate: whether tokens may be drafted and verified several at a time; the result
    is the same. prediction: ids that the output is likely to repeat, to draft from. live: somebody reads
    its tokens as they come, so that while it decodes prompts are prefilled in small chunks. Integers and
    ids of other types, as numpy's, become Python's own.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: SamplingParams
    stop_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    start_of_text: bool = False
    seed: int = 0
    n: int = 1
    first_sample: int = 0
    top: int = 0
    score_prompt: bool = False
    row: int = 0
    speculate: bool = True
    prediction: tuple[int, ...] = ()
    streaming: bool = True

    def __post_init__(self) -> None:
        # What is no number or no id stays as it is, for `check` to refuse.
        for name in (*_INTEGERS, "row"):
            number = integer(getattr(self, name))
            if number is not None:
                object.__setattr__(self, name, number)
        for name, kind in (("prompt", tuple), ("prediction", tuple), ("stop_ids", frozenset)):
            ids = getattr(self, name)
            if not isinstance(ids, kind) or set(map(type, ids)) - {int}:
                found = list(ids) if isinstance(ids, set | frozenset) else rows(ids)
                if found is not None:
                    plain = [token if (index := integer(token)) is None else index for token in found]
                    object.__setattr__(self, name, kind(plain))

    def check(self) -> None:
        """Refuse values that no step could run.

        Raises:
            RequestError: a number out of its range, ids that are no integers, stop strings that are empty, too many
                or too long.
        """
        for name, least in _INTEGERS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise RequestError(f"{name} is {shown(value)}; it must be an integer of at least {least}")
        if self.n > MOST_SAMPLES:
            raise RequestError(f"n is {self.n}; {MOST_SAMPLES} samples of a prompt are the most")
        for name in ("prompt", "prediction", "stop_ids", "stop"):
            value = getattr(self, name)
            if isinstance(value, str | bytes) or not isinstance(value, Collection):
                raise RequestError(f"{name} is {value!r}; it must be a tuple")
        for name in ("prompt", "prediction", "stop_ids"):
            bad = [token for token in getattr(self, name) if type(token) is not int]
            if bad:
                raise RequestError(f"{name} holds {bad[0]!r}, which is no id")
        if problem := stop_problem(self.stop):
            raise RequestError(problem)

    @property
    def longest(self) -> int:
        """Positions that one of its samples can come to occupy."""
        return len(self.prompt) + self.max_new_tokens


@dataclass(frozen=True)
class Counts:
    """Tokens of a prompt, how many of them were not computed but reused, and tokens generated."""

    prompt: int
    reused: int
    generated: int


class Entry(NamedTuple):
    """What one step entered for a sequence: text, how many tokens it has since, prompt included, and why it ended."""

    text: str
    tokens: int
    reason: FinishReason | None = None


@dataclass
class Times:
    """When a sequence was queued, first planned, gave its first token and ended, by the engine's clock.

    They are told, never used: no decision depends on them.
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


@dataclass(eq=False)
class SequenceState:
    """One sample of a request under way: `tokens[:computed]` are in its cache.

    places: of the batch. Until the prompt is prefilled, the first of the samples that run together stands for all
    of them and takes their places and their memory; afterwards each has its own. rest: further samples of the
    request, which wait until these have begun. blocks: what each place holds; 0 while it does not run. draft: what
    the step verifies behind `tokens`. digest: of its request, once ranks had to compare it (plans.py). leader,
    shared: an older sequence that is about to compute the first `shared` tokens of this one, which waits for them.
    stale: the model was changed since it began, or its logits were not finite: its cache is for nobody else.

    entered: the truth about it. One append makes a step count, and whatever else is here follows from it and from the
    request: what an interrupt left half done is made again (`restore`). read: entries that its reader has had.
    error: what ended it, where something failed.
    """

    request_id: int
    request: Request
    sample: int
    cache: KVCache
    detokenizer: Detokenizer
    tokens: list[int]
    computed: int = 0
    scores: list[TokenScore] = field(default_factory=list)
    prompt_scores: list[TokenScore] = field(default_factory=list)
    entered: list[Entry] = field(default_factory=list)
    read: int = 0
    error: Exception | None = None
    finish_reason: FinishReason | None = None
    times: Times = field(default_factory=Times)
    reused: int = 0
    places: int = 1
    rest: int = 0
    blocks: int = 0
    drafter: Drafter | None = None
    draft: list[int] = field(default_factory=list)
    digest: int | None = None
    leader: SequenceState | None = None
    shared: int = 0
    stale: bool = False

    def __post_init__(self) -> None:
        self._uniforms: list[float] = []

    @property
    def key(self) -> tuple[int, int]:
        """(request id, sample); the smaller, the older."""
        return self.request_id, self.sample

    @property
    def pending(self) -> int:
        """Tokens that the model has not seen yet: one in decode, more in prefill."""
        return len(self.tokens) - self.computed

    @property
    def text(self) -> list[str]:
        """What its steps gave, to be joined."""
        return [entry.text for entry in self.entered]

    @property
    def output(self) -> list[int]:
        """The generated ids so far."""
        return self.tokens[len(self.request.prompt) :]

    @property
    def generated(self) -> int:
        """How many these are."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def counts(self) -> Counts:
        """Its tokens so far."""
        return Counts(len(self.request.prompt), self.reused, self.generated)

    def name(self, ahead: int = 0) -> str:
        """How an error names this sequence and its step, or one that was drafted ahead of it."""
        sample = self.request.first_sample + self.sample
        return f"row {self.request.row}, sample {sample}, step {self.generated + ahead}"

    def uniform(self, index: int) -> float:
        """The random number for output token `index`, in [0, 1).

        It belongs to seed, sample and index alone: whatever is drafted, put back or tried again, a token
        is drawn with the same number.
        """
        count = len(self._uniforms)
        if index >= count:
            while index >= count:
                count = 2 * count or _DRAWS
            entropy = [self.request.seed, self.request.first_sample + self.sample]
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
            # From the first again, and set at once: a generator that is kept could be interrupted between its numbers.
            self._uniforms = generator.random(count).tolist()
        return self._uniforms[index]

    def rewind(self, computed: int, scored: int) -> None:
        """Back to where `computed` tokens were seen and `scored` of the prompt scored, after a failed step."""
        self.computed = computed
        self.cache.truncate(min(computed, self.cache.length))
        self.draft = []
        del self.prompt_scores[scored:]

    def restore(self, detokenizer: Detokenizer) -> None:
        """Back to what was entered; the detokenizer is a new one."""
        last = self.entered[-1] if self.entered else Entry("", len(self.request.prompt))
        del self.tokens[last.tokens :]
        del self.scores[last.tokens - len(self.request.prompt) :]
        self.finish_reason = last.reason
        for token in self.output:
            detokenizer.push(token)
        self.detokenizer = detokenizer

    def release(self, cache: KVCache) -> None:
        """Give all memory up: nothing is computed, and the cache is a new one."""
        self.computed, self.blocks, self.draft, self.leader, self.shared = 0, 0, [], None, 0
        self.cache, self.stale = cache, False


@dataclass(frozen=True)
class Delta:
    """What one step added to a sequence: the text may be empty, and the last one has a finish reason.

    The sequence carries `counts` and `times`, which are final with the last delta; where the reason is ERROR,
    `sequence.error` says what happened.
    """

    sequence: SequenceState
    text: str
    finish_reason: FinishReason | None = None

    @property
    def key(self) -> tuple[int, int]:
        """(request id, sample)."""
        return self.sequence.key


# A step: sequences and the tokens of each, its draft included.
ScheduledBatch = list[tuple[SequenceState, int]]
