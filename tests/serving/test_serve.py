"""`serve` on one rank: it lives in the host's loop, hears SIGTERM, and ends with `main`."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import threading

import pytest
from async_engines import LIMIT, LONG, alone, ask, collect, endless, gated, ids, run, until

from llama.distributed import launcher_watch
from llama.engine import FinishReason, Request
from llama.errors import RequestError
from llama.sampling import GREEDY
from llama.serving import serve, timeouts
from llama.serving.follower import drain_left


def test_serve_in_a_host_that_has_its_own_loop():
    engine = gated()

    async def main(async_engine):
        return await asyncio.gather(*(collect(async_engine, ask(ids(5, i), 9)) for i in range(5)))

    async def host():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.ensure_future(tick())
        engine.open.clear()
        serving = asyncio.ensure_future(serve(engine, main, sigterm=False))
        await until(engine.inside.is_set)
        before = ticks
        await until(lambda: ticks > before + 10)
        engine.open.set()
        found = await serving
        ticking.cancel()
        return found

    assert run(host()) == [alone(ask(ids(5, i), 9)) for i in range(5)]


def test_sigterm_ends_all_services_of_a_loop_and_is_given_back():
    ended = []

    def mine(number, frame):
        """The host's own."""

    async def main(async_engine):
        async for delta in async_engine.stream(ask(5, 120)):
            ended.append(delta.finish_reason)

    async def short(async_engine):
        await collect(async_engine, ask(5, 2))

    async def host():
        engines = [gated() for _ in range(3)]
        for engine in engines[1:]:
            engine.open.clear()
        services = [serve(engine, main) for engine in engines[1:]]
        tasks = [asyncio.ensure_future(each) for each in [serve(engines[0], short), *services]]
        try:
            await until(lambda: all(engine.inside.is_set() for engine in engines[1:]))
            await tasks[0]
            os.kill(os.getpid(), signal.SIGTERM)
            await until(lambda: len(ended) == 2)
        finally:
            for engine in engines:
                engine.open.set()
        await asyncio.gather(*tasks)

    before = signal.signal(signal.SIGTERM, mine)
    try:
        run(host())
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended == [FinishReason.CANCELLED] * 2


def test_after_a_service_sigterm_ends_the_process_where_nobody_can_hear_it():
    """What the host gave to the loop cannot be given back: asyncio does not say what it was."""

    async def short(async_engine):
        await collect(async_engine, ask(5, 2))

    async def host():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print)
        await serve(gated(), short)
        return signal.getsignal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run(host()) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_llama_serves_texts(llama):
    prompts = ["def return", "for i in", "class"]
    expected = [""] * 3
    for delta in llama.stream(prompts, temperature=0, max_gen_len=9):
        expected[delta.index] += delta.text

    async def main(async_engine):
        requests = llama.requests(prompts, temperature=0, max_gen_len=9)
        assert [request.row for request in requests] == [0, 1, 2]
        return [(await async_engine.complete(request))[0].text for request in requests]

    assert run(llama.serve(main)) == expected
    assert len(set(expected)) == 3


@pytest.mark.parametrize("n", [1, 4, 7])
def test_a_prompt_is_one_request_whatever_its_samples(llama, n):
    """More than the batch holds: numbered on, each ended once, and the same as in a blocking call."""
    options = {"temperature": 1.5, "top_p": 1.0, "max_gen_len": 12, "n": n, "seed": 5}
    expected = [each["generation"] for each in llama.text_completion(["def return"], **options)]

    async def main(async_engine):
        (request,) = llama.requests(["def return"], **options)
        texts, ended = [""] * n, []
        async for delta in async_engine.stream(request):
            texts[delta.sample] += delta.text
            ended += [delta.sample] * (delta.finish_reason is not None)
        assert sorted(ended) == list(range(n))
        assert texts == [each.text for each in await async_engine.complete(request)]
        return texts

    assert run(llama.serve(main)) == expected
    assert len(set(expected)) == n


@pytest.mark.parametrize("how", ["in time", "too long", "without a launcher"])
def test_a_drain_ends_the_streams_that_take_too_long(how, monkeypatch):
    """Those that were queued run too; after the drain all are cancelled. It is short where the launcher was killed."""
    engine, seen = endless(), []
    new = 30 if how == "in time" else LONG
    if how == "without a launcher":
        monkeypatch.setattr(launcher_watch._WATCH, "launcher_ended", True)
        monkeypatch.setattr(timeouts, "DRAIN_WITHOUT_LAUNCHER", 0.2)

    async def main(async_engine):
        engine.open.clear()
        tasks = [asyncio.ensure_future(collect(async_engine, ask(ids(4, i), new))) for i in range(6)]
        try:
            await until(lambda: async_engine.waiting == 6 and engine.inside.is_set())
            os.kill(os.getpid(), signal.SIGTERM)
            await until(lambda: not async_engine.accepting)
            assert async_engine.open_streams == 6
        finally:
            engine.open.set()  # a step that does not end would end the process, and no test would fail
        for found in await asyncio.gather(*tasks):
            seen.extend(reason for _, reason, _ in found)

    run(serve(engine, main, drain_seconds=0.2 if how == "too long" else LIMIT))
    assert seen == [FinishReason.LENGTH if how == "in time" else FinishReason.CANCELLED] * 6
    assert engine.empty


def test_a_launcher_that_is_killed_during_a_drain_leaves_it_little_time(monkeypatch):
    """Another signal without that changes nothing."""
    engine, seen = endless(), []
    monkeypatch.setattr(launcher_watch._WATCH, "launcher_ended", False)
    monkeypatch.setattr(timeouts, "DRAIN_WITHOUT_LAUNCHER", 0.2)

    async def main(async_engine):
        tasks = [asyncio.ensure_future(collect(async_engine, ask(5, new))) for new in (60, LONG)]
        await until(lambda: async_engine.snapshot.running == 2)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
            await until(lambda: not async_engine.accepting)
        seen.extend(reason for _, reason, _ in await tasks[0])
        launcher_watch._WATCH.launcher_ended = True
        os.kill(os.getpid(), signal.SIGTERM)
        done, _ = await asyncio.wait({tasks[1]}, timeout=LIMIT / 4)
        assert done, "the drain goes on"
        seen.extend(reason for _, reason, _ in await tasks[1])

    run(serve(engine, main, drain_seconds=LIMIT))
    assert seen == [FinishReason.LENGTH, FinishReason.CANCELLED]


def test_a_main_that_returns_ends_the_drain():
    engine = endless()

    async def main(async_engine):
        stream = async_engine.stream(ask(5, LONG))
        await anext(stream)
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: not async_engine.accepting)
        return "done"

    assert run(serve(engine, main, drain_seconds=LIMIT)) == "done"
    assert engine.empty


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, "5", None, True])
def test_a_drain_is_a_finite_time(seconds):
    engine = gated()
    with pytest.raises(RequestError, match=r"drain_seconds is .*at least 0"):
        run(serve(engine, collect, drain_seconds=seconds))
    assert not engine.exclusive


def test_serve_raises_what_main_raises_and_closes():
    engine = gated()

    async def main(async_engine):
        stream = async_engine.stream(ask(5, 100))
        await anext(stream)
        raise ZeroDivisionError("the host's own")

    with pytest.raises(ZeroDivisionError, match="the host's own"):
        run(serve(engine, main))
    assert engine.empty


def test_serve_cancels_main_when_the_service_fails(monkeypatch):
    monkeypatch.setattr(timeouts, "MAIN_AFTER_FAILURE", 0.01)
    engine = gated()

    async def main(async_engine):
        with contextlib.suppress(OSError):
            monkeypatch.setattr(async_engine, "_deliver", None)
            async_engine._inbox.put("no event")
        await asyncio.Event().wait()

    with pytest.raises(AttributeError, match="ticket"):
        run(serve(engine, main))


def test_serve_that_is_cancelled_cancels_main():
    engine, seen = endless(), []

    async def main(async_engine):
        try:
            await collect(async_engine, ask(5, LONG))
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def host():
        task = asyncio.ensure_future(serve(engine, main))
        await until(lambda: engine.steps > 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(host())
    assert seen == ["cancelled"]
    assert engine.empty


@pytest.mark.parametrize("kind", ["forgotten async", "fails at once"])
def test_a_main_that_never_begins_leaves_the_engine_free(kind):
    engine = gated()

    def main(async_engine):
        if kind == "fails at once":
            raise KeyError("mine")
        return 3

    with pytest.raises((TypeError, KeyError)):
        asyncio.run(serve(engine, main))
    assert not engine.exclusive
    assert engine.add(Request((1, 5), 2, GREEDY)) == 0


def test_a_rank_whose_launcher_ended_knows_it_before_it_gets_the_signal(monkeypatch):
    """The drain is then shorter, and the signal's handler has to choose."""
    monkeypatch.setattr(launcher_watch._WATCH, "launcher_ended", False)
    assert drain_left(100.0) == 100.0
    found, over = [], threading.Event()
    over.set()
    monkeypatch.setattr(os, "kill", lambda *_: found.append(drain_left(100.0)))
    launcher_watch._end(1, over)
    assert found == [timeouts.DRAIN_WITHOUT_LAUNCHER]
    assert drain_left(1.0) == 1.0


def test_each_time_limit_leaves_room_for_those_before_it():
    assert timeouts.MAIN_AFTER_SIGTERM < timeouts.STEP_AFTER_SIGTERM < timeouts.LEADER_AFTER_SIGTERM
    others = timeouts.LEADER_AFTER_SIGTERM + timeouts.STEP_AFTER_HANG_UP
    assert timeouts.DRAIN_WITHOUT_LAUNCHER + others < launcher_watch._GRACE_SECONDS
