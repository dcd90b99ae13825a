"""A device guard for "cuda" that does nothing.

A torch without CUDA refuses every tensor that claims to be there, since nobody can make its device current. The guard
says that it always is. It stays loaded until the process ends; alone, it changes nothing else.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch

__all__ = ["compile_guard", "has_cpp_compiler", "load_guard"]

_SOURCE = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace c10::impl { C10_REGISTER_GUARD_IMPL(CUDA, NoOpDeviceGuardImpl<DeviceType::CUDA>) }
"""


def _compiler() -> list[str]:
    """The C++ compiler, as setuptools chooses it."""
    return shlex.split(os.environ.get("CXX", "")) or ["c++"]


def has_cpp_compiler() -> bool:
    """Whether there is a C++ compiler with its standard library."""
    command = [*_compiler(), "-fsyntax-only", "-include", "memory", "-x", "c++", os.devnull]
    there = shutil.which(command[0]) is not None
    return there and subprocess.run(command, capture_output=True, check=False).returncode == 0


def compile_guard(folder: Path) -> Path:
    """Compile the guard for this torch (two seconds) -> the library, which `load_guard` takes."""
    root = Path(torch.__file__).parent
    source, library = folder / "guard.cpp", folder / "guard.so"
    source.write_text(_SOURCE)
    abi = int(torch.compiled_with_cxx11_abi())
    options = ["-std=c++20", "-O0", "-shared", "-fPIC", f"-D_GLIBCXX_USE_CXX11_ABI={abi}"]
    where = [f"-I{root / 'include'}", f"-L{root / 'lib'}", "-lc10"]
    command = [*_compiler(), *options, str(source), *where, "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library


@cache  # a second guard for one device is an error
def load_guard(library: Path) -> None:
    """Load the guard into this process."""
    ctypes.CDLL(str(library))
