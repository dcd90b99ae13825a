"""Laws of the scheduler: first come, first served; never above a limit; all finish; nothing stays reserved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llama
from llama.engine.request import FinishReason, Request, Sequence, TokenScore
from llama.engine.scheduler import Scheduler
from llama.errors import OutOfMemoryError, RequestError
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


@pytest.mark.parametrize(
    "module", ["errors", "tokenizer", "detokenizer", "prompts", "engine.request", "engine.scheduler"]
)
def test_imports_no_torch(module):
    folder = str(Path(llama.__file__).parent)
    command = [sys.executable, "-c", _IMPORT_WITHOUT_TORCH, folder, f"llama.{module}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def request(prompt=3, new=4, n=1):
    return Request(tuple(range(prompt)), new, GREEDY, n=n)


class Loop:
    """The engine's loop without a model: every sequence runs for all the tokens it may have."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.admitted = []
        self.finished = []

    def step(self):
        scheduler = self.scheduler
        while (found := scheduler.admit()) is not None:
            self.admitted.append(found[0])
            scheduler.running.append(self.sequence(*found, 0))
        plan = scheduler.plan()
        self.check(plan)
        for sequence, count in plan:
            sequence.computed += count
            if sequence.pending:
                continue
            samples = [sequence]
            if len(sequence.tokens) == len(sequence.request.prompt):
                forks = [
                    self.sequence(sequence.request_id, sequence.request, j)
                    for j in range(1, sequence.request.n)
                ]
                for fork in forks:
                    fork.computed = sequence.computed
                scheduler.running += forks
                samples += forks
            for sample in samples:
                sample.tokens.append(7)
                if len(sample.output) >= sample.request.max_new_tokens:
                    self.finished.append((sample.request_id, sample.sample))
                    scheduler.leave(sample)
        return plan

    def sequence(self, request_id, request, sample):
        return Sequence(request_id, request, sample, None, None, list(request.prompt))

    def check(self, plan):
        """Limits hold, now and for all that the running sequences may still become."""
        scheduler = self.scheduler
        alive = {sequence.request_id: sequence.request for sequence in scheduler.running}
        assert sum(request.n for request in alive.values()) <= scheduler.max_batch_size
        assert len(scheduler.running) <= scheduler.max_batch_size
        assert sum(request.cache_tokens for request in alive.values()) <= scheduler.cache_tokens
        assert sum(len(sequence.tokens) for sequence in scheduler.running) <= scheduler.cache_tokens
        assert sum(count for _, count in plan) <= scheduler.step_tokens
        assert all(0 < count <= sequence.pending for sequence, count in plan)
        assert len({id(sequence) for sequence, _ in plan}) == len(plan)
        assert bool(plan) == bool(scheduler.running)  # whenever something runs, something advances


def nothing_is_reserved(scheduler):
    """A request that needs every place and every position starts at once."""
    places = scheduler.max_batch_size
    tokens = scheduler.cache_tokens // places
    whole = request(prompt=1, new=tokens - 1, n=places)
    scheduler.add(10**6, whole)
    admitted = scheduler.admit()
    scheduler.cancel(10**6)
    return admitted == (10**6, whole)


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
@given(events(), st.integers(1, 5), st.integers(10, 90), st.integers(1, 40))
def test_every_request_finishes_in_its_turn_within_the_limits(rows, batch, cache, step_tokens):
    scheduler = Scheduler(batch, cache, step_tokens)
    loop, refused = Loop(scheduler), set()
    for step in range(2000):
        for i, (arrival, each, cancel) in enumerate(rows):
            if arrival == step and (each.n > batch or each.cache_tokens > cache):
                refused.add(i)
                with pytest.raises((RequestError, OutOfMemoryError)):
                    scheduler.add(i, each)
            elif arrival == step:
                scheduler.add(i, each)
            if cancel == step:
                scheduler.cancel(i)
        loop.step()
        if step > rows[-1][0] + 20 and not (scheduler.waiting or scheduler.running):
            break
    else:
        pytest.fail("a request never finished")
    assert loop.admitted == sorted(loop.admitted)
    assert len(loop.finished) == len(set(loop.finished))
    for i, (_, each, cancel) in enumerate(rows):
        ended = [sample for request_id, sample in loop.finished if request_id == i]
        if i in refused:
            assert not ended
        elif cancel is None:
            assert sorted(ended) == list(range(each.n))
    assert nothing_is_reserved(scheduler)


def test_nobody_overtakes():
    """A small request waits behind a large one, even where it alone would fit."""
    scheduler = Scheduler(4, 40, 100)
    for i, r in enumerate([request(10, 10), request(20, 10), request(1, 1)]):
        scheduler.add(i, r)
    assert scheduler.admit()[0] == 0
    assert scheduler.admit() is None
    assert [i for i, _ in scheduler.waiting] == [1, 2]


def test_as_many_run_at_once_as_the_limits_allow():
    scheduler = Scheduler(3, 100, 100)
    for i in range(5):
        scheduler.add(i, request(5, 5))
    assert [scheduler.admit() is not None for _ in range(5)] == [True, True, True, False, False]
    scheduler = Scheduler(9, 25, 100)
    for i in range(5):
        scheduler.add(i, request(5, 5))
    assert [scheduler.admit() is not None for _ in range(5)] == [True, True, False, False, False]


def test_decodes_come_before_prefill_and_prompts_are_cut_into_chunks():
    scheduler = Scheduler(4, 1000, 10)
    scheduler.add(0, request(35, 3))
    loop = Loop(scheduler)
    assert [[count for _, count in loop.step()] for _ in range(3)] == [[10], [10], [10]]
    scheduler.add(1, request(20, 3))
    assert [(s.request_id, c) for s, c in loop.step()] == [(0, 5), (1, 5)]
    assert [(s.request_id, c) for s, c in loop.step()] == [(0, 1), (1, 9)]
    assert [(s.request_id, c) for s, c in loop.step()] == [(0, 1), (1, 6)]


def test_samples_do_not_wait_for_the_prefill_of_later_requests():
    scheduler = Scheduler(4, 1000, 10)
    scheduler.add(0, request(4, 3, n=2))
    scheduler.add(1, request(35, 3))
    loop = Loop(scheduler)
    assert [(s.request_id, s.sample, c) for s, c in loop.step()] == [(0, 0, 4), (1, 0, 6)]
    assert [(s.request_id, s.sample, c) for s, c in loop.step()] == [(0, 0, 1), (0, 1, 1), (1, 0, 8)]


def test_what_can_never_fit_is_refused_with_the_numbers():
    scheduler = Scheduler(2, 50, 10)
    with pytest.raises(RequestError, match="n is 3, but max_batch_size is 2"):
        scheduler.add(0, request(n=3))
    with pytest.raises(OutOfMemoryError, match=r"grow to 52 tokens.* room for 50"):
        scheduler.add(0, request(prompt=20, new=6, n=2))
    scheduler.add(0, request(prompt=20, new=5, n=2))
    assert scheduler.admit() is not None


def test_cancel_of_the_unknown_is_fine():
    scheduler = Scheduler(2, 50, 10)
    scheduler.cancel(5)
    scheduler.add(0, request())
    scheduler.cancel(0)
    scheduler.cancel(0)
    assert scheduler.admit() is None
    assert nothing_is_reserved(scheduler)


def test_records():
    """What the loop reads off a sequence and a score."""
    sequence = Sequence(4, request(5, 3, n=2), 1, None, None, list(range(5)))
    assert (sequence.pending, sequence.output, sequence.name) == (5, [], "row 0, sample 1, step 0")
    sequence.computed = 5
    sequence.tokens.append(9)
    assert (sequence.pending, sequence.output, sequence.name) == (1, [9], "row 0, sample 1, step 1")
    assert TokenScore(-1.0, ((3, -1.0), (4, -2.0))).best(1) == TokenScore(-1.0, ((3, -1.0),))
    assert [reason.value for reason in FinishReason] == ["stop", "length", "stop_sequence", "cancelled"]


def test_draws_belong_to_seed_and_sample():
    def draws(seed, sample, first_sample=0):
        r = Request((1,), 1, GREEDY, seed=seed, n=9, first_sample=first_sample)
        return Sequence(0, r, sample, None, None, [1]).random.random(4).tolist()

    assert draws(3, 1) == draws(3, 1) == draws(3, 0, first_sample=1)
    assert len({tuple(draws(seed, sample)) for seed in (0, 1, 2**40, 2**70) for sample in range(3)}) == 12
