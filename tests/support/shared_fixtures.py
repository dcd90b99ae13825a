"""Settings of torch and hypothesis, and the fixtures that several rooms share: a plugin of pytest.

Models are made once: they hold no state between calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tiny_llama import GQA, tiny_llama, weights
from tiny_models import save_checkpoint
from tiny_tokenizers import tiny_model_path

from llama.generation import Llama

# Tiny tensors gain nothing from a second thread, and where the cores are shared with another program
# the threads of a parallel region wait for each other: the suite took three times as long.
torch.set_num_threads(1)

# The same examples in every run: a law that has a counterexample fails always, or not at all.
settings.register_profile("laws", derandomize=True, deadline=None)
settings.load_profile("laws")


@pytest.fixture(scope="session")
def shared_llama() -> Llama:
    """A Llama with infilling pieces, max_seq_len 128, max_batch_size 4. Use `llama` instead."""
    return tiny_llama()


@pytest.fixture
def llama(shared_llama: Llama) -> Iterator[Llama]:
    """The shared Llama; a test that leaves something in its engine fails."""
    yield shared_llama
    engine = shared_llama.engine
    left = (engine.unfinished, list(engine.scheduler.running), engine.scheduler.waiting)
    for request_id in range(engine._next_id):
        engine.cancel(request_id)
    assert left == (False, [], 0)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Meta's layout: two shards, float32, with the weights of `tiny_llama()`."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    return save_checkpoint(folder, GQA, weights(), tiny_model_path(), shards=2, dtype=torch.float32)
