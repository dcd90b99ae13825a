"""The program behind `make gpu`, which lives outside the package."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import HANGS

__all__ = ["gpu_program", "until"]

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
_MODULES = ("__main__", "clocks", "driver", "figures", "libraries", "parts", "report", "results")


def gpu_program(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package of the program, with those of its modules that do without torch."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    for name in _MODULES:
        importlib.import_module(f"gpu.{name}")
    return sys.modules["gpu"]


def until(condition: Callable[[], object]) -> None:
    """Wait for it. The bound is a guard against hanging."""
    end = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
