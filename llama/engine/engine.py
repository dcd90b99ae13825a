"""The loop: requests in, a step at a time, deltas out.

The same engine runs on every rank. Fed with the same requests in the same order it takes the same
decisions, so ranks need no messages but the tokens that the runner broadcasts.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch

from ..detokenizer import Detokenizer
from ..errors import PromptError, PromptTooLongError, RequestError
from ..model import Transformer
from ..tokenizer import Tokenizer
from .request import Delta, FinishReason, Plan, Request, Sequence
from .runner import Drawn, Runner
from .scheduler import Scheduler

__all__ = ["Engine"]


class Engine:
    """Runs requests on a model, many at a time, each leaving when it is done.

    Args:
        model: this rank's Transformer; its params carry max_batch_size and max_seq_len.
        tokenizer: for the text of what is generated.
        cache_tokens: positions that all caches may hold together; by default as many as the two
            limits allow.
        step_tokens: tokens of one step.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        cache_tokens: int | None = None,
        step_tokens: int = 1024,
    ) -> None:
        params = model.params
        limit = params.max_batch_size * params.max_seq_len
        self.model = model
        self.tokenizer = tokenizer
        self.runner = Runner(model)
        self.scheduler = Scheduler(
            params.max_batch_size, limit if cache_tokens is None else min(limit, cache_tokens), step_tokens
        )
        self._next_id = 0
        self._ended: list[Delta] = []

    def check(self, request: Request) -> None:
        """Raise what `add` would raise, without queueing anything.

        Raises:
            RequestError, OutOfMemoryError: see `Scheduler.check`.
            PromptError: an empty prompt, or ids outside the vocabulary.
            PromptTooLongError: a prompt that leaves no room below max_seq_len.
            RequestError: more alternatives than the vocabulary has ids.
        """
        length, limit, vocab = len(request.prompt), self.model.params.max_seq_len, self.model.vocab_size
        if length == 0:
            raise PromptError("the prompt has no tokens; begin it with bos, as the prompt functions do")
        outside = [token for token in request.prompt if not 0 <= token < vocab]
        if outside:
            raise PromptError(
                f"the prompt holds id {outside[0]}, but the vocabulary has ids 0 to {vocab - 1}"
            )
        if request.top > vocab:
            raise RequestError(
                f"{request.top} alternatives were asked for, but the vocabulary has {vocab} ids"
            )
        if length + request.max_new_tokens > limit:
            raise PromptTooLongError(
                f"the prompt has {length} tokens and {request.max_new_tokens} more were asked for, but max_seq_len"
                f" is {limit}; shorten it, or build with a larger max_seq_len"
            )
        self.scheduler.check(request)

    def add(self, request: Request) -> int:
        """Queue a request -> its id. Raises what `check` raises."""
        self.check(request)
        request_id = self._next_id
        self._next_id += 1
        if request.max_new_tokens == 0 and not request.score_prompt:
            ended = self._sequence(request_id, request, 0)
            self._ended += [self._end(s, "", FinishReason.LENGTH) for s in (ended, *self._forks(ended))]
        else:
            self.scheduler.add(request_id, request)
        return request_id

    def cancel(self, request_id: int) -> None:
        """Drop a request and its caches; unknown or finished ids are fine."""
        self.scheduler.cancel(request_id)
        self._ended = [delta for delta in self._ended if delta.key[0] != request_id]

    def pause(self, request_id: int) -> None:
        """Leave a request as it is, and keep its caches, until `resume`; for an id that is not finished."""
        self.scheduler.paused.add(request_id)

    def resume(self, request_id: int) -> None:
        """Let a paused request go on; others are fine."""
        self.scheduler.paused.discard(request_id)

    @property
    def cache_tokens(self) -> int:
        """Positions that all caches may hold together."""
        return self.scheduler.cache_tokens

    @property
    def unfinished(self) -> bool:
        """Whether a further step would do anything."""
        return bool(self._ended) or not self.scheduler.idle

    @torch.inference_mode()
    def step(self) -> list[Delta]:
        """Advance what can advance -> what each sequence gained.

        Raises:
            NumericsError: logits that are not finite. All requests stay as they were before the step;
                the caller cancels its own.
        """
        ended, self._ended = self._ended, []
        self._admit()
        plan = self.scheduler.plan()
        if not plan:
            return ended
        before = [(sequence, sequence.computed) for sequence in self.scheduler.running]
        try:
            return ended + self._run(plan)
        except BaseException:
            self._ended = ended
            self.scheduler.running = [sequence for sequence, _ in before if sequence.finish_reason is None]
            for sequence, computed in before:
                sequence.rewind(computed)
            raise

    def _run(self, plan: Plan) -> list[Delta]:
        hidden_TC = self.runner.forward(plan)
        self.runner.score_prompts(plan, hidden_TC)
        drawing: list[Sequence] = []
        rows: list[int] = []
        row = -1
        for sequence, count in plan:
            row += count
            sequence.computed += count
            if sequence.pending == 0:
                samples = [sequence, *self._forks(sequence)]
                drawing += samples
                rows += [row] * len(samples)
        return self._advance(drawing, hidden_TC, rows)

    def _admit(self) -> None:
        while (admitted := self.scheduler.admit()) is not None:
            sequence = self._sequence(*admitted, 0)
            # The whole prompt is certain to come; growing towards it would copy.
            sequence.cache.reserve(len(sequence.tokens) + min(sequence.request.max_new_tokens, 64))
            self.scheduler.running.append(sequence)

    def _sequence(self, request_id: int, request: Request, sample: int) -> Sequence:
        detokenizer = Detokenizer(self.tokenizer, start_of_text=request.start_of_text, stop=request.stop)
        cache = self.model.new_cache(len(request.prompt) + request.max_new_tokens)
        return Sequence(request_id, request, sample, cache, detokenizer, list(request.prompt))

    def _forks(self, sequence: Sequence) -> list[Sequence]:
        """The further samples of a request whose prefill has just ended; none later on."""
        request = sequence.request
        if len(sequence.tokens) > len(request.prompt):
            return []
        forks = []
        for sample in range(1, request.n):
            fork = self._sequence(sequence.request_id, request, sample)
            fork.cache = sequence.cache.fork()
            fork.computed = sequence.computed
            fork.prompt_scores = list(sequence.prompt_scores)
            forks.append(fork)
        if sequence in self.scheduler.running:
            self.scheduler.running += forks
        return forks

    def _advance(self, sequences: list[Sequence], hidden_TC: torch.Tensor, rows: Rows[int]) -> list[Delta]:
        """Give each sequence its next token, where one is wanted."""
        deltas = [
            self._end(sequence, "", FinishReason.LENGTH)
            for sequence in sequences
            if not sequence.request.max_new_tokens
        ]
        wanting = [(s, row) for s, row in zip(sequences, rows, strict=True) if s.request.max_new_tokens]
        if wanting:
            drawn = self.runner.draw([s for s, _ in wanting], hidden_TC[[row for _, row in wanting]])
            deltas += [self._append(s, each) for (s, _), each in zip(wanting, drawn, strict=True)]
        return deltas

    def _append(self, sequence: Sequence, drawn: Drawn) -> Delta:
        request, detokenizer = sequence.request, sequence.detokenizer
        text = ""
        reason: FinishReason | None = None
        if drawn.token in request.stop_ids:
            reason = FinishReason.STOP
        else:
            sequence.tokens.append(drawn.token)
            sequence.scores.append(drawn.score.best(request.top))
            text = detokenizer.push(drawn.token)
            if len(sequence.output) == request.max_new_tokens:
                reason = FinishReason.LENGTH
        if reason is not None and detokenizer.stopped is None:
            text += detokenizer.finish()
        if detokenizer.stopped is not None:
            reason = FinishReason.STOP_SEQUENCE
            del sequence.tokens[len(request.prompt) + detokenizer.kept_tokens :]
            del sequence.scores[detokenizer.kept_tokens :]
        if reason is not None:
            return self._end(sequence, text, reason)
        sequence.text.append(text)
        return Delta(sequence, text)

    def _end(self, sequence: Sequence, text: str, reason: FinishReason) -> Delta:
        sequence.text.append(text)
        sequence.finish_reason = reason
        if sequence in self.scheduler.running:
            self.scheduler.leave(sequence)
        # The record outlives the step, its memory does not.
        sequence.cache = self.model.new_cache()
        return Delta(sequence, text, reason)
