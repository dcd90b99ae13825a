"""The pretended GPU for the tests of this room: see tests/support/pretended_gpu."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from once import once, shared_folder
from pretended_gpu import Gpu, compile_guard, has_cpp_compiler, load_guard, pretended


@pytest.fixture(scope="session")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of the guard, compiled once for a test run, and loaded."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is here, and need not be pretended")
    if not has_cpp_compiler():
        pytest.skip("no C++ compiler")
    folder = shared_folder(tmp_path_factory, "pretended_gpu")
    library = Path(once(folder / "guard.json", lambda: str(compile_guard(folder))))
    load_guard(library)
    return library


@pytest.fixture
def gpu(guard: Path) -> Iterator[Gpu]:
    """Two devices, on which nothing was counted yet."""
    with pretended(devices=2) as gpu:
        yield gpu
