"""Tests and measures the package on this machine's GPU, part by part; `make gpu` runs it.

    make gpu                               all parts, until LIMIT; a further call does the rest
    make gpu PARTS="ceilings decode-7b"    these alone
    make gpu PRETEND=1                     the same program on a pretended GPU, with tiny models

Exit codes: 0 no part failed; 1 one did; 2 the call cannot be done as it was given; 3 no GPU; 130 interrupted. (make
turns each but 0 into 2, and prints it.)
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .driver import INTERRUPTED, Call, run_parts
from .libraries import LibrariesError, install
from .parts import PARTS, UnknownPartError, chosen
from .results import OutError, Results, identity

ROOT = Path(__file__).resolve().parents[2]
WHEELS = ROOT / "build" / "gpu-wheels"
REFUSED, NO_GPU = 2, 3
_TORCH = (2, 11)


class RefusedError(Exception):
    """The call cannot be done; the message says why."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("make gpu", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--parts", default="", help=f"of {', '.join(part.name for part in PARTS)}; by default all"
    )
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of the results")
    parser.add_argument(
        "--limit", type=float, default=540, help="seconds of this call; what is left waits for the next"
    )
    parser.add_argument("--pretend", action="store_true", help="on a pretended GPU: no figure means anything")
    return parser


def environment(site: Path) -> dict[str, str]:
    """Of the parts: the checkout comes first, what this Python lacks from `site`."""
    paths = [str(ROOT / "benchmarks"), str(ROOT), str(ROOT / "tests" / "support"), str(site)]
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def probed(env: dict[str, str], pretend_in: Path | None) -> dict[str, Any]:
    """What probe.py prints. Raises RefusedError."""
    command = [sys.executable, "-m", "gpu.probe", *([str(pretend_in)] if pretend_in else [])]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise RefusedError(f"torch cannot be used by {sys.executable}:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def check_torch(found: dict[str, Any]) -> None:
    """Refuse a Python without the libraries that no folder of wheels can hold."""
    torch, wanted = found["torch"], ".".join(map(str, _TORCH))
    if torch is None or tuple(map(int, torch.split(".")[:2])) < _TORCH:
        has = "no torch" if torch is None else f"torch {torch}"
        raise RefusedError(f"{sys.executable} has {has}; torch {wanted} or newer is needed: pass PYTHON=...")
    if found["transformers"] is None:
        raise RefusedError(
            f"{sys.executable} has no transformers, which is the oracle and the peer: pass PYTHON=..."
        )


def compile_kernels(env: dict[str, str]) -> str:
    """Compile the package's kernels for this CPU into the checkout, if that can be done -> what to say of it."""
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "no C compiler: the package runs without its kernels for CPUs"
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    options: dict[str, Any] = {"cwd": ROOT, "env": env, "capture_output": True, "stdin": subprocess.DEVNULL}
    try:
        done = subprocess.run(command, timeout=120, check=False, **options)
    except subprocess.TimeoutExpired:
        return "compiling took over 120 s: the package runs without its kernels for CPUs"
    return "" if done.returncode == 0 else "setup.py failed: the package runs without its kernels for CPUs"


def call(options: argparse.Namespace, work: Path, started: float) -> int:
    """Check what was given and what is there, and run the parts -> the exit code."""
    parts = chosen(options.parts)
    if not options.limit > 0:
        raise RefusedError(f"LIMIT={options.limit:g}; it must be a number of seconds above 0")
    site = work / "site"
    env = environment(site)
    found = probed(env, work if options.pretend else None)
    check_torch(found)
    if found["machine"] is None:
        pretended = "there is no C++ compiler, which the pretended GPU needs"
        print(f"no GPU: {pretended if options.pretend else 'torch finds no CUDA device'}", file=sys.stderr)
        return NO_GPU
    results = Results(options.out.resolve())
    if found["lacking"]:
        install(found["lacking"], WHEELS, site)
    if not options.pretend and (said := compile_kernels(env)):
        print(said, flush=True)
    run = results.run(identity(ROOT, results.folder), found["machine"])
    print(f"{run.machine['device']}, torch {run.machine['torch']}, code {run.tree}", flush=True)
    extra = ("--guard", found["guard"]) if options.pretend else ()
    return run_parts(parts, results, run, Call(options.limit, started, work, env, extra))


def _ended(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(words: list[str] | None = None) -> int:
    """The program -> its exit code."""
    started = time.monotonic()
    options = _parser().parse_args(words)
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _ended)
        with tempfile.TemporaryDirectory(prefix="llama-gpu-") as work:
            return call(options, Path(work), started)
    except (RefusedError, UnknownPartError, OutError, LibrariesError) as error:
        print(error, file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
