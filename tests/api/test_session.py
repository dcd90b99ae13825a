"""Laws of calls that share one engine: whatever thread they come from and whenever they end, each gets its own result
and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import weakref

import pytest
import torch
from tiny_llama import tiny_llama

from llama.engine.fair_lock import FairLock
from llama.errors import NumericsError, RequestError

PROMPTS = ["def return", "for i in", "class", "import list", "x = "]
LIMIT = 60.0


@pytest.fixture
def made():
    made = tiny_llama()
    yield made
    engine = made.engine
    assert not engine.unfinished
    assert not engine.scheduler.running
    assert not engine._requests
    assert not engine._unread
    prefixes = engine.scheduler.prefixes
    # What is kept for reuse is all that takes memory.
    assert engine.blocks.used == prefixes.unheld
    assert not prefixes._paths


def text(llama, prompt):
    return llama.text_completion([prompt], temperature=0, max_gen_len=20)[0]["generation"]


def test_calls_may_come_from_several_threads(made, monkeypatch):
    expected = [text(made, prompt) for prompt in PROMPTS]
    found = [[] for _ in PROMPTS]

    def work(i):
        for _ in range(4):
            found[i].append(text(made, PROMPTS[i]))
            for _ in made.stream([PROMPTS[i]], temperature=0, max_gen_len=20):
                break  # the rest is left to the others

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(PROMPTS))]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
    finally:
        sys.setswitchinterval(before)
    assert not any(thread.is_alive() for thread in threads)
    assert found == [[each] * 4 for each in expected]


def test_a_call_does_not_wait_for_the_end_of_another(made, monkeypatch):
    """Steps take a while, and the thread that has just done one is the first to ask for the next."""
    advance, begun = made.engine.advance, threading.Event()

    def slow_step():
        begun.set()
        end = time.thread_time() + 0.005
        while time.thread_time() < end:
            pass
        return advance()

    monkeypatch.setattr(made.engine, "advance", slow_step)
    ended = []

    def work(name, new):
        made.text_completion([PROMPTS[0]], temperature=0, max_gen_len=new, stop_ids=[])
        ended.append(name)

    long = threading.Thread(target=work, args=("long", 120), daemon=True)
    long.start()
    assert begun.wait(LIMIT)
    for _ in range(2):
        work("short", 3)
    long.join(LIMIT)
    assert ended == ["short"] * 2 + ["long"]


def test_a_stream_that_is_collected_in_the_middle_of_a_step_leaves_nothing(made, monkeypatch):
    """The garbage collector ends what is part of a cycle, whenever it likes."""
    expected = text(made, PROMPTS[0])
    run = made.engine.runner.run

    def run_and_collect(batch):
        found = run(batch)
        gc.collect()
        ended_in_step.append(stream_ref() is None)
        return found

    gc.freeze()  # the collector then looks at what this test makes, not at all of torch
    try:
        ended_in_step = []
        stream = made.stream(PROMPTS[1:3], temperature=0, max_gen_len=60)
        stream_ref = weakref.ref(stream)
        next(stream)
        cycle = [stream]
        cycle.append(cycle)
        monkeypatch.setattr(made.engine.runner, "run", run_and_collect)
        del stream, cycle
        assert stream_ref() is not None
        assert text(made, PROMPTS[0]) == expected
    finally:
        gc.unfreeze()
    assert ended_in_step[0]
    assert len(ended_in_step) > 10


def test_a_call_beside_a_service_is_refused(made):
    async def main(async_engine):
        with pytest.raises(RequestError, match="send requests to its AsyncEngine"):
            await asyncio.to_thread(text, made, PROMPTS[0])
        with pytest.raises(RequestError, match="send requests to its AsyncEngine"):
            next(made.stream(PROMPTS, max_gen_len=5))
        (request,) = made.requests(PROMPTS[:1], temperature=0, max_gen_len=20)
        return (await async_engine.complete(request))[0].text

    served = asyncio.run(made.serve(main))
    assert served == asyncio.run(made.serve(main)) == text(made, PROMPTS[0])


# ---- failures -----------------------------------------------------------------------------------------


def poisoned(made, monkeypatch, prompt):
    """Logits of the sequences with this prompt are no numbers."""
    bad = tuple(made.tokenizer.encode(prompt, bos=True, eos=False))
    decide = made.engine.runner._decide

    def decided(hidden_TC, rows):
        hidden_TC = hidden_TC.clone()
        hidden_TC[[each.row for each in rows if each.sequence.request.prompt == bad]] = torch.nan
        return decide(hidden_TC, rows)

    monkeypatch.setattr(made.engine.runner, "_decide", decided)


def rest(stream, begun):
    return begun.text + "".join(delta.text for delta in stream)


def test_logits_that_are_not_finite_end_the_call_that_they_belong_to(made, monkeypatch):
    """Whoever steps: the call that finds them in its own step, and the one whose step another one takes."""
    expected = [text(made, prompt) for prompt in PROMPTS]
    stream = made.stream(PROMPTS[:1], temperature=0, max_gen_len=20)
    begun = next(stream)
    with monkeypatch.context() as patch:
        poisoned(made, patch, PROMPTS[2])
        with pytest.raises(NumericsError, match=r"^row 1, sample 0, step 0: "):
            made.text_completion(PROMPTS[1:3], temperature=0, max_gen_len=20)
    assert rest(stream, begun) == expected[0]

    stream = made.stream(PROMPTS[:1], temperature=0, max_gen_len=20)
    next(stream)
    with monkeypatch.context() as patch:
        poisoned(made, patch, PROMPTS[0])
        assert [text(made, prompt) for prompt in PROMPTS[1:]] == expected[1:]
    with pytest.raises(NumericsError, match=r"^row 0, sample 0, step 1: "):
        next(stream)


def test_an_error_that_names_nobody_ends_the_call_that_stepped(made, monkeypatch):
    expected = text(made, PROMPTS[0])
    stream = made.stream(PROMPTS[:1], temperature=0, max_gen_len=20)
    begun = next(stream)

    def forward(plan):
        assert len(plan) > 1
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(made.engine.runner, "run", forward)
        with pytest.raises(MemoryError, match="no room"):
            made.text_completion(PROMPTS[1:3], temperature=0, max_gen_len=20)
    assert rest(stream, begun) == expected


# ---- the lock -----------------------------------------------------------------------------------------


def test_the_turn_goes_to_whoever_waits_and_not_to_whoever_had_it():
    turn = FairLock()
    for _ in range(20):
        order = []

        def other(order=order):
            with turn:
                order.append("other")

        thread = threading.Thread(target=other, daemon=True)
        with turn:
            thread.start()
            # Until it stands in line. The bound is for a lock without a line, where the order below is wrong.
            end = time.monotonic() + 10
            while not turn._queue.locked() and time.monotonic() < end:
                time.sleep(0.001)
        with turn:
            order.append("same")
        thread.join(LIMIT)
        assert order == ["other", "same"]


def test_a_turn_is_taken_only_where_it_is_free():
    turn, done = FairLock(), []
    turn.if_free(lambda: done.append("free"))
    with turn:
        turn.if_free(lambda: done.append("taken"))
    with pytest.raises(ValueError, match="in it"), turn:
        raise ValueError("in it")
    turn.if_free(lambda: done.append("free again"))
    assert done == ["free", "free again"]
