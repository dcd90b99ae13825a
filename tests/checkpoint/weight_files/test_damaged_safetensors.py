"""Laws of a damaged safetensors file: refused with its numbers before anything is mapped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from damage import NORM, WQ, parts, put, refuse, weights_in

from llama import Llama
from llama.errors import (
    CheckpointFormatError,
    CheckpointMismatchError,
)


def test_the_helpers_write_what_is_sound(copy: Any) -> None:
    path = weights_in(copy("one"))
    put(path, *parts(path))
    safetensors.torch.load_file(path)
    Llama.build(path.parent, None, 64, 2, 1, device="cpu").close()


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, 2000])
def test_truncated_in_the_header(copy: Any, size: int) -> None:
    path = weights_in(copy("one"))
    length = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    path.write_bytes(path.read_bytes()[:size])
    words = [f"{size:,} bytes", f"{length:,}", "truncated"] if size >= 8 else [f"{size} bytes"]
    refuse(path.parent, CheckpointFormatError, path, *words, "download it again")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99999])
def test_truncated_in_the_data(copy: Any, share: float) -> None:
    path = weights_in(copy("one"))
    header, data = parts(path)
    left = int(share * len(data))
    put(path, header, data[:left])
    refuse(
        path.parent, CheckpointFormatError, path, "truncated", f"{left:,} bytes", f"{len(data):,} announced"
    )


def test_bytes_behind_the_data(copy: Any) -> None:
    path = weights_in(copy("one"))
    header, data = parts(path)
    put(path, header, data + b"12345")
    refuse(path.parent, CheckpointFormatError, path, "longer", f"{len(data) + 5:,}", f"{len(data):,}")


@pytest.mark.parametrize("there", [False, True])
def test_a_header_of_100_mb(copy: Any, there: bool) -> None:
    """Whether it is only announced, or really there (in a sparse file)."""
    path = weights_in(copy("one"))
    path.write_bytes((100_000_000).to_bytes(8, "little") + b"{}")
    if there:
        os.truncate(path, 100_000_008)
    refuse(path.parent, CheckpointFormatError, path, "100,000,000 bytes", "header")


@pytest.mark.parametrize("length", [2**63 - 1, 2**64 - 1])
def test_a_header_of_absurd_length(copy: Any, length: int) -> None:
    path = weights_in(copy("one"))
    path.write_bytes(length.to_bytes(8, "little") + b"{}" * 100)
    refuse(path.parent, CheckpointFormatError, path, f"{length:,} bytes")


def shift(header: dict[str, Any], name: str, start: int, stop: int) -> dict[str, Any]:
    a, b = header[name]["data_offsets"]
    return {**header, name: {**header[name], "data_offsets": [a + start, b + stop]}}


@pytest.mark.parametrize(
    ("start", "stop", "word"),
    [
        (-4, -4, "begins at byte"),
        (4, 4, "begins at byte"),
        (0, 4, "hold"),
        (0, -4, "hold"),
        (10**12, 10**12, ""),
    ],
)
def test_offsets_that_overlap_or_leave_holes(copy: Any, start: int, stop: int, word: str) -> None:
    path = weights_in(copy("one"))
    header, data = parts(path)
    put(path, shift(header, WQ, start, stop), data)
    refuse(path.parent, CheckpointFormatError, path, "not sound", word)


def test_a_hole_between_two_tensors(copy: Any) -> None:
    path = weights_in(copy("one"))
    header, data = parts(path)
    at = header[WQ]["data_offsets"][0]
    for name in [name for name in header if name != "__metadata__"]:
        if header[name]["data_offsets"][0] >= at:
            header = shift(header, name, 4, 4)
    put(path, header, data[:at] + bytes(4) + data[at:])
    refuse(path.parent, CheckpointFormatError, path, "not sound", "begins at byte")


def test_two_tensors_in_one_place(copy: Any) -> None:
    path = weights_in(copy("one"))
    header, data = parts(path)
    up = WQ.replace("q_proj", "o_proj")
    header[up]["data_offsets"] = header[WQ]["data_offsets"]
    put(path, header, data)
    refuse(path.parent, CheckpointFormatError, path, "not sound", "begins at byte")


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        "F32",
        {},
        {"dtype": "F32", "shape": [64, 64]},
        {"dtype": "F32", "shape": 64, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [64, 64], "data_offsets": [0]},
        {"dtype": "F32", "shape": [64, 64], "data_offsets": [0, 1, 2]},
        {"dtype": "F32", "shape": [-64, -64], "data_offsets": [0, 16384]},
        {"dtype": "F32", "shape": [64.0, 64], "data_offsets": [0, 16384]},
        {"dtype": "F32", "shape": [True, 64], "data_offsets": [0, 256]},
        {"dtype": "F32", "shape": ["64", 64], "data_offsets": [0, 16384]},
        {"dtype": "F32", "shape": [64, 64], "data_offsets": [-16384, 0]},
        {"dtype": "F32", "shape": [64, 64], "data_offsets": ["0", "16384"]},
        {"dtype": ["F32"], "shape": [64, 64], "data_offsets": [0, 16384]},
        {"dtype": {"a": 1}, "shape": [64, 64], "data_offsets": [0, 16384]},
    ],
    ids=str,
)
def test_entries_that_are_none(copy: Any, entry: object) -> None:
    path = weights_in(copy("one"))
    header, data = parts(path)
    put(path, {**header, WQ: entry}, data)
    refuse(path.parent, CheckpointFormatError, path, "not sound", WQ)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F4", "C64", "f32", ""])
def test_unknown_dtypes_are_named(copy: Any, dtype: str) -> None:
    path = weights_in(copy("one"))
    header, data = parts(path)
    put(path, {**header, WQ: {**header[WQ], "dtype": dtype}}, data)
    refuse(path.parent, CheckpointFormatError, path, WQ, repr(dtype), "BF16")


def test_a_known_dtype_that_is_no_weights_is_a_mismatch(copy: Any) -> None:
    path = weights_in(copy("one"))
    header, data = parts(path)
    put(path, {**header, WQ: {**header[WQ], "dtype": "I32"}}, data)
    refuse(path.parent, CheckpointMismatchError, WQ, "torch.int32", "torch.float32")


def test_a_duplicate_key_in_the_header(copy: Any) -> None:
    path = weights_in(copy("one"))
    header, data = parts(path)
    text = json.dumps(header)
    put(path, text[:-1] + f', "{NORM}": {json.dumps(header[NORM])}}}', data)
    refuse(path.parent, CheckpointFormatError, path, NORM, "twice")


@pytest.mark.parametrize(
    ("header", "word"),
    [
        (b"{" * 5000, "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"\xff\xfe\x00\x01", "JSON"),
        (b"[1, 2]", "list"),
        (b"null", "None"),
        (b"    ", "JSON"),
    ],
    ids=["braces", "deep", "bytes", "list", "null", "blank"],
)
def test_headers_that_are_no_objects(copy: Any, header: bytes, word: str) -> None:
    path = weights_in(copy("one"))
    put(path, header, parts(path)[1])
    refuse(path.parent, CheckpointFormatError, path, word)


@pytest.mark.parametrize(
    "start",
    [
        b"<!DOCTYPE html><html>" + b"Access denied" * 100,
        b"\n  <html>" + b"x" * 500,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 13476837376\n",
    ],
    ids=["page", "page behind blanks", "pointer"],
)
@pytest.mark.parametrize("name", ["one", "many"])
def test_a_page_or_a_pointer_in_place_of_weights(copy: Any, start: bytes, name: str) -> None:
    path = sorted(copy(name).glob("*.safetensors"))[-1]
    path.write_bytes(start)
    refuse(path.parent, CheckpointFormatError, path, "web page", "Git LFS", f"{len(start)} bytes")


def test_a_header_that_leaves_the_data_unaligned_is_sound(copy: Any, originals: Path) -> None:
    """The format does not ask for a multiple of 8."""
    path = weights_in(copy("one"))
    header, data = parts(path)
    expected = safetensors.torch.load_file(originals / "one" / "model.safetensors")
    from llama.checkpoint.weight_files.safetensors import open_safetensors

    for blanks in range(9):
        put(path, json.dumps(header) + " " * blanks, data)
        found = open_safetensors(path)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
