"""Rows of a step's hidden states: which are wanted, what each is asked, and what the answers mean.

The answers of all rows travel as one packet of float32: (N, 3 + 2 top), for each row an id, its log-probability, how
many of its logits are not finite, the best ids and their log-probabilities. It holds every id below 2^24 exactly.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..kernels.adjust import Changes, changes, joined
from ..kernels.operators import log_probabilities
from ..kernels.sampling import not_finite
from ..model import Transformer
from .sequence import ScheduledBatch, ScheduledSequence, SequenceState, TokenScore

__all__ = [
    "SCORED_ROWS",
    "Row",
    "SampledToken",
    "StepResult",
    "changes_of",
    "deal",
    "due",
    "inputs_of",
    "packet",
    "packet_shape",
    "scored",
    "uniforms",
    "unpacked",
]

# Rows of logits that exist at once while a prompt is scored: 128 x 32016 float32 are 16 MB.
SCORED_ROWS = 128


class SampledToken(NamedTuple):
    """A token that was decided for a sequence, and its score."""

    token: int
    score: TokenScore


class Row(NamedTuple):
    """A row of the hidden states, and what is asked of it: the next token, or the score of a token of the prompt.

    drafted: tokens before the next one that are guesses. place: in the prompt, of the token to score; 0 if the next
    token is to be decided, since nothing predicts the prompt's first.
    """

    sequence: SequenceState
    row: int
    drafted: Sequence[int] = ()
    place: int = 0

    @property
    def known(self) -> int:
        """The token of the prompt whose score is wanted."""
        return self.sequence.request.prompt[self.place]

    @property
    def name(self) -> str:
        """How an error names the row."""
        if self.place:
            return f"{self.sequence.name()}, prompt token {self.place}"
        return self.sequence.name(len(self.drafted))

    @property
    def is_early(self) -> bool:
        """Whether no stop id may be drawn yet."""
        return self.sequence.generated + len(self.drafted) < self.sequence.request.min_new_tokens


@dataclass(slots=True)
class StepResult:
    """What a step computed for a scheduled sequence.

    prompt_scores: of the prompt tokens that its positions predict. samples: the sequence and its new forks,
    if the next token was due. tokens: for each of these, one token for each drafted one and one more; none if
    the request asks for no new token.
    """

    scheduled: ScheduledSequence
    prompt_scores: Sequence[TokenScore] = ()
    samples: Sequence[SequenceState] = ()
    tokens: Sequence[Sequence[SampledToken]] = ()


# ---- what is asked ----


def inputs_of(batch: ScheduledBatch) -> tuple[list[int], list[tuple[array[int], int, int]]]:
    """The ids to run, and the `Part` of each sequence as a plain tuple, which is made in a third of the time."""
    tokens: list[int] = []
    parts: list[tuple[array[int], int, int]] = []
    for sequence, start, length, draft in batch:
        tokens += sequence.tokens[start : start + length]
        tokens += draft
        parts.append((sequence.table, start, length))
    return tokens, parts


def scored(batch: ScheduledBatch) -> list[tuple[int, list[Row]]]:
    """(place in the batch, rows) of the prompt tokens that this step predicts and whose scores are wanted: of a
    sequence each, and so few that their logits may exist at once."""
    found: list[tuple[int, list[Row]]] = []
    row = 0
    for i, (sequence, start, length, _) in enumerate(batch):
        if sequence.request.score_prompt:
            # A sequence that was preempted has scores already.
            first = max(start, len(sequence.prompt_scores)) + 1
            places = range(first, min(start + length + 1, len(sequence.request.prompt)))
            rows = [Row(sequence, row + place - 1 - start, (), place) for place in places]
            found += [(i, rows[at : at + SCORED_ROWS]) for at in range(0, len(rows), SCORED_ROWS)]
        row += length
    return found


def due(results: list[StepResult]) -> list[Row]:
    """Set the samples whose next token is due, forks included -> the rows to decide them from."""
    rows: list[Row] = []
    end = 0
    for result in results:
        sequence, start, length, draft = result.scheduled
        end += length
        if start + length - len(draft) < len(sequence.tokens):
            continue
        result.samples = samples = [sequence]
        if sequence.slots > 1:
            samples += map(sequence.fork, range(sequence.sample + 1, sequence.sample + sequence.slots))
        if not sequence.request.max_new_tokens:
            continue
        if draft:
            first = end - 1 - len(draft)
            rows += [Row(each, first + i, draft[:i]) for each in samples for i in range(1 + len(draft))]
        else:
            rows += [Row(each, end - 1) for each in samples]
    return rows


def uniforms(rows: Sequence[Row]) -> list[float]:
    """The random number of each row: that of its seed, sample and position, whatever its neighbours are."""
    return [
        0.0
        if each.sequence.request.sampling.greedy
        else each.sequence.uniform(each.sequence.generated + len(each.drafted))
        for each in rows
    ]


def changes_of(rows: Sequence[Row], vocab: int) -> Changes:
    """What changes in the flattened logits of these rows: bias, penalties and banned ids of each."""
    found: dict[int, Changes] = {}
    for i, each in enumerate(rows):
        sequence, request = each.sequence, each.sequence.request
        if each.is_early or not request.sampling.plain:
            output = [*sequence.output, *each.drafted]
            banned = request.stop_ids if each.is_early else ()
            found[i] = changes(request.sampling, request.prompt, output, banned, vocab)
    return joined(found, vocab)


# ---- what is answered ----


def deal(results: list[StepResult], decided: Iterable[SampledToken]) -> None:
    """Give the samples of `due` what was decided for their rows."""
    left = iter(decided)
    for result in results:
        sequence, _, _, draft = result.scheduled
        count = 1 + len(draft) if sequence.request.max_new_tokens else 0
        result.tokens = [list(itertools.islice(left, count)) for _ in result.samples]


def packet_shape(rows: int, top: int) -> tuple[int, int]:
    """Of a packet with so many alternatives."""
    return rows, 3 + 2 * top


def packet(logits_NV: torch.Tensor, ids_N: torch.Tensor, bad_N: torch.Tensor, top: int) -> torch.Tensor:
    """The answers to N rows, of which these ids were chosen. Scores are of the model's own logits.

    bad_N: how many logits of each are not finite.
    """
    if not top:
        return torch.stack([ids_N.float(), log_probabilities(logits_NV, ids_N), bad_N.float()], dim=-1)
    logs_NV = torch.log_softmax(logits_NV, dim=-1)
    ids_N1, bad_N1 = ids_N[:, None], bad_N[:, None]
    best_NK = logits_NV.topk(top, dim=-1).indices
    columns = [ids_N1, logs_NV.gather(1, ids_N1), bad_N1, best_NK, logs_NV.gather(1, best_NK)]
    return torch.cat([column.float() for column in columns], dim=-1)


def unpacked(answers: list[list[float]], rows: Sequence[Row], model: Transformer) -> list[SampledToken]:
    """What a packet says, as the same on all ranks.

    Raises:
        NumericsError: of the first row whose logits are not all finite, with its request.
    """
    found: list[SampledToken] = []
    for (token, logprob, bad, *best), row in zip(answers, rows, strict=True):
        if bad:
            error = not_finite(row.name, int(bad), model.vocab_size, model.dtype)
            error.request_id = row.sequence.request_id
            raise error
        top = len(best) // 2
        alternatives = tuple(zip(map(int, best[:top]), best[top:], strict=True))
        found.append(
            SampledToken(int(token), TokenScore(logprob, alternatives).best(row.sequence.request.top))
        )
    return found
