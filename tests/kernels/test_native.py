"""What holds between the levels of the compiled kernels, and for weights that are packed block by block."""

from __future__ import annotations

import pytest
import torch
from compiled_levels import AT, opened
from pools import single_step

from llama.kernels import native
from llama.kernels.draws import draw_numbers
from llama.kernels.native import DTYPES as KNOWN
from llama.kernels.weights import Blocked, PackedWeight
from llama.sampling import SamplingParams

DTYPES = list(KNOWN)


def make(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def unwritten(shape: tuple[int, int], dtype: torch.dtype) -> PackedWeight:
    """A weight of NaNs, to be written block by block."""
    form = Blocked(native.kernels())
    return PackedWeight(form, shape, torch.full(form.codes_shape(shape, dtype), torch.nan, dtype=dtype))


def test_levels_give_the_same_bits() -> None:
    """Of weights, norms and logits all levels; of products and attention all but in bfloat16, where there is an
    instruction for pairs. All are held at once."""
    found: dict[object, list[torch.Tensor]] = {}
    logits = make(3, 300, dtype=torch.float32)
    for kernels in [opened(name) for name in AT]:
        form = Blocked(kernels)
        for dtype in DTYPES:
            weight, x = make(50, 77, dtype=dtype), make(5, 77, dtype=dtype, seed=1)
            packed = form.pack(weight)
            found.setdefault((dtype, "packed"), []).append(packed.codes)
            pairs = dtype == torch.bfloat16 and kernels.level.name.endswith("bf16")
            found.setdefault((dtype, pairs), []).append(packed.linear(x))
            q, k, v = (make(9, heads, 64, dtype=dtype, seed=heads) for heads in (4, 2, 2))
            cached = make(2, 80, 1, 64, dtype=dtype), make(2, 80, 1, 64, dtype=dtype, seed=1)
            for rows in (1, 9):
                step = single_step(cached[0], 70, rows)
                out = kernels.attention(q[:rows], k[:rows], v[:rows], *cached, step)
                found.setdefault((dtype, rows, pairs), []).append(out)
            found.setdefault((dtype, "norm"), []).append(kernels.rms_norm(q, make(64, dtype=dtype), 1e-5))
        found.setdefault("logits", []).append(kernels.log_probabilities(logits, torch.tensor([1, 2, 3])))
        drawn = kernels.decide(logits, logits, draw_numbers([SamplingParams(0.8, 0.9)] * 3, [0.1, 0.5, 0.9]))
        found.setdefault("decided", []).append(torch.tensor(drawn))
    for same in found.values():
        assert all(torch.equal(each, same[0]) for each in same)


@pytest.mark.parametrize("columns", [[64], [2, 62], [30, 34], [20, 45]])
@pytest.mark.parametrize("rows", [[40], [16, 24], [32, 8], [16, 16, 8]])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("level")
def test_a_weight_packed_in_blocks_is_the_weight(
    rows: list[int], columns: list[int], dtype: torch.dtype
) -> None:
    weight = make(40, sum(columns), dtype=dtype)
    packed = unwritten((40, sum(columns)), dtype)
    form = packed.format
    assert isinstance(form, Blocked)
    top = 0
    for height in rows:
        left = 0
        for width in columns:
            block = weight[top : top + height, left : left + width]
            assert form.takes_block(packed, block, top, left)
            form.write(packed, block, top, left)
            left += width
        top += height
    assert torch.equal(packed.codes, form.pack(weight).codes)
    assert torch.equal(packed.plain(), weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("level")
def test_what_fills_up_a_packed_weight_is_zero(dtype: torch.dtype) -> None:
    form = Blocked(native.kernels())
    codes = form.pack(torch.full((33, 131), 2.0, dtype=dtype)).codes
    assert codes.shape == native.codes_shape((33, 131), dtype)
    assert torch.count_nonzero(codes) == 33 * 131


@pytest.mark.usefixtures("way")
def test_blocks_that_cannot_be_packed() -> None:
    packed, weight = unwritten((40, 64), torch.bfloat16), make(40, 64)
    form = packed.format
    assert isinstance(form, Blocked)
    for block, row, column in (
        (weight.float(), 0, 0),  # of another dtype
        (weight.T.contiguous().T, 0, 0),  # in another order
        (weight[:16], 8, 0),  # from the middle of a group
        (weight[:, 1:33], 0, 1),  # from the middle of a pair
        (weight[:, :33], 0, 0),  # to the middle of a pair
        (weight[:24], 0, 0),  # to the middle of a group that has more rows
    ):
        assert not form.takes_block(packed, block, row, column)
