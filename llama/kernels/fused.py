"""A step of few rows through all layers in native calls: one for the model, or two a layer on several ranks.

Decoding a token is some ten small operations a layer; started one by one from Python, they cost about as
much as reading a small model's weights. Prompts take the way through the modules, where a call is long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..kv_cache import BatchCache
from . import native
from .hooks import hooked
from .native_layers import Layers, LayerShape

if TYPE_CHECKING:
    from ..model import Transformer

__all__ = ["FusedLayers"]

# More rows are the work of matrix kernels for chunks, and of attention that shares what it reads among queries.
_MOST_ROWS = 128
# Modules with a weight in a layer, in the order of layer_t in csrc/bf16.c.
_WEIGHTS = 9


class FusedLayers:
    """The layers of one model, for as long as they are what the model was made of.

    `fits` looks at the modules that are there now. It declines where one of them has a hook or a forward of its
    own, or is of another kind, so that a changed model computes the same however many rows a step has.

    Args:
        model: of known modules.
        forwards: the kinds of its layers' modules, and the forward of each that this stands for.
    """

    def __init__(self, model: Transformer, forwards: Mapping[type[nn.Module], Callable[..., Any]]) -> None:
        args, size = model.params, model.parallel.size
        self._parallel = model.parallel
        self._width = args.dim
        self._shape = shape = LayerShape(
            args.n_heads // size, model.local_kv_heads, args.head_dim, args.ffn_dim // size, args.norm_eps
        )
        self._layers = Layers(shape)
        self._forwards = list(forwards.items())
        self._theta, self._frequencies = args.rope_theta, _frequencies(args.head_dim, args.rope_theta)
        weights, around = _modules(model.layers)
        self._kinds = [type(module) for module in (*weights, *around)]
        query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        norm, packed = (args.dim,), native.packed_shape
        attention = (norm, packed(query, args.dim), *[packed(key, args.dim)] * 2, packed(args.dim, query))
        feed_forward = (norm, *[packed(shape.hidden, args.dim)] * 2, packed(args.dim, shape.hidden))
        self._sizes = [torch.Size(each) for each in (*attention, *feed_forward)] * len(model.layers)
        # What was looked up is held, so that its memory cannot become another weight's with the same address.
        self._held: list[torch.Tensor] = []
        self._found: list[int] = []
        self._addresses = np.zeros((0, _WEIGHTS), dtype=np.int64)
        self._possible = False

    def fits(self, model: Transformer, x_TC: torch.Tensor) -> bool:
        """Whether `run` takes these rows through the layers that the model has now."""
        if not 0 < x_TC.shape[0] <= _MOST_ROWS or x_TC.shape[1] != self._width:
            return False
        if not native.fits(x_TC, 16):
            self._held, self._found = [], []
            return False
        try:
            weights, around = _modules(model.layers)
            if not self._plain(weights, around):
                return False
            found = [module._parameters["weight"].data_ptr() for module in weights]
        except (AttributeError, KeyError, RuntimeError):
            return False  # no such module, or no weight with memory of its own
        if found != self._found:
            self._look_up([module.weight.detach() for module in weights], found)
        theta = model.params.rope_theta
        if theta != self._theta:
            self._frequencies, self._theta = _frequencies(self._shape.head_dim, theta), theta
        return self._possible

    def _plain(self, weights: list[Any], around: list[Any]) -> bool:
        """Whether these modules are, and do, what those of the model did when it was made."""
        modules = [*weights, *around]
        return (
            list(map(type, modules)) == self._kinds
            and all(kind.forward is forward for kind, forward in self._forwards)
            and not hooked(modules)
            and all(norm.eps == self._shape.eps for norm in weights[::_WEIGHTS] + weights[5::_WEIGHTS])
            and all(attention.layer == layer for layer, attention in enumerate(around[1::3]))
        )

    def _look_up(self, weights: list[torch.Tensor], found: list[int]) -> None:
        shape = self._shape
        # Norms have one dimension, packed matrices four.
        self._possible = (
            all(w.dtype == torch.bfloat16 and w.is_cpu and w.is_contiguous() for w in weights)
            and [w.shape for w in weights] == self._sizes
            and shape.head_dim % 32 == shape.hidden % 16 == 0
        )
        self._addresses = np.array(found, dtype=np.int64).reshape(-1, _WEIGHTS)
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


def _modules(layers: nn.ModuleList) -> tuple[list[Any], list[Any]]:
    """(modules with weights in the order of layer_t, the blocks, attentions and feed-forwards around them)."""
    weights: list[Any] = []
    around: list[Any] = []
    for layer in layers:
        parts = layer._modules
        attention: Any = parts["attention"]
        feed_forward: Any = parts["feed_forward"]
        a, f = attention._modules, feed_forward._modules
        weights += (parts["attention_norm"], a["wq"], a["wk"], a["wv"], a["wo"])
        weights += (parts["ffn_norm"], f["w1"], f["w3"], f["w2"])
        around += (layer, attention, feed_forward)
    return weights, around


def _frequencies(head_dim: int, theta: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    pair = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu")
    frequencies: np.ndarray[Any, np.dtype[np.float32]] = (1.0 / theta ** (pair / head_dim)).numpy()
    return frequencies
