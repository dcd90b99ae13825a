"""The types of tensors in a GGUF file, and what their bytes mean.

A row of a quantized tensor is a run of blocks of 32 or 256 weights, each with its scales and codes. Source: the
block structures of ggml-common.h in llama.cpp, and the values that its dequantize_row functions give.

All functions take the bytes of whole blocks, (rows, blocks, bytes of one) uint8, which may be a window of a mapped
file, and give new tensors. They work in place where they can: memory that is new costs more than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["REFUSED", "TYPES", "GgufType", "codes_of", "scales_of", "values_of"]

_Decoder = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class GgufType:
    """A type of tensor.

    Args:
        name: as llama.cpp writes it, e.g. "Q4_K".
        length: weights of a block.
        nbytes: of a block.
        dtype: of the numbers, if they are stored plain; then a block is one number.
        kind: the format of kernels.quantized that takes its codes and scales as they are; None if there is none.
        halves: where the float16 scales of a block begin, in bytes.
        decode: gives the weights, (rows, blocks, length) float32.
    """

    name: str
    length: int
    nbytes: int
    dtype: torch.dtype | None = None
    kind: str | None = None
    halves: tuple[int, ...] = ()
    decode: _Decoder | None = None


def scales_of(raw: torch.Tensor, kind: GgufType) -> torch.Tensor:
    """The float16 scales (rows, blocks, scales of a block), as a view."""
    halves = raw.view(torch.float16)
    first, step = kind.halves[0] // 2, (kind.halves[1] - kind.halves[0]) // 2 if len(kind.halves) > 1 else 1
    return halves[..., first : first + step * len(kind.halves) : step]


def values_of(raw: torch.Tensor, kind: GgufType) -> torch.Tensor:
    """The weights (rows, columns) in float32: the products and sums of llama.cpp, in its order."""
    assert kind.decode is not None
    return kind.decode(raw).reshape(raw.shape[0], -1)


def codes_of(raw: torch.Tensor, kind: GgufType) -> torch.Tensor:
    """The codes (rows, blocks, length) uint8 of a type that has a `kind`."""
    if kind.kind == "int8":
        return raw[..., 2:] ^ 128  # from signed to unsigned with 128 as the zero
    return _nibbles(raw[..., -(kind.length // 2) :], min(32, kind.length) if kind.length > 32 else 16)


def k_factors(raw: torch.Tensor) -> torch.Tensor:
    """The 6-bit factors (rows, blocks, 8, 2) of d and of dmin in the 12 bytes of Q4_K and Q5_K, uint8."""
    low, mid, high = raw[..., :4], raw[..., 4:8], raw[..., 8:12]
    d = torch.cat([low & 63, high & 15 | low >> 6 << 4], -1)
    m = torch.cat([mid & 63, high >> 4 | mid >> 6 << 4], -1)
    return torch.stack([d, m], -1)


def _nibbles(packed: torch.Tensor, run: int) -> torch.Tensor:
    """(..., n) bytes -> (..., 2n) codes: of each `run` bytes first the low halves, then the high ones."""
    out = torch.empty(
        *packed.shape[:-1], packed.shape[-1] // run, 2, run, dtype=torch.uint8, device=packed.device
    )
    parts = packed.reshape(*packed.shape[:-1], -1, run)
    torch.bitwise_and(parts, 15, out=out[..., 0, :])
    torch.bitwise_right_shift(parts, 4, out=out[..., 1, :])
    return out.flatten(-3)


def _pairs(packed: torch.Tensor) -> torch.Tensor:
    """(..., 64) bytes -> (..., 256) codes of 2 bits: of each 32 bytes the lowest first."""
    parts = packed.reshape(*packed.shape[:-1], 2, 1, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    return (parts >> shifts).bitwise_and_(3).flatten(-3)


def _bits(packed: torch.Tensor) -> torch.Tensor:
    """(..., 32) bytes -> (..., 256): the lowest bit of each byte first, then the next."""
    shifts = torch.arange(8, dtype=torch.uint8)[:, None]
    return (packed[..., None, :] >> shifts).bitwise_and_(1).flatten(-2)


def _high_bits(packed: torch.Tensor) -> torch.Tensor:
    """(..., 4) bytes -> (..., 32): the bits of a little-endian number, lowest first."""
    shifts = torch.arange(8, dtype=torch.uint8)
    return (packed[..., None] >> shifts).bitwise_and_(1).flatten(-2)


def _half(raw: torch.Tensor, at: int) -> torch.Tensor:
    """The float16 number at a byte of each block, in float32, as (..., 1)."""
    return raw.view(torch.float16)[..., at // 2 : at // 2 + 1].float()


def _spread(codes: torch.Tensor, parts: int) -> torch.Tensor:
    """(..., 256) codes -> (..., parts, 256 / parts) float32."""
    return codes.reshape(*codes.shape[:-1], parts, -1).float()


def _q4_0(raw: torch.Tensor) -> torch.Tensor:
    return _nibbles(raw[..., 2:], 16).float().sub_(8).mul_(_half(raw, 0))


def _q4_1(raw: torch.Tensor) -> torch.Tensor:
    return _nibbles(raw[..., 4:], 16).float().mul_(_half(raw, 0)).add_(_half(raw, 2))


def _q5_0(raw: torch.Tensor) -> torch.Tensor:
    codes = _nibbles(raw[..., 6:], 16).bitwise_or_(_high_bits(raw[..., 2:6]).mul_(16))
    return codes.float().sub_(16).mul_(_half(raw, 0))


def _q5_1(raw: torch.Tensor) -> torch.Tensor:
    codes = _nibbles(raw[..., 8:], 16).bitwise_or_(_high_bits(raw[..., 4:8]).mul_(16))
    return codes.float().mul_(_half(raw, 0)).add_(_half(raw, 2))


def _q8_0(raw: torch.Tensor) -> torch.Tensor:
    return raw.view(torch.int8)[..., 2:].float().mul_(_half(raw, 0))


def _q2_k(raw: torch.Tensor) -> torch.Tensor:
    factors = raw[..., :16]
    d, m = _half(raw, 80) * (factors & 15).float(), _half(raw, 82) * (factors >> 4).float()
    return _spread(_pairs(raw[..., 16:80]), 16).mul_(d[..., None]).sub_(m[..., None]).flatten(-2)


def _q3_k(raw: torch.Tensor) -> torch.Tensor:
    low, high = raw[..., 96:104], raw[..., 104:108]
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    factors = torch.cat([low & 15, low >> 4], -1) | (high[..., None, :] >> shifts & 3).flatten(-2) << 4
    d = _half(raw, 108) * (factors.float() - 32)
    # The bit that is stored apart is 1 where 4 is not to be taken away.
    codes = _pairs(raw[..., 32:96]).bitwise_or_(_bits(raw[..., :32]).mul_(4))
    return _spread(codes, 16).sub_(4).mul_(d[..., None]).flatten(-2)


def _q4_k(raw: torch.Tensor) -> torch.Tensor:
    return _d_and_m(raw, _nibbles(raw[..., 16:], 32))


def _q5_k(raw: torch.Tensor) -> torch.Tensor:
    return _d_and_m(raw, _nibbles(raw[..., 48:], 32).bitwise_or_(_bits(raw[..., 16:48]).mul_(16)))


def _d_and_m(raw: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    factors = k_factors(raw[..., 4:16]).float()
    d, m = _half(raw, 0) * factors[..., 0], _half(raw, 2) * factors[..., 1]
    return _spread(codes, 8).mul_(d[..., None]).sub_(m[..., None]).flatten(-2)


def _q6_k(raw: torch.Tensor) -> torch.Tensor:
    codes = _nibbles(raw[..., :128], 64).bitwise_or_(_pairs(raw[..., 128:192]).mul_(16))
    d = _half(raw, 208) * raw.view(torch.int8)[..., 192:208].float()
    return _spread(codes, 16).sub_(32).mul_(d[..., None]).flatten(-2)


# By the numbers that stand in a file.
TYPES = {
    0: GgufType("F32", 1, 4, torch.float32),
    1: GgufType("F16", 1, 2, torch.float16),
    30: GgufType("BF16", 1, 2, torch.bfloat16),
    2: GgufType("Q4_0", 32, 18, kind="int4", halves=(0,), decode=_q4_0),
    3: GgufType("Q4_1", 32, 20, halves=(0, 2), decode=_q4_1),
    6: GgufType("Q5_0", 32, 22, halves=(0,), decode=_q5_0),
    7: GgufType("Q5_1", 32, 24, halves=(0, 2), decode=_q5_1),
    8: GgufType("Q8_0", 32, 34, kind="int8", halves=(0,), decode=_q8_0),
    10: GgufType("Q2_K", 256, 84, halves=(80, 82), decode=_q2_k),
    11: GgufType("Q3_K", 256, 110, halves=(108,), decode=_q3_k),
    12: GgufType("Q4_K", 256, 144, kind="k4", halves=(0, 2), decode=_q4_k),
    13: GgufType("Q5_K", 256, 176, halves=(0, 2), decode=_q5_k),
    14: GgufType("Q6_K", 256, 210, halves=(208,), decode=_q6_k),
}
# Types that llama.cpp has or had, and this runtime does not read.
REFUSED = {
    **{4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S"},
    **{20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64"},
    **{28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0"},
}
