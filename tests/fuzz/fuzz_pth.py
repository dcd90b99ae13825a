"""Damaged and hostile .pth files: each is refused with a named error, or gives the tensors that torch.load gives.

Every level is damaged: bytes of the file, numbers in zip headers, records, bytes and operations of the pickle.
Some seeds are hostile to begin with.
"""

from __future__ import annotations

import collections
import io
import json
import pickletools
import random
import shutil
import sys
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from pth_forge import Entry, archive, entries_of, number, state_dict, storage, tensor, text
from tiny_models import random_weights
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama.checkpoint import open_checkpoint
from llama.checkpoint.verify import verify
from llama.checkpoint.weight_files.mapped import TensorFile
from llama.checkpoint.weight_files.pth import IGNORED, open_pth
from llama.errors import LlamaError

if TYPE_CHECKING:
    from target import Target

PARAMS = {"dim": 16, "n_layers": 1, "n_heads": 2, "multiple_of": 8, "norm_eps": 1e-5, "rope_theta": 1e4}
FILE = "consolidated.00.pth"
BYTES = bytes(range(64))
# What a counter, a size or an offset may be that its author did not think of.
NUMBERS = (
    0,
    1,
    2,
    7,
    16,
    63,
    255,
    256,
    65535,
    65536,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**40,
    2**62,
)
NUMBERS += (2**63 - 1, 2**63, 2**64 - 1, -1, -2, -16, -(2**31), -(2**63), 2**200)
STRINGS = (
    "",
    "0",
    "1",
    "storage",
    "cpu",
    "meta",
    "a" * 5000,
    "\x1b[2J",
    "w\ud800",
    "../x",
    "data.pkl",
    "größe",
    "\0",
)
OPERATIONS = (
    *(bytes([each]) for each in b"0123456789().NIJKLMQRSTUVXabcdeghijlopqrstu}]\x80\x81\x82\x85\x86\x87\x88\x89\x8a"),
    *(b"ctorch\nFloatStorage\n", b"ctorch\nUntypedStorage\n", b"cbuiltins\nbytearray\n"),
    *(b"ccollections\nOrderedDict\n", b"ccollections\ndeque\n", b"cos\nsystem\n"),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n"),
    *(b"ctorch\nTensor\n", b"q\0", b"h\0", b"q\1", b"h\1", b"\x86", b"\x85", b"(t", b")R", b"}b", b"X\1\0\0\0a"),
)  # fmt: skip


def _sound() -> list[bytes]:
    """Files of torch.save; the first is a whole checkpoint's."""
    weights = {
        name: value.bfloat16() for name, value in random_weights(PARAMS, tiny_tokenizer().n_words).items()
    }
    base = torch.arange(24.0)
    ordered = collections.OrderedDict(a=base.view(4, 6).t(), b=base[3:9], c=torch.nn.Parameter(base.half()))
    ordered["tied"] = ordered["a"]
    ordered._metadata = collections.OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    kinds = {
        str(d): torch.ones(3, 2).to(d) for d in (torch.int64, torch.bool, torch.complex64, torch.float64)
    }
    found = []
    for state in (
        weights,
        ordered,
        kinds,
        {"w": torch.ones(5)},
        {},
        {"e": torch.empty(0, 3), "s": torch.tensor(1)},
    ):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        found.append(buffer.getvalue())
    return found


def _hostile() -> list[bytes]:
    """Each did harm when torch.load read it."""
    hang = b"\x80\2})" + b"q\0h\0\x86" * 40 + b"K\1s."
    takes = b"\x80\2cbuiltins\nbytearray\n(" + number(1 << 31) + b"tR."
    same = state_dict({"w": tensor((1 << 30,), (0,))})
    beyond = state_dict({"w": tensor((23_000,), (1,), stored=storage(count=23_000))})
    small = {"w": tensor(), "v": tensor((2, 4), (4, 1), 8)}
    found = [
        archive(entries_of(each, {"0": BYTES})) for each in (hang, takes, same, beyond, state_dict(small))
    ]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in entries_of(state_dict(small), {"0": bytes(1 << 20)}):
            packed.writestr(entry.name, entry.content)
    return [*found, buffer.getvalue()]


def _records(raw: bytes) -> list[Entry]:
    with zipfile.ZipFile(io.BytesIO(raw)) as opened:
        return [Entry(each.filename, opened.read(each)) for each in opened.infolist()]


def _damage(rng: random.Random, raw: bytes) -> bytes:
    """Bytes, of anything."""
    data = bytearray(raw)
    at = rng.randrange(len(data) + 1)
    length = min(rng.choice((1, 1, 2, 4, 8, 64, 1000)), len(data) - at)
    way = rng.randrange(8)
    if way == 0 and length:
        data[at] ^= 1 << rng.randrange(8)
    elif way == 1:
        data[at : at + length] = rng.randbytes(length)
    elif way == 2:
        del data[at : at + length]
    elif way == 3:
        data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 100)))
    elif way == 4:
        del data[at:]
    elif way == 5:
        source = rng.randrange(len(data) + 1)
        data[at:at] = data[source : source + length]
    elif way == 6:
        data[at : at + length] = bytes(length)
    else:
        width = rng.choice((2, 4, 8))
        data[at : at + width] = (rng.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(data)


def _damage_headers(rng: random.Random, raw: bytes) -> bytes:
    """Numbers of the zip's own structures."""
    data = bytearray(raw)
    starts = [at for at in range(len(raw) - 1) if raw[at : at + 2] == b"PK"]
    at = rng.choice(starts) + rng.randrange(2, 56)
    width = rng.choice((1, 2, 4, 8))
    data[at : at + width] = (rng.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(data)


def _damage_records(rng: random.Random, entries: list[Entry]) -> None:
    entry = rng.choice(entries)
    other = rng.choice(entries)
    way = rng.randrange(10)
    if way == 0:
        entries.remove(entry)
    elif way == 1:
        entries.insert(rng.randrange(len(entries) + 1), Entry(entry.name, other.content))
    elif way == 2:
        entry.content = entry.content[: rng.randrange(len(entry.content) + 1)]
    elif way == 3:
        entry.content, other.content = other.content, entry.content
    elif way == 4:
        entry.name = rng.choice(
            (other.name, "x", "x/data.pkl", entry.name + "/", "/" + entry.name, "archive/constants.pkl")
        )
    elif way == 5:
        size = len(entry.content)
        packer = zlib.compressobj(wbits=-15)
        entry.content = packer.compress(entry.content) + packer.flush()
        for said in (entry.local, entry.central):
            said.update(method=8, size=size)
    elif way == 6:
        entry.content += rng.randbytes(rng.choice((1, 4, 100)))
    elif way == 7:
        rng.shuffle(entries)
    else:
        key = rng.choice(("size", "packed", "offset", "crc", "flags", "method", "extra", "name"))
        value: int | bytes = rng.choice(NUMBERS) % (1 << (16 if key in ("flags", "method") else 32))
        if key in ("extra", "name"):
            value = rng.choice(
                (b"", b"\1\0\x10\0" + bytes(16), rng.randbytes(8), b"\1\0\xff\xff", other.name.encode())
            )
        for said in rng.choice(((entry.local,), (entry.central,), (entry.local, entry.central))):
            said[key] = value
            if key == "size":
                said["packed"] = value


def _operations(pickled: bytes) -> list[bytes]:
    """A pickle, cut between its operations."""
    starts = [at for _, _, at in pickletools.genops(pickled) if at is not None]
    return [pickled[a:b] for a, b in zip(starts, [*starts[1:], len(pickled)], strict=True)]


def _damage_pickle(rng: random.Random, pickled: bytes) -> bytes:
    try:
        steps = _operations(pickled)
    except ValueError:  # damaged before
        return _damage(rng, pickled)
    at = rng.randrange(len(steps))
    way = rng.randrange(9)
    if way == 0:
        del steps[at]
    elif way == 1:
        steps.insert(at, rng.choice(OPERATIONS))
    elif way == 2:
        steps.insert(at, rng.choice(steps))
    elif way == 3:
        other = rng.randrange(len(steps))
        steps[at], steps[other] = steps[other], steps[at]
    elif way == 4:
        steps[at:at] = steps[at : at + rng.randrange(30)] * rng.choice((1, 1, 2, 300))
    elif way == 5:
        return _damage(rng, pickled)
    else:  # a number or a string becomes another; most of a tensor is decided by them
        kinds = b"JKM\x8a" if way < 8 else b"XC"
        places = [i for i, step in enumerate(steps) if step[:1] and step[0] in kinds]
        if places:
            value: Any = number(rng.choice(NUMBERS)) if way < 8 else text(rng.choice(STRINGS))
            steps[rng.choice(places)] = value if rng.random() < 0.8 else number(rng.randrange(40))
    return b"".join(steps)


class _Pth:
    name = "pth"

    def __init__(self) -> None:
        self._seeds: list[bytes] = []

    def prepare(self, folder: Path) -> None:
        """A checkpoint around the file that `mutate` writes."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "params.json").write_text(json.dumps(PARAMS))
        shutil.copy(tiny_model_path(), folder / "tokenizer.model")
        for raw in self._all()[:1]:
            (folder / FILE).write_bytes(raw)
            assert self.read(folder / FILE) == "accepted", "the sound file is refused"

    def _all(self) -> list[bytes]:
        if not self._seeds:
            torch.manual_seed(0)
            self._seeds = [*_sound(), *_hostile()]
        return self._seeds

    def mutate(self, rng: random.Random, folder: Path) -> Path:
        raw = rng.choice(self._all())
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            way = rng.randrange(4)
            if way == 0 or b"PK" not in raw:
                raw = _damage(rng, raw)
                continue
            if way == 1:
                raw = _damage_headers(rng, raw)
                continue
            try:
                entries = _records(raw)
                pickles = [entry for entry in entries if entry.name.endswith("data.pkl")]
                if way == 2 or not pickles:
                    _damage_records(rng, entries)
                else:
                    pickles[0].content = _damage_pickle(rng, pickles[0].content)
                raw = archive(entries)
            except Exception:  # damaged before, beyond what the tools of this file can take apart
                raw = _damage(rng, raw)
        path = folder / FILE
        path.unlink(missing_ok=True)
        path.write_bytes(raw)
        return path

    def read(self, path: Path) -> str:
        try:
            found = open_pth(path)
            _agrees(path, found)
            told = ""
        except LlamaError as error:
            found, told = None, str(error)
        assert told.isprintable(), "a message that cannot be printed"
        rows = {row.name: row for row in verify(path.parent)}
        assert all(row.why.isprintable() for row in rows.values()), "a row that cannot be printed"
        try:
            checkpoint = open_checkpoint(path.parent)
        except LlamaError:
            assert rows["tensors"].status == "fail"
            return "refused" if found is None else "accepted"
        assert found is not None, "what open_pth refuses, open_checkpoint took"
        assert rows["tensors"].status == "pass"
        for name, shape in checkpoint.shapes.items():
            checkpoint.copy_slice(name, torch.empty(shape, dtype=checkpoint.dtype), 0, 1)
        return "accepted"


def _raw(x: torch.Tensor) -> bytes:
    # A copy first: an extent of 1 may have a stride that lets no bytes be viewed.
    return bytes(torch.empty(x.numel(), dtype=x.dtype).copy_(x.detach().flatten()).view(torch.uint8).tolist())


def _agrees(path: Path, found: TensorFile) -> None:
    """All lies within the file; and where torch can load the file, it finds the same."""
    first, last = found.file.span
    for name, value in found.items():
        if value.numel():
            reach = sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True)) + 1
            assert first <= value.data_ptr(), f"{name} begins before the file"
            assert value.data_ptr() + reach * value.element_size() <= last, f"{name} ends behind the file"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # damage that matters to torch alone
        return
    assert list(found) == [name for name in theirs if name not in IGNORED], "names"
    for name, value in found.items():
        other = theirs[name]
        assert (value.dtype, value.shape) == (other.dtype, other.shape), (
            f"{name}: {value.shape}, {other.shape}"
        )
        assert _raw(value) == _raw(other), f"{name} has other values"


TARGET: Target = _Pth()
