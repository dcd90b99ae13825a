"""What comes back for the requests of one HTTP request: new text as it comes, and each sample whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ...engine import FinishReason, Request
from ...engine.sequence import SequenceState, TokenScore
from .. import TextDelta

__all__ = ["News", "Output"]


class News(NamedTuple):
    """New text of one sample of one prompt; `row` is the prompt's place in its HTTP request."""

    row: int
    delta: TextDelta


@dataclass
class Output:
    """One sample of one prompt, whole.

    tokens, scores: the ids of the text, and their log-probabilities. prompt_scores: of the prompt's ids but
    the first, if they were asked for. sequence: the engine's record, with counts and times; None if it was
    cancelled before it began.
    """

    row: int
    sample: int
    request: Request
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    prompt_scores: list[TokenScore] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    sequence: SequenceState | None = None

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of what was generated, the ids of its end included: the measure of `best_of`."""
        ended = () if self.sequence is None else self.sequence.dropped
        logprobs = [score.logprob for score in (*self.scores, *(score for _, score in ended))]
        return sum(logprobs) / len(logprobs) if logprobs else float("-inf")

    def take(self, delta: TextDelta) -> None:
        """Append a delta."""
        self.text += delta.text
        self.tokens += delta.tokens
        self.scores += delta.scores
        if delta.prompt_scores:
            self.prompt_scores = list(delta.prompt_scores)
        self.sequence = delta.sequence
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason
