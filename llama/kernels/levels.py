"""The levels of a CPU for which csrc/ is compiled: what each needs, and the compiler's flags.

setup.py reads this file by itself, before anything is installed: it imports neither torch nor the package.
"""

from __future__ import annotations

import enum
import platform
import sys
from typing import NamedTuple

__all__ = ["ABI", "BASE", "COMMON_FLAGS", "LEVELS", "Feature", "Level", "here"]

# As in csrc/abi.h. Raise both with every change of a symbol, a signature, a structure or a layout.
ABI = 13
# The library for any CPU: csrc/features.c and csrc/ranks.c. Those of the levels have all the rest.
BASE = "_cpu"


class Feature(enum.IntFlag):
    """Bits of `llama_features` in csrc/features.c, in its order."""

    AVX2 = enum.auto()
    AVX512 = enum.auto()
    AVX_VNNI = enum.auto()
    AVX512_VNNI = enum.auto()
    AVX512_BF16 = enum.auto()
    NEON = enum.auto()
    DOTPROD = enum.auto()
    BF16_I8MM = enum.auto()


class Level(NamedTuple):
    """What a library needs of a CPU, and how it is compiled."""

    name: str
    machine: str
    needs: Feature
    flags: tuple[str, ...]

    @property
    def library(self) -> str:
        """Name of the compiled file, without what Python's extensions end in."""
        return f"{BASE}_{self.name.replace('-', '_')}"


# Explicit fma only: whether the compiler fuses by itself would depend on the level.
COMMON_FLAGS = ("-O3", "-g0", "-std=gnu11", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno")
# Not -march=x86-64-v3, which compilers before GCC 11 do not know.
_V3 = ("-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt", "-mmovbe", "-mpopcnt")
_V4 = (*_V3, "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl")
_V4_NEEDS = Feature.AVX2 | Feature.AVX512
_ARM = "aarch64"
_DOTS = Feature.NEON | Feature.DOTPROD

# Of each machine the best first.
LEVELS = (
    Level(
        "x86-64-v4-bf16",
        "x86_64",
        _V4_NEEDS | Feature.AVX512_VNNI | Feature.AVX512_BF16,
        (*_V4, "-mavx512vnni", "-mavx512bf16"),
    ),
    Level("x86-64-v4-vnni", "x86_64", _V4_NEEDS | Feature.AVX512_VNNI, (*_V4, "-mavx512vnni")),
    Level("x86-64-v4", "x86_64", _V4_NEEDS, _V4),
    Level("x86-64-v3-vnni", "x86_64", Feature.AVX2 | Feature.AVX_VNNI, (*_V3, "-mavxvnni")),
    Level("x86-64-v3", "x86_64", Feature.AVX2, _V3),
    Level("armv8-bf16", _ARM, _DOTS | Feature.BF16_I8MM, ("-march=armv8.2-a+dotprod+bf16+i8mm",)),
    Level("armv8-dotprod", _ARM, _DOTS, ("-march=armv8.2-a+dotprod",)),
    Level("armv8-a", _ARM, Feature.NEON, ("-march=armv8-a",)),
)


def here() -> tuple[Level, ...]:
    """The levels of this kind of machine, best first; none where the sources are not compiled."""
    if sys.platform not in ("linux", "darwin"):
        return ()
    machine = {"AMD64": "x86_64", "arm64": _ARM}.get(platform.machine(), platform.machine())
    return tuple(level for level in LEVELS if level.machine == machine)
