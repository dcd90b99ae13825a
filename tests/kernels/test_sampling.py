"""Sampling by hand: distributions are read off a grid of uniforms, which shows each probability exactly."""

from __future__ import annotations

import math

import pytest
import torch
from draws import GRID, WAYS, by_way, frequencies, penalized, plain, sample
from hypothesis import given, settings
from hypothesis import strategies as st

from llama.errors import NumericsError
from llama.kernels.operators import decide, log_probabilities
from llama.kernels.sampling import count_not_finite, not_finite
from llama.sampling import GREEDY, SamplingParams


@pytest.fixture(autouse=True, params=WAYS, scope="module")
def way(request):
    """Every law holds for each sampler."""
    yield from by_way(request.param)


# Not in order, so that an id is never its own rank.
P = [0.15, 0.5, 0.1, 0.25]


def logs(probabilities):
    return [math.log(p) for p in probabilities]


def near(got, wanted, grid=GRID):
    assert got == pytest.approx(wanted, abs=1.5 / grid)
    assert [g == 0 for g in got] == [w == 0 for w in wanted]


# ---- by hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ({}, P),
        # p^(1/T), normalised
        ({"temperature": 0.5}, [0.0225 / 0.345, 0.25 / 0.345, 0.01 / 0.345, 0.0625 / 0.345]),
        ({"temperature": 2.0}, [math.sqrt(p) / sum(map(math.sqrt, P)) for p in P]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 2 / 3, 0, 1 / 3]),
        ({"top_k": 3}, [0.15 / 0.9, 0.5 / 0.9, 0, 0.25 / 0.9]),
        ({"top_k": 4}, P),
        ({"top_k": 400}, P),
        ({"top_k": 10**30}, P),
        ({"top_p": 1e-9}, [0, 1, 0, 0]),
        ({"top_p": 0.45}, [0, 1, 0, 0]),
        ({"top_p": 0.55}, [0, 2 / 3, 0, 1 / 3]),
        ({"top_p": 0.8}, [0.15 / 0.9, 0.5 / 0.9, 0, 0.25 / 0.9]),
        ({"top_p": 0.95}, P),
        ({"min_p": 1.0}, [0, 1, 0, 0]),
        ({"min_p": 0.4}, [0, 2 / 3, 0, 1 / 3]),
        ({"min_p": 0.25}, [0.15 / 0.9, 0.5 / 0.9, 0, 0.25 / 0.9]),
        ({"min_p": 0.19}, P),
        # temperature first: at 0.5 the best has 0.25 / 0.345 = 0.72, the second 0.18, the third 0.065
        ({"temperature": 0.5, "top_p": 0.7}, [0, 1, 0, 0]),
        ({"temperature": 0.5, "min_p": 0.26}, [0, 1, 0, 0]),
        # each limit on the whole distribution; what passes all of them is kept
        ({"top_k": 2, "top_p": 0.6}, [0, 2 / 3, 0, 1 / 3]),
        ({"top_k": 3, "min_p": 0.4}, [0, 2 / 3, 0, 1 / 3]),
        ({"top_k": 2, "top_p": 0.45}, [0, 1, 0, 0]),
    ],
)
def test_by_hand(limits, wanted):
    near(frequencies(logs(P), plain(**limits)), wanted)


def test_a_shift_of_the_logits_changes_nothing():
    for shift in (-1000, 500):
        near(
            frequencies([x + shift for x in logs(P)], plain(temperature=0.5, top_p=0.8)),
            [0, 0.8, 0, 0.2],
        )


def test_of_equals_the_lower_ids_are_kept():
    near(frequencies([1.0, 3.0, 3.0, 3.0, 1.0], plain(top_k=2)), [0, 0.5, 0.5, 0, 0])
    near(frequencies([0.0] * 5, plain(top_k=1)), [1, 0, 0, 0, 0])
    near(frequencies([0.0] * 5, plain(top_p=0.5)), [1 / 3, 1 / 3, 1 / 3, 0, 0])
    near(frequencies([0.0] * 4, plain()), [0.25] * 4)


def test_the_ends_of_the_uniforms_stay_within_the_kept_ids():
    rows = torch.tensor([logs(P)] * 2)
    ends = [0.0, 1 - 2**-53]
    assert sample(rows, [plain()] * 2, ends).tolist() == [0, 3]
    assert sample(rows, [plain(top_k=1)] * 2, ends).tolist() == [1, 1]
    wide = torch.zeros(2, 40000)
    wide[:, 100:39000] = 10.0
    got = sample(wide, [plain(top_k=38900)] * 2, ends).tolist()
    assert got == [100, 38999]
    # An id of no probability at all is never drawn, not even at the very ends.
    sure = torch.tensor([[-2000.0, 0.0, 0.0, -2000.0]] * 2)
    assert sample(sure, [plain()] * 2, ends).tolist() == [1, 2]


@pytest.mark.parametrize(
    "limits", [{}, {"top_k": 3}, {"top_k": 400}, {"top_p": 0.95}, {"min_p": 1e-9}, {"temperature": 1e-3}]
)
def test_a_logit_of_minus_infinity_is_never_drawn(limits):
    """As of an id that is banned; the others share what it had."""
    rest = [0, *P[1:], 0]
    near(frequencies([-math.inf, *logs(P[1:]), -math.inf], plain(**limits)), _limited(rest, limits))
    one = torch.full((1, 900), -math.inf)
    one[0, 700] = -50.0
    for uniform in (0.0, 0.5, 1 - 2**-53):
        assert sample(one, [plain(**limits)], [uniform]).tolist() == [700]
    assert sample(one, [GREEDY], [0.0]).tolist() == [700]


def _limited(probabilities, limits):
    """What is left of them: all but the best where the temperature is next to 0."""
    if "temperature" in limits:
        probabilities = [p * (p == max(probabilities)) for p in probabilities]
    return [p / sum(probabilities) for p in probabilities]


# ---- greedy and nearly so ------------------------------------------------------------------------


def test_temperature_zero_is_the_argmax_and_ignores_all_else():
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    for params in (
        GREEDY,
        SamplingParams(temperature=0),
        SamplingParams(temperature=0.0, top_p=0.1, top_k=7),
        SamplingParams(temperature=0.8, top_p=0),
        SamplingParams(temperature=2.0, top_p=-0.0, top_k=7, min_p=0.1),
    ):
        assert params.greedy
        got = sample(logits, [params] * 50, [0.999] * 50)
        assert torch.equal(got, logits.argmax(dim=-1))
    assert sample(torch.tensor([[1.0, 2.0, 2.0]]), [GREEDY], [0.9]).tolist() == [1]
    beside = sample(logits, [plain(top_p=0), plain()] * 25, [0.999] * 50)
    assert torch.equal(beside[::2], logits.argmax(dim=-1)[::2])
    assert not torch.equal(beside[1::2], logits.argmax(dim=-1)[1::2])


@pytest.mark.parametrize("temperature", [1e-3, 1e-40, 1e-300, 5e-324])
@pytest.mark.parametrize("limits", [{}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.1}])
def test_tiny_temperatures_are_the_argmax(temperature, limits):
    logits = 1000 * torch.randn(50, 600, generator=torch.Generator().manual_seed(1))
    params = plain(temperature=temperature, **limits)
    for uniform in (0.0, 0.5, 1 - 2**-53):
        assert torch.equal(sample(logits, [params] * 50, [uniform] * 50), logits.argmax(dim=-1))


def test_huge_temperatures_are_uniform():
    near(frequencies([30.0, -30.0, 0.0, 5.0], plain(temperature=1e300)), [0.25] * 4)
    near(frequencies([30.0, -math.inf, 0.0, -math.inf], plain(temperature=1e300)), [0.5, 0, 0.5, 0])
    near(frequencies([30.0, -math.inf, 0.0, -math.inf], plain(temperature=1e39, top_k=3)), [0.5, 0, 0.5, 0])


# ---- rows ----------------------------------------------------------------------------------------

mixed = [
    GREEDY,
    plain(),
    plain(top_k=3),
    SamplingParams(),
    plain(top_p=0.3, temperature=1.5),
    plain(min_p=0.2),
    plain(temperature=1e-300),
    plain(top_p=0.999999),
]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(mixed), st.floats(0, 0.9999)), min_size=1, max_size=8))
def test_a_row_does_not_depend_on_the_others(rows):
    logits = 2 * torch.randn(len(rows), 900, generator=torch.Generator().manual_seed(5))
    params, uniforms = [row[0] for row in rows], [row[1] for row in rows]
    together = sample(logits, params, uniforms)
    alone = [sample(logits[i : i + 1], [p], [u]) for i, (p, u) in enumerate(rows)]
    assert together.tolist() == [int(each) for each in alone]


def test_sampling_leaves_the_logits_alone():
    logits = torch.randn(8, 50, generator=torch.Generator().manual_seed(6))
    before = logits.clone()
    sample(logits, mixed, [0.5] * 8)
    penalized(logits[0], [1, 2, 3], 1.5)
    assert torch.equal(logits, before)


# ---- penalty, log-probabilities, finiteness ------------------------------------------------------


def test_penalty_by_hand():
    logits = torch.tensor([2.0, -2.0, 0.0, 3.0, -1.0])
    assert penalized(logits, [0, 1, 2, 1, 0], 2.0).tolist() == [1.0, -4.0, 0.0, 3.0, -1.0]
    assert penalized(logits, [3, 4], 0.5).tolist() == [2.0, -2.0, 0.0, 6.0, -0.5]
    assert penalized(logits, [0, 1, 2, 3, 4], 1.0).tolist() == logits.tolist()


@pytest.mark.parametrize("penalty", [1e-300, 1e-40, 1e40, 1e300])
def test_extreme_penalties_leave_a_distribution(penalty):
    logits = penalized(torch.tensor([2.0, -2.0, 3.0, -1.0]), [0, 1, 2, 3], penalty)
    for uniform in (0.0, 0.5, 0.999):
        assert 0 <= int(sample(logits[None], [plain(top_p=0.9)], [uniform])) < 4


def test_log_probabilities_are_the_log_softmax():
    logits = 20 * torch.randn(40, 500, generator=torch.Generator().manual_seed(7)) + 100
    ids = torch.randint(0, 500, (40,), generator=torch.Generator().manual_seed(8))
    wanted = torch.log_softmax(logits.double(), dim=-1)[torch.arange(40), ids]
    got = log_probabilities(logits, ids)
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), wanted, atol=5e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("vocab", [1, 7, 64, 1024, 2085])
def test_logits_that_are_not_finite_are_counted_wherever_they_are(bad, vocab):
    """In the first and the last of a row, and in several; beside rows that are finite."""
    logits = torch.randn(6, vocab, generator=torch.Generator().manual_seed(vocab))
    logits[1, 0] = logits[2, -1] = logits[4, vocab // 2] = bad
    logits[5] = bad
    params = [plain(), GREEDY, plain(top_p=0.9)] * 2
    # What is drawn from says nothing of the model's logits.
    for drawn in (logits, torch.zeros_like(logits)):
        assert decide(logits, drawn, params, [0.5] * 6).bad == [0, 1, 1, 0, 1, vocab]


def test_ids_are_of_the_rows_to_draw_from_and_scores_of_the_logits():
    logits = torch.randn(20, 900, generator=torch.Generator().manual_seed(1))
    drawn = logits.roll(1, dims=-1)
    drawn[:, 500:] = -math.inf
    params = [GREEDY, plain(top_p=0.9), plain(temperature=0.5), plain(top_k=3)] * 5
    uniforms = [(i + 0.5) / 20 for i in range(20)]
    found = decide(logits, drawn, params, uniforms)
    assert found.ids == sample(drawn, params, uniforms).tolist()
    assert found.ids != sample(logits, params, uniforms).tolist()
    assert found.logs == log_probabilities(logits, torch.tensor(found.ids)).tolist()
    assert found.bad == [0] * 20


@pytest.mark.parametrize("places", [(0,), (1023, 1024), (1024, 3000), (5, 2050, 3002), (3002,)])
def test_of_equals_anywhere_in_a_row_the_lowest_is_greedy(places):
    logits = torch.rand(3, 3003, generator=torch.Generator().manual_seed(2))
    logits[0, list(places)] = 1.5
    logits[1] -= 2
    logits[1, list(places)] = 0.0
    logits[2] = -0.0
    logits[2, list(places)] = 0.0
    found = decide(logits, logits, [GREEDY] * 3, [0.0] * 3)
    assert found.ids == [places[0], places[0], 0]


def check_finite(logits, names, dtype):
    """The runner's use of the two, without the broadcast between them."""
    for name, bad in zip(names, count_not_finite(logits).tolist(), strict=True):
        if bad:
            raise not_finite(name, bad, logits.shape[-1], dtype)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_check_finite_names_the_row(bad):
    logits = torch.zeros(3, 7)
    check_finite(logits, ["a", "b", "c"], torch.float16)
    logits[1, 4] = logits[1, 5] = logits[2, 0] = bad
    with pytest.raises(NumericsError, match=r"^b: 2 of 7 logits .*torch\.float16") as caught:
        check_finite(logits, ["a", "b", "c"], torch.float16)
    assert "float32" in str(caught.value)


def test_finite_logits_whose_sum_is_not_are_fine():
    check_finite(torch.full((2, 50), 3e38), ["a", "b"], torch.float32)
    assert sample(torch.full((1, 50), 3e38), [plain()], [0.5]).tolist() == [25]
