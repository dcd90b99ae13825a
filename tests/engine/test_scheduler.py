"""Laws of the scheduler: first come, first served; limits hold; all finish; nothing stays reserved."""

from __future__ import annotations

import pytest
from engine_requests import accounted
from hypothesis import given, settings
from hypothesis import strategies as st

from llama.engine.block_pool import BlockPool
from llama.engine.cache_manager import CacheManager
from llama.engine.limits import Limits
from llama.engine.prefix_cache import PrefixCache
from llama.engine.request import Request
from llama.engine.scheduler import Scheduler
from llama.engine.sequence import SequenceState
from llama.errors import OutOfMemoryError
from llama.sampling import GREEDY


def request(prompt=3, new=4, n=1):
    return Request(tuple(range(prompt)), new, GREEDY, n=n)


class Loop:
    """The engine's loop without a model: every sequence runs for all the tokens it may have."""

    def __init__(self, batch, positions, step_tokens=100, block=1, reuse=True, **limits):
        self.begun = []
        self.finished = []
        self.blocks = BlockPool(positions, block)
        prefixes = PrefixCache(block, self.blocks.total) if reuse else None
        limits = Limits(batch, step_tokens, **limits)
        self.scheduler = Scheduler(limits, CacheManager(self.blocks, prefixes), self.sequence)

    def step(self):
        scheduler = self.scheduler
        plan = scheduler.plan()
        self.begun += [s.request_id for s in scheduler.running if s.request_id not in self.begun]
        self.check(plan)
        for sequence, _, count, _ in plan:
            sequence.computed += count
            if sequence.pending:
                scheduler.cache_manager.index(sequence)
                continue
            forks = [
                self.sequence(sequence.request_id, sequence.request, sequence.sample + j)
                for j in range(1, sequence.slots)
            ]
            if forks:
                scheduler.fork(sequence, forks)
            for sample in (sequence, *forks):
                # No two samples write the same.
                sample.tokens.append(1000 + 10 * sample.request_id + sample.sample)
                if len(sample.output) >= sample.request.max_new_tokens:
                    self.finished.append((sample.request_id, sample.sample))
                    scheduler.retire(sample)
                else:
                    scheduler.cache_manager.index(sample)
        return [(*scheduled.sequence.key, scheduled.length) for scheduled in plan]

    def sequence(self, request_id, request, sample):
        return SequenceState(request_id, request, sample, None, list(request.prompt))

    def check(self, plan):
        """Limits hold, what is counted is what is held, and nobody writes what others hold."""
        scheduler, blocks = self.scheduler, self.blocks
        accounted(blocks, scheduler.prefixes, scheduler.running)
        assert sum(s.slots for s in scheduler.running) <= scheduler.limits.max_batch_size
        assert sum(scheduled.length for scheduled in plan) <= scheduler.limits.step_tokens
        for sequence, start, count, _ in plan:
            assert start == sequence.computed
            assert 0 < count <= sequence.pending
            written = range(start // blocks.size, blocks.needed(start + count))
            assert all(blocks.holders(sequence.table[place]) == 1 for place in written)
        assert len({id(scheduled.sequence) for scheduled in plan}) == len(plan)
        assert bool(plan) == bool(scheduler.running)  # whenever something runs, something advances


@st.composite
def events(draw):
    """Requests, each with the step at which it comes and perhaps the step at which it is cancelled."""
    wanted = st.builds(request, prompt=st.integers(1, 12), new=st.integers(1, 6), n=st.integers(1, 4))
    cancels = st.none() | st.integers(0, 20)
    rows = draw(st.lists(st.tuples(st.integers(0, 4), wanted, cancels), min_size=1, max_size=10))
    at, out = 0, []
    for gap, each, cancel in rows:
        at += gap
        out.append((at, each, None if cancel is None else at + cancel))
    return out


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    events(),
    st.integers(1, 5),
    st.integers(10, 90),
    st.integers(1, 40),
    st.sampled_from([1, 2, 5]),
    st.booleans(),
    st.sampled_from([0, 3, 64]),
)
def test_every_request_finishes_in_its_turn_within_the_limits(
    rows, batch, cache, step_tokens, block, reuse, reserve
):
    loop, refused = Loop(batch, cache, step_tokens, block, reuse, reserve_tokens=reserve), set()
    scheduler, blocks = loop.scheduler, loop.blocks
    for step in range(2000):
        for i, (arrival, each, cancel) in enumerate(rows):
            if arrival == step and blocks.needed(each.longest) > blocks.total:
                refused.add(i)
                with pytest.raises(OutOfMemoryError):
                    scheduler.check(each)
            elif arrival == step:
                scheduler.add(i, each)
            if cancel == step:
                scheduler.cancel(i)
        loop.step()
        if step > rows[-1][0] + 20 and not scheduler.active:
            break
    else:
        pytest.fail("a request never finished")
    assert loop.begun == sorted(loop.begun)
    assert len(loop.finished) == len(set(loop.finished))
    for i, (_, each, cancel) in enumerate(rows):
        ended = [sample for request_id, sample in loop.finished if request_id == i]
        if i in refused:
            assert not ended
        elif cancel is None:
            assert sorted(ended) == list(range(each.n))
    assert not scheduler.running
    assert not scheduler.waiting
    assert blocks.used == (scheduler.prefixes.unheld if scheduler.prefixes else 0)


def running(loop):
    return [(s.request_id, s.sample) for s in loop.scheduler.running]


def test_nobody_overtakes():
    """A small request waits behind a large one, even where it alone would fit."""
    loop = Loop(4, 40)
    for i, r in enumerate([request(10, 10), request(25, 10), request(1, 1)]):
        loop.scheduler.add(i, r)
    loop.step()
    assert running(loop) == [(0, 0)]
    assert loop.scheduler.waiting == 2


def test_as_many_run_at_once_as_the_limits_allow():
    for batch, positions, expected in ((3, 100, 3), (9, 25, 2), (9, 29, 2), (9, 30, 3)):
        loop = Loop(batch, positions)
        for i in range(5):
            loop.scheduler.add(i, Request(tuple(range(10 * i, 10 * i + 5)), 5, GREEDY))
        loop.step()
        assert len(running(loop)) == expected


def test_a_prefix_is_counted_once_whether_it_is_there_or_about_to_be():
    """Of 30 tokens that all share; whoever begins beside the first needs 2 blocks of its own."""
    for late in (False, True):
        loop = Loop(9, 30 + 2 + 3 * 2, step_tokens=10)
        for i in range(5):
            loop.scheduler.add(i, Request((*range(30), 100 + i), 1, GREEDY))
            if late and not i:
                loop.step()
        loop.step()
        assert running(loop) == [(i, 0) for i in range(4)]
        assert loop.blocks.free == 6 == loop.blocks.reserved
        while loop.scheduler.active:
            loop.step()
        assert loop.scheduler.preemptions == 0


@pytest.mark.parametrize("leave", ["cancel", "pause"])
def test_what_waits_for_a_prefix_that_nobody_computes_any_more_takes_memory_of_its_own(leave):
    """Of the youngest, if need be; the oldest goes on in any case."""
    loop = Loop(9, 44, step_tokens=10, reserve_tokens=0)
    for i in range(3):
        loop.scheduler.add(i, Request((*range(30), 100 + i), 4, GREEDY))
    loop.scheduler.add(3, Request(tuple(range(200, 206)), 20, GREEDY))
    loop.step()
    assert running(loop) == [(i, 0) for i in range(4)]
    getattr(loop.scheduler, leave)(0)
    loop.scheduler.add(4, Request(tuple(range(300, 330)), 2, GREEDY))
    while loop.scheduler.active:
        loop.step()
    assert sorted(loop.finished) == [(number, 0) for number in (1, 2, 3, 4)]


def test_memory_is_taken_as_it_is_used():
    """Both fit in as they begin, not as they end: the younger is preempted, and nobody is lost."""
    loop = Loop(4, 30, reuse=False, reserve_tokens=1)
    for i in range(2):
        loop.scheduler.add(i, request(5, 20))
    loop.step()
    assert running(loop) == [(0, 0), (1, 0)]
    while loop.scheduler.active:
        loop.step()
    assert loop.scheduler.preemptions > 0
    assert loop.finished == [(0, 0), (1, 0)]


def test_decodes_come_before_prefill_and_prompts_are_cut_into_chunks():
    loop = Loop(4, 1000, 10)
    loop.scheduler.add(0, request(35, 3))
    assert [loop.step() for _ in range(3)] == [[(0, 0, 10)]] * 3
    loop.scheduler.add(1, Request(tuple(range(100, 120)), 3, GREEDY))
    assert loop.step() == [(0, 0, 5), (1, 0, 5)]
    assert loop.step() == [(0, 0, 1), (1, 0, 9)]
    assert loop.step() == [(0, 0, 1), (1, 0, 6)]


def test_beside_streaming_decodes_prompts_are_cut_smaller():
    loop = Loop(4, 1000, 100, prefill_tokens=5)
    loop.scheduler.add(0, request(35, 3))
    assert loop.step() == [(0, 0, 35)]
    loop.scheduler.add(1, Request(tuple(range(100, 120)), 3, GREEDY))
    assert loop.step() == [(0, 0, 1), (1, 0, 7)]
    assert loop.step() == [(0, 0, 1), (1, 0, 7)]
    assert loop.step() == [(1, 0, 6)]


def test_beside_streaming_decodes_chunks_get_smaller_along_a_prompt():
    """And never stop: at least one token of the oldest."""
    loop = Loop(4, 3000, 300, prefill_tokens=10, attention_breakeven=20)
    loop.scheduler.add(0, request(35, 1000))
    loop.step()
    loop.scheduler.add(1, Request(tuple(range(100, 400)), 3, GREEDY))
    loop.scheduler.add(2, Request(tuple(range(500, 900)), 3, GREEDY))
    computed = [0, 0, 0]
    while computed[1] < 290:
        plan = {number: count for number, _, count in loop.step()}
        budget, wanted = 12, {0: 1}
        for number, length in ((1, 300), (2, 400)):
            cost = 1 + computed[number] / 20
            wanted[number] = min(length - computed[number], max(int(number == 1), int(budget / cost)))
            budget -= wanted[number] * cost
            computed[number] += wanted[number]
        assert plan == {number: count for number, count in wanted.items() if count}
    assert computed[2] < 100


def test_a_prefix_that_was_reused_is_not_the_next_to_go():
    """Least recently used counts uses, not only ends; what leads to a prefix goes after it."""
    loop = Loop(4, 100, 100)

    def run(number, prompt):
        loop.scheduler.add(number, Request(tuple(prompt), 1, GREEDY))
        while loop.scheduler.running or loop.scheduler.waiting:
            loop.step()

    run(0, range(100, 130))
    run(1, range(200, 230))
    run(2, [*range(100, 104), 300])  # reuses four blocks of the first
    prefixes = loop.scheduler.prefixes
    edges = []
    while prefixes.unheld:
        edges.append(next(iter(prefixes._unheld)).edge[0])
        prefixes.evict()
    assert edges == [*reversed(range(104, 130)), *reversed(range(200, 230)), 300, 103, 102, 101, 100]


def test_samples_do_not_wait_for_the_prefill_of_later_requests():
    loop = Loop(4, 1000, 10)
    loop.scheduler.add(0, request(4, 3, n=2))
    loop.scheduler.add(1, Request(tuple(range(100, 135)), 3, GREEDY))
    assert loop.step() == [(0, 0, 4), (1, 0, 6)]
    assert loop.step() == [(0, 0, 1), (0, 1, 1), (1, 0, 8)]


def test_what_can_never_fit_is_refused_with_the_numbers():
    scheduler = Loop(2, 50, 10).scheduler
    with pytest.raises(OutOfMemoryError, match=r"grow to 51 tokens.* room for 50"):
        scheduler.check(request(prompt=45, new=6))
    scheduler.check(request(prompt=45, new=5, n=2))
    scheduler.add(0, request(prompt=45, new=5, n=2))
    assert scheduler.plan()


@pytest.mark.parametrize(("batch", "room", "together"), [(2, 1000, 2), (3, 1000, 3), (9, 18, 2), (9, 15, 1)])
def test_samples_that_do_not_run_together_follow_one_another_before_the_next_request(batch, room, together):
    """As many as batch and cache hold; whoever came later waits for the last of them to begin."""
    loop = Loop(batch, room, reuse=False)
    assert loop.scheduler.together(request(8, 4, n=7)) == together
    loop.scheduler.add(0, request(8, 4, n=7))
    loop.scheduler.add(1, request(8, 4))
    plans = []
    while loop.scheduler.active:
        plans.append(loop.step())
        assert len(plans) < 100
    first = [(number, sample) for plan in plans for number, sample, count in plan if count == 8]
    assert first == [*((0, sample) for sample in range(0, 7, together)), (1, 0)]
    assert sorted(loop.finished) == [*((0, sample) for sample in range(7)), (1, 0)]
    assert max(len(plan) for plan in plans) <= together


def test_a_preempted_sequence_begins_again_and_brings_no_sample_twice():
    loop = Loop(2, 1000, 4, reuse=False)
    loop.scheduler.add(0, request(8, 2, n=3))
    loop.step()
    loop.scheduler.pause(0)
    loop.scheduler.add(1, request(8, 2, n=2))
    loop.step()
    assert [sequence.request_id for sequence in loop.scheduler.running] == [1]
    loop.scheduler.resume(0)
    while loop.scheduler.active:
        loop.step()
    assert loop.finished == [(1, 0), (1, 1), (0, 0), (0, 1), (0, 2)]


def test_samples_that_wait_for_others_of_their_request_can_be_paused_and_cancelled():
    loop = Loop(2, 1000, reuse=False)
    loop.scheduler.add(0, request(8, 4, n=5))
    loop.step()
    loop.scheduler.pause(0)
    assert not loop.scheduler.active
    loop.scheduler.resume(0)
    while not loop.finished:
        loop.step()
    loop.step()
    assert [sequence.sample for sequence in loop.scheduler.running] == [2, 3]
    loop.scheduler.cancel(0)
    assert not loop.scheduler.active
    assert loop.scheduler.waiting == loop.blocks.used == 0


def test_cancel_of_the_unknown_is_fine():
    loop = Loop(2, 50)
    loop.scheduler.cancel(5)
    loop.scheduler.add(0, request())
    loop.scheduler.cancel(0)
    loop.scheduler.cancel(0)
    assert loop.step() == []
    assert not loop.scheduler.active


@given(st.integers(1, 30), st.integers(1, 6), st.data())
def test_sequences_stand_for_all_samples_of_a_request_whichever_have_begun(n, together, data):
    """As after an interrupt: waves that were forked, one that was not, and those that are still to come."""
    loop = Loop(together, 1000)
    wanted = request(n=n)
    waves = [range(first, min(n, first + together)) for first in range(0, n, together)]
    begun = data.draw(st.integers(1, len(waves)))
    forked = data.draw(st.lists(st.booleans(), min_size=begun, max_size=begun))
    samples, slots = [], []
    for wave, each in zip(waves, forked, strict=False):
        samples += list(wave) if each else [wave[0]]
        slots += [1] * len(wave) if each else [len(wave)]
    sequences = [SequenceState(0, wanted, sample, None, []) for sample in samples]
    if forked[-1] and begun < len(waves):
        # The head of the next wave is there before a wave can be forked.
        sequences.append(SequenceState(0, wanted, waves[begun][0], None, []))
        slots.append(len(waves[begun]))
    loop.scheduler.restore(sequences)
    assert [sequence.slots for sequence in sequences] == slots
    assert sum(slots) + sequences[-1].rest == n
    assert not any(sequence.rest for sequence in sequences[:-1])
