"""Kernels of one level, for tests that run at each. One that this CPU runs and that was not built is a failure.

Tests run at the levels `AT`. Each other level is skipped once, by tests/kernels/test_levels.py, and not by every test.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from cpu_levels import has_compiler, knows, runs

from llama.kernels import native
from llama.kernels.levels import here
from llama.kernels.native import Kernels
from llama.kernels.table import ROWS, Case, Row

__all__ = ["AT", "LEVELS", "implemented", "opened", "rows_of", "use"]

LEVELS = {level.name: level for level in here()}


def _lacking(name: str) -> str | None:
    """What this machine lacks for the kernels of a level: a reason to skip. None: they must be there."""
    if name not in LEVELS:
        return "kernels are compiled for x86-64 and aarch64 only"
    if not runs(name):
        return f"this CPU does not run {name}"
    if native.open_kernels(LEVELS[name]) is not None:
        return None
    if not has_compiler():
        return "no C compiler"
    return None if knows(name) else f"the C compiler does not know {name}"


# Where there is none, tests are skipped at the lowest.
AT = [name for name in LEVELS if _lacking(name) is None] or list(LEVELS)[-1:] or ["none"]


def opened(name: str) -> Kernels:
    """The kernels of a level; a skip where this machine lacks something for them."""
    reason = _lacking(name)
    if reason is not None:
        pytest.skip(reason)
    kernels = native.open_kernels(LEVELS[name])
    assert kernels is not None, f"the kernels of {name}, which this CPU runs, were not built"
    return kernels


def use(name: str, patch: pytest.MonkeyPatch) -> None:
    """Let all kernels be those of a level, or none at all."""
    kernels = None if name == "plain" else opened(name)
    patch.setattr(native, "kernels", lambda: kernels)


def rows_of(operator: str, formats: Sequence[torch.dtype | str]) -> list[Any]:
    """Parameters (row of the table, level or "plain", format): each row with each dtype or format that it can take."""
    found = []
    for row in ROWS[operator]:
        for level in AT if row.name == "csrc" else ["plain"]:
            for form in formats:
                if row.name == "csrc" or row.why_not(Case(form, "cpu", None)) is None:
                    name = f"{row.name}-{level}-{str(form).removeprefix('torch.')}"
                    found.append(pytest.param(row, level, form, id=name))
    return found


def implemented(row: Row, level: str, case: Case) -> Any:
    """A row's implementation, with the kernels of a level."""
    case = case._replace(kernels=None if level == "plain" else opened(level))
    assert row.why_not(case) is None
    return row.implement(case)
