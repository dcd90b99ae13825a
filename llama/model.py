"""The Code Llama Transformer over flattened tokens.

Pre-norm layers with RMSNorm (Zhang and Sennrich 2019), rotary positions on interleaved pairs (Su et al.
2021), SwiGLU (Shazeer 2020), grouped-query attention (Ainslie et al. 2023). The operators are in kernels/,
which chooses an implementation for the device and dtype; steps of few rows on a CPU skip the modules and take
kernels/fused.py.

Shapes: T tokens of a step (its sequences, one behind the other), C model dimension, H and K query and
key/value heads of this rank, D head dimension, N positions whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from .distributed.devices import current_device
from .distributed.layers import (
    ColumnParallelLinear,
    ParallelEmbedding,
    RowParallelLinear,
    held_bytes,
    joint_product,
)
from .distributed.parallel import Parallel
from .distributed.world import host_parallel
from .errors import ConfigError
from .kernels.fused import FusedLayers, LayerShape
from .kernels.norms import rotary_table
from .kernels.operators import block_for, rms_norm, rotate
from .kv_cache import BLOCK, KVPool, Part, Step
from .sizing.args import ModelArgs, check_size, valid_sizes
from .sizing.budget import cache_format, check_cache_dtype

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


if TYPE_CHECKING:
    from .api.compat import apply_rotary_emb, precompute_freqs_cis, repeat_kv
else:

    def __getattr__(name: str) -> Any:
        """The small functions that the reference has in this module. Nothing in this package uses them."""
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
        """Take over a loaded weight."""
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention. Heads are split over the ranks; more ranks than key/value heads share them."""

    def __init__(self, layer: int, args: ModelArgs, parallel: Parallel) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = args.head_dim
        query, key_value = args.n_heads * args.head_dim, max(args.kv_heads, parallel.size) * args.head_dim
        self.wq = ColumnParallelLinear(args.dim, query, parallel=parallel)
        self.wk = ColumnParallelLinear(args.dim, key_value, parallel=parallel)
        self.wv = ColumnParallelLinear(args.dim, key_value, parallel=parallel)
        self.wo = RowParallelLinear(query, args.dim, parallel=parallel)

    def forward(self, x_TC: torch.Tensor, rotary: torch.Tensor, step: Step) -> torch.Tensor:
        heads = (x_TC.shape[0], -1, self.head_dim)
        parts = joint_product(x_TC, self.wq, self.wk, self.wv) if x_TC.is_cuda else None
        q, k, v = parts or (self.wq(x_TC), self.wk(x_TC), self.wv(x_TC))
        q_THD, k_TKD, v_TKD = q.view(heads), k.view(heads), v.view(heads)
        if parts:  # q and k are neighbours, so they turn as one
            count = q_THD.shape[1] + k_TKD.shape[1]
            both = rotate(
                q.as_strided((len(q), count, self.head_dim), (q.stride(0), self.head_dim, 1)), rotary
            )
            q_THD, k_TKD = torch.split(both, [q_THD.shape[1], k_TKD.shape[1]], 1)
        else:
            q_THD, k_TKD = rotate(q_THD, rotary), rotate(k_TKD, rotary)
        out: torch.Tensor = self.wo(step.pool.attend(self.layer, q_THD, k_TKD, v_TKD, step).flatten(1))
        return out


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, dim: int, hidden_dim: int, parallel: Parallel) -> None:
        super().__init__()
        self.w1 = ColumnParallelLinear(dim, hidden_dim, parallel=parallel)
        self.w2 = RowParallelLinear(hidden_dim, dim, parallel=parallel)
        self.w3 = ColumnParallelLinear(dim, hidden_dim, parallel=parallel)

    def forward(self, x_TC: torch.Tensor) -> torch.Tensor:
        parts = joint_product(x_TC, self.w1, self.w3) if x_TC.is_cuda else None
        gate, up = parts or (self.w1(x_TC), self.w3(x_TC))
        out: torch.Tensor = self.w2(F.silu(gate).mul_(up))
        return out


class TransformerBlock(nn.Module):
    """One layer: attention and feed-forward, each behind a norm and around a residual."""

    def __init__(self, layer: int, args: ModelArgs, parallel: Parallel) -> None:
        super().__init__()
        self.attention = Attention(layer, args, parallel)
        self.feed_forward = FeedForward(args.dim, args.ffn_dim, parallel)
        self.attention_norm = RMSNorm(args.dim, eps=args.norm_eps)
        self.ffn_norm = RMSNorm(args.dim, eps=args.norm_eps)

    def forward(self, x_TC: torch.Tensor, rotary: torch.Tensor, step: Step) -> torch.Tensor:
        h = x_TC + self.attention(self.attention_norm(x_TC), rotary, step)
        out: torch.Tensor = h + self.feed_forward(self.ffn_norm(h))
        return out


# The forwards that FusedLayers replaces. It declines where one of them was patched.
_FORWARDS: dict[type[nn.Module], Callable[..., Any]] = {
    TransformerBlock: TransformerBlock.forward,
    Attention: Attention.forward,
    FeedForward: FeedForward.forward,
    RMSNorm: RMSNorm.forward,
    ColumnParallelLinear: ColumnParallelLinear.forward,
    RowParallelLinear: RowParallelLinear.forward,
}


def _undisturbed(device: torch.device) -> AbstractContextManager[object]:
    """Inference mode without autocast, which in a host program must not change the model's dtypes; on CUDA with the
    device as the current one.

    The engine has done this already, and few programs use autocast. Entering torch's contexts all the same would cost
    a decode step on a CPU as much as two operators.
    """
    if torch.is_inference_mode_enabled() and not torch.is_autocast_enabled(device.type):
        return current_device(device)
    return _entered(device)


@contextmanager
def _entered(device: torch.device) -> Iterator[None]:
    with torch.inference_mode(), torch.autocast(device.type, enabled=False), current_device(device):
        yield


class Transformer(nn.Module):
    """One rank's part of the model. Inference only: no parameter requires a gradient.

    The engine calls `hidden` and `logits`. `forward(tokens, start_pos)` is the reference's call, for research
    code.

    Args:
        params: with vocab_size set.
        parallel: this rank's place; by default from the host's fairscale groups, else a single rank.
        cache_dtype: of the caches that it makes: "auto" (as the activations) or "int8".

    Raises:
        ConfigError: vocab_size is not set; heads of these sizes have no int8 cache.
        ParallelismError: the ranks cannot split the heads evenly; the message names the sizes that work.
    """

    def __init__(
        self, params: ModelArgs, *, parallel: Parallel | None = None, cache_dtype: str = "auto"
    ) -> None:
        super().__init__()
        parallel = host_parallel() if parallel is None else parallel
        if params.vocab_size < 1:
            raise ConfigError(f"vocab_size is {params.vocab_size}; set it to the rows of the embedding")
        check_size(params, parallel.size)
        self.cache_dtype = check_cache_dtype(cache_dtype, params.head_dim)
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
        self._own: _OwnCache | None = None
        self._block: int | None = None  # that ranks agreed on
        shape = LayerShape(
            width=params.dim,
            heads=params.n_heads // parallel.size,
            kv_heads=self.local_kv_heads,
            head_dim=params.head_dim,
            hidden=params.ffn_dim // parallel.size,
            eps=params.norm_eps,
        )
        all_reduce = parallel.all_reduce if parallel.size > 1 else None
        self._fused = FusedLayers(shape, self.layers, _FORWARDS, all_reduce)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations. Norms, rotations and logits are computed in float32."""
        return self.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """That holds the weights."""
        return self.norm.weight.device

    @property
    def held_bytes(self) -> dict[str, int]:
        """Bytes of the weights on this rank, by what they are stored as: int8, k4, bfloat16, ..."""
        return held_bytes(self)

    def joined_weights(self) -> list[list[str]]:
        """Names of weights that are multiplied as one on CUDA, if they are loaded as neighbours in memory."""
        groups = ("attention.wq", "attention.wk", "attention.wv"), ("feed_forward.w1", "feed_forward.w3")
        return [
            [f"layers.{layer}.{name}.weight" for name in group]
            for layer in range(self.n_layers)
            for group in groups
        ]

    @property
    def local_kv_heads(self) -> int:
        """Key/value heads on this rank."""
        return max(1, self.params.kv_heads // self.parallel.size)

    @property
    def block(self) -> int:
        """Positions of a block of this model's caches, unless others are asked for. The same on all ranks."""
        return self._block or (BLOCK if self.parallel.size > 1 else self._best_block())

    def agree_on_blocks(self) -> None:
        """Let all ranks have the same blocks, those that suit the attention of each. All of them call it."""
        self._block = self.parallel.smallest(self._best_block(), self.device)

    def _best_block(self) -> int:
        form = cache_format(self.cache_dtype, self.dtype)
        best = block_for(form, self.device, self.params.head_dim) if self.device.type == "cuda" else None
        # A sequence holds whole blocks.
        return BLOCK if best is None or best > self.params.max_seq_len else best

    def new_pool(self, blocks: int, size: int | None = None) -> KVPool:
        """Memory for keys and values of this model: `blocks` blocks, block 0 included, of `size` positions.

        Raises:
            OutOfMemoryError: the system does not give it.
        """
        form = cache_format(self.cache_dtype, self.dtype)
        heads, head_dim = self.local_kv_heads, self.params.head_dim
        return KVPool(self.n_layers, heads, head_dim, form, self.device, blocks, size or self.block)

    def fits(self, pool: KVPool) -> bool:
        """Whether a pool has this model's device and format, which a cast or a move changes."""
        weight = self.norm.weight  # `dtype` and `device` would look it up twice
        return pool.form == cache_format(self.cache_dtype, weight.dtype) and pool.device == weight.device

    def hidden(self, tokens_T: torch.Tensor, step: Step) -> torch.Tensor:
        """Run the tokens of a step -> normed last hidden states (T, C); its pool gains their keys and values."""
        with _undisturbed(tokens_T.device):
            x_TC, layers = self.tok_embeddings(tokens_T), self.layers
            # Kernels that take addresses would read and write caches of another dtype as if they were x's.
            if step.lies_like(x_TC) and self._fused.takes(x_TC, layers):
                x_TC = self._fused.run(x_TC, self.params.rope_theta, step)
            else:
                positions = step.tensors.positions
                rotary = rotary_table(positions, self.params.head_dim, self.params.rope_theta)
                for layer in layers:
                    x_TC = layer(x_TC, rotary, step)
            out: torch.Tensor = self.norm(x_TC)
        return out

    def logits(self, hidden_NC: torch.Tensor) -> torch.Tensor:
        """Logits of the whole vocabulary (N, V) in float32, on every rank."""
        with _undisturbed(hidden_NC.device):
            out: torch.Tensor = self.output(hidden_NC)
            return out.float()

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, start_pos: int = 0) -> torch.Tensor:
        """The reference's call: ids (B, T) at positions start_pos.. -> logits (B, T, V) in float32.

        The model keeps keys and values of earlier calls, as in the reference, until it is cast or moved. `start_pos`
        may be any position that was computed, or the one behind it. The causal mask is right for several tokens at
        start_pos > 0, too.

        Raises:
            ConfigError: more rows than max_batch_size, positions past max_seq_len or past what was computed.
        """
        batch, length = tokens.shape
        if batch > self.params.max_batch_size or start_pos + length > self.params.max_seq_len:
            raise ConfigError(
                f"{batch} rows up to position {start_pos + length}, but max_batch_size is"
                f" {self.params.max_batch_size} and max_seq_len {self.params.max_seq_len}"
            )
        own = self._own
        if start_pos == 0 or (own is not None and not self.fits(own.pool)):
            own = self._own = None  # its memory first
        if start_pos == 0:
            own = self._own = _OwnCache.of(self, batch)
        computed = min(own.computed[:batch], default=0) if own else 0
        rows = len(own.computed) if own else 0
        if own is None or batch > rows or not 0 <= start_pos <= computed:
            raise ConfigError(
                f"start_pos {start_pos} for {batch} rows, but {computed} positions of {rows} rows"
                " were computed; run the positions before it first"
            )
        parts = [Part(table, start_pos, length) for table in own.tables[:batch]]
        own.computed[:batch] = [start_pos] * batch
        with current_device(self.device):
            hidden = self.hidden(tokens.flatten(), own.pool.step(parts))
            own.computed[:batch] = [start_pos + length] * batch
            return self.logits(hidden).view(batch, length, -1)

    def __getstate__(self) -> dict[str, Any]:
        # A copy begins without what the reference's call has computed.
        return self.__dict__ | {"_own": None}


@dataclass(frozen=True)
class _OwnCache:
    """What the reference's call keeps: a pool with room for max_seq_len positions of each row, the rows' blocks, and
    how many positions of each are computed. On a CPU memory is taken as positions are."""

    pool: KVPool
    tables: list[array[int]]
    computed: list[int]

    @classmethod
    def of(cls, model: Transformer, rows: int) -> _OwnCache:
        size = model.block
        each = -(-model.params.max_seq_len // size)
        tables = [array("i", range(1 + row * each, 1 + (row + 1) * each)) for row in range(rows)]
        return cls(model.new_pool(1 + rows * each, size), tables, [0] * rows)
