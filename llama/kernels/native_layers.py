"""Rows through whole layers in one call of csrc/bf16.c: its work space and addresses. For fused.py."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .native import kernels

__all__ = ["Addresses", "LayerShape", "Layers"]

# Rows up to which every thread norms all of them for itself; FEW in csrc/bf16.c.
_FEW = 8
# Scores are made room for in such steps of positions.
_ROOM = 1024
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
        *((name, ctypes.c_void_p) for name in ("normed", "q", "k", "v", "seen", "gated", "out", "score")),
    )


@dataclass(frozen=True)
class LayerShape:
    """Of a rank's part of every layer: query and key/value heads, head dimension, feed-forward dimension."""

    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    eps: float


class Layers:
    """Rows through layers, in one call or in parts; keeps the work space of the last number of rows."""

    def __init__(self, shape: LayerShape) -> None:
        self._shape = shape
        # Of each thread its own: several may run one model.
        self._local = threading.local()

    def prepare(
        self,
        x_TC: torch.Tensor,
        weights: Addresses,
        caches: Addresses,
        capacity_T: Addresses,
        position_T: Addresses,
        table: np.ndarray[Any, np.dtype[np.float32]],
    ) -> Callable[[int, int, int], torch.Tensor]:
        """Take rows x, contiguous -> run(first, last, part).

        Args:
            weights: addresses (layers, 9), in the order of layer_t in csrc/bf16.c.
            caches: addresses (layers, T, 2) of the keys and values (kv_heads, capacity, head_dim) of each row.
            position_T: of each row in its sequence; its key and value are stored there.
            table: (T, head_dim): cos and sin of each pair at the row's position.

        `run(first, last, 0)` takes x through whole layers, in place, and returns it; part 1 and 2 return what
        the attention and the feed-forward of layer `first` add to x, for ranks that have to sum it. What
        they return is overwritten by the next.
        """
        library = kernels()
        assert library is not None
        rows, width = x_TC.shape
        space = self._space(rows, width, torch.get_num_threads(), int(position_T.max()) + 1)
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

    def _space(self, rows: int, width: int, threads: int, positions: int) -> _Space:
        """Work space of this thread for these rows, and for scores of so many positions."""
        space: _Space | None = getattr(self._local, "space", None)
        if space is not None and space.rows == (rows, width, threads) and positions <= space.room:
            return space
        shape, room = self._shape, -(-positions // _ROOM) * _ROOM
        query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        normed = rows * width * (threads if rows <= _FEW else 1)
        sizes = [normed, *(rows * n for n in (query, key, key, query, shape.hidden))]
        parts = [torch.empty(size, dtype=torch.bfloat16, device="cpu") for size in sizes]
        out = torch.empty(rows, width, dtype=torch.bfloat16, device="cpu")
        score = torch.empty(threads * room, dtype=torch.float32, device="cpu")
        step = _Step(
            *(rows, width, shape.heads, shape.kv_heads, shape.head_dim, shape.hidden, threads),
            *(shape.eps, shape.head_dim**-0.5),
            *(None, None, None, room),
            *(part.data_ptr() for part in parts),
            *(out.data_ptr(), score.data_ptr()),
        )
        self._local.space = space = _Space((rows, width, threads), room, step, out, [*parts, score])
        return space


@dataclass(frozen=True)
class _Space:
    """What a step of so many (rows, width, threads) works in."""

    rows: tuple[int, int, int]
    room: int
    step: _Step
    out: torch.Tensor
    buffers: list[torch.Tensor]
