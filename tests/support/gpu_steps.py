"""Single decode steps of a Llama, for laws of what one of them may cost."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from pretended_gpu import Gpu, Recording

from llama import Llama

__all__ = ["counts_of_steps", "decoding", "recorded_step"]

_TEXT = "def return self value"


@contextlib.contextmanager
def decoding(llama: Llama, rows: int, **options: Any) -> Iterator[Callable[[], None]]:
    """Requests that have their first tokens -> what runs one more step, in which each row decodes one token."""
    engine, most = llama.engine, llama.model.params.max_seq_len // 2
    prompts = [f"{_TEXT} {row}" for row in range(rows)]
    options = {"temperature": 0, "top_p": 1.0, "max_gen_len": most, "ignore_eos": True, **options}
    begun = [engine.add(request) for request in llama.requests(prompts, **options)]
    try:
        engine.step()
        while any(sequence.output == [] for sequence in engine.scheduler.running):
            engine.step()
        assert len(engine.scheduler.running) == rows
        yield lambda: engine.step() and None
        assert len(engine.scheduler.running) == rows, "a row ended while its steps were counted"
    finally:
        for request in begun:
            engine.cancel(request)
        engine.step()


def counts_of_steps(gpu: Gpu, llama: Llama, rows: int, steps: int = 2, **options: Any) -> list[Counter[str]]:
    """What each of some decode steps cost."""
    found = []
    with decoding(llama, rows, **options) as step:
        step()
        for _ in range(steps):
            gpu.forget()
            step()
            found.append(Counter(gpu.counts))
    return found


def recorded_step(llama: Llama, rows: int, **options: Any) -> Recording:
    """A decode step, recorded as far as it can be: see its `refused`."""
    with decoding(llama, rows, **options) as step:
        step()
        with Recording(raises=False) as recording:
            step()
    return recording
