"""Models with random weights, made on the device, and what their steps must move and compute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from peers import TOKENIZER, WideTokenizer

from llama.model import ModelArgs, Transformer
from llama.sizing.family import MEMBERS, args_of
from llama.sizing.shapes import expected_shapes, is_product

from .figures import Cost

__all__ = [
    "AsciiTokenizer",
    "cache_bytes",
    "decode_cost",
    "make_model",
    "prefill_cost",
    "shape",
    "weight_bytes",
]

DTYPE = torch.bfloat16
_LIMITS = {"max_seq_len": 16640, "max_batch_size": 256}
_TINY = ModelArgs(dim=64, n_layers=2, n_heads=4, vocab_size=512, multiple_of=32, rope_theta=1e6, **_LIMITS)


class AsciiTokenizer(WideTokenizer):
    """A letter in place of each byte that is no character by itself, so that each step gives each sequence text."""

    def token_bytes(self, t: int) -> str | bytes | None:
        text = super().token_bytes(t)
        return text if isinstance(text, str) and text else "a"


def tokenizer() -> AsciiTokenizer:
    """For any of the models here."""
    return AsciiTokenizer(TOKENIZER)


def shape(name: str, tiny: bool) -> ModelArgs:
    """7B or 34B, or a tiny stand-in with as many key/value heads in proportion."""
    member = next(member for member in MEMBERS if member.name == name)
    if tiny:
        return replace(_TINY, n_kv_heads=4 * member.kv_heads // member.n_heads or 1)
    return replace(args_of(member), vocab_size=member.vocab_size, **_LIMITS)


def make_model(args: ModelArgs, device: torch.device) -> Transformer:
    """A model with random weights, which lie in memory as the loader lays them; there is no second copy of any."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = Transformer(args)
    shapes = expected_shapes(args)
    # Weights that are multiplied as one are neighbouring rows of one matrix.
    groups = {name: group for group in model.joined_weights() for name in group}
    rows: dict[str, torch.Tensor] = {}
    for name, sizes in shapes.items():
        group = groups.get(name, [name])
        if name not in rows:
            heights = [shapes[each][0] for each in group]
            matrix = torch.empty(sum(heights), *sizes[1:], dtype=DTYPE, device=device)
            rows |= zip(group, torch.split(matrix, heights), strict=True)
        weight = rows.pop(name)
        module: Any = model.get_submodule(name.rpartition(".")[0])
        module.assign(weight.fill_(1) if len(sizes) == 1 else weight.normal_(0, 0.02))
    return model.eval()


def _numbers(args: ModelArgs, *, products_only: bool = False) -> int:
    shapes = expected_shapes(args).items()
    return sum(torch.Size(sizes).numel() for name, sizes in shapes if is_product(name) or not products_only)


def weight_bytes(args: ModelArgs) -> int:
    """Of all weights."""
    return _numbers(args) * DTYPE.itemsize


def cache_bytes(args: ModelArgs) -> int:
    """Keys and values of one position."""
    return 2 * args.n_layers * args.kv_heads * args.head_dim * DTYPE.itemsize


def decode_cost(args: ModelArgs, batch: int, positions: float) -> Cost:
    """One token of each of `batch` sequences that have `positions` behind them: weights once, each cache once."""
    products = _numbers(args, products_only=True)
    attention = 4 * positions * args.dim * args.n_layers
    moved = products * DTYPE.itemsize + batch * positions * cache_bytes(args)
    return Cost(moved, batch * (2 * products + attention), batch)


def prefill_cost(args: ModelArgs, length: int) -> Cost:
    """A prompt to its first token: logits of its last position, and each position attends to those before it."""
    products = _numbers(args, products_only=True)
    output = args.dim * args.vocab_size
    attention = 2 * length * length * args.dim * args.n_layers
    moved = products * DTYPE.itemsize + length * cache_bytes(args)
    return Cost(moved, 2 * (products - output) * length + 2 * output + attention)
