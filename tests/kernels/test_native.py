"""The compiled products at every level: against float64, alone and among others, on any number of threads."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from compiled_levels import LEVELS, use
from cpu_levels import runs

from llama.kernels import native

DTYPES = list(native.DTYPES)
# Of the result, relative to |x| @ |W|^T: its own rounding, and that of a float32 sum.
TOLERANCE = {torch.float32: 2**-18, torch.float16: 2**-10, torch.bfloat16: 2**-8}


def make(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    exact = x.double() @ weight.double().T
    scale = x.double().abs() @ weight.double().abs().T
    assert y.shape == exact.shape
    assert y.dtype == x.dtype
    assert bool(((y.double() - exact).abs() <= TOLERANCE[x.dtype] * scale + 1e-30).all())


def sizes(count: int) -> Iterator[tuple[int, int, int]]:
    """(outputs, inputs, rows): all ends of tiles, groups, panels and steps, and others by chance."""
    chance = random.Random(0)
    yield from ((out, 38, 3) for out in (1, 15, 16, 17, 33, 49, 64, 65, 127, 130))
    yield from ((70, 38, rows) for rows in range(1, 15))
    yield from ((20, columns, 2) for columns in (1, 2, 3, 7, 8, 9, 15, 16, 17, 300))
    for _ in range(count):
        yield chance.randint(1, 130), chance.randint(1, 300), chance.randint(1, 40)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("level")
def test_products_are_those_of_float64(dtype: torch.dtype) -> None:
    for out, columns, rows in sizes(40):
        weight, x = make(out, columns, dtype=dtype), make(rows, columns, dtype=dtype, seed=1)
        check(native.linear(x, native.pack(weight), out), x, weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.usefixtures("level")
def test_a_weight_of_any_dtype_multiplies_rows_of_any(stored: torch.dtype, dtype: torch.dtype) -> None:
    weight = make(70, 45, dtype=stored)
    for rows in (1, 9):
        x = make(rows, 45, dtype=dtype, seed=1)
        check(native.linear(x, native.pack(weight), 70), x, weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("level")
def test_a_row_is_the_same_alone_and_among_others(dtype: torch.dtype) -> None:
    """Also where the inputs pass in several blocks, and the rows in several chunks."""
    for out, columns, rows in ((130, 77, 40), (20, 2500, 14), (17, 12, 150)):
        packed, x = native.pack(make(out, columns, dtype=dtype)), make(rows, columns, dtype=dtype, seed=1)
        together = native.linear(x, packed, out)
        for row in range(0, rows, 7):
            assert torch.equal(native.linear(x[row : row + 1], packed, out)[0], together[row])
        poisoned = x.clone()
        poisoned[1] = torch.nan
        assert torch.equal(native.linear(poisoned, packed, out)[2:], together[2:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("level")
def test_products_do_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            weight, x = make(300, 65, dtype=dtype), make(29, 65, dtype=dtype, seed=1)
            found.append((native.pack(weight), native.linear(x, native.pack(weight), 300)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_levels_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of weights, norms and logits all levels; of products and attention all but in bfloat16, where there is an
    instruction for pairs."""
    found: dict[object, list[torch.Tensor]] = {}
    logits = make(3, 300, dtype=torch.float32)
    for name in LEVELS:
        if not runs(name):
            continue
        with monkeypatch.context() as patch:
            use(name, patch)
            for dtype in DTYPES:
                weight, x = make(50, 77, dtype=dtype), make(5, 77, dtype=dtype, seed=1)
                packed = native.pack(weight)
                found.setdefault((dtype, "packed"), []).append(packed)
                pairs = dtype == torch.bfloat16 and name.endswith("bf16")
                found.setdefault((dtype, pairs), []).append(native.linear(x, packed, 50))
                q, k, v = (
                    make(9, 4, 64, dtype=dtype),
                    make(9, 2, 64, dtype=dtype),
                    make(9, 2, 64, dtype=dtype),
                )
                cached = make(2, 80, 64, dtype=dtype), make(2, 80, 64, dtype=dtype, seed=1)
                for rows in (1, 9):
                    out = native.attention(q[:rows], k[:rows], v[:rows], *cached, 70)
                    found.setdefault((dtype, rows, pairs), []).append(out)
                found.setdefault((dtype, "norm"), []).append(native.rms_norm(q, make(64, dtype=dtype), 1e-5))
            found.setdefault("logits", []).append(native.log_probabilities(logits, torch.tensor([1, 2, 3])))
    for same in found.values():
        assert all(torch.equal(each, same[0]) for each in same)


@pytest.mark.usefixtures("level")
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
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("level")
def test_a_weight_packed_in_blocks_is_the_weight(
    rows: list[int], columns: list[int], dtype: torch.dtype
) -> None:
    weight = make(40, 64, dtype=dtype)
    packed = torch.full(native.packed_shape((40, 64), dtype), torch.nan, dtype=dtype)
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (17, 1), (16, 33), (33, 130)])
@pytest.mark.usefixtures("level")
def test_a_weight_comes_back_bit_for_bit(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = make(*shape, dtype=dtype)
    weight[0, 0] = torch.nan
    packed = native.pack(weight)
    assert packed.shape == native.packed_shape(shape, dtype)
    back = native.unpack(packed, *shape)
    assert torch.equal(back.view(torch.uint8), weight.view(torch.uint8))
    assert torch.count_nonzero(native.unpack(packed, 16 * packed.shape[0])[shape[0] :]) == 0


def test_blocks_that_cannot_be_packed() -> None:
    packed, weight = (
        torch.empty(native.packed_shape((40, 64), torch.bfloat16), dtype=torch.bfloat16),
        make(40, 64),
    )
    for block, row, column in (
        (weight.float(), 0, 0),  # of another dtype
        (weight.T.contiguous().T, 0, 0),  # in another order
        (weight[:16], 8, 0),  # from the middle of a group
        (weight[:, 1:33], 0, 1),  # from the middle of a pair
        (weight[:, :33], 0, 0),  # to the middle of a pair
        (weight[:24], 0, 0),  # to the middle of a group that has more rows
    ):
        assert not native.can_pack_block(block, packed, row, column, 40)
