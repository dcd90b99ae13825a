"""Two checkouts of this project in turn, the speed of one beside that of the other, as before and after a change.

    git worktree add /tmp/before COMMIT
    (cd /tmp/before && python setup.py build_ext --inplace)
    python benchmarks/commits.py /tmp/before --dtype bfloat16 --rounds 4

Each measurement is a process of its own, on the 110M shape with random weights; the result is the ratio within a round.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import fire

HERE = Path(__file__).resolve().parent
_MEASURE = """
import json, sys
import torch
import llama
from peers import SHAPES, make_ours, random_prompts, seconds

assert llama.__file__.startswith(sys.argv[1]), llama.__file__
ours = make_ours(SHAPES["110m"], getattr(torch, sys.argv[2]), torch.device("cpu"))
ours.run(random_prompts([64]), 4)
found = {}
for length in (512, 2048):
    prompt = random_prompts([length])
    found[f"prefill {length}"] = length / seconds(lambda: ours.run(prompt, 1))
for batch, new in ((1, 64), (8, 32)):
    prompts = random_prompts([32] * batch)
    first = seconds(lambda: ours.run(prompts, 1))
    found[f"decode, batch {batch}"] = batch * new / (seconds(lambda: ours.run(prompts, 1 + new)) - first)
print(json.dumps(found))
"""


def measure(root: Path, dtype: str) -> dict[str, float]:
    """Tokens a second of each kind of work, of the package and the benchmarks in a checkout."""
    paths = [str(root), str(root / "benchmarks")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", _MEASURE, str(root), dtype]
    done = subprocess.run(command, env=environment, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(before: str, dtype: str = "bfloat16", rounds: int = 4) -> None:
    """Print the medians, and those of the ratios.

    Args:
        before: the other checkout; this one is the later.
        rounds: measurements of each.
    """
    roots = (Path(before).resolve(), HERE.parent)
    pairs = [[measure(root, dtype) for root in roots] for _ in range(rounds)]
    print(f"110m, {dtype}: tokens/s before, after, and after / before, medians of {rounds} rounds")
    for name in pairs[0][0]:
        ratios = [after[name] / earlier[name] for earlier, after in pairs]
        one, two = (statistics.median(pair[i][name] for pair in pairs) for i in (0, 1))
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{name:18} {one:8.1f} {two:8.1f}   {statistics.median(ratios):.2f} x ({spread})")


if __name__ == "__main__":
    fire.Fire(main)
