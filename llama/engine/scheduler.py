"""Which sequences advance in a step, by how many tokens, and who gives way to whom. Never imports torch.

First come, first served: of two requests the one with the smaller id is the older. A request begins when
places and memory are there for its prompt; memory for what it generates is taken as it grows. Where none
is free, retained prefixes go first, then paused sequences, then the youngest: it is put back to where it
stood in the queue. A request of more samples than run together begins with as many as do; the others wait where
it stood. The oldest never gives way, and alone it always fits: so there is no deadlock.
"""

from __future__ import annotations

import bisect
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..errors import OutOfMemoryError
from .blocks import Blocks
from .cache_manager import CacheManager
from .prefix_cache import PrefixCache
from .request import Request, ScheduledBatch, SequenceState
from .speculation import MOST

__all__ = ["Limits", "Scheduler"]


@dataclass(frozen=True)
class Limits:
    """What a step and the caches may come to.

    max_batch_size: sequences that run at the same time. step_tokens: tokens of one step; longer prompts
    are prefilled in chunks. prefill_tokens: tokens of prompts in a step in which somebody waits for the
    next token of a live sequence, besides two for each that decodes. reach: such a token counts double
    behind so many positions, three times behind twice as many, for its attention costs more there.
    draft_tokens: rows of a step that decodes and drafts may take together. ahead: new tokens that room is
    made for when a request begins, so that it is not put back at once.
    """

    max_batch_size: int
    step_tokens: int = 1024
    prefill_tokens: int = 128
    reach: float = math.inf
    draft_tokens: int = 32
    ahead: int = 64


@dataclass(frozen=True)
class _Arrival:
    request: Request
    queued: float


class Scheduler:
    """Waiting and running requests.

    Args:
        limits: see there.
        blocks: the account of the memory of all caches.
        prefixes: what can be reused; None switches reuse off.
        new_sequence: (request id, request, time of arrival, number of the sample) -> a sample by itself.
        changed: see `CacheManager`. Asked at most once a step, and only where a sequence begins.
    """

    def __init__(
        self,
        limits: Limits,
        blocks: Blocks,
        prefixes: PrefixCache | None,
        new_sequence: Callable[[int, Request, float, int], SequenceState],
        changed: Callable[[], bool] = lambda: False,
    ) -> None:
        self.limits, self.blocks, self.prefixes = limits, blocks, prefixes
        self.room = CacheManager(blocks, prefixes, self._awake, changed)
        self._renewed = False
        self.running: list[SequenceState] = []  # the oldest first
        self.preemptions = 0
        self._new_sequence = new_sequence
        self.clear()

    def clear(self) -> None:
        """Forget all requests, running ones and what is retained included, in whatever state they are."""
        self.running = []
        self._arrived: OrderedDict[int, _Arrival] = OrderedDict()
        # Put back, and waiting like the arrivals; and what waits for its caller to resume it.
        self._returned: list[SequenceState] = []
        self._parked: list[SequenceState] = []
        self._parked_arrivals: dict[int, _Arrival] = {}
        self._paused: set[int] = set()
        self.room.clear()

    # ---- requests come and go --------------------------------------------------------------------

    def check(self, request: Request) -> None:
        """Refuse what can never run.

        Raises:
            OutOfMemoryError: a sample of more positions than the cache could hold if it were alone.
        """
        if self.blocks.of(request.longest) > self.blocks.total:
            raise OutOfMemoryError(
                f"the request can grow to {request.longest} tokens, but the cache has room for"
                f" {self.blocks.total * self.blocks.size}; ask for a smaller max_gen_len, or free memory"
            )

    def together(self, request: Request) -> int:
        """Samples of a request that may run at the same time: as many as batch and cache hold."""
        fitting = self.blocks.total // self.blocks.of(request.longest)
        return min(request.n, self.limits.max_batch_size, fitting)

    def add(self, request_id: int, request: Request, queued: float = 0.0) -> None:
        """Queue a request. Raises what `check` raises."""
        self.check(request)
        self._arrived[request_id] = _Arrival(request, queued)

    def add_begun(self, sequence: SequenceState) -> None:
        """Queue a sequence that has begun, with nothing computed."""
        bisect.insort(self._returned, sequence, key=_age)

    def place(self, request: Request, samples: list[SequenceState]) -> None:
        """Say anew for how many samples each sequence of a request stands; `samples` are all there are, in order."""
        ends = [sequence.sample for sequence in samples[1:]]
        for sequence, end in zip(samples, ends, strict=False):
            sequence.places, sequence.rest = end - sequence.sample, 0
        if samples:
            left = request.n - samples[-1].sample
            samples[-1].places = min(left, self.together(request))
            samples[-1].rest = left - samples[-1].places

    @property
    def waiting(self) -> int:
        """Requests that have not begun and sequences that were put back, the paused ones included."""
        return len(self._arrived) + len(self._returned) + len(self._parked) + len(self._parked_arrivals)

    @property
    def active(self) -> bool:
        """Whether a step would advance anything: not where nothing is there, or all of it is paused."""
        return bool(self._arrived or self._returned or any(self._awake(s) for s in self.running))

    def cancel(self, request_id: int) -> list[SequenceState]:
        """Forget a request wherever it is -> its sequences; unknown or finished ids are fine."""
        self._paused.discard(request_id)
        if self._arrived.pop(request_id, None) or self._parked_arrivals.pop(request_id, None):
            return []
        gone = [s for s in (*self._returned, *self._parked) if s.request_id == request_id]
        self._returned = [s for s in self._returned if s.request_id != request_id]
        self._parked = [s for s in self._parked if s.request_id != request_id]
        for sequence in [s for s in self.running if s.request_id == request_id]:
            self.retire(sequence)
            gone.append(sequence)
        return gone

    def pause(self, request_id: int) -> None:
        """Plan a request no longer, until `resume`; its memory is the first to be taken back."""
        arrival = self._arrived.pop(request_id, None)
        if arrival is not None:
            self._parked_arrivals[request_id] = arrival
        parked = [s for s in self._returned if s.request_id == request_id]
        if arrival is not None or parked or any(s.request_id == request_id for s in self.running):
            self._paused.add(request_id)
        self._parked += parked
        self._returned = [s for s in self._returned if s.request_id != request_id]

    def resume(self, request_id: int) -> None:
        """End a pause; it goes on where its age puts it."""
        self._paused.discard(request_id)
        arrival = self._parked_arrivals.pop(request_id, None)
        if arrival is not None:
            bisect.insort(
                self._returned, self._wave(request_id, arrival.request, arrival.queued, 0), key=_age
            )
        for sequence in [s for s in self._parked if s.request_id == request_id]:
            self._parked.remove(sequence)
            bisect.insort(self._returned, sequence, key=_age)

    def retire(self, sequence: SequenceState) -> None:
        """A running sequence leaves; what it computed is retained where that is wanted."""
        self.running.remove(sequence)
        self.room.leave(sequence)

    def fork(self, sequence: SequenceState, forks: list[SequenceState]) -> None:
        """A prefilled sequence stands for itself from now on; its forks take places and memory it held."""
        assert sequence.places == 1 + len(forks)
        sequence.places = 1
        for fork in forks:
            fork.blocks = sequence.blocks
            bisect.insort(self.running, fork, key=_age)
            self.room.grown(fork)

    # ---- a step ----------------------------------------------------------------------------------

    def plan(self) -> ScheduledBatch:
        """The sequences of the next step and their numbers of tokens: decodes first, then prefill chunks."""
        self._renewed = False
        while (head := self._head()) is not None and self._begin(head):
            pass
        left = self.limits.step_tokens
        awake = [sequence for sequence in self.running if self._awake(sequence)]
        decodes: list[SequenceState] = []
        for sequence in awake:
            # The older come first and only the younger are put back, so what is planned stays.
            if sequence.pending == 1 and sequence.blocks and left and self._room_for_one(sequence):
                decodes.append(sequence)
                left -= 1
        plan: ScheduledBatch = [(sequence, 1) for sequence in decodes]
        waiting = [s for s in awake if s.pending > 1 and s.blocks]
        budget = math.inf
        if waiting and any(sequence.request.streaming for sequence in decodes):
            budget = self.limits.prefill_tokens + 2 * len(decodes)
        for sequence in waiting:
            if self.room.waits(sequence):
                continue
            cost = 1 + sequence.computed / self.limits.reach
            least = int(len(plan) == len(decodes))  # the oldest gets on in any case
            count = int(min(sequence.pending, left, max(least, budget / cost)))
            if count:
                plan.append((sequence, count))
                left -= count
                budget -= count * cost
        return self._with_drafts(plan, decodes, int(max(0, min(left, budget))))

    def _with_drafts(self, plan: ScheduledBatch, decodes: list[SequenceState], left: int) -> ScheduledBatch:
        """Let decodes verify drafts, where the step and the memory that is free have room for them."""
        if not decodes:
            return plan
        most = min(MOST, self.limits.draft_tokens // len(decodes) - 1)
        for i, sequence in enumerate(decodes):
            if sequence.drafter is None or sequence.places > 1:
                continue
            request = sequence.request
            count = min(most, left, request.max_new_tokens - sequence.generated - 1)
            room = sequence.blocks * self.blocks.size - sequence.computed - 1
            sequence.draft = sequence.drafter.propose(min(count, room)) if min(count, room) > 0 else []
            left -= len(sequence.draft)
            plan[i] = (sequence, 1 + len(sequence.draft))
        return plan

    def _head(self) -> SequenceState | None:
        """The oldest that waits."""
        first = next(iter(self._arrived), None)
        if self._returned and (first is None or self._returned[0].request_id <= first):
            return self._returned[0]
        if first is None:
            return None
        # Made once it is looked at, so that a long queue is nothing but its requests.
        sequence = self._wave(first, self._arrived[first].request, self._arrived[first].queued, 0)
        del self._arrived[first]
        self._returned.insert(0, sequence)
        return sequence

    def _wave(self, request_id: int, request: Request, queued: float, first: int) -> SequenceState:
        """The next samples of a request that run together, as the first of them."""
        sequence = self._new_sequence(request_id, request, queued, first)
        left = request.n - first
        sequence.places = min(left, self.together(request))
        sequence.rest = left - sequence.places
        return sequence

    def _begin(self, sequence: SequenceState) -> bool:
        """Give the head of the queue its places and memory, if they are there, and what it can reuse."""
        taken = sum(other.places for other in self.running)
        ahead = min(self.limits.ahead, sequence.request.max_new_tokens - sequence.generated)
        need = self.blocks.of(len(sequence.tokens) + ahead) * sequence.places
        paused = [other for other in self.running if not self._awake(other)]
        while taken + sequence.places > self.limits.max_batch_size or need > self.room.available:
            if not paused:
                return False
            taken -= paused[-1].places
            self._put_back(paused.pop())
        if not self._renewed:  # before anything is entered, for it asks the other ranks, and may fail
            self.room.renew()
            self._renewed = True
        self._returned.remove(sequence)
        bisect.insort(self.running, sequence, key=_age)
        self.room.begin(sequence, need // sequence.places)
        if sequence.rest:
            request, queued = sequence.request, sequence.times.queued
            following = self._wave(sequence.request_id, request, queued, request.n - sequence.rest)
            # Once: who is put back begins a second time.
            sequence.rest = 0
            bisect.insort(self._returned, following, key=_age)
        return True

    # ---- memory ----------------------------------------------------------------------------------

    def _room_for_one(self, sequence: SequenceState) -> bool:
        """Let a sequence hold one more token; false where it had to give way itself."""
        need = self.blocks.of(sequence.computed + 1) - sequence.blocks
        if need <= 0:
            return True
        # By a quarter where that costs no running sequence anything: growing is copying.
        most = self.blocks.of(sequence.request.longest) - sequence.blocks
        ample = min(most, max(need, sequence.blocks // 4))
        if ample <= self.room.available:
            need = ample
        while self.blocks.free < need:
            if not self.room.evict():
                victim = next(self._victims())
                self._put_back(victim)
                if victim is sequence:
                    return False
        self.blocks.take(need)
        sequence.blocks += need
        return True

    def _victims(self) -> Iterator[SequenceState]:
        """Who gives way: the paused first, then the youngest."""
        yield from (s for s in reversed(self.running) if not self._awake(s))
        yield from reversed(self.running)

    def _put_back(self, sequence: SequenceState) -> None:
        """To where its age puts it in the queue; tokens, scores, text and random numbers stay with it."""
        self.preemptions += 1
        self.retire(sequence)
        sequence.computed = 0
        bisect.insort(self._returned if self._awake(sequence) else self._parked, sequence, key=_age)

    def _awake(self, sequence: SequenceState) -> bool:
        return sequence.request_id not in self._paused


def _age(sequence: SequenceState) -> tuple[int, int]:
    return sequence.key
