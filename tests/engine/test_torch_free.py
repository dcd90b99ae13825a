"""Text, requests and scheduling work without torch: these modules import where it is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import llama

_IMPORT_WITHOUT_TORCH = """
import importlib, sys, types
sys.modules["torch"] = sys.modules["fairscale"] = None  # an import of these raises
for name, folder in (("llama", sys.argv[1]), ("llama.engine", sys.argv[1] + "/engine")):
    package = types.ModuleType(name)  # stands for the package, whose __init__ imports the whole runtime
    package.__path__ = [folder]
    sys.modules[name] = package
importlib.import_module(sys.argv[2])
"""


_TORCH_FREE = ["errors", "values", "tokenizer", "detokenizer", "prompts", "sampling"]
_TORCH_FREE += [
    f"engine.{name}"
    for name in (
        "request",
        "sequence",
        "scheduler",
        "limits",
        "prefix_cache",
        "cache_manager",
        "speculation",
        "output",
        "request_state",
    )
]


@pytest.mark.parametrize("module", _TORCH_FREE)
def test_imports_no_torch(module):
    folder = str(Path(llama.__file__).parent)
    command = [sys.executable, "-c", _IMPORT_WITHOUT_TORCH, folder, f"llama.{module}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
