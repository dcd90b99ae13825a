"""A step of few rows through all layers in native calls: one for the model, or two a layer on several ranks.

Decoding a token is some ten small operations a layer; started one by one from Python, they cost about as
much as reading a small model's weights. Prompts take the way through the modules, where a call is long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import native
from .cache import BatchCache
from .native_layers import Layers, LayerShape

if TYPE_CHECKING:
    from .model import Transformer

__all__ = ["FusedLayers"]

# More rows are the work of matrix kernels for chunks, and of attention that shares what it reads among queries.
_MOST_ROWS = 128
_MODULES = (
    "attention_norm",
    "attention.wq",
    "attention.wk",
    "attention.wv",
    "attention.wo",
    "ffn_norm",
    "feed_forward.w1",
    "feed_forward.w3",
    "feed_forward.w2",
)


class FusedLayers:
    """The layers of one model.

    Weights are looked up once; `fits` notices where one was replaced since, or given other data.
    """

    def __init__(self, model: Transformer) -> None:
        args, size = model.params, model.parallel.size
        self._parallel = model.parallel
        self._shape = LayerShape(
            args.n_heads // size, model.local_kv_heads, args.head_dim, args.ffn_dim // size, args.norm_eps
        )
        self._layers = Layers(self._shape)
        pair = torch.arange(0, args.head_dim, 2, dtype=torch.float32, device="cpu")
        self._frequencies: np.ndarray[Any, np.dtype[np.float32]] = (
            1.0 / args.rope_theta ** (pair / args.head_dim)
        ).numpy()
        modules = [layer.get_submodule(name) for layer in model.layers for name in _MODULES]
        self._holders: list[dict[str, Any]] = [module._parameters for module in modules]
        # What was looked up is held, so that its memory cannot become another weight's with the same address.
        self._held: list[torch.Tensor] = []
        self._found: list[int] = []
        self._addresses = np.zeros((0, len(_MODULES)), dtype=np.int64)
        self._possible = False

    def fits(self, x_TC: torch.Tensor) -> bool:
        """Whether `run` takes these rows with the weights that the model has now."""
        if not 0 < x_TC.shape[0] <= _MOST_ROWS:
            return False
        if not native.fits(x_TC, 16):
            self._held, self._found = [], []
            return False
        found = [holder["weight"].data_ptr() for holder in self._holders]
        if found != self._found:
            self._look_up(found)
        return self._possible

    def _look_up(self, found: list[int]) -> None:
        weights = [holder["weight"].detach() for holder in self._holders]
        shape = self._shape
        # Norms have one dimension, packed matrices four.
        self._possible = (
            all(w.dtype == torch.bfloat16 and w.is_cpu and w.is_contiguous() for w in weights)
            and all(w.dim() in (1, 4) for w in weights)
            and shape.head_dim % 32 == shape.hidden % 16 == 0
        )
        self._addresses = np.array(found, dtype=np.int64).reshape(-1, len(_MODULES))
        # Last: from here on another thread takes the addresses for these weights.
        self._held, self._found = weights, found

    def run(self, x_TC: torch.Tensor, cache: BatchCache) -> torch.Tensor:
        """x (T, C) behind the last layer; keys and values are in the cache, not yet committed."""
        x_TC = x_TC.contiguous()
        addresses, capacity, position = cache.rows()
        table = self._rotary(position)
        run = self._layers.prepare(x_TC, self._addresses, addresses, capacity, position, table)
        layers = len(self._addresses)
        if self._parallel.size == 1:
            return run(0, layers, 0)
        for layer in range(layers):
            for part in (1, 2):
                x_TC += self._parallel.all_reduce(run(layer, layer + 1, part))
        return x_TC

    def _rotary(
        self, position_T: np.ndarray[Any, np.dtype[np.int64]]
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """model.rotary_table for a few rows, with numpy, whose small calls cost less than torch's."""
        angle = np.multiply.outer(position_T.astype(np.float32), self._frequencies)
        table = np.empty((len(position_T), 2 * len(self._frequencies)), dtype=np.float32)
        np.cos(angle, out=table[:, 0::2])
        np.sin(angle, out=table[:, 1::2])
        return table
