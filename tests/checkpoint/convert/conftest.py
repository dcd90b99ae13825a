"""Folders that tests of `convert` begin with."""

from __future__ import annotations

from pathlib import Path

import pytest
from conversions import TINY, TINY_WEIGHTS, meta_folder, to, with_everything
from tiny_models import save_checkpoint
from tiny_tokenizers import tiny_model_path


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    """A checkpoint in two shards."""
    return meta_folder(tmp_path / "source" / "meta", 2)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A smaller one."""
    return save_checkpoint(tmp_path / "source" / "meta", TINY, TINY_WEIGHTS, tiny_model_path(), 2)


@pytest.fixture
def target(tmp_path: Path, tiny: Path) -> Path:
    """A folder that a conversion of `tiny` wrote, in one shard."""
    to("meta", tiny, tmp_path / "out" / "target", shards=1)
    return tmp_path / "out" / "target"


@pytest.fixture
def hf(tmp_path: Path, tiny: Path) -> Path:
    """`tiny` in Hugging Face's layout, with every file that a conversion copies."""
    to("hf", tiny, tmp_path / "source" / "hf")
    return with_everything(tmp_path / "source" / "hf")
