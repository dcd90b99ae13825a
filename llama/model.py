"""The Code Llama Transformer over flattened tokens.

Shapes: T tokens of a step (of all its sequences, one behind the other), C model dimension, H and K
query and key/value heads of this rank, D head dimension, N positions whose logits are wanted, V
vocabulary. Pre-norm layers with RMSNorm (Zhang and Sennrich 2019), rotary positions on interleaved
pairs (Su et al. 2021), SwiGLU (Shazeer 2020), grouped-query attention (Ainslie et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from .distributed.layers import ColumnParallelLinear, ParallelEmbedding, RowParallelLinear
from .distributed.parallel import Parallel
from .distributed.world import host_parallel
from .errors import ConfigError
from .kernels import native
from .kernels.fused import FusedLayers
from .kv_cache import BatchCache, KVCache
from .sizing.args import ModelArgs, check_size, valid_sizes

if TYPE_CHECKING:
    from .api.compat import apply_rotary_emb, precompute_freqs_cis, repeat_kv

__all__ = [
    "Attention",
    "FeedForward",
    "ModelArgs",
    "RMSNorm",
    "Transformer",
    "TransformerBlock",
    "apply_rotary_emb",
    "precompute_freqs_cis",
    "repeat_kv",
    "valid_sizes",
]


def __getattr__(name: str) -> Any:
    # The reference keeps these here; nothing in this package uses them.
    if name in ("apply_rotary_emb", "precompute_freqs_cis", "repeat_kv"):
        from .api import compat

        return getattr(compat, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, normalised in float32."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim), requires_grad=False)

    def assign(self, weight: torch.Tensor) -> None:
        """Take a loaded weight over."""
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if native.fits(x, 16) and self.weight.dtype == x.dtype and self.weight.is_contiguous():
            return native.rms_norm(x, self.weight, self.eps)
        x32 = x.float()
        scale = torch.rsqrt(x32.square().mean(-1, keepdim=True).add_(self.eps))
        return (x32 * scale).type_as(x) * self.weight


def rotary_table(positions_T: torch.Tensor, head_dim: int, theta: float) -> torch.Tensor:
    """exp(i * position * theta^(-2j/D)) as (T, D/2) complex64.

    Made for the positions of a step, in float32 whatever the model's dtype: half-precision angles
    break theta 1e6. One table serves all layers.
    """
    pair = torch.arange(0, head_dim, 2, device=positions_T.device, dtype=torch.float32)
    angle = positions_T.float()[:, None] * (1.0 / theta ** (pair / head_dim))
    return torch.polar(torch.ones_like(angle), angle)


def rotate(x_THD: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Turn each interleaved pair (2j, 2j+1) of every head by its position's angle; x may be overwritten."""
    if native.fits(x_THD, 16) and x_THD.is_contiguous():
        return native.rotate_(x_THD, table)
    pairs = torch.view_as_complex(x_THD.float().view(*x_THD.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * table[:, None]).flatten(-2).type_as(x_THD)


class Attention(nn.Module):
    """Grouped-query attention; heads are split over the ranks.

    Where ranks outnumber key/value heads, each of these is held by several ranks.
    """

    def __init__(self, layer: int, args: ModelArgs, parallel: Parallel) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = args.head_dim
        query, key_value = args.n_heads * args.head_dim, max(args.kv_heads, parallel.size) * args.head_dim
        self.wq = ColumnParallelLinear(args.dim, query, parallel=parallel)
        self.wk = ColumnParallelLinear(args.dim, key_value, parallel=parallel)
        self.wv = ColumnParallelLinear(args.dim, key_value, parallel=parallel)
        self.wo = RowParallelLinear(query, args.dim, parallel=parallel)

    def forward(self, x_TC: torch.Tensor, rotary: torch.Tensor, cache: BatchCache) -> torch.Tensor:
        heads = (x_TC.shape[0], -1, self.head_dim)
        q_THD = rotate(self.wq(x_TC).view(heads), rotary)
        k_TKD = rotate(self.wk(x_TC).view(heads), rotary)
        v_TKD = self.wv(x_TC).view(heads)
        out: torch.Tensor = self.wo(cache.attend(self.layer, q_THD, k_TKD, v_TKD).flatten(1))
        return out


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, dim: int, hidden_dim: int, parallel: Parallel) -> None:
        super().__init__()
        self.w1 = ColumnParallelLinear(dim, hidden_dim, parallel=parallel)
        self.w2 = RowParallelLinear(hidden_dim, dim, parallel=parallel)
        self.w3 = ColumnParallelLinear(dim, hidden_dim, parallel=parallel)

    def forward(self, x_TC: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.w2(F.silu(self.w1(x_TC)).mul_(self.w3(x_TC)))
        return out


class TransformerBlock(nn.Module):
    """One layer: attention and feed-forward, each behind a norm and around a residual."""

    def __init__(self, layer: int, args: ModelArgs, parallel: Parallel) -> None:
        super().__init__()
        self.attention = Attention(layer, args, parallel)
        self.feed_forward = FeedForward(args.dim, args.ffn_dim, parallel)
        self.attention_norm = RMSNorm(args.dim, eps=args.norm_eps)
        self.ffn_norm = RMSNorm(args.dim, eps=args.norm_eps)

    def forward(self, x_TC: torch.Tensor, rotary: torch.Tensor, cache: BatchCache) -> torch.Tensor:
        h = x_TC + self.attention(self.attention_norm(x_TC), rotary, cache)
        out: torch.Tensor = h + self.feed_forward(self.ffn_norm(h))
        return out


# What the fused step stands for.
_FORWARDS: dict[type[nn.Module], Callable[..., Any]] = {
    TransformerBlock: TransformerBlock.forward,
    Attention: Attention.forward,
    FeedForward: FeedForward.forward,
    RMSNorm: RMSNorm.forward,
    ColumnParallelLinear: ColumnParallelLinear.forward,
    RowParallelLinear: RowParallelLinear.forward,
}


class Transformer(nn.Module):
    """The model of one rank. Inference only: no parameter asks for a gradient.

    `hidden` and `logits` are what the engine calls. `forward(tokens, start_pos)` is the reference's
    call, for research code written to it.

    Args:
        params: with vocab_size set.
        parallel: this rank's place; by default what the host set up through fairscale, else one rank.

    Raises:
        ConfigError: vocab_size is not known.
        ParallelismError: heads that the ranks cannot share, with the sizes that work.
    """

    def __init__(self, params: ModelArgs, *, parallel: Parallel | None = None) -> None:
        super().__init__()
        parallel = host_parallel() if parallel is None else parallel
        if params.vocab_size < 1:
            raise ConfigError(f"vocab_size is {params.vocab_size}; set it to the rows of the embedding")
        check_size(params, parallel.size)
        self.params = params
        self.parallel = parallel
        self.vocab_size = params.vocab_size
        self.n_layers = params.n_layers
        self.tok_embeddings = ParallelEmbedding(params.vocab_size, params.dim, parallel=parallel)
        self.layers = nn.ModuleList(TransformerBlock(i, params, parallel) for i in range(params.n_layers))
        self.norm = RMSNorm(params.dim, eps=params.norm_eps)
        self.output = ColumnParallelLinear(
            params.dim, params.vocab_size, parallel=parallel, gather_output=True
        )
        self._own_caches: list[KVCache] = []
        self._fused = FusedLayers(self, _FORWARDS)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and of everything between them but norms, rotary tables and logits."""
        return self.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.norm.weight.device

    @property
    def local_kv_heads(self) -> int:
        """Key/value heads that this rank holds."""
        return max(1, self.params.kv_heads // self.parallel.size)

    def new_cache(self, limit: int | None = None) -> KVCache:
        """An empty cache for one sequence of this model, of at most `limit` positions."""
        return KVCache(
            self.n_layers, self.local_kv_heads, self.params.head_dim, self.dtype, self.device, limit
        )

    @torch.inference_mode()
    def hidden(self, tokens_T: torch.Tensor, cache: BatchCache) -> torch.Tensor:
        """The normed last hidden states (T, C) of a flattened run; its keys and values are in the cache."""
        # The dtypes are the model's own, also where the host program runs within autocast.
        with torch.autocast(self.device.type, enabled=False):
            x_TC = self.tok_embeddings(tokens_T)
            if self._fused.fits(self, x_TC):
                x_TC = self._fused.run(x_TC, cache)
            else:
                positions = torch.tensor(cache.positions(), device=tokens_T.device)
                rotary = rotary_table(positions, self.params.head_dim, self.params.rope_theta)
                for layer in self.layers:
                    x_TC = layer(x_TC, rotary, cache)
            cache.commit()
            out: torch.Tensor = self.norm(x_TC)
        return out

    @torch.inference_mode()
    def logits(self, hidden_NC: torch.Tensor) -> torch.Tensor:
        """Scores of the whole vocabulary (N, V) in float32, on every rank."""
        with torch.autocast(self.device.type, enabled=False):
            out: torch.Tensor = self.output(hidden_NC)
        return out.float()

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, start_pos: int = 0) -> torch.Tensor:
        """The reference's call: ids (B, T) at positions start_pos.. -> logits (B, T, V) in float32.

        Keys and values of earlier calls are kept in the model, as in the reference. `start_pos` may
        be any position up to the end of what was computed; several new tokens at start_pos > 0 are
        masked right.

        Raises:
            ConfigError: more rows than max_batch_size, positions past max_seq_len or past what was computed.
        """
        batch, length = tokens.shape
        if batch > self.params.max_batch_size or start_pos + length > self.params.max_seq_len:
            raise ConfigError(
                f"{batch} rows up to position {start_pos + length}, but max_batch_size is"
                f" {self.params.max_batch_size} and max_seq_len {self.params.max_seq_len}"
            )
        if start_pos == 0:
            self._own_caches = [self.new_cache() for _ in range(batch)]
        computed = min((cache.length for cache in self._own_caches[:batch]), default=0)
        if batch > len(self._own_caches) or not 0 <= start_pos <= computed:
            raise ConfigError(
                f"start_pos {start_pos} for {batch} rows, but {computed} positions of {len(self._own_caches)} rows"
                " were computed; run the positions before it first"
            )
        caches = self._own_caches[:batch]
        for cache in caches:
            cache.truncate(start_pos)
        hidden = self.hidden(tokens.flatten(), BatchCache(caches, [length] * batch))
        return self.logits(hidden).view(batch, length, -1)
