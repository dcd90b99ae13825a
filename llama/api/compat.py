"""Small functions of the reference's modules, under its names, for research code that imports them.

Nothing in this package uses them. `llama.model` and `llama.generation` export them, as the reference does.
Shapes: B batch, T tokens, H heads, K key/value heads, D head dimension, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..prompts import Message, chat_prompt, infilling_prompt
from ..tokenizer import Tokenizer

__all__ = [
    "apply_rotary_emb",
    "dialog_prompt_tokens",
    "infilling_prompt_tokens",
    "precompute_freqs_cis",
    "repeat_kv",
    "sample_top_p",
]


def precompute_freqs_cis(dim: int, end: int, theta: float = 10000.0) -> torch.Tensor:
    """exp(i * position * theta^(-2j/dim)) for positions 0..end, (end, dim / 2) complex64."""
    inverse = 1.0 / theta ** (torch.arange(0, dim, 2)[: dim // 2].float() / dim)
    angle = torch.outer(torch.arange(end, dtype=torch.float32), inverse)
    return torch.polar(torch.ones_like(angle), angle)


def apply_rotary_emb(
    xq: torch.Tensor, xk: torch.Tensor, freqs_cis: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries (B, T, H, D) and keys (B, T, K, D) rotated by the table (T, D / 2) of their positions."""

    def rotated(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * freqs_cis[:, None]).flatten(-2).type_as(x)

    return rotated(xq), rotated(xk)


def repeat_kv(x: torch.Tensor, n_rep: int) -> torch.Tensor:
    """Repeat each key/value head n_rep times: (B, T, K, D) -> (B, T, K * n_rep, D)."""
    return x.repeat_interleave(n_rep, dim=2)


def sample_top_p(probs: torch.Tensor, p: float) -> torch.Tensor:
    """Draw an id from the nucleus of each row of probs (..., V) -> (..., 1), with torch's global generator."""
    best, ids = probs.sort(dim=-1, descending=True)
    best = best.masked_fill(best.cumsum(dim=-1) - best > p, 0.0)
    return ids.gather(-1, torch.multinomial(best, num_samples=1))


def infilling_prompt_tokens(
    tokenizer: Tokenizer, pre: str, suf: str, suffix_first: bool = False
) -> list[int]:
    """The ids of an infilling prompt; see `prompts.infilling_prompt`."""
    return list(infilling_prompt(tokenizer, pre, suf, suffix_first=suffix_first).tokens)


def dialog_prompt_tokens(tokenizer: Tokenizer, dialog: Sequence[Message]) -> list[int]:
    """The ids of a dialog in the vocabulary's chat format; see `prompts.chat_prompt`."""
    return list(chat_prompt(tokenizer, dialog).tokens)
