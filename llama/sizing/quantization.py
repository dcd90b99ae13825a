"""Which matrices `quantize="int8"` and `"int4"` quantize, to which format, and the bytes that they then take."""

from __future__ import annotations

import torch

from ..kernels.quantized import BLOCK, FORMATS, Form, form_of
from .args import ModelArgs
from .shapes import axis_of, expected_shapes, is_product, wanted_range

__all__ = ["QUANTIZATIONS", "quantized_bytes", "quantized_format"]

QUANTIZATIONS = ("int8", "int4")
# Outputs of a group of a packed weight, on every level (csrc/matrix.h).
_ROWS = 16


def quantized_format(name: str, shape: tuple[int, ...], quantize: str) -> str | None:
    """The format in kernels/quantized.py of a tensor of this name and shape; None if it stays plain.

    "int4" is a mixture, as llama.cpp's Q4_K_M is one. What 4 bits hurt most, most of all for its size, is int8: what
    is read of each token (wv), what the first layer's attention writes (wo), from which all later layers compute, and
    the output matrix. On CodeLlama-tiny that halves the divergence that k4 alone causes, and adds 0.3 bits to a weight.
    """
    if not is_product(name) or shape[1] % BLOCK:
        return None
    if (
        quantize == "int8"
        or name.endswith(("output.weight", "wv.weight"))
        or name == "layers.0.attention.wo.weight"
    ):
        return "int8"
    group = FORMATS["k4"].group
    assert group is not None
    return "int4" if shape[1] % group else "k4"


def quantized_bytes(args: ModelArgs, size: int, dtype: torch.dtype, quantize: str) -> int:
    """Bytes of the weights on that of `size` ranks which holds most.

    Args:
        dtype: of the weights that stay plain.
    """
    sizes = []
    for rank in range(size):
        total = 0
        orders: dict[tuple[int, int], int] = {}  # those of all layers are the same, and shared
        for name, shape in expected_shapes(args).items():
            ranges = [(0, extent) for extent in shape]
            axis = axis_of(name)
            if axis is not None:
                ranges[axis] = wanted_range(name, shape[axis], args, rank, size)
            kind = quantized_format(name, shape, quantize)
            rows = ranges[0][1] - ranges[0][0]
            if kind is not None:
                form = form_of(kind, ranges[1], FORMATS[kind].group or BLOCK, shape[1])
                orders[ranges[1]] = 0 if form.order is None else form.order.nbytes
                total += _matrix_bytes(form, rows)
            else:
                total += rows * dtype.itemsize * (ranges[1][1] - ranges[1][0] if len(ranges) > 1 else 1)
        sizes.append(total + sum(orders.values()))
    return max(sizes)


def _matrix_bytes(form: Form, rows: int) -> int:
    numbers = FORMATS[form.format]
    zeros = 2 * form.columns // BLOCK if form.format == "k4" else 0
    padded = -(-rows // _ROWS) * _ROWS
    return padded * (form.columns * numbers.bits // 8 + 2 * numbers.parts * form.groups + zeros)
