"""Time to the first token of a second request that shares its first 2,000 tokens with one before it.

python benchmarks/prefix.py --rounds 3
"""

from __future__ import annotations

import statistics

import fire
import torch
from engine_runs import make_engine, make_request, run
from peers import SHAPES, make_ours, random_prompts, spread


def main(
    shape: str = "110m", dtype: str = "bfloat16", rounds: int = 3, threads: int = 2, shared: int = 2000
) -> None:
    """Print a table: time to the first token of the first and of the second request.

    Args:
        shape: 110m or 1.1b.
        dtype: bfloat16 or float32.
        rounds: turns of each measurement.
        threads: CPU threads.
        shared: tokens that both begin with.
    """
    torch.set_num_threads(threads)
    ours = make_ours(SHAPES[shape], getattr(torch, dtype), torch.device("cpu"))
    cold, warm, reused = [], [], []
    for seed in range(rounds):
        engine = make_engine(ours)
        [prefix, one, two] = random_prompts([shared, 24, 24], seed=seed)
        cold.append(run(engine, make_request(prefix + one, 4))[1][0])
        sequence, times = run(engine, make_request(prefix + two, 4))
        warm.append(times[0])
        reused.append(sequence.counts.reused)
    ratios = [a / b for a, b in zip(cold, warm, strict=True)]
    print(
        f"\n### {shape}, {dtype}: a second request with the same first {shared:,} tokens\n\n"
        "| first, ms | second, ms | less, median (range) | tokens reused |\n|---|---|---|---|\n"
        f"| {statistics.median(cold) * 1e3:.0f} | {statistics.median(warm) * 1e3:.1f} | {spread(ratios, 1)} |"
        f" {min(reused)} |",
        flush=True,
    )


if __name__ == "__main__":
    fire.Fire(main)
