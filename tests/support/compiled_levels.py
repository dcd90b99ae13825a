"""Kernels of one level, for tests that run at each. One that this CPU runs and that was not built is a failure."""

from __future__ import annotations

import pytest
from cpu_levels import has_compiler, knows, runs

from llama.kernels import compiled, native
from llama.kernels.levels import here

__all__ = ["LEVELS", "use"]

LEVELS = {level.name: level for level in here()}


def use(name: str, patch: pytest.MonkeyPatch) -> None:
    """Let all kernels be those of a level, or none at all."""
    if name == "plain":
        patch.setattr(native, "kernels", lambda: None)
        return
    if name not in LEVELS:
        pytest.skip("kernels are compiled for x86-64 and aarch64 only")
    if not runs(name):
        pytest.skip(f"this CPU does not run {name}")
    library = compiled.open_level(LEVELS[name])
    if library is None and not has_compiler():
        pytest.skip("no C compiler")
    if library is None and not knows(name):
        pytest.skip(f"the C compiler does not know {name}")
    assert library is not None, f"the kernels of {name}, which this CPU runs, were not built"
    patch.setattr(native, "kernels", lambda: library)
