"""A dense, trainable Llama: the model that tools/train_tiny.py trains and tools/tiny_eval.py measures.

It knows the architecture and Meta's tensor names, but nothing of files, tokenizers or sharding. It shares no
code with the package `llama`, on purpose: two implementations that agree are evidence; one imported twice is
not.

Shape suffixes: N batch, T positions, H query heads, G key/value heads, D head_dim, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KeysValues = tuple[Tensor, Tensor]
Cache = list[KeysValues]


@dataclass(frozen=True)
class TinyConfig:
    """The keys of params.json; the defaults are CodeLlama-tiny's."""

    dim: int = 256
    n_layers: int = 5
    n_heads: int = 8
    n_kv_heads: int = 4
    multiple_of: int = 32
    ffn_dim_multiplier: float = 0.75
    norm_eps: float = 1e-5
    rope_theta: float = 1_000_000
    vocab_size: int = -1

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def ffn_hidden(self) -> int:
        scaled = int(self.ffn_dim_multiplier * int(2 * 4 * self.dim / 3))
        return self.multiple_of * math.ceil(scaled / self.multiple_of)

    def params_json(self) -> dict[str, int | float]:
        """As Meta writes them: vocab_size is -1, to be taken from the embedding's shape."""
        return {**asdict(self), "vocab_size": -1}


def rotary_tables(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, D/2] in float32: in half precision theta 1e6 loses its slow angles."""
    inverse = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), inverse)
    return angles.cos(), angles.sin()


def rotate(x_NTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the interleaved pairs (2i, 2i+1), which is Meta's layout."""
    even, odd = x_NTHD.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).type_as(x_NTHD)


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        kv_dim = config.n_kv_heads * config.head_dim
        self.wq = nn.Linear(config.dim, config.dim, bias=False)
        self.wk = nn.Linear(config.dim, kv_dim, bias=False)
        self.wv = nn.Linear(config.dim, kv_dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        """x [N, T, dim] -> the same shape, and the keys and values [N, past + T, G, D] seen so far."""
        d = self.config.head_dim
        q_NTHD = rotate(self.wq(x).unflatten(-1, (-1, d)), cos, sin)
        k_NTGD = rotate(self.wk(x).unflatten(-1, (-1, d)), cos, sin)
        v_NTGD = self.wv(x).unflatten(-1, (-1, d))
        if past is not None:
            k_NTGD, v_NTGD = torch.cat((past[0], k_NTGD), 1), torch.cat((past[1], v_NTGD), 1)
        group = self.config.n_heads // self.config.n_kv_heads
        k, v = (t.repeat_interleave(group, dim=2).transpose(1, 2) for t in (k_NTGD, v_NTGD))
        # One new position sees all others, so it needs no mask; more than one are a prompt from position 0.
        mixed = F.scaled_dot_product_attention(q_NTHD.transpose(1, 2), k, v, is_causal=x.shape[1] > 1)
        return self.wo(mixed.transpose(1, 2).flatten(-2)), (k_NTGD, v_NTGD)


class FeedForward(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_hidden, bias=False)
        self.w2 = nn.Linear(config.ffn_hidden, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        mixed, seen = self.attention(self.attention_norm(x), cos, sin, past)
        x = x + mixed
        return x + self.feed_forward(self.ffn_norm(x)), seen


class TinyLlama(nn.Module):
    """The dense model; its state dict has exactly the keys of a one-shard Meta checkpoint."""

    def __init__(self, config: TinyConfig, vocab_size: int, context: int = 1024) -> None:
        super().__init__()
        self.config = config
        self.context = context
        self.tok_embeddings = nn.Embedding(vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, vocab_size, bias=False)
        # Plain attributes, not buffers: a checkpoint does not hold the tables.
        self.cos, self.sin = rotary_tables(context, config.head_dim, config.rope_theta)

    def init_weights(self) -> None:
        """Normal weights; the two matrices that write to the residual stream are scaled down by its depth."""
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                residual = name.endswith(("wo.weight", "w2.weight"))
                nn.init.normal_(weight, std=0.02 / (math.sqrt(2 * self.config.n_layers) if residual else 1))

    def forward(self, tokens_NT: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits [N, T, V]. A cache grows in place: the prompt in the first call, then one token a call."""
        start = cache[0][0].shape[1] if cache else 0
        stop = start + tokens_NT.shape[1]
        if stop > self.context:
            raise ValueError(f"{stop} positions exceed the context of {self.context}")
        if start and tokens_NT.shape[1] != 1:
            raise ValueError("after the prompt the cache takes one token at a time")
        x = self.tok_embeddings(tokens_NT)
        seen: Cache = []
        for index, layer in enumerate(self.layers):
            x, kv = layer(x, self.cos[start:stop], self.sin[start:stop], cache[index] if cache else None)
            seen.append(kv)
        if cache is not None:
            cache[:] = seen
        return self.output(self.norm(x))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices, but not for norms, nor for embeddings, whose rare rows would only shrink."""
    decayed = [p for n, p in model.named_parameters() if p.dim() == 2 and "tok_embeddings" not in n]
    chosen = {id(p) for p in decayed}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
