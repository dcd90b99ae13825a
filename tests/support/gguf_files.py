"""GGUF files for tests, written with the package `gguf`, which the package under test does not use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tiny_models import SHAPE, ffn_dim

from llama.tokenizer import Tokenizer

# Rows of whole blocks of 256, and at least as many matrices as there are types.
BLOCKED: dict[str, Any] = {**SHAPE, "dim": 256, "multiple_of": 256, "ffn_dim_multiplier": 0.5}
PLAIN = ("F32", "F16", "BF16")
TAKEN = {"Q8_0": "int8", "Q4_0": "int4", "Q4_K": "k4"}
QUANTIZED = ("Q8_0", "Q4_0", "Q4_K", "Q2_K", "Q3_K", "Q4_1", "Q5_0", "Q5_1", "Q5_K", "Q6_K")
# Bytes of a block at which its float16 numbers lie.
HALVES = {
    **{"Q8_0": (0,), "Q4_0": (0,), "Q4_K": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_1": (0, 2)},
    **{"Q5_0": (0,), "Q5_1": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)},
}
_NAMES = {
    **{
        "tok_embeddings": "token_embd",
        "norm": "output_norm",
        "output": "output",
        "wq": "attn_q",
        "wk": "attn_k",
    },
    **{"wv": "attn_v", "wo": "attn_output", "w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"},
    **{"attention_norm": "attn_norm", "ffn_norm": "ffn_norm"},
}


def name_of(name: str) -> str:
    """Meta's name -> llama.cpp's, written a second time."""
    parts = name.split(".")
    layer = f"blk.{parts[1]}." if parts[0] == "layers" else ""
    return f"{layer}{_NAMES[parts[-2]]}.weight"


def size_of(kind: str) -> tuple[int, int]:
    """Weights of a block, and its bytes."""
    weights, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return int(weights), int(nbytes)


def random_blocks(kind: str, rows: int, columns: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Random bytes of quantized rows; their scales are finite and not too small."""
    weights, nbytes = size_of(kind)
    generator = np.random.default_rng(seed)
    raw = generator.integers(0, 256, (rows, columns // weights, nbytes), dtype=np.uint8)
    for at in HALVES[kind]:
        scale = generator.uniform(0.001, 0.01, raw.shape[:2]).astype(np.float16)
        raw[..., at : at + 2] = scale[..., None].view(np.uint8)
    return raw.reshape(rows, -1)


def encoded(weight: torch.Tensor, kind: str) -> np.ndarray[Any, Any]:
    """A tensor as the package stores it in a type that it can write."""
    found: np.ndarray[Any, Any] = gguf.quants.quantize(
        weight.float().numpy(), gguf.GGMLQuantizationType[kind]
    )
    return found


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    """As llama.cpp's converter stores a SentencePiece model."""
    sp, ids = tokenizer.sp_model, range(tokenizer.n_words)
    tests = {2: sp.is_unknown, 3: sp.is_control, 5: sp.is_unused, 6: sp.is_byte}
    writer.add_tokenizer_model("llama")
    writer.add_token_list([sp.id_to_piece(i).encode() for i in ids])
    writer.add_token_scores([sp.get_score(i) for i in ids])
    writer.add_token_types([next((kind for kind, test in tests.items() if test(i)), 1) for i in ids])
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_unk_token_id(tokenizer.unk_id)
    writer.add_add_space_prefix(True)


def add_shape(writer: gguf.GGUFWriter, params: dict[str, Any]) -> None:
    """The hyperparameters of a params.json."""
    heads = params["n_heads"]
    writer.add_context_length(16384)
    writer.add_embedding_length(params["dim"])
    writer.add_block_count(params["n_layers"])
    writer.add_feed_forward_length(ffn_dim(params))
    writer.add_head_count(heads)
    writer.add_head_count_kv(params.get("n_kv_heads") or heads)
    writer.add_rope_dimension_count(params["dim"] // heads)
    writer.add_rope_freq_base(params["rope_theta"])
    writer.add_layer_norm_rms_eps(params["norm_eps"])


def save_gguf(
    path: Path,
    params: dict[str, Any],
    weights: dict[str, torch.Tensor],
    tokenizer: Tokenizer | None,
    kind: str | Callable[[str], str] = "F16",
    *,
    change: Callable[[gguf.GGUFWriter], None] = lambda _: None,
    more: dict[str, tuple[np.ndarray[Any, Any], str]] | None = None,
    **options: Any,
) -> Path:
    """Write a model as one file, or with `split_max_tensors` as several.

    Args:
        kind: of the matrices, one for all or by Meta's name; types that the package cannot write get random blocks.
        change: adds to the metadata.
        more: other tensors, by GGUF's names, or other content for those of the model.
        options: of GGUFWriter.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama", **options)
    add_shape(writer, params)
    if tokenizer is not None:
        add_vocabulary(writer, tokenizer)
    change(writer)
    tensors: dict[str, tuple[np.ndarray[Any, Any], str]] = {}
    for seed, (name, weight) in enumerate(weights.items()):
        wanted = "F32" if weight.dim() == 1 else kind if isinstance(kind, str) else kind(name)
        try:
            data = encoded(weight, wanted)
        except NotImplementedError:
            data = random_blocks(wanted, weight.shape[0], weight.shape[1], seed)
        tensors[name_of(name)] = data, wanted
    for name, (data, stored) in (tensors | (more or {})).items():
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[stored])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def whole(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a file in float32, as the package reads it."""
    return {
        tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in gguf.GGUFReader(path).tensors
    }
