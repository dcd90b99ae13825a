"""Which matrices `quantize="int8"` and `"int4"` quantize, to which format, and the bytes that they then take."""

from __future__ import annotations

from ..kernels.quantized import BLOCK, FORMATS, form_of
from .shapes import is_product

__all__ = ["QUANTIZATIONS", "matrix_bytes", "quantized_format"]

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


def matrix_bytes(kind: str, rows: int, columns: tuple[int, int], total: int) -> int:
    """Bytes in memory of some rows of a matrix, and of the columns [start, stop) of `total`, in a format from here."""
    numbers = FORMATS[kind]
    assert numbers.group is not None
    form = form_of(kind, columns, numbers.group, total)
    zeros = 2 * form.columns // BLOCK if kind == "k4" else 0
    padded = -(-rows // _ROWS) * _ROWS
    return padded * (form.columns * numbers.bits // 8 + 2 * numbers.parts * form.groups + zeros)
