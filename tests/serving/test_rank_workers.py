"""All ranks take the same steps, whatever callers do, and end together with the reason of the one that failed."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from async_engines import LIMIT, TOKENIZER, alone, ask, collect, ids, run
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_ranks import ThreadRank, following, ranks
from tiny_llama import tiny_model

from llama.engine import Engine, Request
from llama.errors import RankError, RequestError
from llama.sampling import GREEDY, SamplingParams
from llama.serving import AsyncEngine, timeouts
from llama.serving.inbox import Inbox
from llama.serving.protocol import Add, Stop
from llama.serving.ranks import lead


@settings(deadline=None, derandomize=True, max_examples=8)
@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.integers(0, 14), st.integers(1, 3), st.none() | st.integers(0, 9)),
        min_size=1,
        max_size=9,
    ),
    st.sampled_from([2, 3]),
    st.sampled_from([1, 7, 1024]),
    st.sampled_from([1, 3, 256]),
)
def test_ranks_never_diverge(rows, count, step_tokens, unread):
    """Callers that come, read slowly and leave: every rank takes the same steps, and no result changes."""
    engines = ranks(count, step_tokens=step_tokens)

    async def caller(async_engine, i, row):
        length, new, n, leaves = row
        request = ask(ids(length, i), new, SamplingParams(temperature=1.1), seed=i, n=n)
        if leaves is None:
            assert await collect(async_engine, request) == alone(request)
            return
        stream = async_engine.stream(request)
        for _ in range(leaves):
            await anext(stream, None)
            await asyncio.sleep(0)
        await stream.aclose()

    async def main():
        async with AsyncEngine(engines[0], unread=unread) as async_engine:
            await asyncio.gather(*(caller(async_engine, i, row) for i, row in enumerate(rows)))

    with following(engines) as ends:
        run(main())
    assert ends == [None] * count
    for engine in engines:
        assert engine.seen == engines[0].seen
        assert not engine.scheduler.running
        assert not engine.scheduler.waiting


def test_a_request_that_add_refuses_is_refused_on_all_ranks(monkeypatch):
    engines = ranks(2)
    monkeypatch.setattr(engines[0], "check", lambda request: None)

    async def main():
        async with AsyncEngine(engines[0]) as async_engine:
            monkeypatch.undo()
            with pytest.raises(RequestError, match="max_new_tokens is -3"):
                await async_engine.complete(Request((1,), -3, GREEDY))
            assert await collect(async_engine, ask(5, 6)) == alone(ask(5, 6))

    monkeypatch.setattr(AsyncEngine, "batches", lambda self, request: self._read(request))
    with following(engines) as ends:
        run(main())
    assert ends == [None, None]


@pytest.mark.parametrize("broken", [0, 1])
def test_a_step_that_fails_on_one_rank_ends_the_service_on_all(broken, monkeypatch):
    """The ranks that were fine hear the reason when they next look."""
    engines = ranks(2)
    monkeypatch.setattr(timeouts, "REASON", LIMIT)  # rank 0 says it within a second or so

    def failing():
        raise ValueError("no such device")

    async def main():
        async_engine = AsyncEngine(engines[0])
        await async_engine.complete(ask(5, 1))
        # From now on as a collective that ends with the peer's process. Before, the ranks had still to meet.
        monkeypatch.setattr(ThreadRank, "patience", 0.1)
        engines[broken].step = failing
        # Ranks that are threads do not wait for one another in a step: rank 0 may first end the request.
        with contextlib.suppress(RankError):
            await async_engine.complete(ask(5, 40))
        await async_engine.ended()
        assert f"rank {broken} failed" in str(async_engine.failure)
        with pytest.raises(RankError, match="no such device"):
            async_engine.stream(ask(5, 40))
        await async_engine.close()

    with following(engines) as ends:
        run(main())
    assert isinstance(ends[1], RankError)
    assert f"rank {broken} failed" in str(ends[1])
    assert all(not engine.scheduler.running for engine in engines)


def test_what_comes_in_behind_the_end_is_not_left_in_the_engine():
    """A caller on another loop that asks while the async_engine closes."""
    engine, inbox = Engine(tiny_model(), TOKENIZER), Inbox()
    for event in (Add(0, ask(5, 50)), Stop(), Add(1, ask(5, 50))):
        inbox.put(event)
    lead(engine, inbox, lambda results: None)
    assert not engine.unfinished
    assert not engine.scheduler.running
