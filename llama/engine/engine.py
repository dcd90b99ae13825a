"""The loop: requests in, a step at a time, deltas out.

The same engine runs on every rank. Fed with the same requests in the same order it takes the same
decisions, so ranks need no messages but the tokens that the runner broadcasts.
"""

from __future__ import annotations

import bisect
import functools
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from ..detokenizer import Detokenizer
from ..errors import NumericsError
from ..model import Transformer
from ..sizing.args import ModelArgs
from ..tokenizer import Tokenizer
from .blocks import BLOCK, Blocks
from .enter import end, enter
from .fair_lock import FairLock
from .live import Feed, RequestState
from .model_watch import ModelWatch
from .prefix_cache import PrefixCache
from .request import Delta, Entry, FinishReason, Request, ScheduledBatch, SequenceState, Times
from .runner import Runner, SampledToken, SampleRow
from .scheduler import Limits, Scheduler
from .speculation import Drafter
from .validation import check_request

__all__ = ["Engine"]

# Tokens of prompts beside a live decode, at which a step stays below three times its usual length: on a CPU a
# row of a prompt costs a twentieth of a step that decodes one token; on a GPU next to nothing.
_PREFILL_TOKENS = {"cpu": 20}
_PREFILL_TOKENS_ELSEWHERE = 256


@dataclass
class StepResult:
    """What a step did for a sequence; samples: itself and its new forks, where the next token was due."""

    sequence: SequenceState
    count: int
    samples: list[SequenceState] = field(default_factory=list)
    drawn: list[list[SampledToken]] = field(default_factory=list)


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
        self.exclusive = False
        # Had by whoever adds, steps or cancels, where that may be several threads; the engine itself never asks.
        self.lock = FairLock()
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
            PrefixCache(block, retained) if prefix_reuse else None,
            self._sequence_of,
            self._changed,
        )
        self._watch = ModelWatch(model)
        self._forgotten = 0
        self._known = 0
        self._next_id = 0
        self.feed = Feed()  # of requests that were added without one
        self._live: dict[int, RequestState] = {}
        self._unread: dict[int, object] = {}  # ids of requests whose reader is gone
        # Raised while the scheduler and what it knows change: an interrupt leaves it up, and `_settle` finds it so.
        self._torn = False
        self._planned: frozenset[int] = frozenset()

    # ---- requests come and go --------------------------------------------------------------------

    def check(self, request: Request) -> None:
        """Raise what `add` would raise, without queueing anything.

        Raises:
            OutOfMemoryError: see `Scheduler.check`.
            PromptError: an empty prompt, or ids outside the vocabulary, there or in the prediction.
            PromptTooLongError: a prompt that leaves no room below max_seq_len.
            RequestError: more alternatives or stop ids than the vocabulary has ids, a prediction longer than
                max_seq_len.
        """
        check_request(request, self.model.params.max_seq_len, self.model.vocab_size)
        self.scheduler.check(request)

    def add(self, request: Request, feed: Feed | None = None) -> int:
        """Queue a request -> its id. Raises what `check` raises.

        Args:
            feed: who reads it, with `read`; when that is dropped, the request is cancelled. By default what `step`
                returns.
        """
        self.check(request)
        self._settle()
        request_id = self._next_id
        self._next_id += 1
        # `setdefault` is one call into C: no interrupt can lose the news.
        gone = functools.partial(self._unread.setdefault, request_id)
        live = RequestState(request_id, request, self.clock(), weakref.ref(feed or self.feed, gone))
        if request.max_new_tokens == 0 and not request.score_prompt:
            live.begin()
            first = self._sequence(live, 0)
            end(first, "", len(first.tokens), FinishReason.LENGTH, live.queued)
            # Nothing changes any more, so the others share all of it.
            live.samples = [first, *(replace(first, sample=sample) for sample in range(1, request.n))]
            live.tell()
            return request_id
        self._torn = True
        self._live[request_id] = live
        self.scheduler.add(request_id, request, live.queued)
        self._torn = False
        return request_id

    def read(self, feed: Feed) -> list[Delta]:
        """What the requests of a reader gained since it last read."""
        self._settle()
        return feed.read()

    def cancel(self, request_id: int) -> None:
        """Drop a request, and free its memory, at once; unknown or finished ids are fine. No delta follows."""
        self._settle()
        self.feed.forget(request_id)
        if request_id in self._live:
            self._drop(request_id, FinishReason.CANCELLED)

    def tidy(self) -> None:
        """Cancel what nobody reads any more."""
        for request_id in list(self._unread):
            self.cancel(request_id)
            del self._unread[request_id]

    def pause(self, request_id: int) -> None:
        """Let a request wait, as for a consumer that reads no more; unknown or finished ids are fine.

        It keeps what it has computed until somebody else needs the memory or the place.
        """
        self._pause(request_id, True)

    def resume(self, request_id: int) -> None:
        """Go on with a paused request; it gets what it would have got without the pause."""
        self._pause(request_id, False)

    def forget_prefixes(self) -> None:
        """Let no request that begins from now on use what was computed before. From any thread.

        For changes of the model that the engine does not see; see docs/engine.md. The memory is free when the
        next request begins.
        """
        self._forgotten += 1

    @property
    def cache_tokens(self) -> int:
        """Positions that all caches may hold together."""
        return self.blocks.total * self.blocks.size

    def waves(self, request: Request) -> list[Request]:
        """A request as requests of no more samples than run at the same time, which give the same samples."""
        together = self.scheduler.together(request)
        return [
            replace(request, n=min(together, request.n - first), first_sample=request.first_sample + first)
            for first in range(0, request.n, together)
        ]

    @property
    def unfinished(self) -> bool:
        """Whether a further step would do anything; paused requests alone give it nothing to do."""
        self._settle()
        return bool(self.feed.news or self.scheduler.active)

    @property
    def planned(self) -> frozenset[int]:
        """Ids of the requests in the last step that was tried: where it failed, those that it failed with."""
        return self._planned

    # ---- a step ----------------------------------------------------------------------------------

    def step(self) -> list[Delta]:
        """Advance what can advance -> what each sequence gained, of those that have no reader of their own.

        Raises: as `advance`.
        """
        self.advance()
        return self.feed.read()

    @torch.inference_mode()
    def advance(self) -> None:
        """Advance what can advance; what each sequence gained is there for its reader.

        A request whose logits are not finite ends with FinishReason.ERROR and the NumericsError that says so.

        Raises:
            RankError: another rank of the model failed, is gone, or runs another step.
            Whatever else the model's forward raises, and interrupts. All requests stay as they were before the step,
                or, where it was over for some of them, as after it; the caller cancels its own, or those in
                `planned`, or tries again. On several ranks these may have struck one alone: the model cannot be used
                any more then.
        """
        self._settle()
        self.tidy()
        try:
            self._advance()
        except BaseException as error:
            # That comes with the decided tokens, so it strikes all ranks of the model alike.
            if not isinstance(error, NumericsError):
                self.model.parallel.failed(error)
            raise

    def _advance(self) -> None:
        self._planned = frozenset(sequence.request_id for sequence in self.scheduler.running)
        if self.scheduler.prefixes is not None:
            self._watch.glance()
        self._torn = True
        plan = self.scheduler.plan()
        self._planned = frozenset(sequence.request_id for sequence, _ in plan)
        now = self.clock()
        for sequence, _ in plan:
            if sequence.times.begun is None:
                sequence.times.begun = now
        try:
            turns = self._compute(plan) if plan else []
        except NumericsError as error:
            if error.request_id is None:
                raise
            self._fail(error.request_id, error)
            return
        now = self.clock()
        for turn in turns:
            self._take(turn, now)
        self._torn = False

    def _compute(self, plan: ScheduledBatch) -> list[StepResult]:
        """All of a step that can fail: what it changes is taken back if it does."""
        before = [(sequence, sequence.computed, len(sequence.prompt_scores)) for sequence, _ in plan]
        try:
            for sequence, _ in plan:
                sequence.cache.limit = sequence.blocks * self.blocks.size
                sequence.cache.reserve(sequence.cache.limit)
            hidden_TC = self.runner.forward(plan)
            self.runner.score_prompts(plan, hidden_TC)
            turns: list[StepResult] = []
            asks: list[SampleRow] = []
            end = 0
            for sequence, count in plan:
                end += count
                turns.append(turn := StepResult(sequence, count))
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
            self._torn = False
            raise
        return turns

    def _changed(self) -> bool:
        """Whether the model is another one than when this was last asked, on any of its ranks."""
        self._watch.look()
        count = self._watch.changes + self._forgotten
        changed = self.model.parallel.on_any(count != self._known, self.model.device)
        self._known = count
        return changed

    def _sequence_of(self, request_id: int, request: Request, queued: float, sample: int) -> SequenceState:
        """The first of the samples of a request that begin together; it stands for all of them at first."""
        live = self._live[request_id]
        if not live.samples:
            live.begin()
        sequence = self._sequence(live, sample)
        live.samples = [*live.samples, sequence]
        return sequence

    def _sequence(self, live: RequestState, sample: int) -> SequenceState:
        request = live.request
        tokens, cache = list(request.prompt), self.model.new_cache()
        sequence = SequenceState(
            live.request_id, request, sample, cache, self._detokenizer(live), tokens, times=Times(live.queued)
        )
        if live.samples:
            sequence.digest = live.samples[0].digest
        if self._speculate and request.speculate and request.max_new_tokens > 1:
            sequence.drafter = Drafter(tokens, len(tokens), live.prediction, live.prompt)
        return sequence

    def _detokenizer(self, live: RequestState) -> Detokenizer:
        return Detokenizer(self.tokenizer, start_of_text=live.request.start_of_text, stop=live.stops)

    def _forks(self, sequence: SequenceState, count: int) -> list[SequenceState]:
        """The further samples of a wave whose prefill ends with these tokens; none later on."""
        forks = []
        for sample in range(sequence.sample + 1, sequence.sample + sequence.places):
            fork = self._sequence(self._live[sequence.request_id], sample)
            fork.cache = sequence.cache.fork()
            fork.computed = sequence.computed + count
            fork.prompt_scores = list(sequence.prompt_scores)
            fork.reused, fork.times.begun = sequence.reused, sequence.times.begun
            fork.stale = sequence.stale
            forks.append(fork)
        return forks

    def _take(self, turn: StepResult, now: float) -> None:
        """Enter what a step computed; nothing in here can fail but by an interrupt, after which `_settle` goes on."""
        sequence, live = turn.sequence, self._live[turn.sequence.request_id]
        sequence.computed += turn.count
        if len(turn.samples) > 1:
            at = 1 + bisect.bisect_left(live.samples, sequence.sample, key=lambda each: each.sample)
            live.samples = live.samples[:at] + turn.samples[1:] + live.samples[at:]
            self.scheduler.fork(sequence, turn.samples[1:])
        feed = live.feed()
        for each, drawn in zip(turn.samples, turn.drawn, strict=True):
            if enter(each, drawn, now):
                live.left -= 1
                # The record outlives the step, its memory does not, or only as a prefix for others.
                self.scheduler.retire(each)
            else:
                self.scheduler.room.grown(each)
            if feed is not None:
                feed.news.append(each)
        if not live.left:
            del self._live[live.request_id]

    # ---- what was interrupted or failed ----------------------------------------------------------

    def _settle(self) -> None:
        """Make everything again from what is certain, if an interrupt struck in the middle of a change.

        Sequences begin again as after a preemption: what was entered stays, what was computed is computed again.
        Struck itself, it starts once more.
        """
        if not self._torn:
            return
        self.scheduler.clear()
        for live in list(self._live.values()):
            live.tell()
            live.left = live.request.n
            self.scheduler.place(live.request, live.samples)
            for sequence in live.samples:
                if sequence.finish_reason is None:
                    sequence.restore(self._detokenizer(live))
                sequence.release(self.model.new_cache())
                if sequence.finish_reason is None:
                    self.scheduler.add_begun(sequence)
                else:
                    live.left -= 1
            if not live.samples:
                self.scheduler.add(live.request_id, live.request, live.queued)
            elif not live.left:
                del self._live[live.request_id]
            if live.paused:
                self.scheduler.pause(live.request_id)
        self._torn = False

    def _pause(self, request_id: int, paused: bool) -> None:
        self._settle()
        live = self._live.get(request_id)
        if live is not None:
            self._torn = True
            live.paused = paused
            (self.scheduler.pause if paused else self.scheduler.resume)(request_id)
            self._torn = False

    def _fail(self, request_id: int, error: NumericsError) -> None:
        """End one request of a step that failed, and tell its reader why; all others are as before the step."""
        live = self._live[request_id]
        self._torn = True
        for sequence in live.samples:
            if sequence.finish_reason is None:
                sequence.error = error.with_traceback(None)  # which holds the step's tensors
                sequence.entered.append(Entry("", len(sequence.tokens), FinishReason.ERROR))
                sequence.stale = True  # nobody is to use what it computed
        live.tell()
        self._drop(request_id, FinishReason.ERROR)

    def _drop(self, request_id: int, reason: FinishReason) -> None:
        """Let a request go that is under way."""
        self._torn = True
        live, now = self._live.pop(request_id), self.clock()
        for sequence in live.samples:
            if sequence.finish_reason is None:
                sequence.finish_reason, sequence.times.ended = reason, now
        self.scheduler.cancel(request_id)
        self._torn = False
