"""A folder in Meta's layout."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "m", SHAPE, random_weights(SHAPE, 420), tiny_model_path(), 2)
