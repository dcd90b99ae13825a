"""A weight as it lies in memory: packed for the kernel that multiplies it.

`PackedWeight` is what the layers hold; `WeightFormat` is a way to pack, with its product. table.py chooses one for
a dtype and a device. Weights are packed once, at load; the packed weight replaces the plain one, so that weights
are in memory once, and gives it back bit for bit.

Both packed formats were faster than `F.linear` at every number of rows measured, from one token to a long prompt:
for bfloat16 it rearranges the weight in every call, for float32 its library is slow for few rows.
`benchmarks/linear.py` repeats the measurement; docs/log.md has the numbers and what was not worth keeping. Sums are
in float32. No global setting is touched.

Quantized weights are in quantized_weights.py. A new format is one more class, with its row in table.py.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
import torch.nn.functional as F

from . import native, onednn
from .native import LANES, Kernels, Matrix

__all__ = ["LANES", "ONEDNN", "PLAIN", "Blocked", "OneDNN", "PackedWeight", "Shape", "WeightFormat"]

Shape = tuple[int, int]


class WeightFormat:
    """A form of a weight (out, in) in memory. This one is plain: its codes are the weight itself."""

    name = "plain"
    # That pack and multiply; None of formats that are not csrc's.
    kernels: Kernels | None = None

    def pack(self, weight: torch.Tensor) -> PackedWeight:
        """A plain weight in this format. A packed one shares no memory with it."""
        return PackedWeight(self, (weight.shape[0], weight.shape[1]), weight)

    def matrix(self, weight: PackedWeight) -> Matrix | None:
        """The weight as C wants it; None if the kernels cannot multiply it."""
        return None

    def lies_in(self, tensor: torch.Tensor, shape: Shape) -> bool:
        """Whether a tensor is, or may be, the codes of a weight of that shape."""
        return True

    def plain(self, weight: PackedWeight) -> torch.Tensor:
        """The weight (out, in), contiguous where it was packed."""
        return weight.codes

    def takes(self, weight: PackedWeight, x: torch.Tensor) -> bool:
        """Whether `multiply` takes x, a tensor of the CPU with the right last dimension and without a derivative."""
        return False  # see `PackedWeight.linear`, which multiplies by plain weights itself

    def multiply(self, weight: PackedWeight, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) -> (..., out), of x's dtype; without a derivative, unless the weight is plain."""
        return F.linear(x, weight.codes)

    def reference(self, weight: PackedWeight, x: torch.Tensor) -> torch.Tensor | None:
        """The product of a quantized weight in torch, for an x that `multiply` does not take; None for F.linear's."""
        return None


class OneDNN(WeightFormat):
    """oneDNN's layout for bfloat16 and float32 on a CPU; its codes are opaque."""

    name = "oneDNN"

    def pack(self, weight: torch.Tensor) -> PackedWeight:
        return PackedWeight(self, (weight.shape[0], weight.shape[1]), onednn.pack(weight))

    def lies_in(self, tensor: torch.Tensor, shape: Shape) -> bool:
        return tensor.is_mkldnn

    def plain(self, weight: PackedWeight) -> torch.Tensor:
        return onednn.unpack(weight.codes)

    def takes(self, weight: PackedWeight, x: torch.Tensor) -> bool:
        return x.dtype == weight.codes.dtype and x.dtype in onednn.DTYPES

    def multiply(self, weight: PackedWeight, x: torch.Tensor) -> torch.Tensor:
        return onednn.linear(x, weight.codes)


class Blocked(WeightFormat):
    """The layout of csrc/matrix.h, the same at every level: float32, float16 or bfloat16 on a CPU.

    Args:
        kernels: that pack and multiply. Without them a weight can still be unpacked.
    """

    name = "csrc"

    def __init__(self, kernels: Kernels | None) -> None:
        self.kernels = kernels

    def pack(self, weight: torch.Tensor) -> PackedWeight:
        assert self.kernels is not None
        shape = (weight.shape[0], weight.shape[1])
        codes = torch.empty(native.codes_shape(shape, weight.dtype), dtype=weight.dtype, device="cpu")
        self.kernels.pack(weight.contiguous(), native.matrix(codes, shape))
        return PackedWeight(self, shape, codes)

    def codes_shape(self, shape: Shape, dtype: torch.dtype) -> tuple[int, ...]:
        """Of a weight of that shape. Its codes can be written block by block."""
        return native.codes_shape(shape, dtype)

    def lies_in(self, tensor: torch.Tensor, shape: Shape) -> bool:
        if tensor.dim() != 4 or not tensor.is_cpu or not tensor.is_contiguous():
            return False
        # Of any dtype: it may have been cast since, and then lies as that of another dtype.
        return any(tensor.shape == native.codes_shape(shape, dtype) for dtype in native.DTYPES)

    def matrix(self, weight: PackedWeight) -> Matrix | None:
        codes, shape = weight.codes, weight.shape
        fits = codes.dtype in native.DTYPES and codes.shape == native.codes_shape(shape, codes.dtype)
        # Memory may have been freed beneath a tensor, to be allocated again later.
        there = self.kernels is not None and codes.data_ptr() != 0
        return native.matrix(codes, shape) if there and fits else None

    def plain(self, weight: PackedWeight) -> torch.Tensor:
        groups, steps, lanes, step = weight.codes.shape
        whole = weight.codes.transpose(1, 2).reshape(groups * lanes, steps * step)
        return whole[: weight.shape[0], : weight.shape[1]].contiguous()

    def takes(self, weight: PackedWeight, x: torch.Tensor) -> bool:
        return weight.matrix is not None and x.dtype in native.DTYPES and native.has_memory(x)

    def multiply(self, weight: PackedWeight, x: torch.Tensor) -> torch.Tensor:
        assert self.kernels is not None
        assert weight.matrix is not None
        return self.kernels.linear(x, weight.matrix)

    def takes_block(self, weight: PackedWeight, block: torch.Tensor, row: int, column: int) -> bool:
        """Whether `write` takes this block, whose first entry is (row, column) of the weight."""
        height, width = block.shape
        out, columns = weight.shape
        return (
            block.dtype == weight.codes.dtype
            and block.is_cpu
            and block.stride(1) == 1
            and row % LANES == column % 2 == 0
            and (height % LANES == 0 or row + height == out)
            and (width % 2 == 0 or column + width == columns)
        )

    def write(self, weight: PackedWeight, block: torch.Tensor, row: int, column: int) -> None:
        """Write a block, while a weight is loaded."""
        assert self.kernels is not None
        assert weight.matrix is not None
        self.kernels.pack(block, weight.matrix, row, column)


PLAIN, ONEDNN = WeightFormat(), OneDNN()


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight (out, in), and the way to multiply by it. It holds its memory; nothing in it changes.

    Args:
        shape: of the plain weight.
        codes: the numbers, as the format lays them out.
        scales, zeros, order: what a quantized format has beside them; order: which input each column reads, -1 for
            none.
        plain_dtype: of the plain weight in a state dict, where codes are integers.
    """

    format: WeightFormat
    shape: Shape
    codes: torch.Tensor = field(repr=False)
    scales: torch.Tensor | None = None
    zeros: torch.Tensor | None = None
    order: torch.Tensor | None = None
    plain_dtype: torch.dtype | None = None
    # As C wants it, made once; None of other formats.
    matrix: Matrix | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", self.format.matrix(self))

    def __reduce__(self) -> tuple[Any, ...]:
        # An address is of no use to a copy. Codes and scales of a loaded model are parts of one piece of memory, which
        # pickle would write whole for each of them, and which torch.save refuses to write in several dtypes.
        parts = map(_with_own_memory, (self.codes, self.scales, self.zeros))
        return type(self), (self.format, self.shape, *parts, self.order, self.plain_dtype)

    def _sent(self) -> tuple[Any, ...]:
        """As `__reduce__`, for a process on this machine: what is shared stays shared."""
        parts = (
            part if part is None or part.is_shared() else _with_own_memory(part)  # type: ignore[no-untyped-call]
            for part in (self.codes, self.scales, self.zeros)
        )
        return type(self), (self.format, self.shape, *parts, self.order, self.plain_dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        scales, zeros = (None if part is None else part.clone() for part in (self.scales, self.zeros))
        # Several weights share an order.
        order = copy.deepcopy(self.order, memo)
        return replace(self, codes=self.codes.clone(), scales=scales, zeros=zeros, order=order)

    @property
    def dtype(self) -> torch.dtype:
        """Of the plain weight in a state dict."""
        return self.codes.dtype if self.plain_dtype is None else self.plain_dtype

    @property
    def is_quantized(self) -> bool:
        """Whether the codes mean nothing without their scales."""
        return self.plain_dtype is not None

    @property
    def nbytes(self) -> int:
        """Bytes in memory. Several weights can share an order."""
        parts = (self.codes, self.scales, self.zeros, self.order)
        return sum(part.nbytes for part in parts if part is not None)

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether these codes are that tensor's, now: a parameter's memory can be replaced."""
        if self.matrix is None and not self.is_quantized:
            return tensor is self.codes and tensor.shape == self.shape
        # As long as the codes are held, nothing else can come to lie at their address.
        alike = tensor.shape == self.codes.shape and tensor.dtype == self.codes.dtype
        codes = self.codes.data_ptr() if self.matrix is None else self.matrix.codes
        return tensor.data_ptr() == codes and alike

    def plain(self) -> torch.Tensor:
        """The weight (out, in) as it was before it was packed; of a quantized one what the codes stand for, in
        float32."""
        return self.format.plain(self)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) times the transpose of the weight -> (..., out), of x's dtype, rounded to it once.

        Raises:
            RuntimeError: as F.linear does, for another last dimension or device, and for integers.
        """
        if (
            x.shape[-1] == self.shape[1]
            and x.is_cpu
            and not (x.requires_grad and torch.is_grad_enabled())
            and self.format.takes(self, x)
        ):
            return self.format.multiply(self, x)
        found = self.format.reference(self, x) if self.is_quantized else None
        if found is not None:
            return found
        # The reference: the last row of the table. It also differentiates, and raises.
        weight = self.plain()
        if x.dtype == weight.dtype or not x.is_floating_point():  # the latter is refused
            return F.linear(x, weight)
        wide = torch.promote_types(x.dtype, weight.dtype)
        return F.linear(x.to(wide), weight.to(wide)).to(x.dtype)


def _with_own_memory(part: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor, or a copy if it is a part of a larger piece of memory."""
    return part if part is None or part.untyped_storage().nbytes() == part.nbytes else part.clone()


# The pickler of multiprocessing, which hands on the address of shared memory; files get its content.
ForkingPickler.register(PackedWeight, PackedWeight._sent)
