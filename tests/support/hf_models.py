"""Random Hugging Face folders, saved in every way that transformers saves them, and its logits.

The order of rotary rows is undone here a second time, without the package under test.
"""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama import Llama

TOLERANCE = 1e-4


IDS = [[1, 10, 200, 31, 7, 7, 300, 42, 99, 5, 64, 12], [1, 400, 2, 3, 55, 21, 8, 150, 77, 310, 18, 6]]


NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@functools.cache
def random_model(
    kv_heads: int = 2, tied: bool = False, dtype: torch.dtype = torch.float32, vocab: int | None = None
) -> Any:
    """A random LlamaForCausalLM for the tiny tokenizer, with logits far from uniform, so that errors show."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab or tiny_tokenizer().n_words,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        max_position_embeddings=4096,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(kv_heads)
    for value in model.parameters():
        noise = torch.randn(value.shape, generator=generator)
        value.copy_(1 + 0.1 * noise if value.dim() == 1 else noise * 0.3)
    return model.to(dtype)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor(IDS)).logits
    assert found.std() > 1
    return found


def in_meta_order(model: Any) -> dict[str, torch.Tensor]:
    """The weights by Meta's names, rotary pairs side by side."""
    state, heads = model.state_dict(), model.config.num_attention_heads
    names = {"tok_embeddings.weight": EMBEDDING, "norm.weight": "model.norm.weight", "output.weight": HEAD}
    for layer in range(model.config.num_hidden_layers):
        names |= {
            f"layers.{layer}.{ours}.weight": f"model.layers.{layer}.{theirs}.weight"
            for ours, theirs in NAMES.items()
        }
    found = {ours: state[theirs] for ours, theirs in names.items()}
    for name, value in found.items():
        if name.endswith(("wq.weight", "wk.weight")):
            count = heads if "wq" in name else model.config.num_key_value_heads
            low, high = value.view(count, 2, -1, value.shape[1]).unbind(1)
            found[name] = torch.stack([low, high], dim=2).reshape(value.shape)
    return found


WAYS = (
    "safetensors",
    "safetensors with index",
    "bin",
    "bin with index",
    "numbered bins",
    "numbered safetensors",
)


def save(model: Any, folder: Path, way: str = "safetensors") -> Path:
    """As transformers saves it; its releases before 4.30 wrote .bin, which is torch.save."""
    model.save_pretrained(
        folder, max_shard_size="60KB" if way.endswith("index") or "numbered" in way else "1GB"
    )
    shutil.copy(tiny_model_path(), folder / "tokenizer.model")
    files = sorted(folder.glob("*.safetensors"))
    assert (len(files) > 3) == (way not in ("safetensors", "bin"))
    if "bin" in way:
        where, index = {}, folder / "model.safetensors.index.json"
        if index.exists():
            where = json.loads(index.read_text())["weight_map"]
            index.unlink()
        state = model.state_dict()
        for i, path in enumerate(files, 1):
            name = f"pytorch_model-{i:05d}-of-{len(files):05d}.bin" if where else "pytorch_model.bin"
            chosen = {k: v for k, v in state.items() if where.get(k, path.name) == path.name}
            torch.save(chosen, folder / name)
            where = {k: name if v == path.name else v for k, v in where.items()}
            path.unlink()
        if where:
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    if "numbered" in way:
        for path in folder.glob("*.index.json"):
            path.unlink()
    return folder


def load(folder: Path, **options: Any) -> Llama:
    return Llama.build(folder, None, 64, 2, 1, device="cpu", **{"dtype": "float32", **options})


def change_config(folder: Path, *drop: str, **changes: Any) -> dict[str, Any]:
    path = folder / "config.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if k not in drop} | changes
    path.write_text(json.dumps(config))
    return config


def assert_same_logits(folder: Path, expected: torch.Tensor) -> None:
    with load(folder) as llama:
        found = llama.model(torch.tensor(IDS))
    assert (found - expected).abs().max() < TOLERANCE
