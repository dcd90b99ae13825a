"""Decode speed of 2 ranks of one thread against 1 rank of two, and the share of the collectives in it.

python benchmarks/ranks.py --rounds 3
python benchmarks/ranks.py --shape 1.1b --dtype float32 --level x86-64-v3
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fire
import torch
from engine_runs import make_request, run
from machine import at_level, describe
from peers import TOKENIZER, WideTokenizer, random_prompts, settle, spread
from peers import shape as shape_of

from llama.checkpoint import load_weights
from llama.checkpoint.base import Checkpoint, Part
from llama.distributed.parallel import Parallel
from llama.distributed.world import join, leave
from llama.engine import Engine
from llama.model import ModelArgs, Transformer
from llama.sizing.shapes import expected_shapes


class RandomCheckpoint(Checkpoint):
    """Weights of a fixed seed for each tensor: the same on every number of ranks, with no file."""

    layout = "Meta"
    files: tuple[()] = ()

    def __init__(self, args: ModelArgs, dtype: torch.dtype) -> None:
        self.args, self.dtype, self.mapped = args, dtype, []

    @classmethod
    def recognizes(cls, folder: Path) -> bool:
        return False

    def stored(self) -> Any:
        return iter(())

    def parts(self, name: str, rows: Any, columns: Any) -> Iterator[Part]:
        shape = expected_shapes(self.args)[name]
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        whole = torch.empty(shape, dtype=self.dtype)
        whole = whole.fill_(1) if len(shape) == 1 else whole.normal_(0, 0.02, generator=generator)
        if columns is None:
            yield Part(whole[rows[0] : rows[1]], slice(0, rows[1] - rows[0]), None)
        else:
            source = whole[rows[0] : rows[1], columns[0] : columns[1]].contiguous()
            yield Part(source, slice(0, source.shape[0]), slice(0, source.shape[1]))


def worker(shape: str, layers: int, dtype: str, threads: int) -> None:
    """On each rank, under torchrun or alone: decode, and what the collectives of a step cost alone."""
    torch.set_num_threads(threads)
    args, kind = shape_of(shape, layers), getattr(torch, dtype)
    parallel = join(int(os.environ.get("WORLD_SIZE", "1")), torch.device("cpu"))
    with torch.device("meta"):
        model = Transformer(args, parallel=parallel)
    load_weights(model, RandomCheckpoint(args, kind), torch.device("cpu"), kind)
    settle()
    engine = Engine(model.eval(), WideTokenizer(TOKENIZER), prefix_reuse=False, speculate=False)
    speeds = []
    for seed in range(4):
        _, times = run(engine, make_request(random_prompts([32], seed=seed)[0], 48))
        speeds.append((len(times) - 1) / (times[-1] - times[0]))
    reduce = _all_reduce_seconds(parallel, torch.zeros(1, args.dim, dtype=kind))
    if parallel.rank == 0:
        figures = {"speed": statistics.median(speeds[1:]), "reduce": reduce, "reduces": 2 * args.n_layers}
        print("RESULT", json.dumps(figures), flush=True)
    leave(parallel)


def _all_reduce_seconds(parallel: Parallel, x: torch.Tensor) -> float:
    started = time.perf_counter()
    for _ in range(200):
        parallel.all_reduce(x)
    return (time.perf_counter() - started) / 200


def _measured(ranks: int, shape: str, layers: int, dtype: str) -> dict[str, Any]:
    """The figures of a run on 1 or 2 ranks, which have two threads together."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    flags = [f"--shape={shape}", f"--layers={layers}", f"--dtype={dtype}", f"--threads={3 - ranks}"]
    command = [sys.executable, *(launcher if ranks > 1 else []), __file__, "worker", *flags]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    figures: dict[str, Any] = json.loads(out.partition("RESULT")[2].splitlines()[0])
    return figures


def main(
    shape: str = "110m", dtype: str = "bfloat16", rounds: int = 3, level: str = "", layers: int = 0
) -> None:
    """Measure decode on 1 rank of two threads and on 2 ranks of one, and print a table.

    Args:
        shape: 110m or 1.1b.
        dtype: bfloat16, float16 or float32.
        rounds: turns of each measurement.
        level: of the kernels, as LLAMA_KERNELS.
        layers: instead of the shape's own number, for a quick try.
    """
    at_level(level)
    describe(2)
    pairs = [(_measured(1, shape, layers, dtype), _measured(2, shape, layers, dtype)) for _ in range(rounds)]
    one, two = ([each[i]["speed"] for each in pairs] for i in (0, 1))
    ratios = [b / a for a, b in zip(one, two, strict=True)]
    reduce = statistics.median(pair[1]["reduce"] for pair in pairs)
    count = pairs[0][1]["reduces"]
    share = statistics.median(pair[1]["reduce"] * count * pair[1]["speed"] for pair in pairs)
    print(
        f"\n### {shape}, {dtype}: 2 ranks of one thread against 1 rank of two, decode\n\n| 1 rank, tokens/s |"
        " 2 ranks | median (range) | one all-reduce alone, µs | all-reduces of a token |"
        " their share of its time |\n"
        "|---|---|---|---|---|---|\n"
        f"| {statistics.median(one):.1f} | {statistics.median(two):.1f} |"
        f" {spread(ratios)} | {reduce * 1e6:.0f} | {count} | {share:.0%} |",
        flush=True,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        fire.Fire(worker, command=sys.argv[2:])
    else:
        fire.Fire(main)
