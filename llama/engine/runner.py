"""A scheduled batch -> tensors -> logits -> sampled tokens, the same on every rank.

The model's first rank decides every token and broadcasts ids and scores, so ranks cannot diverge by random
state or rounding. On a CPU tokens are decided from logits that the host reads; on CUDA the host prepares all numbers
before the forward, and reads nothing but a packet of answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..kernels.adjust import adjust
from ..kernels.draws import draw, draw_numbers
from ..kernels.operators import decide, log_probabilities
from ..kernels.sampling import Decided, count_not_finite
from ..kernels.steps import Step, StepTensors
from ..model import Transformer
from .cache_memory import CacheMemory
from .rows import (
    Row,
    SampledToken,
    StepResult,
    changes_of,
    deal,
    due,
    inputs_of,
    packet,
    packet_shape,
    scored,
    uniforms,
    unpacked,
)
from .sequence import ScheduledBatch, TokenScore
from .step_digest import step_of
from .transfers import Transfers

__all__ = ["Inputs", "Runner"]


class Runner:
    """Runs scheduled batches on a model.

    Args:
        model: this rank's part.
        memory: of the cache.
    """

    def __init__(self, model: Transformer, memory: CacheMemory) -> None:
        self.model, self.memory = model, memory
        self._transfers: Transfers | None = None

    def run(self, batch: ScheduledBatch) -> list[StepResult]:
        """Run a step through the model and decide its tokens.

        Only blocks of the pool change, behind what is computed. If this raises, the step has left no trace.
        Copies that were made are gone from `batch.copies`.
        """
        model, pool = self.model, self.memory.pool
        device = pool.device  # the model's, which takes longer to tell
        tokens, parts = inputs_of(batch)
        if model.parallel.size > 1:
            model.parallel.begin(step_of(batch, tokens), device)
        step = pool.step(parts)
        results = [StepResult(scheduled) for scheduled in batch]
        prompts, next_rows = scored(batch), due(results)
        groups = [rows for _, rows in prompts]
        if next_rows:
            groups.append(next_rows)
        if device.type == "cuda":
            answers = self._on_cuda(batch, tokens, step, groups)
        else:
            if batch.copies:
                pool.copy(*zip(*batch.copies, strict=True))
                batch.copies.clear()
            hidden_TC = model.hidden(torch.from_numpy(_integers(tokens)).to(device), step)
            answers = [self._decide(hidden_TC, rows) for rows in groups]
        for (i, _), scores in zip(prompts, answers, strict=False):
            results[i].prompt_scores = [*results[i].prompt_scores, *(each.score for each in scores)]
        deal(results, answers[-1] if next_rows else ())
        return results

    # ---- where the host reads the logits ----

    def _decide(self, hidden_TC: torch.Tensor, rows: list[Row]) -> list[SampledToken]:
        """Ids and scores that the first rank decides, on all ranks."""
        wanted = [each.row for each in rows]
        if wanted == list(range(hidden_TC.shape[0])):
            hidden_NC = hidden_TC
        elif wanted == list(range(wanted[0], wanted[0] + len(rows))):
            hidden_NC = hidden_TC[wanted[0] : wanted[0] + len(rows)]
        else:
            hidden_NC = hidden_TC[wanted]
        parallel, top = self.model.parallel, max(each.sequence.request.top for each in rows)
        # MPS, which has no float64, hands its logits over.
        logits_NV = self.model.logits(hidden_NC).cpu()
        if parallel.rank != 0:
            answers = torch.empty(packet_shape(len(rows), top), dtype=torch.float32, device="cpu")
        else:
            found = _decided(logits_NV, rows)
            if parallel.size == 1 and not top and not any(found.bad):
                # Most steps: nothing has to travel.
                return list(map(SampledToken, found.ids, map(TokenScore, found.logs)))
            ids_N, bad_N = (torch.tensor(each, device="cpu") for each in (found.ids, found.bad))
            answers = packet(logits_NV, ids_N, bad_N, top)
        return unpacked(parallel.broadcast(answers).tolist(), rows, self.model)

    # ---- where it does not ----

    def _on_cuda(
        self, batch: ScheduledBatch, tokens: list[int], step: Step, groups: list[list[Row]]
    ) -> list[list[SampledToken]]:
        """Send all that the step needs, run it, and fetch the answers."""
        if self._transfers is None or self._transfers.device != self.model.device:
            self._transfers = Transfers(self.model.device)
        rows = [row for group in groups for row in group]
        inputs = self._sent(self._transfers, batch, tokens, step, rows)
        if batch.copies:
            self.memory.pool.copy(*inputs.copies)
            batch.copies.clear()
        top = max((each.sequence.request.top for each in rows), default=0)
        answers = self.compute(step, inputs, [len(group) for group in groups], top)
        if not rows:
            return []
        tokens_of = iter(unpacked(self._transfers.fetch(answers), rows, self.model))
        return [list(itertools.islice(tokens_of, len(group))) for group in groups]

    def _sent(
        self, transfers: Transfers, batch: ScheduledBatch, tokens: list[int], step: Step, rows: list[Row]
    ) -> Inputs:
        """Copy all numbers of a step to the device."""
        vocab, next_rows = self.model.vocab_size, [row for row in rows if not row.place]
        params = [each.sequence.request.sampling for each in next_rows]
        arrays: list[np.ndarray[Any, Any]] = [
            _integers(tokens),
            _integers(batch.copies).reshape(-1, 2).T,
            _integers([each.row for each in rows]),
            _integers([each.known for each in rows if each.place]),
            np.asarray(draw_numbers(params, uniforms(next_rows))).reshape(-1, 5),
            *changes_of(next_rows, vocab),
            *step.on_host,
        ]
        sent = transfers.send(arrays)
        count = len(Inputs._fields)
        step.tensors = StepTensors(*sent[count:])
        return Inputs(*sent[:count])

    def compute(self, step: Step, inputs: Inputs, counts: Sequence[int], top: int) -> torch.Tensor:
        """The packet of answers, on the device. It waits for nothing, and no number there decides what is run.

        counts: rows of each group: first those to score, last those whose next token is to be decided, if any.
        """
        model, parallel = self.model, self.model.parallel
        hidden_TC = model.hidden(inputs.tokens, step)
        shape = packet_shape(len(inputs.wanted), top)
        packets, known = [], 0
        for rows_N in torch.split(inputs.wanted, list(counts)):
            logits_NV = model.logits(hidden_TC[rows_N])
            if parallel.rank != 0:
                continue  # all ranks have to multiply
            if known < len(inputs.known):
                ids_N = inputs.known[known : known + len(rows_N)]
                known += len(rows_N)
            else:
                ids_N = draw(adjust(logits_NV, inputs.changed, inputs.changes), inputs.draws)
            packets.append(packet(logits_NV, ids_N, count_not_finite(logits_NV), top))
        if parallel.rank != 0 or not packets:
            return parallel.broadcast(torch.empty(shape, dtype=torch.float32, device=model.device))
        return parallel.broadcast(packets[0] if len(packets) == 1 else torch.cat(packets))


class Inputs(NamedTuple):
    """A step's numbers on the device, beside those of `Step.tensors`; see `Runner._sent`."""

    tokens: torch.Tensor
    copies: torch.Tensor
    wanted: torch.Tensor
    known: torch.Tensor
    draws: torch.Tensor
    changed: torch.Tensor
    changes: torch.Tensor


def _integers(values: Sequence[object]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(values, dtype=np.int64)


def _decided(logits_NV: torch.Tensor, rows: list[Row]) -> Decided:
    """The ids and scores of rows, on the host."""
    if rows[0].place:
        ids, bad = [each.known for each in rows], count_not_finite(logits_NV).tolist()
        logs = log_probabilities(logits_NV, torch.tensor(ids, device="cpu"))
        return Decided(ids, logs.tolist(), bad)
    requests = [each.sequence.request for each in rows]
    drawn_NV = logits_NV
    if any(request.adjusted for request in requests):
        changed = changes_of(rows, logits_NV.shape[1])
        drawn_NV = adjust(logits_NV, *map(torch.from_numpy, changed))
    return decide(logits_NV, drawn_NV, [request.sampling for request in requests], uniforms(rows))
