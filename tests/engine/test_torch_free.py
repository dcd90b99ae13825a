"""Text, requests and scheduling work without torch: these modules import where it is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import llama

ROOT = Path(llama.__file__).parent
_IMPORT_WITHOUT_TORCH = """
import importlib, sys
sys.modules["torch"] = sys.modules["fairscale"] = None  # an import of these raises
for module in sys.argv[1:]:
    importlib.import_module(module)
"""
_TEXT = ("errors", "values", "tokenizer", "detokenizer", "prompts", "sampling")
_WITH_TORCH = {"__init__", "engine", "runner", "model_watch"}


def test_text_requests_and_scheduling_import_no_torch() -> None:
    engine = sorted(path.stem for path in (ROOT / "engine").glob("*.py"))
    assert set(engine) >= {*_WITH_TORCH, "scheduler", "cache_manager", "request"}
    modules = [f"llama.{name}" for name in _TEXT]
    modules += [f"llama.engine.{name}" for name in engine if name not in _WITH_TORCH]
    command = [sys.executable, "-c", _IMPORT_WITHOUT_TORCH, *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
