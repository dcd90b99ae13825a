"""Which levels of the kernels this CPU runs, by what Linux says of it: without the package under test.

Run as a program, it prints them: for the log of a test run.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path

__all__ = [
    "CROSS",
    "NEEDS",
    "compiler",
    "has_compiler",
    "has_cross_compiler",
    "has_simde",
    "knows",
    "machine_of",
    "runs",
]

CROSS = "aarch64-linux-gnu-gcc"
_V3 = {"avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "movbe"}
_V4 = _V3 | {f"avx512{part}" for part in ("f", "bw", "cd", "dq", "vl")}
# Flags of /proc/cpuinfo.
NEEDS = {
    "x86-64-v3": _V3,
    "x86-64-v3-vnni": _V3 | {"avx_vnni"},
    "x86-64-v4": _V4,
    "x86-64-v4-vnni": _V4 | {"avx512_vnni"},
    "x86-64-v4-bf16": _V4 | {"avx512_vnni", "avx512_bf16"},
    "armv8-a": {"asimd"},
    "armv8-dotprod": {"asimd", "asimddp"},
    "armv8-bf16": {"asimd", "asimddp", "bf16", "i8mm"},
}
# The option of each level that compilers learned last.
_NEWEST = {
    "x86-64-v3": "-mavx2",
    "x86-64-v3-vnni": "-mavxvnni",
    "x86-64-v4": "-mavx512vl",
    "x86-64-v4-vnni": "-mavx512vnni",
    "x86-64-v4-bf16": "-mavx512bf16",
    "armv8-a": "-march=armv8-a",
    "armv8-dotprod": "-march=armv8.2-a+dotprod",
    "armv8-bf16": "-march=armv8.2-a+dotprod+bf16+i8mm",
}


def runs(level: str) -> bool:
    """Whether this CPU has what a level needs. Elsewhere than on Linux, only what every such machine has."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return level == "armv8-a" and platform.machine() == "arm64"
    text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    lines = (line.partition(":") for line in text.splitlines())
    flags = next((value for name, _, value in lines if name.strip() in ("flags", "Features")), "")
    return NEEDS[level] <= set(flags.split())


def compiler() -> str:
    """The C compiler that setup.py uses."""
    return (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]


@cache
def _compiles(command: str, *options: str) -> bool:
    """Whether a compiler is there and takes these options, for an empty file."""
    whole = [command, *options, "-fsyntax-only", "-x", "c", os.devnull]
    there = shutil.which(command) is not None
    return there and subprocess.run(whole, capture_output=True, check=False).returncode == 0


def has_compiler() -> bool:
    """Whether kernels can be compiled here; those that were not are then a failure."""
    return _compiles(compiler(), "-include", "string.h", "-include", "dlfcn.h")


@cache
def has_cross_compiler() -> bool:
    """Whether programs for aarch64 can be compiled, with its system's headers: two packages of Debian."""
    return _compiles(CROSS, "-include", "stdio.h")


@cache
def has_simde() -> bool:
    """Whether the compiler finds SIMDe, and one that has the instruction for pairs of bfloat16."""
    return _compiles(compiler(), "-include", "simde/x86/avx512/dpbf16.h")


@cache
def knows(level: str) -> bool:
    """Whether the compiler knows the instructions of a level: GCC before 10 none of bfloat16, before 11 no AVX-VNNI."""
    return _compiles(compiler(), _NEWEST[level])


def machine_of(level: str) -> str:
    """As `platform.machine()` calls it on Linux."""
    return "x86_64" if level.startswith("x86") else "aarch64"


def _main() -> None:
    here = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    names = [level for level in NEEDS if machine_of(level) == here]
    others = ", ".join(level for level in names if not runs(level)) or "none"
    print(f"levels of the kernels that this CPU runs: {', '.join(filter(runs, names)) or 'none'}")
    print(f"levels of {here} that it does not run, so that no test ran them: {others}")
    emulated = has_cross_compiler() and shutil.which("qemu-aarch64")
    if here != "aarch64":
        print(
            f"levels of aarch64: {'emulated by qemu' if emulated else 'not run: no cross compiler, or no qemu'}"
        )


if __name__ == "__main__":
    _main()
