"""The loop: requests in, a step at a time, deltas out.

The same engine runs on every rank. Fed with the same requests in the same order it takes the same
decisions, so ranks need no messages but the tokens that the runner broadcasts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..detokenizer import Detokenizer
from ..errors import NumericsError, PromptError, PromptTooLongError, RequestError
from ..model import ModelArgs, Transformer
from ..sampling import SamplingParams
from ..tokenizer import Tokenizer
from .blocks import BLOCK, Blocks
from .prefixes import Prefixes
from .request import Delta, FinishReason, Plan, Request, Sequence, Times
from .runner import Ask, Drawn, Runner
from .scheduler import Limits, Scheduler
from .speculation import Drafter
from .turn import Turn

__all__ = ["Engine"]

# Tokens of prompts beside a live decode, at which a step stays below three times its usual length: on a CPU a
# row of a prompt costs a twentieth of a step that decodes one token; on a GPU next to nothing.
_PREFILL_TOKENS = {"cpu": 20}
_PREFILL_TOKENS_ELSEWHERE = 256


@dataclass
class _Turn:
    """What a step did for a sequence; samples: itself and its new forks, where the next token was due."""

    sequence: Sequence
    count: int
    samples: list[Sequence] = field(default_factory=list)
    drawn: list[list[Drawn]] = field(default_factory=list)


def _reach(params: ModelArgs) -> float:
    """Positions whose attention takes a token as long as its products with the weights of a layer.

    A product with a position takes longer than one with a weight: four times as long where few queries share a
    key head, as in a small chunk, little longer where heads of a group do.
    """
    kv_heads = params.n_kv_heads or params.n_heads
    query, key = params.n_heads * params.head_dim, kv_heads * params.head_dim
    weights = params.dim * (2 * query + 2 * key + 3 * params.ffn_dim)
    return weights / (2 * query * (1 + 3 * kv_heads / params.n_heads))


class Engine:
    """Runs requests on a model, many at a time, each leaving when it is done.

    Args:
        model: this rank's Transformer; its params carry max_batch_size and max_seq_len.
        tokenizer: for the text of what is generated.
        cache_tokens: positions that all caches may hold together, of what runs and of what is retained;
            by default as many as the two limits allow to run.
        retained_tokens: positions of these that may be retained for reuse; by default a quarter, and at
            least one sequence of max_seq_len, so that memory is not filled up for its own sake.
        step_tokens: tokens of one step.
        prefill_tokens: tokens of prompts in a step beside live decodes; by default what suits the device.
        prefix_reuse: whether what was computed is kept and used again.
        speculate: whether requests that allow it get drafts.
        block: positions of a block of the account, and of a shared prefix.
        clock: seconds, for the times that results carry; no decision depends on it.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        cache_tokens: int | None = None,
        retained_tokens: int | None = None,
        step_tokens: int = 1024,
        prefill_tokens: int | None = None,
        prefix_reuse: bool = True,
        speculate: bool = True,
        block: int = BLOCK,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        params = model.params
        self.model = model
        self.tokenizer = tokenizer
        self.runner = Runner(model)
        self.clock = clock
        # Whether it belongs to a service: then nobody else adds to it or steps it.
        self.front = False
        # Had by whoever adds, steps or cancels, where that may be several threads; the engine itself never asks.
        self.turn = Turn()
        self._speculate = speculate
        if cache_tokens is None:
            cache_tokens = params.max_batch_size * params.max_seq_len
        if prefill_tokens is None:
            prefill_tokens = _PREFILL_TOKENS.get(model.device.type, _PREFILL_TOKENS_ELSEWHERE)
        self.blocks = Blocks(cache_tokens, block)
        if retained_tokens is None:
            retained_tokens = max(params.max_seq_len, cache_tokens // 4)
        retained = min(self.blocks.total, self.blocks.of(retained_tokens))
        self.scheduler = Scheduler(
            Limits(params.max_batch_size, step_tokens, prefill_tokens, _reach(params)),
            self.blocks,
            Prefixes(block, retained) if prefix_reuse else None,
            self._sequence,
        )
        self._next_id = 0
        self._ended: list[Delta] = []
        self._planned: frozenset[int] = frozenset()

    # ---- requests come and go --------------------------------------------------------------------

    def check(self, request: Request) -> None:
        """Raise what `add` would raise, without queueing anything.

        Raises:
            RequestError, OutOfMemoryError: see `Scheduler.check`.
            PromptError: an empty prompt, or ids outside the vocabulary, there or in the prediction.
            PromptTooLongError: a prompt that leaves no room below max_seq_len.
            RequestError: more alternatives than the vocabulary has ids.
        """
        request.check()
        if not isinstance(request.sampling, SamplingParams):
            raise RequestError(f"sampling is {request.sampling!r}; it must be SamplingParams")
        length, limit, vocab = len(request.prompt), self.model.params.max_seq_len, self.model.vocab_size
        if length == 0:
            raise PromptError("the prompt has no tokens; begin it with bos, as the prompt functions do")
        for name, ids in (("prompt", request.prompt), ("prediction", request.prediction)):
            if ids and not 0 <= min(ids) <= max(ids) < vocab:
                outside = next(token for token in ids if not 0 <= token < vocab)
                raise PromptError(
                    f"the {name} holds id {outside}, but the vocabulary has ids 0 to {vocab - 1}"
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
        now = self.clock()
        if request.max_new_tokens == 0 and not request.score_prompt:
            samples = [self._sequence(request_id, request, now, sample) for sample in range(request.n)]
            self._ended += [self._end(sample, "", FinishReason.LENGTH, now) for sample in samples]
        else:
            self.scheduler.add(request_id, request, now)
        return request_id

    def cancel(self, request_id: int) -> None:
        """Drop a request, and free its memory, at once; unknown or finished ids are fine. No delta follows."""
        now = self.clock()
        for sequence in self.scheduler.cancel(request_id):
            sequence.finish_reason, sequence.times.ended = FinishReason.CANCELLED, now
        self._ended = [delta for delta in self._ended if delta.key[0] != request_id]

    def pause(self, request_id: int) -> None:
        """Let a request wait, as for a consumer that reads no more; unknown or finished ids are fine.

        It keeps what it has computed until somebody else needs the memory or the place.
        """
        self.scheduler.pause(request_id)

    def resume(self, request_id: int) -> None:
        """Go on with a paused request; it gets what it would have got without the pause."""
        self.scheduler.resume(request_id)

    @property
    def cache_tokens(self) -> int:
        """Positions that all caches may hold together."""
        return self.blocks.total * self.blocks.size

    def fitting(self, positions: int) -> int:
        """Sequences of so many positions that the cache holds at once."""
        return self.blocks.total // self.blocks.of(max(1, positions))

    @property
    def unfinished(self) -> bool:
        """Whether a further step would do anything; paused requests alone give it nothing to do."""
        return bool(self._ended or self.scheduler.active)

    @property
    def planned(self) -> frozenset[int]:
        """Ids of the requests in the last step that was tried: where it failed, those that it failed with."""
        return self._planned

    # ---- a step ----------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> list[Delta]:
        """Advance what can advance -> what each sequence gained.

        Raises:
            NumericsError: logits that are not finite.
            RankError: another rank of the model failed, is gone, or runs another step.
            Anything else that the model's forward raises. In each case all requests stay as they were
                before the step; the caller cancels its own, or those in `planned`, or tries again. On several
                ranks only NumericsError strikes all alike: after any other error the model cannot be used any more.
        """
        ended, self._ended = self._ended, []
        try:
            self._planned = frozenset(sequence.request_id for sequence in self.scheduler.running)
            plan = self.scheduler.plan()
            self._planned = frozenset(sequence.request_id for sequence, _ in plan)
            if not plan:
                return ended
            now = self.clock()
            for sequence, _ in plan:
                if sequence.times.begun is None:
                    sequence.times.begun = now
            turns = self._compute(plan)
        except BaseException as error:
            self._ended = ended
            # That comes with the decided tokens, so it strikes all ranks of the model alike.
            if not isinstance(error, NumericsError):
                self.model.parallel.failed(error)
            raise
        now = self.clock()
        return ended + [delta for turn in turns for delta in self._take(turn, now)]

    def _compute(self, plan: Plan) -> list[_Turn]:
        """All of a step that can fail: what it changes is taken back if it does."""
        before = [(sequence, sequence.computed, len(sequence.prompt_scores)) for sequence, _ in plan]
        try:
            for sequence, _ in plan:
                sequence.cache.limit = sequence.blocks * self.blocks.size
                sequence.cache.reserve(sequence.cache.limit)
            hidden_TC = self.runner.forward(plan)
            self.runner.score_prompts(plan, hidden_TC)
            turns: list[_Turn] = []
            asks: list[Ask] = []
            end = 0
            for sequence, count in plan:
                end += count
                turns.append(turn := _Turn(sequence, count))
                first = end - 1 - len(sequence.draft)
                if sequence.computed + count - len(sequence.draft) == len(sequence.tokens):
                    turn.samples = [sequence, *self._forks(sequence, count)]
                if sequence.request.max_new_tokens:
                    asks += [(s, row, row - first) for s in turn.samples for row in range(first, end)]
            drawn = iter(self.runner.draw(asks, hidden_TC))
            for turn in turns:
                each = 1 + len(turn.sequence.draft) if turn.sequence.request.max_new_tokens else 0
                turn.drawn = [[next(drawn) for _ in range(each)] for _ in turn.samples]
        except BaseException:
            for sequence, computed, scored in before:
                sequence.rewind(computed, scored)
            raise
        return turns

    def _sequence(self, request_id: int, request: Request, queued: float, sample: int = 0) -> Sequence:
        detokenizer = Detokenizer(self.tokenizer, start_of_text=request.start_of_text, stop=request.stop)
        tokens, cache = list(request.prompt), self.model.new_cache()
        sequence = Sequence(request_id, request, sample, cache, detokenizer, tokens, times=Times(queued))
        if self._speculate and request.speculate and request.max_new_tokens > 1:
            sequence.drafter = Drafter(tokens, len(tokens), request.prediction)
        return sequence

    def _forks(self, sequence: Sequence, count: int) -> list[Sequence]:
        """The further samples of a request whose prefill ends with these tokens; none later on."""
        forks = []
        for sample in range(1, sequence.places):
            fork = self._sequence(sequence.request_id, sequence.request, sequence.times.queued, sample)
            fork.cache = sequence.cache.fork()
            fork.computed = sequence.computed + count
            fork.prompt_scores = list(sequence.prompt_scores)
            fork.forked, fork.reused, fork.times.begun = True, sequence.reused, sequence.times.begun
            forks.append(fork)
        return forks

    def _take(self, turn: _Turn, now: float) -> list[Delta]:
        """Enter what a step computed; nothing in here can fail."""
        sequence = turn.sequence
        sequence.computed += turn.count
        if len(turn.samples) > 1:
            self.scheduler.fork(sequence, turn.samples[1:])
        return [self._advance(s, drawn, now) for s, drawn in zip(turn.samples, turn.drawn, strict=True)]

    def _advance(self, sequence: Sequence, drawn: list[Drawn], now: float) -> Delta:
        """Append what was decided, up to the first token that is not as drafted, or to the end."""
        draft, sequence.draft = sequence.draft, []
        text, accepted = "", 0
        reason = None if drawn else FinishReason.LENGTH
        for i, each in enumerate(drawn):
            piece, reason = self._append(sequence, each)
            text += piece
            if reason is not None or i == len(draft) or each.token != draft[i]:
                break
            accepted += 1
        if drawn and sequence.times.first_token is None:
            sequence.times.first_token = now
        if accepted < len(draft):
            sequence.computed -= len(draft) - accepted
            sequence.cache.truncate(sequence.computed)
        if sequence.drafter is not None:
            sequence.drafter.judge(len(draft), accepted)
        if reason is not None:
            return self._end(sequence, text, reason, now)
        self.scheduler.room.grown(sequence)
        sequence.text.append(text)
        return Delta(sequence, text)

    def _append(self, sequence: Sequence, drawn: Drawn) -> tuple[str, FinishReason | None]:
        request, detokenizer = sequence.request, sequence.detokenizer
        text = ""
        reason: FinishReason | None = None
        if drawn.token in request.stop_ids:
            reason = FinishReason.STOP
        else:
            sequence.tokens.append(drawn.token)
            sequence.scores.append(drawn.score.best(request.top))
            text = detokenizer.push(drawn.token)
            if sequence.generated == request.max_new_tokens:
                reason = FinishReason.LENGTH
        if reason is not None and detokenizer.stopped is None:
            text += detokenizer.finish()
        if detokenizer.stopped is not None:
            reason = FinishReason.STOP_SEQUENCE
            del sequence.tokens[len(request.prompt) + detokenizer.kept_tokens :]
            del sequence.scores[detokenizer.kept_tokens :]
        return text, reason

    def _end(self, sequence: Sequence, text: str, reason: FinishReason, now: float) -> Delta:
        sequence.text.append(text)
        sequence.finish_reason, sequence.times.ended = reason, now
        sequence.drafter = None  # its index is larger than the record
        if sequence.blocks:
            # The record outlives the step, its memory does not, or only as a prefix for others.
            self.scheduler.retire(sequence)
        return Delta(sequence, text, reason)
