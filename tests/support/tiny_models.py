"""Random checkpoints in Meta's layout, and their Hugging Face twins, made without the package under test.

The split axes and the rotary permutation are written out here a second time, on purpose: what is tested
must not supply its own oracle.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

SHAPE: dict[str, Any] = {
    "dim": 64,
    "n_layers": 2,
    "n_heads": 8,
    "n_kv_heads": 2,
    "multiple_of": 16,
    "norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "vocab_size": -1,
}


def ffn_dim(params: dict[str, Any]) -> int:
    hidden = int(8 * params["dim"] / 3)
    if params.get("ffn_dim_multiplier"):
        hidden = int(params["ffn_dim_multiplier"] * hidden)
    return -(-hidden // params["multiple_of"]) * params["multiple_of"]


def random_weights(
    params: dict[str, Any], vocab: int, seed: int = 0, scale: float = 0.3
) -> dict[str, torch.Tensor]:
    """Whole weights. The scale makes next-token distributions far from uniform, so that errors show."""
    generator = torch.Generator().manual_seed(seed)
    dim, hidden = params["dim"], ffn_dim(params)
    head = dim // params["n_heads"]
    kv = (params.get("n_kv_heads") or params["n_heads"]) * head

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * scale * (64 / columns) ** 0.5

    def norm() -> torch.Tensor:
        return 1 + 0.1 * torch.randn(dim, generator=generator)

    weights = {"tok_embeddings.weight": torch.randn(vocab, dim, generator=generator)}
    for layer in range(params["n_layers"]):
        a, f = f"layers.{layer}.attention", f"layers.{layer}.feed_forward"
        weights |= {f"{a}.wq.weight": matrix(dim, dim), f"{a}.wk.weight": matrix(kv, dim)}
        weights |= {f"{a}.wv.weight": matrix(kv, dim), f"{a}.wo.weight": matrix(dim, dim)}
        weights |= {f"{f}.w1.weight": matrix(hidden, dim), f"{f}.w2.weight": matrix(dim, hidden)}
        weights |= {f"{f}.w3.weight": matrix(hidden, dim)}
        weights |= {
            f"layers.{layer}.attention_norm.weight": norm(),
            f"layers.{layer}.ffn_norm.weight": norm(),
        }
    return weights | {"norm.weight": norm(), "output.weight": matrix(vocab, dim) * 3}


def split(weights: dict[str, torch.Tensor], shards: int) -> list[dict[str, torch.Tensor]]:
    """As Meta's model-parallel ranks save them."""
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(shards)]
    for name, value in weights.items():
        part = name.split(".")[-2]
        if "norm" in part:
            pieces = [value] * shards
        else:
            pieces = list(value.chunk(shards, 1 if part in ("wo", "w2", "tok_embeddings") else 0))
        for shard, piece in zip(parts, pieces, strict=True):
            shard[name] = piece.clone()
    return parts


def save_checkpoint(
    folder: Path,
    params: dict[str, Any],
    weights: dict[str, torch.Tensor],
    tokenizer: Path,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params))
    shutil.copy(tokenizer, folder / "tokenizer.model")
    for i, shard in enumerate(split(weights, shards)):
        shard["rope.freqs"] = torch.ones(params["dim"] // params["n_heads"] // 2)
        torch.save(
            {name: value.to(dtype) for name, value in shard.items()}, folder / f"consolidated.{i:02d}.pth"
        )
    return folder


def hugging_face_twin(params: dict[str, Any], weights: dict[str, torch.Tensor]) -> Any:
    """The same model as transformers' LlamaForCausalLM, float32, eager attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    kv_heads = params.get("n_kv_heads") or params["n_heads"]
    vocab, dim = weights["tok_embeddings.weight"].shape
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=ffn_dim(params),
        num_hidden_layers=params["n_layers"],
        num_attention_heads=params["n_heads"],
        num_key_value_heads=kv_heads,
        rms_norm_eps=params["norm_eps"],
        rope_theta=params["rope_theta"],
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )

    def unpair(weight: torch.Tensor, heads: int) -> torch.Tensor:
        """Interleaved rotary pairs -> halves: row 2i of a head goes to i, row 2i + 1 to half + i."""
        per_head = weight.view(heads, -1, dim)
        return torch.cat([per_head[:, 0::2], per_head[:, 1::2]], dim=1).reshape(weight.shape)

    state = {
        "model.embed_tokens.weight": weights["tok_embeddings.weight"],
        "model.norm.weight": weights["norm.weight"],
    }
    state["lm_head.weight"] = weights["output.weight"]
    for layer in range(params["n_layers"]):
        ours, theirs = f"layers.{layer}", f"model.layers.{layer}"
        names = {"wv": "self_attn.v_proj", "wo": "self_attn.o_proj"}
        state |= {f"{theirs}.{t}.weight": weights[f"{ours}.attention.{o}.weight"] for o, t in names.items()}
        wq, wk = (weights[f"{ours}.attention.{part}.weight"] for part in ("wq", "wk"))
        state[f"{theirs}.self_attn.q_proj.weight"] = unpair(wq, params["n_heads"])
        state[f"{theirs}.self_attn.k_proj.weight"] = unpair(wk, kv_heads)
        names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
        state |= {
            f"{theirs}.mlp.{t}.weight": weights[f"{ours}.feed_forward.{o}.weight"] for o, t in names.items()
        }
        state[f"{theirs}.input_layernorm.weight"] = weights[f"{ours}.attention_norm.weight"]
        state[f"{theirs}.post_attention_layernorm.weight"] = weights[f"{ours}.ffn_norm.weight"]
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(state)
    return model
