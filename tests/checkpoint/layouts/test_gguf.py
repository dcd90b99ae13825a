"""Laws of GGUF as a layout: the same model as Meta's folder and as in transformers, in windows of any shape."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf_files import BLOCKED, PLAIN, QUANTIZED, TAKEN, name_of, random_blocks, save_gguf, whole
from hypothesis import example, given
from hypothesis import strategies as st
from slices import mine
from tiny_models import hugging_face_twin, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama import Llama
from llama.checkpoint import Checkpoint, GgufCheckpoint, open_checkpoint, tokenizer_of
from llama.checkpoint.base import dtype_name
from llama.checkpoint.layouts.gguf import gguf_name
from llama.errors import CheckpointFormatError
from llama.kernels.quantized import dequantize

TINY = Path(__file__).parents[3] / "CodeLlama-tiny"
VOCAB = tiny_tokenizer().n_words
WEIGHTS = random_weights(BLOCKED, VOCAB)
MATRICES = [name for name, value in WEIGHTS.items() if value.dim() == 2]
# Each type at least once; Q4_K and Q6_K where a row has more than one block of 256.
MIXED = dict(zip([*MATRICES[4:], *MATRICES[:4]], [*QUANTIZED, *PLAIN, *QUANTIZED], strict=False))
MIXED |= {"tok_embeddings.weight": "Q6_K", "layers.0.attention.wq.weight": "BF16"}
assert {MIXED[f"layers.{layer}.feed_forward.w2.weight"] for layer in (0, 1)} == {"Q4_K", "Q6_K"}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with matrices of every type."""
    path = tmp_path_factory.mktemp("mixed") / "mixed.gguf"
    return save_gguf(path, BLOCKED, WEIGHTS, tiny_tokenizer(), MIXED.__getitem__)


@pytest.fixture(scope="module")
def theirs(mixed: Path) -> dict[str, torch.Tensor]:
    """The tensors of `mixed`, as the package reads them."""
    return whole(mixed)


def read(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """A whole tensor in float32."""
    out = torch.empty(checkpoint.shapes[name])
    checkpoint.copy_slice(name, out, 0, 1)
    return out


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_files_are_the_model_of_the_meta_folder(tmp_path: Path, kind: str) -> None:
    """The same ids, text and log-probabilities, bit for bit, in the file's dtype."""
    meta = open_checkpoint(TINY)
    weights = {name: read(meta, name) for name in meta.shapes}
    shape = {
        "dim": 256,
        "n_layers": 5,
        "n_heads": 4,
        "n_kv_heads": 2,
        "multiple_of": 32,
        "ffn_dim_multiplier": 0.75,
    }
    params = {**shape, "norm_eps": 1e-5, "rope_theta": 1e6}
    path = save_gguf(tmp_path / "tiny.gguf", params, weights, tokenizer_of(meta), kind)
    opened = open_checkpoint(path)
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    assert (opened.dtype, opened.is_quantized, opened.quantization, opened.notes) == (dtype, False, None, [])
    answers = []
    for place in (TINY, path):
        llama = Llama.build(place, max_seq_len=128, max_batch_size=2, device="cpu", dtype=dtype)
        prompts = ["def add(a, b):\n", "import os\n\n\ndef"]
        answers.append(llama.text_completion(prompts, temperature=0, max_gen_len=24, logprobs=True))
        answers.append(
            llama.text_infilling(["def f(x):\n    "], ["\n    return y\n"], temperature=0, max_gen_len=16)
        )
    assert answers[:2] == answers[2:]


def test_hyperparameters_are_those_of_the_meta_folder(mixed: Path, tmp_path: Path) -> None:
    """Numbers that the file keeps in float32 too: 1e-5 is not a little less."""
    meta = save_checkpoint(tmp_path / "meta", BLOCKED, WEIGHTS, tiny_model_path())
    ours, theirs = open_checkpoint(mixed).args, open_checkpoint(meta).args
    for name in ("dim", "n_layers", "n_heads", "kv_heads", "ffn_dim", "vocab_size", "norm_eps", "rope_theta"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_names_are_those_of_the_package() -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, BLOCKED["n_layers"])
    for name in WEIGHTS:
        assert gguf_name(name) == name_of(name)
        assert names.get_name(name, try_suffixes=(".weight",)) == gguf_name(name)


def test_every_type_is_read_as_the_package_reads_it(mixed: Path, theirs: dict[str, torch.Tensor]) -> None:
    checkpoint = open_checkpoint(mixed)
    for name in WEIGHTS:
        kind, values = MIXED.get(name), theirs[name_of(name)].float()
        assert torch.equal(read(checkpoint, name), values), kind
        if kind in TAKEN:
            assert torch.equal(
                dequantize(checkpoint.blocks(name, (0, len(values)), (0, values.shape[1]))), values
            )


def test_transformers_reads_the_same_file_as_the_same_model(mixed: Path) -> None:
    """Rows of wq and wk too: it takes them to be in Meta's order."""
    from transformers import LlamaForCausalLM

    checkpoint = open_checkpoint(mixed)
    model = LlamaForCausalLM.from_pretrained(mixed.parent, gguf_file=mixed.name, dtype=torch.float32)
    twin = hugging_face_twin(BLOCKED, {name: read(checkpoint, name) for name in WEIGHTS})
    found = model.state_dict()
    for name, value in twin.state_dict().items():
        assert torch.equal(found[name], value), name
    for name in ("rms_norm_eps", "num_key_value_heads", "intermediate_size", "rope_parameters"):
        ours = getattr(twin.config, name)
        assert getattr(model.config, name) == (pytest.approx(ours) if isinstance(ours, float) else ours)


# ---- windows ----


@st.composite
def windows(draw: st.DrawFn) -> tuple[str, tuple[int, int], tuple[int, int]]:
    """A matrix, some rows and some columns, at whole blocks or not."""
    name = draw(st.sampled_from(MATRICES))
    ranges = []
    for extent in WEIGHTS[name].shape:
        first = draw(st.integers(0, extent - 1))
        ranges.append((first, draw(st.integers(first + 1, extent))))
    if draw(st.booleans()):
        first, last = ranges[1][0] // 32 * 32, -(-ranges[1][1] // 32) * 32
        ranges[1] = first, last
    return name, ranges[0], ranges[1]


@given(window=windows())
@example(window=("layers.0.feed_forward.w2.weight", (0, 9), (32, 320)))  # Q4_K, into the second block
@example(window=("layers.0.feed_forward.w2.weight", (5, 6), (250, 512)))
@example(window=("layers.1.feed_forward.w2.weight", (3, 4), (100, 300)))  # Q6_K
def test_any_window_is_that_part_of_the_whole(
    mixed: Path, theirs: dict[str, torch.Tensor], window: Any
) -> None:
    name, rows, columns = window
    checkpoint, values = open_checkpoint(mixed), theirs[name_of(name)]
    part = values[slice(*rows), slice(*columns)].float()
    out = torch.empty(part.shape)
    checkpoint.read(name, out, rows, columns)
    assert torch.equal(out, part)
    form, kind = checkpoint.form(name, columns), MIXED[name]
    if kind in PLAIN or name == MATRICES[0]:
        assert form is None
        return
    assert form is not None
    blocks = checkpoint.blocks(name, rows, columns)
    assert form.format == TAKEN.get(kind, "int8")
    assert blocks.codes.shape == (len(part), form.columns)
    assert blocks.scales.shape[:2] == (len(part), form.groups)
    if kind in TAKEN:
        # Column by column of x: where the window was widened to whole blocks, none is read.
        order = range(form.columns) if form.order is None else form.order.tolist()
        found = dequantize(blocks)
        assert sorted(set(order) - {-1}) == list(range(part.shape[1]))
        assert all(torch.equal(found[:, i], part[:, column]) for i, column in enumerate(order) if column >= 0)
        return
    # Re-quantized: within 1/250 of the largest of each block, whatever the window.
    first = columns[0] // 32 * 32
    around = values[slice(*rows), first : first + form.columns].reshape(len(part), -1, 32)
    bound = around.abs().amax(2, keepdim=True) / 250
    assert ((dequantize(blocks).reshape(around.shape) - around).abs() <= bound).all()


def test_rows_are_read_a_few_at_a_time(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of the mapped file, and of what is computed, change nothing."""
    from llama.checkpoint import base

    checkpoint = open_checkpoint(mixed)
    before = {name: read(checkpoint, name) for name in MATRICES}
    blocks = {
        name: checkpoint.blocks(name, (3, 60), (0, 256)) for name in MATRICES[1:] if MIXED[name] in QUANTIZED
    }
    monkeypatch.setattr(base, "_WINDOW", 1000)
    monkeypatch.setattr(base, "_COMPUTED", 5000)
    for name, value in before.items():
        assert torch.equal(read(checkpoint, name), value)
    for name, kept in blocks.items():
        again = checkpoint.blocks(name, (3, 60), (0, 256))
        assert torch.equal(again.codes, kept.codes)
        assert torch.equal(again.scales, kept.scales)
        assert again.zeros is None if kept.zeros is None else torch.equal(again.zeros, kept.zeros)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_each_rank_reads_its_slices(mixed: Path, theirs: dict[str, torch.Tensor], size: int) -> None:
    checkpoint = open_checkpoint(mixed)
    for name in WEIGHTS:
        for rank in range(size):
            wanted = mine(name, theirs[name_of(name)].float(), BLOCKED, rank, size)
            found = torch.empty(wanted.shape)
            checkpoint.copy_slice(name, found, rank, size)
            assert torch.equal(found, wanted), name


@pytest.mark.parametrize("name", [*MATRICES[:10], "norm.weight"])
def test_a_file_that_was_cut_is_an_error_before_it_is_read(mixed: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "cut.gguf"
    shutil.copy(mixed, path)
    checkpoint = open_checkpoint(path)
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(CheckpointFormatError, match=f"from {size:,} to {size - 1:,} bytes"):
        read(checkpoint, name)
    if name in MATRICES[1:] and MIXED[name] in QUANTIZED:
        with pytest.raises(CheckpointFormatError, match="was cut from"):
            checkpoint.blocks(name, (0, 8), (0, 256))


# ---- what it says of itself ----


def test_a_quantized_file_says_what_it_is(mixed: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(mixed)
    assert (checkpoint.dtype, checkpoint.is_quantized, checkpoint.layout) == (torch.float16, True, "GGUF")
    (note,) = checkpoint.notes
    assert note.startswith("7 of 16 matrices, in Q2_K, Q3_K, Q4_1, Q5_0, Q5_1, Q5_K, Q6_K, become int8: ")
    for kind, told, named in (
        ("Q4_K", 15, "Q4_K_M"),
        ("Q8_0", 7, "Q8_0"),
        ("Q8_0", 15, "Q8_0"),
        ("Q5_K", 9999, "Q5_K"),
    ):
        path = save_gguf(
            tmp_path / f"{kind}{told}.gguf",
            BLOCKED,
            WEIGHTS,
            tiny_tokenizer(),
            kind,
            change=lambda writer, told=told: writer.add_file_type(told),
        )
        found = open_checkpoint(path)
        assert (found.quantization, bool(found.notes)) == (named, kind not in TAKEN)
        assert found.context_length == 16384


def test_the_dtype_of_a_plain_file_is_that_of_most_weights(tmp_path: Path) -> None:
    """Norms are in float32 in nearly every file, and a matrix may be."""
    kinds = dict.fromkeys(MATRICES, "BF16") | {MATRICES[3]: "F32"}
    path = save_gguf(tmp_path / "x.gguf", BLOCKED, WEIGHTS, tiny_tokenizer(), kinds.__getitem__)
    checkpoint = open_checkpoint(path)
    assert dtype_name(checkpoint.dtype) == "bfloat16"
    assert checkpoint.dtype_of(MATRICES[3]) == checkpoint.dtype_of("norm.weight") == torch.float32
    for name, value in WEIGHTS.items():
        wanted = value if kinds.get(name, "F32") == "F32" else value.bfloat16().float()
        assert torch.equal(read(checkpoint, name), wanted)


@pytest.mark.parametrize("kind", ["F16", "Q4_K"])
def test_a_tied_output_is_the_embedding(tmp_path: Path, kind: str) -> None:
    tied = {name: value for name, value in WEIGHTS.items() if name != "output.weight"}
    checkpoint = open_checkpoint(save_gguf(tmp_path / "x.gguf", BLOCKED, tied, tiny_tokenizer(), kind))
    assert torch.equal(read(checkpoint, "output.weight"), read(checkpoint, "tok_embeddings.weight"))
    assert checkpoint.form("tok_embeddings.weight", (0, 256)) is None
    assert (checkpoint.form("output.weight", (0, 256)) is not None) == (kind == "Q4_K")
    assert len(list(checkpoint.stored())) == len(tied)


# ---- where it lies ----


def test_a_split_file_is_the_same_model_from_any_of_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "split" / "m.gguf"
    save_gguf(path, BLOCKED, WEIGHTS, tiny_tokenizer(), "Q8_0", split_max_tensors=5)
    parts = sorted(path.parent.iterdir())
    assert len(parts) == 5
    one = open_checkpoint(save_gguf(tmp_path / "one.gguf", BLOCKED, WEIGHTS, tiny_tokenizer(), "Q8_0"))
    for place in (parts[0], parts[3], path.parent):
        checkpoint = open_checkpoint(place)
        assert (checkpoint.files, checkpoint.args) == (parts, one.args)
        assert tokenizer_of(checkpoint).model_bytes == tokenizer_of(one).model_bytes
        for name in WEIGHTS:
            assert torch.equal(read(checkpoint, name), read(one, name))


def test_a_folder_is_a_gguf_where_nothing_else_is(mixed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    shutil.copy(mixed, folder)
    (folder / "config.json").write_text("{}")  # what hubs keep beside a GGUF
    assert isinstance(open_checkpoint(folder), GgufCheckpoint)
    save_checkpoint(folder, BLOCKED, WEIGHTS, tiny_model_path())
    assert open_checkpoint(folder).layout == "Meta"
    assert open_checkpoint(folder / "mixed.gguf").layout == "GGUF"
    renamed = tmp_path / "blob"  # as in the caches of programs that name files by their digest
    shutil.copy(mixed, renamed)
    assert open_checkpoint(renamed).layout == "GGUF"


def test_scales_that_are_not_finite_are_an_error_when_they_are_read(tmp_path: Path) -> None:
    for kind in QUANTIZED:
        name = "layers.0.attention.wo.weight"
        raw = random_blocks(kind, 256, 256)
        raw[100] = 0xFF  # among them every scale
        path = save_gguf(
            tmp_path / f"{kind}.gguf", BLOCKED, WEIGHTS, None, "F16", more={name_of(name): (raw, kind)}
        )
        checkpoint = open_checkpoint(path)
        checkpoint.blocks(name, (0, 100), (0, 256))
        with pytest.raises(
            CheckpointFormatError, match=r"blk\.0\.attn_output\.weight has a scale that is NaN"
        ):
            checkpoint.blocks(name, (64, 128), (0, 256))
        with pytest.raises(CheckpointFormatError, match="NaN or infinite in rows"):
            read(checkpoint, name)
