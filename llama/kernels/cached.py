"""How keys and values lie in a cache, and in PyTorch how they become int8 and come back.

A cache has the activations' dtype, or it is "int8": 32 neighbouring numbers of a head are a block of 34 bytes, a
scale in bfloat16 and then a signed byte for each. That is 8.5 bits a number. csrc/cached.h has the same layout, and
stores the same bits.
"""

from __future__ import annotations

import torch

from .quantized import BLOCK

__all__ = [
    "BLOCK",
    "INT8",
    "CacheFormat",
    "dequantize",
    "format_of",
    "head_dim_of",
    "quantize",
    "row_bytes",
    "row_of",
]

# A dtype, or INT8.
CacheFormat = torch.dtype | str
INT8 = "int8"
_SCALE = torch.bfloat16
_BYTES = _SCALE.itemsize + BLOCK


def row_of(form: CacheFormat, head_dim: int) -> tuple[torch.dtype, int]:
    """(dtype, numbers) of the tensor row that holds one key or value of a head. Of INT8, 32 divides the head."""
    if isinstance(form, torch.dtype):
        return form, head_dim
    assert form == INT8
    assert head_dim % BLOCK == 0
    return torch.int8, head_dim // BLOCK * _BYTES


def row_bytes(form: CacheFormat, head_dim: int) -> int:
    """Bytes of one key or value of a head."""
    dtype, numbers = row_of(form, head_dim)
    return numbers * dtype.itemsize


def format_of(store: torch.Tensor) -> CacheFormat:
    """The format of keys or values (..., row)."""
    return INT8 if store.dtype == torch.int8 else store.dtype


def head_dim_of(store: torch.Tensor) -> int:
    """Numbers of a head of keys or values (..., row)."""
    return store.shape[-1] // _BYTES * BLOCK if format_of(store) == INT8 else store.shape[-1]


def quantize(x: torch.Tensor) -> torch.Tensor:
    """(..., D) -> rows of blocks (..., D / 32 * 34) int8.

    The scale is 1/127 of a block's greatest number, rounded to bfloat16, and bytes belong to the scale as it was
    rounded: each number is off by half of it at most. Numbers whose scale would be subnormal become 0. A NaN or an
    infinity makes the scale a NaN, and so the whole block.
    """
    blocks = x.float().reshape(*x.shape[:-1], x.shape[-1] // BLOCK, BLOCK)
    top = blocks.abs().amax(-1, keepdim=True)
    scales = (top / 127).to(_SCALE)
    usable = scales.float() >= torch.finfo(torch.float32).tiny
    inverse = torch.where(usable & top.isfinite(), 1 / scales.float(), 0.0)
    codes = torch.where(inverse > 0, blocks * inverse, 0.0).round_().clamp_(-127, 127).to(torch.int8)
    scales = torch.where(top.isfinite(), torch.where(usable, scales, 0.0), torch.nan).to(_SCALE)
    rows = codes.new_empty(*codes.shape[:-1], _BYTES)
    rows[..., : _SCALE.itemsize].view(_SCALE).copy_(scales)
    rows[..., _SCALE.itemsize :] = codes
    return rows.flatten(-2)


def dequantize(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rows of blocks (..., D / 32 * 34) int8 -> (..., D); exact in float32."""
    blocks = rows.reshape(*rows.shape[:-1], rows.shape[-1] // _BYTES, _BYTES)
    scales = blocks[..., : _SCALE.itemsize].view(_SCALE).float()
    codes: torch.Tensor = blocks[..., _SCALE.itemsize :]
    return codes.mul(scales).to(dtype).flatten(-2)
