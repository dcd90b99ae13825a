"""A scheduled batch -> tensors -> logits -> sampled tokens, the same on every rank.

The model's first rank decides every token and broadcasts ids and scores, so ranks cannot diverge by random
state or rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ..kernels.operators import log_probabilities, sample
from ..kernels.sampling import adjust, all_finite, count_not_finite, most_probable, not_finite
from ..kv_cache import Part
from ..model import Transformer
from .cache_memory import CacheMemory
from .sequence import ScheduledBatch, ScheduledSequence, SequenceState, TokenScore
from .step_digest import step_of

__all__ = ["Runner", "SampleRow", "SampledToken", "StepResult"]

_Choose = Callable[[torch.Tensor], torch.Tensor]
# A row of logits -> its sequence, and how an error names the row.
_Name = Callable[[int], tuple[SequenceState, str]]
# Rows of logits that exist at once while a prompt is scored: 128 x 32016 float32 are 16 MB.
_SCORED_ROWS = 128


@dataclass(frozen=True)
class SampledToken:
    """A token that was decided for a sequence, and its score."""

    token: int
    score: TokenScore


class SampleRow(NamedTuple):
    """A token to decide: for whom, from which row of the hidden states, behind which drafted tokens."""

    sequence: SequenceState
    row: int
    drafted: Sequence[int] = ()


@dataclass
class StepResult:
    """What a step computed for a scheduled sequence.

    prompt_scores: of the prompt tokens that its positions predict. samples: the sequence and its new forks,
    if the next token was due. tokens: for each of these, one token for each drafted one and one more; none if
    the request asks for no new token.
    """

    scheduled: ScheduledSequence
    prompt_scores: list[TokenScore]
    samples: list[SequenceState] = field(default_factory=list)
    tokens: list[list[SampledToken]] = field(default_factory=list)


class Runner:
    """Runs scheduled batches on a model.

    Args:
        model: this rank's part.
        memory: of the cache.
    """

    def __init__(self, model: Transformer, memory: CacheMemory) -> None:
        self.model, self.memory = model, memory

    def run(self, batch: ScheduledBatch) -> list[StepResult]:
        """Run a step through the model and decide its tokens.

        Only blocks of the pool change, behind what is computed. If this raises, the step has left no trace.
        Copies that were made are gone from `batch.copies`.
        """
        pool = self.memory.pool
        if batch.copies:
            sources, targets = zip(*batch.copies, strict=True)
            pool.copy(sources, targets)
            batch.copies.clear()
        tokens = [token for scheduled in batch for token in scheduled.tokens]
        model, device = self.model, self.model.device
        if model.parallel.size > 1:
            model.parallel.begin(step_of(batch, tokens), device)
        step = pool.step([Part(sequence.table, start, length) for sequence, start, length, _ in batch])
        hidden_TC = model.hidden(torch.tensor(tokens, device=device), step)
        results = self._score_prompts(batch, hidden_TC)
        sampled = iter(self._sample(_due(results), hidden_TC))
        for result in results:
            scheduled = result.scheduled
            count = 1 + len(scheduled.draft) if scheduled.sequence.request.max_new_tokens else 0
            result.tokens = [list(itertools.islice(sampled, count)) for _ in result.samples]
        return results

    def _score_prompts(self, batch: ScheduledBatch, hidden_TC: torch.Tensor) -> list[StepResult]:
        """Results with the scores of the prompt tokens that this step predicts."""
        results: list[StepResult] = []
        row = 0
        for scheduled in batch:
            scores: list[TokenScore] = []
            if scheduled.sequence.request.score_prompt:
                scores = self._score_prompt(scheduled, row, hidden_TC)
            results.append(StepResult(scheduled, scores))
            row += scheduled.length
        return results

    def _score_prompt(
        self, scheduled: ScheduledSequence, row: int, hidden_TC: torch.Tensor
    ) -> list[TokenScore]:
        """Scores of the prompt tokens that a sequence's hidden states, from `row` on, predict."""
        sequence, start, length, _ = scheduled
        # A sequence that was preempted has scores already.
        first = max(start, len(sequence.prompt_scores)) + 1
        row += first - 1 - start
        targets = sequence.request.prompt[first : start + length + 1]
        scores: list[TokenScore] = []
        for done in range(0, len(targets), _SCORED_ROWS):
            ids = targets[done : done + _SCORED_ROWS]
            logits = self.model.logits(hidden_TC[row + done : row + done + len(ids)])

            def name(i: int, position: int = first + done) -> tuple[SequenceState, str]:
                return sequence, f"{sequence.name()}, prompt token {position + i}"

            sampled = self._decide(logits, name, sequence.request.top, _given(ids))
            scores += [each.score for each in sampled]
        return scores

    def _sample(self, rows: list[SampleRow], hidden_TC: torch.Tensor) -> list[SampledToken]:
        """Decide a token for each row."""
        if not rows:
            return []

        def choose(logits_NV: torch.Tensor) -> torch.Tensor:
            requests = [each.sequence.request for each in rows]
            params = [request.sampling for request in requests]
            if any(request.adjusted for request in requests):
                logits_NV = _adjusted(logits_NV, rows)
            if all(param.greedy for param in params):
                return most_probable(logits_NV)
            uniforms = [
                0.0 if param.greedy else each.sequence.uniform(each.sequence.generated + len(each.drafted))
                for each, param in zip(rows, params, strict=True)
            ]
            return sample(logits_NV, params, uniforms)

        def name(i: int) -> tuple[SequenceState, str]:
            return rows[i].sequence, rows[i].sequence.name(len(rows[i].drafted))

        wanted = [each.row for each in rows]
        hidden_NC = hidden_TC if wanted == list(range(len(hidden_TC))) else hidden_TC[wanted]
        top = max(each.sequence.request.top for each in rows)
        return self._decide(self.model.logits(hidden_NC), name, top, choose)

    def _decide(self, logits_NV: torch.Tensor, name: _Name, top: int, choose: _Choose) -> list[SampledToken]:
        """Ids and scores that the first rank decides, on all ranks.

        One float32 row for each id, which holds every id below 2^24 exactly. If logits are not finite, the
        row is NaN and their number, so that all ranks raise alike.
        """
        parallel = self.model.parallel
        size = (len(logits_NV), 2 + 2 * top)
        if parallel.rank != 0:
            packet = torch.empty(size, dtype=torch.float32, device=logits_NV.device)
        elif not all_finite(logits_NV):
            packet = _refusal(logits_NV, size)
        else:
            ids_N = choose(logits_NV)
            if parallel.size == 1 and not top and ids_N.is_cpu:
                # Most steps on a CPU. Nothing has to travel, and two lists are made sooner than one tensor.
                logs_N = log_probabilities(logits_NV, ids_N)
                return list(map(SampledToken, ids_N.tolist(), map(TokenScore, logs_N.tolist())))
            packet = _packet(logits_NV, ids_N, top)
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


def _due(results: list[StepResult]) -> list[SampleRow]:
    """Set the samples whose next token is due, forks included -> the rows to decide them from."""
    rows: list[SampleRow] = []
    end = 0
    for result in results:
        sequence, start, length, draft = result.scheduled
        end += length
        if start + length - len(draft) < len(sequence.tokens):
            continue
        forks = range(sequence.sample + 1, sequence.sample + sequence.slots)
        result.samples = [sequence, *map(sequence.fork, forks)]
        if sequence.request.max_new_tokens:
            first = end - 1 - len(draft)
            rows += [
                SampleRow(each, first + i, draft[:i])
                for each in result.samples
                for i in range(1 + len(draft))
            ]
    return rows


def _adjusted(logits_NV: torch.Tensor, rows: Sequence[SampleRow]) -> torch.Tensor:
    """A copy of the logits with bias, penalties and banned ids of each row. Scores are of the model's own."""
    changed: dict[int, torch.Tensor] = {}
    for i, (sequence, _, drafted) in enumerate(rows):
        request = sequence.request
        early = sequence.generated + len(drafted) < request.min_new_tokens
        if early or not request.sampling.plain:
            output = [*sequence.output, *drafted]
            banned = request.stop_ids if early else ()
            changed[i] = adjust(logits_NV[i], request.sampling, request.prompt, output, banned)
    if changed:
        logits_NV = logits_NV.clone()
        for i, logits_V in changed.items():
            logits_NV[i] = logits_V
    return logits_NV


def _packet(logits_NV: torch.Tensor, ids_N: torch.Tensor, top: int) -> torch.Tensor:
    """(N, 2 + 2 top): id, its log-probability, the best ids, their log-probabilities."""
    if not top:
        return torch.stack([ids_N.float(), log_probabilities(logits_NV, ids_N)], dim=-1)
    logs_NV = torch.log_softmax(logits_NV, dim=-1)
    ids_N1 = ids_N[:, None]
    best_NK = logits_NV.topk(top, dim=-1).indices
    columns = [ids_N1.float(), logs_NV.gather(1, ids_N1), best_NK.float(), logs_NV.gather(1, best_NK)]
    return torch.cat(columns, dim=-1)


def _refusal(logits_NV: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """What stands for a packet of this size if logits are not finite."""
    bad_N = count_not_finite(logits_NV)
    packet = torch.full(size, torch.nan, dtype=torch.float32, device=bad_N.device)
    packet[:, 0] = torch.where(bad_N > 0, torch.nan, 0.0)
    packet[:, 1] = bad_N
    return packet


def _given(ids: Sequence[int]) -> _Choose:
    """The choice that takes ids as they are: for the scores of a prompt."""
    return lambda logits_NV: torch.tensor(ids, device=logits_NV.device)
