"""What the benchmarks of the engine share: an engine on a model, a request, a run of one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from peers import Ours

from llama.engine import Engine, Request
from llama.engine import SequenceState as Running
from llama.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0.0)


def make_engine(ours: Ours, **options: Any) -> Engine:
    """An engine of its own on a model, with nothing retained."""
    return Engine(ours.llama.model, ours.llama.tokenizer, **options)


def make_request(
    prompt: Sequence[int], new: int, sampling: SamplingParams = GREEDY, **options: Any
) -> Request:
    """A request for `new` tokens, none of which can stop it."""
    return Request(tuple(prompt), new, sampling, **options)


def run(engine: Engine, request: Request) -> tuple[Running, list[float]]:
    """Run one request alone -> its record, and when each of its steps ended, in seconds from its start."""
    started = time.perf_counter()
    engine.add(request)
    sequence, times = None, []
    while engine.unfinished:
        for delta in engine.step():
            sequence = delta.sequence
        times.append(time.perf_counter() - started)
    assert sequence is not None
    return sequence, times


def percentile(values: list[float], share: float) -> float:
    """The value below which that share of them lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
