"""Order and settings of the whole suite, and the fixtures that several rooms share.

Models are made once: they hold no state between calls.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import gc_later  # noqa: F401 - first, for the imports below
import pytest
import torch
from hypothesis import settings
from skips import Skips
from tiny_llama import GQA, tiny_llama, weights
from tiny_models import save_checkpoint
from tiny_tokenizers import tiny_model_path

from llama.generation import Llama

# Wherever this variable comes from, it has pytest rewrite the asserts of all tests in every worker of every run, four
# seconds each, and every program that a test launches compile the package.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Tiny tensors gain nothing from a second thread, and where the cores are shared with another program
# the threads of a parallel region wait for each other: the suite took three times as long.
torch.set_num_threads(1)

# The same examples in every run: a law that has a counterexample fails always, or not at all.
settings.register_profile("laws", derandomize=True, deadline=None)
settings.load_profile("laws")

# A shell that starts the suite behind its prompt has it ignore Ctrl-C, and so would every program that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Rooms whose every test is slow: they launch ranks, servers and programs. In the order in which they run: the
# longest files first, so that no worker is left with one when the others have ended.
SLOW_ROOMS = ("distributed", "project", "serving", "download")


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: a tenth of the suite is waiting, for silence, for limits of time, for servers."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return len(cores) + 1


def pytest_configure(config: pytest.Config) -> None:
    """Print every skip, and fail the run for one that is not allowed."""
    config.pluginmanager.register(Skips())


@pytest.hookimpl(tryfirst=True)  # before `-m "not slow"` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow rooms, and let files with slow tests run last.

    Whole files, because workers are given files (`--dist loadfile`): what a file launches is launched once.
    """
    here = Path(__file__).parent
    last: dict[Path, int] = {}
    for item in items:
        room = item.path.relative_to(here).parts[0]
        if room in SLOW_ROOMS:
            item.add_marker("slow")
        if item.get_closest_marker("slow"):
            last[item.path] = SLOW_ROOMS.index(room) if room in SLOW_ROOMS else -1
    items.sort(key=lambda item: last.get(item.path, -2))


def pytest_collection_finish() -> None:
    """What is imported by now stays, so the garbage collector need not look at it again: an eighth of the time."""
    gc.enable()
    gc.collect()
    gc.freeze()


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
