"""Law: weights reach a GPU bit for bit, and no copy of them is pageable or waited for."""

from __future__ import annotations

import math

import pytest
import torch

from llama import Llama, loading
from llama.checkpoint.upload import Upload
from llama.kernels import flash_trial


@pytest.mark.parametrize("nbytes", [1, 24, 100, 1 << 20])
def test_tensors_of_all_sizes_arrive_whole(gpu, nbytes):
    """Also in buffers that a tensor does not fill, fills exactly, or outgrows."""
    upload, expected, found = Upload(torch.device("cuda", 0), nbytes), [], []
    for i, (shape, dtype) in enumerate(
        (((5, 3), torch.float32), ((7,), torch.bfloat16), ((1, 9), torch.float64), ((12, 2), torch.float16))
    ):
        source = torch.arange(i, i + math.prod(shape)).view(shape).to(dtype)
        target = torch.full(shape, -1, dtype=dtype, device="cuda")

        def read(block: torch.Tensor, first: int, last: int, source: torch.Tensor = source) -> None:
            block.copy_(source[first:last])

        upload.fill(target, read)
        expected.append(source)
        found.append(target)
    upload.finish()
    for value, target in zip(expected, found, strict=True):
        assert torch.equal(target.cpu(), value)


def test_a_reader_that_fails_leaves_an_upload_that_works(gpu):
    upload, target = Upload(torch.device("cuda", 0), 16), torch.zeros(9, 2, device="cuda")

    def fail(block: torch.Tensor, first: int, last: int) -> None:
        if first:
            raise OSError("the file is gone")
        block.fill_(1)

    with pytest.raises(OSError, match="is gone"):
        upload.fill(target, fail)
    upload.fill(target, lambda block, first, last: block.fill_(2))
    upload.finish()
    assert torch.equal(target.cpu(), torch.full((9, 2), 2.0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_copies_from_pinned_memory_alone(gpu, tiny_checkpoint, dtype, monkeypatch):
    """Also where a weight takes several buffers, and is converted on its way."""
    monkeypatch.setattr(Upload.__init__, "__defaults__", (1000,))
    # Two that run steps.
    monkeypatch.setattr(loading, "leaving_room", lambda plan, *rest: plan)
    monkeypatch.setattr(flash_trial, "_trial", lambda *case: None)
    llama = Llama.build(tiny_checkpoint, None, 64, 2, device="cuda", dtype=dtype)
    assert gpu.told("pageable") == []
    waits = {(name, at.partition(":")[0]) for kind, name, at in gpu.places if kind == "sync"}
    assert waits == {("Event.synchronize", "checkpoint/upload.py")}
    assert gpu.counts["copy in"] > 2 * len(llama.model.state_dict())
