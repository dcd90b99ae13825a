"""The time between two tokens of a stream while a long prompt is prefilled beside it.

python benchmarks/stall.py --rounds 3
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import fire
import torch
from engine_runs import make_engine, make_request, percentile
from peers import SHAPES, Ours, make_ours, random_prompts, spread

from llama.engine import Engine


def _step(
    engine: Engine, stream: int, gaps: list[float], last: float | None
) -> tuple[float | None, set[int]]:
    """Run a step, and note the stream's gap -> (time of its newest token, ids that gained a token)."""
    ids = {delta.key[0] for delta in engine.step()}
    if stream not in ids:
        return last, ids
    now = time.perf_counter()
    if last is not None:
        gaps.append(now - last)
    return now, ids


def measure(ours: Ours, prompt: int, seed: int) -> tuple[float, list[float], float]:
    """(median gap of the stream alone, its gaps beside the prompt, seconds that the prompt took)."""
    engine = make_engine(ours, prefix_reuse=False, speculate=False)
    stream = engine.add(make_request(random_prompts([32], seed=seed)[0], 1500))
    alone: list[float] = []
    last = None
    while len(alone) < 40:
        last, _ = _step(engine, stream, alone, last)
    other = engine.add(make_request(random_prompts([prompt], seed=100 + seed)[0], 1))
    gaps: list[float] = []
    started, ids = time.perf_counter(), set[int]()
    while other not in ids:
        last, ids = _step(engine, stream, gaps, last)
    taken = time.perf_counter() - started
    engine.cancel(stream)
    return statistics.median(alone[8:]), gaps, taken


def main(
    shape: str = "110m", dtype: str = "bfloat16", rounds: int = 3, threads: int = 2, prompt: int = 4000
) -> None:
    """Print a table: the gap between two tokens alone, and beside the prompt.

    Args:
        shape: 110m or 1.1b.
        dtype: bfloat16 or float32.
        rounds: turns of each measurement.
        threads: CPU threads.
        prompt: tokens of the long prompt.
    """
    torch.set_num_threads(threads)
    args = replace(SHAPES[shape], max_batch_size=32)
    ours = make_ours(args, getattr(torch, dtype), torch.device("cpu"))
    runs = [measure(ours, prompt, seed) for seed in range(rounds)]
    usual = statistics.median(alone for alone, _, _ in runs)
    beside = statistics.median(statistics.median(gaps) for _, gaps, _ in runs)
    ratios = [statistics.median(gaps) / alone for alone, gaps, _ in runs]
    high = statistics.median(percentile(gaps, 0.99) / alone for alone, gaps, _ in runs)
    print(
        f"\n### {shape}, {dtype}: a stream while a prompt of {prompt:,} tokens is prefilled\n\n"
        "| usual gap, ms | beside the prompt, ms | of usual, median (range) | p99 of usual, median |"
        " the prompt took, s |\n|---|---|---|---|---|\n"
        f"| {usual * 1e3:.1f} | {beside * 1e3:.1f} | {spread(ratios)} | {high:.2f} x |"
        f" {statistics.median(taken for _, _, taken in runs):.1f} |",
        flush=True,
    )


if __name__ == "__main__":
    fire.Fire(main)
