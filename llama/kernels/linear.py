"""y = x @ W^T without a bias: the one place that chooses the kernel behind a linear layer.

A GPU, or any dtype not named below, gets `F.linear` on the plain weight. On a CPU weights are
rearranged once, at load; the rearranged weight takes the place of the plain one, so that weights are in
memory once, and `unpack` gives the plain one back bit for bit:

* bfloat16, where native.py is available: its own layout and kernel, a tensor of four dimensions.
* bfloat16 otherwise, and float32: oneDNN's blocked layout, a tensor whose `is_mkldnn` is true.

Both were faster than `F.linear`, which rearranges in every call (bfloat16) or multiplies through a
library that is slow for few rows (float32), at every number of rows measured, from one token to a long
prompt. `benchmarks/linear.py` repeats the measurement; docs/log.md has the numbers and what was not worth
keeping. Sums are in float32. No global setting is touched, whichever path is taken.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F

from . import native

__all__ = ["can_pack", "can_prepare", "linear", "packs_blocks", "prepare", "unpack"]

# oneDNN reads the packed weights a third faster for four rows than for one to three (33 against 25 GB/s for
# a large matrix), which pays for computing rows that nobody asked for.
_FEWEST_ROWS = 4
# It compiles a kernel for each number of rows and keeps 0.6 MB of each, half of which its cache's limit does not free.
# So of the numbers up to 1,024 it is given 69: an eighth of the power of two below apart, and never more than this.
_MOST_APART = 32


def prepare(weight: torch.Tensor) -> torch.Tensor:
    """The form of `weight` (out, in) that `linear` is fastest with; drop the plain one for it.

    Call it once per loaded weight, in its final dtype and on its final device. The result shares nothing
    with a weight that was packed, and is `weight` itself where packing does not apply.
    """
    if not can_prepare(weight):
        return weight
    return native.pack(weight) if _native(weight) else _pack(weight)


def can_prepare(weight: torch.Tensor) -> bool:
    """Whether `prepare` makes a copy in another form; otherwise it gives back the weight itself."""
    if (
        weight.dim() != 2
        or not weight.is_cpu
        or weight.is_mkldnn
        or not weight.numel()
        or weight.requires_grad
    ):
        return False
    return _native(weight) or (torch._C._get_mkldnn_enabled() and can_pack(weight.dtype))


def packs_blocks(shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether a CPU weight of this kind is packed by native.py, which can do so block by block."""
    return dtype == torch.bfloat16 and len(shape) == 2 and shape[1] % 2 == 0 and native.available()


def _native(weight: torch.Tensor) -> bool:
    return packs_blocks(weight.shape, weight.dtype)


def linear(x: torch.Tensor, weight: torch.Tensor, out_features: int) -> torch.Tensor:
    """`x` (..., in) times the transpose of a weight (out_features, in), plain or prepared."""
    packed = weight.dim() == 4 and weight.dtype == torch.bfloat16
    if weight.dim() == 2 and not weight.is_mkldnn:
        return F.linear(x, weight)
    columns = 2 * weight.shape[1] if packed else weight.shape[1]
    # A pack that was cast since is for no kernel.
    cast = weight.dim() == 4 and not packed
    if cast or x.dtype != weight.dtype or x.shape[-1] != columns or not x.is_cpu:
        # The packed kernels check none of this: F.linear raises.
        return F.linear(x, unpack(weight, out_features))
    if x.requires_grad and torch.is_grad_enabled():
        return F.linear(x, unpack(weight, out_features))  # the packed kernels have no derivative
    if packed:
        return native.linear(x, weight, out_features)
    rows = x.numel() // columns
    taken = _rows_taken(rows)
    if taken == rows:
        return _multiply(x, weight)
    padded = F.pad(x.reshape(rows, columns), (0, 0, 0, taken - rows))
    return _multiply(padded, weight)[:rows].view(*x.shape[:-1], out_features)


def _rows_taken(rows: int) -> int:
    """Rows, some of them zeros, in which oneDNN is given so many."""
    if rows == 0:
        return 0
    octave = (rows - 1).bit_length()
    apart = max(min(1 << max(0, octave - 4), _MOST_APART), 1 << max(0, octave - 6))
    return max(_FEWEST_ROWS, -(-rows // apart) * apart)


def unpack(weight: torch.Tensor, out_features: int) -> torch.Tensor:
    """The plain, contiguous weight that `prepare` was given: for a state dict, a cast or another device."""
    if weight.dim() == 4:
        return native.unpack(weight, out_features)
    return weight.to_dense().contiguous() if weight.is_mkldnn else weight


def _pack(weight: torch.Tensor) -> torch.Tensor:
    # No row count is named: the layouts that oneDNN picks for 1, 8, 64 or 512 rows ran alike within noise.
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)
    return packed


def _multiply(x: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    # Naming the overload spares the search for one, which shows at one row of a small matrix.
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, packed, None, "none", [], "")
    return y


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build and CPU can pack, multiply and unpack `dtype` through oneDNN, found by trying it once.

    These operators are private to torch and come and go with its builds (and bfloat16 with the CPU's
    instructions), so a trial is a surer test than any list of versions. float16 never packs: without
    AVX512-FP16 oneDNN refuses it, and torch's own one-row kernel is as fast as memory.
    """
    if dtype not in (torch.bfloat16, torch.float32) or not torch._C._has_mkldnn:
        return False
    try:
        with torch.no_grad():
            weight = torch.arange(48 * 32, dtype=torch.float32, device="cpu").reshape(48, 32).to(dtype)
            packed = _pack(weight)
            first = _multiply(torch.eye(2, 32, dtype=dtype, device="cpu"), packed)
            same = torch.equal(unpack(packed, 48), weight) and torch.equal(first.T, weight[:, :2])
            return packed.is_mkldnn and same
    except (RuntimeError, AttributeError):  # NotImplementedError is a RuntimeError
        return False
