"""Two halves of a module's own fixture `served`: a server, and what the library said before it served."""

from __future__ import annotations

from typing import Any

import pytest
from http_service import Served


@pytest.fixture(scope="module")
def server(served: tuple[Served, Any]) -> Served:
    return served[0]


@pytest.fixture(scope="module")
def expected(served: tuple[Served, Any]) -> Any:
    return served[1]
