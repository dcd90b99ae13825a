"""Speed of the CPU kernels for products that llama/kernels/table.py chooses from, per dtype, shape and rows.

Every kernel computes y = x @ W^T. The kernels take turns in each round and the median of the rounds is
printed, so a slow spell of the machine slows all of them: compare within a line, not across lines. One turn
reads enough copies of the weights to overflow the last-level cache, as a model's decode step does. Up to 16
rows the unit is GB/s of weights read, for more rows GFLOP/s.

    python benchmarks/linear.py --dtypes bf16 f32 --rows 1 2 8 64 --shapes 5632x2048
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from llama.kernels.operators import pack
from llama.kernels.weights import PackedWeight

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32, "f16": torch.float16}
# The matrices of a 1.1B model (dim 2048, ffn 5632) and of a 110M one (dim 768, ffn 2048).
SHAPES = [
    "2048x2048",
    "256x2048",
    "5632x2048",
    "2048x5632",
    "32016x2048",
    "768x768",
    "2048x768",
    "768x2048",
    "32016x768",
]
ROWS = [1, 2, 3, 4, 8, 16, 32, 64, 128, 512, 2048]
WORKING_SET = 96 << 20  # bytes of weights a turn reads: three times a 32 MB cache
MAX_FLOP = 40e9  # a number of rows is skipped where one call would cost more


class Kernel(NamedTuple):
    """One way to multiply: how the weight is stored, and how it is then used."""

    name: str
    store: Callable[[torch.Tensor], Any]
    run: Callable[[torch.Tensor, Any], torch.Tensor]
    dtypes: tuple[str, ...] = ("bf16", "f32", "f16")
    max_rows: int = 1 << 30


def plain(weight: torch.Tensor) -> torch.Tensor:
    return weight


def onednn_off(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    # A switch of the whole process: fine in a benchmark, not in a library.
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        return F.linear(x, weight)
    finally:
        torch._C._set_mkldnn_enabled(before)


def mv_rows(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.mv(weight, row) for row in x])


def reorder(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed


def pointwise(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return y


def run_chosen(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    return weight.linear(x)


def kernels() -> list[Kernel]:
    return [
        Kernel("F.linear", plain, F.linear),
        Kernel("onednn off", plain, onednn_off),
        Kernel("mv per row", plain, mv_rows, max_rows=4),
        Kernel("pointwise", plain, pointwise, ("bf16", "f32")),
        Kernel("packed", reorder, pointwise, ("bf16", "f32")),
        Kernel("chosen", pack, run_chosen),
    ]


def measure(
    shape: str, dtype_name: str, row_counts: list[int], rounds: int, only: list[str] | None, best: bool
) -> None:
    out_features, in_features = (int(part) for part in shape.split("x"))
    dtype = DTYPES[dtype_name]
    weight_bytes = out_features * in_features * dtype.itemsize
    copies = max(2, -(-WORKING_SET // weight_bytes))
    torch.manual_seed(0)
    weights = [torch.randn(out_features, in_features).to(dtype) for _ in range(copies)]
    stored: dict[Any, list[Any]] = {}
    available = [
        kernel
        for kernel in kernels()
        if dtype_name in kernel.dtypes and (only is None or kernel.name in only)
    ]
    for kernel in available:
        if kernel.store not in stored:
            stored[kernel.store] = [kernel.store(weight) for weight in weights]
    for rows in row_counts:
        flop = 2 * rows * out_features * in_features
        if flop > MAX_FLOP:
            continue
        x = torch.randn(rows, in_features).to(dtype)
        turn = copies if flop < 1e9 else min(copies, max(1, int(10e9 / flop)))
        times: dict[str, list[float]] = {k.name: [] for k in available if rows <= k.max_rows}
        for _ in range(rounds):
            for kernel in available:
                if kernel.name not in times:
                    continue
                held = stored[kernel.store]
                kernel.run(x, held[-1])  # oneDNN builds its kernel in the first call with a row count
                start = time.perf_counter()
                for index in range(turn):
                    kernel.run(x, held[index])
                times[kernel.name].append((time.perf_counter() - start) / turn)
        few = rows <= 16
        cells = []
        for name, seconds in times.items():
            taken = min(seconds) if best else statistics.median(seconds)
            cells.append(f"{name} {(weight_bytes if few else flop) / taken / 1e9:6.1f}")
        unit = "GB/s   " if few else "GFLOP/s"
        print(f"{dtype_name:4} {shape:>10} {rows:5} rows  {unit}  " + "   ".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bf16", "f32"])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="OUTxIN")
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--kernels", nargs="+", help="only these, by name")
    parser.add_argument("--best", action="store_true", help="print the fastest round (for a busy machine)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, {torch.backends.cpu.get_cpu_capability()}")
    with torch.inference_mode():
        for dtype_name in args.dtypes:
            for shape in args.shapes:
                measure(shape, dtype_name, args.rows, args.rounds, args.kernels, args.best)


if __name__ == "__main__":
    main()
