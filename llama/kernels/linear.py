"""y = x W^T without a bias. The one place that chooses how a weight is stored and which kernel multiplies it.

A weight on a GPU, or of a dtype not named below, stays plain and goes through `F.linear`. On a CPU weights
are packed once, at load. The packed weight replaces the plain one, so that weights are in memory once;
`unpack` gives it back bit for bit. The table of formats:

* `BLOCKED`, on a CPU that has native.py's kernels: their own layout, a tensor of four dimensions.
* `ONEDNN`, bfloat16 and float32 on other CPUs: oneDNN's blocked layout, a tensor whose `is_mkldnn` is true.

Both were faster than `F.linear` at every number of rows measured, from one token to a long prompt: for
bfloat16 it rearranges the weight in every call, for float32 its library is slow for few rows.
`benchmarks/linear.py` repeats the measurement; docs/log.md has the numbers and what was not worth keeping.
Sums are in float32. No global setting is touched.

A new format (int8, GPTQ, ...) is one more `WeightFormat`, with a case in `format_of` and in `_best_format`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F

from . import native

__all__ = [
    "BLOCKED",
    "ONEDNN",
    "WeightFormat",
    "can_pack",
    "can_prepare",
    "format_of",
    "linear",
    "packs_blocks",
    "prepare",
    "unpack",
]

# oneDNN reads the packed weights a third faster for four rows than for one to three (33 against 25 GB/s for
# a large matrix), which pays for computing up to three rows that nobody asked for.
_FEWEST_ROWS = 4
# It compiles a kernel for each number of rows and keeps 0.6 MB of each, half of which its cache's limit does
# not free. So numbers of rows are rounded up, which leaves 69 up to 1,024: to a multiple of an eighth of the
# power of two below, at most of 32; beyond 2,048 rows, of a thirty-second of that power.
_MOST_APART = 32


# ---- formats ----


class WeightFormat(NamedTuple):
    """A packed form of a weight (out, in), and its kernel. The kernels check nothing; `linear` does.

    Attributes:
        dtypes: of weights that can be packed.
        multiplies: whether the kernel takes a packed weight as it is now.
        columns: of a packed tensor's weight.
        pack: plain weight -> packed weight, which shares no memory with it.
        unpack: (packed, out) -> the plain weight, contiguous.
        multiply: (x (..., in), packed, out) -> (..., out), without a derivative.
    """

    dtypes: tuple[torch.dtype, ...]
    multiplies: Callable[[torch.Tensor], bool]
    columns: Callable[[torch.Tensor], int]
    pack: Callable[[torch.Tensor], torch.Tensor]
    unpack: Callable[[torch.Tensor, int], torch.Tensor]
    multiply: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


def _onednn_pack(weight: torch.Tensor) -> torch.Tensor:
    # No row count is named: the layouts that oneDNN picks for 1, 8, 64 or 512 rows ran alike within noise.
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)
    return packed


def _onednn_unpack(packed: torch.Tensor, out_features: int) -> torch.Tensor:
    return packed.to_dense().contiguous()


def _onednn_linear(x: torch.Tensor, packed: torch.Tensor, out_features: int) -> torch.Tensor:
    columns = packed.shape[1]
    rows = x.numel() // columns
    padded = _onednn_rows(rows)
    if padded == rows:
        return _onednn_multiply(x, packed)
    x_padded = F.pad(x.reshape(rows, columns), (0, 0, 0, padded - rows))
    return _onednn_multiply(x_padded, packed)[:rows].view(*x.shape[:-1], out_features)


def _onednn_multiply(x: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    # Naming the overload spares the search for one, which shows at one row of a small matrix.
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, packed, None, "none", [], "")
    return y


def _onednn_rows(rows: int) -> int:
    """The number of rows, some of them zeros, that oneDNN is given for so many."""
    if rows == 0:
        return 0
    octave = (rows - 1).bit_length()
    apart = max(min(1 << max(0, octave - 4), _MOST_APART), 1 << max(0, octave - 6))
    return max(_FEWEST_ROWS, -(-rows // apart) * apart)


def _blocked_columns(packed: torch.Tensor) -> int:
    return packed.shape[1] * packed.shape[3]


def _onednn_columns(packed: torch.Tensor) -> int:
    return packed.shape[1]


def _onednn_multiplies(packed: torch.Tensor) -> bool:
    return packed.dtype in _ONEDNN_DTYPES


_ONEDNN_DTYPES = (torch.bfloat16, torch.float32)
BLOCKED = WeightFormat(
    *(tuple(native.DTYPES), native.is_packed, _blocked_columns, native.pack, native.unpack, native.linear)
)
ONEDNN = WeightFormat(
    *(_ONEDNN_DTYPES, _onednn_multiplies, _onednn_columns, _onednn_pack, _onednn_unpack, _onednn_linear)
)


def format_of(weight: torch.Tensor) -> WeightFormat | None:
    """The format of a weight; None if it is plain (out, in). Only this function tells formats apart."""
    if weight.is_mkldnn:
        return ONEDNN
    return BLOCKED if weight.dim() == 4 else None


# ---- the operator ----


def linear(x: torch.Tensor, weight: torch.Tensor, out_features: int) -> torch.Tensor:
    """`x` (..., in) times the transpose of a weight (out_features, in), plain or prepared."""
    stored = format_of(weight)
    if stored is None:
        return F.linear(x, weight)
    if (
        x.dtype != weight.dtype
        or not stored.multiplies(weight)  # it was cast since
        or x.shape[-1] != stored.columns(weight)
        or not x.is_cpu
        or (x.requires_grad and torch.is_grad_enabled())
    ):
        # F.linear raises, or differentiates.
        return F.linear(x, stored.unpack(weight, out_features))
    return stored.multiply(x, weight, out_features)


def prepare(weight: torch.Tensor) -> torch.Tensor:
    """`weight` (out, in) in the format that `linear` is fastest with. The caller drops the plain weight.

    Call it once per loaded weight, in its final dtype and on its final device. The result shares nothing
    with a weight that was packed, and is `weight` itself where no format applies.
    """
    best = _best_format(weight)
    return weight if best is None else best.pack(weight)


def can_prepare(weight: torch.Tensor) -> bool:
    """Whether `prepare` makes a copy in another format; otherwise it returns the weight itself."""
    return _best_format(weight) is not None


def unpack(weight: torch.Tensor, out_features: int) -> torch.Tensor:
    """The plain, contiguous weight that `prepare` was given: for a state dict, a cast or another device."""
    stored = format_of(weight)
    return weight if stored is None else stored.unpack(weight, out_features)


# ---- the choice of a format ----


def _best_format(weight: torch.Tensor) -> WeightFormat | None:
    if weight.dim() != 2 or not weight.is_cpu or not weight.numel() or weight.requires_grad:
        return None
    if format_of(weight) is not None:
        return None  # packed already
    if packs_blocks(weight.shape, weight.dtype):
        return BLOCKED
    return ONEDNN if torch._C._get_mkldnn_enabled() and can_pack(weight.dtype) else None


def packs_blocks(shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether a CPU weight of this kind becomes `BLOCKED`, which native.py can fill block by block."""
    even = len(shape) == 2 and (dtype != torch.bfloat16 or shape[1] % 2 == 0)
    return dtype in BLOCKED.dtypes and even and native.available()


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build and CPU pack, multiply and unpack `dtype` through oneDNN, found by trying it once.

    These operators are private to torch and come and go with its builds (and bfloat16 with the CPU's
    instructions), so a trial is a surer test than any list of versions. float16 never packs: without
    AVX512-FP16 oneDNN refuses it, and torch's own one-row kernel is as fast as memory.
    """
    if dtype not in ONEDNN.dtypes or not torch._C._has_mkldnn:
        return False
    try:
        with torch.no_grad():
            weight = torch.arange(48 * 32, dtype=torch.float32, device="cpu").reshape(48, 32).to(dtype)
            packed = _onednn_pack(weight)
            first = _onednn_multiply(torch.eye(2, 32, dtype=dtype, device="cpu"), packed)
            same = torch.equal(_onednn_unpack(packed, 48), weight) and torch.equal(first.T, weight[:, :2])
            return packed.is_mkldnn and same
    except (RuntimeError, AttributeError):  # NotImplementedError is a RuntimeError
        return False
