"""Products with quantized weights at every level, bit for bit against their definition in NumPy, and their packing.

check_quantized.c holds more cases to plain C, also at levels that no CPU here has.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compiled_levels import AT, opened

from llama.kernels import native
from llama.kernels.native import DTYPES, Kernels, Matrix
from llama.kernels.quantized import BLOCK, FORMATS, Blocks, Form

each_level = pytest.mark.parametrize("level", AT)
each_format = pytest.mark.parametrize("name", list(FORMATS))


class Packed:
    """A weight in memory, as C reads it."""

    def __init__(self, kernels: Kernels, blocks: Blocks, columns: int, parts: tuple[int, ...] = ()) -> None:
        self.kernels, self.form = kernels, blocks.form
        out = len(blocks.codes)
        shapes = native.quantized_shapes(blocks.form, out)
        kinds = (torch.uint8, torch.float16, torch.uint8)
        # Something else than 0, so that what is not written is seen.
        self.parts = [
            None if shape is None else torch.full(shape, 99, dtype=kind)
            for shape, kind in zip(shapes, kinds, strict=True)
        ]
        codes, scales, zeros = self.parts
        assert codes is not None
        assert scales is not None
        self.matrix: Matrix = native.quantized_matrix(blocks.form, (out, columns), codes, scales, zeros)
        for first, last in zip((0, *parts), (*parts, out), strict=True):
            zeros = None if blocks.zeros is None else blocks.zeros[first:last]
            some = Blocks(blocks.form, blocks.codes[first:last], blocks.scales[first:last], zeros)
            kernels.pack_blocks(some, self.matrix, first)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return self.kernels.linear(x, self.matrix)


def random_blocks(name: str, out: int, columns: int, group: int, seed: int = 0) -> Blocks:
    """Of random codes; a row of 0 scales, and scales up to 1/64 elsewhere."""
    known, generator = FORMATS[name], torch.Generator().manual_seed(out * columns + seed)
    group = 32 if known.group == BLOCK else group
    groups = -(-columns // group)

    def integers(most: int, *shape: int) -> torch.Tensor:
        return torch.randint(most, shape, generator=generator, dtype=torch.uint8)

    pairs = (2,) if known.parts == 2 else ()
    scales = torch.rand(out, groups, *pairs, generator=generator).div(64).half()
    scales[out // 2] = 0
    zeros = integers(64, out, columns // BLOCK, 2) if pairs else integers(2**known.bits, out, groups)
    codes = integers(2**known.bits, out, columns)
    return Blocks(Form(name, columns, group), codes, scales, zeros if known.zero is None else None)


def integers_of(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Rows of float32 -> integers (rows, blocks, 32), and their scales (rows, blocks)."""
    blocks = x.numpy().reshape(len(x), -1, BLOCK)
    with np.errstate(all="ignore"):
        most = np.abs(blocks).max(2)
        inverse = np.float32(127) / most
        used = np.isfinite(inverse) & np.isfinite(most)
        integers = np.where(used[..., None], np.rint(blocks * inverse[..., None]), np.float32(0))
        return integers, np.where(
            np.isfinite(most), np.where(used, most / np.float32(127), np.float32(0)), np.nan
        )


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """In float64, whose product is exact here. Sums may be rounded twice; none of these cases meets that."""
    return (a.astype(np.float64) * b + c).astype(np.float32)


def product(x: torch.Tensor, blocks: Blocks) -> torch.Tensor:
    """As the definition says, block by block."""
    form, known = blocks.form, FORMATS[blocks.form.format]
    if form.order is not None:
        x = torch.where(form.order >= 0, x[:, form.order.clamp(min=0).long()], 0.0)
    integers, scales_x = integers_of(x)
    codes = blocks.codes.numpy().reshape(len(blocks.codes), -1, BLOCK).astype(np.float64)
    scales = blocks.scales.float().numpy()
    y = np.zeros((len(x), len(codes)), np.float32)
    for b in range(codes.shape[1]):
        dots = integers[:, b].astype(np.float64) @ codes[:, b].T
        total = integers[:, b].sum(1)[:, None]
        s, s_x = scales[:, b * BLOCK // form.group], scales_x[:, b, None]
        if known.parts == 2:
            assert blocks.zeros is not None
            a, c = blocks.zeros[:, b].float().numpy().T
            y = fma(s[:, 0] * a * s_x, dots, y)
            y = fma(-(s[:, 1] * c * s_x), total, y)
        else:
            zero = known.zero
            if blocks.zeros is not None:
                zero = blocks.zeros[:, b * BLOCK // form.group].double().numpy()
            y = fma(s * s_x, dots - zero * total, y)
    return torch.from_numpy(y)


def rows(count: int, columns: int) -> torch.Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(count * columns))


# (outputs, columns, group, rows): ends of groups, panels, tiles, chunks; in = 32; a last group that ends early.
SIZES = [(16, 32, 32, 1), (40, 96, 64, 5), (1, 512, 128, 2), (130, 512, 512, 14), (17, 160, 128, 130)]


@each_level
@each_format
def test_products_are_exact_up_to_their_defined_rounding(name: str, level: str) -> None:
    for out, columns, group, count in SIZES:
        blocks, x = random_blocks(name, out, columns, group), rows(count, columns)
        y = Packed(opened(level), blocks, columns).linear(x)
        assert torch.equal(y, product(x, blocks))


@each_level
@each_format
def test_x_is_read_in_the_order_that_is_asked_for(name: str, level: str) -> None:
    blocks = random_blocks(name, 33, 320, 64)
    order = torch.randperm(320, generator=torch.Generator().manual_seed(1)).int()
    order[order >= 301] = -1
    form = Form(name, 320, blocks.form.group, order)
    blocks, x = Blocks(form, blocks.codes, blocks.scales, blocks.zeros), rows(9, 301)
    assert torch.equal(Packed(opened(level), blocks, 301).linear(x), product(x, blocks))


@each_level
@each_format
def test_what_is_not_finite_or_tiny_in_a_row_stays_there(name: str, level: str) -> None:
    """A NaN or an infinity makes its row NaN; numbers too small for a scale are 0."""
    blocks, x = random_blocks(name, 40, 96, 32), rows(8, 96)
    wanted = product(x, blocks)
    x[1, 40], x[3, 0], x[5, 95] = torch.nan, torch.inf, -torch.inf
    x[6], x[7] = 1e-39, 0
    y = Packed(opened(level), blocks, 96).linear(x)
    assert y[[1, 3, 5]].isnan().all()
    assert torch.equal(y[[0, 2, 4]], wanted[[0, 2, 4]])
    assert torch.count_nonzero(y[6:]) == 0


@each_level
@each_format
def test_a_row_has_the_same_bits_alone_and_in_any_dtype_is_rounded_once(name: str, level: str) -> None:
    blocks = random_blocks(name, 70, 256, 128)
    packed = Packed(opened(level), blocks, 256)
    for dtype in DTYPES:
        x = rows(140, 256).to(dtype)
        y = packed.linear(x)
        assert torch.equal(y, packed.linear(x.float()).to(dtype))
        for i in (0, 5, 127, 128, 139):
            assert torch.equal(packed.linear(x[i]), y[i])


@each_level
@each_format
def test_a_weight_packed_in_parts_is_the_weight(name: str, level: str) -> None:
    """What fills up its last group has scales of 0."""
    blocks = random_blocks(name, 53, 96, 64)
    wide = torch.zeros(53, 128, dtype=torch.uint8)
    wide[:, :96] = blocks.codes
    apart = Blocks(blocks.form, wide[:, :96], blocks.scales, blocks.zeros)  # rows with gaps between them
    whole, parts = Packed(opened(level), blocks, 96), Packed(opened(level), apart, 96, (16, 48))
    for one, other in zip(whole.parts, parts.parts, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.equal(one, other)
    scales = whole.parts[1]
    assert scales is not None
    assert torch.count_nonzero(scales[3, ..., 5:]) == 0


@each_format
def test_levels_pack_and_multiply_alike(name: str) -> None:
    blocks, x = random_blocks(name, 50, 160, 64), rows(7, 160)
    found = [Packed(opened(level), blocks, 160) for level in AT]
    for each in found:
        assert torch.equal(each.linear(x), found[0].linear(x))
        for part, first in zip(each.parts, found[0].parts, strict=True):
            assert part is None or first is None or torch.equal(part, first)
