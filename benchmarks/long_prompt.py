"""One very long prompt: the time of a chunk against its position, and memory.

python benchmarks/long_prompt.py --tokens 100000
"""

from __future__ import annotations

import resource
import time
from dataclasses import replace

import fire
import torch
from engine_runs import make_engine, make_request
from peers import SHAPES, make_ours, random_prompts


def main(shape: str = "110m", dtype: str = "bfloat16", threads: int = 2, tokens: int = 100_000) -> None:
    """Print a table: seconds per chunk of 1,024 tokens, at positions that double.

    Args:
        shape: 110m or 1.1b.
        dtype: bfloat16 or float32.
        threads: CPU threads.
        tokens: of the prompt.
    """
    torch.set_num_threads(threads)
    args = replace(SHAPES[shape], max_seq_len=tokens + 16, max_batch_size=1)
    kind = getattr(torch, dtype)
    engine = make_engine(make_ours(args, kind, torch.device("cpu")), prefix_reuse=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    engine.add(make_request(random_prompts([tokens])[0], 4))
    print(f"\n### {shape}: a prompt of {tokens:,} tokens\n\n| position | s per 1,024 tokens |\n|---|---|")
    position, next_row, begun = 0, 0, time.perf_counter()
    while engine.unfinished:
        started = time.perf_counter()
        engine.step()
        if next_row <= position < tokens:
            print(f"| {position:,} | {time.perf_counter() - started:.2f} |", flush=True)
            next_row = max(2 * next_row, 1024)
        position += 1024
    total = time.perf_counter() - begun
    cache = 2 * args.n_layers * args.kv_heads * args.head_dim * kind.itemsize * tokens / (1 << 20)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(
        f"\nIn all {total:.0f} s; memory grew by {grown:.0f} MiB, of which keys and values are {cache:.0f}.",
        flush=True,
    )


if __name__ == "__main__":
    fire.Fire(main)
