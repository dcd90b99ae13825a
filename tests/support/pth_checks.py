"""Checks of how a .pth is read: as torch reads it, or refused without taking memory."""

from __future__ import annotations

import tracemalloc
import warnings
from pathlib import Path

import pytest
import torch

from llama.checkpoint.weight_files.pth import open_pth
from llama.errors import CheckpointFormatError

BYTES = bytes(range(64))


def spread(x: torch.Tensor) -> list[int]:
    """The strides that mean something."""
    return [stride for extent, stride in zip(x.shape, x.stride(), strict=True) if extent > 1]


def agrees_with_torch(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of protocol 3
        theirs = torch.load(path, weights_only=True, mmap=True)
    mine = open_pth(path)
    assert list(mine) == list(theirs)
    for name, value in theirs.items():
        assert mine[name].dtype == value.dtype
        assert mine[name].shape == value.shape
        assert torch.equal(mine[name], value), name
        if value.numel():
            assert spread(mine[name]) == spread(value)
            assert mine.file.holds(mine[name])


def refuse(path: Path, *words: str) -> None:
    """In one printable line of bounded length, with no more memory than the file suggests."""
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointFormatError) as caught:
            open_pth(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"
    assert message.isprintable()
    assert len(message) < 1000
    assert peak < (1 << 20) + 100 * path.stat().st_size
