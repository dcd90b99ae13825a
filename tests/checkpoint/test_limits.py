"""Laws of what a few bytes of a stranger may ask for: little time, little memory, and a named error in one line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama import Llama
from llama.checkpoint import open_checkpoint
from llama.checkpoint.files import MOST_JSON, strict_object
from llama.checkpoint.layouts.hf_tokenizer import merges
from llama.checkpoint.verify import verify
from llama.checkpoint.weight_files.safetensors import open_safetensors
from llama.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    ConfigError,
    LlamaError,
    TokenizerError,
)
from llama.model import ModelArgs
from llama.tokenizer import Tokenizer

MIB = 1 << 20
# What each of these took before there were limits: seconds to hours, or gigabytes.
HANGS, MEMORY = 30, 300 * MIB
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 436,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
}


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """A guard against a hang, far above what the test takes; and the memory that it may take."""

    def late(*_: object) -> None:
        raise AssertionError(f"not done after {HANGS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(HANGS)
    measured = Path("/proc/self/clear_refs").exists()
    if measured:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        resident = status("VmRSS:")
    try:
        yield
        if measured:
            assert status("VmHWM:") - resident < MEMORY
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refuse(act: Callable[[], object], kind: type[LlamaError], *words: str) -> None:
    with pytest.raises(LlamaError) as caught:
        act()
    text = str(caught.value)
    assert isinstance(caught.value, kind), repr(caught.value)
    for word in words:
        assert word in text, f"{word!r} is not in {text!r}"
    assert text.isprintable()
    assert 0 < len(text) < 2200


def build(folder: Path) -> Callable[[], object]:
    return lambda: Llama.build(folder, None, 64, 2, 1, device="cpu")


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    weights = random_weights(SHAPE, tiny_tokenizer().n_words)
    return save_checkpoint(tmp_path / "meta", SHAPE, weights, tiny_model_path())


@pytest.fixture
def hugging_face(tmp_path: Path) -> Path:
    """A config.json, and weights that are never reached."""
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.model").write_bytes(tiny_model_path().read_bytes())
    safetensors.torch.save_file({"x": torch.ones(1)}, folder / "model.safetensors")
    return folder


def sparse(path: Path) -> None:
    """A file of 1 GB that takes no room on the disk."""
    path.unlink(missing_ok=True)
    path.touch()
    os.truncate(path, 1 << 30)


# ---- time and memory ---------------------------------------------------------------------------------


def test_a_name_that_announces_many_files(hugging_face: Path) -> None:
    (hugging_face / "model.safetensors").rename(hugging_face / "model-00001-of-500000000.safetensors")
    refuse(build(hugging_face), CheckpointNotFoundError, "1 weight files", "number 2, 3, 4 of 500000000")


@pytest.mark.parametrize("layers", [1025, 10**6, 10**15])
def test_many_layers(meta: Path, hugging_face: Path, layers: int) -> None:
    (meta / "params.json").write_text(json.dumps({**SHAPE, "n_layers": layers}))
    refuse(build(meta), ConfigError, "params.json", f"n_layers is {layers}", "1,024")
    (hugging_face / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    refuse(build(hugging_face), ConfigError, "config.json", "layers", str(layers))


def test_a_key_twice_behind_many_others(meta: Path) -> None:
    pairs = [f'"{number}":0' for number in range(300_000)]
    (meta / "params.json").write_text("{" + ",".join([*pairs, '"dim":1,"dim":2']) + "}")
    refuse(build(meta), CheckpointFormatError, "params.json", "'dim' occurs twice")


@pytest.mark.parametrize("shape", ["9" * 4000, "2", "1", "0"])
def test_a_long_shape(hugging_face: Path, shape: str) -> None:
    shapes = ",".join([shape] * (3_400_000 // (len(shape) + 1)))
    header = f'{{"x":{{"dtype":"U8","shape":[{shapes}],"data_offsets":[0,1]}}}}'.encode()
    path = hugging_face / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    refuse(build(hugging_face), CheckpointFormatError, "model.safetensors", "'x'", "no tensor has")


def test_extents_that_no_tensor_has(tmp_path: Path) -> None:
    """Zero elements, but strides that overflow."""
    header = b'{"x":{"dtype":"U8","shape":[0,4611686018427387904,4],"data_offsets":[0,0]}}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    refuse(lambda: open_safetensors(path), CheckpointFormatError, "'x'", "no tensor has")


@pytest.mark.parametrize("name", ["tokenizer.model", "params.json"])
def test_a_sparse_file_of_metas_layout(meta: Path, name: str) -> None:
    sparse(meta / name)
    refuse(build(meta), LlamaError, name, "1,073,741,824")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "model.safetensors"])
def test_a_sparse_file_of_a_hugging_face_folder(hugging_face: Path, name: str) -> None:
    if "index" in name:
        (hugging_face / "model.safetensors").unlink()
    sparse(hugging_face / name)
    refuse(
        build(hugging_face),
        CheckpointFormatError,
        name,
        "not a safetensors file" if name.endswith("rs") else "1,073",
    )


def test_a_sparse_checklist(meta: Path) -> None:
    sparse(meta / "checklist.chk")
    finding = next(iter(verify(meta)))
    assert finding.status == "fail"
    assert "1,073,741,824" in finding.why


@pytest.mark.parametrize("item", ['{"":{}}', "1.5"])
def test_json_of_many_small_objects(meta: Path, item: str) -> None:
    """As large as is read; what Python makes of it is thirty times that."""
    count = (MOST_JSON - 100) // (len(item.encode()) + 1)
    (meta / "params.json").write_text('{"dim":[' + ",".join([item] * count) + "]}")
    refuse(build(meta), ConfigError, "params.json")


# ---- named errors ------------------------------------------------------------------------------------

HUGE = (
    "1" + "0" * 310,
    "-1" + "0" * 310,
    "1" + "0" * 4000,
    "9" * 5000,
    "1e999",
    "1e308",
    "-1e999",
    "NaN",
    "Infinity",
)


@pytest.mark.parametrize("number", HUGE, ids=lambda text: text[:6] + str(len(text)))
def test_numbers_that_no_model_has(meta: Path, hugging_face: Path, number: str) -> None:
    for key in [*SHAPE, "ffn_dim_multiplier"]:
        text = json.dumps({**SHAPE, key: "?"}).replace('"?"', number)
        (meta / "params.json").write_text(text)
        refuse(build(meta), LlamaError, "params.json")
    for key in [*CONFIG, "head_dim", "rope_scaling", "partial_rotary_factor"]:
        text = json.dumps({**CONFIG, key: "?"}).replace('"?"', number)
        (hugging_face / "config.json").write_text(text)
        refuse(build(hugging_face), LlamaError, "config.json")
    text = json.dumps({**CONFIG, "rope_parameters": {"rope_theta": "?"}}).replace('"?"', number)
    (hugging_face / "config.json").write_text(text)
    refuse(build(hugging_face), LlamaError, "config.json")


def test_whole_numbers_are_taken_as_floats(meta: Path) -> None:
    """2**62 is a float to torch, 10**30 is none: whatever is given, floats go into the model."""
    args = ModelArgs.from_params({**SHAPE, "rope_theta": 10**30}, max_seq_len=8, max_batch_size=1)
    assert (args.rope_theta, type(args.rope_theta)) == (1e30, float)
    for value in (10**5000, -(10**5000), 10**39):
        refuse(
            lambda value=value: ModelArgs(rope_theta=value),  # type: ignore[misc]
            ConfigError,
            "rope_theta is",
        )
        refuse(lambda value=value: ModelArgs(dim=value), ConfigError, "dim is")  # type: ignore[misc]
        refuse(lambda value=value: ModelArgs(vocab_size=value), ConfigError, "vocab_size is")  # type: ignore[misc]


ODD = [
    '"' + "\\u001b[31m\\n\\u0000" * 9000 + '"',
    "[" * 900 + "]" * 900,
    '{"a\\nb":"\\u2028"}',
    '["x","y"]' * 1,
    "{}",
]


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_values_are_told_in_one_printable_line(meta: Path, hugging_face: Path, value: str) -> None:
    for key in [*SHAPE, "\\u001b[31m\\n" + "x" * 9000]:
        (meta / "params.json").write_text(
            json.dumps({**SHAPE, "?": "?"}).replace('"?": "?"', f'"{key}":{value}')
        )
        refuse(build(meta), CheckpointError if key in SHAPE else ConfigError, "params.json")
    for key in [*CONFIG, "architectures", "hidden_act", "head_dim", "rope_scaling", "quantization_config"]:
        content = {k: v for k, v in CONFIG.items() if k != key}
        (hugging_face / "config.json").write_text(
            json.dumps({**content, "?": 0}).replace('"?": 0', f'"{key}":{value}')
        )
        refuse(build(hugging_face), LlamaError)


def test_a_message_is_one_printable_line_and_never_long() -> None:
    text = str(LlamaError("a\x1b[31m\nb\ud800" + "c" * 10_000 + "; what to do"))
    assert text.startswith("a\\x1b[31m\\nb\\ud800c")
    assert text.endswith("; what to do")
    assert text.isprintable()
    assert len(text) < 2200
    assert str(LlamaError("é ☺ 漢")) == "é ☺ 漢"


@pytest.mark.parametrize("text", ['{"a":"\\ud800"}', '{"\\udfff":1}', '{"a":["\\ud83d"]}'])
def test_lone_surrogates_are_no_text(text: str) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        strict_object(text.encode())
    assert strict_object(b'{"a":"\\ud83d\\ude00"}') == {"a": "\N{GRINNING FACE}"}


# ---- what lies in place of a file --------------------------------------------------------------------


def put(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "long": "x" * 300, "circle": path.name}[kind])


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "long", "circle"])
def test_no_file_in_place_of_one(meta: Path, hugging_face: Path, kind: str) -> None:
    for name in ("tokenizer.model", "params.json", "consolidated.00.pth"):
        copy = meta.parent / name
        (meta / name).rename(copy)
        put(meta / name, kind)
        refuse(build(meta), LlamaError, name)
        (meta / name).rmdir() if kind == "folder" else (meta / name).unlink()
        copy.rename(meta / name)
    build(meta)()
    put(hugging_face / "model.safetensors", kind)
    refuse(build(hugging_face), CheckpointNotFoundError, "model.safetensors")
    put(hugging_face / "config.json", kind)
    refuse(build(hugging_face), CheckpointNotFoundError, "config.json")
    put(meta / "checklist.chk", kind)
    assert next(iter(verify(meta))).status in ("fail", "skip")


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b", "x" * 300, "\x1b[31m\n"])
def test_paths_that_no_system_has(tmp_path: Path, name: str) -> None:
    refuse(build(tmp_path / name), CheckpointNotFoundError)
    refuse(lambda: Tokenizer(tmp_path / name), TokenizerError)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    refuse(lambda: open_checkpoint(tmp_path), CheckpointError, "index.json")


# ---- tokenizers --------------------------------------------------------------------------------------


def vocabulary(folder: Path, change: Callable[[Any], object]) -> Path:
    """The tiny model, changed."""
    from sentencepiece import sentencepiece_model_pb2 as model_pb2

    model = model_pb2.ModelProto()
    model.ParseFromString(tiny_model_path().read_bytes())
    change(model)
    path = folder / "tokenizer.model"
    path.write_bytes(model.SerializeToString())
    return path


def test_pieces_that_are_no_text(tmp_path: Path) -> None:
    sound = tiny_model_path().read_bytes()
    assert sound.count(b"return") == 1
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sound.replace(b"return", b"retu\xff\xfe"))
    refuse(lambda: Tokenizer(path), TokenizerError, "not UTF-8", r"\xff")
    path = vocabulary(tmp_path, lambda model: setattr(model.trainer_spec, "unk_surface", "QQQQ"))
    path.write_bytes(path.read_bytes().replace(b"QQQQ", b"\xff\xfe\xfd\xfc"))
    refuse(lambda: Tokenizer(path), TokenizerError, "not UTF-8")


def test_a_vocabulary_without_unk_or_with_endless_pieces(tmp_path: Path) -> None:
    path = vocabulary(tmp_path, lambda model: setattr(model.pieces[0], "type", 1))
    refuse(lambda: Tokenizer(path), TokenizerError, "no unk piece")
    path = vocabulary(tmp_path, lambda model: setattr(model.pieces[300], "piece", "x" * 300))
    refuse(lambda: Tokenizer(path), TokenizerError, "300 characters")
    path = vocabulary(tmp_path, lambda model: setattr(model.trainer_spec, "unk_surface", "x" * 3_000_000))
    refuse(lambda: Tokenizer(path), TokenizerError, "3,000,000 characters")


def test_pieces_that_are_made_of_one_another_in_too_many_ways(tmp_path: Path) -> None:
    """All that stands anywhere in one text: the merges are as many as the cube of its length."""
    letters = "".join(map(chr, range(0x4E00, 0x4E00 + 146)))
    parts = [letters[first:end] for first in range(146) for end in range(first + 1, 147)]

    def change(model: Any) -> None:
        for number, part in enumerate(parts):
            model.pieces.add(piece=part, score=-float(number))

    path = vocabulary(tmp_path, change)
    Tokenizer(path)
    refuse(lambda: merges(Tokenizer(path)), TokenizerError, "500,000 ways")


def test_a_byte_order_mark_is_called_one(meta: Path) -> None:
    path = meta / "params.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    refuse(build(meta), CheckpointError, "byte-order mark", "UTF-8 without one")
