"""Tiny models whose steps of few rows can be fused."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from pools import Held
from tiny_models import random_weights

from llama.model import ModelArgs, Transformer

__all__ = ["DTYPES", "MHA", "PARAMS", "VOCAB", "give", "made", "rms", "steps"]

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
PARAMS: dict[str, Any] = {"dim": 256, "n_layers": 3, "n_heads": 8, "n_kv_heads": 2, "multiple_of": 16}
MHA: dict[str, Any] = {"dim": 192, "n_layers": 2, "n_heads": 6, "multiple_of": 48}
VOCAB = 99


def made(
    params: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.bfloat16, cache_dtype: str = "auto"
) -> Transformer:
    args = ModelArgs(**params, vocab_size=VOCAB, rope_theta=1e6, max_seq_len=256, max_batch_size=64)
    with torch.device("meta"):
        model = Transformer(args, cache_dtype=cache_dtype)
    give(model, _weights(tuple(params.items()), seed), dtype)
    return model.eval()


@cache
def _weights(params: tuple[tuple[str, Any], ...], seed: int) -> dict[str, torch.Tensor]:
    return random_weights(dict(params), VOCAB, seed)


def give(model: Transformer, weights: dict[str, torch.Tensor], dtype: torch.dtype = torch.bfloat16) -> None:
    """Weights rounded to bfloat16, in a dtype."""
    for name, weight in weights.items():
        module: Any = model.get_submodule(name.rpartition(".")[0])
        module.assign(weight.to(torch.bfloat16).to(dtype))


def steps(model: Transformer, lengths: list[int], counts: list[int]) -> list[torch.Tensor]:
    """Hidden states of a step, and of one token each after it, which reads what the first stored."""
    held = Held(model, lengths, scatter=len(counts))
    ids = torch.randint(0, VOCAB, (sum(counts),), generator=torch.Generator().manual_seed(99))
    first = held.run(ids, counts)
    return [first, held.run(ids[: len(counts)], [1] * len(counts))]


def rms(x: torch.Tensor) -> float:
    return float(x.float().pow(2).mean().sqrt())
