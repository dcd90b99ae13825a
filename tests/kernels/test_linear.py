"""llama/kernels/linear.py against float64, on every path it has on a CPU."""

import pytest
import torch
import torch.nn.functional as F

from llama.kernels import linear as lin

DTYPES = [torch.bfloat16, torch.float32, torch.float16]
# Relative to |x| @ |W|^T: rounding of the result, and of a float32 sum over a few thousand terms.
TOLERANCE = {torch.bfloat16: 2**-8, torch.float16: 2**-10, torch.float32: 2**-18}
SHAPES = [(5, 7), (1, 1), (33, 130), (256, 512), (17, 2049), (300, 1), (1, 300)]


@pytest.fixture(autouse=True)
def _settings_are_left_alone():
    def settings():
        return torch._C._get_mkldnn_enabled(), torch.get_float32_matmul_precision(), torch.get_num_threads()

    before = settings()
    yield
    assert settings() == before


at_each_level = pytest.mark.usefixtures(
    "way"
)  # csrc/linear.c at each level, and what there is without: oneDNN

without_kernels = pytest.mark.parametrize("way", ["plain"], indirect=True)


def make(*shape, dtype):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def check(y, x, weight):
    exact = x.double() @ weight.double().T
    scale = x.double().abs() @ weight.double().abs().T
    assert y.dtype == x.dtype
    assert y.shape == exact.shape
    assert bool(((y.double() - exact).abs() <= TOLERANCE[x.dtype] * scale + 1e-30).all())


@at_each_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_float64(dtype, shape):
    weight = make(*shape, dtype=dtype)
    prepared = lin.prepare(weight)
    for rows in [(), (1,), (2,), (1, 1), (3,), (4,), (2, 3), (17,), (0,), (2, 0)]:
        x = make(*rows, shape[1], dtype=dtype)
        with torch.inference_mode():
            check(lin.linear(x, weight, weight.shape[0]), x, weight)
            check(lin.linear(x, prepared, weight.shape[0]), x, weight)
        check(lin.linear(x, prepared, weight.shape[0]), x, weight)


@without_kernels
def test_onednn_is_given_few_numbers_of_rows(way, monkeypatch):
    """It keeps a kernel for each of them for good."""
    weight = lin.prepare(make(16, 32, dtype=torch.float32))
    seen, multiply = [], lin._onednn_multiply
    monkeypatch.setattr(
        lin, "_onednn_multiply", lambda x, w: (seen.append(x.numel() // 32), multiply(x, w))[1]
    )
    x = make(1024, 32, dtype=torch.float32)
    plain = x @ lin.unpack(weight, 16).T
    for rows in range(1, 1025):
        torch.testing.assert_close(lin.linear(x[:rows], weight, 16), plain[:rows])
        assert rows <= seen[-1] <= max(4, rows + 1, rows * 9 // 8)
    assert len(set(seen)) == 69
    assert len({lin._onednn_rows(rows) for rows in range(1, 100_001)}) < 69 + 7 * 32
    assert lin._onednn_rows(0) == 0


@at_each_level
def test_one_row_does_not_see_the_rows_beside_it():
    # Neither the padding nor a neighbour that overflows may leak into a row.
    prepared = lin.prepare(make(64, 96, dtype=torch.bfloat16))
    x = make(3, 96, dtype=torch.bfloat16)
    poisoned = torch.cat([x, torch.full((1, 96), torch.nan, dtype=x.dtype)])
    together, alone = lin.linear(poisoned, prepared, 64)[:3], lin.linear(x, prepared, 64)
    assert torch.isfinite(together).all()
    torch.testing.assert_close(together, alone)


@at_each_level
@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_that_are_not_contiguous(dtype):
    weight = make(40, 64, dtype=dtype)
    prepared = lin.prepare(weight)
    wide = make(3, 5, 128, dtype=dtype)
    for x in (
        wide[..., 64:],
        wide[..., ::2],
        wide[:, ::2, :64],
        make(64, 9, dtype=dtype).T,
        make(1, 64, dtype=dtype).expand(4, 64),
    ):
        check(lin.linear(x, prepared, weight.shape[0]), x, weight)


@at_each_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_unpack_gives_the_weight_back(dtype, shape):
    weight = make(*shape, dtype=dtype)
    for given in (weight, weight.T.contiguous().T, torch.nn.Parameter(weight, requires_grad=False)):
        plain = lin.unpack(lin.prepare(given), shape[0])
        assert plain.layout == torch.strided
        assert torch.equal(plain, weight)
    assert lin.unpack(lin.prepare(weight), shape[0]).is_contiguous()


@at_each_level
def test_packing_keeps_no_hold_on_the_plain_weight():
    weight = make(64, 64, dtype=torch.float32)
    prepared, kept = lin.prepare(weight), weight.clone()
    if prepared is not weight:
        weight.zero_()
        assert torch.equal(lin.unpack(prepared, 64), kept)
        assert prepared.nbytes == weight.nbytes
    assert lin.prepare(prepared) is prepared


def test_the_format_of_each_dtype(way):
    formats = {dtype: lin.format_of(lin.prepare(make(32, 32, dtype=dtype))) for dtype in DTYPES}
    if way != "plain":
        assert set(formats.values()) == {lin.BLOCKED}
        return
    assert formats[torch.float16] is None
    if torch.backends.cpu.get_cpu_capability().startswith("AVX512"):  # others may rightly decline
        assert formats[torch.float32] is formats[torch.bfloat16] is lin.ONEDNN


@at_each_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cast", DTYPES)
def test_a_packed_weight_that_was_cast_is_still_multiplied(dtype, cast):
    """`model.float()` casts what is packed; a kernel takes it only if it lies as that dtype does."""
    weight = make(33, 64, dtype=dtype)
    prepared = lin.prepare(weight)
    if lin.format_of(prepared) is lin.BLOCKED:
        x = make(3, 64, dtype=cast)
        check(lin.linear(x, prepared.to(cast), 33), x, weight.to(cast))


@without_kernels
def test_leaves_alone_what_it_cannot_pack(way):
    for weight in (
        make(8, 8, dtype=torch.float16),
        make(8, 8, dtype=torch.float64),
        make(8, dtype=torch.float32),
        torch.empty(0, 8),
        torch.empty(8, 8, device="meta"),
        torch.nn.Parameter(make(8, 8, dtype=torch.float32)),
    ):
        assert lin.prepare(weight) is weight


@without_kernels
def test_the_hosts_switch_is_respected(way):
    weight = make(12, 20, dtype=torch.float32)
    torch._C._set_mkldnn_enabled(False)
    try:
        assert lin.prepare(weight) is weight
    finally:
        torch._C._set_mkldnn_enabled(True)


@without_kernels
def test_a_build_whose_operator_fails_is_recognised(way, monkeypatch):
    def refuse(*_):
        raise RuntimeError("not on this CPU")

    weight, x = make(12, 20, dtype=torch.float32), make(3, 20, dtype=torch.float32)
    lin.can_pack.cache_clear()
    monkeypatch.setattr(lin, "_onednn_pack", refuse)
    assert lin.prepare(weight) is weight
    lin.can_pack.cache_clear()
    assert torch.equal(lin.linear(x, weight, weight.shape[0]), F.linear(x, weight))


@at_each_level
def test_wrong_inputs_fail_as_F_linear_fails():
    prepared = lin.prepare(make(12, 20, dtype=torch.float32))
    for x in (make(3, 19, dtype=torch.float32), make(3, 20, dtype=torch.bfloat16)):
        with pytest.raises(RuntimeError):
            lin.linear(x, prepared, 12)


@at_each_level
def test_gradient_of_the_input_survives_packing():
    weight = make(12, 20, dtype=torch.float32)
    x = make(3, 20, dtype=torch.float32).requires_grad_()
    lin.linear(x, lin.prepare(weight), 12).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(3, 20))
