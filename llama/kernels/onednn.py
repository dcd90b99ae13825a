"""Products with weights that oneDNN has packed, through operators that are private to torch."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F

__all__ = ["DTYPES", "can_pack", "linear", "pack", "unpack"]

DTYPES = (torch.bfloat16, torch.float32)
# oneDNN reads the packed weights a third faster for four rows than for one to three (33 against 25 GB/s for
# a large matrix), which pays for computing up to three rows that nobody asked for.
_FEWEST_ROWS = 4
# It compiles a kernel for each number of rows and keeps 0.6 MB of each, half of which its cache's limit does
# not free. So numbers of rows are rounded up, which leaves 69 up to 1,024: to a multiple of an eighth of the
# power of two below, at most of 32; beyond 2,048 rows, of a thirty-second of that power.
_MOST_APART = 32


def pack(weight: torch.Tensor) -> torch.Tensor:
    """A CPU weight (out, in) in oneDNN's own layout, an opaque tensor of the same shape."""
    if weight.is_mkldnn:  # computed from such a weight
        weight = weight.to_dense()
    # No row count is named: the layouts that oneDNN picks for 1, 8, 64 or 512 rows ran alike within noise.
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)
    return packed


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """The weight that `pack` was given, contiguous."""
    return packed.to_dense().contiguous()


def linear(x: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """x (..., in) times the transpose of a packed weight of x's dtype -> (..., out)."""
    out, columns = packed.shape
    rows = x.numel() // columns
    padded = _padded(rows)
    if padded == rows:
        return _multiply(x, packed)
    x_padded = F.pad(x.reshape(rows, columns), (0, 0, 0, padded - rows))
    return _multiply(x_padded, packed)[:rows].view(*x.shape[:-1], out)


def _multiply(x: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    # Naming the overload spares the search for one, which shows at one row of a small matrix.
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, packed, None, "none", [], "")
    return y


def _padded(rows: int) -> int:
    """The number of rows, some of them zeros, that oneDNN is given for so many."""
    if rows == 0:
        return 0
    octave = (rows - 1).bit_length()
    apart = max(min(1 << max(0, octave - 4), _MOST_APART), 1 << max(0, octave - 6))
    return max(_FEWEST_ROWS, -(-rows // apart) * apart)


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build and CPU pack, multiply and unpack `dtype` through oneDNN, found by trying it once.

    These operators come and go with torch's builds (and bfloat16 with the CPU's instructions), so a trial is a
    surer test than any list of versions. float16 never packs: without AVX512-FP16 oneDNN refuses it, and torch's
    own one-row kernel is as fast as memory.
    """
    if dtype not in DTYPES or not torch._C._has_mkldnn:
        return False
    try:
        with torch.no_grad():
            weight = torch.arange(48 * 32, dtype=torch.float32, device="cpu").reshape(48, 32).to(dtype)
            packed = pack(weight)
            first = _multiply(torch.eye(2, 32, dtype=dtype, device="cpu"), packed)
            same = torch.equal(unpack(packed), weight) and torch.equal(first.T, weight[:, :2])
            return packed.is_mkldnn and same
    except (RuntimeError, AttributeError):  # NotImplementedError is a RuntimeError
        return False
