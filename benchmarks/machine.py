"""Which CPU, kernels and peers a benchmark runs with, and how it runs at a lower level of the CPU."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import torch

from llama.kernels import compiled

# With these the libraries of the peers leave out what comes after AVX2: torch, oneDNN (of torch, CTranslate2),
# MKL, CTranslate2. Of llama.cpp such a build is needed (see llama_cpp_peer.py). OpenVINO has no such switch.
_AVX2_ONLY = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "DNNL_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "CT2_FORCE_CPU_ISA": "AVX2",
}


def at_level(level: str) -> None:
    """Start this program again so that its kernels, and at x86-64-v3 the peers too, stay at a level.

    Args:
        level: as `LLAMA_KERNELS` has it; nothing happens where it is empty.
    """
    wanted = {compiled.VARIABLE: level} if level else {}
    if level == "x86-64-v3":
        wanted |= _AVX2_ONLY
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        # The libraries read them while they load, and some were loaded with this file.
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)


def avx2_only() -> bool:
    """Whether the peers are held to AVX2 as well."""
    return all(os.environ.get(name) == value for name, value in _AVX2_ONLY.items())


def cpu() -> str:
    """The CPU's name, family and model, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "model name" not in facts:
        return platform.machine()
    return f"{facts['model name']} (family {facts['cpu family']}, model {facts['model']})"


def describe(threads: int) -> None:
    """Print the CPU, the level of our kernels, and torch."""
    level = compiled.best()
    others = "AVX2 code only, of the peers too" if avx2_only() else torch.backends.cpu.get_cpu_capability()
    print(
        f"{cpu()}, {threads} threads; our kernels: {level.name if level else 'none'};"
        f" torch {torch.__version__}, {others}",
        flush=True,
    )
