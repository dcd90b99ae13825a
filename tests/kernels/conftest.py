"""Kernels at every level that this CPU runs."""

from __future__ import annotations

import pytest
from compiled_levels import LEVELS, use


@pytest.fixture(params=list(LEVELS) or ["none"])
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with the kernels of each level."""
    use(request.param, monkeypatch)
    return str(request.param)


@pytest.fixture(params=[*(LEVELS or ["none"]), "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with the kernels of each level, and with what there is without them."""
    use(request.param, monkeypatch)
    return str(request.param)
