"""Laws of the header of a GGUF: sound files are read as the package `gguf` reads them; every other is refused with
its numbers, before anything is made of them.
"""

from __future__ import annotations

import random
import re
import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_forge import Forged, Tensor
from hypothesis import given
from hypothesis import strategies as st

from llama.checkpoint.weight_files.gguf import open_gguf
from llama.checkpoint.weight_files.gguf_split import split_files
from llama.errors import (
    CheckpointFormatError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    LlamaError,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "fuzz"))
from fuzz_gguf import TARGET

A = Tensor(b"a", (32, 3), 0, nbytes=384)
Q = Tensor(b"q", (64, 2), 8, nbytes=2 * 2 * 34)


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(CheckpointFormatError) as caught:
        open_gguf(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    return message


@given(
    alignment=st.sampled_from([8, 16, 32, 64, 4096]),
    version=st.sampled_from([2, 3]),
    extents=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), max_size=6),
)
def test_sound_files_are_read_as_the_package_reads_them(
    tmp_path_factory: pytest.TempPathFactory, alignment: int, version: int, extents: list[list[int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    written = {"uint8": 200, "uint16": 60_000, "uint32": 2**32 - 1, "uint64": 2**64 - 1}
    written |= dict.fromkeys(("int8", "int16", "int32", "int64"), -3)
    for kind, value in written.items():
        getattr(writer, f"add_{kind}")(kind, value)
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("text", "é\n")
    writer.add_array("numbers", [1, 2, -3])
    writer.add_array("texts", ["a", "", "漢"])
    tensors = {f"t{i}": generator.standard_normal(shape, np.float32) for i, shape in enumerate(extents)}
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    raw = bytearray(path.read_bytes())
    raw[4:8] = struct.pack("<I", version)
    path.write_bytes(raw)
    found = open_gguf(path)
    assert {name: found.metadata[name] for name in written} == written
    assert (found.metadata["f32"], found.metadata["f64"], found.metadata["yes"]) == (0.5, 0.1, True)
    assert (found.metadata["text"], found.metadata["texts"]) == ("é\n", [b"a", b"", "漢".encode()])
    assert found.metadata["numbers"].tolist() == [1, 2, -3]
    assert found.tensors.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(found.tensors[name].data, torch.from_numpy(value))


HUGE = 2**63


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; download it again"),
        (b"GGU", "is not a GGUF file: it begins with b'GGU'"),
        (b"GGUF\3\0", "cut short: 6 bytes"),
        (b"GGUF\3\0\0\0", "cut short"),
        (b"<!DOCTYPE html><html>", "is a web page or a Git LFS pointer of 21 bytes"),
        (b"version https://git-lfs.github.com/spec/v1", "is a web page or a Git LFS pointer"),
        (b"tjgg" + b"\0" * 50, "is a GGML file from before GGUF"),
        (b"PK\3\4" + b"\0" * 50, "is not a GGUF file: it begins with b'PK"),
        (Forged(version=struct.pack("<I", 1)).content(), "version 1 of GGUF; this runtime reads 2 and 3"),
        (Forged(version=struct.pack("<I", 4)).content(), "version 4 of GGUF"),
        (Forged(version=struct.pack(">I", 3)).content(), "big-endian byte order"),
        (Forged(count=HUGE).content(), f"announces {HUGE:,} tensors at byte 16, more than the file of"),
        (Forged(key_count=HUGE).content(), f"announces {HUGE:,} keys at byte 24, more than the file of"),
        (Forged(count=30_000, data=10**7).content(), "announces 30,000 tensors; no Llama has more than 20,000"),
        (Forged([(b"", "u8", 1)]).content(), "name of a key before byte 32 has 0 bytes"),
        (Forged([(b"x" * 300, "u8", 1)]).content(), "has 300 bytes, not 1 to 256"),
        (Forged([(b"\xff", "u8", 1)]).content(), r"name of a key, b'\\xff', is not UTF-8"),
        (Forged([(b"x", "u8", 1), (b"x", "u8", 2)]).content(), "the key 'x' occurs twice"),
        (Forged([(b"x", "odd", b"")]).content(), "value of 'x' is of type 99"),
        (Forged([(b"x", "bool", 2)]).content(), "'x' is 2; a truth value is 0 or 1"),
        (Forged([(b"x", "str", b"y" * 40)]).content()[:60], "cut short.*40 bytes are announced at byte 45 of 60"),
        (Forged([(b"x", "array", struct.pack("<IQ", 4, HUGE))]).content(), f"announces {HUGE:,} elements of 'x'"),
        (Forged([(b"x", "array", struct.pack("<IQ", 9, 1))]).content(), "array 'x' has elements of type 9"),
        (Forged([(b"x", "array", struct.pack("<IQ", 0, 3 << 20))], data=4 << 20).content(), "3,145,728 elements"),
        (Forged([(b"general.alignment", "u32", 0)]).content(), "general.alignment is 0; it must be a power of two"),
        (Forged([(b"general.alignment", "u32", 24)]).content(), "general.alignment is 24"),
        (Forged([(b"general.alignment", "u32", 1 << 21)]).content(), "general.alignment is 2097152"),
        (Forged([(b"general.alignment", "str", b"32")]).content(), "general.alignment is '32'"),
        (Forged(tensors=[A, A]).content(), "the tensor 'a' occurs twice"),
        (Forged(tensors=[Tensor(b"a", (), 0)]).content() + b"\0" * 64, "has 0 dimensions, not 1 to 4"),
        (Forged(tensors=[Tensor(b"a", (1,) * 5)]).content(), "has 5 dimensions"),
        (Forged(tensors=[Tensor(b"a", (0, 3))]).content(), "has extents .0, 3., which no tensor has"),
        (Forged(tensors=[Tensor(b"a", (2**32, 2**32))]).content(), "has extents .4294967296, 4294967296."),
        (Forged(tensors=[Tensor(b"a", (2**40,))]).content(), "cut short, or an offset is wrong: 'a' ends at byte"),
        (Forged(tensors=[Tensor(b"a", (32, 3), 0, at=HUGE, nbytes=384)]).content(), "'a' ends at byte 9,223,"),
        (Forged(tensors=[Tensor(b"a", (32, 3), 0, at=4)], data=999).content(), "begins at byte 4 of the data, not a"),
        (Forged(tensors=[A, Tensor(b"b", (8,), at=352)], data=999).content(), "'b' begins at byte 352.*ends at 384"),
        (Forged(tensors=[A], data=383).content(), "'a' ends at byte 480, the file has 479"),
        (Forged(tensors=[Tensor(b"a", (48,), 8)], data=99).content(), "48 numbers, no whole blocks: one of Q8_0"),
        (Forged(tensors=[Tensor(b"a", (32,), 12)], data=99).content(), "no whole blocks: one of Q4_K holds 256"),
        (Forged(tensors=[Tensor(b"a", (256,), 23)], data=999).content(), r"'a' as IQ4_XS \(type 23\), which"),
        (Forged(tensors=[Tensor(b"a", (256,), 77)], data=999).content(), "'a' as type 77, which"),
        (Forged(tensors=[Tensor(b"\x1b[31m", (1,), 77)], data=99).content(), r"holds '\\x1b\[31m' as type 77"),
    ],
)  # fmt: skip
def test_what_is_not_sound_is_named_with_its_numbers(tmp_path: Path, content: bytes, words: str) -> None:
    tracemalloc.start()
    try:
        message = refused(tmp_path / "x.gguf", content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert re.search(words, message), message
    assert peak < 3 * len(content) + (2 << 20)


@given(data=st.data())
def test_every_shorter_file_is_refused(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "short.gguf"
    keys = [(b"general.alignment", "u32", 32), (b"s", "str", b"text"), (b"l", "array", ("str", [b"a"] * 9))]
    whole = Forged(keys, [A, Q]).content()
    path.write_bytes(whole)
    assert set(open_gguf(path).tensors) == {"a", "q"}
    # The padding behind the last tensor is all that may be absent.
    needed = len(whole) - (-Q.nbytes % 32)
    path.write_bytes(whole[:needed])
    assert set(open_gguf(path).tensors) == {"a", "q"}
    refused(path, whole[: data.draw(st.integers(0, needed - 1))])


def test_blocks_are_views_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    content = bytearray(Forged(tensors=[A, Q]).content())
    content[-64 - 136 :] = bytes(range(200))
    path.write_bytes(content)
    found = open_gguf(path)
    tensor = found.tensors["q"]
    assert (tensor.shape, tuple(tensor.data.shape), tensor.kind.name) == ((2, 64), (2, 2, 34), "Q8_0")
    assert found.mapped.holds(tensor.data)
    package = gguf.GGUFReader(path).tensors[1].data
    assert bytes(tensor.data.numpy().tobytes()) == package.tobytes()


def split(number: int, count: int, tensors: int, *more: Tensor) -> bytes:
    keys = [
        (b"split.no", "u16", number),
        (b"split.count", "u16", count),
        (b"split.tensors.count", "i32", tensors),
    ]
    return Forged(keys, list(more)).content()


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"m-00002-of-00003.gguf": None}, CheckpointNotFoundError, "lacks 1 of the 3 files of m: m-00002-of"),
        ({"m-00003-of-00003.gguf": split(1, 3, 2)}, CheckpointMismatchError, "it is file 2 of 3, but its name 3"),
        ({"m-00003-of-00003.gguf": split(2, 4, 2)}, CheckpointMismatchError, "says that it is file 3 of 4"),
        ({"m-00003-of-00003.gguf": Forged().content()}, CheckpointMismatchError, "says that it is file 0 of -1"),
        ({"m-00001-of-00003.gguf": split(0, 3, 5, A)}, CheckpointMismatchError, "hold 2 tensors, but .* announces 5"),
        ({"m-00001-of-00003.gguf": split(0, 60_000, 2, A)}, CheckpointMismatchError, "is part 1 of 60000 of a model"),
        ({"m-00002-of-00003.gguf": b"GGUF"}, CheckpointFormatError, "00002-of-00003.gguf is not sound"),
    ],
)  # fmt: skip
def test_files_of_a_split_model_must_belong_together(
    tmp_path: Path, change: dict[str, Any], kind: type[Exception], words: str
) -> None:
    files: dict[str, Any] = {
        "m-00001-of-00003.gguf": split(0, 3, 2, A),
        "m-00002-of-00003.gguf": split(1, 3, 0),
        "m-00003-of-00003.gguf": split(2, 3, 0, Q),
    }
    for name, content in (files | change).items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    first = tmp_path / "m-00001-of-00003.gguf"
    with pytest.raises(kind, match=words):
        split_files(open_gguf(first))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert [len(file.tensors) for file in split_files(open_gguf(first))] == [1, 0, 1]


def test_an_absurd_number_of_files_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m-00001-of-60000.gguf"
    path.write_bytes(split(0, 60_000, 2, A))
    with pytest.raises(CheckpointFormatError, match=r"one of 60,000 files; at most 1,024"):
        split_files(open_gguf(path))


def test_damaged_headers_are_refused_or_read_as_the_package_reads_them(tmp_path: Path) -> None:
    """Some of what `make fuzz` tries: an answer other than the package's raises."""
    TARGET.prepare(tmp_path)
    seen = {"accepted": 0, "refused": 0}
    for number in range(200):
        path = TARGET.mutate(random.Random(number), tmp_path)
        try:
            seen[TARGET.read(path)] += 1
        except LlamaError:
            seen["refused"] += 1
    assert seen["refused"] > 100
    assert seen["accepted"] > 5
