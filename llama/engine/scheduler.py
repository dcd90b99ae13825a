"""Which sequences advance in a step, which wait, which are preempted. Never imports torch.

First come, first served: a smaller request id is older. A sequence begins when there are slots, and memory
for its prompt and its first new tokens; after that its memory grows with it. When no block is free, retained
prefixes are evicted first, then paused sequences are preempted, then the youngest: it goes back to its place
by age in the queue. Several sequences may hold one block; a sequence that writes into one that others hold gets
its own copy first. A request of more samples than can run together begins with as many as can; the others
wait in the same place. The oldest sequence is never preempted, and alone it always fits, so there is no
deadlock.
"""

from __future__ import annotations

import bisect
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from operator import attrgetter

from ..errors import OutOfMemoryError
from .cache_manager import CacheManager
from .limits import Limits
from .request import Request
from .sequence import ScheduledBatch, ScheduledSequence, SequenceState
from .speculation import MAX_DRAFT

__all__ = ["Scheduler"]

_age = attrgetter("key")


class Scheduler:
    """Waiting and running sequences.

    Args:
        limits: per-step and cache limits.
        cache_manager: allocates cache memory.
        new_sequence: (request id, request, sample) -> a new sequence, whose `slots` and `rest` are set here.
    """

    def __init__(
        self,
        limits: Limits,
        cache_manager: CacheManager,
        new_sequence: Callable[[int, Request, int], SequenceState],
    ) -> None:
        self.limits, self.cache_manager = limits, cache_manager
        self.blocks, self.prefixes = cache_manager.blocks, cache_manager.prefixes
        self.running: list[SequenceState] = []  # by age, the oldest first
        self.preemptions = 0
        self._new_sequence = new_sequence
        self.clear()

    def clear(self) -> None:
        """Forget all requests, running ones and kept prefixes included, whatever state they are in."""
        self.running = []
        # A request gets its sequence at the head of the queue, so that a long queue holds only requests.
        self._arrived: OrderedDict[int, Request] = OrderedDict()
        # By age: preempted sequences, the head of the queue, and what was paused before it began.
        self._preempted: list[SequenceState] = []
        self.cache_manager.clear()

    # ---- requests come and go ------------------------------------------------------------------------------

    def check(self, request: Request) -> None:
        """Refuse a request that could never run.

        Raises:
            OutOfMemoryError: one sample would need more positions than the whole cache has.
        """
        if self.blocks.needed(request.longest) > self.blocks.total:
            raise OutOfMemoryError(
                f"the request can grow to {request.longest} tokens, but the cache has room for"
                f" {self.blocks.total * self.blocks.size}; ask for a smaller max_gen_len, or free memory"
            )

    def together(self, request: Request) -> int:
        """How many samples of a request can run at the same time, by batch and cache."""
        # They share the full blocks of the prompt. One alone fits, as `check` has seen, also a prompt that is only
        # scored and fills the last block.
        full = len(request.prompt) // self.blocks.size
        each = max(1, self.blocks.needed(request.longest) - full)
        fitting = max(1, (self.blocks.total - full) // each)
        return min(request.n, self.limits.max_batch_size, fitting)

    def waves(self, request: Request) -> list[Request]:
        """A request as several, each of as many samples as can run together; they give the same samples."""
        together = self.together(request)
        return [
            replace(request, n=min(together, request.n - first), first_sample=request.first_sample + first)
            for first in range(0, request.n, together)
        ]

    def add(self, request_id: int, request: Request) -> None:
        """Queue a request that passed `check`."""
        self._arrived[request_id] = request

    def restore(self, samples: list[SequenceState]) -> None:
        """Queue a request again, with nothing computed. `samples`: all sequences that it has, in order."""
        for sequence, following in pairwise(samples):
            sequence.slots, sequence.rest = following.sample - sequence.sample, 0
        self._assign_slots(samples[-1])
        for sequence in samples:
            if sequence.finish_reason is None:
                self._enqueue(sequence)

    @property
    def waiting(self) -> int:
        """Requests that have not begun and preempted sequences, paused ones included."""
        return len(self._arrived) + len(self._preempted)

    @property
    def not_begun(self) -> int:
        """Requests none of whose samples has had a place in the batch, paused ones included."""
        return len(self._arrived) + sum([s.sample == 0 and s.times.begun is None for s in self._preempted])

    @property
    def paused(self) -> int:
        """Samples that are paused, wherever they are; one that stands for several counts once."""
        return sum([s.is_paused for s in chain(self._preempted, self.running)])

    @property
    def active(self) -> bool:
        """Whether a step would advance anything: something is there and not paused."""
        return bool(self._arrived) or not all(s.is_paused for s in chain(self._preempted, self.running))

    def cancel(self, request_id: int) -> None:
        """Forget a request wherever it is; unknown or finished ids are fine."""
        self._arrived.pop(request_id, None)
        self._preempted = [s for s in self._preempted if s.request_id != request_id]
        for sequence in [s for s in self.running if s.request_id == request_id]:
            self.retire(sequence)

    def pause(self, request_id: int) -> None:
        """Schedule a request no more until `resume`; its memory is the first to be taken back."""
        if request_id in self._arrived:
            self._enqueue(self._first_wave(request_id))
        self._set_paused(request_id, True)

    def resume(self, request_id: int) -> None:
        """End a pause; the request continues where its age puts it."""
        self._set_paused(request_id, False)

    def _set_paused(self, request_id: int, is_paused: bool) -> None:
        for sequence in chain(self._preempted, self.running):
            if sequence.request_id == request_id:
                sequence.is_paused = is_paused

    def retire(self, sequence: SequenceState) -> None:
        """Remove a running sequence; the cache manager decides which of its blocks are kept."""
        self.running.remove(sequence)
        self.cache_manager.free(sequence)

    def fork(self, sequence: SequenceState, forks: Sequence[SequenceState]) -> None:
        """Let a prefilled sequence stand for itself only; its forks take over slots and what was set aside."""
        assert sequence.slots == 1 + len(forks)
        sequence.slots = 1
        each = sequence.reserved // len(forks)
        for fork in forks:
            bisect.insort(self.running, fork, key=_age)
            self.cache_manager.fork(sequence, fork, each)

    # ---- the plan of a step --------------------------------------------------------------------------------

    def can_begin(self) -> bool:
        """Whether the oldest waiting sequence can begin now, if paused ones give up what they hold."""
        head = self._head()
        if head is None:
            return False
        paused = [s for s in self.running if s.is_paused]
        return self._fits(head, paused)

    def plan(self, model_changed: bool = False) -> ScheduledBatch:
        """The next step: sequences begin, then decodes are scheduled, then prefill chunks, the oldest first.

        Args:
            model_changed: whether the model has changed on any rank since the last look. It only matters if
                a sequence can begin, which might reuse keys and values of the old model.
        """
        if model_changed:
            self.cache_manager.invalidate()
        begun = self._end_waits()
        while self.can_begin():
            begun.append(self._begin())
        unpaused = [sequence for sequence in self.running if not sequence.is_paused]
        left = self.limits.step_tokens
        batch = ScheduledBatch()
        prefills = []
        for sequence in unpaused:
            if sequence.pending != 1:
                prefills.append(sequence)
            # Only younger ones are preempted, so what is scheduled already stays.
            elif left and sequence.is_running and self._grow(sequence, batch.copies):
                batch.append(ScheduledSequence(sequence, sequence.computed, 1))
                left -= 1
        decodes = len(batch)
        prefills = [sequence for sequence in prefills if sequence.is_running]
        # From here on nobody is preempted, so what is to be copied is.
        for sequence in begun:
            copy = self.cache_manager.reuse_begun(sequence) if sequence.is_running else None
            if copy is not None:
                batch.copies.append(copy)
        budget = math.inf
        if prefills and any(scheduled.sequence.request.streaming for scheduled in batch):
            budget = self.limits.prefill_tokens + 2 * decodes
        for sequence in prefills:
            if sequence.leader is not None:
                continue  # an older one computes their common prefix
            cost = 1 + sequence.computed / self.limits.attention_breakeven
            least = int(len(batch) == decodes)  # the oldest gets at least one token
            count = int(min(sequence.pending, left, max(least, budget / cost)))
            if count:
                batch.append(ScheduledSequence(sequence, sequence.computed, count))
                left -= count
                budget -= count * cost
        self._add_drafts(batch, decodes, int(max(0, min(left, budget))))
        assert batch or not batch.copies, "nothing is computed, so nothing would be copied"
        return batch

    def _add_drafts(self, batch: ScheduledBatch, decodes: int, left: int) -> None:
        """Let decodes, which come first in the batch, verify drafts as far as step and free memory allow.

        A draft may take one more block, if it is free and nobody waits for memory.
        """
        most = min(MAX_DRAFT, self.limits.draft_tokens // decodes - 1) if decodes else 0
        for i in range(decodes):
            sequence, start, _, _ = batch[i]
            if sequence.drafter is None or sequence.slots > 1:
                continue
            room = len(sequence.table) * self.blocks.size - start - 1
            more = self.blocks.size if self.cache_manager.has_spare and not self.waiting else 0
            count = min(most, left, sequence.request.max_new_tokens - sequence.generated - 1, room + more)
            draft = sequence.drafter.propose(count) if count > 0 else ()
            if len(draft) > room:
                self.cache_manager.grow_for_draft(sequence)
            if draft:
                batch[i] = ScheduledSequence(sequence, start, 1 + len(draft), draft)
                left -= len(draft)

    # ---- the queue -----------------------------------------------------------------------------------------

    def _head(self) -> SequenceState | None:
        """The oldest that waits."""
        head = next((s for s in self._preempted if not s.is_paused), None)
        first = next(iter(self._arrived), None)
        if first is None or (head is not None and head.request_id <= first):
            return head
        head = self._first_wave(first)
        self._enqueue(head)
        return head

    def _first_wave(self, request_id: int) -> SequenceState:
        """A request that arrived, as the sequence that stands for its first samples."""
        sequence = self._wave(request_id, self._arrived[request_id], 0)
        del self._arrived[request_id]
        return sequence

    def _wave(self, request_id: int, request: Request, first: int) -> SequenceState:
        """The samples from `first` on that run together, as the first of them."""
        sequence = self._new_sequence(request_id, request, first)
        self._assign_slots(sequence)
        return sequence

    def _assign_slots(self, sequence: SequenceState) -> None:
        """Let a request's last sequence stand for as many of the samples behind it as can run together."""
        left = sequence.request.n - sequence.sample
        sequence.slots = min(left, self.together(sequence.request))
        sequence.rest = left - sequence.slots

    def _enqueue(self, sequence: SequenceState) -> None:
        bisect.insort(self._preempted, sequence, key=_age)

    def _fits(self, sequence: SequenceState, leaving: list[SequenceState]) -> bool:
        """Whether a sequence can begin once some of the running ones have left."""
        slots = (
            self.limits.max_batch_size - sum(s.slots for s in self.running) + sum(s.slots for s in leaving)
        )
        if sequence.slots > slots:
            return False
        return self.cache_manager.fits(sequence, self._blocks_to_begin(sequence), leaving)

    def _blocks_to_begin(self, sequence: SequenceState) -> int:
        """Blocks of each sample: for the tokens there are, and the first new ones."""
        new = min(self.limits.reserve_tokens, sequence.request.max_new_tokens - sequence.generated)
        return self.blocks.needed(len(sequence.tokens) + new)

    def _begin(self) -> SequenceState:
        """Start the head of the queue, which can begin -> the sequence."""
        sequence = self._head()
        assert sequence is not None
        while not self._fits(sequence, []):
            self.preempt(next(s for s in reversed(self.running) if s.is_paused))
        self._preempted.remove(sequence)
        bisect.insort(self.running, sequence, key=_age)
        self.cache_manager.allocate(sequence, self._blocks_to_begin(sequence))
        if sequence.rest:
            following = self._wave(sequence.request_id, sequence.request, sequence.request.n - sequence.rest)
            sequence.rest = 0  # a preempted sequence begins again, but brings nobody along
            self._enqueue(following)
        return sequence

    # ---- memory --------------------------------------------------------------------------------------------

    def _grow(self, sequence: SequenceState, copies: list[tuple[int, int]]) -> bool:
        """Make room for one more token in a block of its own; False if the sequence was preempted itself.

        Args:
            copies: gets the block to copy, if others hold the one that the token goes to.
        """
        if self.cache_manager.has_room(sequence):
            return True
        count = self.blocks.needed(sequence.computed + 1)
        if not self._make_room(sequence, count):
            return False
        copy = self.cache_manager.grow(sequence, count)
        if copy is not None:
            copies.append(copy)
        return True

    def _end_waits(self) -> list[SequenceState]:
        """Give those whose prefix is computed, or will not be, the other blocks that they begin with -> these.

        Whoever computed it may have left before it was done; then they take more than was set aside. That is before
        any sequence is scheduled, so that what is scheduled stays.
        """
        ended = []
        for sequence in [s for s in self.running if s.leader is not None and not s.is_paused]:
            if not sequence.is_running or self.cache_manager.waits_for_prefix(sequence):
                continue
            count = self._blocks_to_begin(sequence)
            self.cache_manager.give_up(sequence, count)
            if self._make_room(sequence, count):
                self.cache_manager.grow(sequence, count)
                ended.append(sequence)
        return ended

    def _make_room(self, sequence: SequenceState, count: int) -> bool:
        """Preempt others until a sequence can have `count` blocks; False if it was preempted itself."""
        # Asked again each time: whoever is preempted may have held the same blocks.
        while self.cache_manager.lacks(sequence, count) > max(0, self.cache_manager.available):
            victim = next(self._victims())
            self.preempt(victim)
            if victim is sequence:
                return False
        return True

    def _victims(self) -> Iterator[SequenceState]:
        """In the order in which they are preempted: paused ones, then the youngest."""
        yield from (s for s in reversed(self.running) if s.is_paused)
        yield from reversed(self.running)

    def miss(self, copies: list[tuple[int, int]]) -> None:
        """Preempt those that need a copy which was not made, and let nobody reuse what that block would have held."""
        targets = {target for _, target in copies}
        for sequence in [s for s in self.running if targets.intersection(s.table)]:
            place = next(i for i, block in enumerate(sequence.table) if block in targets)
            sequence.computed = min(sequence.computed, place * self.blocks.size)
            self.preempt(sequence)

    def preempt(self, sequence: SequenceState) -> None:
        """Send a sequence back to its place in the queue, with tokens, scores, text and random numbers."""
        self.preemptions += 1
        self.retire(sequence)
        self._enqueue(sequence)
