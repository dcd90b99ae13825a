"""What shared blocks of keys and values are for: a prefix that is there already, many samples, a long stream.

    python benchmarks/shared_blocks.py                     110M shape, bfloat16, on this CPU
    python benchmarks/shared_blocks.py --dtype float32 --stream 8000

Without drafts, with random weights. A checkout from before the blocks has its own version of this file, or none.
"""

from __future__ import annotations

import gc
import time
from array import array
from collections.abc import Sequence

import fire
import numpy as np
import torch
from machine import describe
from peers import make_ours, random_prompts, shape

from llama.engine import Engine, Request
from llama.model import Transformer
from llama.sampling import GREEDY, SamplingParams


def steps_of(engine: Engine, prompt: Sequence[int], new: int, samples: int = 1) -> list[float]:
    """Milliseconds of each step of a request."""
    sampling = GREEDY if samples == 1 else SamplingParams(1.0, 1.0)
    engine.add(Request(tuple(prompt), new, sampling, n=samples))
    taken: list[float] = []
    while engine.unfinished:
        start = time.perf_counter()
        engine.step()
        taken.append(1e3 * (time.perf_counter() - start))
    return taken


@torch.inference_mode()
def alone(model: Transformer, tail: Sequence[int], start: int) -> float:
    """Milliseconds of the model's own work on a prompt's last tokens, behind `start` positions that are there."""
    end = start + len(tail)
    pool = model.new_pool(1 + -(-end // model.block))
    pool.store.zero_()
    table = array("i", range(1, pool.blocks))
    begin = time.perf_counter()
    hidden_TC = model.hidden(torch.tensor(tail), pool.step([(table, start, len(tail))]))
    model.logits(hidden_TC[-1:])
    return 1e3 * (time.perf_counter() - begin)


def median(values: Sequence[float]) -> str:
    return f"{np.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main(
    name: str = "110m", dtype: str = "bfloat16", threads: int = 2, rounds: int = 3, stream: int = 2000
) -> None:
    """Print a table of milliseconds.

    Args:
        name: of 110m, 1.1b.
        dtype: of weights and activations.
        threads: CPU threads.
        rounds: each with an engine of its own.
        stream: new tokens of the long stream.
    """
    torch.set_num_threads(threads)
    describe(threads)
    llama = make_ours(shape(name), getattr(torch, dtype), torch.device("cpu")).llama
    model, tokenizer = llama.model, llama.tokenizer
    model.params.max_seq_len, model.params.max_batch_size = 16_384, 8

    def engine() -> Engine:
        return Engine(model, tokenizer, cache_tokens=65_536, retained_tokens=32_768, speculate=False)

    base, prompt = random_prompts([2000, 4010])  # the last block of 4,010 is not full
    tails = random_prompts([64] * (rounds + 1), seed=1)
    first, tail_alone, prefill, second = [], [], [], []
    for tail in tails[1:]:
        shared = engine()
        steps_of(shared, base + tails[0], 1)
        first.append(sum(steps_of(shared, base + tail, 1)))
        tail_alone.append(alone(model, tail, len(base)))
        taken = steps_of(engine(), prompt, 3, samples=8)
        prefill.append(taken[-3])
        second.append(taken[-2])
    gc.collect()  # the engines before, whose memory is given back in the middle of the stream otherwise
    lone = np.array(steps_of(engine(), tails[0], stream)[1:])
    windows = [lone[i : i + 200] for i in range(0, len(lone) - 199, 200)]
    worst = max(float(np.percentile(each, 99) / np.median(each)) for each in windows)
    print("| milliseconds | median (range) |\n|---|---|")
    ratios = [one / other for one, other in zip(first, tail_alone, strict=True)]
    print(f"| 64 tokens behind 2,000 that another request had | {median(first)} |")
    print(f"| the model's own work on these 64 | {median(tail_alone)}; ratio {np.median(ratios):.2f} x |")
    print(f"| 8 samples of 4,010 tokens: the step that ends the prompt and forks | {median(prefill)} |")
    print(f"| the step after it, in which all copy their last block | {median(second)} |")
    print(f"| a stream of {stream}: longest step | {lone.max():.1f}, median {np.median(lone):.1f} |")
    print(f"| its worst 99th percentile over the median of 200 steps | {worst:.2f} x |")


if __name__ == "__main__":
    fire.Fire(main)
