"""Decode speed with drafted tokens: on work like edits, and where no draft is ever right.

python benchmarks/drafts.py --rounds 3
"""

from __future__ import annotations

from typing import Any

import fire
import torch
from engine_runs import make_engine, make_request, run
from peers import SHAPES, make_ours, random_prompts, spread

from llama.engine import Engine, Request
from llama.sampling import SamplingParams


def _cases(output: list[int]) -> dict[str, dict[str, Any]]:
    """Name -> options of the request.

    Args:
        output: what the model says without drafts. Its weights are random, so that is found by letting it say
            it.
    """
    new = len(output)
    # One line in ten, 12 tokens, is replaced: as when a function is repeated with lines changed.
    edited = list(output)
    edited[180:192] = random_prompts([12], seed=5)[0]
    hot = {"sampling": SamplingParams(temperature=1.0)}
    return {
        "greedy, prediction with one line of 12 tokens changed": {"prediction": tuple(edited[:new])},
        "greedy, no prediction (what random weights say repeats itself)": {},
        "sampled at temperature 1, where no draft is ever right": hot,
        "the same, with a wrong prediction": {**hot, "prediction": tuple(random_prompts([new], seed=9)[0])},
    }


def _decode_seconds(engine: Engine, request: Request) -> tuple[float, list[int]]:
    """(seconds from the first step to the last, the tokens)."""
    sequence, times = run(engine, request)
    return times[-1] - times[0], sequence.output


def main(
    shape: str = "110m", dtype: str = "bfloat16", rounds: int = 3, threads: int = 2, new: int = 400
) -> None:
    """Print a table: decode speed with drafts over decode speed without.

    Args:
        shape: 110m or 1.1b.
        dtype: bfloat16 or float32.
        rounds: turns of each measurement.
        threads: CPU threads.
        new: tokens to generate.
    """
    torch.set_num_threads(threads)
    ours = make_ours(SHAPES[shape], getattr(torch, dtype), torch.device("cpu"))
    prompt = random_prompts([64])[0]
    plain, _ = run(make_engine(ours, speculate=False), make_request(prompt, new))
    print(
        f"\n### {shape}, {dtype}: drafts, {new} tokens\n\n| | of the speed without, median (range) |"
        " tokens the same |\n|---|---|---|"
    )
    for name, options in _cases(plain.output).items():
        without = {key: value for key, value in options.items() if key == "sampling"}
        ratios, same = [], []
        for _ in range(rounds):
            base = _decode_seconds(make_engine(ours, speculate=False), make_request(prompt, new, **without))
            fast = _decode_seconds(make_engine(ours), make_request(prompt, new, **options))
            ratios.append(base[0] / fast[0])
            same.append(base[1] == fast[1])
        print(
            f"| {name} | {spread(ratios)} | {'yes' if all(same) else 'no: other near-ties in 16 bit'} |",
            flush=True,
        )


if __name__ == "__main__":
    fire.Fire(main)
