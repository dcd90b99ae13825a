"""The compiled kernels in csrc/, where they were built and this CPU can run them.

`pip install` builds them if it finds a C compiler; nothing depends on it. Knows pointers and shapes;
who uses them, and when, is decided in linear.py.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = [
    "LANES",
    "LayerShape",
    "Layers",
    "attend",
    "available",
    "can_pack_block",
    "decode",
    "fits",
    "linear",
    "pack",
    "pack_block",
    "packed_shape",
    "ranks_library",
    "rms_norm",
    "rotate_",
    "unpack",
]

# Of csrc/bf16.c. Goes up there and here with every change of a signature or layout.
_ABI = 5
# Outputs of one group of a packed weight.
LANES = 16
_TYPES = {
    "p": ctypes.c_void_p,
    "n": ctypes.c_long,
    "u": ctypes.c_uint64,
    "f": ctypes.c_float,
    "i": ctypes.c_int,
}
_RANKS_SIGNATURES = {"bytes": "nn", "enter": "pn", "sum": "pnnnupnni", "gather": "pnnnuppni"}
_SIGNATURES = {
    "pack": "ppnnnni",
    "linear": "pppnnni",
    "rms_norm": "pppnnfi",
    "rotate": "ppnnni",
    "decode": "pppppppnnnnnnfi",
    "layers": "ppppnn",
    "attend": "ppppnnnnnnfi",
}


@cache
def _loaded() -> ctypes.CDLL | None:
    """The compiled file, or None. Its OpenMP calls resolve to the runtime that torch has loaded."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_bf16" + suffix)
        if not path.is_file():
            continue
        try:
            library = ctypes.CDLL(str(path))
        except OSError:  # built against a torch whose OpenMP has other symbols
            return None
        if not hasattr(library, "llama_bf16_abi") or library.llama_bf16_abi() != _ABI:
            return None  # built from another version of the source; install again
        for prefix, signatures, result in (
            ("bf16", _SIGNATURES, None),
            ("ranks", _RANKS_SIGNATURES, ctypes.c_long),
        ):
            for name, signature in signatures.items():
                function = getattr(library, f"llama_{prefix}_{name}")
                function.argtypes = [_TYPES[letter] for letter in signature]
                function.restype = result
        for name in ("sum", "gather"):
            getattr(library, f"llama_ranks_{name}").restype = ctypes.c_int
        return library
    return None


def ranks_library() -> ctypes.CDLL | None:
    """The functions of csrc/ranks.c, which any CPU runs; for shared.py."""
    return _loaded()


@cache
def _library() -> ctypes.CDLL | None:
    """The kernels of csrc/bf16.c, or None where this CPU lacks their instructions."""
    library = _loaded()
    return library if library is not None and library.llama_bf16_supported() else None


def available() -> bool:
    """Whether the bfloat16 kernels are there."""
    return _library() is not None


def packed_shape(rows: int, columns: int) -> tuple[int, int, int, int]:
    """Of a packed weight (rows, columns)."""
    return -(-rows // LANES), columns // 2, LANES, 2


def can_pack_block(weight: torch.Tensor, packed: torch.Tensor, row: int, column: int, rows: int) -> bool:
    """Whether `pack_block` takes this block of a weight of `rows` rows."""
    whole = weight.shape[0] % LANES == 0 or row + weight.shape[0] == rows
    return (
        weight.dtype == packed.dtype == torch.bfloat16
        and weight.is_cpu
        and weight.stride(1) == 1
        and row % LANES == column % 2 == weight.shape[1] % 2 == 0
        and whole
    )


def pack_block(weight: torch.Tensor, packed: torch.Tensor, row: int, column: int) -> None:
    """Write a block of a weight, whose first entry is (row, column) of the whole, into its packed form."""
    library = _library()
    assert library is not None
    columns = 2 * packed.shape[1]
    at = packed.data_ptr() + 2 * (row * columns + column * LANES)
    library.llama_bf16_pack(
        weight.data_ptr(), at, weight.stride(0), columns, *weight.shape, torch.get_num_threads()
    )


def pack(weight: torch.Tensor) -> torch.Tensor:
    """A bfloat16 CPU weight (out, in), `in` even, as groups of 16 outputs: (ceil(out / 16), in / 2, 16, 2)."""
    packed = torch.empty(packed_shape(*weight.shape), dtype=weight.dtype, device="cpu")
    pack_block(weight.contiguous(), packed, 0, 0)
    return packed


def unpack(packed: torch.Tensor, out_features: int) -> torch.Tensor:
    """What `pack` was given."""
    return packed.transpose(1, 2).reshape(-1, 2 * packed.shape[1])[:out_features].contiguous()


def linear(x: torch.Tensor, packed: torch.Tensor, out_features: int) -> torch.Tensor:
    """x (..., in) in bfloat16 times the transpose of a packed weight -> (..., out_features)."""
    library = _library()
    assert library is not None
    x = x.contiguous()
    columns = x.shape[-1]
    y = torch.empty(*x.shape[:-1], out_features, dtype=x.dtype, device="cpu")
    rows = x.numel() // columns
    library.llama_bf16_linear(
        x.data_ptr(), packed.data_ptr(), y.data_ptr(), rows, columns, out_features, torch.get_num_threads()
    )
    return y


def fits(x: torch.Tensor, multiple: int) -> bool:
    """Whether the kernels below take x: bfloat16 on a CPU that has them, last dimension of the right multiple."""
    return x.dtype == torch.bfloat16 and x.is_cpu and x.shape[-1] % multiple == 0 and available()


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x (..., n) / rms(x) * weight (n,); n is a multiple of 16."""
    library = _library()
    assert library is not None
    x = x.contiguous()
    n = x.shape[-1]
    y = torch.empty_like(x)
    rows = x.numel() // n
    library.llama_bf16_rms_norm(
        x.data_ptr(), weight.data_ptr(), y.data_ptr(), rows, n, eps, torch.get_num_threads()
    )
    return y


def rotate_(x_THD: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Turn the interleaved pairs of x, contiguous, in place by table (T, D / 2) complex64; D is a multiple of 16."""
    library = _library()
    assert library is not None
    assert x_THD.is_contiguous()
    library.llama_bf16_rotate(x_THD.data_ptr(), table.data_ptr(), *x_THD.shape, torch.get_num_threads())
    return x_THD


def decode(
    q_HD: torch.Tensor,
    k_KD: torch.Tensor,
    v_KD: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    position: int,
    out_HD: torch.Tensor,
) -> None:
    """Store one token's key and value at `position` of a cache (K, capacity, D) and attend to 0..position.

    All contiguous; D is a multiple of 32. `out_HD` receives the result.
    """
    library = _library()
    assert library is not None
    assert position < keys.shape[1]
    assert all(x.is_contiguous() for x in (q_HD, k_KD, v_KD, keys, values, out_HD))
    heads, dim = q_HD.shape
    room = -(-(position + 1) // LANES) * LANES
    score = torch.empty(heads * room, dtype=torch.float32, device="cpu")
    library.llama_bf16_decode(
        *(x.data_ptr() for x in (q_HD, k_KD, v_KD, keys, values, out_HD, score)),
        *(heads, keys.shape[0], dim, keys.shape[1], position, room),
        dim**-0.5,
        torch.get_num_threads(),
    )


def attend(
    q_THD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, start: int, out_THD: torch.Tensor
) -> None:
    """Attend from tokens at positions start.. of a cache (K, capacity, D), stored there already, to 0..their own.

    All contiguous; D is a multiple of 32, at most 256. `out_THD` receives the result.
    """
    library = _library()
    assert library is not None
    rows, heads, dim = q_THD.shape
    assert start + rows <= keys.shape[1]
    assert dim <= 256
    assert all(x.is_contiguous() for x in (q_THD, keys, values, out_THD))
    library.llama_bf16_attend(
        *(x.data_ptr() for x in (q_THD, keys, values, out_THD)),
        *(rows, heads, keys.shape[0], dim, keys.shape[1], start),
        dim**-0.5,
        torch.get_num_threads(),
    )


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
        library = _library()
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
