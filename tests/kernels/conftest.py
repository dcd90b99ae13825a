"""Kernels at every level that this machine has."""

from __future__ import annotations

import pytest
from compiled_levels import AT, use


@pytest.fixture(params=AT)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with the kernels of each level."""
    use(request.param, monkeypatch)
    return str(request.param)


@pytest.fixture(params=[*AT, "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with the kernels of each level, and with what there is without them."""
    use(request.param, monkeypatch)
    return str(request.param)
