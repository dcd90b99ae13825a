"""The loop: requests in, one step at a time, deltas out.

The same engine runs on every rank. Given the same requests in the same order it takes the same decisions, so
ranks exchange nothing but the sampled tokens, which the runner broadcasts.
"""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable

import torch

from ..distributed.devices import current_device
from ..errors import ConfigError, NumericsError
from ..kv_cache import check_block
from ..model import Transformer
from ..tokenizer import Tokenizer
from ..values import integer
from .block_pool import BlockPool
from .cache_manager import CacheManager
from .cache_memory import CacheMemory
from .fair_lock import FairLock
from .limits import Limits
from .model_watch import ModelWatch
from .output import extend
from .prefix_cache import PrefixCache
from .request import FinishReason, Request
from .request_state import Feed, RequestState
from .rows import StepResult
from .runner import Runner
from .scheduler import Scheduler
from .sequence import Delta, ScheduledBatch, SequenceState
from .snapshot import Counters, Snapshot
from .validation import check_request

__all__ = ["Engine"]


class Engine:
    """Runs requests on a model, many at a time; each leaves when it is done.

    Args:
        model: this rank's Transformer; its params carry max_batch_size and max_seq_len.
        tokenizer: turns generated ids into text.
        cache_tokens: positions that the cache holds, of running sequences and kept for reuse; by default as
            many as the two limits allow to run. Rounded up to whole blocks.
        retained_tokens: how many of these may be kept for reuse while no sequence holds them; by default a
            quarter, and at least one sequence of max_seq_len, so that memory is not filled for its own sake.
        step_tokens: tokens of one step; by default what suits the device, on CUDA also the most.
        prefill_tokens: prompt tokens in a step beside streaming decodes; by default what suits the device.
        prefix_reuse: whether computed prefixes are kept and reused.
        speculate: whether requests that allow it get drafts.
        block: positions of a block of the cache, a power of two up to 256, the unit in which prefixes are shared; by
            default what suits the device.
        clock: seconds, for the times that results carry; no decision depends on it.

    Raises:
        ConfigError: block is something else, cache_tokens or step_tokens not an integer of at least 1, or step_tokens
            more than what there is room for on a GPU.
        OutOfMemoryError: the system does not give the cache.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        cache_tokens: int | None = None,
        retained_tokens: int | None = None,
        step_tokens: int | None = None,
        prefill_tokens: int | None = None,
        prefix_reuse: bool = True,
        speculate: bool = True,
        block: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        max_seq_len = model.params.max_seq_len
        size = check_block(model.block if block is None else block)
        each = -(-max_seq_len // size) * size
        room = integer(model.params.max_batch_size * each if cache_tokens is None else cache_tokens)
        if room is None or room < 1:
            raise ConfigError(f"cache_tokens is {cache_tokens!r}; it must be an integer of at least 1")
        if retained_tokens is None:
            retained_tokens = max(max_seq_len, room // 4)
        self.model, self.tokenizer, self.clock = model, tokenizer, clock
        # Whether an AsyncEngine has the engine; then no other caller may add requests or step.
        self.exclusive = False
        # Threads that share the engine hold this to add, step or cancel; the engine itself never takes it.
        self.lock = FairLock()
        self.feed = Feed()  # of requests that were added without one
        self._requests: dict[int, RequestState] = {}
        self._planned: list[SequenceState] = []
        self.blocks = BlockPool(room, size)
        retained = min(self.blocks.total, self.blocks.needed(retained_tokens))
        self.scheduler = Scheduler(
            Limits.for_model(model, step_tokens, prefill_tokens),
            CacheManager(self.blocks, PrefixCache(size, retained) if prefix_reuse else None),
            functools.partial(_new_sequence, self._requests, tokenizer, speculate),
        )
        self.memory = CacheMemory(model, self.blocks)
        self.runner = Runner(model, self.memory)
        self.counters = Counters()
        self._watch = ModelWatch(model)
        self._known_changes = self._next_id = 0
        self._unread: dict[int, object] = {}  # ids of requests whose reader is gone
        # True while anything changes. An interrupt leaves it so, and `_settle` repairs what it finds.
        self._torn = False

    # ---- requests come and go ------------------------------------------------------------------------------

    def check(self, request: Request) -> None:
        """Refuse a request that cannot run.

        Raises:
            OutOfMemoryError: one sample would need more positions than the whole cache has.
            PromptError: an empty prompt, or ids outside the vocabulary, in prompt or prediction.
            PromptTooLongError: prompt and new tokens together exceed max_seq_len.
            RequestError: a value that no step could run; more alternatives or stop ids than the vocabulary
                has ids; a prediction longer than max_seq_len.
        """
        check_request(request, self.model.params.max_seq_len, self.model.vocab_size)
        self.scheduler.check(request)

    def add(self, request: Request, feed: Feed | None = None) -> int:
        """Check and queue a request -> its id. Raises what `check` raises; for `feed` see `enqueue`."""
        self.check(request)
        return self.enqueue(request, feed)

    def enqueue(self, request: Request, feed: Feed | None = None) -> int:
        """Queue a request that passed `check` -> its id.

        Args:
            feed: who reads it, with `read`; when that is dropped, the request is cancelled. By default the
                reader is `step`.
        """
        self._settle()
        request_id = self._next_id
        self._next_id += 1
        # `setdefault` is one call into C: no interrupt can lose the news.
        gone = functools.partial(self._unread.setdefault, request_id)
        state = RequestState(request_id, request, self.clock(), weakref.ref(feed or self.feed, gone))
        if request.max_new_tokens == 0 and not request.score_prompt:
            state.new_sequence(0, self.tokenizer, speculate=False)
            state.finish_at_once()
            self.counters.finished += 1
            return request_id
        self._torn = True
        self._requests[request_id] = state
        self.scheduler.add(request_id, request)
        self._torn = False
        return request_id

    def read(self, feed: Feed) -> list[Delta]:
        """What the requests of a reader gained since it last read."""
        self._settle()
        return feed.read()

    def cancel(self, request_id: int, *, failed: bool = False) -> None:
        """Drop a request and free its memory at once; unknown or finished ids are fine. No delta follows.

        Args:
            failed: count it as failed, not as cancelled: its step raised an error.
        """
        self._settle()
        self.feed.forget(request_id)
        if request_id in self._requests:
            self._drop(request_id, FinishReason.CANCELLED)
            self.counters.failed += failed
            self.counters.cancelled += not failed
            self.memory.give_back(bool(self.scheduler.running))

    def tidy(self) -> None:
        """Cancel requests whose reader is gone."""
        for request_id in list(self._unread):
            self.cancel(request_id)
            del self._unread[request_id]

    def pause(self, request_id: int) -> None:
        """Let a request wait, as for a consumer that does not read on; unknown or finished ids are fine.

        It keeps its slot and blocks until another request needs them.
        """
        self._settle()
        self._torn = True
        self.scheduler.pause(request_id)
        self._torn = False

    def resume(self, request_id: int) -> None:
        """Continue a paused request; its output is the same as without the pause."""
        self._settle()
        self._torn = True
        self.scheduler.resume(request_id)
        self._torn = False

    def forget_prefixes(self) -> None:
        """Let no request that begins from now on reuse what was computed before. From any thread.

        For changes of the model that the engine does not see; see docs/engine.md. The memory is freed when
        the next request begins.
        """
        self._watch.count_change()

    @property
    def cache_tokens(self) -> int:
        """Positions that the cache holds."""
        return self.blocks.total * self.blocks.size

    def waves(self, request: Request) -> list[Request]:
        """A request as several whose samples run at the same time; together they give the same samples."""
        return self.scheduler.waves(request)

    @property
    def unfinished(self) -> bool:
        """Whether another step would do anything. Paused requests alone give it nothing to do."""
        self._settle()
        return bool(self.feed.news or self.scheduler.active)

    def snapshot(self) -> Snapshot:
        """What it holds and has done, in numbers. For the thread that steps it."""
        return Snapshot.of(self.scheduler, self.counters)

    # ---- a step --------------------------------------------------------------------------------------------

    @property
    def planned(self) -> frozenset[int]:
        """Ids of the requests in the last step that was tried; if it failed, those that it failed with."""
        return frozenset(sequence.request_id for sequence in self._planned)

    def step(self) -> list[Delta]:
        """Advance every sequence that can advance -> the deltas of requests without a reader of their own.

        Raises: as `advance`.
        """
        self.advance()
        return self.feed.read()

    def advance(self) -> None:
        """Advance every sequence that can advance: schedule, run, record. Deltas wait in the readers' feeds.

        A request whose logits are not finite ends with FinishReason.ERROR and the NumericsError.

        Raises:
            RankError: another rank of the model failed, is gone, or runs another step.
            Whatever else the model's forward raises, and interrupts. Every request is then as before the step
                or, if an interrupt struck while the step was recorded, as after it. The caller cancels its
                own requests or those in `planned`, or tries again. With several ranks the error may have
                struck this one alone, so the model cannot be used any more.
        """
        self._settle()
        self.tidy()
        try:
            with torch.inference_mode(), current_device(self.model.device):
                self._check_pool()
                batch = self._schedule()
                try:
                    results = self.runner.run(batch) if batch else []
                except BaseException as error:
                    self._undo(batch)
                    if not isinstance(error, NumericsError) or error.request_id is None:
                        raise
                    self._fail(error.request_id, error)
                else:
                    self._record(results)
                self.memory.give_back(bool(self.scheduler.running))
        except BaseException as error:
            # NumericsError strikes all ranks alike: it comes with the tokens that the first rank broadcasts.
            if not isinstance(error, NumericsError):
                self.model.parallel.failed(error)
            raise

    def _schedule(self) -> ScheduledBatch:
        """Plan the step. If a sequence can begin, which may reuse a prefix, ask if the model changed."""
        self._planned = list(self.scheduler.running)
        self._watch.glance()
        self._torn = True
        reuse = self.scheduler.prefixes is not None
        changed = reuse and self.scheduler.can_begin() and self._model_changed()
        batch = self.scheduler.plan(model_changed=changed)
        self._planned = [scheduled.sequence for scheduled in batch]
        now = self.clock()
        for sequence in self._planned:
            if sequence.times.begun is None:
                sequence.times.begun = now
        return batch

    def _model_changed(self) -> bool:
        """Whether any rank's part of the model has changed since this was last asked. All ranks must ask."""
        changes = self._watch.look()
        changed = self.model.parallel.on_any(changes != self._known_changes, self.model.device)
        self._known_changes = changes
        return changed

    def _undo(self, batch: ScheduledBatch) -> None:
        """Take back what a step that failed has changed.

        What it wrote lies behind what is computed, in blocks of one sequence each, and is written again. Only a
        copy that was not made must not be missed: whoever needs it begins again.
        """
        self.scheduler.miss(batch.copies)
        self._torn = False

    def _check_pool(self) -> None:
        """If the model was cast or moved, make a new pool; what runs is computed again, as after a preemption."""
        if not self.memory.fits:
            self._torn = True
            self.memory.renew()
            self._settle()

    def _record(self, results: list[StepResult]) -> None:
        """Enter what a step computed. Only an interrupt can stop this; then `_settle` finds it torn."""
        now, index = self.clock(), self.scheduler.cache_manager.index
        new = drafted = accepted = 0
        for result in results:
            (sequence, _, length, draft), samples = result.scheduled, result.samples
            state = self._requests[sequence.request_id]
            sequence.computed += length
            if result.prompt_scores:
                for each in samples or [sequence]:
                    each.prompt_scores += result.prompt_scores
            if len(samples) > 1:
                state.add_forks(sequence, samples[1:])
                self.scheduler.fork(sequence, samples[1:])
            feed = state.feed()
            if not samples:
                index(sequence)
            elif not sequence.journal:
                self.counters.count_prompt(sequence)
            for each, tokens in zip(samples, result.tokens, strict=True):
                new -= each.settled
                accepted += extend(each, tokens, draft, now)
                new += each.settled
                drafted += len(draft)
                if each.finish_reason is not None:
                    state.left -= 1
                    self.scheduler.retire(each)
                else:
                    index(each)
                if feed is not None and (each.finish_reason is not None or not feed.ended_only):
                    feed.news.append(each)
            if not state.left:
                del self._requests[state.request_id]
                self.counters.finished += 1
        self.counters.count_output(new, drafted, accepted)
        self._torn = False

    # ---- failures and interrupts ---------------------------------------------------------------------------

    def _fail(self, request_id: int, error: NumericsError) -> None:
        """End one request of a failed step and tell its reader why; all others are as before the step."""
        self._torn = True
        self._requests[request_id].fail(error)
        self._drop(request_id, FinishReason.ERROR)
        self.counters.failed += 1

    def _drop(self, request_id: int, reason: FinishReason) -> None:
        """Remove a request in progress."""
        self._torn = True
        self._requests.pop(request_id).end(reason, self.clock())
        self.scheduler.cancel(request_id)
        self._torn = False

    def _settle(self) -> None:
        """If an interrupt struck in the middle of a change, rebuild everything from the requests in progress.

        Sequences begin again as after a preemption: what their journals say stays, keys and values are computed
        again. If this is interrupted itself, it starts over.
        """
        if not self._torn:
            return
        self.scheduler.clear()
        for state in list(self._requests.values()):
            state.restore()
            error = state.error
            if error is not None:  # the interrupt struck within `_fail`
                state.fail(error)
                state.end(FinishReason.ERROR, self.clock())
            if not state.samples:
                self.scheduler.add(state.request_id, state.request)
            elif state.left and error is None:
                self.scheduler.restore(state.samples)
            else:
                del self._requests[state.request_id]
        self._torn = False


def _new_sequence(
    requests: dict[int, RequestState],
    tokenizer: Tokenizer,
    speculate: bool,
    request_id: int,
    request: Request,
    sample: int,
) -> SequenceState:
    """For the scheduler. A method of the engine would make a circle of the two, which keeps the cache's memory."""
    return requests[request_id].new_sequence(sample, tokenizer, speculate)
