"""The sandbox that `codellama eval` would take here; the programs of these tests are our own, so `limits` will do."""

from __future__ import annotations

import pytest

from llama.errors import EvaluationError
from llama.evaluation.sandbox import Sandbox, open_sandbox


@pytest.fixture(scope="session")
def sandbox() -> Sandbox:
    try:
        return open_sandbox()
    except EvaluationError:
        return open_sandbox("limits")
