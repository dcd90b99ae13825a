"""The native call behind fused.py: `llama_layers` of csrc/layers.c, its arguments and its work space."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .native import DTYPES, Kernels, Matrix, cache_number
from .steps import Parts, Step

__all__ = ["FusedCall", "LayerShape", "Layers"]

# Score buffers grow by 1,024 positions.
_SCORE_STEP = 1024


class _Step(ctypes.Structure):
    """step_t of csrc/layers.h."""

    _fields_ = (
        *(
            (name, ctypes.c_long)
            for name in (
                *("rows", "width", "heads", "kv_heads", "dim", "hidden"),
                *("dtype", "cache", "threads", "formed"),
            )
        ),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("rotary", ctypes.c_void_p),
        ("parts", Parts),
        *((name, ctypes.c_long) for name in ("positions", "shift", "room")),
        *((name, ctypes.c_void_p) for name in ("x", "out", "space")),
    )


_MATRICES = ("wq", "wk", "wv", "wo", "w1", "w3", "w2")


class _Layer(ctypes.Structure):
    """layer_t of csrc/layers.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("attention_norm", "ffn_norm")),
        *((name, Matrix) for name in _MATRICES),
    )


class Layers:
    """Where the weights of all layers are, and the kernels for them. It does not keep the weights.

    Args:
        norms: of each layer: attention_norm, ffn_norm.
        matrices: of each layer: wq, wk, wv, wo, w1, w3, w2.
    """

    def __init__(self, kernels: Kernels, norms: list[torch.Tensor], matrices: list[Matrix]) -> None:
        self.kernels = kernels
        self._layers = (_Layer * (len(norms) // 2))()
        for i, layer in enumerate(self._layers):
            layer.attention_norm, layer.ffn_norm = (norm.data_ptr() for norm in norms[2 * i : 2 * i + 2])
            mine = matrices[len(_MATRICES) * i : len(_MATRICES) * (i + 1)]
            for name, matrix in zip(_MATRICES, mine, strict=True):
                setattr(layer, name, matrix)
        # Bytes of a row of x in what the matrices of a layer read of it.
        self.formed = kernels.layers_formed(self.at(0), len(self), norms[0].dtype)

    def __len__(self) -> int:
        return len(self._layers)

    def at(self, layer: int) -> int:
        """The address of one of them."""
        return ctypes.addressof(self._layers) + layer * ctypes.sizeof(_Layer)


@dataclass(frozen=True)
class LayerShape:
    """A rank's part of a layer: width of the model, heads, width of the feed-forward (hidden), norms' eps."""

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    eps: float


class FusedCall:
    """Calls the kernel for whole layers. Each thread keeps the work space of its last number of rows."""

    def __init__(self, shape: LayerShape) -> None:
        self._shape = shape
        # Several threads may run one model.
        self._local = threading.local()

    def __reduce__(self) -> tuple[type[FusedCall], tuple[LayerShape]]:
        # A copied or pickled model gets work space of its own.
        return type(self), (self._shape,)

    def prepare(
        self,
        x_TC: torch.Tensor,
        layers: Layers,
        step: Step,
        rotary: np.ndarray[Any, np.dtype[np.float32]],
    ) -> Callable[[int, int, int], torch.Tensor]:
        """Set the arguments for rows x, contiguous -> run(first, last, part).

        Args:
            step: of these rows, whose pool takes their keys and values.
            rotary: (T, head_dim): cos and sin of each pair at the row's position.

        `run(first, last, 0)` takes x through whole layers, in place, and returns it. Parts 1 and 2 return
        what the attention and the feed-forward of layer `first` add to x, for ranks that have to sum it; the
        next call overwrites that.
        """
        kernels, pool = layers.kernels, step.pool
        space = self._space(layers, x_TC, torch.get_num_threads(), max(step.lengths))
        call, out = space.step, space.out
        space.rotary[:] = rotary
        call.x, call.cache, call.parts = x_TC.data_ptr(), cache_number(pool.form), step.parts
        call.positions, call.shift = pool.positions, pool.shift

        def run(first: int, last: int, part: int) -> torch.Tensor:
            kernels.layers(
                call, layers.at(first), pool.address + first * pool.layer_bytes, last - first, part
            )
            return out if part else x_TC

        return run

    def _space(self, layers: Layers, x_TC: torch.Tensor, threads: int, positions: int) -> _Space:
        """This thread's work space for so many rows, with scores of at least so many positions."""
        space: _Space | None = getattr(self._local, "space", None)
        kernels = layers.kernels
        wanted = (kernels, layers.formed, len(layers), x_TC.shape[0], x_TC.dtype, threads)
        if space is None or space.sized_for != wanted or positions > space.room:
            room = -(-positions // _SCORE_STEP) * _SCORE_STEP
            step = _step(self._shape, len(x_TC), x_TC.dtype, threads, layers.formed, room)
            memory = torch.empty(kernels.layers_space(step), dtype=torch.uint8, device="cpu")
            out = torch.empty(len(x_TC), self._shape.width, dtype=x_TC.dtype, device="cpu")
            step.space, step.out = memory.data_ptr(), out.data_ptr()
            # Each step copies its table here: numpy takes longer to tell an address.
            rotary = np.empty((len(x_TC), self._shape.head_dim), dtype=np.float32)
            step.rotary = rotary.ctypes.data
            space = _Space(wanted, room, step, out, memory, rotary)
            self._local.space = space
        return space


@dataclass(frozen=True)
class _Space:
    """The memory of a step, and the structure that points to it.

    Args:
        sized_for: (kernels, bytes of a row in what they read of it, layers, rows, dtype, threads).
        room: positions that the scores have room for.
        rotary: of `prepare`, for the step to come.
    """

    sized_for: tuple[Kernels, int, int, int, torch.dtype, int]
    room: int
    step: _Step
    out: torch.Tensor
    memory: torch.Tensor
    rotary: np.ndarray[Any, np.dtype[np.float32]]


def _step(shape: LayerShape, rows: int, dtype: torch.dtype, threads: int, formed: int, room: int) -> _Step:
    return _Step(
        *(rows, shape.width, shape.heads, shape.kv_heads, shape.head_dim, shape.hidden),
        *(DTYPES[dtype], DTYPES[dtype], threads, formed, shape.eps, shape.head_dim**-0.5),
        None,
        room=room,
    )
