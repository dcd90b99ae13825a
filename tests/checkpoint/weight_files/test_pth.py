"""Laws of reading .pth files: what torch.save writes is read as torch reads it, but without unpickling."""

from __future__ import annotations

import collections
import io
import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from pth_checks import BYTES, agrees_with_torch
from pth_forge import (
    Entry,
    ends,
    header,
    state_dict,
    storage,
    tensor,
    write,
)

from llama.checkpoint import open_checkpoint
from llama.checkpoint.weight_files import pth as reading
from llama.checkpoint.weight_files.output_file import raw_bytes
from llama.checkpoint.weight_files.pth import PthWriter, open_pth

DTYPES = (
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
)


def random_tensor(draw: random.Random, made: list[torch.Tensor]) -> torch.Tensor:
    """Of any dtype; often a view, often of a storage that another tensor has too."""
    if made and draw.random() < 0.3:
        found = draw.choice(made)
    else:
        shape = [draw.choice((0, 1, 1, 2, 3, 5, 8)) for _ in range(draw.randrange(4))]
        found = torch.randint(0, 100, shape).to(draw.choice(DTYPES))
    for _ in range(draw.randrange(3)):
        if found.dim() >= 2 and draw.random() < 0.5:
            found = found.transpose(0, draw.randrange(found.dim()))
        elif found.dim() and draw.random() < 0.7:
            axis = draw.randrange(found.dim())
            start = draw.randrange(found.shape[axis] + 1)
            found = found.narrow(axis, start, draw.randrange(found.shape[axis] - start + 1))
        elif found.dim():
            found = found[:: draw.choice((1, 2, 3))]
    return found


def random_state(draw: random.Random) -> Any:
    made: list[torch.Tensor] = []
    for _ in range(draw.randrange(12)):
        made.append(random_tensor(draw, made))
    names = [f"layers.{i}.w" if draw.random() < 0.9 else f"größe {i}" for i in range(len(made))]
    values = [
        torch.nn.Parameter(value, requires_grad=draw.random() < 0.5)
        if value.is_floating_point() and draw.random() < 0.3
        else value
        for value in made
    ]
    state = dict(zip(names, values, strict=True))
    if draw.random() < 0.5:
        return state
    ordered = collections.OrderedDict(state)
    if draw.random() < 0.5:
        versions = {"": {"version": 1}, "a": {"version": None, "local": True, "more": [1, 2.5, -3, 2**40]}}
        ordered._metadata = collections.OrderedDict(versions)
    return ordered


def save(draw: random.Random, state: Any, path: Path) -> None:
    way = draw.randrange(4)
    if way == 0:
        torch.save(state, path)
    elif way == 1:
        torch.save(state, path, pickle_protocol=3)
    elif way == 2:  # into a file that has no name
        buffer = io.BytesIO()
        torch.save(state, buffer)
        path.write_bytes(buffer.getvalue())
    else:
        had = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(state, path)
        finally:
            torch.serialization.set_crc32_options(had)


def spread(x: torch.Tensor) -> list[int]:
    """The strides that mean something."""
    return [stride for extent, stride in zip(x.shape, x.stride(), strict=True) if extent > 1]


@pytest.mark.parametrize("block", range(4))
def test_any_state_dict_is_read_as_torch_reads_it(tmp_path: Path, block: int) -> None:
    for seed in range(block * 60, block * 60 + 60):
        draw = random.Random(seed)
        save(draw, random_state(draw), tmp_path / "any.pth")
        agrees_with_torch(tmp_path / "any.pth")


def test_sizes_in_all_forms_of_integers(tmp_path: Path) -> None:
    """Of one byte, two, four, and more."""
    whole = torch.arange(70_000, dtype=torch.int32)
    parts = {str(n): whole[n : n + 300] for n in (0, 255, 256, 65_535, 65_536)}
    torch.save(parts, tmp_path / "a.pth")
    agrees_with_torch(tmp_path / "a.pth")


def test_what_is_written_here_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    shapes = {"a": (3, 5), "b": (7,), "c": (2, 1)}
    with PthWriter(tmp_path / "a.pth", shapes, torch.bfloat16) as writer:
        for shape in shapes.values():
            writer.write([torch.randn(shape).bfloat16()])
        writer.close()
    agrees_with_torch(tmp_path / "a.pth")


def test_a_file_made_by_hand_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    """What the tests below change is sound before."""
    path = write(tmp_path / "a.pth", state_dict({"w": tensor()}), {"0": BYTES})
    agrees_with_torch(path)
    assert open_pth(path)["w"].view(-1).view(torch.uint8).tolist() == list(BYTES)


def test_records_behind_4_gib(tmp_path: Path) -> None:
    """Sizes and offsets of 64 bits; the file is a hole but for its ends."""
    path = tmp_path / "a.pth"
    count = (4 << 30) // 4 + 10
    large = storage("0", count)
    pickled = state_dict({"large": tensor((count,), (1,), 0, large), "w": tensor(stored=storage("1"))})
    first, second = Entry("a/data.pkl", pickled), Entry("a/data/1", BYTES)
    version = Entry("a/version", b"3\n")
    full, length = 0xFFFFFFFF, 4 * count
    wide = struct.pack("<2H2Q", 1, 16, length, length)
    hole = Entry("a/data/0", b"", {"packed": full, "size": full, "crc": 7, "extra": wide})
    with path.open("wb") as file:
        file.write(header(first, 0, "local") + pickled)
        directory = header(first, 0, "central") + header(version, file.tell(), "central")
        file.write(header(version, 0, "local") + version.content)
        third = struct.pack("<2H3Q", 1, 24, length, length, file.tell())  # all three of its numbers
        hole.central = hole.local | {"offset": full, "extra": third}
        directory += header(hole, file.tell(), "central")
        file.write(header(hole, 0, "local"))
        file.seek(length, os.SEEK_CUR)
        second.central = {"offset": full, "extra": struct.pack("<2HQ", 1, 8, file.tell())}
        directory += header(second, 0, "central")
        file.write(header(second, 0, "local") + BYTES)
        file.write(directory + ends(4, len(directory), file.tell()))
    found = open_pth(path)
    assert found["w"].view(-1).view(torch.uint8).tolist() == list(BYTES)
    assert found["large"].shape == (count,)
    assert torch.equal(found["w"], torch.load(path, weights_only=True, mmap=True)["w"])


def test_weights_in_any_order_of_memory_load(folder: Path) -> None:
    """Columns first, every other element, one storage for all: as long as no two places are one."""
    weights = {name: value.clone() for name, value in open_pth(folder / "consolidated.00.pth").items()}
    path = folder / "consolidated.00.pth"
    every = {
        name: value.t().contiguous().t() if value.dim() == 2 else value.repeat_interleave(2)[::2]
        for name, value in weights.items()
    }
    torch.save(every, path)
    assert any(not value.is_contiguous() for value in open_pth(path).values())
    checkpoint = open_checkpoint(folder)
    for name, stored_in, value in checkpoint.stored():
        if stored_in == path:
            assert torch.equal(value, weights[name])


def test_strides_that_mean_nothing_do_no_harm(tmp_path: Path) -> None:
    """A dimension of size 1 may have any stride; torch then cannot view the tensor as bytes."""
    path = write(
        tmp_path / "a.pth", state_dict({"a": tensor((16, 1), (1, 0)), "b": tensor((1,), (0,))}), {"0": BYTES}
    )
    agrees_with_torch(path)
    for value in open_pth(path).values():
        assert raw_bytes(value) == BYTES[: value.nbytes]


def test_torch_load_is_not_called(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor an unpickler: both do what the file says before anybody can look."""

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the pickle was run")

    monkeypatch.setattr(torch, "load", never)
    monkeypatch.setattr(reading.pickle, "loads", never)
    monkeypatch.setattr(reading.pickle, "Unpickler", never)
    open_checkpoint(folder)
