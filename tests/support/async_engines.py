"""What tests of AsyncEngine share: engines whose steps can be held, and a client that checks what it gets."""

from __future__ import annotations

import asyncio
import functools
import threading
import time

import torch
from tiny_llama import tiny_model
from tiny_tokenizers import tiny_tokenizer

from llama.engine import Engine, Request
from llama.sampling import GREEDY, SamplingParams

TOKENIZER = tiny_tokenizer()
SAMPLED = SamplingParams(temperature=1.2, top_p=0.95)
# Seconds. A guard against hanging, far above what anything here takes on a busy machine.
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
    """[(text, reason, ids)] of each sample, by hand, without an AsyncEngine."""
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
    """An engine whose steps a test can count and hold back."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.open = threading.Event()
        self.open.set()
        self.allowed = threading.Semaphore(0)
        self.inside = threading.Event()
        self.steps, self.threads = 0, set()

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
    """Wait for a condition; fails rather than hangs."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it never came true"
        await asyncio.sleep(0.001)


def run(main):
    """Run a test's coroutine; it fails rather than hangs."""
    return asyncio.run(asyncio.wait_for(main, 2 * LIMIT))


def sleeping(async_engine):
    """The engine's thread has nothing to do."""
    return async_engine._inbox._asleep and not async_engine._inbox._events


async def collect(async_engine, request):
    """Run a request, as a client that checks what it gets -> [(text, reason, ids)] by sample."""
    texts, ends = [""] * request.n, {}
    tokens = [[] for _ in range(request.n)]
    async for delta in async_engine.stream(request):
        assert delta.sample not in ends, "a delta after the end"
        texts[delta.sample] += delta.text
        tokens[delta.sample] += delta.tokens
        if delta.finish_reason is not None:
            ends[delta.sample] = delta
            assert delta.sequence is None or tokens[delta.sample] == delta.sequence.output
    assert sorted(ends) == list(range(request.n))
    return [
        (texts[i], ends[i].finish_reason, ends[i].sequence.output if ends[i].sequence else None)
        for i in range(request.n)
    ]
