"""Laws of calls that share one engine: whatever thread they come from and whenever they end, each gets its own result
and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time

import pytest
from tiny_llama import tiny_llama

from llama.errors import RequestError

PROMPTS = ["def return", "for i in", "class", "import list", "x = "]
LIMIT = 60.0


@pytest.fixture
def made():
    made = tiny_llama()
    yield made
    engine = made.engine
    assert not engine.unfinished
    assert not engine.scheduler.running
    assert not made._calls._inboxes
    assert not made._calls._over
    prefixes = engine.scheduler.prefixes
    assert engine.blocks.used == prefixes.blocks
    # Who is in the tree is retained: nothing else holds memory there.
    assert set(prefixes._paths) == set(prefixes.retained)


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
    step, begun = made.engine.step, threading.Event()

    def slow_step():
        begun.set()
        end = time.thread_time() + 0.005
        while time.thread_time() < end:
            pass
        return step()

    monkeypatch.setattr(made.engine, "step", slow_step)
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


def test_a_stream_that_is_cleared_away_in_the_middle_of_a_step_leaves_nothing(made, monkeypatch):
    """The garbage collector ends what is part of a circle, whenever it likes."""
    expected = text(made, PROMPTS[0])
    forward = made.engine.runner.forward

    def forward_and_collect(plan):
        found = forward(plan)
        gc.collect()
        return found

    stream = made.stream(PROMPTS[1:3], temperature=0, max_gen_len=60)
    next(stream)
    circle = [stream]
    circle.append(circle)
    monkeypatch.setattr(made.engine.runner, "forward", forward_and_collect)
    del stream, circle
    assert text(made, PROMPTS[0]) == expected


def test_a_call_beside_a_service_is_refused(made):
    async def main(front):
        with pytest.raises(RequestError, match="ask its front"):
            await asyncio.to_thread(text, made, PROMPTS[0])
        with pytest.raises(RequestError, match="ask its front"):
            next(made.stream(PROMPTS, max_gen_len=5))
        (request,) = made.requests(PROMPTS[:1], temperature=0, max_gen_len=20)
        return (await front.complete(request))[0].text

    served = asyncio.run(made.serve(main))
    assert served == asyncio.run(made.serve(main)) == text(made, PROMPTS[0])
