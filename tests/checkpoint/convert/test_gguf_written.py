"""Laws of writing GGUF: the file is the source bit for bit, also for the gguf package; and of making it plain again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from conversions import VOCAB, to
from gguf.quants import dequantize as oracle
from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama import Llama
from llama.checkpoint import Checkpoint, base, open_checkpoint, tokenizer_of
from llama.checkpoint.convert import conversion, convert_to_gguf
from llama.checkpoint.convert import gguf as writing
from llama.checkpoint.layouts.gguf import gguf_name

# Rows of 256 (k4), and of 704 = 2.75 x 256 (int4).
PARAMS: dict[str, Any] = {**SHAPE, "dim": 256, "n_layers": 2, "multiple_of": 64, "ffn_dim_multiplier": 1.0}
WEIGHTS = random_weights(PARAMS, VOCAB, scale=0.1)
MODES = [None, "int8", "int4"]
# General file types of llama.cpp.
FILE_TYPES = {None: 32, "int8": 7, "int4": 15}


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "meta"
    return save_checkpoint(folder, PARAMS, WEIGHTS, tiny_model_path(), 2, torch.bfloat16)


@pytest.fixture(scope="module")
def files(meta: Path) -> dict[str | None, Path]:
    found = {}
    for mode in MODES:
        found[mode] = meta.parent / f"{mode}.gguf"
        convert_to_gguf(open_checkpoint(meta, quantize=mode), found[mode])
    return found


def assert_same(found: Checkpoint, wanted: Checkpoint, dtype: torch.dtype = torch.float32) -> None:
    assert found.shapes == wanted.shapes
    for name, shape in wanted.shapes.items():
        ours, theirs = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)
        found.copy_slice(name, ours, 0, 1)
        wanted.copy_slice(name, theirs, 0, 1)
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("mode", MODES)
def test_the_file_is_the_source_bit_for_bit(meta: Path, files: Any, mode: str | None) -> None:
    source, written = open_checkpoint(meta, quantize=mode), open_checkpoint(files[mode])
    assert_same(written, source)
    for name, shape in source.shapes.items():
        if len(shape) == 2:
            forms = [each.form(name, (0, shape[1])) for each in (source, written)]
            assert [form and (form.format, form.group) for form in forms[:1]] == [
                form and (form.format, form.group) for form in forms[1:]
            ]
    for name in ("dim", "n_layers", "n_heads", "kv_heads", "ffn_dim", "vocab_size", "norm_eps", "rope_theta"):
        assert getattr(written.args, name) == getattr(source.args, name)
    assert written.dtype == (torch.bfloat16 if mode is None else torch.float16)
    assert written.quantization == {None: None, "int8": "Q8_0", "int4": "Q4_K_M"}[mode]


@pytest.mark.parametrize("mode", MODES)
def test_the_gguf_package_reads_the_same(meta: Path, files: Any, mode: str | None) -> None:
    source, reader = open_checkpoint(meta, quantize=mode), gguf.GGUFReader(files[mode])
    tensors = {each.name: each for each in reader.tensors}
    assert list(tensors) == [gguf_name(name) for name in source.shapes]
    kinds = set()
    for name, shape in source.shapes.items():
        tensor = tensors[gguf_name(name)]
        kinds.add(tensor.tensor_type.name)
        values = np.array(oracle(tensor.data, tensor.tensor_type)).reshape(shape)
        wanted = torch.empty(shape)
        source.copy_slice(name, wanted, 0, 1)
        assert torch.equal(torch.from_numpy(values), wanted), name
        assert tensor.data_offset % 32 == 0
    more = {None: set(), "int8": {"Q8_0"}, "int4": {"Q8_0", "Q4_0", "Q4_K"}}
    assert kinds == {"F32", "BF16"} | more[mode]
    assert reader.fields["general.file_type"].contents() == FILE_TYPES[mode]
    assert reader.fields["general.name"].contents() == "meta"


def test_the_vocabulary_is_that_of_the_tokenizer(files: Any) -> None:
    ours, reader = tiny_tokenizer(), gguf.GGUFReader(files[None])
    field = {key: each.contents() for key, each in reader.fields.items() if key.startswith("tokenizer.")}
    sp = ours.sp_model
    count = range(ours.n_words)
    assert field["tokenizer.ggml.tokens"] == [sp.id_to_piece(i) for i in count]
    assert field["tokenizer.ggml.scores"] == [sp.get_score(i) for i in count]
    kinds = field["tokenizer.ggml.token_type"]
    for i, kind in enumerate(kinds):
        assert (kind == 2, kind == 3, kind == 6) == (sp.is_unknown(i), sp.is_control(i), sp.is_byte(i))
    assert field["tokenizer.ggml.bos_token_id"] == ours.bos_id
    assert field["tokenizer.ggml.eos_token_id"] == ours.eos_id
    for name, number in (("pre", ours.prefix_id), ("suf", ours.suffix_id), ("mid", ours.middle_id)):
        assert field[f"tokenizer.ggml.fim_{name}_token_id"] == number
    for name, number in (("prefix", ours.prefix_id), ("suffix", ours.suffix_id), ("eot", ours.eot_id)):
        assert field[f"tokenizer.ggml.{name}_token_id"] == number
    assert "[INST]" in field["tokenizer.chat_template"]
    theirs = tokenizer_of(open_checkpoint(files["int4"]))
    for text in ("def f(x):\n    return x", "  é\t\x00", "<s> [INST]"):
        assert theirs.encode(text, bos=True, eos=False) == ours.encode(text, bos=True, eos=False)
    assert theirs.control_ids == ours.control_ids


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_a_model_from_the_file_computes_what_one_quantized_in_memory_does(
    meta: Path, files: Any, mode: str
) -> None:
    ids = torch.randint(3, VOCAB, (1, 9), generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"device": "cpu", "dtype": "float16"}
    with (
        Llama.build(meta, None, 16, 1, 1, quantize=mode, **options) as memory,
        Llama.build(files[mode], None, 16, 1, 1, **options) as file,
    ):
        assert torch.equal(memory.model(ids, 0), file.model(ids, 0))


def test_a_folder_of_hugging_face_gives_the_same_file(meta: Path, files: Any, tmp_path: Path) -> None:
    """The rows of wq and wk are in Meta's order, as llama.cpp wants them."""
    to("hf", meta, tmp_path / "meta")
    convert_to_gguf(open_checkpoint(tmp_path / "meta", quantize="int4"), tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == files["int4"].read_bytes()


def test_a_file_written_from_a_file_is_the_same(files: Any, tmp_path: Path) -> None:
    for mode in ("int8", "int4"):
        convert_to_gguf(open_checkpoint(files[mode]), tmp_path / "x.gguf", dtype=torch.bfloat16, force=True)
        name, other = b"meta", files[mode].parent.name.encode()
        wanted = files[mode].read_bytes()
        found = (tmp_path / "x.gguf").read_bytes()
        # But for the folder's name in front.
        assert name in wanted[:2000]
        assert other in found[:2000]
        assert found[-200_000:] == wanted[-200_000:]
        assert_same(open_checkpoint(tmp_path / "x.gguf"), open_checkpoint(files[mode]))


@pytest.mark.parametrize("window", [1, 5000])
def test_windows_make_no_difference(
    meta: Path, files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    for module in (writing, conversion, base):
        monkeypatch.setattr(module, "_WINDOW", window)
    convert_to_gguf(open_checkpoint(meta, quantize="int4"), tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == files["int4"].read_bytes()


@pytest.mark.parametrize("layout", ["meta", "hf"])
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_a_quantized_file_becomes_plain(files: Any, tmp_path: Path, mode: str, layout: str) -> None:
    """Its values, rounded to float16; and a tokenizer.model as the source's."""
    done = to(layout, files[mode], tmp_path / "plain")
    assert done.dtype == torch.float16
    written = open_checkpoint(tmp_path / "plain")
    assert not written.is_quantized
    assert_same(written, open_checkpoint(files[mode]), torch.float16)
    text = "def f(x):\n    return x"
    assert tokenizer_of(written).encode(text, bos=True, eos=False) == tiny_tokenizer().encode(
        text, bos=True, eos=False
    )
    if layout == "hf":
        assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())


@pytest.mark.parametrize(("dtype", "number"), [(torch.float32, 0), (torch.float16, 1), (torch.bfloat16, 32)])
def test_plain_weights_are_of_the_dtype_that_was_asked_for(
    meta: Path, tmp_path: Path, dtype: torch.dtype, number: int
) -> None:
    convert_to_gguf(open_checkpoint(meta), tmp_path / "x.gguf", dtype=dtype)
    written = open_checkpoint(tmp_path / "x.gguf")
    assert written.dtype == dtype
    assert_same(written, open_checkpoint(meta), dtype)
    assert gguf.GGUFReader(tmp_path / "x.gguf").fields["general.file_type"].contents() == number
