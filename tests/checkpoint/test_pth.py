"""Laws of .pth files: what torch.save writes is what torch.load gives, and what a stranger wrote costs nothing.

Hostile files are made by hand (pth_forge.py); each is refused before anything is allocated, in one line.
"""

from __future__ import annotations

import collections
import contextlib
import io
import math
import os
import pickle
import random
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pth_forge import (
    Entry,
    archive,
    ends,
    entries_of,
    header,
    number,
    numbers,
    state_dict,
    storage,
    tensor,
    text,
    write,
)
from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path

from llama.checkpoint import base, open_checkpoint
from llama.checkpoint.weight_files import pth as reading
from llama.checkpoint.weight_files.output_file import raw_bytes
from llama.checkpoint.weight_files.pth import PthWriter, open_pth
from llama.errors import CheckpointFormatError

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
BYTES = bytes(range(64))


# ---- what torch.save writes ---------------------------------------------------------------------------


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


# ---- what a stranger writes ---------------------------------------------------------------------------


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


def nested(depth: int) -> bytes:
    """A tuple of two of a tuple of two ...: to hash it takes 2 ** depth steps."""
    return b")" + b"".join(b"q\0h\0\x86" for _ in range(depth))


def unmapped(count: int) -> bytes:
    """A storage of which the file has only 64 bytes."""
    return state_dict({"w": tensor((count,), (1,), stored=storage("0", count))})


HOSTILE: dict[str, tuple[bytes, str]] = {
    "hangs: nested tuples as a key": (b"\x80\2}" + nested(60) + b"K\1s.", "holds a key that is tuple"),
    "a call of bytearray": (b"\x80\2c__builtin__\nbytearray\n" + numbers([2 << 30]) + b"R.", "bytearray"),
    "one value 2e9 times": (state_dict({"w": tensor((2_000_000_000,), (0,))}), "one value for several"),
    "rows that overlap": (state_dict({"w": tensor((4, 4), (3, 1))}), "one value for several"),
    "a storage larger than its record": (unmapped(17), "its record has 64"),
    "a storage of 2e18": (unmapped(2 * 10**18), "its record has 64"),
    "a tensor larger than its storage": (
        state_dict({"w": tensor((5, 4))}),
        "needs 20 elements of a storage of 16",
    ),
    "an offset beyond it": (state_dict({"w": tensor(offset=1)}), "needs 17 elements"),
    "a negative offset": (state_dict({"w": tensor((2, 4), offset=-4)}), "negative"),
    "a negative stride": (state_dict({"w": tensor((2, 4), (-4, 1), offset=4)}), "negative"),
    "a negative extent": (state_dict({"w": tensor((-1, 4))}), "negative"),
    "extents whose product wraps": (state_dict({"w": tensor((2**33, 2**33), (2**33, 1))}), "needs"),
    "none, of 2 ** 80": (state_dict({"w": tensor((0, 2**40, 2**40), (1, 1, 1))}), "too large"),
    "a stride of 2 ** 62": (state_dict({"w": tensor((4, 4), (2**62, 1))}), "needs"),
    "a number of 80 bits": (state_dict({"w": tensor((2**80,), (1,))}), "a number of 81 bits"),
    "a number of 2,000 bits": (state_dict({"w": tensor((1,), (1,), offset=2**1999)}), "2000 bits"),
    "17 dimensions": (state_dict({"w": tensor((1,) * 17, (1,) * 17)}), "shape or strides"),
    "fewer strides than extents": (state_dict({"w": tensor((4, 4), (4,))}), "shape or strides"),
    "a shape of bools": (
        state_dict({"w": tensor().replace(numbers((4, 4)), b"\x88\x88\x86")}),
        "shape or strides",
    ),
    "a tensor that is to be negated": (state_dict({"w": tensor(more=b"}X\3\0\0\0neg\x88s")}), "negated"),
    "no record of that name": (state_dict({"w": tensor(stored=storage("7"))}), "lacks the record"),
    "a record outside its folder": (
        state_dict({"w": tensor(stored=storage("../version"))}),
        "lacks the record",
    ),
    "a storage of nothing known": (
        state_dict({"w": tensor(stored=storage(kind="QUInt8Storage"))}),
        "QUInt8Storage",
    ),
    "a storage of two dtypes": (
        state_dict({"v": tensor(), "w": tensor(stored=storage(kind="IntStorage"))}),
        "two dtypes",
    ),
    "a storage of two sizes": (
        state_dict({"v": tensor(), "w": tensor((2,), (1,), stored=storage(count=9))}),
        "sizes",
    ),
    "a tensor as its own call": (b"\x80\2" + tensor() + b")R.", "not a function"),
    "one that gets attributes": (b"\x80\2" + tensor() + b"}b.", "sets attributes of a tensor"),
    "a number instead of a tensor": (state_dict({"step": number(3)}), "holds int under 'step'"),
    "a dictionary in a dictionary": (state_dict({"model": b"}"}), "holds a dictionary under 'model'"),
    "a key that is a number": (b"\x80\2}K\1" + tensor() + b"s.", "holds a key that is int"),
    "a name twice": (b"\x80\2}(" + 2 * (text("w") + tensor()) + b"u.", "the key 'w' occurs twice"),
    "a name with control characters": (state_dict({"\x1b[2Jw\n": tensor()}), "'\\x1b[2Jw\\n'"),
    "a name with half a character": (state_dict({"w\ud800": tensor()}), "'w\\ud800'"),
    "a name of 10,000 letters": (state_dict({"w" * 10_000: tensor()}), "www...www"),
    "control characters in a global": (b"\x80\2cos\n\x1b[2J" + b"x" * 5000 + b"\n.", "\\x1b[2Jx"),
    "a mark that is missing": (b"\x80\2}u.", "damaged"),
    "a stack that is empty": (b"\x80\2R.", "damaged"),
    "two tensors from one": (b"\x80\2K\1\x86.", "too few values"),
    "a memo that is empty": (b"\x80\2h\7.", "memo 7 is empty"),
    "no end": (b"\x80\2}", "damaged"),
    "nothing": (b"", "damaged"),
    "bytes behind its end": (state_dict({"w": tensor()}) + b"}.", "2 bytes after its end"),
    "values left over": (b"\x80\2}}.", "values left on the stack"),
    "an instance of a class": (b"\x80\2ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
    "protocol 4": (b"\x80\4}.", "protocol 4"),
    "a number of 10,000 digits": (b"\x80\2I" + b"9" * 10_000 + b"\n.", "damaged"),
    "an int as text": (b"\x80\2I9\n.", "uses the operation INT"),
    "a list": (b"\x80\2](K\1e.", "holds list"),
    "a tensor": (b"\x80\2" + tensor() + b".", "holds a tensor"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused(tmp_path: Path, name: str) -> None:
    pickled, word = HOSTILE[name]
    refuse(write(tmp_path / "a.pth", pickled, {"0": BYTES}), word)


def test_more_operations_than_any_checkpoint_needs(tmp_path: Path) -> None:
    refuse(write(tmp_path / "a.pth", b"\x80\2" + b"}" * 600_000 + b"."), "500,000 operations")


def test_more_names_than_any_checkpoint_has(tmp_path: Path) -> None:
    """Torch makes an object of each, though all of them are one tensor."""
    items = {f"n{i}": b"h\0" for i in range(20_001)} | {"n0": tensor() + b"q\0"}
    pickled = state_dict(items)
    refuse(write(tmp_path / "a.pth", pickled, {"0": BYTES}), "20,001 tensors, more than the 20,000")


def test_a_pickle_larger_than_any_checkpoint_needs(tmp_path: Path) -> None:
    refuse(write(tmp_path / "a.pth", b"\x80\2" + bytes(16 << 20)), "more than the 16,777,216")


def test_one_storage_under_many_names(tmp_path: Path) -> None:
    """Two names are tied embeddings; a thousand are a model that needs a thousand times the file."""
    content = {"0": bytes(40_000)}
    stored = tensor((10_000,), (1,), stored=storage("0", 10_000))
    tied = write(tmp_path / "a.pth", state_dict({"a": stored, "b": stored}), content)
    agrees_with_torch(tied)
    many = state_dict({f"w{i}": stored for i in range(1000)})
    refuse(write(tmp_path / "a.pth", many, content), "many names share the same bytes")


def sound() -> list[Entry]:
    two = {"a": tensor(), "b": tensor(stored=storage("1"))}
    return entries_of(state_dict(two), {"0": BYTES, "1": BYTES[::-1]})


def changed(index: int, kind: str, **said: int | bytes) -> Callable[[], bytes]:
    def make() -> bytes:
        entries = sound()
        getattr(entries[index], kind).update(said)
        return archive(entries)

    return make


def both(index: int, **said: int | bytes) -> Callable[[], bytes]:
    def make() -> bytes:
        entries = sound()
        entries[index].local.update(said)
        entries[index].central.update(said)
        return archive(entries)

    return make


def listed(change: Callable[[list[Entry]], object]) -> Callable[[], bytes]:
    def make() -> bytes:
        entries = sound()
        change(entries)
        return archive(entries)

    return make


def deflated() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for entry in sound():
            made.writestr(entry.name, entry.content + bytes(100_000))
    return buffer.getvalue()


ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "all deflated": (deflated, "is compressed"),
    "one said to be deflated": (both(3, method=8), "is compressed"),
    "another size when unpacked": (both(3, size=1 << 31), "is compressed"),
    "encrypted": (both(3, flags=1), "encrypted"),
    "on another disk": (changed(3, "central", disk=1), "encrypted, or has flags"),
    "longer than the file": (both(3, size=1 << 31, packed=1 << 31), "reaches past the start of the directory"),
    "over the next record": (both(2, size=70, packed=70), "overlaps"),
    "two at one place": (changed(3, "central", offset=0), "differs from the directory"),
    "a name twice": (listed(lambda all_: all_.insert(3, all_[2])), "'archive/data/0' is there twice"),
    "two names": (changed(2, "local", name=b"archive/data/1"), "differs from the directory"),
    "two sizes": (changed(2, "local", size=10), "differs from the directory"),
    "two sums": (changed(2, "local", crc=10), "differs from the directory"),
    "two ways": (changed(2, "local", method=8), "differs from the directory"),
    "an offset behind the file": (changed(2, "central", offset=1 << 31), "is truncated"),
    "a size that is elsewhere, and is not": (changed(2, "central", size=0xFFFFFFFF), "lacks a size"),
    "a name that is no text": (both(2, name=b"archive/data/\xff"), "is not UTF-8"),
    "another folder": (both(3, name=b"else/data/1"), "no data.pkl"),
    "no data.pkl": (listed(lambda all_: all_.pop(0)), "no data.pkl"),
    "a program of TorchScript": (listed(lambda all_: all_.append(Entry("archive/constants.pkl", b""))), "TorchScript"),
    "a storage that is missing": (listed(lambda all_: all_.pop(2)), "lacks the record data/'0'"),
    "a storage cut short": (listed(lambda all_: setattr(all_[2], "content", b"x")), "its record has 1"),
    "bytes behind the end": (lambda: archive(sound()) + b"x", "truncated"),
    "bytes before it": (lambda: b"x" + archive(sound()), "end record"),
    "nothing": (lambda: b"", "empty"),
    "an end alone": (lambda: ends(0, 0, 0), "no data.pkl"),
    "more records than it has": (lambda: ends(100_001, 0, 0), "100,001 records"),
    "a directory of a petabyte": (lambda: ends(1, 1 << 50, 0), "end record"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_hostile_archive_is_refused(tmp_path: Path, name: str) -> None:
    make, word = ARCHIVES[name]
    (tmp_path / "a.pth").write_bytes(archive(sound()))
    agrees_with_torch(tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes(make())
    refuse(tmp_path / "a.pth", word)


def test_a_directory_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    """It is there, as a hole; what it says of itself is true."""
    with (tmp_path / "a.pth").open("wb") as file:
        file.write(b"PK\3\4")
        file.seek(4 << 30)
        file.write(ends(10, (4 << 30) - 4, 4))
    refuse(tmp_path / "a.pth", "4,294,967,292 bytes")


def test_nothing_of_the_pickle_is_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    made = b"\x80\2cposix\nmkdir\n(" + text(str(trap)) + b"tR."
    pickle.loads(made)
    assert trap.exists(), "the trap does not work"
    trap.rmdir()
    refuse(write(tmp_path / "a.pth", made), "was not run", "posix.mkdir")
    assert not trap.exists()


def test_what_one_byte_makes_of_a_sound_file(tmp_path: Path) -> None:
    """Refused by name, or within the file. tests/fuzz does more of it, and asks torch."""
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.nn.Parameter(torch.ones(4).bfloat16())}
    path = tmp_path / "a.pth"
    torch.save(state, path)
    whole = path.read_bytes()
    draw = random.Random(0)
    accepted = 0
    for _ in range(300):
        at = draw.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << draw.randrange(8))]) + whole[at + 1 :])
        with contextlib.suppress(CheckpointFormatError):
            found = open_pth(path)
            accepted += 1
            assert all(math.prod(value.shape) == 0 or found.file.holds(value) for value in found.values())
    assert 0 < accepted < 250


# ---- a file that is cut while it is mapped ------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "m", SHAPE, random_weights(SHAPE, 420), tiny_model_path(), 2)


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


# ---- in a folder --------------------------------------------------------------------------------------


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
    """torch lets an extent of 1 have any; it then views no bytes of the tensor, as comparing and writing do."""
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
