"""Predicts the memory of a model before it is loaded: weights, KV cache and work space per rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .args import STEP_TOKENS, STEP_TOKENS_CUDA, ModelArgs
from .budget import GIB, cache_bytes_per_token, cache_format, free_memory, weight_bytes
from .family import MEMBERS, args_of
from .quantization import quantized_bytes

__all__ = ["Estimate", "devices", "estimate", "largest", "step_tokens_on", "table"]

# The columns of `table`: numbers of ranks, and tokens of the cache.
_TABLE_SIZES = (1, 2, 4, 8)
_TABLE_CONTEXT = 16384


@dataclass(frozen=True)
class Estimate:
    """Bytes on one rank. `per_token`: the cache of one position."""

    weights: int
    cache: int
    work: int
    per_token: int

    @property
    def total(self) -> int:
        """The sum of the three parts."""
        return self.weights + self.cache + self.work


def estimate(
    args: ModelArgs,
    size: int,
    seq: int,
    batch: int,
    dtype: torch.dtype,
    quant: str | None = None,
    weights: int | None = None,
    cache_dtype: str = "auto",
    step_tokens: int = STEP_TOKENS,
) -> Estimate:
    """Memory per rank when `size` ranks run `batch` sequences of `seq` tokens.

    Args:
        dtype: of activations, of the weights unless `quant` is set, and of the cache unless `cache_dtype` is int8.
        quant: "int8" or "int4": the weights are quantized while they are read.
        weights: bytes of the weights of a rank, if they are known.
        step_tokens: the most tokens of one step, on the device in question: see `step_tokens_on`.
    """
    per_token = cache_bytes_per_token(args, size, cache_format(cache_dtype, dtype))
    if weights is None:
        weights = (
            weight_bytes(args, size, dtype) if quant is None else quantized_bytes(args, size, dtype, quant)
        )
    work = _work_bytes(args, size, min(step_tokens, seq * batch), batch, dtype)
    return Estimate(weights, per_token * seq * batch, work, per_token)


def _work_bytes(args: ModelArgs, size: int, tokens: int, batch: int, dtype: torch.dtype) -> int:
    """What a step needs beside weights and cache: one layer's activations, and the logits to sample from."""
    heads = (2 * args.n_heads + 2 * args.kv_heads) * args.head_dim // size
    per_token = 4 * args.dim + heads + 3 * args.ffn_dim // size
    # Logits in the model's dtype, and three float32 copies: converted, sorted, exponentiated.
    logits = batch * args.vocab_size * (dtype.itemsize + 3 * 4)
    return tokens * per_token * dtype.itemsize + logits


def largest(works: Callable[[int], bool]) -> int:
    """The largest number that works, 0 if not even 1 does. If a number works, so must all smaller ones."""
    beyond = 1
    while works(beyond) and beyond < 1 << 40:
        beyond *= 2
    low = beyond // 2
    while low + 1 < beyond:
        middle = (low + beyond) // 2
        low, beyond = (middle, beyond) if works(middle) else (low, middle)
    return low


def devices() -> list[tuple[str, int | None]]:
    """This machine's devices and their free bytes (None: unknown)."""
    if torch.cuda.is_available():
        found = []
        for index in range(torch.cuda.device_count()):
            device = torch.device("cuda", index)
            found.append((f"cuda:{index} ({torch.cuda.get_device_name(device)})", free_memory(device)))
        return found
    return [("cpu", free_memory(torch.device("cpu")))]


def step_tokens_on(device: str) -> int:
    """The most tokens of one step on a device of `devices`, by its name there."""
    return STEP_TOKENS_CUDA if device.startswith("cuda") else STEP_TOKENS


def table() -> str:
    """The memory of all members, as the Markdown table in docs/family.md."""
    half = torch.bfloat16
    rows = []
    sizes = " / ".join(map(str, _TABLE_SIZES))
    models = [args_of(member) for member in MEMBERS]
    rows.append(f"| GiB per rank on {sizes} ranks | " + " | ".join(member.name for member in MEMBERS) + " |")
    rows.append("|---|" + "---|" * len(MEMBERS))

    def row(label: str, bytes_of: list[list[int]]) -> None:
        cells = [" / ".join(f"{each / GIB:.1f}" for each in column) for column in bytes_of]
        rows.append(f"| {label} | " + " | ".join(cells) + " |")

    row("weights, 16 bit", [[weight_bytes(args, n, half) for n in _TABLE_SIZES] for args in models])
    for quant, label in (("int8", "8"), ("int4", "4")):
        row(
            f"weights, {label} bit",
            [[quantized_bytes(args, n, half, quant) for n in _TABLE_SIZES] for args in models],
        )
    row(
        f"KV cache of {_TABLE_CONTEXT} tokens, 16 bit",
        [[cache_bytes_per_token(args, n, half) * _TABLE_CONTEXT for n in _TABLE_SIZES] for args in models],
    )
    row(
        "work space of one such sequence",
        [[estimate(args, n, _TABLE_CONTEXT, 1, half).work for n in _TABLE_SIZES] for args in models],
    )
    return "\n".join(rows)
