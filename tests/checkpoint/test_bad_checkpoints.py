"""Laws of bad folders: each is refused with its own error, one line that names what is wrong, and no file changed.

Folders in Meta's layout have most of theirs in test_load.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_models import SHAPE, hugging_face_twin, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama import Llama
from llama.checkpoint import open_checkpoint
from llama.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigError,
    LlamaError,
)

VOCAB = tiny_tokenizer().n_words
INDEX = "model.safetensors.index.json"
WQ = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound folders: `one` (a single safetensors), `many` (several, with index), `meta` (two shards)."""
    place = tmp_path_factory.mktemp("originals")
    model = hugging_face_twin(SHAPE, random_weights(SHAPE, VOCAB))
    model.save_pretrained(place / "one")
    model.save_pretrained(place / "many", max_shard_size="100KB")
    for name in ("one", "many"):
        shutil.copy(tiny_model_path(), place / name / "tokenizer.model")
    save_checkpoint(place / "meta", SHAPE, random_weights(SHAPE, VOCAB), tiny_model_path(), 2)
    return place


@pytest.fixture
def copy(originals: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(originals / name, tmp_path / name))


def snapshot(place: Path) -> dict[str, Any]:
    """Names, links and bytes of all that is there."""
    found: dict[str, Any] = {}
    for folder, folders, files in os.walk(place):
        for name in folders + files:
            path = Path(folder) / name
            if path.is_symlink():
                found[str(path)] = os.readlink(path)
            else:
                found[str(path)] = path.read_bytes() if path.is_file() else None
    return found


def refuse(folder: Path, kind: type[LlamaError], *words: object) -> None:
    place = folder.parent
    before = snapshot(place)
    with pytest.raises(LlamaError) as caught:
        Llama.build(folder, None, 64, 2, 1, device="cpu")
    assert type(caught.value) is kind, repr(caught.value)
    text = str(caught.value)
    for word in words:
        assert str(word) in text, f"{word!r} is not in {text!r}"
    assert "\n" not in text
    assert len(text) < 1500
    assert snapshot(place) == before


def test_the_sound_folders_load(originals: Path) -> None:
    for name in ("one", "many", "meta"):
        Llama.build(originals / name, None, 64, 2, 1, device="cpu").close()


# ---- a safetensors file ------------------------------------------------------------------------------


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def put(path: Path, header: dict[str, Any] | str | bytes, data: bytes) -> None:
    text = json.dumps(header) if isinstance(header, dict) else header
    raw = text.encode() if isinstance(text, str) else text
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def weights_in(folder: Path) -> Path:
    return folder / "model.safetensors"


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


# ---- an index ----------------------------------------------------------------------------------------


def change_index(folder: Path, change: Callable[[dict[str, str]], object]) -> dict[str, str]:
    path = folder / INDEX
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    where: dict[str, str] = index["weight_map"]
    return where


def test_an_index_that_names_an_absent_file(copy: Any) -> None:
    folder = copy("many")
    name = sorted(path.name for path in folder.glob("*.safetensors"))[1]
    (folder / name).unlink()
    refuse(folder, CheckpointNotFoundError, INDEX, name, "download it")


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "..",
        ".",
        "",
        "sub\\x.safetensors",
        "./model.safetensors",
    ],
)
@pytest.mark.parametrize("index", [INDEX, "pytorch_model.bin.index.json"])
def test_an_index_may_only_name_files_of_its_own_folder(copy: Any, name: str, index: str) -> None:
    """Though the file is there, and sound."""
    folder = copy("many")
    one = sorted(folder.glob("*.safetensors"))[0]
    (folder / "sub").mkdir()
    for place in (folder.parent, folder / "sub"):
        shutil.copy(one, place / "x.safetensors")
    change_index(folder, lambda where: where.update({NORM: name}))
    if index != INDEX:
        (folder / INDEX).unlink()
        (folder / index).write_text(json.dumps({"weight_map": {NORM: name}}))
        for path in folder.glob("*.safetensors"):
            path.unlink()
    refuse(folder, CheckpointFormatError, index, repr(name), "plain file name")


@pytest.mark.parametrize(
    "content", [{}, {"weight_map": []}, {"weight_map": {NORM: 5}}, {"weight_map": None}], ids=str
)
def test_an_index_without_a_map(copy: Any, content: object) -> None:
    folder = copy("many")
    (folder / INDEX).write_text(json.dumps(content))
    refuse(folder, CheckpointFormatError, INDEX, "weight_map")


@pytest.mark.parametrize("text", ["", "{", "<html>", "[]", '{"weight_map": {"a": "x", "a": "y"}}'])
def test_an_index_that_is_no_json_object(copy: Any, text: str) -> None:
    folder = copy("many")
    (folder / INDEX).write_text(text)
    refuse(folder, CheckpointFormatError, INDEX, "'a' occurs twice" if "weight_map" in text else "")


def test_an_empty_map_is_no_model(copy: Any) -> None:
    folder = copy("many")
    (folder / INDEX).write_text('{"weight_map": {}}')
    refuse(folder, CheckpointMismatchError, "model.embed_tokens.weight")


def test_a_tensor_in_two_files(copy: Any) -> None:
    folder = copy("many")
    where = change_index(folder, lambda where: None)
    first, last = where["model.embed_tokens.weight"], where[NORM]
    assert first != last
    tensors = safetensors.torch.load_file(folder / first)
    tensors[NORM] = safetensors.torch.load_file(folder / last)[NORM]
    safetensors.torch.save_file(tensors, folder / first)
    refuse(folder, CheckpointMismatchError, NORM, first, last)
    # Without an index the two files still contradict each other.
    (folder / INDEX).unlink()
    refuse(folder, CheckpointMismatchError, NORM, first, last, "again")


def test_a_tensor_in_another_file_than_the_index_says(copy: Any) -> None:
    folder = copy("many")
    where = change_index(folder, lambda where: None)
    other = next(name for name in where.values() if name != where[NORM])
    before = where[NORM]
    change_index(folder, lambda where: where.update({NORM: other}))
    refuse(folder, CheckpointMismatchError, NORM, before, other)


def test_a_tensor_that_the_index_does_not_know(copy: Any) -> None:
    folder = copy("many")
    where = change_index(folder, lambda where: where.pop(WQ))
    refuse(folder, CheckpointMismatchError, WQ, "does not know it")
    assert WQ not in where


def test_a_tensor_that_no_file_holds(copy: Any) -> None:
    folder = copy("many")
    where = change_index(folder, lambda where: where.update({"model.layers.9.x.weight": where[NORM]}))
    refuse(folder, CheckpointMismatchError, "model.layers.9.x.weight", "no file holds")
    change_index(folder, lambda where: where.pop("model.layers.9.x.weight"))
    tensors = safetensors.torch.load_file(folder / where[WQ])
    del tensors[WQ]
    safetensors.torch.save_file(tensors, folder / where[WQ])
    refuse(folder, CheckpointMismatchError, WQ, "no file holds")


# ---- files of different models -----------------------------------------------------------------------


def test_shards_of_two_models_of_equal_shapes(copy: Any) -> None:
    folder = copy("meta")
    other = save_checkpoint(
        folder.parent / "other", SHAPE, random_weights(SHAPE, VOCAB, seed=1), tiny_model_path(), 2
    )
    shutil.copy(other / "consolidated.01.pth", folder)
    words = (
        "layers.0.attention_norm.weight",
        "consolidated.01.pth",
        "consolidated.00.pth",
        "different models",
    )
    refuse(folder, CheckpointMismatchError, *words)


def test_shards_that_differ_in_one_bit(copy: Any) -> None:
    folder = copy("meta")
    path = folder / "consolidated.01.pth"
    tensors = torch.load(path, weights_only=True)
    tensors["norm.weight"].view(torch.int32)[-1] ^= 1
    torch.save(tensors, path)
    refuse(folder, CheckpointMismatchError, "norm.weight", "consolidated.01.pth")


def test_files_of_two_models_of_other_shapes(copy: Any) -> None:
    folder = copy("many")
    params = {**SHAPE, "dim": 128}
    model = hugging_face_twin(params, random_weights(params, VOCAB))
    where = change_index(folder, lambda where: None)
    tensors = safetensors.torch.load_file(folder / where[NORM])
    state = model.state_dict()
    safetensors.torch.save_file({name: state[name] for name in tensors}, folder / where[NORM])
    refuse(folder, CheckpointMismatchError, "[128", "[64", where[NORM])


def test_a_shard_missing_in_the_middle(copy: Any) -> None:
    folder = copy("meta")
    (folder / "consolidated.01.pth").rename(folder / "consolidated.02.pth")
    refuse(folder, CheckpointNotFoundError, "consolidated.01.pth", "missing", "2 shards")


# ---- params.json and config.json -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file", "key"), [("meta", "params.json", "dim"), ("one", "config.json", "hidden_size")]
)
def test_duplicate_keys(copy: Any, name: str, file: str, key: str) -> None:
    path = copy(name) / file
    text = path.read_text().strip()
    path.write_text(text[:-1] + f', "{key}": 64}}')
    json.loads(path.read_text())
    refuse(path.parent, CheckpointFormatError, path, key, "twice")


def test_a_duplicate_key_deep_inside(copy: Any) -> None:
    path = copy("one") / "config.json"
    text = path.read_text().strip()
    path.write_text(text[:-1] + ', "rope_parameters": {"rope_theta": 1e4, "rope_theta": 1e6}}')
    refuse(path.parent, CheckpointFormatError, path, "rope_theta", "twice")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dim": 128}, ["params.json", "[64"]),
        ({"n_layers": 3}, ["params.json", "layers.2.attention.wq.weight"]),
        ({"n_heads": 4}, ["params.json", "wk.weight", "[8, 64]", "[16, 64]"]),
        ({"n_kv_heads": 8}, ["params.json", "wk.weight", "[8, 64]", "[32, 64]"]),
        ({"multiple_of": 256}, ["params.json", "w1.weight", "[88, 64]", "[128, 64]"]),
        ({"vocab_size": VOCAB + 8}, [VOCAB, VOCAB + 8]),
    ],
    ids=str,
)
def test_params_and_shapes_that_disagree(copy: Any, change: dict[str, Any], words: list[Any]) -> None:
    path = copy("meta") / "params.json"
    path.write_text(json.dumps({**SHAPE, **change}))
    refuse(path.parent, CheckpointMismatchError, *words)


@pytest.mark.parametrize("name", ["meta", "one"])
def test_a_config_of_100_mb_is_not_read(copy: Any, name: str) -> None:
    path = copy(name) / {"meta": "params.json", "one": "config.json"}[name]
    os.truncate(path, 100_000_000)
    refuse(path.parent, CheckpointFormatError, path, "100,000,000 bytes")


@pytest.mark.parametrize("text", ["", "{", "<html>", "[1]"])
def test_a_config_that_is_no_json_object(copy: Any, text: str) -> None:
    path = copy("one") / "config.json"
    path.write_text(text)
    refuse(path.parent, CheckpointFormatError, path)


@pytest.mark.parametrize("kind", ["folder", "bytes"])
def test_a_config_that_is_no_text(copy: Any, kind: str) -> None:
    path = copy("one") / "config.json"
    path.unlink()
    if kind == "folder":
        path.mkdir()
        refuse(path.parent, CheckpointNotFoundError, path, "not a file")
    else:
        path.write_bytes(b"\xff\xfe{}")
        refuse(path.parent, CheckpointFormatError, path, "JSON")


def test_an_absent_config(copy: Any) -> None:
    folder = copy("one")
    (folder / "config.json").unlink()
    refuse(folder, CheckpointNotFoundError, "config.json")


def test_a_config_of_another_architecture(copy: Any) -> None:
    path = copy("one") / "config.json"
    path.write_text(json.dumps({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 768}))
    refuse(path.parent, ConfigError, path, "GPT2LMHeadModel")


# ---- links -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("meta", "consolidated.00.pth"),
        ("meta", "consolidated.01.pth"),
        ("meta", "params.json"),
        ("one", "config.json"),
        ("one", "model.safetensors"),
        ("many", INDEX),
    ],
)
@pytest.mark.parametrize("kind", ["circle", "circle of two", "nowhere"])
def test_links_that_lead_nowhere_or_in_a_circle(copy: Any, name: str, file: str, kind: str) -> None:
    path = copy(name) / file
    path.unlink()
    path.symlink_to({"circle": path.name, "circle of two": "other", "nowhere": "absent"}[kind])
    if kind == "circle of two":
        (path.parent / "other").symlink_to(path.name)
    refuse(path.parent, CheckpointNotFoundError, path, "link")


def test_a_file_of_an_index_that_is_a_circle(copy: Any) -> None:
    folder = copy("many")
    path = sorted(folder.glob("*.safetensors"))[0]
    path.unlink()
    path.symlink_to(path.name)
    refuse(folder, CheckpointNotFoundError, path.name)


def test_a_folder_that_is_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    refuse(tmp_path / "a", CheckpointNotFoundError, tmp_path / "a", "link")
    refuse(tmp_path / "a" / "deeper", CheckpointNotFoundError, tmp_path / "a" / "deeper")


def test_links_that_lead_to_the_files_are_followed(copy: Any) -> None:
    """As the hub's cache has them."""
    folder = copy("one")
    store = folder.parent / "blobs"
    folder.rename(store)
    folder.mkdir()
    for path in store.iterdir():
        (folder / path.name).symlink_to(path)
    (folder.parent / "again").symlink_to(folder)
    Llama.build(folder.parent / "again", None, 64, 2, 1, device="cpu").close()


# ---- pickles -----------------------------------------------------------------------------------------


class Malicious:
    """Its unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("way", ["zip", "legacy", "raw"])
@pytest.mark.parametrize("indexed", [False, True])
def test_a_pickle_with_code_in_a_bin_is_not_run(copy: Any, way: str, indexed: bool) -> None:
    folder = copy("one")
    trap = folder.parent / "trap"
    weights_in(folder).unlink()
    path = folder / ("pytorch_model-00001-of-00001.bin" if indexed else "pytorch_model.bin")
    if indexed:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {NORM: path.name}}))
    if way == "raw":
        path.write_bytes(pickle.dumps(Malicious(trap)))
        pickle.loads(path.read_bytes())
    else:
        torch.save({NORM: Malicious(trap)}, path, _use_new_zipfile_serialization=way == "zip")
        torch.load(path, weights_only=False)
    # The trap works: an unpickler that runs code springs it.
    assert trap.exists()
    trap.unlink()
    refuse(folder, CheckpointFormatError, path, "not run")
    assert not trap.exists()


def test_a_truncated_bin(copy: Any) -> None:
    folder = copy("one")
    path = folder / "pytorch_model.bin"
    torch.save(safetensors.torch.load_file(weights_in(folder)), path)
    weights_in(folder).unlink()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refuse(folder, CheckpointFormatError, path, f"{path.stat().st_size} bytes", "truncated")


# ---- what is sound, and not for this runtime ----------------------------------------------------------


def test_weights_that_are_no_floats_are_refused_by_name(tmp_path: Path) -> None:
    weights = {name: value.to(torch.int8) for name, value in random_weights(SHAPE, 420).items()}
    save_checkpoint(tmp_path, SHAPE, weights, tiny_model_path(), dtype=torch.int8)
    with pytest.raises(CheckpointFormatError, match=r"weights of torch\.int8, as a quantized checkpoint"):
        open_checkpoint(tmp_path)


def test_a_big_endian_file_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, SHAPE, random_weights(SHAPE, 420), tiny_model_path())
    path = tmp_path / "consolidated.00.pth"
    raw = path.read_bytes()
    assert raw.count(b"little") == 1
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "new", "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry.filename, b"big" if entry.filename.endswith("byteorder") else content)
    (tmp_path / "new").replace(path)
    with pytest.raises(CheckpointFormatError, match="big-endian"):
        open_checkpoint(tmp_path)


def test_a_damaged_pickle_is_a_named_error(tmp_path: Path) -> None:
    """Whatever its reader makes of it; the archive around it is sound."""
    save_checkpoint(tmp_path, SHAPE, random_weights(SHAPE, 420), tiny_model_path())
    path = tmp_path / "consolidated.00.pth"
    with zipfile.ZipFile(path) as old:
        entries = {entry.filename: old.read(entry) for entry in old.infolist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    draw = random.Random(0)
    for _ in range(60):
        broken = bytearray(entries[name])
        for _ in range(3):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        with zipfile.ZipFile(path, "w") as new:
            for each, content in entries.items():
                new.writestr(each, bytes(broken) if each == name else content)
        with contextlib.suppress(CheckpointError, ConfigError):
            open_checkpoint(tmp_path)
