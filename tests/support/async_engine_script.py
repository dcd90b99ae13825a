"""What test_front.py runs in a process of its own: `async_engine_script.py SCENARIO MARK`."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tiny_llama import tiny_model
from tiny_tokenizers import tiny_tokenizer

from llama.engine import Engine, Request
from llama.sampling import SamplingParams
from llama.serving import AsyncEngine, serve
from llama.serving import lifecycle as serving

SAMPLED = SamplingParams(temperature=1)
MARK = Path(sys.argv[2])
LONG = 100_000


def engine() -> Engine:
    return Engine(tiny_model(max_batch_size=20, max_seq_len=2 * LONG), tiny_tokenizer())


async def twenty(front: AsyncEngine, when_all_run: Callable[[], None] = MARK.touch) -> None:
    """20 endless requests; each says how it ended."""
    begun = [0] * 20

    async def one(i: int) -> None:
        async for delta in front.stream(Request((1, 5 + i), LONG, SAMPLED, seed=i)):
            begun[i] = 1
            if sum(begun) == 20:
                when_all_run()
            if delta.finish_reason is not None:
                print(delta.finish_reason.value, flush=True)

    await asyncio.gather(*(one(i) for i in range(20)))


def sigterm() -> None:
    serving._LAST_SECONDS = 60  # on a busy machine it may be late, and the test says how late
    try:
        asyncio.run(serve(engine(), twenty))
    finally:
        MARK.with_name("over").write_text(str(time.monotonic()))


def stuck() -> None:
    """A step that takes for ever begins when all requests run, and says so."""
    serving._LAST_SECONDS = 2.5
    made, all_run = engine(), threading.Event()
    step = made.step

    def stepping() -> object:
        if all_run.is_set():
            MARK.touch()
            threading.Event().wait()
        return step()

    made.step = stepping  # type: ignore[method-assign, assignment]
    asyncio.run(serve(made, lambda front: twenty(front, all_run.set)))


def unclosed() -> None:
    async def main() -> None:
        stream = AsyncEngine(engine()).stream(Request((1, 5), LONG, SAMPLED))
        await anext(stream)

    asyncio.run(main())
    print("the end")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
