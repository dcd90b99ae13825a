"""A step's plan -> tensors -> logits -> sampled ids, the same on every rank.

The model's first rank decides every token and broadcasts what it decided, scores included: no rank
can diverge by its random state or by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..cache import BatchCache
from ..model import Transformer
from ..sampling import count_not_finite, log_probabilities, not_finite, penalize, sample
from .request import Plan, Sequence, TokenScore

__all__ = ["Drawn", "Runner"]

_Choose = Callable[[torch.Tensor], torch.Tensor]
# Rows of logits that exist at once while a prompt is scored: 128 x 32016 float32 are 16 MB.
_SCORED_ROWS = 128


@dataclass(frozen=True)
class Drawn:
    """A token that was decided for a sequence, and its score."""

    token: int
    score: TokenScore


class Runner:
    """Runs plans on a model."""

    def __init__(self, model: Transformer) -> None:
        self.model = model

    def forward(self, plan: Plan) -> torch.Tensor:
        """Run a plan's tokens through the model -> hidden states (T, C); the caches have grown by them."""
        tokens = [token for sequence, count in plan for token in _next(sequence, count)]
        cache = BatchCache([sequence.cache for sequence, _ in plan], [count for _, count in plan])
        return self.model.hidden(torch.tensor(tokens, device=self.model.device), cache)

    def score_prompts(self, plan: Plan, hidden_TC: torch.Tensor) -> None:
        """Append the scores of the prompt tokens that this step's positions predict."""
        start = 0
        for sequence, count in plan:
            if sequence.request.score_prompt:
                first = sequence.computed + 1
                targets = list(sequence.request.prompt[first : first + count])
                for a in range(0, len(targets), _SCORED_ROWS):
                    rows = targets[a : a + _SCORED_ROWS]
                    logits = self.model.logits(hidden_TC[start + a : start + a + len(rows)])
                    names = [f"{sequence.name}, prompt token {first + a + i}" for i in range(len(rows))]
                    drawn = self._decide(logits, names, sequence.request.top, _given(rows))
                    sequence.prompt_scores += [each.score for each in drawn]
            start += count

    def draw(self, sequences: list[Sequence], hidden_NC: torch.Tensor) -> list[Drawn]:
        """Decide the next token of each sequence from its last hidden state, (N, C)."""
        if not sequences:
            return []

        def choose(logits_NV: torch.Tensor) -> torch.Tensor:
            params = [sequence.request.sampling for sequence in sequences]
            uniforms = [0.0 if s.request.sampling.greedy else float(s.random.random()) for s in sequences]
            if any(param.repetition_penalty != 1 for param in params):
                pairs = zip(logits_NV, sequences, strict=True)
                logits_NV = torch.stack(
                    [penalize(row, s.tokens, s.request.sampling.repetition_penalty) for row, s in pairs]
                )
            return sample(logits_NV, params, uniforms)

        top = max(sequence.request.top for sequence in sequences)
        return self._decide(self.model.logits(hidden_NC), [s.name for s in sequences], top, choose)

    @torch.inference_mode()
    def _decide(self, logits_NV: torch.Tensor, names: list[str], top: int, choose: _Choose) -> list[Drawn]:
        """Ids and scores of the first rank, on all ranks.

        One float32 row an id, which holds every id below 2^24 exactly. Where logits are not finite the row is
        NaN and their number, so that all ranks raise alike, not only the one that sees them.
        """
        parallel, device = self.model.parallel, logits_NV.device
        packet = torch.full((len(names), 2 + 2 * top), torch.nan, dtype=torch.float32, device=device)
        if parallel.rank == 0:
            bad_N = count_not_finite(logits_NV)
            if bool(bad_N.any()):
                packet[:, 0] = torch.where(bad_N > 0, torch.nan, 0.0)
                packet[:, 1] = bad_N
            else:
                packet = _packet(logits_NV, choose(logits_NV), top)
        rows = parallel.broadcast(packet).tolist()
        for name, row in zip(names, rows, strict=True):
            if math.isnan(row[0]):
                raise not_finite(name, int(row[1]), self.model.vocab_size, self.model.dtype)
        return [
            Drawn(
                int(row[0]),
                TokenScore(row[1], tuple(zip(map(int, row[2 : 2 + top]), row[2 + top :], strict=True))),
            )
            for row in rows
        ]


def _next(sequence: Sequence, count: int) -> list[int]:
    return sequence.tokens[sequence.computed : sequence.computed + count]


def _packet(logits_NV: torch.Tensor, ids_N: torch.Tensor, top: int) -> torch.Tensor:
    """(N, 2 + 2 top): id, its log-probability, the best ids, their log-probabilities."""
    columns = [ids_N[:, None].float(), log_probabilities(logits_NV, ids_N)[:, None]]
    if top:
        best = logits_NV.topk(top, dim=-1)
        columns += [best.indices.float(), best.values - torch.logsumexp(logits_NV, dim=-1, keepdim=True)]
    return torch.cat(columns, dim=-1)


def _given(ids: list[int]) -> _Choose:
    """The choice that takes ids as they are: for the scores of a prompt."""
    return lambda logits_NV: torch.tensor(ids, device=logits_NV.device)
