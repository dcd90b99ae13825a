"""Laws of safetensors files: a valid file with a header of any length is read as the package of that name reads
it, and the package reads what is written here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from llama.checkpoint.weight_files.safetensors import SafetensorsWriter, open_safetensors
from llama.errors import CheckpointFormatError

# Lengths whose first bytes spell "<", alone or behind what a page may begin with, and "version ".
TEXT = [*(60 + 256 * k for k in range(4)), 15_392, 15_392 + 65_536, 0x3C0A, 0x3C0D, 0x3C09, 0x3C2020, 0x6576]
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]


def assert_read_alike(path: Path) -> None:
    ours, theirs = open_safetensors(path), safetensors.torch.load_file(path)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor.shape, tensor.dtype) == (theirs[name].shape, theirs[name].dtype)
        assert torch.equal(tensor, theirs[name])


@given(
    length=st.one_of(st.sampled_from(TEXT), st.integers(200, 3000), st.integers(200, 300_000)),
    dtype=st.sampled_from(DTYPES),
)
@example(length=60 + 256, dtype=torch.float32)
@example(length=15_392, dtype=torch.bfloat16)
def test_headers_of_any_length_are_read(
    tmp_path_factory: pytest.TempPathFactory, length: int, dtype: torch.dtype
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    raw = safetensors.torch.save({"a": torch.arange(6).view(2, 3).to(dtype), "b": torch.ones(1).to(dtype)})
    size = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + size].rstrip()
    header += b" " * (length - len(header))
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + size :])
    assert_read_alike(path)


@pytest.mark.parametrize("length", [15_392, 15_392 + 65_536])
def test_what_is_written_with_such_a_header_is_read(tmp_path: Path, length: int) -> None:
    """A conversion writes headers of multiples of 8: one of these is every 8,192nd."""

    def written(padding: int) -> Path:
        path = tmp_path / f"{padding}.safetensors"
        with SafetensorsWriter(path, {"x" * padding: (2, 3), "b": (1,)}, torch.float32) as writer:
            writer.write([torch.arange(6.0)])
            writer.write([torch.ones(1)])
            writer.close()
        return path

    one = int.from_bytes(written(1).read_bytes()[:8], "little")
    path = written(1 + length - one)
    assert int.from_bytes(path.read_bytes()[:8], "little") == length
    assert_read_alike(path)


@pytest.mark.parametrize(
    "start",
    [b"<!DOCTYPE html><html>", b" \n<html><body>", b"<?xml version='1.0'?>", b"version https://git-lfs"],
)
def test_a_page_is_still_called_one(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "model.safetensors"
    for text in (start, start[:6], start + b"x" * 100_000):
        path.write_bytes(text)
        word = "a web page" if text != b"versio" else "not a safetensors file"
        with pytest.raises(CheckpointFormatError, match=rf"^{path} is {word}"):
            open_safetensors(path)


GOOD = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ({"__metadata__": {"a": 1}, "x": GOOD}, "__metadata__"),
        ({"__metadata__": [], "x": GOOD}, "__metadata__"),
        ({"x": {**GOOD, "shape": [True, 2]}}, "'x' has shape"),
        ({"x": {**GOOD, "shape": "2"}}, "'x' has shape"),
        ('{"x":{"dtype":"U8","shape":[2],"data_offsets":[-0,2]}}', "offsets -0.0"),
        ('{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2],"y":NaN}}', "NaN"),
        ('{"\\ud800":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', "not JSON"),
    ],
    ids=str,
)
def test_what_the_package_does_not_read_is_refused(tmp_path: Path, header: Any, word: str) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"ab")
    with pytest.raises(safetensors.SafetensorError):
        safetensors.torch.load_file(path)
    with pytest.raises(CheckpointFormatError, match=word):
        open_safetensors(path)
