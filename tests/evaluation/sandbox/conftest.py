"""The sandboxes of this machine that shut a program off; `limits`, which does not, has tests of its own."""

from __future__ import annotations

import sys

import pytest
from sandboxes import can_make_namespaces, has_bubblewrap

from llama.evaluation.sandbox import Sandbox, open_sandbox


@pytest.fixture(scope="session", params=["bubblewrap", "unshare"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return _open(request.param)


@pytest.fixture(scope="session", params=["bubblewrap", "unshare", "limits"])
def every_sandbox(request: pytest.FixtureRequest) -> Sandbox:
    """Also the one that is none: it ends what it started like the others."""
    return _open(request.param)


def _open(level: str) -> Sandbox:
    if level != "limits" and (sys.platform != "linux" or not can_make_namespaces()):
        pytest.skip("this user may not make the namespaces of a sandbox")
    if level == "bubblewrap" and not has_bubblewrap():
        pytest.skip("bubblewrap 0.7 or newer is not on this machine")
    return open_sandbox(level)
