"""A caller that leaves frees its request; one that does not read waits; neither changes anybody else's result."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import pytest
from async_engines import (
    LONG,
    SAMPLED,
    TOKENIZER,
    alone,
    ask,
    collect,
    endless,
    gated,
    ids,
    run,
    sleeping,
    until,
)
from tiny_llama import tiny_model

from llama.engine import Engine
from llama.serving import AsyncEngine
from llama.serving.protocol import Pause, Resume


@pytest.mark.parametrize("moment", ["unread", "waiting", "prefill", "decode"])
def test_a_closed_stream_leaves_the_engine_within_one_step(moment):
    """The engine is held before each step, so what happens in a step is seen."""
    engine = gated(step_tokens=8)
    kept = [ask(ids(4, i), 30) for i in range(4 if moment == "waiting" else 1)]
    lost = ask(60, 20)

    async def main():
        async with AsyncEngine(engine) as async_engine:
            engine.open.clear()
            others = [asyncio.ensure_future(collect(async_engine, request)) for request in kept]
            await until(engine.inside.is_set)
            stream = async_engine.stream(lost)
            if moment == "unread":
                await stream.aclose()
            first = asyncio.ensure_future(anext(stream, None))
            await engine.let({"waiting": 3, "prefill": 4, "decode": 25}.get(moment, 0))
            if moment != "unread":
                states = {"waiting": engine.scheduler.waiting, "prefill": len(engine.scheduler.running)}
                assert states.get(moment, 0) == {"waiting": 1, "prefill": 2}.get(moment, 0)
                if moment == "decode":
                    assert (await first).text is not None
                else:
                    assert not first.done()
                    first.cancel()
                    await asyncio.wait({first})
            await stream.aclose()
            await stream.aclose()
            await engine.let(2)  # the one that was under way, and one more
            assert not engine.scheduler.waiting
            assert all(len(each.request.prompt) == 4 for each in engine.scheduler.running)
            engine.open.set()
            return await asyncio.gather(*others)

    assert run(main()) == [alone(request) for request in kept]
    assert engine.empty


@pytest.mark.parametrize("way", ["raises", "breaks", "cancelled"])
def test_a_caller_that_leaves_cancels_its_request(way):
    engine, begun = endless(), []

    async def leaver(async_engine):
        async for _ in async_engine.stream(ask(6, LONG)):
            begun.append(True)
            if way == "raises":
                raise ZeroDivisionError
            if way == "breaks":
                break
            await asyncio.sleep(0)

    async def main():
        async with AsyncEngine(engine) as async_engine:
            other = asyncio.ensure_future(collect(async_engine, ask(8, 40)))
            task = asyncio.ensure_future(leaver(async_engine))
            if way == "cancelled":
                await until(lambda: begun)
                task.cancel()
            expected = {"raises": ZeroDivisionError, "cancelled": asyncio.CancelledError}.get(way)
            with pytest.raises(expected) if expected else contextlib.nullcontext():
                await task
            del task
            gc.collect()
            await until(lambda: async_engine.open_streams <= 1)
            assert await other == alone(ask(8, 40))
            await until(lambda: engine.empty)

    run(main())


@pytest.mark.parametrize("batch", [4, 1])
def test_a_caller_that_does_not_read_waits_and_the_others_go_on(batch):
    """With one place in the batch it keeps the place: the engine then sleeps until it reads on."""
    engine = gated(batch)
    slow, bound = ask(6, 90), 8

    async def main():
        async with AsyncEngine(engine, unread=bound) as async_engine:
            stream = async_engine.stream(slow)
            deltas = [await anext(stream)]
            (inner,) = async_engine._streams.values()
            others = []
            if batch > 1:
                others = [await collect(async_engine, ask(ids(5, i), 60)) for i in range(3)]
            await until(lambda: inner.paused and sleeping(async_engine))
            steps = engine.steps
            assert inner.unread <= bound
            await until(lambda: len(inner.items) == inner.unread)
            late = asyncio.ensure_future(collect(async_engine, ask(9, 5)))
            if batch > 1:
                await late
                await until(lambda: sleeping(async_engine))
            assert engine.steps <= steps + 6
            assert len(engine.scheduler.running) == 1
            async for delta in stream:
                deltas.append(delta)
                assert inner.unread <= bound
            assert others == [alone(ask(ids(5, i), 60)) for i in range(len(others))]
            assert await late == alone(ask(9, 5))
            return deltas

    deltas = run(main())
    text, reason, output = alone(slow)[0]
    assert "".join(delta.text for delta in deltas) == text
    assert (deltas[-1].finish_reason, deltas[-1].sequence.output) == (reason, output)
    assert engine.empty


def test_a_caller_that_reads_now_and_then_gets_all_of_it():
    """Pauses and resumes meet in every order."""
    requests = [ask(ids(4, i), 60, SAMPLED, seed=i, n=2) for i in range(2)]

    async def slow(async_engine, request, pause):
        texts = [""] * request.n
        async for delta in async_engine.stream(request):
            texts[delta.sample] += delta.text
            for _ in range(pause):
                await asyncio.sleep(0)
        return texts

    async def main(unread):
        async with AsyncEngine(gated(), unread=unread) as async_engine:
            return await asyncio.gather(*(slow(async_engine, each, 3 * i) for i, each in enumerate(requests)))

    for unread in (1, 2, 5):
        assert run(main(unread)) == [[text for text, _, _ in alone(request)] for request in requests]


@pytest.mark.parametrize("unread", [3, 7, 8])
def test_a_stream_pauses_when_so_many_wait_and_goes_on_when_half_are_read(unread):
    async def main():
        async with AsyncEngine(gated(), unread=unread) as async_engine:
            put, seen = async_engine._inbox.put, []

            def noting(event):
                if isinstance(event, Pause | Resume):
                    (stream,) = async_engine._streams.values()
                    seen.append((type(event), stream.unread))
                put(event)

            async_engine._inbox.put = noting
            stream = async_engine.stream(ask(4, 50))
            await anext(stream)
            for turn in range(2):
                await until(lambda turn=turn: len(seen) == 2 * turn + 1)
                while len(seen) == 2 * turn + 1:
                    await anext(stream)
            await stream.aclose()
            return seen[:4]

    assert run(main()) == 2 * [(Pause, unread), (Resume, unread // 2)]


def test_a_paused_request_waits_where_it_is_and_goes_on():
    engine, request = Engine(tiny_model(max_batch_size=2), TOKENIZER, step_tokens=4), ask(10, 12)
    number, other, text = engine.add(request), engine.add(ask(6, 3)), ""
    for step in range(60):
        if step in (1, 20):
            engine.pause(number)
            engine.pause(number)
        if step in (10, 30):
            assert not engine.unfinished
            assert engine.step() == []
            engine.resume(number)
        text += "".join(delta.text for delta in engine.step() if delta.key[0] == number)
    assert text == alone(request)[0][0]
    engine.resume(number)
    engine.resume(other)
    assert not engine.unfinished
    assert not engine.scheduler.waiting


def test_a_loop_that_is_gone_cancels_its_requests():
    """Closed by a host that gave its generators no chance to end."""
    engine = gated()
    engine.open.clear()
    loop = asyncio.new_event_loop()
    async_engine = AsyncEngine(engine)
    stream = async_engine.stream(ask(6, 100))
    task = loop.create_task(anext(stream))
    loop.run_until_complete(until(engine.inside.is_set))
    task.cancel()
    streams = dict(async_engine._streams)
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(task)
    # As if the generator had not been told.
    async_engine._streams.update(streams)
    loop.close()
    engine.open.set()
    assert run(collect(async_engine, ask(5, 8))) == alone(ask(5, 8))
    run(async_engine.close())
    assert engine.empty
