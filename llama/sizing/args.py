"""`ModelArgs`: the hyperparameters in params.json, validated, and the model-parallel sizes that they allow.

Never imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import ConfigError, ParallelismError
from ..printable import shown

__all__ = ["STEP_TOKENS", "STEP_TOKENS_CUDA", "ModelArgs", "can_split", "check_size", "valid_sizes"]

STEP_TOKENS = 1024
"""Tokens of one step, unless an engine is told otherwise; longer prompts are prefilled in chunks."""
STEP_TOKENS_CUDA = 8192
"""The same on a GPU, which is not busy with fewer: each step starts all kernels and reads all weights anew."""

# Upper bounds, far above any model: a params.json of a few bytes must not exhaust memory. Names and shapes of
# all layers are made before a weight is read.
_MOST = {
    "dim": 1 << 20,
    "n_layers": 1 << 10,
    "n_heads": 1 << 14,
    "multiple_of": 1 << 20,
    "max_batch_size": 1 << 31,
    "max_seq_len": 1 << 31,
}
_MOST_FFN, _MOST_VOCAB = 1 << 24, 1 << 31
# The largest float32: rotary angles and norms are computed in float32.
_MOST_FLOAT = (2 - 2.0**-23) * 2.0**127


@dataclass
class ModelArgs:
    """The hyperparameters in params.json, and the two limits that `Llama.build` takes.

    Raises (on construction):
        ConfigError: a value out of range.
    """

    dim: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int | None = None
    vocab_size: int = -1  # -1: the embedding's number of rows
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_batch_size: int = 32
    max_seq_len: int = 2048

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ConfigError(f"{name} is {shown(value)}; it must be an integer from 1 to {most:,}")
        for name in ("norm_eps", "rope_theta", "ffn_dim_multiplier"):
            value = getattr(self, name)
            if value is None and name == "ffn_dim_multiplier":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MOST_FLOAT:
                raise ConfigError(
                    f"{name} is {shown(value)}; it must be a positive number of at most {_MOST_FLOAT:.3g}"
                )
            setattr(self, name, float(value))
        kv = self.n_kv_heads
        if kv is not None and (
            isinstance(kv, bool) or not isinstance(kv, int) or kv < 1 or self.n_heads % kv
        ):
            raise ConfigError(
                f"n_kv_heads is {shown(kv)}; it must be an integer that divides n_heads {self.n_heads}"
            )
        vocab = self.vocab_size
        known = isinstance(vocab, int) and not isinstance(vocab, bool)
        if not known or not (1 <= vocab <= _MOST_VOCAB or vocab == -1):
            raise ConfigError(
                f"vocab_size is {shown(vocab)}; it must be from 1 to {_MOST_VOCAB:,},"
                " or -1 for the embedding's size"
            )
        if self.dim % (2 * self.n_heads):
            raise ConfigError(f"dim {self.dim} cannot be split into {self.n_heads} heads of equal, even size")
        if (self.ffn_dim_multiplier or 1) * 3 * self.dim > _MOST_FFN or not 1 <= self.ffn_dim <= _MOST_FFN:
            raise ConfigError(
                f"ffn_dim_multiplier {self.ffn_dim_multiplier} and multiple_of {self.multiple_of} give"
                f" a feed-forward dimension outside 1 to {_MOST_FFN:,} for dim {self.dim}"
            )

    @classmethod
    def from_params(cls, params: Mapping[str, Any], *, max_seq_len: int, max_batch_size: int) -> ModelArgs:
        """Build from the content of params.json.

        Raises:
            ConfigError: an unknown key (it could change what the model computes), or a missing or bad value.
        """
        known = {field.name for field in fields(cls)} - {"max_seq_len", "max_batch_size"}
        unknown = sorted(set(params) - known)
        if unknown:
            named = ", ".join(map(str, unknown[:8]))[:400]
            raise ConfigError(
                f"params.json has unknown keys {named}; this runtime knows {', '.join(sorted(known))},"
                " and ignoring a key could change what the model computes"
            )
        missing = [name for name in ("dim", "n_layers", "n_heads") if name not in params]
        if missing:
            raise ConfigError(
                f"params.json lacks {', '.join(missing)}; fetch the file that came with the weights"
            )
        return cls(**params, max_seq_len=max_seq_len, max_batch_size=max_batch_size)

    @property
    def kv_heads(self) -> int:
        """Key/value heads: n_heads unless params.json sets n_kv_heads."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.dim // self.n_heads

    @property
    def ffn_dim(self) -> int:
        """Hidden size of the feed-forward layers, by Meta's rule."""
        hidden = int(2 * 4 * self.dim / 3)
        if self.ffn_dim_multiplier is not None:
            hidden = int(self.ffn_dim_multiplier * hidden)
        return self.multiple_of * -(-hidden // self.multiple_of)


def can_split(args: ModelArgs, size: int) -> bool:
    """Whether the model can be split over `size` ranks: whole heads, and equal slices of each weight."""
    heads = args.n_heads % size == 0 and (args.kv_heads % size == 0 or size % args.kv_heads == 0)
    return heads and not any(n % size for n in (args.dim, args.ffn_dim, max(args.vocab_size, 0)))


def valid_sizes(args: ModelArgs) -> list[int]:
    """The model-parallel sizes that the model allows, ascending."""
    return [size for size in range(1, args.n_heads + 1) if can_split(args, size)]


def check_size(args: ModelArgs, size: int) -> None:
    """Raise ParallelismError, listing the sizes that work, if the model cannot be split over `size` ranks."""
    if not can_split(args, size):
        sizes = ", ".join(map(str, valid_sizes(args)))
        raise ParallelismError(
            f"model-parallel size {size} does not divide this model ({args.n_heads} heads,"
            f" {args.kv_heads} key/value heads, dim {args.dim}, ffn {args.ffn_dim}, vocabulary"
            f" {args.vocab_size}); sizes that work: {sizes}"
        )
