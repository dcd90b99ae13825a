"""Law: cache and weights go with the last reference to a Llama, whatever ran on it, without the garbage collector.

On a GPU the cache is all of the free memory: the next `Llama.build` of a program that dropped the first needs it at
once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from tiny_llama import tiny_llama

from llama import Llama
from llama.engine import Engine, Request
from llama.errors import NumericsError
from llama.model import Transformer
from llama.serving import AsyncEngine

PROMPTS = ["def f", "return self value"]


def parts(llama: Llama) -> dict[str, weakref.ref[object]]:
    """What must go: the cache and the weights above all."""
    pool = llama.engine.memory.pool
    found = {"engine": llama.engine, "pool": pool, "memory": pool.store, "model": llama.model}
    found["weight"] = llama.model.layers[0].get_parameter("attention.wq.weight")
    return {name: weakref.ref(each) for name, each in found.items()}


@pytest.fixture(autouse=True)
def _without_collector() -> Iterator[None]:
    was = gc.isenabled()
    gc.disable()
    yield
    if was:
        gc.enable()


def requests(llama: Llama, tokens: int = 40) -> list[Request]:
    return llama.requests(PROMPTS, max_gen_len=tokens, temperature=0.0)


@contextlib.contextmanager
def broken(llama: Llama, steps: int) -> Iterator[None]:
    """The model fails after so many steps."""
    left = [steps]
    hidden = Transformer.hidden

    def failing(model: Transformer, *args: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("the model is broken")
        return hidden(model, *args)  # type: ignore[arg-type]

    with mock.patch.object(Transformer, "hidden", failing):
        yield


def nothing(llama: Llama) -> None: ...


def blocking(llama: Llama) -> None:
    llama.text_completion(PROMPTS, max_gen_len=6)
    llama.text_completion(PROMPTS, max_gen_len=6, temperature=0.9, n=2, logprobs=2, echo=True, seed=1)


def stream(llama: Llama) -> None:
    assert list(llama.stream(PROMPTS, max_gen_len=6))


def abandoned_stream(llama: Llama) -> None:
    for _ in llama.stream(PROMPTS, max_gen_len=60):
        break


def held_stream(llama: Llama) -> None:
    deltas = llama.stream(PROMPTS, max_gen_len=60)
    next(deltas)
    other = llama.stream(PROMPTS, max_gen_len=60)
    next(other)


def running_requests(llama: Llama) -> None:
    for request in requests(llama):
        llama.engine.add(request)
    for _ in range(3):
        assert llama.engine.step()


def cancelled_request(llama: Llama) -> None:
    (first, _) = [llama.engine.add(request) for request in requests(llama)]
    llama.engine.step()
    llama.engine.cancel(first)
    llama.engine.step()


def preempted_requests(llama: Llama) -> None:
    engine = Engine(llama.model, llama.tokenizer, cache_tokens=160, block=8)
    llama.engine = engine
    for request in llama.requests(PROMPTS * 2, max_gen_len=90, temperature=0.0):
        engine.add(request)
    while engine.unfinished:
        engine.step()
    assert engine.snapshot().preemptions


def failed_step(llama: Llama) -> None:
    with broken(llama, 2), pytest.raises(RuntimeError, match="broken"):
        llama.text_completion(PROMPTS, max_gen_len=60)
    with broken(llama, 2), pytest.raises(RuntimeError, match="broken"):
        list(llama.stream(PROMPTS, max_gen_len=60))


def logits_that_are_not_finite(llama: Llama) -> None:
    llama.model.norm.weight.data.fill_(torch.nan)
    for call in (llama.text_completion, lambda *a, **b: list(llama.stream(*a, **b))):
        with pytest.raises(NumericsError):
            call(PROMPTS, max_gen_len=6)
    kept = [llama.engine.add(request) for request in requests(llama)]
    deltas = [delta for _ in kept for delta in llama.engine.step()]
    assert all(isinstance(delta.sequence.error, NumericsError) for delta in deltas)


def service(llama: Llama) -> None:
    async def main() -> None:
        async with AsyncEngine(llama.engine) as engine:
            await asyncio.gather(*(engine.complete(request) for request in requests(llama, 6)))

    asyncio.run(main())


def abandoned_service(llama: Llama) -> None:
    """Closed while a caller reads, and one has left."""

    async def main() -> None:
        engine = AsyncEngine(llama.engine)
        first, second = map(engine.stream, requests(llama))
        await anext(first)
        await anext(second)
        await first.aclose()
        await engine.close()
        async for _ in second:
            pass

    asyncio.run(main())


def service_with_a_failed_step(llama: Llama) -> None:
    async def main() -> None:
        async with AsyncEngine(llama.engine) as engine:
            with broken(llama, 3):
                calls = [engine.complete(request) for request in requests(llama)]
                for found in await asyncio.gather(*calls, return_exceptions=True):
                    assert isinstance(found, RuntimeError)

    asyncio.run(main())


def service_with_bad_logits(llama: Llama) -> None:
    async def main() -> None:
        llama.model.norm.weight.data.fill_(torch.nan)
        async with AsyncEngine(llama.engine) as engine:
            for request in requests(llama):
                with pytest.raises(NumericsError):
                    await engine.complete(request)

    asyncio.run(main())


def failed_service(llama: Llama) -> None:
    """What fails outside a step ends it."""

    async def main(engine: AsyncEngine) -> None:
        with pytest.raises(OSError, match="no way"):
            await engine.complete(requests(llama)[0])
        await engine.ended()
        for _ in range(2):
            with pytest.raises(OSError, match="no way"):
                engine.stream(requests(llama)[0])

    def failing(*args: object) -> None:
        raise OSError("no way")

    async def serving() -> None:  # a task that raises is in a circle of asyncio's own
        with pytest.raises(OSError, match="no way"):
            await llama.serve(main)

    with mock.patch.object(AsyncEngine, "_deliver", failing):
        asyncio.run(serving())


def service_whose_main_fails(llama: Llama) -> None:
    async def main(engine: AsyncEngine) -> None:
        await engine.complete(requests(llama, 4)[0])
        raise OSError("no way")

    async def serving() -> None:  # as in `failed_service`
        with pytest.raises(OSError, match="no way"):
            await llama.serve(main)

    asyncio.run(serving())


def reference_call(llama: Llama) -> None:
    llama.model(torch.tensor([[1, 2, 3]]), 0)
    llama.model(torch.tensor([[4]]), 3)


CALLS: list[Callable[[Llama], None]] = [
    *(nothing, blocking, stream, abandoned_stream, held_stream, running_requests, cancelled_request),
    *(preempted_requests, failed_step, logits_that_are_not_finite, service, abandoned_service),
    *(service_with_a_failed_step, service_with_bad_logits, failed_service, service_whose_main_fails),
    reference_call,
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_cache_and_weights_go_with_the_last_reference(call: Callable[[Llama], None]) -> None:
    llama = tiny_llama()
    before = parts(llama)
    call(llama)
    there = before | {f"{name} at the end": each for name, each in parts(llama).items()}
    del llama
    assert not [name for name, each in there.items() if each() is not None]


def test_those_of_a_checkpoint_go_too(tiny_checkpoint: Path) -> None:
    for quantize in (None, "int4"):
        llama = Llama.build(tiny_checkpoint, max_seq_len=128, max_batch_size=4, quantize=quantize)
        blocking(llama)
        there = parts(llama)
        del llama
        assert not [name for name, each in there.items() if each() is not None], quantize


def test_a_kept_answer_keeps_no_cache() -> None:
    """Records of finished samples, and the error of a failed one, outlive the engine."""
    llama = tiny_llama()
    for request in requests(llama, 4):
        llama.engine.add(request)
    kept = []
    while llama.engine.unfinished:
        kept += llama.engine.step()
    llama.model.norm.weight.data.fill_(torch.nan)
    llama.forget_prefixes()
    llama.engine.add(requests(llama)[0])
    kept += llama.engine.step()
    assert kept[-1].sequence.error is not None
    there = parts(llama)
    del llama
    assert not [name for name, each in there.items() if each() is not None]
