"""Weights -> 4 bits, with scales that are searched for. csrc/quantize.c has the same for CPUs, bit for bit.

The error of a weight x counts with w = |x| + the mean |x| of its block of 32: an error on a large one does more harm.
For some scales around that which spans a block, x is rounded to codes q; for these the scale s and offset m with the
least sum of w (s q - m - x)^2 have a closed form. The best of them is taken.
"""

from __future__ import annotations

import math

import torch

from . import native
from .quantized import BLOCK, FORMATS, Blocks, Form

__all__ = ["to_int4", "to_k4"]

_SUPER = FORMATS["k4"].group or 0
# How many scales are tried on either side of the first, a fifth of a code apart.
_TRIES = 6
# Smaller ranges count as 0: their inverse overflows float32.
_TINY = 1e-30
# Weights that are quantized at a time here: a few temporaries of them fit a CPU's caches.
_WINDOW = 1 << 20


def to_int4(weight: torch.Tensor) -> Blocks:
    """Weights (rows, columns) -> int4. 32 divides the columns. A NaN or infinity makes its block's scale NaN."""
    rows, columns = weight.shape
    form = Form("int4", columns, BLOCK)
    compiled = native.kernels() if weight.device.type == "cpu" else None
    if compiled is not None:
        return Blocks(form, *compiled.quantize_int4(weight.float().contiguous()))
    codes = torch.empty(rows, columns, dtype=torch.uint8)
    scales = torch.empty(rows, columns // BLOCK, dtype=torch.float16)
    step = max(1, _WINDOW // columns)
    for first in range(0, rows, step):
        part = slice(first, first + step)
        found = _int4(weight[part].float())
        codes[part], scales[part] = found[0].view(-1, columns), found[1].view(-1, columns // BLOCK)
    return Blocks(form, codes, scales)


def to_k4(weight: torch.Tensor) -> Blocks:
    """Weights (rows, columns) -> k4, with a and b of 6 bits. 256 divides the columns.

    A NaN or infinity makes d and e of its 256 weights NaN.
    """
    rows, columns = weight.shape
    form = Form("k4", columns, _SUPER)
    compiled = native.kernels() if weight.device.type == "cpu" else None
    if compiled is not None:
        return Blocks(form, *compiled.quantize_k4(weight.float().contiguous()))
    codes = torch.empty(rows, columns, dtype=torch.uint8)
    scales = torch.empty(rows, columns // _SUPER, 2, dtype=torch.float16)
    zeros = torch.empty(rows, columns // BLOCK, 2, dtype=torch.uint8)
    step = max(1, _WINDOW // columns)
    for first in range(0, rows, step):
        part = slice(first, first + step)
        for whole, found in zip((codes, scales, zeros), _k4(weight[part].float()), strict=True):
            whole[part] = found.view(whole[part].shape)
    return Blocks(form, codes, scales, zeros)


# Below, (32, n) are n blocks of 32: sums go over the first axis in order, as in a lane of quantize.c.


def _int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x, w, bad = _blocks(weight)
    most = x[0]
    for row in x[1:]:
        most = torch.where(row.abs() > most.abs(), row, most)
    unit, scale = _inverse(most), most * -0.125
    best = torch.full_like(scale, -math.inf)
    for t in range(-_TRIES, _TRIES + 1):
        q = _code(x * (unit * -(8 + t / 5)), -8, 7)
        wq = w * q
        Wqq, Wqx = _sum(wq * q), _sum(wq * x)
        s = Wqx / Wqq
        gain = s * Wqx
        better = (Wqq > 0) & (gain > best)
        best, scale = torch.where(better, gain, best), torch.where(better, s, scale)
    half = scale.half()
    codes = _code(x * _inverse(half.float()), -8, 7) + 8
    half[bad], codes[:, bad] = math.nan, 8
    return codes.T.contiguous().to(torch.uint8), half


def _k4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, w, bad = _blocks(weight)
    scale, offset = _search_k4(x, w)
    d, d_half = _factor(scale)
    e, e_half = _factor(offset)
    a0, b0 = _code(scale * _inverse(d), 0, 63), _code(offset * _inverse(e), 0, 63)
    a, b, least = a0, b0, torch.full_like(d, math.inf)
    for t in range(9):  # the whole numbers beside the nearest ones; those first
        a1, b1 = _code(a0 + ((t + 1) % 3 - 1), 0, 63), _code(b0 + ((t // 3 + 1) % 3 - 1), 0, 63)
        s, m = d * a1, e * b1
        off = (s * _code((x + m) * _inverse(s), 0, 15) - m) - x
        error = _sum((w * off) * off)
        better = error < least
        least, a, b = (torch.where(better, *pair) for pair in ((error, least), (a1, a), (b1, b)))
    codes = _code((x + e * b) * _inverse(d * a), 0, 15)
    wrong = bad.view(-1, _SUPER // BLOCK).any(1)
    each = wrong.repeat_interleave(_SUPER // BLOCK)
    scales, zeros = torch.stack([d_half, e_half], 1), torch.stack([a, b], 1)
    scales[wrong], zeros[each], codes[:, each] = math.nan, 0, 0
    return codes.T.contiguous().to(torch.uint8), scales, zeros.to(torch.uint8)


def _search_k4(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x is about s q - m with 0 <= q <= 15 and m >= 0 -> s and m of each block."""
    low, high = x.amin(0).clamp(max=0), x.amax(0)
    W, Wx = _sum(w), _sum(w * x)
    span = high - low
    unit, scale, offset = _inverse(span), span * (1 / 15), -low
    best = torch.full_like(span, -math.inf)
    for t in range(-_TRIES, _TRIES + 1):
        q = _code((x - low) * (unit * (15 + t / 5)), 0, 15)
        wq = w * q
        Wq, Wqq, Wqx = _sum(wq), _sum(wq * q), _sum(wq * x)
        D = W * Wqq - Wq * Wq
        r = D.reciprocal()
        s, m = (W * Wqx - Wx * Wq) * r, (Wq * Wqx - Wqq * Wx) * r
        below = m < 0
        s, m = torch.where(below, Wqx / Wqq, s), torch.where(below, 0.0, m)
        gain = s * Wqx - m * Wx  # the less of the error
        better = (D > 0) & (s > 0) & (gain > best)
        best, scale, offset = (torch.where(better, *each) for each in ((gain, best), (s, scale), (m, offset)))
    return scale, offset


def _blocks(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The blocks (32, n), how much each weight counts, and which blocks hold a NaN or infinity."""
    x = weight.reshape(-1, BLOCK).T.contiguous()
    mean = _sum(x.abs()) * (1 / BLOCK)
    return x, x.abs() + mean, ~mean.isfinite()


def _factor(each: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The factor with which the largest of 8 blocks' numbers becomes 63: for each block, and in float16 for 8."""
    half = (each.view(-1, _SUPER // BLOCK).amax(1) * (1 / 63)).half()
    return half.float().repeat_interleave(_SUPER // BLOCK), half


def _code(x: torch.Tensor, least: int, most: int) -> torch.Tensor:
    return x.nan_to_num(least).clamp_(least, most).round_()


def _inverse(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.abs() > _TINY, x.reciprocal(), 0.0)


def _sum(x: torch.Tensor) -> torch.Tensor:
    """(32, n) -> (n,), in order."""
    total = x[0].clone()
    for row in x[1:]:
        total += row
    return total
