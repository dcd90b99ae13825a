"""Laws of a rank's device: "auto" takes the best that is there, and each rank of a machine takes its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llama.distributed import world
from llama.distributed.devices import choose_device, threads_per_rank
from llama.errors import ConfigError, LlamaError, ParallelismError

CPU = torch.device("cpu")


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes this a machine with so many CUDA devices, and mps or not."""

    def devices(cuda: int = 0, mps: bool = False, **environment: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))

    return devices


def test_auto_takes_cuda_then_mps_then_cpu(devices: Any) -> None:
    devices()
    assert choose_device("auto") == CPU
    devices(mps=True)
    assert choose_device("auto").type == "mps"
    devices(cuda=2, mps=True)
    assert choose_device("auto") == torch.device("cuda", 0)
    # Several ranks cannot share mps.
    devices(mps=True, WORLD_SIZE=2, LOCAL_WORLD_SIZE=2)
    assert choose_device("auto") == CPU


def test_a_rank_takes_the_device_of_its_local_rank(devices: Any) -> None:
    """On several machines that is not its rank."""
    devices(cuda=4, RANK=6, LOCAL_RANK=2, WORLD_SIZE=8, LOCAL_WORLD_SIZE=4)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cpu") == CPU


def test_devices_that_are_not_there_are_refused(devices: Any) -> None:
    cases: list[tuple[dict[str, Any], str, type[LlamaError], str]] = [
        ({}, "cuda", ConfigError, "no CUDA device"),
        ({}, "mps", ConfigError, "does not have it"),
        ({}, "gpu", ConfigError, "'gpu'"),
        ({}, "", ConfigError, "device ''"),
        ({}, "meta", ConfigError, "meta"),
        ({"cuda": 2}, "cuda:2", ConfigError, "cuda:2.*2"),
        ({"cuda": 2, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 4}, "auto", ParallelismError, "4 ranks.*2 CUDA"),
        ({"mps": True, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}, "mps", ParallelismError, "2 ranks"),
    ]
    for machine, name, kind, words in cases:
        devices(**machine)
        with pytest.raises(kind, match=words):
            choose_device(name)


@pytest.mark.parametrize(
    ("variables", "current", "cores", "expected"),
    [
        ({}, 8, 8, 8),  # plain python: torch's own choice
        ({"OMP_NUM_THREADS": "1"}, 1, 8, 1),  # the user's, without a launcher
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "1"}, 8, 8, 8),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "1", "OMP_NUM_THREADS": "1"}, 1, 8, 1),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}, 1, 8, 4),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "3", "OMP_NUM_THREADS": "1"}, 1, 8, 2),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "8", "OMP_NUM_THREADS": "1"}, 1, 2, 1),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "3"}, 3, 8, 3),
        # set_num_threads in the host program
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}, 2, 8, 2),
    ],
)
def test_only_torchrun_s_own_number_of_threads_is_overridden(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], current: int, cores: int, expected: int
) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert threads_per_rank(current, cores) == expected


@pytest.mark.parametrize(
    ("local", "ranks", "expected"),
    [
        ("4", range(0, 4), True),
        ("2", range(2, 4), True),
        ("2", range(0, 4), False),
        ("3", range(2, 4), False),  # in the middle of two machines
        ("1", range(0, 2), False),  # two launchers, be it on one machine
        ("", range(0, 2), False),  # a launcher that does not say
    ],
)
def test_ranks_are_on_one_machine_if_one_launcher_started_them(
    monkeypatch: pytest.MonkeyPatch, local: str, ranks: range, expected: bool
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert world._on_one_machine(ranks) == expected
