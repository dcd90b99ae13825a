"""Single decode steps of a Llama, for laws of what one of them may cost."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from pretended_gpu import Gpu, Recording

from llama import Llama
from llama.engine import Engine, Request

__all__ = ["Repeated", "counts_of_steps", "decoding", "outputs", "recorded_step"]

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


def outputs(engine: Engine, requests: Sequence[Request], each: Callable[[], None] = lambda: None) -> Any:
    """Tokens and scores of all samples; `each` is called behind every step."""
    for request in requests:
        engine.add(request)
    found = {}
    while engine.unfinished:
        for delta in engine.step():
            found[delta.key] = delta.sequence
        each()
    return {
        key: (sequence.tokens, sequence.scores, sequence.prompt_scores) for key, sequence in found.items()
    }


class Repeated:
    """`Runner.compute`, which records each decode step of new sizes and repeats it for all later ones."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._compute = engine, engine.runner.compute
        self._recorded: dict[Any, tuple[Recording, torch.Tensor]] = {}
        self.repeated = 0

    def __call__(self, step: Any, inputs: Any, counts: Any, top: int) -> torch.Tensor:
        if len(step) != len(inputs.tokens):
            return self._compute(step, inputs, counts, top)
        sizes = tuple((x.shape, x.data_ptr()) for x in (*inputs, *step.tensors))
        key = sizes, tuple(counts), top, self._engine.memory.pool.recorded_for(step)
        if key not in self._recorded:
            with Recording() as recording:
                self._recorded[key] = recording, self._compute(step, inputs, counts, top)
            return self._recorded[key][1]
        recording, packet = self._recorded[key]
        recording.replay()
        self.repeated += 1
        return packet
