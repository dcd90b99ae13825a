"""Attention over a sequence whose blocks lie anywhere, against one whose blocks are neighbours.

    python benchmarks/scattered.py
    LLAMA_KERNELS=x86-64-v3 python benchmarks/scattered.py --positions 16000 --size 32

One token attends to all positions, in as many layers as make the keys and values larger than any cache, as a model's
decode step does. The two take turns, over the same numbers; their results are held to the same bits.
"""

from __future__ import annotations

import random
import statistics
from array import array

import fire
import torch
from machine import cpu
from peers import parts, seconds, spread

from llama.kernels import cached, native
from llama.kernels.cached import INT8
from llama.kv_cache import KVPool, Part

_WORKING_SET = 96 << 20  # bytes of keys and values that a pass reads


def measure(heads: int, kv_heads: int, dim: int, form: str, positions: int, size: int, rounds: int) -> None:
    """Print a row of the table."""
    kernels = native.kernels()
    if kernels is None:
        raise SystemExit("no compiled kernels are in use")
    dtype = torch.bfloat16 if form == INT8 else getattr(torch, form)
    kind = INT8 if form == INT8 else dtype
    blocks = -(-positions // size)
    layer = 2 * kv_heads * positions * cached.row_bytes(kind, dim)
    layers = -(-_WORKING_SET // layer)
    run = KVPool(layers, kv_heads, dim, kind, torch.device("cpu"), 1 + blocks, size)
    # Bytes that are small, finite numbers in every format, and scales.
    run.store.view(torch.uint8).random_(0, 60, generator=torch.Generator().manual_seed(0))
    elsewhere = KVPool(layers, kv_heads, dim, kind, torch.device("cpu"), 1 + blocks, size)
    table = list(range(1, 1 + blocks))
    random.Random(0).shuffle(table)
    elsewhere.store[:, :, :, table] = run.store[:, :, :, 1:]
    q = torch.randn(1, heads, dim, generator=torch.Generator().manual_seed(1)).to(dtype)
    k, v = torch.randn(2, 1, kv_heads, dim, generator=torch.Generator().manual_seed(2)).to(dtype)
    pools = {"one run": (run, array("i", range(1, 1 + blocks))), "scattered": (elsewhere, array("i", table))}
    taken: dict[str, list[float]] = {name: [] for name in pools}
    outs: dict[str, list[torch.Tensor]] = {}

    def step(name: str) -> None:
        pool, mine = pools[name]
        now = pool.step([Part(mine, positions - 1, 1)])
        outs[name] = [kernels.attention(q, k, v, *pool.layer(i), now) for i in range(layers)]

    for i in range(rounds + 1):
        for name in pools:
            each = seconds(lambda name=name: step(name))
            if i:
                taken[name].append(each)
    if not all(map(torch.equal, *outs.values())):
        raise SystemExit("scattered blocks give other bits")
    shape = f"{heads}/{kv_heads} x {dim}"
    rates = [f"{layers * layer / statistics.median(each) / 1e9:.1f}" for each in taken.values()]
    ratios = [a / b for a, b in zip(taken["one run"], taken["scattered"], strict=True)]
    block = size * cached.row_bytes(kind, dim)
    print(f"| {shape} | {form} | {block} | " + " | ".join([*rates, spread(ratios)]) + " |", flush=True)


def main(
    shapes: str = "12x12x64,32x4x64,32x32x128,64x8x128",
    forms: str = "bfloat16,int8,float32",
    positions: int = 4000,
    size: int = 0,
    rounds: int = 15,
    threads: int = 1,
) -> None:
    """Measure decode attention over scattered blocks against one run, and print a table.

    Args:
        shapes: query heads x key heads x head dimension, with commas.
        forms: of the cache: bfloat16, float16, float32, int8, with commas.
        positions: of the sequence.
        size: positions of a block; 0: as many as take about 2 KiB for a head.
        rounds: measured rounds, after one that is dropped.
        threads: CPU threads.
    """
    torch.set_num_threads(threads)
    print(f"{cpu()}, {native.kernels()}, {threads} threads, {positions} positions; GB/s of keys and values\n")
    print("| heads | cache | bytes of a block | one run | scattered | speed |\n|---|---|---|---|---|---|")
    with torch.inference_mode():
        for shape in parts(shapes):
            heads, kv_heads, dim = map(int, shape.split("x"))
            for form in parts(forms):
                row = cached.row_bytes(INT8 if form == INT8 else getattr(torch, form), dim)
                near = 1 << (2048 // row).bit_length() - 1
                measure(heads, kv_heads, dim, form, positions, size or near, rounds)


if __name__ == "__main__":
    fire.Fire(main)
