"""Products: every row of the table and every level against float64, and the laws of a packed weight."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compiled_levels import implemented, rows_of

from llama.kernels import onednn
from llama.kernels.native import DTYPES as KNOWN
from llama.kernels.operators import pack, recognise
from llama.kernels.table import Case, Row
from llama.kernels.weights import ONEDNN, PLAIN, Blocked, PackedWeight

DTYPES = list(KNOWN)
# Of the result, relative to |x| @ |W|^T: its own rounding, and that of a float32 sum.
TOLERANCE = {torch.float32: 2**-18, torch.float16: 2**-10, torch.bfloat16: 2**-8}
SHAPES = [(5, 7), (1, 1), (33, 130), (256, 512), (17, 2049), (300, 1), (1, 300)]

each_row = pytest.mark.parametrize(("row", "level", "dtype"), rows_of("linear", DTYPES))
without_kernels = pytest.mark.parametrize("way", ["plain"], indirect=True)


@pytest.fixture(autouse=True)
def _settings_are_left_alone() -> Iterator[None]:
    def settings() -> tuple[object, ...]:
        return torch._C._get_mkldnn_enabled(), torch.get_float32_matmul_precision(), torch.get_num_threads()

    before = settings()
    yield
    assert settings() == before


def make(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def check(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    exact = x.double() @ weight.double().T
    scale = x.double().abs() @ weight.double().abs().T
    assert y.dtype == x.dtype
    assert y.shape == exact.shape
    assert bool(((y.double() - exact).abs() <= TOLERANCE[x.dtype] * scale + 1e-30).all())


def packer(row: Row, level: str, dtype: torch.dtype) -> Callable[[torch.Tensor], PackedWeight]:
    """Packs weights as a row of the table does."""
    form = implemented(row, level, Case(dtype, "cpu", None))
    packed: Callable[[torch.Tensor], PackedWeight] = form.pack
    return packed


def sizes(count: int) -> Iterator[tuple[int, int, int]]:
    """(outputs, inputs, rows): all ends of tiles, groups, panels and steps, and others by chance."""
    chance = random.Random(0)
    yield from ((out, 38, 3) for out in (1, 15, 16, 17, 33, 49, 64, 65, 127, 130))
    yield from ((70, 38, rows) for rows in range(1, 15))
    yield from ((20, columns, 2) for columns in (1, 2, 3, 7, 8, 9, 15, 16, 17, 300))
    yield 70, 20, 1100  # more rows than go through all panels at a time
    for _ in range(count):
        yield chance.randint(1, 130), chance.randint(1, 300), chance.randint(1, 40)


# ---- every row ----


@each_row
def test_products_are_those_of_float64(row: Row, level: str, dtype: torch.dtype) -> None:
    packed = packer(row, level, dtype)
    for out, columns, rows in sizes(40):
        weight, x = make(out, columns, dtype=dtype), make(rows, columns, dtype=dtype, seed=1)
        check(packed(weight).linear(x), x, weight)


@each_row
def test_rows_in_any_arrangement(row: Row, level: str, dtype: torch.dtype) -> None:
    """Of any rank, none at all, with gaps between them, turned, or one of them repeated."""
    for shape in SHAPES:
        weight = make(*shape, dtype=dtype)
        packed = packer(row, level, dtype)(weight)
        for lead in [(), (1,), (1, 1), (2, 3), (17,), (0,), (2, 0)]:
            x = make(*lead, shape[1], dtype=dtype)
            with torch.inference_mode():
                check(packed.linear(x), x, weight)
    weight = make(40, 64, dtype=dtype)
    packed, wide = packer(row, level, dtype)(weight), make(3, 5, 128, dtype=dtype)
    turned, same = make(64, 9, dtype=dtype).T, make(1, 64, dtype=dtype).expand(4, 64)
    for x in (wide[..., 64:], wide[..., ::2], wide[:, ::2, :64], turned, same):
        check(packed.linear(x), x, weight)


@each_row
def test_a_weight_of_any_dtype_multiplies_rows_of_any(row: Row, level: str, dtype: torch.dtype) -> None:
    weight = make(70, 45, dtype=dtype)
    for given in DTYPES:
        for rows in (1, 9):
            x = make(rows, 45, dtype=given, seed=1)
            check(packer(row, level, dtype)(weight).linear(x), x, weight)


@each_row
def test_one_row_does_not_see_the_rows_beside_it(row: Row, level: str, dtype: torch.dtype) -> None:
    """Neither the padding nor a neighbour that overflows may leak into a row. Ours have the same bits, too: also where
    the inputs pass in several blocks, and the rows in several chunks."""
    for out, columns, rows in ((130, 77, 40), (20, 2500, 14), (17, 12, 150)):
        packed = packer(row, level, dtype)(make(out, columns, dtype=dtype))
        x = make(rows, columns, dtype=dtype, seed=1)
        poisoned = x.clone()
        poisoned[1] = torch.nan
        together, beside = packed.linear(x), packed.linear(poisoned)[2:]
        assert torch.isfinite(beside).all()
        for i in range(2, rows, 7):
            alone = packed.linear(x[i : i + 1])[0]
            if row.name == "csrc":
                assert torch.equal(alone, together[i])
                assert torch.equal(alone, beside[i - 2])
            else:
                torch.testing.assert_close(alone, together[i], atol=0.1, rtol=0.05)


@each_row
def test_the_number_of_threads_changes_nothing(row: Row, level: str, dtype: torch.dtype) -> None:
    weight, x = make(300, 65, dtype=dtype), make(29, 65, dtype=dtype, seed=1)
    packed, found = packer(row, level, dtype), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append((packed(weight).plain(), packed(weight).linear(x)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0][0], found[1][0])
    if row.name == "csrc":
        assert torch.equal(found[0][1], found[1][1])
    check(found[1][1], x, weight)


@each_row
def test_the_plain_weight_comes_back(row: Row, level: str, dtype: torch.dtype) -> None:
    """Bit for bit, whatever it holds and however it lay."""
    for shape in [*SHAPES, (16, 33), (17, 1)]:
        weight = make(*shape, dtype=dtype)
        weight[0, 0] = torch.nan
        for given in (weight, weight.T.contiguous().T, torch.nn.Parameter(weight, requires_grad=False)):
            plain = packer(row, level, dtype)(given).plain()
            assert plain.layout == torch.strided
            assert torch.equal(plain.contiguous().view(torch.uint8), weight.view(torch.uint8))


@each_row
def test_a_packed_weight_shares_nothing_and_does_not_change(row: Row, level: str, dtype: torch.dtype) -> None:
    weight = make(64, 64, dtype=dtype)
    packed, kept = packer(row, level, dtype)(weight), weight.clone()
    assert packed.nbytes == weight.nbytes
    if packed.format is not PLAIN:
        weight.zero_()
        assert torch.equal(packed.plain(), kept)
    with pytest.raises(FrozenInstanceError):
        packed.codes = weight  # type: ignore[misc]  # that is the point


@each_row
def test_nothing_is_stored_beside_the_output(row: Row, level: str, dtype: torch.dtype) -> None:
    # Rows of the result lie behind one another: a store past the last output would hit the next row.
    weight, x = make(19, 8, dtype=dtype), torch.zeros(7, 8, dtype=dtype)
    x[3] = 1
    y = packer(row, level, dtype)(weight).linear(x)
    assert torch.count_nonzero(y[:3]) == torch.count_nonzero(y[4:]) == 0
    check(y, x, weight)


@each_row
def test_a_derivative_of_the_input_survives_packing(row: Row, level: str, dtype: torch.dtype) -> None:
    weight, x = make(12, 20, dtype=dtype), make(3, 20, dtype=dtype).requires_grad_()
    packer(row, level, dtype)(weight).linear(x).sum().backward()
    torch.testing.assert_close(x.grad, weight.float().sum(0).to(dtype).expand(3, 20), atol=0.05, rtol=0.02)


class Elsewhere(torch.Tensor):
    """A tensor whose numbers are another tensor's: there is nothing at its own address."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Elsewhere:
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inner = (x.held if isinstance(x, Elsewhere) else x for x in args)
        return function(*inner, **(kwargs or {}))


@each_row
def test_rows_and_weights_without_memory_of_their_own(row: Row, level: str, dtype: torch.dtype) -> None:
    """As in a trace that knows only shapes, or spread over devices."""
    weight, x = make(12, 20, dtype=dtype), make(3, 20, dtype=dtype)
    check(packer(row, level, dtype)(weight).linear(Elsewhere(x)), x, weight)
    check(pack(Elsewhere(weight)).linear(x), x, weight)


@each_row
def test_rows_of_another_length_are_refused(row: Row, level: str, dtype: torch.dtype) -> None:
    with pytest.raises(RuntimeError):
        packer(row, level, dtype)(make(12, 20, dtype=dtype)).linear(make(3, 19, dtype=dtype))


@each_row
def test_integers_are_refused(row: Row, level: str, dtype: torch.dtype) -> None:
    """A product that was rounded to them would be of no use; ids reach a layer by mistake."""
    with pytest.raises(RuntimeError):
        packer(row, level, dtype)(make(12, 20, dtype=dtype)).linear(torch.ones(3, 20, dtype=torch.int64))


@each_row
@pytest.mark.parametrize("cast", DTYPES)
def test_codes_that_were_cast_are_still_multiplied(
    row: Row, level: str, dtype: torch.dtype, cast: torch.dtype
) -> None:
    """By research code, in the parameter itself; a kernel takes them only if they lie as that dtype does."""
    weight, x = make(33, 64, dtype=dtype), make(3, 64, dtype=cast)
    packed = packer(row, level, dtype)(weight)
    if packed.format is not ONEDNN:  # whose opaque tensors torch does not cast
        check(recognise(packed.codes.to(cast), (33, 64)).linear(x), x, weight.to(cast))


@each_row
def test_rows_on_another_device_do_not_reach_a_kernel(row: Row, level: str, dtype: torch.dtype) -> None:
    packed = packer(row, level, dtype)(make(12, 20, dtype=dtype))
    y = packed.linear(torch.empty(3, 20, dtype=dtype, device="meta"))
    assert (y.device.type, y.shape) == ("meta", (3, 12))


@pytest.mark.usefixtures("level")
def test_what_a_kernel_reads_is_held() -> None:
    """Also when a parameter, as which it came, gets other memory."""
    weight = torch.nn.Parameter(pack(make(33, 64)).codes, requires_grad=False)
    found = recognise(weight, (33, 64))
    before = found.codes.data_ptr()
    weight.data = torch.zeros_like(weight)
    assert found.matrix is not None
    assert found.codes.data_ptr() == found.matrix.codes == before
    assert not found.holds(weight)
    assert not found.holds(found.codes.view(torch.float16))  # the same memory, read otherwise
    assert not found.holds(found.codes[:1])


def test_all_parts_of_a_weight_take_memory() -> None:
    codes, scales, order = torch.zeros(4, 6), torch.zeros(4), torch.zeros(6, dtype=torch.int32)
    assert PackedWeight(PLAIN, (4, 6), codes, scales, codes, order).nbytes == 96 + 16 + 96 + 24


# ---- the choice ----


def test_the_format_of_each_dtype(way: str) -> None:
    formats = {dtype: pack(make(32, 32, dtype=dtype)).format for dtype in DTYPES}
    if way != "plain":
        assert all(isinstance(form, Blocked) for form in formats.values())
        return
    assert formats[torch.float16] is PLAIN
    if torch.backends.cpu.get_cpu_capability().startswith("AVX512"):  # others may rightly decline
        assert formats[torch.float32] is formats[torch.bfloat16] is ONEDNN


@pytest.mark.usefixtures("way")
def test_what_cannot_be_packed_stays_as_it_is() -> None:
    for weight in (
        make(8, 8, dtype=torch.float64),
        torch.empty(0, 8),
        torch.empty(8, 8, device="meta"),
        torch.nn.Parameter(make(8, 8, dtype=torch.float32)),
    ):
        assert pack(weight).codes is weight


@without_kernels
@pytest.mark.usefixtures("way")
def test_the_hosts_switch_is_respected() -> None:
    weight = make(12, 20, dtype=torch.float32)
    torch._C._set_mkldnn_enabled(False)
    try:
        assert pack(weight).codes is weight
    finally:
        torch._C._set_mkldnn_enabled(True)


@without_kernels
@pytest.mark.usefixtures("way")
def test_a_build_whose_operator_fails_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("not on this CPU")

    weight, x = make(12, 20, dtype=torch.float32), make(3, 20, dtype=torch.float32)
    onednn.can_pack.cache_clear()
    monkeypatch.setattr(onednn, "pack", refuse)
    assert pack(weight).codes is weight
    onednn.can_pack.cache_clear()
    assert torch.equal(pack(weight).linear(x), F.linear(x, weight))
    onednn.can_pack.cache_clear()


def test_onednn_is_given_few_numbers_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps a kernel for each of them for good."""
    seen: list[int] = []
    monkeypatch.setattr(onednn, "_multiply", lambda x, weight: (seen.append(len(x)), x @ weight.T)[1])
    x, weight = make(1024, 32, dtype=torch.float32), make(16, 32, dtype=torch.float32)
    plain = x @ weight.T
    for rows in range(1, 1025):
        torch.testing.assert_close(onednn.linear(x[:rows], weight), plain[:rows])
        assert rows <= seen[-1] <= max(4, rows + 1, rows * 9 // 8)
    assert len(set(seen)) == 69
    assert len({onednn._padded(rows) for rows in range(1, 100_001)}) < 69 + 7 * 32
    assert onednn._padded(0) == 0
