"""The sandbox of tests that judge programs; those of the sandboxes themselves have a fixture of their own."""

from __future__ import annotations

import pytest
from program_verdicts import best_sandbox

from llama.evaluation.sandbox import Sandbox


@pytest.fixture(scope="session")
def sandbox() -> Sandbox:
    """See `best_sandbox`."""
    return best_sandbox()
