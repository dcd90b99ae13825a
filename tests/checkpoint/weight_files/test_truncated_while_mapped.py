"""Laws of a file that is truncated while it is mapped: an error before it is read, and never other values."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from llama.checkpoint import base, open_checkpoint
from llama.errors import CheckpointFormatError


def cut(path: Path) -> str:
    """Within its last page: what is gone then reads as zeros, where whole pages would end this process."""
    size = path.stat().st_size
    os.truncate(path, size - 1)
    return f"from {size:,} to {size - 1:,} bytes"


def test_a_file_that_was_cut_is_an_error_before_it_is_read(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    told = cut(folder / "consolidated.01.pth")
    name = "layers.0.attention.wq.weight"
    with pytest.raises(CheckpointFormatError, match=told):
        checkpoint.copy_slice(name, torch.empty(checkpoint.shapes[name]), 0, 1)


def test_a_file_that_is_cut_under_way_is_an_error_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two windows of a tensor, and behind the last."""
    monkeypatch.setattr(base, "_WINDOW", 1000)
    for stop in (0, 1, None):
        checkpoint = open_checkpoint(folder)
        _, path, tensor_ = next(iter(checkpoint.stored()))
        whole = path.read_bytes()
        last = sum(1 for _ in checkpoint.windows(tensor_)) - 1
        at = last if stop is None else stop
        windows = checkpoint.windows(tensor_)
        for _ in range(at + 1):
            next(windows)
        cut(path)
        with pytest.raises(CheckpointFormatError, match="was cut from"):
            next(windows)
        del checkpoint, tensor_, windows
        path.write_bytes(whole)


def test_a_file_that_is_replaced_is_read_as_it_was(folder: Path) -> None:
    """The old one is still mapped, whatever has its name."""
    path = folder / "consolidated.00.pth"
    before = torch.load(path, weights_only=True)["norm.weight"]
    checkpoint = open_checkpoint(folder)
    path.unlink()
    path.write_bytes(b"x")
    found = torch.empty(checkpoint.shapes["norm.weight"])
    checkpoint.copy_slice("norm.weight", found, 0, 1)
    assert torch.equal(found, before)
