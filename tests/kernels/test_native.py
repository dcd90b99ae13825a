"""The compiled matrix products: every size of a remainder, and weights packed block by block."""

from __future__ import annotations

import pytest
import torch

from llama.kernels import native

pytestmark = pytest.mark.usefixtures("compiled")


def make(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def check(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    exact = x.double() @ weight.double().T
    scale = x.double().abs() @ weight.double().abs().T
    assert y.shape == exact.shape
    assert bool(((y.double() - exact).abs() <= 2**-8 * scale + 1e-30).all())


@pytest.mark.parametrize("rows", range(1, 15))
def test_every_remainder_of_rows_and_outputs(rows: int) -> None:
    """Rows pass in blocks of 6, outputs in panels of 64 and groups of 16."""
    for out in (1, 15, 16, 17, 33, 49, 64, 65, 127, 130):
        weight = make(out, 38)
        x = make(rows, 38)
        check(native.linear(x, native.pack(weight), out), x, weight)


def test_nothing_is_stored_beside_the_output() -> None:
    weight = make(19, 8)
    # Rows of the result lie behind one another: a store past the last output would hit the next row.
    x = torch.zeros(7, 8, dtype=torch.bfloat16)
    x[3] = 1
    y = native.linear(x, native.pack(weight), 19)
    assert torch.count_nonzero(y[:3]) == 0
    assert torch.count_nonzero(y[4:]) == 0
    check(y, x, weight)


@pytest.mark.parametrize("columns", [[64], [2, 62], [30, 34]])
@pytest.mark.parametrize("rows", [[40], [16, 24], [32, 8], [16, 16, 8]])
def test_a_weight_packed_in_blocks_is_the_weight(rows: list[int], columns: list[int]) -> None:
    weight = make(40, 64)
    packed = torch.full(native.packed_shape(40, 64), torch.nan, dtype=torch.bfloat16)
    top = 0
    for height in rows:
        left = 0
        for width in columns:
            block = weight[top : top + height, left : left + width]
            assert native.can_pack_block(block, packed, top, left, 40)
            native.pack_block(block, packed, top, left)
            left += width
        top += height
    assert torch.equal(packed, native.pack(weight))
    assert torch.equal(native.unpack(packed, 40), weight)


def test_blocks_that_cannot_be_packed() -> None:
    packed, weight = torch.empty(native.packed_shape(40, 64), dtype=torch.bfloat16), make(40, 64)
    for block, row, column in (
        (weight.float(), 0, 0),  # of another dtype
        (weight.T.contiguous().T, 0, 0),  # in another order
        (weight[:16], 8, 0),  # from the middle of a group
        (weight[:, 1:33], 0, 1),  # from the middle of a pair
        (weight[:, :33], 0, 0),  # to the middle of a pair
        (weight[:24], 0, 0),  # to the middle of a group that has more rows
    ):
        assert not native.can_pack_block(block, packed, row, column, 40)
