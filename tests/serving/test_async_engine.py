"""However many callers there are, each gets what its request gets alone, and each sample ends exactly once."""

from __future__ import annotations

import asyncio
import threading

import psutil
import pytest
from async_engines import SAMPLED, TOKENIZER, alone, ask, collect, gated, ids, run, until
from thread_ranks import ThreadRank
from tiny_llama import tiny_model

from llama.engine import Engine, FinishReason
from llama.errors import ParallelismError, PromptError, RequestError
from llama.sampling import GREEDY
from llama.serving import AsyncEngine, TextDelta


def test_many_streams_are_each_request_alone():
    requests = [ask(ids(3 + i % 20, i), 4 + i % 9, GREEDY) for i in range(30)]
    requests += [ask(ids(5 + i, i), 8, SAMPLED, seed=i, n=1 + i % 4, stop=("e",)) for i in range(12)]
    requests += [ask(9, 0, n=2), ask(9, 0, score_prompt=True)]
    engine = gated(step_tokens=16)

    async def main():
        async with AsyncEngine(engine) as async_engine:
            return await asyncio.gather(*(collect(async_engine, request) for request in requests))

    for request, found in zip(requests, run(main()), strict=True):
        assert found == alone(request)
    assert engine.empty


def test_complete_is_the_joined_stream():
    request = ask(7, 12, SAMPLED, n=3, seed=5)

    async def main():
        async with AsyncEngine(gated()) as async_engine:
            return await async_engine.complete(request)

    found = run(main())
    assert [(each.text, each.finish_reason, each.sequence.output) for each in found] == alone(request)
    assert [each.sample for each in found] == [0, 1, 2]


def test_the_model_runs_in_one_thread_that_is_not_the_loops():
    engine = gated()

    async def main():
        async with AsyncEngine(engine) as async_engine:
            await asyncio.gather(*(async_engine.complete(ask(ids(4, i), 5)) for i in range(6)))

    run(main())
    assert len(engine.threads) == 1
    assert threading.main_thread() not in engine.threads
    assert not any(thread.is_alive() for thread in engine.threads)


def test_a_step_of_many_streams_wakes_the_loop_once():
    engine = gated()

    async def main():
        loop, wakes = asyncio.get_running_loop(), []
        wake = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *args: (wakes.append(args), wake(*args))[1]
        async with AsyncEngine(engine) as async_engine:
            await asyncio.gather(*(async_engine.complete(ask(ids(4, i), 20)) for i in range(4)))
            return len(wakes)

    assert run(main()) <= engine.steps


def test_max_new_tokens_0_runs_no_model(monkeypatch):
    engine = gated()
    monkeypatch.setattr(engine.runner, "run", lambda *_: pytest.fail("the model was run"))

    async def main():
        async with AsyncEngine(engine) as async_engine:
            return await collect(async_engine, ask(5, 0, n=3))

    assert run(main()) == [("", FinishReason.LENGTH, [])] * 3


def test_ten_thousand_queued_requests_end_in_order_in_bounded_memory():
    engine, count = gated(64, step_tokens=256), 10_000
    prompts, ended = [ids(3, i) for i in range(50)], []

    async def main():
        async with AsyncEngine(engine) as async_engine:
            engine.open.clear()

            async def one(i):
                async for delta in async_engine.stream(ask(prompts[i % 50], 1)):
                    if delta.finish_reason is not None:
                        ended.append(i)

            tasks = [asyncio.ensure_future(one(i)) for i in range(count)]
            await until(lambda: async_engine.open_streams == count)
            engine.open.set()
            most = 0
            while not all(task.done() for task in tasks[-64:]):
                most = max(most, len(engine.scheduler.running))
                await asyncio.sleep(0.01)
            await asyncio.gather(*tasks)
            assert most <= 64
            assert not async_engine.open_streams

    before = psutil.Process().memory_info().rss
    run(main())
    assert ended == list(range(count))
    assert psutil.Process().memory_info().rss - before < 300e6
    assert engine.empty


def test_one_async_engine_serves_loops_one_after_the_other_and_at_the_same_time():
    engine, request = gated(), ask(6, 25)

    async def make():
        return AsyncEngine(engine)

    async_engine = run(make())
    assert run(collect(async_engine, request)) == alone(request)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(run(collect(async_engine, request)))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [alone(request)] * 3
    run(async_engine.close())
    assert len(async_engine._mailboxes) <= 4


def test_a_bad_request_raises_at_the_call_and_queues_nothing():
    engine = gated()

    async def main():
        async with AsyncEngine(engine) as async_engine:
            with pytest.raises(PromptError, match="no tokens"):
                async_engine.stream(ask((), 5))
            with pytest.raises(RequestError, match="n is 0"):
                async_engine.stream(ask(5, 5, n=0))
            assert not async_engine.open_streams
            assert await collect(async_engine, ask(6, 4)) == alone(ask(6, 4))

    run(main())


def test_a_request_that_only_add_refuses_fails_alone(monkeypatch):
    engine = gated()
    monkeypatch.setattr(engine, "check", lambda request: None)

    async def main():
        async with AsyncEngine(engine) as async_engine:
            good = asyncio.ensure_future(collect(async_engine, ask(6, 20)))
            monkeypatch.setattr(engine, "add", refusing(engine.add))
            with pytest.raises(RequestError, match="no room for 77"):
                await async_engine.complete(ask(5, 77))
            assert await good == alone(ask(6, 20))

    def refusing(add):
        def refused(request):
            if request.max_new_tokens == 77:
                raise RequestError("no room for 77")
            return add(request)

        return refused

    run(main())


def test_an_async_engine_refuses_what_it_cannot_serve():
    engine = gated()
    with pytest.raises(RequestError, match="unread is 0"):
        AsyncEngine(engine, unread=0)
    async_engine = AsyncEngine(engine)
    with pytest.raises(RequestError, match="already has an AsyncEngine"):
        AsyncEngine(engine)
    run(async_engine.close())
    engine.add(ask(4, 4))
    with pytest.raises(RequestError, match="still runs requests"):
        AsyncEngine(engine)
    made = tiny_model()
    made.parallel = type(made.parallel)(replicas=3)
    with pytest.raises(ParallelismError, match="3 replicas"):
        AsyncEngine(Engine(made, TOKENIZER))
    other = Engine(tiny_model(), TOKENIZER)
    other.model.parallel = ThreadRank(1, [None, None])
    with pytest.raises(RequestError, match="this is rank 1; call `follow` here"):
        AsyncEngine(other)


def test_text_deltas_are_values():
    assert TextDelta(0, "a") == TextDelta(0, "a")
