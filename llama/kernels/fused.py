"""The second way through the layers: up to 128 rows pass all of them in one native call.

Decoding a token is some ten small operations a layer; started one by one from Python, they cost about as much
as reading a small model's weights. On several ranks there are two calls a layer, with the sum over the ranks
behind each. Steps of more rows (prompts) run the modules, where each operation is long.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter, contains, itemgetter
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .fused_call import FusedCall, Layers, LayerShape
from .hooks import hooked
from .native import Kernels, has_memory
from .norms import rotary_pairs
from .steps import Step
from .table import Case, implementation
from .weights import PackedWeight

__all__ = ["FusedLayers", "LayerShape"]

# More rows go to the matrix kernels for chunks, and to attention that shares what it reads among queries.
_MAX_ROWS = 128
# Modules with a weight in a layer, of which the first and the sixth are norms; see `_modules`.
_WEIGHTS = 9


class FusedLayers:
    """Runs steps of few rows through a model's layers, as long as these are what the model was made of.

    `takes` looks at the modules that are there now. It declines where one of them has a hook or a forward of
    its own, or is of another class, so that a changed model computes the same in steps of any size.

    Args:
        shape: of every layer, of this rank's part of it.
        layers: the blocks, with submodules named as in the reference: `attention.wq`, `feed_forward.w1`, ...
        forwards: the classes of their modules, and the forward of each that this replaces.
        all_reduce: sums a tensor in place over the ranks that hold the model; None for a single rank.
    """

    def __init__(
        self,
        shape: LayerShape,
        layers: Iterable[nn.Module],
        forwards: Mapping[type[nn.Module], Callable[..., Any]],
        all_reduce: Callable[[torch.Tensor], torch.Tensor] | None,
    ) -> None:
        self._shape = shape
        self._forwards = list(forwards.items())
        self._all_reduce = all_reduce
        self._call = FusedCall(shape)
        self._kinds = [type(module) for part in _modules(layers) for module in part]
        self._sizes = _plain_sizes(shape)
        self._parts: _Parts | None = None
        # The weights behind `_found`, ids and addresses of parameters, are held: no other one can come to lie there.
        self._held: list[torch.Tensor | PackedWeight] = []
        self._found: list[int] = []
        self._layers: Layers | None = None
        self._dtype: torch.dtype | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copied or pickled model has its weights at other addresses.
        return self.__dict__ | {"_parts": None, "_held": [], "_found": [], "_layers": None}

    def takes(self, x_TC: torch.Tensor, layers: Iterable[nn.Module]) -> bool:
        """Whether `run` takes these rows through the layers that the model has now."""
        if not 0 < x_TC.shape[0] <= _MAX_ROWS or x_TC.shape[1] != self._shape.width:
            return False
        if not x_TC.is_cpu or not has_memory(x_TC) or (x_TC.requires_grad and torch.is_grad_enabled()):
            self._parts, self._held, self._found = None, [], []
            return False
        try:
            parts = self._parts
            if parts is None or not parts.are_those_of(layers):
                # In this order: a hook of now is counted, and the modules are the ones that have none.
                parts = _Parts(layers)
                if hooked(parts.modules):
                    self._parts = None
                    return False
            if not self._unchanged(parts):
                return False
            parameters = parts.parameters()
            # Two parameters may have the same codes and different scales.
            found = [*map(id, parameters), *map(torch.Tensor.data_ptr, parameters)]
        except (AttributeError, KeyError, RuntimeError, TypeError):
            return False  # no such module, or no weight with memory of its own
        self._parts = parts
        if found != self._found:
            self._look_up(parts.weights, parameters, found)
        return self._layers is not None and self._dtype == x_TC.dtype

    def _unchanged(self, parts: _Parts) -> bool:
        """Whether these modules are, and do, what the model's did when it was made; but for hooks."""
        return (
            list(map(type, parts.modules)) == self._kinds
            and all(kind.forward is forward for kind, forward in self._forwards)
            and not any(map(contains, parts.attributes, itertools.repeat("forward")))
            and list(map(_eps, parts.norms)) == [self._shape.eps] * len(parts.norms)
            and list(map(_layer, parts.attentions)) == parts.order
        )

    def _look_up(self, modules: list[Any], parameters: list[torch.Tensor], found: list[int]) -> None:
        """Take over the addresses of these modules' weights, if the kernels can run them."""
        held = [
            module.packed if len(size) == 2 else module.weight.detach()
            for module, size in zip(modules, itertools.cycle(self._sizes))
        ]
        norms = [weight for weight in held if isinstance(weight, torch.Tensor)]
        matrices = [weight for weight in held if isinstance(weight, PackedWeight)]
        dtype = norms[0].dtype
        fits = all(
            weight.is_cpu and weight.is_contiguous() and weight.dtype == dtype for weight in norms
        ) and [weight.shape for weight in held] == self._sizes * (len(held) // len(self._sizes))
        case = Case(
            *(dtype, "cpu", _one_of(matrices) if fits else None),
            *(self._shape.width, self._shape.head_dim, self._shape.hidden),
        )
        kernels: Kernels | None = implementation("layers", case)
        found_matrices = [weight.matrix for weight in matrices if weight.matrix is not None]
        self._layers = None if kernels is None else Layers(kernels, norms, found_matrices)
        self._dtype = dtype
        # Last: from here on another thread takes the addresses for these weights.
        self._held, self._found = [*held, *parameters], found

    def run(
        self,
        x_TC: torch.Tensor,
        theta: float,
        step: Step,
    ) -> torch.Tensor:
        """x (T, C) -> x (T, C) behind the last layer. The rows' keys and values are stored in the step's pool.

        Args:
            theta: base of the rotary positions.
            step: of these rows; its pool's format is x's dtype or cached.INT8.
        """
        # The C works in place, but a hook of the embedding may have kept x.
        x_TC = x_TC.clone(memory_format=torch.contiguous_format)
        table = rotary_pairs(step.positions, self._shape.head_dim, theta)
        assert self._layers is not None
        run = self._call.prepare(x_TC, self._layers, step, table)
        layers = len(self._layers)
        if self._all_reduce is None:
            return run(0, layers, 0)
        for layer in range(layers):
            for part in (1, 2):
                x_TC += self._all_reduce(run(layer, layer + 1, part))
        return x_TC


_eps, _layer = attrgetter("eps"), attrgetter("layer")
_weight = itemgetter("weight")


class _Parts:
    """The modules that a model's layers were made of when they were last collected, without hooks.

    A step looks at all of them, hundreds of objects that are in no cache of the CPU any more: the weights went
    through it. So they are kept in lists that C code walks, and each is touched as little as possible. Kept
    dictionaries are those of the modules: they show replaced submodules and parameters.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self.weights, around = _modules(layers)
        self.modules = [*self.weights, *around]
        self.norms = self.weights[::_WEIGHTS] + self.weights[5::_WEIGHTS]
        self.attentions = around[1::3]
        self.order = list(range(len(self.attentions)))
        self.attributes = [module.__dict__ for module in self.modules]
        self._parameters = [module._parameters for module in self.weights]
        self._inner = [module._modules for module in around]
        self._all = self._now(layers)
        self._handles = RemovableHandle.next_id

    def _now(self, layers: Iterable[nn.Module]) -> list[Any]:
        return [*layers, *itertools.chain.from_iterable(map(dict.values, self._inner))]

    def are_those_of(self, layers: Iterable[nn.Module]) -> bool:
        """Whether a collection of now would find the same modules, and no hook was registered since."""
        return RemovableHandle.next_id == self._handles and self._now(layers) == self._all

    def parameters(self) -> list[torch.Tensor]:
        """The weights, as they are now."""
        return list(map(_weight, self._parameters))


def _modules(layers: Iterable[nn.Module]) -> tuple[list[Any], list[Any]]:
    """(modules with weights, in their order in a layer; blocks, attentions and feed-forwards around them)."""
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


def _plain_sizes(shape: LayerShape) -> list[tuple[int, ...]]:
    """Sizes of a layer's weights in the order of `_modules`, as if none was packed."""
    width, hidden = shape.width, shape.hidden
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = ((width,), (query, width), (key, width), (key, width), (width, query))
    return [*attention, (width,), (hidden, width), (hidden, width), (width, hidden)]


def _one_of(matrices: list[PackedWeight]) -> Kernels | None:
    """The kernels that can multiply all of these weights, each in its own format."""
    found = {weight.format.kernels if weight.matrix else None for weight in matrices}
    return found.pop() if len(found) == 1 else None
