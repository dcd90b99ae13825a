"""The sandboxes of this machine that shut a program off; `limits`, which does not, has tests of its own."""

from __future__ import annotations

import sys

import pytest
from sandboxes import can_make_namespaces, has_bubblewrap

from llama.evaluation.sandbox import Sandbox, open_sandbox


@pytest.fixture(scope="session", params=["bubblewrap", "unshare"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    if sys.platform != "linux" or not can_make_namespaces():
        pytest.skip("this user may not make the namespaces of a sandbox")
    if request.param == "bubblewrap" and not has_bubblewrap():
        pytest.skip("bubblewrap 0.7 or newer is not on this machine")
    return open_sandbox(request.param)
