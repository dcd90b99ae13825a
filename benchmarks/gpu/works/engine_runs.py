"""Timed runs of our engine: through `Engine`, `Request` and `Engine.step` alone, whatever is beneath them."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from unittest import mock

import torch
from peers import random_prompts

from llama.engine import Engine, Request
from llama.kernels import flash_trial
from llama.model import Transformer
from llama.sampling import SamplingParams

from ..figures import Figure
from ..models import cache_bytes, decode_cost, prefill_cost, tokenizer
from ..workplace import Workplace

__all__ = ["Decoding", "cache_tokens", "decode", "fitting", "lengths", "plain_attention", "prefill"]

_GREEDY = SamplingParams(temperature=0.0)
# Steps before the first that is timed.
_WARM = 8
_POSITIONS = (512, 256, 128, 64)
# Share of the free memory that caches may take; the rest is for what a step computes.
_SHARE = 0.8


def lengths(batch: int, positions: int, steps: int) -> tuple[int, int]:
    """Of sequences with about `positions` positions in the midst of `steps` steps: the prompt, the most new tokens.

    Those whose prompt is computed first decode while the others' are, at 1,024 tokens of prompts a step or more.
    """
    prompt = max(2, positions - (steps + _WARM) // 2)
    return prompt, steps + _WARM + 2 + batch * prompt // 1024


def cache_tokens(model: Transformer, batch: int, positions: int, steps: int) -> int:
    """Positions of all those sequences at their end, each in whole blocks."""
    return batch * (sum(lengths(batch, positions, steps)) + model.block)


def fitting(place: Workplace, model: Transformer, batch: int, steps: int, copies: int = 1) -> int | None:
    """How many positions each of `batch` sequences may have; the most that there is memory for, or None.

    Args:
        copies: of the cache; 2 beside a peer that has its own.
    """
    if place.tiny:
        return 12
    one, free = copies * cache_bytes(model.params), _SHARE * place.free()
    return next((n for n in _POSITIONS if one * cache_tokens(model, batch, n, steps) <= free), None)


class Decoding:
    """An engine in which `batch` sequences of about `positions` positions decode, all in each step.

    Attributes:
        behind: positions that each sequence has behind it, in the mean over them.
    """

    def __init__(self, model: Transformer, batch: int, positions: int, steps: int) -> None:
        """Prefill until all decode. `steps`: how many will be asked for."""
        prompt, most = lengths(batch, positions, steps)
        self.batch, self._tokens, self._prompt = batch, 0, prompt
        self.engine = Engine(
            model,
            tokenizer(),
            cache_tokens=cache_tokens(model, batch, positions, steps),
            prefix_reuse=False,
            speculate=False,
        )
        for ids in random_prompts([prompt] * batch, high=model.vocab_size):
            self.engine.add(Request(tuple(ids), most, _GREEDY, streaming=False))
        begun: set[int] = set()
        while len(begun) < batch:
            begun |= self._step()
        for _ in range(_WARM):
            self._all_step()

    @property
    def behind(self) -> float:
        return self._prompt + self._tokens / self.batch

    def _step(self) -> set[int]:
        deltas = self.engine.step()
        self._tokens += sum(len(delta.tokens) for delta in deltas)
        if any(delta.finish_reason for delta in deltas):
            raise RuntimeError("a sequence ended while others were still measured")
        return {id(delta.sequence) for delta in deltas}

    def _all_step(self) -> None:
        if len(self._step()) != self.batch:
            raise RuntimeError(f"a step did not advance all {self.batch} sequences")

    def timed(self, steps: int) -> float:
        """Seconds of some steps."""
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(steps):
            self._all_step()
        torch.cuda.synchronize()
        return time.perf_counter() - started


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Within it, engines take torch's plain attention: what its flash kernel is compared with."""
    with mock.patch.object(flash_trial, "why_not", return_value="it is measured without"):
        yield


def _attention(engine: Engine) -> str:
    return f"attention: {engine.memory.pool.attention}"


def decode(place: Workplace, model: Transformer, label: str, batch: int) -> None:
    """Tokens/s of a batch."""
    rounds, steps = place.rounds(7), 2 if place.tiny else 16 if batch < 64 else 8
    positions = fitting(place, model, batch, rounds * steps)
    if positions is None:
        place.lacks(f"{label}: {place.free() / 2**30:.0f} GiB are free, too few for {batch} caches")
        return
    decoding = Decoding(model, batch, positions, rounds * steps)
    before = decoding.behind
    samples = [batch * steps / decoding.timed(steps) for _ in range(rounds)]
    behind = statistics.mean([before, decoding.behind])
    cost = decode_cost(model.params, batch, behind)
    note = _attention(decoding.engine)
    place.emit(Figure(f"{label} at {behind:.0f} positions", "tokens/s", samples, cost, note=note))


def prefill(place: Workplace, model: Transformer, label: str, length: int, rounds: int) -> None:
    """Milliseconds from a request to its first token."""
    if place.tiny:
        length //= 64
    engine = Engine(
        model, tokenizer(), cache_tokens=length + 2 * model.block, prefix_reuse=False, speculate=False
    )
    samples = []
    for ids in random_prompts([length] * (1 + place.rounds(rounds)), high=model.vocab_size):
        torch.cuda.synchronize()
        started = time.perf_counter()
        engine.add(Request(tuple(ids), 1, _GREEDY, streaming=False))
        while engine.unfinished:
            engine.step()
        torch.cuda.synchronize()
        samples.append(1000 * (time.perf_counter() - started))
    cost = prefill_cost(model.params, length)
    place.emit(Figure(f"{label}, {length:,} tokens", "ms", samples[1:], cost, note=_attention(engine)))
