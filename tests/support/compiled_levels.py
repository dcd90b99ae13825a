"""Kernels of one level, for tests that run at each. One that this CPU runs and that was not built is a failure."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cpu_levels import has_compiler, knows, runs

from llama.kernels import native
from llama.kernels.levels import here
from llama.kernels.native import Kernels
from llama.kernels.table import ROWS, Case, Row

__all__ = ["LEVELS", "implemented", "opened", "rows_of", "use"]

LEVELS = {level.name: level for level in here()}


def opened(name: str) -> Kernels:
    """The kernels of a level; a skip where this CPU does not run it."""
    if name not in LEVELS:
        pytest.skip("kernels are compiled for x86-64 and aarch64 only")
    if not runs(name):
        pytest.skip(f"this CPU does not run {name}")
    kernels = native.open_kernels(LEVELS[name])
    if kernels is None and not has_compiler():
        pytest.skip("no C compiler")
    if kernels is None and not knows(name):
        pytest.skip(f"the C compiler does not know {name}")
    assert kernels is not None, f"the kernels of {name}, which this CPU runs, were not built"
    return kernels


def use(name: str, patch: pytest.MonkeyPatch) -> None:
    """Let all kernels be those of a level, or none at all."""
    kernels = None if name == "plain" else opened(name)
    patch.setattr(native, "kernels", lambda: kernels)


def rows_of(operator: str, dtypes: list[torch.dtype]) -> list[Any]:
    """Parameters (row of the table, level or "plain", dtype): each row with each dtype that it can take."""
    found = []
    for row in ROWS[operator]:
        for level in (LEVELS or ["none"]) if row.name == "csrc" else ["plain"]:
            for dtype in dtypes:
                if row.name == "csrc" or row.why_not(Case(dtype, "cpu", None)) is None:
                    name = f"{row.name}-{level}-{str(dtype).removeprefix('torch.')}"
                    found.append(pytest.param(row, level, dtype, id=name))
    return found


def implemented(row: Row, level: str, case: Case) -> Any:
    """A row's implementation, with the kernels of a level."""
    case = case._replace(kernels=None if level == "plain" else opened(level))
    assert row.why_not(case) is None
    return row.implement(case)
