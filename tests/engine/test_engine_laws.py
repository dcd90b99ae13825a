"""Laws of the engine under everything at once: arrivals, cancels, pauses, preemption, reuse, chunks, drafts.

Whatever happens around it, a request gets what it gets alone; memory is conserved; all end, once, with a reason.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import GREEDY, PENALIZED, SAMPLED, TOKENIZER, Result, ask, ids, model, run, same_scores

from llama.engine import Engine, Feed, FinishReason, Request
from llama.kv_cache import KVCache


def plain(**more):
    """An engine with nothing new switched on."""
    return Engine(model(4), TOKENIZER, prefix_reuse=False, speculate=False, **more)


def memo(function):
    known = {}

    def get(*key):
        if key not in known:
            known[key] = function(*key)
        return known[key]

    return get


@memo
def alone(request, sample=0):
    """A sample by itself, without reuse, drafts or siblings."""
    single = dataclasses.replace(request, n=1, first_sample=request.first_sample + sample, prediction=())
    return run(plain(), [single])[0, 0]


def same_as_alone(result, request, sample):
    expected = alone(request, sample)
    assert result.whole == expected.whole
    for mine, theirs in zip(result.scores, expected.scores, strict=True):
        same_scores(mine, theirs)


def conserved(engine):
    """What is counted is what is held, and what is held is what is allocated."""
    scheduler, blocks = engine.scheduler, engine.blocks
    retained = scheduler.prefixes.retained if scheduler.prefixes else []
    held = sum(s.blocks * s.places for s in scheduler.running)
    assert blocks.used == held + sum(entry.blocks for entry in retained) <= blocks.total
    for sequence in scheduler.running:
        assert sequence.finish_reason is None
        assert 0 < sequence.computed + 1 <= len(sequence.tokens)
        assert sequence.cache.length == sequence.computed
        assert sequence.cache.capacity <= sequence.blocks * blocks.size
    for entry in retained:
        assert entry.cache.length == len(entry.tokens) <= entry.cache.capacity <= entry.blocks * blocks.size
    if scheduler.prefixes:
        assert (
            sum(entry.blocks for entry in retained) == scheduler.prefixes.blocks <= scheduler.prefixes.limit
        )
        assert holders(scheduler.prefixes._root) <= {*retained, *scheduler.running}
    assert sum(s.places for s in scheduler.running) <= scheduler.limits.max_batch_size
    assert scheduler.running == sorted(scheduler.running, key=lambda s: s.key)


def holders(node):
    """Who stands in the tree of prefixes; a place where nobody stands is gone."""
    found = set()
    for child in node.children.values():
        assert child.holders, "a place that nobody holds"
        found |= {*child.holders, *holders(child)}
    return found


def turn(length, seed, more):
    """A chat's second turn: a prompt, its answer, and more."""
    first = ids(length, seed)
    return (*first, *alone(ask(first, 12)).sequence.output, *ids(more + 1, 9)[1:])


prompts = (
    st.builds(ids, st.integers(1, 30), st.integers(0, 2))
    | st.builds(turn, st.integers(5, 24), st.integers(0, 2), st.integers(0, 6))
    | st.builds(lambda n, s: (1, *(ids(5, s)[1:] * n)), st.integers(1, 9), st.integers(0, 2))
)
requests = st.builds(
    ask,
    prompts,
    st.integers(0, 16) | st.sampled_from([12, 20]),
    st.sampled_from([GREEDY, GREEDY, SAMPLED, PENALIZED]),
    stop_ids=st.sampled_from([frozenset(), frozenset({2}), frozenset(range(0, 430, 9))]),
    stop=st.sampled_from([(), ("e",), (" a", "re", "ab"), ("\n",)]),
    seed=st.integers(0, 3),
    n=st.sampled_from([1, 1, 2, 3]),
    top=st.integers(0, 2),
    score_prompt=st.booleans(),
    streaming=st.booleans(),
)
guesses = st.none() | st.integers(0, 20)
rows = st.lists(
    st.tuples(
        st.integers(0, 8), requests, st.none() | st.integers(0, 14), st.none() | st.integers(0, 9), guesses
    ),
    min_size=1,
    max_size=7,
)
setups = st.fixed_dictionaries(
    {
        "cache_tokens": st.integers(30, 160),
        "retained_tokens": st.sampled_from([0, 30, None, 1000]),
        "step_tokens": st.sampled_from([1, 3, 7, 20, 1024]),
        "prefill_tokens": st.sampled_from([1, 4, 64]),
        "prefix_reuse": st.sampled_from([True, True, True, False]),
        "speculate": st.sampled_from([True, True, False]),
        "block": st.sampled_from([1, 2, 4, 16]),
        "ahead": st.sampled_from([0, 1, 5, 64]),
    }
)


def build(batch, setup):
    engine = Engine(model(batch), TOKENIZER, **{k: v for k, v in setup.items() if k != "ahead"})
    engine.scheduler.limits = dataclasses.replace(engine.scheduler.limits, ahead=setup["ahead"])
    return engine


def with_guess(request, wrong):
    """With a prediction: its own greedy output, one token of it changed."""
    if wrong is None or not request.max_new_tokens:
        return request
    guess = list(alone(request).sequence.output)
    if wrong < len(guess):
        guess[wrong] = 5
    return dataclasses.replace(request, prediction=tuple(guess))


@settings(deadline=None, derandomize=True, max_examples=100)
@given(rows, st.integers(1, 4), setups)
def test_any_interleaving_is_each_request_alone(rows, batch, setup):
    engine = build(batch, setup)
    rows = [(a, with_guess(r, g), c, p) for a, r, c, p, g in rows]
    rows = [row for row in rows if engine.blocks.of(row[1].longest) <= engine.blocks.total]
    numbers, cancelled, results, paused = {}, set(), {}, set()
    for step in range(3000):
        for i, (arrival, request, cancel, pause) in enumerate(rows):
            if arrival == step:
                numbers[i] = engine.add(request)
            if pause is not None and arrival + pause == step:
                engine.pause(numbers[i])
                paused.add(i)
            if pause is not None and arrival + pause + 12 == step:
                engine.resume(numbers[i])
                paused.discard(i)
            if cancel is not None and arrival + cancel == step:
                engine.cancel(numbers[i])
                cancelled.add(i)
        for delta in engine.step():
            number, sample = delta.key
            i = next(j for j, other in numbers.items() if other == number)
            assert i not in cancelled, "a delta of a cancelled request"
            assert i not in paused or delta.sequence.request.max_new_tokens == 0, (
                "a delta of a paused request"
            )
            results.setdefault((i, sample), Result()).take(delta)
        conserved(engine)
        if step > 30 and not engine.unfinished:
            break
    else:
        pytest.fail("the engine never ended")
    assert not engine.scheduler.running
    assert not engine.scheduler.waiting
    for i, (_, request, _, _) in enumerate(rows):
        for sample in range(request.n):
            result = results.get((i, sample))
            if result is not None and result.reason is not None:
                same_as_alone(result, request, sample)
                counts = result.sequence.counts
                assert counts.prompt == len(request.prompt) > counts.reused >= 0
                assert counts.generated == len(result.sequence.output)
            else:
                assert i in cancelled


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(requests, min_size=2, max_size=5), setups, st.integers(0, 25))
def test_a_failed_step_is_as_if_it_had_not_been(wanted, setup, failing):
    """The n-th forward or the n-th logits fail; the step is taken again."""
    made = model(4)
    engine = build(4, setup)
    wanted = [r for r in wanted if engine.blocks.of(r.longest) <= engine.blocks.total]
    for request in wanted:
        engine.add(request)
    calls, results, failed = 0, {}, False
    plain_logits, plain_hidden = made.logits, made.hidden

    def fails():
        nonlocal calls
        calls += 1
        return calls == failing + 1

    def logits(hidden_NC):
        if fails():
            raise ValueError("in the logits")
        return plain_logits(hidden_NC)

    def hidden(tokens_T, cache):
        out = plain_hidden(tokens_T, cache)
        if fails():
            raise ValueError("in the forward")
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made, "logits", logits)
        patch.setattr(made, "hidden", hidden)
        for _ in range(3000):
            if not engine.unfinished:
                break
            try:
                deltas = engine.step()
            except ValueError:
                assert engine.planned <= set(range(len(wanted)))
                failed, deltas = True, []
            conserved(engine)
            for delta in deltas:
                results.setdefault(delta.key, Result()).take(delta)
    assert failed == (calls > failing)
    assert sorted(results) == [(i, j) for i, request in enumerate(wanted) for j in range(request.n)]
    for (i, sample), result in results.items():
        same_as_alone(result, wanted[i], sample)


# ---- memory that is too small ----------------------------------------------------------------------


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_who_is_put_back_ends_with_the_same_result(seed, reuse):
    """Room for little more than the largest: the youngest give way again and again, and nobody starves."""
    generator = torch.Generator().manual_seed(seed)

    def number(low, high):
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    kinds = [GREEDY, SAMPLED, PENALIZED]
    wanted = [
        ask(
            ids(number(3, 14), number(0, 1)),
            number(10, 24),
            kinds[number(0, 2)],
            seed=20 + i,  # a draw of (2, 1) lies within rounding of a boundary
            n=number(1, 2),
            top=1,
        )
        for i in range(7)
    ]
    wanted[3] = dataclasses.replace(wanted[3], score_prompt=True)
    size = [1, 2, 4][seed % 3]
    need = max(r.n * -(-r.longest // size) for r in wanted) * size
    setup = {"cache_tokens": need + number(0, 8), "block": size, "prefix_reuse": reuse, "ahead": seed % 2}
    engine = build(4, setup)
    results = {}
    for request in wanted:
        engine.add(request)
    for _ in range(5000):
        if not engine.unfinished:
            break
        for delta in engine.step():
            results.setdefault(delta.key, Result()).take(delta)
        conserved(engine)
    assert sorted(results) == [(i, j) for i, request in enumerate(wanted) for j in range(request.n)]
    for (i, sample), result in results.items():
        same_as_alone(result, wanted[i], sample)
    assert engine.scheduler.preemptions > 0


def test_the_oldest_is_never_put_back():
    engine = build(4, {"cache_tokens": 40, "block": 1, "ahead": 0})
    first = engine.add(ask(ids(6), 30))
    for i in range(3):
        engine.add(ask(ids(6, i + 1), 30))
    last = 0
    for _ in range(300):
        engine.step()
        oldest = next((s for s in engine.scheduler.running if s.request_id == first), None)
        if oldest is None:
            break
        assert oldest.computed > last
        last = oldest.computed
    assert engine.scheduler.preemptions > 0
    while engine.unfinished:
        engine.step()


def test_a_finished_sample_gives_its_place_back_at_once():
    """Four samples, of which some end by a stop id: the next request begins while the others run."""
    request = ask(9, 20, SAMPLED, n=4, seed=2, stop_ids=frozenset(range(0, 430, 5)))
    engine = Engine(model(4), TOKENIZER)
    engine.add(request)
    second = engine.add(ask(5, 3))
    together = False
    while engine.unfinished:
        engine.step()
        ids_running = [s.request_id for s in engine.scheduler.running]
        together |= second in ids_running and 0 in ids_running
    assert together


# ---- cancel and pause --------------------------------------------------------------------------------


def test_cancel_frees_the_cache_at_once():
    engine = plain()
    number = engine.add(ask(20, 20, n=2))
    for _ in range(3):
        engine.step()
    (sequence, other) = engine.scheduler.running
    assert engine.blocks.used > 0
    engine.cancel(number)
    engine.cancel(number)
    assert engine.blocks.used == 0
    assert sequence.cache.nbytes == other.cache.nbytes == 0
    assert sequence.finish_reason is other.finish_reason is FinishReason.CANCELLED
    assert not engine.unfinished
    assert engine.step() == []


def test_what_is_paused_waits_while_the_others_go_on():
    engine = Engine(model(4), TOKENIZER)
    wanted = [ask(ids(9, i), 10) for i in range(3)]
    numbers = [engine.add(request) for request in wanted]
    results = {i: Result() for i in numbers}

    def step():
        for delta in engine.step():
            results[delta.key[0]].take(delta)

    step()
    engine.pause(numbers[0])
    engine.pause(numbers[0])
    engine.pause(12345)
    while engine.unfinished:
        step()
    assert [results[i].reason is None for i in numbers] == [True, False, False]
    assert engine.step() == []
    engine.resume(numbers[0])
    assert engine.unfinished
    while engine.unfinished:
        step()
    for i, request in zip(numbers, wanted, strict=True):
        same_as_alone(results[i], request, 0)


def test_what_is_paused_gives_place_and_memory_to_the_others():
    engine = Engine(model(2), TOKENIZER)
    first = [engine.add(ask(ids(20, i), 20)) for i in range(2)]
    engine.step()
    for number in first:
        engine.pause(number)
    late = engine.add(ask(ids(9), 5))
    ended = []
    while engine.unfinished:
        ended += [delta for delta in engine.step() if delta.finish_reason]
    assert [delta.key[0] for delta in ended] == [late]
    for number in first:
        engine.resume(number)
    while engine.unfinished:
        ended += [delta for delta in engine.step() if delta.finish_reason]
    assert sorted(delta.key[0] for delta in ended) == [*first, late]
    for delta in ended[1:]:
        assert delta.sequence.output == alone(delta.sequence.request).sequence.output


# ---- prefixes ----------------------------------------------------------------------------------------


def counting(monkeypatch, made):
    seen, hidden = [], made.hidden
    monkeypatch.setattr(
        made, "hidden", lambda tokens, cache: (seen.append(len(tokens)), hidden(tokens, cache))[1]
    )
    return seen


def test_the_second_request_computes_only_what_is_new(monkeypatch):
    made = model(4)
    engine = Engine(made, TOKENIZER, block=4, speculate=False)
    seen = counting(monkeypatch, made)
    header = ids(40)
    run(engine, [ask((*header, 5, 6, 7), 1)])
    assert seen == [43]
    result = engine.add(ask((*header, 8, 9), 1))
    (delta,) = engine.step()
    assert seen == [43, 2]
    assert delta.sequence.counts == (delta.sequence.counts.__class__)(42, 40, 1)
    assert result == delta.key[0]
    # The same prompt again: all but its last block's end is there.
    engine.add(ask((*header, 8, 9), 1))
    (delta,) = engine.step()
    assert seen == [43, 2, 2]
    # Reuse off, and a prompt whose scores are wanted, compute everything.
    engine.add(ask((*header, 8, 9), 1, score_prompt=True))
    engine.step()
    assert seen[-1] == 42


def test_a_chat_goes_on_in_the_cache_of_its_last_turn(monkeypatch):
    made = model(4)
    engine = Engine(made, TOKENIZER, block=4, speculate=False)
    seen = counting(monkeypatch, made)
    first = run(engine, [ask(ids(20), 12)])[0, 0].sequence
    (entry,) = engine.scheduler.prefixes.retained
    keys = entry.cache._keys[0]
    engine.add(ask((*ids(20), *first.output[:8], 7, 8, 9), 1))
    (delta,) = engine.step()
    assert seen[-1] == 31 - 28
    assert delta.sequence.reused == 28
    (entry,) = engine.scheduler.prefixes.retained
    assert entry.cache._keys[0] is keys  # taken over, not copied


def test_two_that_arrive_together_compute_their_prefix_once(monkeypatch):
    made = model(4)
    engine = Engine(made, TOKENIZER, block=4, speculate=False, step_tokens=10)
    seen = counting(monkeypatch, made)
    header = ids(40)
    wanted = [ask((*header, 5 + i), 1) for i in range(3)]
    results = run(engine, wanted)
    assert sum(seen) == 41 + 1 + 1
    assert sorted(result.sequence.reused for result in results.values()) == [0, 40, 40]
    monkeypatch.undo()
    for (i, _), result in results.items():
        same_as_alone(result, wanted[i], 0)


def test_who_waits_for_a_prefix_goes_on_when_its_leader_is_gone():
    for leave in ("cancel", "pause"):
        engine = Engine(model(4), TOKENIZER, block=4, step_tokens=10)
        first, second = engine.add(ask((*ids(40), 5), 4)), engine.add(ask((*ids(40), 6), 4))
        engine.step()
        assert [s.leader is not None for s in engine.scheduler.running] == [False, True]
        getattr(engine, leave)(first)
        ended = []
        while engine.unfinished:
            ended += [delta.key[0] for delta in engine.step() if delta.finish_reason]
        assert ended == [second]


def test_the_least_recently_used_prefix_goes_first():
    engine = Engine(model(4), TOKENIZER, block=4, cache_tokens=64, retained_tokens=64, speculate=False)
    for seed in (1, 2, 1, 3):  # 20 tokens each: three fit beside one that runs
        run_one(engine, ask(ids(19, seed), 1))
    kept = [tuple(entry.tokens[:19]) for entry in engine.scheduler.prefixes.retained]
    assert kept[-1] == ids(19, 3)
    run_one(engine, ask(ids(19, 4), 1))
    kept = [tuple(entry.tokens[:19]) for entry in engine.scheduler.prefixes.retained]
    assert ids(19, 2) not in kept
    assert ids(19, 1) in kept
    conserved(engine)


def run_one(engine, request):
    engine.add(request)
    while engine.unfinished:
        last = engine.step()
    return last[-1].sequence


# ---- the queue ---------------------------------------------------------------------------------------


def test_ten_thousand_wait_in_order_and_cost_nothing():
    engine = Engine(model(4), TOKENIZER)
    numbers = [engine.add(ask((1, 3 + i % 400), 1)) for i in range(10_000)]
    assert engine.scheduler.waiting == 10_000
    for number in numbers[5:]:
        if number % 100:
            engine.cancel(number)
    order = []
    while engine.unfinished:
        order += [delta.key[0] for delta in engine.step()]
    assert order == [n for n in numbers if n < 5 or n % 100 == 0]


def test_times_are_told_by_the_clock_that_was_given():
    now = [100.0]
    engine = Engine(model(4), TOKENIZER, clock=lambda: now[0], speculate=False)
    engine.add(ask(5, 3))
    now[0] = 101.5
    deltas = engine.step()
    now[0] = 104.0
    deltas += engine.step()
    now[0] = 108.0
    deltas += engine.step()
    times = deltas[-1].sequence.times
    assert (times.waited, times.to_first_token, times.total) == (1.5, 1.5, 8.0)


def test_every_sample_tells_what_their_common_prefill_took_and_reused():
    now = [1.0]
    engine = Engine(model(4), TOKENIZER, block=4, clock=lambda: now[0])
    run(engine, [ask(ids(20), 1)])
    engine.add(ask((*ids(20), 5, 6), 3, SAMPLED, n=3))
    now[0], deltas = 4.0, []
    while engine.unfinished:
        deltas += [delta for delta in engine.step() if delta.finish_reason]
    assert [delta.sequence.counts.reused for delta in deltas] == [20] * 3
    assert [delta.sequence.times.waited for delta in deltas] == [3.0] * 3


def test_prompts_are_cut_small_only_beside_a_live_decode():
    for streaming, chunk in ((True, 5 + 2), (False, 30)):
        engine = Engine(model(4), TOKENIZER, prefill_tokens=5, speculate=False, step_tokens=31)
        engine.add(ask(ids(4), 20, streaming=streaming))
        engine.step()
        number = engine.add(ask(ids(50, 1), 2))
        engine.step()
        (late,) = [s for s in engine.scheduler.running if s.request_id == number]
        assert late.computed == chunk


def test_request_is_cheap_to_queue():
    """A waiting request is nothing but itself."""
    engine = Engine(model(4), TOKENIZER)
    engine.add(Request(ids(20), 5, GREEDY))
    assert not engine.scheduler.running
    assert not engine.scheduler._returned


# ---- allocation fails ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["copy_prefix", "reserve", "fork"])
@pytest.mark.parametrize("failing", range(4))
def test_memory_that_runs_out_in_a_step_leaves_the_engine_whole(monkeypatch, name, failing):
    """The n-th allocation of a kind fails, as where the system has less than was planned with."""
    engine = Engine(model(4), TOKENIZER, block=4)
    wanted = [ask((*ids(20), 5 + i), 6, SAMPLED, seed=i, n=1 + i % 2) for i in range(4)]
    results, calls, failures = {}, 0, 0
    plain_method = getattr(KVCache, name)

    def method(*args):
        nonlocal calls
        calls += 1
        if calls == failing + 1:
            raise RuntimeError("not enough memory: you tried to allocate")
        return plain_method(*args)

    monkeypatch.setattr(KVCache, name, method)
    for request in wanted:
        engine.add(request)
    while engine.unfinished:
        try:
            deltas = engine.step()
        except RuntimeError:
            assert engine.planned <= set(range(4))
            failures, deltas = failures + 1, []
        conserved(engine)
        for delta in deltas:
            results.setdefault(delta.key, Result()).take(delta)
    monkeypatch.undo()
    assert failures == (calls > failing)
    assert sorted(results) == [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0), (3, 1)]
    for (i, sample), result in results.items():
        same_as_alone(result, wanted[i], sample)


def test_a_short_request_does_not_hold_a_long_ones_memory():
    """Where a retained prefix has to go for its own continuation, no more is taken than without reuse."""
    shared = ids(16)
    for prefix_reuse in (True, False):
        engine = Engine(
            model(4, 512), TOKENIZER, cache_tokens=512, retained_tokens=512, prefix_reuse=prefix_reuse
        )
        engine.add(ask((*shared, *ids(420, 1)), 5))
        while engine.unfinished:
            engine.step()
        engine.add(ask((*shared, *ids(30, 2)), 40))
        engine.add(ask((*shared, *ids(30, 3)), 40))
        engine.step()
        engine.step()
        assert len(engine.scheduler.running) == 2, prefix_reuse
        while engine.unfinished:
            engine.step()


# ---- what is used again ------------------------------------------------------------------------------


def computed(engine):
    """A list that grows by the tokens of each forward."""
    forward, counts = engine.runner.forward, []

    def counted(plan):
        counts.append(sum(count for _, count in plan))
        return forward(plan)

    engine.runner.forward = counted
    return counts


@pytest.mark.parametrize("late", [0, 3])
def test_a_prefix_that_several_begin_with_is_computed_once(late):
    """Who comes while another computes it waits for it, whether it comes at once or in the middle."""
    engine = build(4, {"step_tokens": 8, "block": 4, "ahead": 64})
    counts = computed(engine)
    shared = ids(40)
    engine.add(ask((*shared, 5, 6, 7, 8, 9), 1))
    for _ in range(late):
        engine.step()
    for other in (300, 310):
        engine.add(ask((*shared, *range(other, other + 5)), 1))
    while engine.unfinished:
        engine.step()
    assert sum(counts) == 45 + 5 + 5


@pytest.mark.parametrize("again", ["copied", "computed again"])
def test_what_was_not_used_for_the_longest_time_is_evicted_first(again):
    engine = build(4, {"cache_tokens": 64, "retained_tokens": 64, "block": 4, "ahead": 64})
    first, second = ids(12, 1), ids(12, 2)
    for prompt in (first, second):
        run(engine, [ask(prompt, 1)])
    # The first is used: by two samples, which copy it, or by the same prompt once more, which leaves nothing new.
    if again == "copied":
        run(engine, [ask((*first, 9), 1, n=2)])
    else:
        run(engine, [ask(first, 1, score_prompt=True)])
    prefixes = engine.scheduler.prefixes
    order = [entry.tokens[:12] for entry in prefixes.retained]
    assert order.index(list(second)) < order.index(list(first))
    # As much as only the second, and what is older, has to go for.
    kept = sum(entry.blocks for entry in prefixes.retained[order.index(list(second)) + 1 :])
    engine.add(ask(ids((64 // 4 - kept) * 4 - 1, 3), 1))
    engine.step()
    left = [entry.tokens[:12] for entry in prefixes.retained]
    assert list(first) in left
    assert list(second) not in left


def test_a_request_that_nobody_reads_any_more_is_cancelled_at_the_next_step():
    engine = build(4, {"ahead": 64})
    read, dropped = Feed(), Feed()
    wanted = ask(6, 12)
    kept = engine.add(wanted, read)
    for _ in range(2):
        engine.add(ask(7, 30), dropped)
    engine.advance()
    assert len(engine.scheduler.running) == 3
    del dropped
    engine.advance()
    assert [sequence.request_id for sequence in engine.scheduler.running] == [kept]
    result = Result()
    while engine.unfinished:
        engine.advance()
    for delta in engine.read(read):
        result.take(delta)
    same_as_alone(result, wanted, 0)
    assert engine.step() == []
