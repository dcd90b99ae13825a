"""Quantized weights as they lie in memory, in the layout of csrc/matrix.h, and their product.

quantized.py has the formats' numbers; here they are laid out for the kernels. A product quantizes x too: each block
of 32 numbers of a row to 8 bits, with a scale of its own. So dot products of blocks are sums of integers, which are
exact, and the blocks are added up by fma in the order of the inputs: a row has the same bits on every level, beside
any other rows, and in the reference below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from . import native
from .native import LANES, Kernels, Matrix
from .quantized import BLOCK, FORMATS, Blocks, Form, RawRows, in_order
from .weights import PackedWeight, Shape, WeightFormat

__all__ = ["Quantized", "QuantizedFormat", "product"]

# Outputs that the reference computes at a time.
_OUTPUTS = 512
_CPU = torch.device("cpu")


Parts = Mapping[str, tuple[torch.Size, torch.dtype]]


@dataclass(frozen=True)
class QuantizedFormat(WeightFormat):
    """A way to store and multiply weights that are quantized in a format of FORMATS.

    Args:
        kind: its name in FORMATS.
        group: inputs that share a scale.
    """

    kind: str
    group: int

    def parts(self, shape: Shape, form: Form) -> Parts:
        """Sizes and dtypes of the codes, scales and zeros of a weight of that shape."""
        raise NotImplementedError

    def write(self, weight: PackedWeight, blocks: Blocks, row: int) -> None:
        """Write some rows, while a weight is loaded.

        `row`, the first of them, is a multiple of 16; so is their number, unless they end with the weight. What is
        missing of the last group of 16 gets scales of zero.
        """
        raise NotImplementedError

    def takes_raw(self, raw: RawRows) -> bool:
        """Whether `write_raw` takes rows as they lie in the file."""
        return False

    def write_raw(self, weight: PackedWeight, raw: RawRows, row: int) -> bool:
        """As `write`, from the blocks of a file: the same bits -> whether all scales are finite."""
        raise NotImplementedError

    def empty(
        self, shape: Shape, form: Form, dtype: torch.dtype, device: torch.device = _CPU
    ) -> PackedWeight:
        """A weight that has yet to be written.

        Args:
            shape: of the plain weight: its columns are those of x.
            dtype: of the plain weight in a state dict.
        """
        parts = self.parts(shape, form).items()
        memory = {name: torch.empty(size, dtype=each, device=device) for name, (size, each) in parts}
        order = None if form.order is None else form.order.to(device)
        return PackedWeight(self, shape, **memory, order=order, plain_dtype=dtype)

    def pack(self, weight: torch.Tensor) -> PackedWeight:
        raise TypeError(
            f"{self.kind} is packed from Blocks, with pack_blocks; a plain weight has no codes yet"
        )

    def pack_blocks(
        self, blocks: Blocks, columns: int, dtype: torch.dtype, device: torch.device = _CPU
    ) -> PackedWeight:
        """All rows of a weight. `columns`: of x; `dtype`: of the plain weight in a state dict."""
        weight = self.empty((blocks.codes.shape[0], columns), blocks.form, dtype, device)
        self.write(weight, blocks, 0)
        return weight

    def lies_in(self, tensor: torch.Tensor, shape: Shape) -> bool:
        return False  # codes without their scales are no weight


@dataclass(frozen=True)
class Quantized(QuantizedFormat):
    """The layout of csrc/matrix.h.

    Args:
        kernels: that multiply. Without them the reference does, slowly.
    """

    kernels: Kernels | None = None

    name = "csrc"

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy is multiplied by the kernels of where it arrives.
        return _here, (self.kind, self.group)

    # ---- the layout ----

    def parts(self, shape: Shape, form: Form) -> Parts:
        codes, scales, zeros = native.quantized_shapes(form, shape[0])
        found = {"codes": (torch.Size(codes), torch.uint8), "scales": (torch.Size(scales), torch.float16)}
        return found if zeros is None else found | {"zeros": (torch.Size(zeros), torch.uint8)}

    def columns(self, weight: PackedWeight) -> int:
        """Columns of the codes."""
        return weight.codes.shape[1] * (32 // FORMATS[self.kind].bits)

    def form(self, weight: PackedWeight) -> Form:
        """How this weight is quantized."""
        return Form(self.kind, self.columns(weight), self.group, weight.order)

    def write(self, weight: PackedWeight, blocks: Blocks, row: int) -> None:
        assert self.kernels is not None
        assert weight.matrix is not None
        assert row % LANES == 0
        assert len(blocks.codes) % LANES == 0 or row + len(blocks.codes) == weight.shape[0]
        assert blocks.codes.shape[1] == weight.matrix.inputs
        self.kernels.pack_blocks(blocks, weight.matrix, row)

    def takes_raw(self, raw: RawRows) -> bool:
        return self.kernels is not None and raw.kind in native.UNPACKED

    def write_raw(self, weight: PackedWeight, raw: RawRows, row: int) -> bool:
        assert self.kernels is not None
        assert weight.matrix is not None
        assert row % LANES == 0
        assert len(raw.data) % LANES == 0 or row + len(raw.data) == weight.shape[0]
        return self.kernels.unpack(raw, weight.matrix, row)

    def blocks(self, weight: PackedWeight) -> Blocks:
        """The numbers that were packed."""
        out, columns = weight.shape[0], self.columns(weight)
        codes = weight.codes.transpose(1, 2)  # (groups, 16, steps, 4)
        if FORMATS[self.kind].bits == 4:
            codes = torch.stack((codes & 15, codes >> 4), 3)
        assert weight.scales is not None
        scales = weight.scales.movedim(-1, 1).flatten(0, 1)[:out].contiguous()
        zeros = None if weight.zeros is None else weight.zeros.movedim(-1, 1).flatten(0, 1)[:out].contiguous()
        return Blocks(self.form(weight), codes.reshape(-1, columns)[:out], scales, zeros)

    # ---- what layers ask ----

    def matrix(self, weight: PackedWeight) -> Matrix | None:
        if self.kernels is None or weight.codes.data_ptr() == 0:
            return None
        assert weight.scales is not None
        return native.quantized_matrix(
            self.form(weight), weight.shape, weight.codes, weight.scales, weight.zeros
        )

    def plain(self, weight: PackedWeight) -> torch.Tensor:
        """The weights that the codes stand for, in float32."""
        return in_order(self.blocks(weight), weight.shape[1])

    def takes(self, weight: PackedWeight, x: torch.Tensor) -> bool:
        return weight.matrix is not None and x.dtype in native.DTYPES and native.has_memory(x)

    def multiply(self, weight: PackedWeight, x: torch.Tensor) -> torch.Tensor:
        assert self.kernels is not None
        assert weight.matrix is not None
        return self.kernels.linear(x, weight.matrix)

    def reference(self, weight: PackedWeight, x: torch.Tensor) -> torch.Tensor | None:
        alike = x.shape[-1] == weight.shape[1] and x.device == weight.codes.device and x.is_floating_point()
        if not alike or not native.has_memory(x):
            return None  # F.linear refuses it, or knows shapes only
        found: torch.Tensor = _Product.apply(x, weight)  # type: ignore[no-untyped-call]
        return found


def _here(kind: str, group: int) -> Quantized:
    return Quantized(kind, group, native.kernels())


# ---- the reference ----


class _Product(torch.autograd.Function):
    """`product`, whose derivative by x is that of the plain weight: rounding has none."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, weight: PackedWeight
    ) -> torch.Tensor:
        ctx.weight = weight  # type: ignore[attr-defined]
        return product(x, weight)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *by_y: torch.Tensor) -> tuple[torch.Tensor, None]:
        weight: PackedWeight = ctx.weight  # type: ignore[attr-defined]
        return by_y[0] @ weight.plain().to(by_y[0].dtype), None


def product(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    """x (..., in) times the transpose of a quantized weight -> (..., out), of x's dtype: what csrc/ computes."""
    form = weight.format
    assert isinstance(form, Quantized)
    blocks = form.blocks(weight)
    rows = x.detach().reshape(-1, weight.shape[1])
    codes, scales = quantized_rows(rows, weight.order)
    y = torch.empty(len(rows), weight.shape[0])
    for first in range(0, weight.shape[0], _OUTPUTS):
        last = first + _OUTPUTS
        zeros = None if blocks.zeros is None else blocks.zeros[first:last]
        some = Blocks(blocks.form, blocks.codes[first:last], blocks.scales[first:last], zeros)
        y[:, first:last] = _sums(codes, scales, some)
    return y.to(x.dtype).view(*x.shape[:-1], weight.shape[0])


def quantized_rows(x: torch.Tensor, order: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (rows, columns) -> whole numbers up to 127 (rows, blocks, 32) and scales (rows, blocks), in float32.

    A block with a NaN or infinity has the scale NaN, which makes its row NaN.
    """
    x = x.float()
    if order is not None:
        x = F.pad(x, (0, 1))[:, order.long()]  # -1 reads the zero behind the row
    blocks = x.reshape(len(x), x.shape[1] // BLOCK, BLOCK)
    largest = blocks.abs().amax(2)
    inverse = torch.full_like(largest, 127) / largest  # `127 / largest` would round twice
    usable = largest.isfinite() & inverse.isfinite()
    codes = torch.where(usable[..., None], (blocks * inverse[..., None]).round(), 0.0)
    scales = torch.where(usable, largest / 127, torch.where(largest.isfinite(), 0.0, torch.nan))
    return codes, scales


def _sums(codes: torch.Tensor, scales: torch.Tensor, weight: Blocks) -> torch.Tensor:
    """The products of quantized rows and some outputs, (rows, outputs) in float32."""
    form, kind = weight.form, FORMATS[weight.form.format]
    by_scales = weight.scales.float()
    sums = torch.zeros(len(codes), len(weight.codes))
    for block in range(codes.shape[1]):
        group = block * BLOCK // form.group
        x, xs = codes[:, block], scales[:, block, None]
        dots = x @ weight.codes[:, block * BLOCK : (block + 1) * BLOCK].float().T  # exact, as are all below
        ones = x.sum(1, keepdim=True)
        if kind.parts == 2:
            assert weight.zeros is not None
            by_dots, by_ones = (by_scales[:, group] * weight.zeros[:, block].float()).unbind(1)
            sums = _fma(by_dots * xs, dots, sums)
            sums = _fma(-(by_ones * xs), ones, sums)
            continue
        zero = kind.zero or 0 if weight.zeros is None else weight.zeros[:, group].float()
        sums = _fma(by_scales[:, group] * xs, dots - zero * ones, sums)
    return sums


def _fma(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """a b + c of float32, rounded once, as the instruction rounds it.

    The sum is rounded to odd in float64 first, so that rounding it again errs on neither side (Boldo and Melquiond
    2008).
    """
    product, wide = a.double() * b.double(), c.double()  # exact
    total = product + wide
    part = total - product
    lost = (product - (total - part)) + (wide - part)
    bits = total.view(torch.int64)
    inexact = total.isfinite() & (lost != 0) & (bits & 1 == 0)
    step = torch.where((lost > 0) == (total > 0), 1, -1)
    return torch.where(inexact, bits + step, bits).view(torch.float64).float()
