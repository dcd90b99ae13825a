"""The compiled kernels of csrc/: says which tensors each of them takes, and calls them.

compiled.py opens the library. Nothing depends on it: each caller (linear.py, attention.py, norms.py,
sampling.py, fused.py) also has a way without it.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .compiled import kernels

__all__ = [
    "DTYPES",
    "LANES",
    "Matrix",
    "attention",
    "available",
    "can_pack_block",
    "draw",
    "is_packed",
    "kernels",
    "linear",
    "log_probabilities",
    "matrix",
    "pack",
    "pack_block",
    "packed_shape",
    "rms_norm",
    "rotate_",
    "takes_attention",
    "takes_layers",
    "takes_logits",
    "takes_norm",
    "takes_rotation",
    "unpack",
]

# As in csrc/numbers.h. These are the activations' dtypes, and the formats of plain weights.
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
# Outputs of one group of a packed weight, on every level.
LANES = 16
# Inputs of one step of a packed weight: bfloat16 lies in pairs.
_STEP = {torch.float32: 1, torch.float16: 1, torch.bfloat16: 2}
# Largest head that many queries may have; DEEP in csrc/attention.c.
_MAX_HEAD_DIM = 256


def available() -> bool:
    """Whether the kernels are there and this CPU runs them."""
    return kernels() is not None


def _runs(x: torch.Tensor, multiple: int) -> bool:
    """Whether kernels take these numbers: of a dtype and last dimension that they know, and without a derivative."""
    return (
        x.dtype in DTYPES
        and x.is_cpu
        and x.shape[-1] % multiple == 0
        and not (x.requires_grad and torch.is_grad_enabled())
        and kernels() is not None
    )


# ---- matrix products ----


class Matrix(ctypes.Structure):
    """matrix_t of csrc/matrix.h: a packed weight. It does not keep the memory that it points to."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("format", "out", "columns")),
        *((name, ctypes.c_void_p) for name in ("codes", "scales", "zeros", "order")),
    )


def matrix(packed: torch.Tensor, out_features: int, columns: int) -> Matrix:
    """A weight (out_features, columns) that lies packed here."""
    return Matrix(DTYPES[packed.dtype], out_features, columns, packed.data_ptr())


def packed_shape(size: Sequence[int], dtype: torch.dtype) -> tuple[int, int, int, int]:
    """The shape in which a weight (rows, columns) is packed: groups of 16 outputs, steps of inputs."""
    rows, columns = size
    step = _STEP[dtype]
    return -(-rows // LANES), -(-columns // step), LANES, step


def is_packed(weight: torch.Tensor) -> bool:
    """Whether `linear` takes this packed weight. One that was cast since may lie otherwise than its dtype does."""
    return weight.dtype in DTYPES and weight.shape[2:] == (LANES, _STEP[weight.dtype])


def can_pack_block(weight: torch.Tensor, packed: torch.Tensor, row: int, column: int, rows: int) -> bool:
    """Whether `pack_block` takes this block of a weight of `rows` rows."""
    whole = weight.shape[0] % LANES == 0 or row + weight.shape[0] == rows
    return (
        weight.dtype == packed.dtype
        and weight.dtype in DTYPES
        and weight.is_cpu
        and weight.stride(1) == 1
        and row % LANES == column % 2 == weight.shape[1] % 2 == 0
        and whole
    )


def pack_block(weight: torch.Tensor, packed: torch.Tensor, row: int, column: int) -> None:
    """Write a block of a weight, whose first entry is (row, column) of the whole, into its packed form."""
    groups, steps, _, step = packed.shape
    _pack(weight, matrix(packed, groups * LANES, steps * step), row, column)


def _pack(block: torch.Tensor, whole: Matrix, row: int, column: int) -> None:
    library = kernels()
    assert library is not None
    library.llama_pack(
        ctypes.byref(whole),
        block.data_ptr(),
        block.stride(0),
        row,
        column,
        *block.shape,
        torch.get_num_threads(),
    )


def pack(weight: torch.Tensor) -> torch.Tensor:
    """A CPU weight (out, in) -> `packed_shape`: groups of 16 outputs, the last one filled up with zeros."""
    packed = torch.empty(packed_shape(weight.shape, weight.dtype), dtype=weight.dtype, device="cpu")
    _pack(weight.contiguous(), matrix(packed, *weight.shape), 0, 0)
    return packed


def unpack(packed: torch.Tensor, out_features: int, columns: int | None = None) -> torch.Tensor:
    """The weight (out, in) that `pack` was given; `columns` only where it was odd."""
    groups, steps, lanes, step = packed.shape
    whole = packed.transpose(1, 2).reshape(groups * lanes, steps * step)
    return whole[:out_features, :columns].contiguous()


def linear(x: torch.Tensor, packed: torch.Tensor, out_features: int) -> torch.Tensor:
    """x (..., in) times the transpose of a packed weight, of any dtype -> (..., out_features), of x's dtype."""
    library = kernels()
    assert library is not None
    x = x.contiguous()
    columns, dtype = x.shape[-1], DTYPES[x.dtype]
    y = torch.empty(*x.shape[:-1], out_features, dtype=x.dtype, device="cpu")
    rows = x.numel() // columns
    weight = matrix(packed, out_features, columns)
    size = library.llama_linear_space(ctypes.byref(weight), rows, dtype)
    space = torch.empty(size, dtype=torch.uint8, device="cpu") if size else None
    library.llama_linear(
        ctypes.byref(weight),
        *(x.data_ptr(), y.data_ptr(), None if space is None else space.data_ptr()),
        *(rows, dtype, torch.get_num_threads()),
    )
    return y


# ---- between the matrix products ----


def takes_norm(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `rms_norm` takes these."""
    return _runs(x, LANES) and weight.dtype == x.dtype and weight.is_contiguous()


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x (..., n) / rms(x) * weight (n,); n is a multiple of 16."""
    library = kernels()
    assert library is not None
    x = x.contiguous()
    n = x.shape[-1]
    y = torch.empty_like(x)
    rows = x.numel() // n
    library.llama_rms_norm(
        *(x.data_ptr(), weight.data_ptr(), y.data_ptr()),
        *(rows, n, eps, DTYPES[x.dtype], torch.get_num_threads()),
    )
    return y


def takes_rotation(x_THD: torch.Tensor) -> bool:
    """Whether `rotate_` takes these heads."""
    return _runs(x_THD, LANES) and x_THD.is_contiguous()


def rotate_(x_THD: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Turn the interleaved pairs of x, contiguous, in place by table (T, D / 2) complex64; 16 divides D."""
    library = kernels()
    assert library is not None
    assert x_THD.is_contiguous()
    library.llama_rotate(
        x_THD.data_ptr(), table.data_ptr(), *x_THD.shape, DTYPES[x_THD.dtype], torch.get_num_threads()
    )
    return x_THD


def takes_layers(x_TC: torch.Tensor) -> bool:
    """Whether the kernel for whole layers (fused_call.py) takes these rows."""
    return _runs(x_TC, LANES)


# ---- attention ----


def takes_attention(q_THD: torch.Tensor) -> bool:
    """Whether `attention` takes these queries."""
    return (q_THD.shape[0] == 1 or q_THD.shape[2] <= _MAX_HEAD_DIM) and _runs(q_THD, 2 * LANES)


def attention(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    start: int,
) -> torch.Tensor:
    """Store tokens at positions start.. of a cache (K, capacity, D) and attend to 0..their own -> (T, H, D).

    All tensors are of one dtype; the caches are contiguous, D is a multiple of 32, at most 256 for T > 1.
    """
    library = kernels()
    assert library is not None
    count, heads, dim = q_THD.shape
    assert start + count <= keys.shape[1]
    assert keys.is_contiguous()
    assert values.is_contiguous()
    q_THD, k_TKD, v_TKD = q_THD.contiguous(), k_TKD.contiguous(), v_TKD.contiguous()
    out_THD = torch.empty_like(q_THD)
    room = library.llama_attend_room(count, start, heads, keys.shape[0], dim)
    threads = torch.get_num_threads()
    score = torch.empty(threads * room, dtype=torch.float32, device="cpu")
    library.llama_attend(
        *(x.data_ptr() for x in (q_THD, k_TKD, v_TKD, keys, values, out_THD, score)),
        *(room, count, heads, keys.shape[0], dim, keys.shape[1], start),
        *(dim**-0.5, DTYPES[q_THD.dtype], threads),
    )
    return out_THD


# ---- rows of logits ----

_logits_space = threading.local()


def takes_logits(logits_RV: torch.Tensor) -> bool:
    """Whether `draw` and `log_probabilities` take these: contiguous float32 on a CPU that has the kernels."""
    whole = logits_RV.is_contiguous() and logits_RV.numel() > 0
    return logits_RV.dtype == torch.float32 and logits_RV.is_cpu and whole and kernels() is not None


def draw(logits_RV: torch.Tensor, params_R5: np.ndarray[Any, np.dtype[np.float64]]) -> torch.Tensor:
    """An id for each row of finite logits, (R,) int64.

    Args:
        params_R5: temperature (0: the greatest logit), top-p, top-k (V for all), min-p, uniform number.
    """
    ids = torch.empty(len(logits_RV), dtype=torch.int64, device="cpu")
    assert params_R5.flags.c_contiguous
    assert params_R5.shape == (len(logits_RV), 5)
    _on_rows("draw", logits_RV, params_R5.ctypes.data, ids.data_ptr())
    return ids


def log_probabilities(logits_RV: torch.Tensor, ids_R: torch.Tensor) -> torch.Tensor:
    """log softmax of each row of finite logits at its id, (R,) float32."""
    logs = torch.empty(len(logits_RV), dtype=torch.float32, device="cpu")
    ids_R = ids_R.contiguous()
    assert ids_R.dtype == torch.int64
    assert len(ids_R) == len(logits_RV)
    _on_rows("logs", logits_RV, ids_R.data_ptr(), logs.data_ptr())
    return logs


def _on_rows(name: str, logits_RV: torch.Tensor, *pointers: int) -> None:
    """Call a function of csrc/rows.c, in this thread's work space."""
    library = kernels()
    assert library is not None
    rows, vocab = logits_RV.shape
    threads = min(rows, torch.get_num_threads())
    size = threads * library.llama_rows_space(vocab)
    space: torch.Tensor | None = getattr(_logits_space, "space", None)
    if space is None or len(space) < size:
        space = _logits_space.space = torch.empty(size, dtype=torch.uint8, device="cpu")
    function = getattr(library, f"llama_rows_{name}")
    function(logits_RV.data_ptr(), *pointers, space.data_ptr(), rows, vocab, threads)
