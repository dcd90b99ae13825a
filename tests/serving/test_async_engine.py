"""However many callers there are, each gets what its request gets alone, and each sample ends exactly once."""

from __future__ import annotations

import asyncio
import threading

import psutil
import pytest
import torch
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
    request = ask(7, 12, SAMPLED, n=3, seed=5, score_prompt=True)

    async def main():
        async with AsyncEngine(gated()) as async_engine:
            return await async_engine.complete(request)

    found = run(main())
    assert [(each.text, each.finish_reason, each.sequence.output) for each in found] == alone(request)
    assert [each.sample for each in found] == [0, 1, 2]
    for each in found:
        assert list(each.tokens) == each.sequence.output
        assert list(each.scores) == each.sequence.scores
        assert list(each.prompt_scores) == each.sequence.prompt_scores
        assert len(each.prompt_scores) == 6


def test_every_delta_has_the_ids_and_scores_of_its_text():
    request = ask(7, 24, SAMPLED, n=2, seed=5, top=2, score_prompt=True)

    async def main():
        async with AsyncEngine(gated()) as async_engine:
            return [delta async for delta in async_engine.stream(request)]

    found = run(main())
    for sample in range(2):
        first, *others = [delta for delta in found if delta.sample == sample]
        sequence, text, tokens, scores = [first, *others][-1].sequence, "", [], []
        assert list(first.prompt_scores) == sequence.prompt_scores
        assert not any(delta.prompt_scores for delta in others)
        for delta in (first, *others):
            assert len(delta.tokens) == len(delta.scores)
            assert all(len(score.top) == 2 for score in delta.scores)
            text, tokens, scores = text + delta.text, [*tokens, *delta.tokens], [*scores, *delta.scores]
            assert text.startswith(TOKENIZER.decode_infilling(tokens))
        assert (tokens, scores) == (sequence.output, sequence.scores)


def test_an_id_without_text_is_delivered_at_once():
    """The model writes control ids only: its output has no text at all."""
    made = tiny_model(max_batch_size=4, max_seq_len=128)
    plain, wanted = made.logits, TOKENIZER.bos_id
    made.logits = lambda hidden: plain(hidden).index_fill(1, torch.tensor([wanted]), 1e4)

    async def main():
        async with AsyncEngine(Engine(made, TOKENIZER, speculate=False)) as async_engine:
            return [delta async for delta in async_engine.stream(ask(6, 5))]

    found = run(main())
    assert [(delta.text, delta.tokens) for delta in found] == [("", (wanted,))] * 5


def test_batches_are_the_stream_with_all_that_is_unread_at_once():
    request = ask(7, 30, SAMPLED, n=2, seed=5)
    engine = gated()

    async def main():
        async with AsyncEngine(engine) as async_engine:
            singles = [delta async for delta in async_engine.stream(request)]
            engine.forget_prefixes()  # a prompt whose beginning is reused has scores of other last bits
            batches = async_engine.batches(request)
            first = await anext(batches)
            (inner,) = async_engine._streams.values()
            await until(lambda: not inner.unfinished)
            return singles, first, [batch async for batch in batches]

    singles, first, (rest,) = run(main())
    for sample in range(2):
        parts = [[each for each in some if each.sample == sample] for some in (singles, [*first, *rest])]
        one, other = map(TextDelta.joined, parts)
        assert (one.text, one.tokens, one.scores) == (other.text, other.tokens, other.scores)
        assert other.finish_reason is FinishReason.LENGTH


def test_batches_give_what_came_before_an_error_and_then_the_error(monkeypatch):
    engine = gated(speculate=False)
    plain, steps = engine.runner.run, []

    def failing(batch):
        steps.append(1)
        if len(steps) == 5:
            raise ZeroDivisionError
        return plain(batch)

    monkeypatch.setattr(engine.runner, "run", failing)

    async def main():
        async with AsyncEngine(engine) as async_engine:
            batches = async_engine.batches(ask(6, 20))
            found = await anext(batches)
            (inner,) = async_engine._streams.values()
            await until(lambda: not inner.unfinished)
            if inner.items:
                found += await anext(batches)
            with pytest.raises(ZeroDivisionError):
                await anext(batches)
            assert async_engine.open_streams == 0
            return found

    assert sum(len(delta.tokens) for delta in run(main())) == len(alone(ask(6, 4))[0][2])


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
