"""What several files share: checkpoints, the texts of a single rank, and scenarios that need no torchrun."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from once import once, shared_folder
from rank_script import NAN_ID, SHARDS, texts
from ranks import run_forked
from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama import Llama


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds s1, s2 and s4, the same weights in so many shards; nan, whose embedding has a row of NaN; and wide, whose
    heads have 32 numbers."""
    folder = shared_folder(tmp_path_factory, "ranks")
    once(folder / "saved", lambda: _save(folder))
    return folder


def _save(folder: Path) -> None:
    vocab = tiny_tokenizer().n_words
    assert vocab % 4 == 0, f"four ranks cannot split {vocab} pieces"
    weights = random_weights(SHAPE, vocab)
    for shards in SHARDS:
        save_checkpoint(folder / f"s{shards}", SHAPE, weights, tiny_model_path(), shards)
    wide = {**SHAPE, "dim": 128, "n_heads": 4}
    save_checkpoint(folder / "wide", wide, random_weights(wide, vocab), tiny_model_path())
    weights["tok_embeddings.weight"][NAN_ID] = torch.nan
    save_checkpoint(folder / "nan", SHAPE, weights, tiny_model_path(), 2)


@pytest.fixture(scope="session")
def one(folder: Path) -> dict[str, Any]:
    """The texts of a single rank, which runs in this very process."""
    llama = Llama.build(folder / "s1", None, 96, 8, device="cpu", dtype="float32")
    return json.loads(json.dumps(texts(llama)))


@pytest.fixture(scope="session")
def forked(folder: Path) -> dict[str, dict[str, Any]]:
    """Scenarios of rank_script.py that need no torchrun -> their reports, as rank_forks.py writes them."""
    return once(folder / "forked.json", lambda: _fork(folder))


def _fork(folder: Path) -> dict[str, dict[str, Any]]:
    ranks = {"examples": 1, "one_fails": 2, "one_exits": 2, "one_refused": 2}
    jobs = [(size, "rank_script.py", folder, scenario) for scenario, size in ranks.items()]
    found = dict(zip(ranks, run_forked(folder / "reports", *jobs), strict=True))
    for scenario, report in found.items():
        if ranks[scenario] > 1:
            report["failed"] = (folder / f"{scenario}.failed").stat().st_mtime
    return found
