"""Laws of a .pth's pickle: one that holds anything but named tensors is refused, and never run."""

from __future__ import annotations

import contextlib
import math
import pickle
import random
from pathlib import Path

import pytest
import torch
from pth_checks import BYTES, agrees_with_torch, refuse
from pth_forge import (
    number,
    numbers,
    state_dict,
    storage,
    tensor,
    text,
    write,
)

from llama.checkpoint.weight_files.pth import open_pth
from llama.errors import CheckpointFormatError


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
