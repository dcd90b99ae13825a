"""A server of a tiny CodeLlama-7b, and download.sh pointed at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from download_script import FETCHERS, Script
from download_server import Server, checkpoint, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(checkpoint("7b")) as state:
        yield state


@pytest.fixture(params=FETCHERS)
def script(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Script:
    """For what may depend on the fetcher: the test runs once with each."""
    return Script(server, tmp_path / "weights folder", request.param)


@pytest.fixture
def once(server: Server, tmp_path: Path) -> Script:
    """For what does not depend on the fetcher."""
    return Script(server, tmp_path / "weights folder", FETCHERS[0])
