"""What a GGUF may ask for that this runtime does not compute: refused by name, before anything is allocated."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_files import add_vocabulary, encoded, save_gguf
from tiny_models import SHAPE, random_weights
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama.checkpoint import open_checkpoint, tokenizer_of
from llama.errors import (
    CheckpointFormatError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigError,
    LlamaError,
    TokenizerError,
)

Refuse = Callable[..., str]
TOKENIZER = tiny_tokenizer()
WEIGHTS = random_weights(SHAPE, TOKENIZER.n_words)
VECTOR = np.ones(64, np.float32)
_NEW = {np.float64: "float64", bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}


def saved(place: Path, key: str = "", value: Any = None, **options: Any) -> Path:
    """A sound model, but for one key: another value, or None to leave it out."""

    def change(writer: gguf.GGUFWriter) -> None:
        keys = writer.kv_data[0]
        keys.pop(key, None)
        if key and value is not None:
            getattr(writer, f"add_{_NEW[type(value)]}")(key, value)

    options.setdefault("tokenizer", TOKENIZER)
    return save_gguf(
        place / "x.gguf", SHAPE, options.pop("weights", WEIGHTS), kind="F16", change=change, **options
    )


def test_the_file_is_sound_without_a_change(tmp_path: Path) -> None:
    assert tokenizer_of(open_checkpoint(saved(tmp_path))).n_words == TOKENIZER.n_words


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("general.architecture", "gemma", "general.architecture is 'gemma'; this runtime computes 'llama'"),
        ("general.architecture", None, "general.architecture is None"),
        ("general.type", "adapter", "general.type is 'adapter'"),
        ("llama.embedding_length", None, "it lacks llama.embedding_length"),
        ("llama.embedding_length", 0, "llama.embedding_length is 0; it must be an integer from 1 to"),
        ("llama.block_count", 2**31, "llama.block_count is 2147483648"),
        ("llama.block_count", 5_000, "n_layers is 5000"),
        ("llama.feed_forward_length", [128, 128], "llama.feed_forward_length is array"),
        (
            "llama.attention.head_count",
            3,
            "llama.rope.dimension_count is 8, but llama.embedding_length 64 / 3 heads",
        ),
        ("llama.attention.head_count_kv", 3, "n_kv_heads is 3"),
        ("llama.attention.layer_norm_rms_epsilon", None, "it lacks llama.attention.layer_norm_rms_epsilon"),
        ("llama.attention.layer_norm_rms_epsilon", 1, "epsilon is 1; it must be a floating-point number"),
        ("llama.rope.freq_base", float("nan"), "rope_theta is nan"),
        ("llama.rope.freq_base", np.float64(1e300), "rope_theta is inf"),
        ("llama.rope.freq_base", -1.0, "rope_theta is -1.0"),
        ("llama.rope.dimension_count", 4, "llama.rope.dimension_count is 4, but"),
        ("llama.attention.key_length", 16, "llama.attention.key_length is 16, but"),
        ("llama.attention.value_length", 16, "llama.attention.value_length is 16, but"),
        (
            "llama.rope.scaling.type",
            "linear",
            "llama.rope.scaling.type is 'linear'; this runtime does not compute",
        ),
        ("llama.rope.scaling.factor", 4.0, "llama.rope.scaling.factor is 4.0"),
        ("llama.rope.scale_linear", 2.0, "llama.rope.scale_linear is 2.0"),
        ("llama.expert_count", 8, "llama.expert_count is 8"),
        ("llama.attention.sliding_window", 4096, "llama.attention.sliding_window is 4096"),
        ("llama.attention.causal", False, "llama.attention.causal is False"),
        ("llama.logit_scale", 0.5, "llama.logit_scale is 0.5"),
        ("llama.tensor_data_layout", "odd", "llama.tensor_data_layout is 'odd'"),
        ("llama.something.new", [1], "llama.something.new is array"),
    ],
)
def test_keys_that_change_the_model_are_named(
    tmp_path: Path, refuse: Refuse, key: str, value: Any, words: str
) -> None:
    path = saved(tmp_path, key, value)
    refuse(path, ConfigError, path, words)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.expert_count", 0),
        ("llama.rope.scaling.type", "none"),
        ("llama.rope.scale_linear", 1.0),
        ("llama.tensor_data_layout", "Meta AI original pth"),
        ("llama.attention.key_length", 8),
        ("llama.use_parallel_residual", False),
        ("llama.rope.dimension_count", None),
        ("llama.context_length", None),
        ("general.quantization_version", 2),
        ("quantize.imatrix.file", "x"),
    ],
)
def test_keys_that_change_nothing_are_read_over(tmp_path: Path, key: str, value: Any) -> None:
    assert open_checkpoint(saved(tmp_path, key, value)).args.head_dim == 8


def test_the_defaults_are_llama_cpps(tmp_path: Path) -> None:
    assert open_checkpoint(saved(tmp_path, "llama.rope.freq_base")).args.rope_theta == 10_000
    weights = random_weights({**SHAPE, "n_kv_heads": 8}, TOKENIZER.n_words)
    path = saved(tmp_path, "llama.attention.head_count_kv", weights=weights)
    assert open_checkpoint(path).args.kv_heads == 8


@pytest.mark.parametrize(
    ("more", "kind", "words"),
    [
        ({"blk.0.attn_q.bias": VECTOR}, CheckpointMismatchError, "does not compute: blk.0.attn_q.bias"),
        (
            {"blk.0.ffn_gate_inp.weight": VECTOR},
            CheckpointMismatchError,
            "compute: blk.0.ffn_gate_inp.weight",
        ),
        ({"blk.7.attn_norm.weight": VECTOR}, CheckpointMismatchError, "compute: blk.7.attn_norm.weight"),
        (
            {"output_norm.weight": VECTOR[:32]},
            CheckpointMismatchError,
            "output_norm.weight is .32., not .64.",
        ),
        (
            {"token_embd.weight": VECTOR},
            CheckpointMismatchError,
            "no tensor token_embd.weight of two dimensions",
        ),
        (
            {
                "rope_freqs.weight": np.float32([1, 1, 1, 8])
            },  # as of Llama 3.1, which leaves high frequencies alone
            ConfigError,
            "rope_freqs.weight scales the rotary frequencies",
        ),
    ],
)
def test_tensors_that_change_the_model_are_named(
    tmp_path: Path, refuse: Refuse, more: dict[str, Any], kind: type[LlamaError], words: str
) -> None:
    path = saved(tmp_path, more={name: (value, "F32") for name, value in more.items()})
    with pytest.raises(kind, match=words):
        open_checkpoint(path)
    refuse(path, kind, path)


def test_factors_of_one_change_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path, more={"rope_freqs.weight": (VECTOR[:4], "F32")})
    assert "rope_freqs.weight" not in [name for name, _, _ in open_checkpoint(path).stored()]


def test_a_missing_tensor_and_a_quantized_norm_are_named(tmp_path: Path, refuse: Refuse) -> None:
    norm = {"output_norm.weight": (encoded(torch.ones(64), "Q8_0"), "Q8_0")}
    refuse(saved(tmp_path, more=norm), CheckpointMismatchError, "output_norm.weight is quantized (Q8_0)")
    few = {name: value for name, value in WEIGHTS.items() if "layers.1.attention.wo" not in name}
    path = saved(tmp_path, weights=few)
    refuse(path, CheckpointMismatchError, "it lacks blk.1.attn_output.weight", "does not fit its metadata")


def test_tokens_must_be_the_rows_of_the_embedding(tmp_path: Path, refuse: Refuse) -> None:
    path = saved(tmp_path, tokenizer=tiny_tokenizer("step"))
    refuse(path, CheckpointMismatchError, "it has 441 tokens, but token_embd.weight has 436 rows")
    refuse(
        saved(tmp_path, "llama.vocab_size", 32_000), CheckpointMismatchError, "vocab_size 32000", "436 rows"
    )


def test_a_vocabulary_of_another_kind_is_refused(tmp_path: Path, refuse: Refuse) -> None:
    """Unless a tokenizer.model is named."""
    path = saved(tmp_path, "tokenizer.ggml.model", "gpt2")
    refuse(path, TokenizerError, path, "tokenizer.ggml.model is 'gpt2'")
    assert tokenizer_of(open_checkpoint(path), tiny_model_path()).n_words == 436


def test_a_file_without_a_vocabulary_takes_the_one_beside_it(tmp_path: Path, refuse: Refuse) -> None:
    path = saved(tmp_path, tokenizer=None)
    refuse(path, CheckpointNotFoundError, tmp_path / "tokenizer.model", "is missing")
    (tmp_path / "tokenizer.model").write_bytes(tiny_model_path().read_bytes())
    assert tokenizer_of(open_checkpoint(path)).n_words == 436


def test_several_models_in_a_folder_are_named(tmp_path: Path, refuse: Refuse) -> None:
    for name in ("b", "a"):
        saved(tmp_path).rename(tmp_path / f"{name}.gguf")
    refuse(
        tmp_path, CheckpointNotFoundError, tmp_path, "holds 2 GGUF files, a.gguf, b.gguf; pass one of them"
    )


def test_missing_parts_of_a_split_model_are_named(tmp_path: Path, refuse: Refuse) -> None:
    """Whichever parts are there, and whether one of them or the folder is opened."""
    parts = sorted(saved(tmp_path / "m", split_max_tensors=9).parent.iterdir())
    assert len(parts) == 3
    for there in ([0], [1], [0, 2]):
        folder = tmp_path / f"with {there}"
        folder.mkdir()
        for i in there:
            shutil.copy(parts[i], folder)
        missing = [each.name for i, each in enumerate(parts) if i not in there]
        words = (
            f"{folder} lacks {len(missing)} of the 3 files of ",
            f": {', '.join(missing)}; download them too",
        )
        refuse(folder, CheckpointNotFoundError, *words)
        refuse(folder / parts[there[-1]].name, CheckpointNotFoundError, *words)
    whole = saved(tmp_path / "whole")
    whole = whole.rename(whole.with_name("whole-00001-of-00003.gguf"))
    assert open_checkpoint(whole).shards == 1  # a name alone takes nothing away
    raw = whole.read_bytes()
    whole.write_bytes(raw.replace(b"blk.1.ffn_up.weight", b"blk.9.ffn_up.weight"))
    refuse(
        whole,
        CheckpointMismatchError,
        "lacks blk.1.ffn_up.weight (by its name it is one of 3 files, by its metadata",
    )


def test_a_tensor_in_two_files_is_named(tmp_path: Path, refuse: Refuse) -> None:
    path = saved(tmp_path / "m", split_max_tensors=11)
    first, second = sorted(path.parent.iterdir())
    raw = second.read_bytes()
    assert raw.count(b"blk.1.ffn_up.weight") == 1
    second.write_bytes(raw.replace(b"blk.1.ffn_up.weight", b"blk.0.ffn_up.weight"))
    refuse(first, CheckpointMismatchError, "blk.0.ffn_up.weight is in", first.name, second.name)


@pytest.mark.parametrize("name", ["x.gguf", "README.md"])
def test_other_files_are_named(tmp_path: Path, refuse: Refuse, name: str) -> None:
    (tmp_path / name).write_text("# hello")
    if name == "x.gguf":
        refuse(tmp_path / name, CheckpointFormatError, "is not a GGUF file: it begins with b'# he'")
    else:
        refuse(tmp_path / name, CheckpointNotFoundError, "is a file, and not a GGUF; pass the folder")
    os.mkfifo(tmp_path / "pipe.gguf")
    refuse(tmp_path / "pipe.gguf", CheckpointNotFoundError, "is neither a file nor a folder")
    refuse(tmp_path / "none.gguf", CheckpointNotFoundError, "checkpoint", "none.gguf does not exist")


def test_the_vocabulary_is_written_as_by_the_converter(tmp_path: Path) -> None:
    """The helper of these tests stores what the package's own reader of a tokenizer.model finds."""
    vocab = gguf.vocab.SentencePieceVocab(_folder_of_model(tmp_path))
    tokens = list(vocab.all_tokens())
    writer = gguf.GGUFWriter(tmp_path / "y.gguf", "llama")
    add_vocabulary(writer, TOKENIZER)
    keys = {key: value.value for key, value in writer.kv_data[0].items()}
    assert keys["tokenizer.ggml.tokens"] == [text for text, _, _ in tokens]
    assert keys["tokenizer.ggml.scores"] == [score for _, score, _ in tokens]
    assert keys["tokenizer.ggml.token_type"] == [int(kind) for _, _, kind in tokens]


def _folder_of_model(place: Path) -> Path:
    (place / "tokenizer.model").write_bytes(tiny_model_path().read_bytes())
    return place
