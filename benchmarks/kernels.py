"""The compiled kernels at each level that this CPU runs, against what its memory and its arithmetic units give.

    python benchmarks/kernels.py
    python benchmarks/kernels.py --levels x86-64-v3 --shapes 2048x768,32016x768 --rounds 9

One row of x times a weight should take as long as reading the weight; many rows as long as their multiply-adds. So
two more things are measured in turn with the products, by roof.c, compiled with the level's flags (needs a C
compiler): a plain read of the same bytes, by as many threads, each in four streams; and the rate of independent
multiply-adds in registers: of bfloat16 dots where the level multiplies in them, and of integers for quantized weights,
which have random codes here. Several copies of a weight are read,
three times a cache of 32 MB in all, as a model's step does. Each level runs in a process of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fire
import torch
from machine import cpu
from peers import parts, seconds, spread

from llama.distributed.layers import ColumnParallelLinear
from llama.distributed.parallel import Parallel
from llama.kernels import compiled, native
from llama.kernels.quantized import FORMATS, Form

_SOURCE = Path(__file__).with_name("roof.c")
_WORKING_SET = 96 << 20  # bytes of weights that a pass reads
# A turn takes some tenths of a second: in the first hundredth both threads of a bound may share a core.
_PASSES = 40
_NAMES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
# Inputs of a scale where the format leaves it open.
_GROUP = 128


class Roof:
    """roof.c on some threads."""

    def __init__(self, flags: tuple[str, ...], threads: int) -> None:
        compiler = shlex.split(os.environ.get("CC", "cc"))
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/roof.so"
            command = [
                *compiler,
                "-O3",
                "-ffp-contract=fast",
                "-shared",
                "-fPIC",
                *flags,
                str(_SOURCE),
                "-o",
                path,
            ]
            subprocess.run(command, check=True)
            self._library = ctypes.CDLL(path)
        self._library.roof_read.argtypes = [ctypes.c_void_p, ctypes.c_long]
        for function in (self._library.roof_fma, self._library.roof_dots):
            function.argtypes = [ctypes.c_long, ctypes.c_void_p]
            function.restype = ctypes.c_double
        self._library.roof_integers.argtypes = [ctypes.c_long, ctypes.c_void_p, ctypes.c_int]
        self._library.roof_integers.restype = ctypes.c_double
        self._pool, self._threads = ThreadPoolExecutor(threads), threads

    def read(self, weights: list[torch.Tensor]) -> None:
        """Read each of them, every thread its part."""

        def part(thread: int) -> None:
            for weight in weights:
                size = weight.nbytes // self._threads
                self._library.roof_read(weight.data_ptr() + thread * size, size)

        list(self._pool.map(part, range(self._threads)))

    def flops(self, kind: str, rounds: int = 30_000_000) -> float:
        """Operations per second of all threads, a product and a sum being two: of a dtype, or a quantized format."""
        integers = kind in FORMATS
        function = self._library.roof_dots if kind == "bfloat16" else self._library.roof_fma
        values = torch.tensor([[1, 1]] * self._threads, dtype=torch.int32)
        if not integers:
            values = torch.tensor([[0.5, 1.0]] * self._threads)
        done: list[float] = []

        def part(thread: int) -> float:
            if integers:
                bits = FORMATS[kind].bits
                return float(self._library.roof_integers(rounds, values[thread].data_ptr(), bits))
            return float(function(rounds, values[thread].data_ptr()))

        taken = seconds(lambda: done.extend(self._pool.map(part, range(self._threads))))
        return sum(done) / taken


class Quantized:
    """A weight of random codes, scales and zeros."""

    def __init__(self, kind: str, out: int, columns: int) -> None:
        self._form = Form(kind, columns, FORMATS[kind].group or _GROUP)
        codes, scales, zeros = native.quantized_shapes(self._form, out)
        self._codes, self._scales = torch.randint(256, codes, dtype=torch.uint8), torch.rand(scales).half()
        self._zeros = None if zeros is None else torch.randint(16, zeros, dtype=torch.uint8)
        self._matrix = native.quantized_matrix(
            self._form, (out, columns), self._codes, self._scales, self._zeros
        )
        # Read as one piece by the bound; scales and zeros are some hundredths of it.
        self.weight = self._codes.flatten()
        parts = (self._codes, self._scales, self._zeros)
        self.nbytes = sum(part.nbytes for part in parts if part is not None)
        self._kernels = native.kernels()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        assert self._kernels is not None
        return self._kernels.linear(x, self._matrix)


def _plain(kind: str, out: int, columns: int) -> ColumnParallelLinear:
    layer = ColumnParallelLinear(columns, out, parallel=Parallel())
    layer.assign(torch.randn(out, columns).to(getattr(torch, kind)))
    return layer


def measure(roof: Roof, shape: str, kind: str, rows: int, rounds: int) -> dict[str, list[float]]:
    """GB/s of one row's product and of a plain read, GFLOP/s of `rows` rows' and of multiply-adds, of each round."""
    out_features, in_features = (int(part) for part in shape.split("x"))
    dtype = torch.float32 if kind in FORMATS else getattr(torch, kind)
    bits = FORMATS[kind].bits if kind in FORMATS else 8 * dtype.itemsize
    size = out_features * in_features * bits // 8
    make: Callable[[str, int, int], Any] = Quantized if kind in FORMATS else _plain
    layers = [make(kind, out_features, in_features) for _ in range(max(2, -(-_WORKING_SET // size)))]
    codes = [layer.weight.detach() for layer in layers]
    one, many = (torch.randn(count, in_features).to(dtype) for count in (1, rows))
    few = layers[:1] * max(1, int(60e9 / (2 * rows * out_features * in_features)))

    def run(x: torch.Tensor, among: list[Any]) -> None:
        for layer in among:
            layer(x)

    taken = sum(getattr(layer, "nbytes", code.nbytes) for layer, code in zip(layers, codes, strict=True))
    read, bound = (_PASSES * count / 1e9 for count in (taken, sum(code.nbytes for code in codes)))
    operations = 2 * rows * out_features * in_features * len(few) / 1e9
    turns: dict[str, Callable[[], float]] = {
        "one": lambda: read / seconds(lambda: run(one, layers * _PASSES)),
        "read": lambda: bound / seconds(lambda: roof.read(codes * _PASSES)),
        "many": lambda: operations / seconds(lambda: run(many, few)),
        "peak": lambda: roof.flops(kind) / 1e9,
    }
    found: dict[str, list[float]] = {name: [] for name in turns}
    for i in range(rounds + 1):
        for name, turn in turns.items():
            value = turn()
            if i:
                found[name].append(value)
    return found


def worker(level: str, shapes: list[str], dtypes: list[str], rows: int, rounds: int, threads: int) -> None:
    """Print a line of JSON for each shape and dtype; in a process that runs at the level."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    best = compiled.best()
    assert best is not None
    assert best.name == level
    roof = Roof(best.flags, threads)
    with torch.inference_mode():
        for shape in shapes:
            for dtype in dtypes:
                found: dict[str, Any] = {"shape": shape, "dtype": dtype}
                print(json.dumps(found | measure(roof, shape, dtype, rows, rounds)), flush=True)


def report(level: str, rows: int, found: list[dict[str, Any]]) -> None:
    """Print the table of a level: medians, and the ratios of each round."""
    head = ["", "one row, GB/s", "plain read", "of it", f"{rows} rows, GFLOP/s", "peak", "of it"]
    print(f"\n### {level}, {cpu()}\n\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for each in found:
        cells = [f"{_NAMES.get(each['dtype'], each['dtype'])}, {each['shape']}"]
        for name, bound in (("one", "read"), ("many", "peak")):
            cells += [f"{statistics.median(each[key]):.1f}" for key in (name, bound)]
            cells.append(spread([a / b for a, b in zip(each[name], each[bound], strict=True)]))
        print("| " + " | ".join(cells) + " |", flush=True)


def main(
    levels: str = "",
    shapes: str = "5632x2048",
    dtypes: str = "float32,float16,bfloat16,int8,int4,int8z,int4z,k4",
    rows: int = 120,
    rounds: int = 5,
    threads: int = 2,
    at: str | None = None,
) -> None:
    """Measure the compiled kernels at each level against a plain read and multiply-adds, and print its table.

    Args:
        levels: as `LLAMA_KERNELS` has them, with commas; all that this CPU runs, if empty.
        shapes: of weights, OUTxIN, with commas.
        dtypes: of float32, float16, bfloat16 and the quantized formats, with commas.
        rows: of x, in the measurement of arithmetic.
        rounds: measured rounds, after one that is dropped.
        threads: CPU threads.
        at: internal: the level of this process, whose figures are printed as JSON.
    """
    if at is not None:
        worker(at, parts(shapes), parts(dtypes), rows, rounds, threads)
        return
    names = [level.name for level in compiled.runnable() if compiled.open_level(level) is not None]
    for level in parts(levels) if levels else names:
        lists = {"shapes": parts(shapes), "dtypes": parts(dtypes)}
        given = [f"--{name}={','.join(values)}" for name, values in lists.items()]
        given += [f"--rows={rows}", f"--rounds={rounds}", f"--threads={threads}", f"--at={level}"]
        env = os.environ | {compiled.VARIABLE: level}
        done = subprocess.run([sys.executable, __file__, *given], env=env, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"level {level} could not be measured; its error is above")
        report(level, rows, [json.loads(line) for line in done.stdout.splitlines()])


if __name__ == "__main__":
    fire.Fire(main)
