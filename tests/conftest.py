"""Order and settings of the whole suite. The fixtures that several rooms share are in support/shared_fixtures.py."""

from __future__ import annotations

import gc
import os
import signal
import sys
from functools import cache
from pathlib import Path

import gc_later  # noqa: F401 - first, for all imports that follow
import pytest
from skips import Skips

# Wherever this variable comes from, it has pytest rewrite the asserts of all tests in every worker of every run, four
# seconds each, and every program that a test launches compile the package.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell that starts the suite behind its prompt has it ignore Ctrl-C, and so would every program that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Rooms whose every test is slow: they launch ranks, servers and programs.
SLOW_ROOMS = ("distributed", "project", "serving", "download")


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_auto_num_workers() -> int:
    """Two more than there are cores: a quarter of the suite is waiting, for silence, limits of time, servers."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return len(cores) + 2


def pytest_configure(config: pytest.Config) -> None:
    """Print every skip, and fail the run for one that is not allowed."""
    config.pluginmanager.register(Skips())
    if not _only_distributes(config):
        config.pluginmanager.import_plugin("shared_fixtures")


def _only_distributes(config: pytest.Config) -> bool:
    """Whether this process leaves the tests to workers, which need not wait until it has imported torch as they do."""
    is_worker = hasattr(config, "workerinput")
    return not is_worker and config.getoption("dist", "no") != "no" and not config.getoption("collectonly")


@pytest.hookimpl(tryfirst=True)  # before `-m "not slow"` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow rooms, and spread the files with slow tests, which wait a lot, among those that compute.

    All at once they would leave cores idle. The last files are quick, so that no worker is left with a long one when
    the others have ended. Whole files, because workers are given files (`--dist loadfile`): what a file launches is
    launched once.
    """
    here = Path(__file__).parent
    slow: dict[Path, bool] = {}
    in_slow_room = cache(lambda path: path.relative_to(here).parts[0] in SLOW_ROOMS)
    for item in items:
        if in_slow_room(item.path):
            item.add_marker("slow")
        slow[item.path] = slow.get(item.path, False) or item.get_closest_marker("slow") is not None
    place: dict[Path, float] = {}
    for kind, share in ((True, 0.9), (False, 1.0)):
        files = [path for path in slow if slow[path] is kind]
        place |= {path: share * number / len(files) for number, path in enumerate(files)}
    items.sort(key=lambda item: place[item.path])


def pytest_collection_finish() -> None:
    """What is imported by now stays, so the garbage collector need not look at it again: an eighth of the time.

    Nor once before: the garbage among it is little, and to look for it takes each worker a quarter of a second.
    """
    gc.enable()
    gc.freeze()
