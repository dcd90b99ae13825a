"""The native call behind fused.py: `llama_bf16_layers` of csrc/bf16.c, its arguments and its work space."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .native import kernels

__all__ = ["Addresses", "FusedCall", "LayerShape"]

# Up to so many rows, every thread computes the norm of all of them for itself; FEW in csrc/bf16.c.
_FEW = 8
# Score buffers grow by 1,024 positions.
_SCORE_STEP = 1024
Addresses = np.ndarray[Any, np.dtype[np.int64]]


class _Step(ctypes.Structure):
    """step_t of csrc/bf16.c."""

    _fields_ = (
        *(
            (name, ctypes.c_long)
            for name in ("rows", "width", "heads", "kv_heads", "dim", "hidden", "threads")
        ),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("table", "capacity", "position")),
        ("room", ctypes.c_long),
        *((name, ctypes.c_void_p) for name in ("normed", "q", "k", "v", "attended", "gated", "out", "score")),
    )


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
        weights: Addresses,
        caches: Addresses,
        capacity_T: Addresses,
        position_T: Addresses,
        table: np.ndarray[Any, np.dtype[np.float32]],
    ) -> Callable[[int, int, int], torch.Tensor]:
        """Set the arguments for rows x, contiguous -> run(first, last, part).

        Args:
            weights: addresses (layers, 9), in the order of layer_t in csrc/bf16.c.
            caches: addresses (layers, T, 2) of each row's keys and values (kv_heads, capacity, head_dim).
            position_T: of each row in its sequence; its key and value are stored there.
            table: (T, head_dim): cos and sin of each pair at the row's position.

        `run(first, last, 0)` takes x through whole layers, in place, and returns it. Parts 1 and 2 return
        what the attention and the feed-forward of layer `first` add to x, for ranks that have to sum it; the
        next call overwrites that.
        """
        library = kernels()
        assert library is not None
        rows = x_TC.shape[0]
        space = self._space(rows, torch.get_num_threads(), int(position_T.max()) + 1)
        step, out = space.step, space.out
        step.table, step.capacity, step.position = (
            each.ctypes.data for each in (table, capacity_T, position_T)
        )
        kept = (table, capacity_T, position_T, weights, caches)  # as long as `run` is
        (at_weights, at_caches, x) = (weights.ctypes.data, caches.ctypes.data, x_TC.data_ptr())
        weights_step, caches_step = weights.strides[0], caches.strides[0]

        def run(first: int, last: int, part: int) -> torch.Tensor:
            assert kept
            library.llama_bf16_layers(
                ctypes.byref(step),
                at_weights + first * weights_step,
                at_caches + first * caches_step,
                x,
                last - first,
                part,
            )
            return out if part else x_TC

        return run

    def _space(self, rows: int, threads: int, positions: int) -> _Space:
        """This thread's work space for so many rows, with scores of at least so many positions."""
        space: _Space | None = getattr(self._local, "space", None)
        if space is None or space.sized_for != (rows, threads) or positions > space.room:
            room = -(-positions // _SCORE_STEP) * _SCORE_STEP
            self._local.space = space = _allocate(self._shape, rows, threads, room)
        return space


@dataclass(frozen=True)
class _Space:
    """Buffers of a step, and the structure that points to them.

    Args:
        sized_for: (rows, threads).
        room: positions that the scores have room for.
    """

    sized_for: tuple[int, int]
    room: int
    step: _Step
    out: torch.Tensor
    buffers: list[torch.Tensor]


def _allocate(shape: LayerShape, rows: int, threads: int, room: int) -> _Space:
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    normed = rows * shape.width * (threads if rows <= _FEW else 1)
    sizes = [normed, *(rows * n for n in (query, key, key, query, shape.hidden))]
    parts = [torch.empty(size, dtype=torch.bfloat16, device="cpu") for size in sizes]
    out = torch.empty(rows, shape.width, dtype=torch.bfloat16, device="cpu")
    score = torch.empty(threads * room, dtype=torch.float32, device="cpu")
    step = _Step(
        *(rows, shape.width, shape.heads, shape.kv_heads, shape.head_dim, shape.hidden, threads),
        *(shape.eps, shape.head_dim**-0.5),
        *(None, None, None, room),
        *(part.data_ptr() for part in parts),
        *(out.data_ptr(), score.data_ptr()),
    )
    return _Space((rows, threads), room, step, out, [*parts, score])
