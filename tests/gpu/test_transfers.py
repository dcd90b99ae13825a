"""Laws of the buffers between host and CUDA."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pretended_gpu import Gpu

from llama.engine.transfers import Transfers

DEVICE = torch.device("cuda", 0)


def some(size: int, seed: int = 0) -> list[np.ndarray]:
    """Arrays of each dtype, an empty one among them, and one that is not contiguous."""
    random = np.random.default_rng(seed)
    return [
        random.integers(-(2**60), 2**60, size),
        random.random((size, 5)),
        np.empty((0, 3), dtype=np.float32),
        random.random((size + 1, 3)).astype(np.float32),
        random.integers(0, 2**40, (size, 2)).T,
    ]


def same(found: list[torch.Tensor], expected: list[np.ndarray]) -> bool:
    return all(
        np.array_equal(x.cpu().numpy(), y) and x.cpu().numpy().dtype == y.dtype
        for x, y in zip(found, expected, strict=True)
    )


def test_arrays_arrive_as_they_are_in_one_copy(gpu: Gpu) -> None:
    transfers = Transfers(DEVICE)
    for size in (1, 3, 2000, 7, 100_000, 3):  # the buffers grow meanwhile
        arrays = some(size)
        gpu.forget()
        found = transfers.send(arrays)
        assert dict(gpu.counts) == {"copy in": 1}
        assert same(found, arrays)
        assert {x.device for x in found} == {DEVICE}


def test_arrays_of_the_same_sizes_lie_where_those_before_lay(gpu: Gpu) -> None:
    transfers = Transfers(DEVICE)
    transfers.send(some(500))
    first = transfers.send(some(20, seed=1))
    second = transfers.send(some(20, seed=2))
    assert [x.data_ptr() for x in first] == [x.data_ptr() for x in second]
    assert same(first, some(20, seed=2))


@pytest.mark.usefixtures("guard")  # a real device may be done sooner
def test_a_pinned_buffer_is_written_again_only_when_its_copy_is_done(gpu: Gpu) -> None:
    """Where nothing comes back the host waits for the copy before the last one; else for nothing."""
    transfers = Transfers(DEVICE)
    for seed in range(5):
        transfers.send(some(9, seed))  # an error here, if a copy under way were disturbed
    torch.cuda.synchronize()
    assert gpu.counts["sync"] == 3 + 1
    gpu.forget()
    for seed in range(5):
        transfers.send(some(9, seed))
        transfers.fetch(torch.zeros(1, 3, device=DEVICE))
    assert gpu.counts["sync"] == 5


@pytest.mark.parametrize("rows", [1, 4000, 2])
def test_rows_come_back_behind_all_work(gpu: Gpu, rows: int) -> None:
    transfers = Transfers(DEVICE)
    sent = torch.arange(rows * 5, dtype=torch.float32).view(rows, 5)
    there = sent.to(DEVICE)
    gpu.forget()
    assert transfers.fetch(there + 1) == (sent + 1).tolist()
    assert dict(gpu.counts) == {"launch": 1, "copy out": 1, "sync": 1}
