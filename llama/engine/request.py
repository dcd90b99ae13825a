"""What is asked of the engine, and what it remembers of each sequence. Never imports torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from ..errors import RequestError

if TYPE_CHECKING:
    from ..cache import KVCache
    from ..detokenizer import Detokenizer
    from ..sampling import SamplingParams
    from .speculation import Drafter

__all__ = ["Counts", "Delta", "FinishReason", "Plan", "Request", "Sequence", "Times", "TokenScore"]

# Random numbers of a sequence are made this many at a time.
_DRAWS = 16


class FinishReason(str, Enum):
    """Why a sequence ended: a stop id, the limit of tokens, a stop string, its caller, or a failure."""

    STOP = "stop"
    LENGTH = "length"
    STOP_SEQUENCE = "stop_sequence"
    CANCELLED = "cancelled"
    ERROR = "error"


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
    sequence and are not part of it; stop strings likewise, in its text. n: samples that share one
    prefill; sample j draws from the generator of (seed, first_sample + j). start_of_text: the text
    begins at its first token, so that one's dummy space is dropped. top: alternatives wanted with
    each score. score_prompt: whether scores of the prompt's tokens are wanted. row: the prompt's place
    in its call, for errors. speculate: whether tokens may be drafted and verified several at a time;
    the result is the same. prediction: ids that the output is likely to repeat, to draft from. live:
    somebody reads its tokens as they come, so that while it decodes prompts are prefilled in small
    chunks.
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
    live: bool = True

    def check(self) -> None:
        """Refuse values that no step could run.

        Raises:
            RequestError: a number out of its range, ids that are no integers, stop strings that are empty.
        """
        for name, least in (("max_new_tokens", 0), ("n", 1), ("top", 0), ("seed", 0), ("first_sample", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise RequestError(f"{name} is {value!r}; it must be an integer of at least {least}")
        for name in ("prompt", "prediction", "stop_ids", "stop"):
            value = getattr(self, name)
            if isinstance(value, str | bytes) or not isinstance(value, Collection):
                raise RequestError(f"{name} is {value!r}; it must be a tuple")
        for name in ("prompt", "prediction", "stop_ids"):
            bad = [token for token in getattr(self, name) if type(token) is not int]
            if bad:
                raise RequestError(f"{name} holds {bad[0]!r}, which is no id")
        if not all(isinstance(text, str) and text for text in self.stop):
            raise RequestError(f"stop is {self.stop!r}; it must hold strings that are not empty")

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
class Sequence:
    """One sample of a request under way: `tokens[:computed]` are in its cache.

    Until the prompt is prefilled, sample 0 stands for all n of them (`forked` is false) and takes their
    places and their memory. blocks: what each of them holds; 0 while it does not run. draft: what the
    step verifies behind `tokens`. digest: of its request, once ranks had to compare it (plans.py).
    leader, shared: an older sequence that is about to compute the first `shared` tokens of this one,
    which waits for them.
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
    text: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    times: Times = field(default_factory=Times)
    reused: int = 0
    forked: bool = False
    blocks: int = 0
    drafter: Drafter | None = None
    draft: list[int] = field(default_factory=list)
    digest: int | None = None
    leader: Sequence | None = None
    shared: int = 0

    def __post_init__(self) -> None:
        self.forked = self.forked or self.request.n == 1
        self._generator: np.random.Generator | None = None
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
    def places(self) -> int:
        """Of the batch: one for itself, or one for each sample it stands for."""
        return 1 if self.forked else self.request.n

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
        while len(self._uniforms) <= index:
            if self._generator is None:
                entropy = [self.request.seed, self.request.first_sample + self.sample]
                self._generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
            self._uniforms += self._generator.random(_DRAWS).tolist()
        return self._uniforms[index]

    def rewind(self, computed: int, scored: int) -> None:
        """Back to where `computed` tokens were seen and `scored` of the prompt scored, after a failed step."""
        self.computed = computed
        self.cache.truncate(min(computed, self.cache.length))
        self.draft = []
        del self.prompt_scores[scored:]


@dataclass(frozen=True)
class Delta:
    """What one step added to a sequence: the text may be empty, and the last one has a finish reason.

    The sequence carries `counts` and `times`, which are final with the last delta.
    """

    sequence: Sequence
    text: str
    finish_reason: FinishReason | None = None

    @property
    def key(self) -> tuple[int, int]:
        """(request id, sample)."""
        return self.sequence.key


# A step: sequences and the tokens of each, its draft included.
Plan = list[tuple[Sequence, int]]
