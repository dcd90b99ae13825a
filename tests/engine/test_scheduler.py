"""Laws of the scheduler: first come, first served; never above a limit; all finish; nothing stays reserved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llama
from llama.engine.blocks import Blocks
from llama.engine.prefix_cache import PrefixCache
from llama.engine.request import FinishReason, Request, SequenceState, TokenScore
from llama.engine.scheduler import Limits, Scheduler
from llama.errors import OutOfMemoryError
from llama.sampling import GREEDY

_IMPORT_WITHOUT_TORCH = """
import importlib, sys, types
sys.modules["torch"] = sys.modules["fairscale"] = None  # an import of these raises
for name, folder in (("llama", sys.argv[1]), ("llama.engine", sys.argv[1] + "/engine")):
    package = types.ModuleType(name)  # stands for the package, whose __init__ imports the whole runtime
    package.__path__ = [folder]
    sys.modules[name] = package
importlib.import_module(sys.argv[2])
"""


_TORCH_FREE = ["errors", "values", "tokenizer", "detokenizer", "prompts", "sampling"]
_TORCH_FREE += [
    f"engine.{name}"
    for name in ("request", "scheduler", "blocks", "prefix_cache", "cache_manager", "speculation")
]


@pytest.mark.parametrize("module", _TORCH_FREE)
def test_imports_no_torch(module):
    folder = str(Path(llama.__file__).parent)
    command = [sys.executable, "-c", _IMPORT_WITHOUT_TORCH, folder, f"llama.{module}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def request(prompt=3, new=4, n=1):
    return Request(tuple(range(prompt)), new, GREEDY, n=n)


class Cache:
    """Stands for a KVCache: only lengths."""

    def __init__(self, length=0):
        self.length = length

    def take(self):
        taken, self.length = Cache(self.length), 0
        return taken

    def truncate(self, length):
        assert length <= self.length
        self.length = length

    def copy_prefix(self, source, length, room):
        assert self.length == 0
        assert length <= min(source.length, room)
        self.length = length


class Loop:
    """The engine's loop without a model: every sequence runs for all the tokens it may have."""

    def __init__(self, batch, positions, step_tokens=100, block=1, reuse=True, **limits):
        self.begun = []
        self.finished = []
        self.blocks = Blocks(positions, block)
        prefixes = PrefixCache(block, self.blocks.total) if reuse else None
        limits = Limits(batch, step_tokens, **limits)
        self.scheduler = Scheduler(limits, self.blocks, prefixes, self.sequence)

    def step(self):
        scheduler = self.scheduler
        plan = scheduler.plan()
        self.begun += [s.request_id for s in scheduler.running if s.request_id not in self.begun]
        self.check(plan)
        for sequence, count in plan:
            sequence.computed += count
            sequence.cache.length += count
            if sequence.pending:
                continue
            forks = [
                self.sequence(sequence.request_id, sequence.request, 0, sequence.sample + j)
                for j in range(1, sequence.places)
            ]
            for fork in forks:
                fork.computed, fork.cache = sequence.computed, Cache(sequence.computed)
            if forks:
                scheduler.fork(sequence, forks)
            for sample in (sequence, *forks):
                # No two samples write the same.
                sample.tokens.append(1000 + 10 * sample.request_id + sample.sample)
                scheduler.room.grown(sample)
                if len(sample.output) >= sample.request.max_new_tokens:
                    self.finished.append((sample.request_id, sample.sample))
                    scheduler.retire(sample)
        return [(sequence.request_id, sequence.sample, count) for sequence, count in plan]

    def sequence(self, request_id, request, queued, sample):
        return SequenceState(request_id, request, sample, Cache(), None, list(request.prompt))

    def check(self, plan):
        """Limits hold, and what is counted is what is held."""
        scheduler, blocks = self.scheduler, self.blocks
        retained = scheduler.prefixes.retained if scheduler.prefixes else []
        held = [s.blocks * s.places for s in scheduler.running] + [entry.blocks for entry in retained]
        assert blocks.used == sum(held) <= blocks.total
        assert sum(s.places for s in scheduler.running) <= scheduler.limits.max_batch_size
        for sequence in scheduler.running:
            assert sequence.computed == sequence.cache.length <= sequence.blocks * blocks.size
        assert sum(count for _, count in plan) <= scheduler.limits.step_tokens
        for sequence, count in plan:
            assert 0 < count <= sequence.pending
            assert sequence.computed + count <= sequence.blocks * blocks.size
        assert len({id(sequence) for sequence, _ in plan}) == len(plan)
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
    rows, batch, cache, step_tokens, block, reuse, ahead
):
    loop, refused = Loop(batch, cache, step_tokens, block, reuse, ahead=ahead), set()
    scheduler, blocks = loop.scheduler, loop.blocks
    for step in range(2000):
        for i, (arrival, each, cancel) in enumerate(rows):
            if arrival == step and blocks.of(each.longest) > blocks.total:
                refused.add(i)
                with pytest.raises(OutOfMemoryError):
                    scheduler.add(i, each)
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
    assert blocks.used == (scheduler.prefixes.blocks if scheduler.prefixes else 0)


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
            loop.scheduler.add(i, request(5, 5))
        loop.step()
        assert len(running(loop)) == expected


def test_memory_is_taken_as_it_is_used():
    """Both fit in as they begin, not as they end: the younger is put back, and nobody is lost."""
    loop = Loop(4, 30, reuse=False, ahead=1)
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


def test_beside_live_decodes_prompts_are_cut_smaller():
    loop = Loop(4, 1000, 100, prefill_tokens=5)
    loop.scheduler.add(0, request(35, 3))
    assert loop.step() == [(0, 0, 35)]
    loop.scheduler.add(1, Request(tuple(range(100, 120)), 3, GREEDY))
    assert loop.step() == [(0, 0, 1), (1, 0, 7)]
    assert loop.step() == [(0, 0, 1), (1, 0, 7)]
    assert loop.step() == [(1, 0, 6)]


def test_beside_live_decodes_chunks_get_smaller_along_a_prompt():
    """And never stop: at least one token of the oldest."""
    loop = Loop(4, 3000, 300, prefill_tokens=10, reach=20)
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


def test_a_prefix_that_was_copied_is_not_the_next_to_go():
    """Least recently used counts uses, not only ends."""
    loop = Loop(4, 100, 100)

    def run(number, prompt):
        loop.scheduler.add(number, Request(tuple(prompt), 1, GREEDY))
        while loop.scheduler.running or loop.scheduler.waiting:
            loop.step()

    run(0, range(100, 130))
    run(1, range(200, 230))
    run(2, [*range(100, 104), 300])  # reuses little of the first: a copy, which stays where it is
    assert loop.scheduler.room.evict()
    assert [entry.tokens[0] for entry in loop.scheduler.prefixes.retained] == [100, 100]


def test_samples_do_not_wait_for_the_prefill_of_later_requests():
    loop = Loop(4, 1000, 10)
    loop.scheduler.add(0, request(4, 3, n=2))
    loop.scheduler.add(1, Request(tuple(range(100, 135)), 3, GREEDY))
    assert loop.step() == [(0, 0, 4), (1, 0, 6)]
    assert loop.step() == [(0, 0, 1), (0, 1, 1), (1, 0, 8)]


def test_what_can_never_fit_is_refused_with_the_numbers():
    scheduler = Loop(2, 50, 10).scheduler
    with pytest.raises(OutOfMemoryError, match=r"grow to 51 tokens.* room for 50"):
        scheduler.add(0, request(prompt=45, new=6))
    scheduler.add(0, request(prompt=45, new=5, n=2))
    assert scheduler.plan()


@pytest.mark.parametrize(("batch", "room", "together"), [(2, 1000, 2), (3, 1000, 3), (9, 26, 2), (9, 15, 1)])
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


def test_who_is_put_back_and_begins_again_brings_no_sample_twice():
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
    gone = loop.scheduler.cancel(0)
    assert [sequence.sample for sequence in gone] == [4, 2, 3]
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


def test_the_account_is_never_overdrawn():
    blocks = Blocks(33, 16)
    assert (blocks.total, blocks.of(0), blocks.of(1), blocks.of(16), blocks.of(17)) == (3, 0, 1, 1, 2)
    blocks.take(3)
    with pytest.raises(AssertionError, match="1 blocks taken of 0"):
        blocks.take(1)
    blocks.give(3)
    with pytest.raises(AssertionError, match="1 blocks given back of 0"):
        blocks.give(1)


def test_records():
    """What the loop reads off a sequence and a score."""
    sequence = SequenceState(4, request(5, 3, n=2), 1, None, None, list(range(5)))
    assert (sequence.pending, sequence.output, sequence.name()) == (5, [], "row 0, sample 1, step 0")
    sequence.computed = 5
    sequence.tokens.append(9)
    assert (sequence.pending, sequence.output, sequence.name()) == (1, [9], "row 0, sample 1, step 1")
    assert TokenScore(-1.0, ((3, -1.0), (4, -2.0))).best(1) == TokenScore(-1.0, ((3, -1.0),))
    assert [r.value for r in FinishReason] == ["stop", "length", "stop_sequence", "cancelled", "error"]


def test_draws_belong_to_seed_and_sample():
    def draws(seed, sample, first_sample=0):
        r = Request((1,), 1, GREEDY, seed=seed, n=9, first_sample=first_sample)
        sequence = SequenceState(0, r, sample, None, None, [1])
        late = [sequence.uniform(i) for i in (40, 3, 0)]
        assert late[::-1] == [SequenceState(0, r, sample, None, None, [1]).uniform(i) for i in (0, 3, 40)]
        return [sequence.uniform(i) for i in range(4)]

    assert draws(3, 1) == draws(3, 1) == draws(3, 0, first_sample=1)
    assert len({tuple(draws(seed, sample)) for seed in (0, 1, 2**40, 2**70) for sample in range(3)}) == 12


@given(st.integers(1, 30), st.integers(1, 6), st.data())
def test_sequences_stand_for_all_samples_of_a_request_whichever_have_begun(n, together, data):
    """As after an interrupt: waves that were forked, one that was not, and those that are still to come."""
    loop = Loop(together, 1000)
    wanted = request(n=n)
    waves = [range(first, min(n, first + together)) for first in range(0, n, together)]
    begun = data.draw(st.integers(1, len(waves)))
    forked = data.draw(st.lists(st.booleans(), min_size=begun, max_size=begun))
    samples, places = [], []
    for wave, each in zip(waves, forked, strict=False):
        samples += list(wave) if each else [wave[0]]
        places += [1] * len(wave) if each else [len(wave)]
    sequences = [SequenceState(0, wanted, sample, Cache(), None, []) for sample in samples]
    if forked[-1] and begun < len(waves):
        # The head of the next wave is there before a wave can be forked.
        sequences.append(SequenceState(0, wanted, waves[begun][0], Cache(), None, []))
        places.append(len(waves[begun]))
    loop.scheduler.place(wanted, sequences)
    assert [sequence.places for sequence in sequences] == places
    assert sum(places) + sequences[-1].rest == n
    assert not any(sequence.rest for sequence in sequences[:-1])
