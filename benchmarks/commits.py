"""Two checkouts of this project in turn: the speed after a change over the speed before it.

    git worktree add /tmp/before COMMIT
    (cd /tmp/before && python setup.py build_ext --inplace)
    python benchmarks/commits.py /tmp/before --dtype bfloat16 --rounds 4
    python benchmarks/commits.py /tmp/before --work decode,ragged --shape 1.1b --rounds 2

The works are those of latency.py and batch.py, with larger batches: prefill (512 and 2,048 tokens), decode
(batches of 1, 8 and 32), ragged (8 and 32 prompts of 16 to 512 tokens, from start to end).

Each measurement is a process of its own. It imports `llama`, its compiled kernels and benchmarks/peers.py
from its own checkout, so the two may differ in layout. The weights are random, the same in both. The order
alternates; the result is the median of the rounds' ratios.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import fire

HERE = Path(__file__).resolve().parent
WORKS = "prefill,decode,ragged"
_RAGGED = (16, 64, 96, 160, 224, 320, 416, 512)


def measure(
    root: Path, shape: str, dtype: str, works: list[str], threads: int, layers: int
) -> dict[str, float]:
    """Tokens per second of each work, with the package and the peers.py of a checkout."""
    sys.path[:1] = [str(root), str(root / "benchmarks")]  # in place of this file's folder
    from dataclasses import replace

    import torch
    from peers import SHAPES, make_ours, random_prompts, seconds

    import llama

    if not Path(llama.__file__).is_relative_to(root):
        raise SystemExit(f"{llama.__file__} was imported, which is not in {root}")
    torch.set_num_threads(threads)
    args = replace(SHAPES[shape], max_batch_size=32, n_layers=layers or SHAPES[shape].n_layers)
    ours = make_ours(args, getattr(torch, dtype), torch.device("cpu"))
    ours.run(random_prompts([64]), 4)
    found: dict[str, float] = {"compiled kernels": float(_has_kernels(root))}
    if "prefill" in works:
        for length in (512, 2048):
            prompt = random_prompts([length])
            found[f"prefill {length:,}"] = length / seconds(lambda prompt=prompt: ours.run(prompt, 1))
    if "decode" in works:
        for batch, new in ((1, 64), (8, 32), (32, 16)):
            prompts = random_prompts([32] * batch)
            first = seconds(lambda prompts=prompts: ours.run(prompts, 1))
            whole = seconds(lambda prompts=prompts, new=new: ours.run(prompts, 1 + new))
            found[f"decode, batch {batch}"] = batch * new / (whole - first)
    if "ragged" in works:
        for batch in (8, 32):
            prompts = random_prompts(_RAGGED * (batch // 8))
            found[f"ragged batch of {batch}"] = (
                batch * 64 / seconds(lambda prompts=prompts: ours.run(prompts, 64))
            )
    return found


def _has_kernels(root: Path) -> bool:
    """Whether the checkout's compiled kernels are loaded. Raises SystemExit if another checkout's are."""
    # They are loaded by ctypes, so sys.modules does not have them.
    maps = Path("/proc/self/maps").read_text().splitlines()
    files = {Path(line.split(maxsplit=5)[5]) for line in maps if line.endswith(tuple(EXTENSION_SUFFIXES))}
    kernels = [file for file in files if "llama" in file.parent.parts]
    if foreign := [str(file) for file in kernels if not file.is_relative_to(root)]:
        raise SystemExit(f"kernels of another checkout were loaded: {', '.join(foreign)}")
    return bool(kernels)


def _measured(root: Path, **flags: Any) -> dict[str, float]:
    command = [sys.executable, __file__, str(root), *(f"--{key}={value}" for key, value in flags.items())]
    done = subprocess.run([*command, "--worker"], cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(
    before: str,
    shape: str = "110m",
    dtype: str = "bfloat16",
    rounds: int = 4,
    work: str = WORKS,
    threads: int = 2,
    layers: int = 0,
    worker: bool = False,
) -> None:
    """Print the medians of both checkouts, and of the ratios after / before.

    Args:
        before: the earlier checkout; the one that holds this file is the later.
        shape: 110m or 1.1b.
        dtype: bfloat16 or float32.
        rounds: measurements of each checkout.
        work: what to measure, with commas.
        threads: CPU threads.
        layers: instead of the shape's own number, for a quick try.
        worker: internal.
    """
    works = list(work) if isinstance(work, tuple) else work.split(",")
    if unknown := sorted(set(works) - set(WORKS.split(","))):
        raise SystemExit(f"--work {','.join(unknown)} is unknown; known are {WORKS}")
    if worker:
        print(json.dumps(measure(Path(before), shape, dtype, works, threads, layers)))
        return
    roots = (Path(before).resolve(), HERE.parent)
    taken: tuple[list[dict[str, float]], ...] = ([], [])
    for i in range(rounds):
        for which in (0, 1) if i % 2 else (1, 0):
            flags = {"shape": shape, "dtype": dtype, "work": ",".join(works), "threads": threads}
            taken[which].append(_measured(roots[which], layers=layers, **flags))
    built = [each[0].pop("compiled kernels") for each in taken]
    print(
        f"### {shape}, {dtype}: {roots[1]} after {roots[0]}, {rounds} rounds\n\n"
        f"compiled kernels: {', '.join('yes' if each else 'no' for each in built)} (before, after)\n\n"
        "| tokens/s | before | after | after / before: median (range) |\n|---|---|---|---|"
    )
    for name in taken[0][0]:
        earlier, later = ([found[name] for found in each] for each in taken)
        ratios = sorted(b / a for a, b in zip(earlier, later, strict=True))
        print(
            f"| {name} | {statistics.median(earlier):.1f} | {statistics.median(later):.1f} |"
            f" {statistics.median(ratios):.2f} x ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )


if __name__ == "__main__":
    fire.Fire(main)
