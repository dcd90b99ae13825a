"""Requests that arrive over time: throughput, and time to the first token.

    python benchmarks/arrivals.py                                   110m, bfloat16, beside llama.cpp
    python benchmarks/arrivals.py --shape 1.1b --rounds 1 --peers ""

32 requests, run together, one after the other, and by llama.cpp's batched decoding. All take turns in one
run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import fire
import torch
from engine_runs import make_engine, make_request, percentile, run
from peers import SHAPES, Ours, make_ours, parts, random_prompts, spread

from llama.engine import Engine

_REQUESTS, _NEW = 32, 64


def _arrive(engine: Engine, prompts: list[list[int]], gap: float) -> tuple[list[float], float]:
    """Run them together -> (seconds from each arrival to the first token, seconds until all have ended)."""
    started = time.perf_counter()
    due = [gap * i for i in range(len(prompts))]
    ids: dict[int, int] = {}
    first: dict[int, float] = {}
    added = 0
    while added < len(prompts) or engine.unfinished:
        now = time.perf_counter() - started
        while added < len(prompts) and due[added] <= now:
            ids[engine.add(make_request(prompts[added], _NEW))] = added
            added += 1
        if not engine.unfinished:
            time.sleep(max(0.0, due[added] - now))
            continue
        deltas = engine.step()
        now = time.perf_counter() - started
        for delta in deltas:
            row = ids[delta.key[0]]
            first.setdefault(row, now - due[row])
    return [first[row] for row in range(len(prompts))], time.perf_counter() - started


def _one_by_one(ours: Ours, prompts: list[list[int]], gap: float) -> tuple[list[float], float]:
    """Run them one after the other -> as `_arrive`."""
    started = time.perf_counter()
    first = []
    for i, prompt in enumerate(prompts):
        now = time.perf_counter() - started
        if now < gap * i:
            time.sleep(gap * i - now)
        begun = time.perf_counter() - started
        _, times = run(_plain_engine(ours), make_request(prompt, _NEW))
        first.append(begun + times[0] - gap * i)
    return first, time.perf_counter() - started


def _plain_engine(ours: Ours) -> Engine:
    return make_engine(ours, prefix_reuse=False, speculate=False)


def _ways(
    ours: Ours, prompts: list[list[int]], peers: list[str], threads: int
) -> dict[str, Callable[[float], Any]]:
    """How the requests can be run: name -> call(seconds between two arrivals)."""
    ways: dict[str, Callable[[float], Any]] = {
        "ours, together": lambda gap: _arrive(_plain_engine(ours), prompts, gap),
        "ours, one after the other": lambda gap: _one_by_one(ours, prompts, gap),
    }
    if "llama.cpp" in peers:
        from llama_cpp_peer import LlamaCpp

        peer = LlamaCpp.of_model(ours.llama.model, threads=threads, context=512, sequences=_REQUESTS)
        ways["llama.cpp, together"] = lambda gap: peer.serve(prompts, gap, _NEW)
    return ways


def main(
    shape: str = "110m",
    dtype: str = "bfloat16",
    rounds: int = 3,
    threads: int = 2,
    peers: str = "llama.cpp",
    requests: int = _REQUESTS,
) -> None:
    """Print a table of throughput and time to the first token.

    Args:
        shape: 110m or 1.1b.
        dtype: bfloat16 or float32.
        rounds: turns of each measurement.
        threads: CPU threads.
        peers: llama.cpp, or nothing.
        requests: how many.
    """
    torch.set_num_threads(threads)
    args = replace(SHAPES[shape], max_batch_size=_REQUESTS)
    ours = make_ours(args, getattr(torch, dtype), torch.device("cpu"))
    lengths = [16 + 24 * (i * 7 % 11) for i in range(requests)]
    prompts = random_prompts(lengths)
    ways = _ways(ours, prompts, parts(peers), threads)
    # A busy server: a request arrives every sixteenth of the time that one takes alone.
    gap = run(make_engine(ours, speculate=False), make_request(prompts[0], _NEW))[1][-1] / 16
    taken: dict[str, list[tuple[list[float], float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            taken[name].append(call(gap))
    print(
        f"\n### {shape}, {dtype}: {requests} requests, prompts of {min(lengths)} to {max(lengths)} tokens,"
        f" {_NEW} more each, one every {gap * 1000:.0f} ms\n\n"
        "| | tokens/s | to the first token, p50, s | p99, s |"
        " throughput of ours to it |\n|---|---|---|---|---|"
    )
    ours_seconds = [seconds for _, seconds in taken["ours, together"]]
    for name, results in taken.items():
        seconds = [each for _, each in results]
        firsts = [value for first, _ in results for value in first]
        ratios = [b / a for a, b in zip(ours_seconds, seconds, strict=True)]
        print(
            f"| {name} | {requests * _NEW / statistics.median(seconds):.1f} | {percentile(firsts, 0.5):.2f} |"
            f" {percentile(firsts, 0.99):.2f} | {spread(ratios)} |",
            flush=True,
        )


if __name__ == "__main__":
    fire.Fire(main)
