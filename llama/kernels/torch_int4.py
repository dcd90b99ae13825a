"""Weights of 4 bit on a CUDA device, multiplied by torch's own kernel for them.

It knows one format, w = s (q - 8) + z with s and z in bfloat16 for each group, and takes bfloat16 alone. Every
format of 4 bit becomes that: codes stay as they are, scales lose three of their bits. x is rounded to bfloat16, not to
8 bits.

The operators are private to torch and come and go with its builds, so they are tried once before they are used. The
tests run torch's twin of them for CPUs; no GPU was at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F

from .native import LANES
from .quantized import BLOCK, FORMATS, Blocks, Form, in_order
from .quantized_weights import Parts, QuantizedFormat
from .weights import PackedWeight, Shape

__all__ = ["TorchInt4", "why_not"]

# What the kernel knows: inputs that share a scale.
_GROUPS = (256, 128, 64, 32)
# Tiles of 16 inputs that it reads at once: with two of them, any whole number of blocks of 32 inputs.
_TILES = 2
_OUTPUTS = 1024
_CUDA = torch.device("cuda")


@dataclass(frozen=True)
class TorchInt4(QuantizedFormat):
    """The layout of `torch._weight_int4pack_mm`; `scales` hold s and z, (groups, outputs, 2)."""

    name = "torch int4"

    def parts(self, shape: Shape, form: Form) -> Parts:
        out = -(-shape[0] // LANES) * LANES
        codes = torch.Size((out // 8, form.columns // (16 * _TILES), 32, _TILES // 2))
        scales = torch.Size((form.columns // _group(form), out, 2))
        return {"codes": (codes, torch.int32), "scales": (scales, torch.bfloat16)}

    def write(self, weight: PackedWeight, blocks: Blocks, row: int) -> None:
        assert weight.scales is not None
        missing = -len(blocks.codes) % LANES
        codes = F.pad(blocks.codes, (0, 0, 0, missing)).to(weight.codes.device)
        pairs = (codes[:, 0::2] << 4 | codes[:, 1::2]).contiguous()
        last = row + len(codes)
        weight.codes[row // 8 : last // 8].copy_(_convert(pairs, _TILES))
        weight.scales[:, row:last].copy_(F.pad(_scales_and_zeros(blocks), (0, 0, 0, missing)))

    def multiply(self, weight: PackedWeight, x: torch.Tensor) -> torch.Tensor:
        assert weight.scales is not None
        rows = x.reshape(-1, weight.shape[1]).to(torch.bfloat16)
        if weight.order is not None:
            rows = F.pad(rows, (0, 1))[:, weight.order.long()]  # -1 reads the zero behind the row
        columns = rows.shape[1]
        y = _multiply(rows.contiguous(), weight.codes, columns // len(weight.scales), weight.scales)
        return y[:, : weight.shape[0]].to(x.dtype).view(*x.shape[:-1], weight.shape[0])

    def plain(self, weight: PackedWeight) -> torch.Tensor:
        """What the kernel multiplies by: its own products with single inputs."""
        columns = weight.shape[1]
        found = torch.empty(weight.shape, device=weight.codes.device)
        for first in range(0, columns, _OUTPUTS):
            last = min(first + _OUTPUTS, columns)
            ones = torch.zeros(last - first, columns, device=found.device)
            ones[torch.arange(last - first), torch.arange(first, last)] = 1
            found[:, first:last] = self.multiply(weight, ones).T
        return found

    def reference(self, weight: PackedWeight, x: torch.Tensor) -> torch.Tensor | None:
        alike = x.shape[-1] == weight.shape[1] and x.device == weight.codes.device and x.is_floating_point()
        if alike and x.numel() and not (x.requires_grad and torch.is_grad_enabled()):
            return self.multiply(weight, x)
        return None


def _group(form: Form) -> int:
    """Inputs that share a scale, as the kernel counts them."""
    group = BLOCK if FORMATS[form.format].parts == 2 else form.group
    return next(each for each in _GROUPS if group % each == form.columns % each == 0)


def _scales_and_zeros(blocks: Blocks) -> torch.Tensor:
    """s and z of each group, (groups, rows, 2); the code 8 stands for z."""
    form, quantization = blocks.form, FORMATS[blocks.form.format]
    first = torch.arange(
        0, form.columns, _group(form)
    )  # inputs of which all others of a group have the scale
    scales = blocks.scales[:, first // form.group].float()
    if quantization.parts == 2:
        assert blocks.zeros is not None
        scales, zeros = (scales * blocks.zeros[:, first // BLOCK].float()).unbind(2)
        zeros = 8 * scales - zeros
    elif blocks.zeros is not None:
        zeros = scales * (8 - blocks.zeros[:, first // form.group].float())
    else:
        zeros = torch.zeros_like(scales)
    return torch.stack((scales, zeros), 2).transpose(0, 1).to(torch.bfloat16)


def _convert(pairs: torch.Tensor, tiles: int) -> torch.Tensor:
    """Two codes a byte, the first in the high half, (outputs, inputs / 2) -> as the kernel reads them."""
    return torch._convert_weight_to_int4pack(pairs, tiles)


def _multiply(x: torch.Tensor, codes: torch.Tensor, group: int, scales: torch.Tensor) -> torch.Tensor:
    return torch._weight_int4pack_mm(x, codes, group, scales)


@cache
def why_not() -> str | None:
    """Why this machine, or this build of torch, does not multiply so; None if a trial gave the right numbers."""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    codes = torch.arange(16 * 64).reshape(16, 64) * 7 % 16
    blocks = Blocks(Form("int4", 64, BLOCK), codes.byte(), torch.arange(32).reshape(16, 2).half() / 32)
    try:
        weight = TorchInt4("int4", BLOCK).pack_blocks(blocks, 64, torch.bfloat16, _CUDA)
        right = torch.allclose(weight.plain().cpu(), in_order(blocks, 64), atol=0.02)
        return None if right else "torch's product gives other numbers on this device"
    except (RuntimeError, AttributeError):
        return "this build of torch, or this device, has no such product"
