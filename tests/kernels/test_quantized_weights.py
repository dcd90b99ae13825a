"""Laws of quantized weights: what was packed comes back, and a product is what its definition says, bit for bit."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from quantized_models import GROUPS, laid_out, packed, quantized

from llama.kernels import native, quantized_weights
from llama.kernels.quantized import FORMATS, Blocks, Form, dequantize, in_order
from llama.kernels.quantized_weights import Quantized, product

KINDS = list(FORMATS)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# (outputs, columns): whole groups of outputs and of inputs, and ends of both.
SHAPES = [(16, 32), (33, 96), (5, 64), (48, 288), (130, 544)]

each_kind = pytest.mark.parametrize("kind", KINDS)


def make(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + seed))


def shuffled(blocks: Blocks, columns: int) -> Blocks:
    """The same codes, whose columns belong to columns of an x of so many, by chance; the rest to none."""
    order = torch.full((blocks.form.columns,), -1, dtype=torch.int32)
    chosen = torch.randperm(columns, generator=torch.Generator().manual_seed(1)).int()
    order[torch.randperm(len(order), generator=torch.Generator().manual_seed(2))[:columns]] = chosen
    form = Form(blocks.form.format, blocks.form.columns, blocks.form.group, order)
    return Blocks(form, blocks.codes, blocks.scales, blocks.zeros)


def same(a: Blocks, b: Blocks) -> None:
    assert (a.form.format, a.form.columns, a.form.group) == (b.form.format, b.form.columns, b.form.group)
    for name in ("codes", "scales", "zeros"):
        one, other = getattr(a, name), getattr(b, name)
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            assert torch.equal(one, other), name


# ---- the layout ----


@each_kind
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_come_back(kind: str, shape: tuple[int, int]) -> None:
    blocks = quantized(kind, make(*shape))
    weight = packed(blocks)
    assert isinstance(weight.format, Quantized)
    same(weight.format.blocks(weight), blocks)
    assert torch.equal(weight.plain(), dequantize(blocks))
    assert weight.plain().dtype == torch.float32
    assert weight.dtype == torch.float16
    bits = 8 * weight.nbytes / (-(-shape[0] // 16) * 16 * shape[1])
    assert FORMATS[kind].bits < bits <= FORMATS[kind].bits + (0.5 if shape[1] % GROUPS[kind] == 0 else 2)


@each_kind
def test_an_order_is_undone(kind: str) -> None:
    blocks = shuffled(quantized(kind, make(33, 96)), 70)
    weight = packed(blocks, 70)
    assert weight.shape == (33, 70)
    exact, order = dequantize(blocks), blocks.form.order
    assert order is not None
    for at, column in enumerate(order.tolist()):
        if column >= 0:
            assert torch.equal(weight.plain()[:, column], exact[:, at])


@pytest.mark.usefixtures("level")
@each_kind
def test_a_weight_is_written_in_any_windows(kind: str) -> None:
    """Each with the bytes of the layout, which is the same at every level."""
    for out, columns in (*SHAPES, (77, 96)):
        blocks = quantized(kind, make(out, columns))
        form = Quantized(kind, blocks.form.group, native.kernels())
        for step in (16, 32, 80):
            weight = form.empty((out, columns), blocks.form, torch.float16)
            for part in (weight.codes, weight.scales, weight.zeros):
                if part is not None:
                    part.fill_(9)
            for first in range(0, out, step):
                at = slice(first, first + step)
                zeros = None if blocks.zeros is None else blocks.zeros[at]
                form.write(weight, Blocks(blocks.form, blocks.codes[at], blocks.scales[at], zeros), first)
            for name, wanted in laid_out(blocks).items():
                found = getattr(weight, name)
                assert found.dtype == wanted.dtype
                assert torch.equal(found, wanted), (name, out, columns, step)


@each_kind
def test_a_plain_weight_has_no_codes_to_pack(kind: str) -> None:
    with pytest.raises(TypeError, match=f"{kind} is packed from Blocks"):
        Quantized(kind, 32, None).pack(make(16, 32))


# ---- the product, by its definition ----


def float32(exact: Fraction) -> float:
    """The nearest float32, ties to even."""
    if not exact:
        return 0.0
    power = max(math.frexp(abs(exact.numerator) / exact.denominator)[1] - 24, -149)
    while abs(exact) >= Fraction(2) ** (power + 24):
        power += 1
    while power > -149 and abs(exact) < Fraction(2) ** (power + 23):
        power -= 1
    return float(round(exact / Fraction(2) ** power)) * 2.0**power


def fma(a: float, b: float, c: float) -> float:
    return float32(Fraction(a) * Fraction(b) + Fraction(c))


def scalar(x: list[float], blocks: Blocks, row: int) -> float:
    """One output, as docs/kernels.md defines it, number by number."""
    kind, form, total = blocks.form.format, blocks.form, 0.0
    for block in range(form.columns // 32):
        some = x[32 * block : 32 * block + 32]
        most = max(map(abs, some))
        inverse = float32(Fraction(127) / Fraction(most)) if most else math.inf
        xs = float32(Fraction(most) / 127) if math.isfinite(inverse) else 0.0
        by = [round(float32(Fraction(v) * Fraction(inverse))) if xs else 0 for v in some]
        codes = blocks.codes[row, 32 * block : 32 * block + 32].tolist()
        dot, ones = sum(map(int.__mul__, codes, by)), sum(by)
        group = 32 * block // form.group
        scale = blocks.scales[row, group]
        if kind == "k4":
            assert blocks.zeros is not None
            (d, e), (a, b) = scale.tolist(), blocks.zeros[row, block].tolist()
            total = fma(float32(Fraction(d * a) * Fraction(xs)), dot, total)
            total = fma(-float32(Fraction(e * b) * Fraction(xs)), ones, total)
            continue
        zero = {"int8": 128, "int4": 8}.get(kind)
        if zero is None:
            assert blocks.zeros is not None
            zero = int(blocks.zeros[row, group])
        total = fma(float32(Fraction(float(scale)) * Fraction(xs)), dot - zero * ones, total)
    return total


def test_the_sum_is_rounded_once() -> None:
    chance = random.Random(0)
    found: list[tuple[float, float, float]] = []
    for _ in range(3000):
        a, b = (float32(Fraction(chance.uniform(-2, 2))) for _ in range(2))
        # Far below, near, and far above the product; and such that the sum lies next to the middle of two numbers.
        c = chance.choice([2.0**-40, 1.0, 2.0**20, -a * b]) * chance.uniform(0.5, 1)
        found.append((a, b, float32(Fraction(c))))
    one, tiny = 1 + 2.0**-23, 2.0**-80
    found += [(one, 2.0**-24, one), (2.0**-24, 1 + 2.0**-23, 1.0), (1.0, tiny, 1.0), (0.0, 1.0, 3.0)]
    columns = [torch.tensor(column) for column in zip(*found, strict=True)]
    got = quantized_weights._fma(*columns).tolist()
    assert got == [fma(*each) for each in found]
    wide = [torch.tensor([value]) for value in (3e38, 10.0, 0.0)]
    assert torch.isinf(quantized_weights._fma(*wide)).all()


@each_kind
@pytest.mark.parametrize("shape", [(3, 96), (2, 288)])
def test_the_reference_is_the_definition(kind: str, shape: tuple[int, int]) -> None:
    blocks, x = quantized(kind, make(*shape)), make(3, shape[1], seed=1)
    x[1, 32:64] = 0
    x[1, 64:] *= 1e-41  # too small to be divided by
    x[2, :2] = torch.tensor([2.515625, -1.2578125])  # a tie, but for how 127 / m is rounded
    x[2, 2:32] *= 0.1
    y = product(x, packed(blocks))
    for row in range(3):
        for out in range(shape[0]):
            assert float(y[row, out]) == scalar(x[row].tolist(), blocks, out)


# ---- at every level, and without kernels ----

at_each = pytest.mark.usefixtures("way")


@at_each
@each_kind
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_are_those_of_the_definition(kind: str, dtype: torch.dtype) -> None:
    """At each level the bits of the reference."""
    for out, columns in SHAPES:
        blocks = quantized(kind, make(out, columns))
        for used, given in ((blocks, columns), (shuffled(blocks, columns - 19), columns - 19)):
            weight = packed(used, given)
            x = make(19, given, seed=1).to(dtype)
            wanted = product(x, weight)
            for rows in (1, 2, 5, 12, 19):
                y = weight.linear(x[:rows])
                assert y.dtype == dtype
                assert torch.equal(y, wanted[:rows]), (out, columns, rows)


@at_each
@each_kind
def test_a_product_is_near_that_of_the_plain_weight(kind: str) -> None:
    """No further than rounding x allows: half a step of its block each."""
    for out, columns in SHAPES:
        weight = packed(quantized(kind, make(out, columns)))
        x, plain = make(7, columns, seed=1), weight.plain().double()
        steps = x.unflatten(1, (-1, 32)).abs().amax(2).repeat_interleave(32, 1).double() / 127
        bound = 0.501 * steps @ plain.abs().T + 1e-4
        assert ((weight.linear(x).double() - x.double() @ plain.T).abs() <= bound).all()


@at_each
@each_kind
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_number_that_is_not_finite_makes_its_row_nan(kind: str, bad: float) -> None:
    weight = packed(quantized(kind, make(20, 96)))
    x = make(4, 96, seed=1)
    before = weight.linear(x)
    x[2, 40] = bad
    after = weight.linear(x)
    assert after[2].isnan().all()
    for row in (0, 1, 3):
        assert torch.equal(after[row], before[row])


@at_each
@each_kind
def test_rows_in_any_arrangement(kind: str) -> None:
    weight = packed(quantized(kind, make(20, 64)))
    wide, plain = make(3, 5, 128), weight.plain()
    for x in (
        wide[..., 64:],
        wide[..., ::2],
        wide[:, ::2, :64],
        make(64, 9).T,
        make(64),
        make(0, 64),
        make(2, 0, 64),
    ):
        y = weight.linear(x)
        assert y.shape == (*x.shape[:-1], 20)
        assert torch.equal(y, product(x.contiguous(), weight))
        assert torch.allclose(y, F.linear(x, plain), atol=0.5)
    for x in (make(3, 63), torch.ones(3, 64, dtype=torch.int64)):
        with pytest.raises(RuntimeError):
            weight.linear(x)


@at_each
@each_kind
def test_a_derivative_is_that_of_the_plain_weight(kind: str) -> None:
    """And asking for one changes no value."""
    weight = packed(shuffled(quantized(kind, make(20, 64)), 50), 50)
    x = make(3, 50, seed=1).requires_grad_()
    y, by_y = weight.linear(x), make(3, 20, seed=2)
    assert torch.equal(y, weight.linear(x.detach()))
    y.backward(by_y)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, by_y @ weight.plain())


@each_kind
def test_rows_that_only_have_a_shape(kind: str) -> None:
    weight = packed(quantized(kind, make(20, 64)))
    y = weight.linear(torch.empty(3, 64, device="meta"))
    assert (y.device.type, y.shape) == ("meta", (3, 20))


@at_each
@each_kind
def test_all_numbers_of_a_block_are_read(kind: str) -> None:
    """Each column of x alone."""
    weight = packed(quantized(kind, make(17, 96)))
    y = weight.linear(torch.eye(96))
    torch.testing.assert_close(y, in_order(weight.format.blocks(weight), 96).T, atol=1e-5, rtol=1e-5)  # type: ignore[attr-defined]
