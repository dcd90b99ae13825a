"""A dense, trainable Llama: the model that tools/train_tiny.py trains and tools/tiny_eval.py scores.

It knows the architecture and Meta's tensor names, but nothing of files, tokenizers, sharding or decoding. It
shares no code with the package `llama`, on purpose: two implementations that agree are evidence; one imported
twice is not.

Shape suffixes: N batch, T positions, H query heads, D head_dim, R rows (N x T flattened), E dim, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Query positions that attend together on a CPU, and rows whose logits are held at once.
ATTENTION_BLOCK = 256
LOSS_ROWS = 1024


@dataclass(frozen=True)
class TinyConfig:
    """The keys of params.json; the defaults are CodeLlama-tiny's."""

    dim: int = 256
    n_layers: int = 5
    n_heads: int = 4
    n_kv_heads: int = 2
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


def rotate(x_NHTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + D/2)."""
    first, second = x_NHTD.chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
    return turned.type_as(x_NHTD)


def blocked_attention(q_NHTD: Tensor, k_NHTD: Tensor, v_NHTD: Tensor) -> Tensor:
    """Causal attention by plain products, a block of queries at a time, over the keys up to its end.

    PyTorch's own kernel took twice as long on a CPU, forward and backward, at these sizes (docs/log.md).
    """
    length, step = q_NHTD.shape[2], ATTENTION_BLOCK
    q, k, v = (t.flatten(0, 1) for t in (q_NHTD * q_NHTD.shape[-1] ** -0.5, k_NHTD, v_NHTD))
    blocks = []
    for start in range(0, length, step):
        stop = min(start + step, length)
        scores = q[:, start:stop] @ k[:, :stop].transpose(1, 2)
        future = torch.full((stop - start, stop), -math.inf, dtype=q.dtype, device=q.device).triu(start + 1)
        blocks.append((scores + future).softmax(-1).type_as(v) @ v[:, :stop])
    return torch.cat(blocks, dim=1).view_as(q_NHTD)


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
        # Meta rotates the interleaved pairs (2i, 2i+1). With their rows gathered as all first, then all second
        # members, whole halves can be rotated, which is faster; products of queries and keys stay the same.
        pairs = torch.arange(config.head_dim).view(-1, 2).t().flatten()
        self.q_rows = (torch.arange(config.n_heads)[:, None] * config.head_dim + pairs).flatten()
        self.k_rows = self.q_rows[:kv_dim]

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [N, T, E] -> the same shape."""
        d, heads, kv_heads = self.config.head_dim, self.config.n_heads, self.config.n_kv_heads
        weight = torch.cat((self.wq.weight[self.q_rows], self.wk.weight[self.k_rows], self.wv.weight))
        projected = F.linear(x, weight).view(*x.shape[:2], -1, d).transpose(1, 2)
        q, k, v = projected[:, :heads], projected[:, heads:-kv_heads], projected[:, -kv_heads:]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
        if x.device.type == "cpu":
            mixed = blocked_attention(q, k, v)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.linear(mixed.transpose(1, 2).flatten(-2), self.wo.weight)


class FeedForward(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_hidden, bias=False)
        self.w2 = nn.Linear(config.ffn_hidden, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = F.linear(x, torch.cat((self.w1.weight, self.w3.weight))).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.w2.weight)


class Block(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        out: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out


class TinyLlama(nn.Module):
    """The dense model; its state dict has exactly the keys and the layout of a one-shard Meta checkpoint."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: TinyConfig, vocab_size: int, context: int = 1024) -> None:
        super().__init__()
        self.config = config
        self.context = context
        self.tok_embeddings = nn.Embedding(vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, vocab_size, bias=False)
        cos, sin = rotary_tables(context, config.head_dim, config.rope_theta)
        # Buffers move with the model; a checkpoint does not hold them.
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def init_weights(self) -> None:
        """Normal weights; the two matrices that write to the residual stream are scaled down by its depth."""
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                residual = name.endswith(("wo.weight", "w2.weight"))
                nn.init.normal_(weight, std=0.02 / (math.sqrt(2 * self.config.n_layers) if residual else 1))

    def hidden(self, tokens_NT: Tensor) -> Tensor:
        """The normed output of the last layer, [N, T, E]."""
        length = tokens_NT.shape[1]
        if length > self.context:
            raise ValueError(f"{length} positions exceed the context of {self.context}")
        x: Tensor = self.tok_embeddings(tokens_NT)
        for layer in self.layers:
            x = layer(x, self.cos[:length], self.sin[:length])
        normed: Tensor = self.norm(x)
        return normed

    def forward(self, tokens_NT: Tensor) -> Tensor:
        """Logits [N, T, V]."""
        return F.linear(self.hidden(tokens_NT), self.output.weight)


class _WeightedLoss(torch.autograd.Function):
    """Cross-entropy of an output layer whose logits exist for LOSS_ROWS rows at a time, with its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x_RE: Tensor,
        weight_VE: Tensor,
        targets_R: Tensor,
        shares_R: Tensor,
        without_R: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        x_RE, weight = x_RE.to(dtype), weight_VE.to(dtype)
        loss = torch.zeros((), device=x_RE.device)
        x_grad, weight_grad = torch.empty_like(x_RE), torch.zeros_like(weight_VE, dtype=torch.float32)
        for start in range(0, len(x_RE), LOSS_ROWS):
            part = slice(start, start + LOSS_ROWS)
            logits = (x_RE[part] @ weight.t()).float()
            target, share, without = targets_R[part, None], shares_R[part, None], without_R[part]
            rows = (without >= 0).nonzero().flatten()
            logits[rows, without[rows]] = -math.inf
            log_sum = logits.logsumexp(-1, keepdim=True)
            loss += ((log_sum - logits.gather(1, target)) * share).sum()
            logits.sub_(log_sum).exp_().scatter_add_(1, target, -torch.ones_like(log_sum))
            gradient = logits.mul_(share).to(dtype)
            x_grad[part] = gradient @ weight
            weight_grad += gradient.t() @ x_RE[part]
        ctx.save_for_backward(x_grad, weight_grad)
        return loss

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        x_grad, weight_grad = ctx.saved_tensors
        return x_grad * above, weight_grad * above, None, None, None, None


def weighted_loss(
    x_RE: Tensor,
    weight_VE: Tensor,
    targets_R: Tensor,
    weights_R: Tensor,
    without_R: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Mean over the rows of cross-entropy in nats, each row counted by its weight.

    Args:
        without_R: an id that the row's softmax leaves out, which its logit then learns nothing from; -1 for none.
    """
    shares_R = weights_R / weights_R.sum()
    loss: Tensor = _WeightedLoss.apply(  # type: ignore[no-untyped-call]
        x_RE, weight_VE, targets_R, shares_R, without_R, dtype
    )
    return loss
