"""Small models of the package under test, with the weights of tiny_models.py put in by hand.

The loader is left out on purpose: what fails here is the model or what stands above it.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from tiny_models import SHAPE, hugging_face_twin, random_weights
from tiny_tokenizers import tiny_tokenizer

from llama.generation import Llama
from llama.model import ModelArgs, Transformer

GQA: dict[str, Any] = SHAPE
MHA: dict[str, Any] = {**SHAPE, "n_heads": 4, "n_kv_heads": None, "ffn_dim_multiplier": 1.3}
# Heads of 32 numbers, which fused layers take where kernels are compiled: a step takes a fourth of the time. For tests
# of what stands above the model.
FUSED: dict[str, Any] = {**SHAPE, "dim": 128, "n_heads": 4, "n_kv_heads": 2}
SHAPES = {"gqa": GQA, "mha": MHA, "fused": FUSED}
TEXT = "def return self value list"


@functools.cache
def weights(shape: str = "gqa", kind: str = "infilling") -> dict[str, torch.Tensor]:
    """Float32 weights of a shape for the vocabulary of a tiny tokenizer."""
    return random_weights(SHAPES[shape], tiny_tokenizer(kind).n_words)


@functools.cache
def twin(shape: str = "gqa", kind: str = "infilling") -> Any:
    """The same weights in transformers."""
    return hugging_face_twin(SHAPES[shape], weights(shape, kind))


def tiny_model(
    shape: str = "gqa",
    kind: str = "infilling",
    *,
    max_seq_len: int = 128,
    max_batch_size: int = 4,
    dtype: torch.dtype = torch.float32,
) -> Transformer:
    """A model of one rank, with weights assigned."""
    tensors = weights(shape, kind)
    params = {**SHAPES[shape], "vocab_size": len(tensors["tok_embeddings.weight"])}
    args = ModelArgs.from_params(params, max_seq_len=max_seq_len, max_batch_size=max_batch_size)
    model = Transformer(args)
    for name, module in model.named_modules():
        if hasattr(module, "assign"):
            module.assign(tensors[f"{name}.weight"].to(dtype, copy=True))
    return model.eval()


def tiny_llama(shape: str = "gqa", kind: str = "infilling", **limits: Any) -> Llama:
    """A Llama on a `tiny_model`."""
    seed = limits.pop("seed", None)
    return Llama(tiny_model(shape, kind, **limits), tiny_tokenizer(kind), seed=seed)


def twin_logits(ids: list[int], shape: str = "gqa", kind: str = "infilling") -> torch.Tensor:
    """The twin's logits of every position, (T, V) float32."""
    with torch.no_grad():
        logits: torch.Tensor = twin(shape, kind)(torch.tensor([ids])).logits[0]
    return logits
