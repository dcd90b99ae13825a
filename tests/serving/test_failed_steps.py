"""A step that fails ends its own requests with its error, and no others."""

from __future__ import annotations

import asyncio
import traceback

import pytest
from async_engines import LONG, alone, ask, collect, endless, gated, ids, run, until

from llama.errors import NumericsError
from llama.serving import AsyncEngine


@pytest.mark.parametrize("error", [NumericsError("bad logits"), RuntimeError("out of memory"), KeyError("x")])
def test_a_failed_step_fails_its_batch_and_nothing_else(monkeypatch, error):
    engine = gated(2)
    running, waiting = [ask(ids(4, i), 50) for i in range(2)], [ask(ids(9, i), 6) for i in range(5)]
    forward = engine.runner.run

    def failing(plan):
        if len(plan[0][0].output) == 3:
            raise error
        return forward(plan)

    async def main():
        async with AsyncEngine(engine) as async_engine:
            engine.open.clear()
            tasks = [asyncio.ensure_future(collect(async_engine, request)) for request in running]
            await until(engine.inside.is_set)
            tasks += [asyncio.ensure_future(collect(async_engine, request)) for request in waiting]
            await until(lambda: async_engine.open_streams == 7)
            monkeypatch.setattr(engine.runner, "run", failing)
            engine.open.set()
            results = await asyncio.gather(*tasks[:2], return_exceptions=True)
            monkeypatch.setattr(engine.runner, "run", forward)
            results += await asyncio.gather(*tasks[2:], return_exceptions=True)
            assert async_engine.failure is None
            failed = sum(result == error for result in results)
            assert (async_engine.snapshot.failed, async_engine.snapshot.cancelled) == (failed, 0)
            again = await collect(async_engine, running[0])
            return results, again

    results, again = run(main())
    assert results[:2] == [error, error]
    # Those that were waiting: run before or after the model was mended.
    assert all(r == error or r == alone(q) for r, q in zip(results[2:], waiting, strict=True))
    assert again == alone(running[0])
    assert engine.empty


def test_a_request_lost_in_a_failed_admission_fails_too(monkeypatch):
    engine = gated()

    def failing(*args):
        raise MemoryError("no room for a cache")

    async def main():
        async with AsyncEngine(engine) as async_engine:
            with monkeypatch.context() as patch:
                patch.setattr(engine.scheduler, "_new_sequence", failing)
                with pytest.raises(MemoryError, match="no room"):
                    await async_engine.complete(ask(5, 5))
            assert await collect(async_engine, ask(5, 5)) == alone(ask(5, 5))

    run(main())


def depth(error):
    return len(list(traceback.walk_tb(error.__traceback__)))


def test_an_error_of_many_streams_keeps_the_trace_of_one(monkeypatch):
    """Or the last of ten thousand callers would be shown, and hold, the way of all of them."""
    engine = gated()

    def failing(*args):
        raise MemoryError("no room for a cache")

    async def main():
        async with AsyncEngine(engine) as async_engine:
            engine.open.clear()
            tasks = [asyncio.ensure_future(collect(async_engine, ask(5, 5))) for _ in range(50)]
            await until(lambda: async_engine.open_streams == 50)
            monkeypatch.setattr(engine.scheduler, "_new_sequence", failing)
            engine.open.set()
            errors = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(error) for error in errors} == {MemoryError}
            assert max(map(depth, errors)) < 25
            assert "_new_sequence" in "".join(traceback.format_exception(errors[-1]))

    run(main())


def test_a_failure_outside_a_step_ends_everything_with_its_reason(monkeypatch):
    engine = endless()

    async def main():
        async with AsyncEngine(engine) as async_engine:
            task = asyncio.ensure_future(collect(async_engine, ask(6, LONG)))
            await until(lambda: engine.steps > 3)
            monkeypatch.setattr(async_engine, "_post", breaking(async_engine._post))
            with pytest.raises(OSError, match="no way"):
                await task
            await async_engine.ended()
            for _ in range(50):
                with pytest.raises(OSError, match="no way"):
                    async_engine.stream(ask(6, 6))
            assert depth(async_engine.failure) < 25

    def breaking(post):
        state = []

        def broken(items):
            if not state:
                state.append(1)
                raise OSError("no way")
            post(items)

        return broken

    run(main())
    assert engine.empty
