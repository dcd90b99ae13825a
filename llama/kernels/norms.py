"""RMSNorm and rotary positions, in PyTorch; and the tables of positions, also for csrc/norms.c.

Shapes: T tokens, H heads, D head dimension.
"""

from __future__ import annotations

from array import array
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["rms_norm", "rms_norm_launched", "rotary_pairs", "rotary_table", "rotate"]

# Whose pairs are computed at once for single tokens.
_POSITIONS = 64


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / rms(x) * weight over the last dimension, normalised in float32 (Zhang and Sennrich 2019)."""
    x32 = x.float()
    scale = torch.rsqrt(x32.square().mean(-1, keepdim=True).add_(eps))
    return (x32 * scale).type_as(x) * weight


def rms_norm_launched(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`rms_norm` where each kernel has to be launched: torch's own, one kernel on CUDA from torch 2.8 on.

    It multiplies by the weight before it rounds to x's dtype, not behind that.
    """
    return F.rms_norm(x, weight.shape, weight, eps)


def rotate(x_THD: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Turn each interleaved pair (2j, 2j+1) of every head by its position's angle.

    table: (T, D / 2) complex64, from `rotary_table`.
    """
    pairs = torch.view_as_complex(x_THD.float().view(*x_THD.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * table[:, None]).flatten(-2).type_as(x_THD)


def rotary_table(positions_T: torch.Tensor, head_dim: int, theta: float) -> torch.Tensor:
    """exp(i * position * theta^(-2j/D)) as (T, D/2) complex64 (Su et al. 2021).

    Made for the positions of a step, in float32 whatever the model's dtype: half-precision angles are off by
    whole turns at theta 1e6. One table serves all layers.
    """
    angle = positions_T.float()[:, None] * _frequencies(head_dim, theta, positions_T.device)
    return torch.polar(torch.ones_like(angle), angle)


def rotary_pairs(
    position_T: array[int], head_dim: int, theta: float
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """`rotary_table` for fused.py, as cos and sin of each pair, (T, D). numpy is faster for so few rows."""
    if len(position_T) == 1:
        block, row = divmod(position_T[0], _POSITIONS)
        return _next_pairs(block, head_dim, theta)[row : row + 1]
    return _pairs(np.frombuffer(position_T, dtype=np.int64), head_dim, theta)


@lru_cache(maxsize=16)
def _next_pairs(block: int, head_dim: int, theta: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The pairs of a block of positions, for the tokens that a sequence decodes one after the other."""
    return _pairs(np.arange(block * _POSITIONS, (block + 1) * _POSITIONS), head_dim, theta)


def _pairs(
    position_T: np.ndarray[Any, np.dtype[np.int64]], head_dim: int, theta: float
) -> np.ndarray[Any, np.dtype[np.float32]]:
    angle = np.multiply.outer(position_T.astype(np.float32), _numpy_frequencies(head_dim, theta))
    pairs = np.empty((len(position_T), head_dim), dtype=np.float32)
    np.cos(angle, out=pairs[:, 0::2])
    np.sin(angle, out=pairs[:, 1::2])
    return pairs


def _frequencies(head_dim: int, theta: float, device: torch.device) -> torch.Tensor:
    """theta^(-2j/D) of each pair j, (D/2,) float32."""
    pair = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32)
    return 1.0 / theta ** (pair / head_dim)


@cache
def _numpy_frequencies(head_dim: int, theta: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    frequencies: np.ndarray[Any, np.dtype[np.float32]] = _frequencies(
        head_dim, theta, torch.device("cpu")
    ).numpy()
    return frequencies
