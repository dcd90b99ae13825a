"""Prints what this Python and its first GPU are, as JSON: in its own process, so that the GPU is free again.

python -m gpu.probe [folder]      with a folder: a GPU is pretended, and its guard is compiled there
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["NEEDED"]

# Modules that a run imports, beside torch, numpy and transformers -> the projects that have them.
NEEDED = {
    "fairscale": ("fairscale",),
    "sentencepiece": ("sentencepiece",),
    "fire": ("fire", "termcolor"),
    "google.protobuf": ("protobuf",),
    "hypothesis": ("hypothesis", "sortedcontainers"),
    "psutil": ("psutil",),
    "pytest": ("pytest", "iniconfig", "packaging", "pluggy", "pygments"),
}


def _has(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def _version(project: str) -> str | None:
    try:
        return importlib.metadata.version(project)
    except importlib.metadata.PackageNotFoundError:
        return None


def look(pretend_in: Path | None) -> dict[str, Any]:
    """Of this process: `machine` names what figures depend on, the rest is for what comes before them."""
    found: dict[str, Any] = {
        "lacking": [module for module in NEEDED if not _has(module)],
        "torch": None,
        "transformers": _version("transformers"),
        "machine": None,
    }
    if not _has("torch"):
        return found
    import torch

    found["torch"] = torch.__version__
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or torch.version.hip or "none",
        "transformers": found["transformers"],
    }
    if pretend_in is not None:
        from pretended_gpu import compile_guard, has_cpp_compiler

        if has_cpp_compiler():
            found["guard"] = str(compile_guard(pretend_in))
            found["machine"] = {"device": "pretended GPU", "pretended": True, **versions}
    elif torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["machine"] = {
            "device": properties.name,
            "GiB": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            **versions,
        }
    return found


if __name__ == "__main__":
    print(json.dumps(look(Path(sys.argv[1]) if len(sys.argv) > 1 else None)))
