"""What is asked of the engine, and what it remembers of each sequence. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..cache import KVCache
    from ..detokenizer import Detokenizer
    from ..sampling import SamplingParams

__all__ = ["Delta", "FinishReason", "Plan", "Request", "Sequence", "TokenScore"]


class FinishReason(str, Enum):
    """Why a sequence ended: a stop id, the limit of tokens, a stop string, or that it was given up."""

    STOP = "stop"
    LENGTH = "length"
    STOP_SEQUENCE = "stop_sequence"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class TokenScore:
    """log softmax of the model at a token, and at the most probable ids of that position, best first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()

    def best(self, count: int) -> TokenScore:
        """With only the best `count` alternatives."""
        return TokenScore(self.logprob, self.top[:count])


@dataclass(frozen=True)
class Request:
    """One prompt and how to continue it.

    prompt: ids, at least one. max_new_tokens: may be 0, to score the prompt only. stop_ids end a
    sequence and are not part of it; stop strings likewise, in its text. n: samples that share one
    prefill; sample j draws from the generator of (seed, first_sample + j). start_of_text: the text
    begins at its first token, so that one's dummy space is dropped. top: alternatives wanted with
    each score. score_prompt: whether scores of the prompt's tokens are wanted. row: the prompt's place
    in its call, for errors.
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

    @property
    def cache_tokens(self) -> int:
        """Positions that all its samples together can come to occupy."""
        return self.n * (len(self.prompt) + self.max_new_tokens)


@dataclass(eq=False)
class Sequence:
    """One sample of a request under way: `tokens[:computed]` are in its cache."""

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
    random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        entropy = [self.request.seed, self.request.first_sample + self.sample]
        self.random = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))

    @property
    def pending(self) -> int:
        """Tokens that the model has not seen yet: one in decode, more in prefill."""
        return len(self.tokens) - self.computed

    def rewind(self, computed: int) -> None:
        """Back to where only the first `computed` tokens were seen, after a step that failed."""
        self.computed = computed
        self.cache.truncate(min(computed, self.cache.length))
        del self.prompt_scores[computed:]

    @property
    def output(self) -> list[int]:
        """The generated ids so far."""
        return self.tokens[len(self.request.prompt) :]

    @property
    def name(self) -> str:
        """How an error names this sequence and its step."""
        sample = self.request.first_sample + self.sample
        return f"row {self.request.row}, sample {sample}, step {len(self.tokens) - len(self.request.prompt)}"


@dataclass(frozen=True)
class Delta:
    """What one step added to a sequence: the text may be empty, and the last one has a finish reason."""

    sequence: Sequence
    text: str
    finish_reason: FinishReason | None = None

    @property
    def key(self) -> tuple[int, int]:
        """(request id, sample)."""
        return self.sequence.request_id, self.sequence.sample


Plan = list[tuple[Sequence, int]]
