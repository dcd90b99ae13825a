"""Closing ends every stream once, with its reason, and leaves the engine free for the next service."""

from __future__ import annotations

import asyncio
import functools

import pytest
from async_engines import alone, ask, collect, gated, ids, run, until

from llama.engine import FinishReason
from llama.errors import EngineClosedError
from llama.serving import AsyncEngine, serve


def test_close_ends_every_stream_once_with_its_reason():
    engine = gated()

    async def main():
        async_engine = AsyncEngine(engine)
        engine.open.clear()
        tasks = [
            asyncio.ensure_future(collect(async_engine, ask(ids(4, i), 120, n=1 + i % 2))) for i in range(20)
        ]
        await until(engine.inside.is_set)
        await engine.let(5)
        unstarted = async_engine.stream(ask(4, 4))
        closing = [asyncio.ensure_future(async_engine.close()) for _ in range(2)]
        await asyncio.gather(*tasks)
        engine.open.set()
        await asyncio.gather(*closing)
        with pytest.raises(EngineClosedError, match="was closed"):
            await anext(unstarted)
        with pytest.raises(EngineClosedError, match="was closed"):
            async_engine.stream(ask(4, 4))
        await async_engine.close()
        return await asyncio.gather(*tasks)

    results = run(main())
    assert {reason for samples in results for _, reason, _ in samples} == {FinishReason.CANCELLED}
    for i in range(4):
        whole = alone(ask(ids(4, i), 120, n=1 + i % 2))
        assert all(
            all_of_it.startswith(text) for (text, *_), (all_of_it, *_) in zip(results[i], whole, strict=True)
        )
    assert engine.empty


def test_close_does_not_make_callers_wait_for_a_long_step():
    engine = gated()

    async def main():
        async_engine = AsyncEngine(engine)
        task = asyncio.ensure_future(collect(async_engine, ask(4, 20)))
        engine.open.clear()
        await until(engine.inside.is_set)
        closing = asyncio.ensure_future(async_engine.close())
        ((_, reason, _),) = await task
        assert reason is FinishReason.CANCELLED
        assert not closing.done()
        engine.open.set()
        await closing

    run(main())


def test_drain_lets_streams_end_by_themselves():
    requests = [ask(ids(4, i), 30) for i in range(9)]

    async def main():
        engine = gated()
        engine.open.clear()
        async_engine = AsyncEngine(engine)
        tasks = [asyncio.ensure_future(collect(async_engine, request)) for request in requests]
        await until(lambda: async_engine.open_streams == 9)
        closing = asyncio.ensure_future(async_engine.close(drain=True))
        await until(lambda: not async_engine.accepting)
        engine.open.set()
        await closing
        return await asyncio.gather(*tasks)

    assert run(main()) == [alone(request) for request in requests]


def test_an_engine_can_be_served_again_and_again():
    engine = gated()

    async def main():
        for _ in range(3):
            async with AsyncEngine(engine) as async_engine:
                left = async_engine.stream(ask(5, 100))
                await anext(left)
        assert await serve(engine, functools.partial(collect, request=ask(5, 9))) == alone(ask(5, 9))

    run(main())
    assert engine.empty


def test_an_engine_says_whether_it_takes_requests_and_how_many_it_has():
    engine = gated()

    async def main():
        async with AsyncEngine(engine) as async_engine:
            assert (async_engine.accepting, async_engine.open_streams) == (True, 0)
            engine.open.clear()
            tasks = [asyncio.ensure_future(collect(async_engine, ask(4, 9))) for _ in range(6)]
            await until(lambda: async_engine.open_streams == 6)
            closing = asyncio.ensure_future(async_engine.close(drain=True))
            await until(lambda: not async_engine.accepting)
            assert async_engine.open_streams == 6
            engine.open.set()
            await asyncio.gather(closing, *tasks)
        assert (async_engine.accepting, async_engine.open_streams) == (False, 0)

    run(main())
