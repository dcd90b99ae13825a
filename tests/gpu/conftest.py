"""The device of the tests of this room: the machine's own GPU, else a pretended one (tests/support/pretended_gpu)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from once import once, shared_folder
from pretended_gpu import Gpu, compile_guard, has_cpp_compiler, load_guard, pretended
from real_gpu import real

# Makes the device be there, and counts: `with there(devices=2) as gpu`.
There = Callable[..., AbstractContextManager[Gpu]]


@pytest.fixture(scope="session")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of the guard, compiled once for a test run, and loaded. For laws of the pretended GPU itself."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is here, and need not be pretended")
    if not has_cpp_compiler():
        pytest.skip("no C++ compiler")
    folder = shared_folder(tmp_path_factory, "pretended_gpu")
    library = Path(once(folder / "guard.json", lambda: str(compile_guard(folder))))
    load_guard(library)
    return library


@pytest.fixture(scope="session")
def there(request: pytest.FixtureRequest) -> There:
    """A device to test on: a real one where there is one."""
    if torch.cuda.is_available():
        return real
    request.getfixturevalue("guard")
    return pretended


@pytest.fixture
def gpu(there: There) -> Iterator[Gpu]:
    """Two devices, of real ones as many as there are, on which nothing was counted yet."""
    with there(devices=2) as gpu:
        yield gpu


@pytest.fixture
def two_gpus(gpu: Gpu) -> Gpu:
    """For laws that need a second device."""
    if gpu.devices < 2:
        pytest.skip("only one GPU is here")
    return gpu
