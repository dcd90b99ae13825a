"""Undamaged folders in each layout, and copies of them to damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from damage import VOCAB
from tiny_models import SHAPE, hugging_face_twin, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound folders: `one` (a single safetensors), `many` (several, with index), `meta` (two shards)."""
    place = tmp_path_factory.mktemp("originals")
    model = hugging_face_twin(SHAPE, random_weights(SHAPE, VOCAB))
    model.save_pretrained(place / "one")
    model.save_pretrained(place / "many", max_shard_size="100KB")
    for name in ("one", "many"):
        shutil.copy(tiny_model_path(), place / name / "tokenizer.model")
    save_checkpoint(place / "meta", SHAPE, random_weights(SHAPE, VOCAB), tiny_model_path(), 2)
    return place


@pytest.fixture
def copy(originals: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(originals / name, tmp_path / name))
