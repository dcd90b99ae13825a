"""What a server can say of itself while it runs: who waits, what runs, and what was done so far."""

from __future__ import annotations

import asyncio

from async_engines import LONG, ask, collect, endless, gated, ids, run, until

from llama.serving import AsyncEngine


def test_waiting_counts_a_request_from_its_first_await_until_it_begins():
    """Also while the engine's thread is in a step and has not seen it."""
    engine = gated(2, speculate=False)

    async def main():
        async with AsyncEngine(engine) as async_engine:
            try:
                running, later = await asked(async_engine)
            finally:
                engine.open.set()
            await asyncio.gather(*running, later[0], later[2])
            assert async_engine.waiting == 0
        assert async_engine.waiting == 0
        return async_engine.snapshot

    async def asked(async_engine):
        assert async_engine.waiting == 0
        engine.open.clear()
        running = [asyncio.ensure_future(collect(async_engine, ask(ids(4, i), 30))) for i in range(2)]
        await until(engine.inside.is_set)
        await engine.let(2)  # the thread may have begun with one of them before it saw the other
        assert async_engine.waiting == 0
        assert async_engine.snapshot.running == 2
        later = [asyncio.ensure_future(collect(async_engine, ask(ids(5, i), 3))) for i in range(3)]
        await asyncio.sleep(0)
        assert async_engine.waiting == 3
        assert async_engine.snapshot.waiting == 0
        await engine.let(1)
        assert (async_engine.waiting, async_engine.snapshot.waiting) == (3, 3)
        later[1].cancel()
        await asyncio.wait({later[1]})
        await engine.let(1)
        assert (async_engine.waiting, async_engine.snapshot.cancelled) == (2, 1)
        return running, later

    snapshot = run(main())
    assert (snapshot.finished, snapshot.cancelled, snapshot.running) == (4, 1, 0)


def test_who_has_the_last_delta_finds_its_request_finished():
    async def main():
        async with AsyncEngine(gated()) as async_engine:
            for count in range(1, 6):
                (found,) = await async_engine.complete(ask(ids(4, count), 5))
                snapshot = async_engine.snapshot
                assert snapshot.finished == count
                assert snapshot.generated_tokens == 5 * count
                assert found.sequence.counts.generated == 5

    run(main())


def test_requests_that_a_close_ends_are_counted_as_cancelled():
    async def main():
        async with AsyncEngine(endless()) as async_engine:
            tasks = [asyncio.ensure_future(collect(async_engine, ask(ids(4, i), LONG))) for i in range(6)]
            await until(lambda: async_engine.snapshot.running == 4)
        await asyncio.gather(*tasks)
        return async_engine.snapshot

    snapshot = run(main())
    assert (snapshot.cancelled, snapshot.running, snapshot.waiting) == (6, 0, 0)
