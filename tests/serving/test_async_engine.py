"""The front's law: however many callers there are, and whatever they do, each gets what its request gets alone,
and its request ends exactly once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import signal
import threading
import time
import traceback

import psutil
import pytest
import torch
from ranks import launched
from tiny_llama import tiny_model
from tiny_tokenizers import tiny_tokenizer

from llama.engine import Engine, FinishReason, Request
from llama.errors import EngineClosedError, NumericsError, ParallelismError, PromptError, RequestError
from llama.sampling import GREEDY, SamplingParams
from llama.serving import AsyncEngine, TextDelta, serve
from llama.serving.protocol import Pause, Resume

TOKENIZER = tiny_tokenizer()
SAMPLED = SamplingParams(temperature=1.2, top_p=0.95)
# A guard against hanging: far above what anything here takes on a busy machine.
LIMIT = 120.0
LONG = 100_000


@functools.cache
def model(max_batch_size=4, max_seq_len=128):
    return tiny_model(max_batch_size=max_batch_size, max_seq_len=max_seq_len)


def ids(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (1, *torch.randint(3, 400, (count - 1,), generator=generator).tolist())


def ask(prompt, new, sampling=GREEDY, **more):
    return Request(ids(prompt) if isinstance(prompt, int) else prompt, new, sampling, **more)


@functools.cache
def alone(request):
    """[(text, reason, ids)] of each sample, by hand, with no front."""
    engine = Engine(model(), TOKENIZER)
    engine.add(request)
    texts, ends = [""] * request.n, {}
    while engine.unfinished:
        for delta in engine.step():
            texts[delta.key[1]] += delta.text
            if delta.finish_reason:
                ends[delta.key[1]] = delta
    return [(texts[i], ends[i].finish_reason, ends[i].sequence.output) for i in range(request.n)]


class Gated(Engine):
    """An engine whose steps a test counts, holds back, and lets fail."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.open = threading.Event()
        self.open.set()
        self.allowed = threading.Semaphore(0)
        self.inside = threading.Event()
        self.steps, self.threads, self.error = 0, set(), None

    def step(self):
        self.inside.set()
        self.threads.add(threading.current_thread())
        while not self.open.is_set() and not self.allowed.acquire(timeout=0.01):
            pass
        self.inside.clear()
        try:
            return super().step()
        finally:
            self.steps += 1

    async def let(self, steps):
        """Allow so many steps, and wait until the next one is held."""
        for _ in range(steps):
            done = self.steps
            self.allowed.release()
            await until(lambda done=done: self.steps > done and self.inside.is_set())

    @property
    def empty(self):
        return not self.scheduler.running and not self.scheduler.waiting


def gated(batch=4, max_seq_len=128, **more):
    return Gated(model(batch, max_seq_len), TOKENIZER, **more)


def endless():
    """An engine whose requests may outlast any test: none ends before the test has seen that it runs."""
    return gated(max_seq_len=2 * LONG)


async def until(condition):
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it never came true"
        await asyncio.sleep(0.001)


def run(main):
    """A test's coroutine, which fails rather than hangs."""
    return asyncio.run(asyncio.wait_for(main, 2 * LIMIT))


def sleeping(front):
    """The engine's thread has nothing to do."""
    return front._inbox._asleep and not front._inbox._events


async def collect(front, request, into=None):
    """What a careful client puts together -> [(text, reason, ids)] by sample."""
    texts, ends = [""] * request.n, {}
    async for delta in front.stream(request):
        assert delta.sample not in ends, "a delta after the end"
        texts[delta.sample] += delta.text
        if into is not None:
            into.append(delta)
        if delta.finish_reason is not None:
            ends[delta.sample] = delta
    assert sorted(ends) == list(range(request.n))
    return [
        (texts[i], ends[i].finish_reason, ends[i].sequence.output if ends[i].sequence else None)
        for i in range(request.n)
    ]


# ---- results -----------------------------------------------------------------------------------------


def test_many_streams_are_each_request_alone():
    requests = [ask(ids(3 + i % 20, i), 4 + i % 9, GREEDY) for i in range(30)]
    requests += [ask(ids(5 + i, i), 8, SAMPLED, seed=i, n=1 + i % 4, stop=("e",)) for i in range(12)]
    requests += [ask(9, 0, n=2), ask(9, 0, score_prompt=True)]
    engine = gated(step_tokens=16)

    async def main():
        async with AsyncEngine(engine) as front:
            return await asyncio.gather(*(collect(front, request) for request in requests))

    for request, found in zip(requests, run(main()), strict=True):
        assert found == alone(request)
    assert engine.empty


def test_complete_is_the_joined_stream():
    request = ask(7, 12, SAMPLED, n=3, seed=5)

    async def main():
        async with AsyncEngine(gated()) as front:
            return await front.complete(request)

    found = run(main())
    assert [(each.text, each.finish_reason, each.sequence.output) for each in found] == alone(request)
    assert [each.sample for each in found] == [0, 1, 2]


def test_the_model_runs_in_one_thread_that_is_not_the_loops():
    engine = gated()

    async def main():
        async with AsyncEngine(engine) as front:
            await asyncio.gather(*(front.complete(ask(ids(4, i), 5)) for i in range(6)))

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
        async with AsyncEngine(engine) as front:
            await asyncio.gather(*(front.complete(ask(ids(4, i), 20)) for i in range(4)))
            return len(wakes)

    assert run(main()) <= engine.steps


def test_max_new_tokens_0_runs_no_model(monkeypatch):
    engine = gated()
    monkeypatch.setattr(engine.runner, "run", lambda *_: pytest.fail("the model was run"))

    async def main():
        async with AsyncEngine(engine) as front:
            return await collect(front, ask(5, 0, n=3))

    assert run(main()) == [("", FinishReason.LENGTH, [])] * 3


def test_ten_thousand_queued_requests_end_in_order_in_bounded_memory():
    engine, count = gated(64, step_tokens=256), 10_000
    prompts, ended = [ids(3, i) for i in range(50)], []

    async def main():
        async with AsyncEngine(engine) as front:
            engine.open.clear()

            async def one(i):
                async for delta in front.stream(ask(prompts[i % 50], 1)):
                    if delta.finish_reason is not None:
                        ended.append(i)

            tasks = [asyncio.ensure_future(one(i)) for i in range(count)]
            await until(lambda: len(front._streams) == count)
            engine.open.set()
            most = 0
            while not all(task.done() for task in tasks[-64:]):
                most = max(most, len(engine.scheduler.running))
                await asyncio.sleep(0.01)
            await asyncio.gather(*tasks)
            assert most <= 64
            assert not front._streams

    before = psutil.Process().memory_info().rss
    run(main())
    assert ended == list(range(count))
    assert psutil.Process().memory_info().rss - before < 300e6
    assert engine.empty


# ---- bad requests ------------------------------------------------------------------------------------


def test_a_bad_request_raises_at_the_call_and_queues_nothing():
    engine = gated()

    async def main():
        async with AsyncEngine(engine) as front:
            with pytest.raises(PromptError, match="no tokens"):
                front.stream(ask((), 5))
            with pytest.raises(RequestError, match="n is 0"):
                front.stream(ask(5, 5, n=0))
            assert not front._streams
            assert await collect(front, ask(6, 4)) == alone(ask(6, 4))

    run(main())


def test_a_request_that_only_add_refuses_fails_alone(monkeypatch):
    engine = gated()
    monkeypatch.setattr(engine, "check", lambda request: None)

    async def main():
        async with AsyncEngine(engine) as front:
            good = asyncio.ensure_future(collect(front, ask(6, 20)))
            monkeypatch.setattr(engine, "add", refusing(engine.add))
            with pytest.raises(RequestError, match="no room for 77"):
                await front.complete(ask(5, 77))
            assert await good == alone(ask(6, 20))

    def refusing(add):
        def refused(request):
            if request.max_new_tokens == 77:
                raise RequestError("no room for 77")
            return add(request)

        return refused

    run(main())


def test_a_front_refuses_what_it_cannot_serve():
    engine = gated()
    with pytest.raises(RequestError, match="unread is 0"):
        AsyncEngine(engine, unread=0)
    front = AsyncEngine(engine)
    with pytest.raises(RequestError, match="already serves another front"):
        AsyncEngine(engine)
    run(front.close())
    engine.add(ask(4, 4))
    with pytest.raises(RequestError, match="still runs requests"):
        AsyncEngine(engine)
    made = tiny_model()
    made.parallel = type(made.parallel)(replicas=3)
    with pytest.raises(ParallelismError, match="3 replicas"):
        AsyncEngine(Engine(made, TOKENIZER))


# ---- callers that go away ------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["unread", "waiting", "prefill", "decode"])
def test_a_closed_stream_leaves_the_engine_within_one_step(moment):
    """The engine is held before each step, so what happens in a step is seen."""
    engine = gated(step_tokens=8)
    kept = [ask(ids(4, i), 30) for i in range(4 if moment == "waiting" else 1)]
    lost = ask(60, 20)

    async def main():
        async with AsyncEngine(engine) as front:
            engine.open.clear()
            others = [asyncio.ensure_future(collect(front, request)) for request in kept]
            await until(engine.inside.is_set)
            stream = front.stream(lost)
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

    async def leaver(front):
        async for _ in front.stream(ask(6, LONG)):
            begun.append(True)
            if way == "raises":
                raise ZeroDivisionError
            if way == "breaks":
                break
            await asyncio.sleep(0)

    async def main():
        async with AsyncEngine(engine) as front:
            other = asyncio.ensure_future(collect(front, ask(8, 40)))
            task = asyncio.ensure_future(leaver(front))
            if way == "cancelled":
                await until(lambda: begun)
                task.cancel()
            expected = {"raises": ZeroDivisionError, "cancelled": asyncio.CancelledError}.get(way)
            with pytest.raises(expected) if expected else contextlib.nullcontext():
                await task
            del task
            gc.collect()
            await until(lambda: len(front._streams) <= 1)
            assert await other == alone(ask(8, 40))
            await until(lambda: engine.empty)

    run(main())


@pytest.mark.parametrize("batch", [4, 1])
def test_a_caller_that_does_not_read_waits_and_the_others_go_on(batch):
    """With one place in the batch it keeps the place: the engine then sleeps until it reads on."""
    engine = gated(batch)
    slow, bound = ask(6, 90), 8

    async def main():
        async with AsyncEngine(engine, unread=bound) as front:
            stream = front.stream(slow)
            deltas = [await anext(stream)]
            (inner,) = front._streams.values()
            others = []
            if batch > 1:
                others = [await collect(front, ask(ids(5, i), 60)) for i in range(3)]
            await until(lambda: inner.paused and sleeping(front))
            steps = engine.steps
            assert inner.unread <= bound
            await until(lambda: len(inner.items) == inner.unread)
            late = asyncio.ensure_future(collect(front, ask(9, 5)))
            if batch > 1:
                await late
                await until(lambda: sleeping(front))
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

    async def slow(front, request, pause):
        texts = [""] * request.n
        async for delta in front.stream(request):
            texts[delta.sample] += delta.text
            for _ in range(pause):
                await asyncio.sleep(0)
        return texts

    async def main(unread):
        async with AsyncEngine(gated(), unread=unread) as front:
            return await asyncio.gather(*(slow(front, each, 3 * i) for i, each in enumerate(requests)))

    for unread in (1, 2, 5):
        assert run(main(unread)) == [[text for text, _, _ in alone(request)] for request in requests]


@pytest.mark.parametrize("unread", [3, 7, 8])
def test_a_stream_pauses_when_so_many_wait_and_goes_on_when_half_are_read(unread):
    async def main():
        async with AsyncEngine(gated(), unread=unread) as front:
            put, seen = front._inbox.put, []

            def noting(event):
                if isinstance(event, Pause | Resume):
                    (stream,) = front._streams.values()
                    seen.append((type(event), stream.unread))
                put(event)

            front._inbox.put = noting
            stream = front.stream(ask(4, 50))
            await anext(stream)
            for turn in range(2):
                await until(lambda turn=turn: len(seen) == 2 * turn + 1)
                while len(seen) == 2 * turn + 1:
                    await anext(stream)
            await stream.aclose()
            return seen[:4]

    assert run(main()) == 2 * [(Pause, unread), (Resume, unread // 2)]


# ---- failures ------------------------------------------------------------------------------------------


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
        async with AsyncEngine(engine) as front:
            engine.open.clear()
            tasks = [asyncio.ensure_future(collect(front, request)) for request in running]
            await until(engine.inside.is_set)
            tasks += [asyncio.ensure_future(collect(front, request)) for request in waiting]
            await until(lambda: len(front._streams) == 7)
            monkeypatch.setattr(engine.runner, "run", failing)
            engine.open.set()
            results = await asyncio.gather(*tasks[:2], return_exceptions=True)
            monkeypatch.setattr(engine.runner, "run", forward)
            results += await asyncio.gather(*tasks[2:], return_exceptions=True)
            assert front.failure is None
            again = await collect(front, running[0])
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
        async with AsyncEngine(engine) as front:
            with monkeypatch.context() as patch:
                patch.setattr(engine.scheduler, "_new_sequence", failing)
                with pytest.raises(MemoryError, match="no room"):
                    await front.complete(ask(5, 5))
            assert await collect(front, ask(5, 5)) == alone(ask(5, 5))

    run(main())


def depth(error):
    return len(list(traceback.walk_tb(error.__traceback__)))


def test_an_error_of_many_streams_keeps_the_trace_of_one(monkeypatch):
    """Or the last of ten thousand callers would be shown, and hold, the way of all of them."""
    engine = gated()

    def failing(*args):
        raise MemoryError("no room for a cache")

    async def main():
        async with AsyncEngine(engine) as front:
            engine.open.clear()
            tasks = [asyncio.ensure_future(collect(front, ask(5, 5))) for _ in range(50)]
            await until(lambda: len(front._streams) == 50)
            monkeypatch.setattr(engine.scheduler, "_new_sequence", failing)
            engine.open.set()
            errors = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(error) for error in errors} == {MemoryError}
            assert max(map(depth, errors)) < 25
            assert "_new_sequence" in "".join(traceback.format_exception(errors[-1]))

    run(main())


def test_a_failure_of_the_front_itself_ends_everything_with_its_reason(monkeypatch):
    engine = endless()

    async def main():
        async with AsyncEngine(engine) as front:
            task = asyncio.ensure_future(collect(front, ask(6, LONG)))
            await until(lambda: engine.steps > 3)
            monkeypatch.setattr(front, "_post", breaking(front._post))
            with pytest.raises(OSError, match="no way"):
                await task
            await front.ended()
            for _ in range(50):
                with pytest.raises(OSError, match="no way"):
                    front.stream(ask(6, 6))
            assert depth(front.failure) < 25

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


# ---- ends ------------------------------------------------------------------------------------------------


def test_close_ends_every_stream_once_with_its_reason():
    engine = gated()

    async def main():
        front = AsyncEngine(engine)
        engine.open.clear()
        tasks = [asyncio.ensure_future(collect(front, ask(ids(4, i), 120, n=1 + i % 2))) for i in range(20)]
        await until(engine.inside.is_set)
        await engine.let(5)
        unstarted = front.stream(ask(4, 4))
        closing = [asyncio.ensure_future(front.close()) for _ in range(2)]
        await asyncio.gather(*tasks)
        engine.open.set()
        await asyncio.gather(*closing)
        with pytest.raises(EngineClosedError, match="was closed"):
            await anext(unstarted)
        with pytest.raises(EngineClosedError, match="was closed"):
            front.stream(ask(4, 4))
        await front.close()
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
        front = AsyncEngine(engine)
        task = asyncio.ensure_future(collect(front, ask(4, 20)))
        engine.open.clear()
        await until(engine.inside.is_set)
        closing = asyncio.ensure_future(front.close())
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
        front = AsyncEngine(engine)
        tasks = [asyncio.ensure_future(collect(front, request)) for request in requests]
        await until(lambda: len(front._streams) == 9)
        closing = asyncio.ensure_future(front.close(drain=True))
        await until(lambda: front._closing)
        engine.open.set()
        await closing
        return await asyncio.gather(*tasks)

    assert run(main()) == [alone(request) for request in requests]


def test_one_front_serves_loops_one_after_the_other_and_at_the_same_time():
    engine, request = gated(), ask(6, 25)

    async def make():
        return AsyncEngine(engine)

    front = run(make())
    assert run(collect(front, request)) == alone(request)
    found = []
    threads = [threading.Thread(target=lambda: found.append(run(collect(front, request)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [alone(request)] * 3
    run(front.close())
    assert len(front._mailboxes) <= 4


def test_a_loop_that_is_gone_cancels_its_requests():
    """Closed by a host that gave its generators no chance to end."""
    engine = gated()
    engine.open.clear()
    loop = asyncio.new_event_loop()
    front = AsyncEngine(engine)
    stream = front.stream(ask(6, 100))
    task = loop.create_task(anext(stream))
    loop.run_until_complete(until(engine.inside.is_set))
    task.cancel()
    streams = dict(front._streams)
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(task)
    # As if the generator had not been told.
    front._streams.update(streams)
    loop.close()
    engine.open.set()
    assert run(collect(front, ask(5, 8))) == alone(ask(5, 8))
    run(front.close())
    assert engine.empty


def test_fronts_of_one_engine_one_after_the_other():
    engine = gated()

    async def main():
        for _ in range(3):
            async with AsyncEngine(engine) as front:
                left = front.stream(ask(5, 100))
                await anext(left)
        assert await serve(engine, functools.partial(collect, request=ask(5, 9))) == alone(ask(5, 9))

    run(main())
    assert engine.empty


# ---- serve -------------------------------------------------------------------------------------------------


def test_serve_in_a_host_that_has_its_own_loop():
    engine = gated()

    async def main(front):
        return await asyncio.gather(*(collect(front, ask(ids(5, i), 9)) for i in range(5)))

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

    async def main(front):
        async for delta in front.stream(ask(5, 120)):
            ended.append(delta.finish_reason)

    async def short(front):
        await collect(front, ask(5, 2))

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

    async def short(front):
        await collect(front, ask(5, 2))

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

    async def main(front):
        requests = llama.requests(prompts, temperature=0, max_gen_len=9)
        assert [request.row for request in requests] == [0, 1, 2]
        return [(await front.complete(request))[0].text for request in requests]

    assert run(llama.serve(main)) == expected
    assert len(set(expected)) == 3


@pytest.mark.parametrize("n", [1, 4, 7])
def test_a_prompt_is_one_request_whatever_its_samples(llama, n):
    """More than the batch holds: numbered on, each ended once, and the same as in a blocking call."""
    options = {"temperature": 1.5, "top_p": 1.0, "max_gen_len": 12, "n": n, "seed": 5}
    expected = [each["generation"] for each in llama.text_completion(["def return"], **options)]

    async def main(front):
        (request,) = llama.requests(["def return"], **options)
        texts, ended = [""] * n, []
        async for delta in front.stream(request):
            texts[delta.sample] += delta.text
            ended += [delta.sample] * (delta.finish_reason is not None)
        assert sorted(ended) == list(range(n))
        assert texts == [each.text for each in await front.complete(request)]
        return texts

    assert run(llama.serve(main)) == expected
    assert len(set(expected)) == n


def test_serve_raises_what_main_raises_and_closes():
    engine = gated()

    async def main(front):
        stream = front.stream(ask(5, 100))
        await anext(stream)
        raise ZeroDivisionError("the host's own")

    with pytest.raises(ZeroDivisionError, match="the host's own"):
        run(serve(engine, main))
    assert engine.empty


def test_serve_cancels_main_when_the_service_fails(monkeypatch):
    engine = gated()

    async def main(front):
        with contextlib.suppress(OSError):
            monkeypatch.setattr(front, "_deliver", None)
            front._inbox.put("no event")
        await asyncio.Event().wait()

    with pytest.raises(AttributeError, match="ticket"):
        run(serve(engine, main))


def test_serve_that_is_cancelled_cancels_main():
    engine, seen = endless(), []

    async def main(front):
        try:
            await collect(front, ask(5, LONG))
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


def test_text_deltas_are_values():
    assert TextDelta(0, "a") == TextDelta(0, "a")


@pytest.mark.parametrize("scenario", ["sigterm", "stuck", "unclosed"])
def test_a_program_ends_whole(scenario, tmp_path):
    """SIGTERM with 20 running requests; the same inside a step without end; a program that never closes."""
    mark = tmp_path / "mark"
    with launched(
        "async_engine_script.py", scenario, mark, ranks=None, environment={"OMP_NUM_THREADS": "1"}
    ) as launch:
        if scenario == "unclosed":
            assert launch.finish().ok().stdout == "the end\n"
            return
        launch.wait_for(mark.exists)
        began = time.monotonic()
        launch.process.terminate()
        finished = launch.finish()
        ended = float((tmp_path / "over").read_text()) if scenario == "sigterm" else time.monotonic()
    # What is stuck would be for ever. The other leaves out the interpreter's own end, which takes as long as it takes.
    assert ended - began < (8 if scenario == "sigterm" else 20)
    assert finished.stdout.split() == ["cancelled"] * 20
    assert finished.code == (0 if scenario == "sigterm" else 143), finished.stderr
    assert ("a step is still under way 2.5 s" in finished.stderr) == (scenario == "stuck")


@pytest.mark.parametrize("kind", ["forgotten async", "fails at once"])
def test_a_main_that_never_begins_leaves_the_engine_free(kind):
    engine = gated()

    def main(front):
        if kind == "fails at once":
            raise KeyError("mine")
        return 3

    with pytest.raises((TypeError, KeyError)):
        asyncio.run(serve(engine, main))
    assert not engine.exclusive
    assert engine.add(Request((1, 5), 2, GREEDY)) == 0
