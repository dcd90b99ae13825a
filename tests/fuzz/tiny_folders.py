"""The smallest sound checkpoints, in both layouts, for targets that damage one file of a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
from tiny_models import ffn_dim, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama.checkpoint.layouts.hugging_face import hf_name

__all__ = ["CONFIG", "INDEX", "PARAMS", "hugging_face", "meta"]

INDEX = "model.safetensors.index.json"
PARAMS: dict[str, Any] = {
    "dim": 8,
    "n_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 1,
    "multiple_of": 4,
    "ffn_dim_multiplier": 1.0,
    "norm_eps": 1e-5,
    "rope_theta": 1e6,
    "vocab_size": -1,
}
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": ffn_dim(PARAMS),
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "vocab_size": 436,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "rope_scaling": None,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
}


def meta(folder: Path) -> None:
    """consolidated.00.pth, params.json, tokenizer.model."""
    save_checkpoint(folder, PARAMS, random_weights(PARAMS, tiny_tokenizer().n_words), tiny_model_path())


def hugging_face(folder: Path, files: int) -> dict[str, Any]:
    """Writes config.json, tokenizer.model and safetensors -> the index, which is written if files > 1."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = random_weights(PARAMS, tiny_tokenizer().n_words)
    tensors = {hf_name(name): value for name, value in weights.items()}
    (folder / "config.json").write_text(json.dumps(CONFIG))
    shutil.copy(tiny_model_path(), folder / "tokenizer.model")
    where: dict[str, str] = {}
    for i in range(files):
        name = "model.safetensors" if files == 1 else f"model-{i + 1:05d}-of-{files:05d}.safetensors"
        part = dict(list(tensors.items())[i::files])
        safetensors.torch.save_file(part, folder / name)
        where |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    if files > 1:
        (folder / INDEX).write_text(json.dumps(index))
    return index
