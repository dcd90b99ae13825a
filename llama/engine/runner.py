"""A step's plan -> tensors -> logits -> sampled ids, the same on every rank.

The model's first rank decides every token and broadcasts what it decided, scores included: no rank
can diverge by its random state or by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..kernels.sampling import (
    all_finite,
    count_not_finite,
    log_probabilities,
    most_probable,
    not_finite,
    penalize,
    sample,
)
from ..kv_cache import BatchCache
from ..model import Transformer
from .request import ScheduledBatch, SequenceState, TokenScore
from .step_digest import step_of

__all__ = ["Runner", "SampleRow", "SampledToken"]

_Choose = Callable[[torch.Tensor], torch.Tensor]
# A row of logits -> whose it is, and what an error calls it.
_Name = Callable[[int], tuple[SequenceState, str]]
# A sequence whose token is wanted, the row it is decided from, and the drafted tokens before it.
SampleRow = tuple[SequenceState, int, int]
# Rows of logits that exist at once while a prompt is scored: 128 x 32016 float32 are 16 MB.
_SCORED_ROWS = 128


@dataclass(frozen=True)
class SampledToken:
    """A token that was decided for a sequence, and its score."""

    token: int
    score: TokenScore


class Runner:
    """Runs plans on a model."""

    def __init__(self, model: Transformer) -> None:
        self.model = model

    def forward(self, plan: ScheduledBatch) -> torch.Tensor:
        """Run a plan's tokens through the model -> hidden states (T, C); the caches have grown by them."""
        tokens = [token for sequence, count in plan for token in _next(sequence, count)]
        if self.model.parallel.size > 1:
            self.model.parallel.begin(step_of(plan, tokens), self.model.device)
        cache = BatchCache([sequence.cache for sequence, _ in plan], [count for _, count in plan])
        return self.model.hidden(torch.tensor(tokens, device=self.model.device), cache)

    def score_prompts(self, plan: ScheduledBatch, hidden_TC: torch.Tensor) -> None:
        """Append the scores of the prompt tokens that this step's positions predict, where they are not known."""
        start = 0
        for sequence, count in plan:
            if sequence.request.score_prompt:
                # A sequence that was put back has scores already.
                first = max(sequence.computed, len(sequence.prompt_scores)) + 1
                row = start + first - 1 - sequence.computed
                targets = list(sequence.request.prompt[first : sequence.computed + count + 1])
                for a in range(0, len(targets), _SCORED_ROWS):
                    rows = targets[a : a + _SCORED_ROWS]
                    logits = self.model.logits(hidden_TC[row + a : row + a + len(rows)])

                    def name(
                        i: int, sequence: SequenceState = sequence, begin: int = first + a
                    ) -> tuple[SequenceState, str]:
                        return sequence, f"{sequence.name()}, prompt token {begin + i}"

                    drawn = self._decide(logits, name, sequence.request.top, _given(rows))
                    sequence.prompt_scores += [each.score for each in drawn]
            start += count

    def draw(self, asks: list[SampleRow], hidden_TC: torch.Tensor) -> list[SampledToken]:
        """Decide a token for each (sequence, row of hidden_TC, number of drafted tokens before it)."""
        if not asks:
            return []

        def choose(logits_NV: torch.Tensor) -> torch.Tensor:
            params = [sequence.request.sampling for sequence, _, _ in asks]
            if all(param.greedy and param.repetition_penalty == 1 for param in params):
                return most_probable(logits_NV)
            uniforms = [0.0 if s.request.sampling.greedy else s.uniform(s.generated + j) for s, _, j in asks]
            if any(param.repetition_penalty != 1 for param in params):
                pairs = zip(logits_NV, asks, params, strict=True)
                logits_NV = torch.stack(
                    [
                        penalize(row, [*s.tokens, *s.draft[:j]], param.repetition_penalty)
                        for row, (s, _, j), param in pairs
                    ]
                )
            return sample(logits_NV, params, uniforms)

        rows = [row for _, row, _ in asks]
        hidden_NC = hidden_TC if rows == list(range(len(hidden_TC))) else hidden_TC[rows]
        top = max(sequence.request.top for sequence, _, _ in asks)

        def name(i: int) -> tuple[SequenceState, str]:
            sequence, _, ahead = asks[i]
            return sequence, sequence.name(ahead)

        return self._decide(self.model.logits(hidden_NC), name, top, choose)

    @torch.inference_mode()
    def _decide(self, logits_NV: torch.Tensor, name: _Name, top: int, choose: _Choose) -> list[SampledToken]:
        """Ids and scores of the first rank, on all ranks.

        One float32 row an id, which holds every id below 2^24 exactly. Where logits are not finite the row is
        NaN and their number, so that all ranks raise alike, not only the one that sees them.
        """
        parallel, device = self.model.parallel, logits_NV.device
        packet = torch.full((len(logits_NV), 2 + 2 * top), torch.nan, dtype=torch.float32, device=device)
        if parallel.rank == 0:
            if all_finite(logits_NV):
                packet = _packet(logits_NV, choose(logits_NV), top)
            else:
                bad_N = count_not_finite(logits_NV)
                packet[:, 0] = torch.where(bad_N > 0, torch.nan, 0.0)
                packet[:, 1] = bad_N
        rows = parallel.broadcast(packet).tolist()
        for i, row in enumerate(rows):
            if math.isnan(row[0]):
                sequence, called = name(i)
                error = not_finite(called, int(row[1]), self.model.vocab_size, self.model.dtype)
                error.request_id = sequence.request_id
                raise error
        return [
            SampledToken(
                int(row[0]),
                TokenScore(row[1], tuple(zip(map(int, row[2 : 2 + top]), row[2 + top :], strict=True))),
            )
            for row in rows
        ]


def _next(sequence: SequenceState, count: int) -> list[int]:
    tokens = sequence.tokens[sequence.computed : sequence.computed + count]
    return tokens + sequence.draft if sequence.draft else tokens


def _packet(logits_NV: torch.Tensor, ids_N: torch.Tensor, top: int) -> torch.Tensor:
    """(N, 2 + 2 top): id, its log-probability, the best ids, their log-probabilities."""
    if not top:
        return torch.stack([ids_N.float(), log_probabilities(logits_NV, ids_N)], dim=-1)
    logs_NV = torch.log_softmax(logits_NV, dim=-1)
    ids_N1 = ids_N[:, None]
    best_NK = logits_NV.topk(top, dim=-1).indices
    columns = [ids_N1.float(), logs_NV.gather(1, ids_N1), best_NK.float(), logs_NV.gather(1, best_NK)]
    return torch.cat(columns, dim=-1)


def _given(ids: list[int]) -> _Choose:
    """The choice that takes ids as they are: for the scores of a prompt."""
    return lambda logits_NV: torch.tensor(ids, device=logits_NV.device)
