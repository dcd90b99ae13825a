"""A kernel that this CPU runs and that was not built fails the tests; it does not skip them."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from llama.kernels import native


def _cpu_runs_kernels() -> bool:
    """By what Linux says of the CPU, so that the answer does not depend on what was built."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    return " avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")


@pytest.fixture(scope="session")
def compiled() -> None:
    """The compiled kernels are there."""
    if not _cpu_runs_kernels():
        pytest.skip("this CPU has no AVX512-BF16")
    assert native.available(), f"the kernels of this CPU were not built: {native.why_missing()}"


@pytest.fixture(params=["compiled", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with the compiled kernels, and with what other CPUs run instead."""
    if request.param == "compiled":
        request.getfixturevalue("compiled")
    else:
        monkeypatch.setattr(native, "kernels", lambda: None)
    return str(request.param)
