"""Draws against oracles in float64: a naive loop, the definition over whole vocabularies, and chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from draws import WAYS, by_way, frequencies, plain, sample
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llama.kernels.operators import log_probabilities
from llama.sampling import SamplingParams


@pytest.fixture(autouse=True, params=WAYS, scope="module")
def way(request):
    """Every law holds for each sampler."""
    yield from by_way(request.param)


# ---- against a naive oracle ----------------------------------------------------------------------


def naive(logits, params):
    """Probabilities in float64, one id after the other, or None where a border is within rounding."""
    x = np.asarray(logits, np.float64) / params.temperature
    p = np.exp(x - x.max())
    p /= p.sum()
    kept, before = [], 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: (-p[i], i))):
        borders = [abs(before - params.top_p), abs(p[i] - params.min_p * p.max())]
        if rank and min(borders) < 1e-9:
            return None
        if rank and ((params.top_k and rank >= params.top_k) or before > params.top_p):
            break
        if p[i] < params.min_p * p.max():
            break
        kept.append(i)
        before += p[i]
    out = np.zeros(len(p))
    out[kept] = p[kept] / p[kept].sum()
    return out


limits = st.builds(
    SamplingParams,
    temperature=st.floats(0.2, 3),
    top_p=st.floats(0.01, 0.999) | st.just(1.0),
    top_k=st.integers(0, 12),
    min_p=st.floats(0.01, 0.9) | st.just(0.0),
)


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(st.integers(-6, 6), min_size=1, max_size=12), limits)
def test_probabilities_are_those_of_a_naive_loop(halves, params):
    """Logits in halves, so that ties are common."""
    logits = [x / 2 for x in halves]
    wanted = naive(logits, params)
    assume(wanted is not None)
    got = np.array(frequencies(logits, params, grid=1000))
    assert np.abs(got - wanted).max() <= 1.5 / 1000
    assert not got[wanted == 0].any()


@pytest.mark.parametrize(
    "params", [plain(top_p=0.9), plain(top_k=700), plain(min_p=0.35), plain(top_p=0.99, top_k=1200)]
)
def test_sets_larger_than_the_first_search(params):
    """A flat distribution keeps more ids than the 512 that are looked at first."""
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(2)) * 0.3
    wanted = naive(logits.tolist(), params)
    assert np.count_nonzero(wanted) > 600
    # One uniform in the middle of each kept id's share draws exactly that id.
    ends = wanted.cumsum()
    middles = (ends - wanted / 2)[wanted > 0][::5].tolist()
    got = sample(logits.repeat(len(middles), 1), [params] * len(middles), middles)
    assert got.tolist() == np.flatnonzero(wanted)[::5].tolist()


@pytest.mark.parametrize("params", [plain(), plain(temperature=0.7, top_p=0.9), plain(top_k=5, min_p=0.05)])
def test_chi_square_of_random_draws(params):
    rounds = 20000
    logits = (2 * torch.randn(30, generator=torch.Generator().manual_seed(3))).tolist()
    uniforms = np.random.Generator(np.random.Philox(4)).random(rounds).tolist()
    ids = sample(torch.tensor(logits).repeat(rounds, 1), [params] * rounds, uniforms)
    counts = np.bincount(ids.numpy(), minlength=30)
    expected = naive(logits, params) * rounds
    assert not counts[expected == 0].any()
    some = expected > 5
    statistic = ((counts - expected)[some] ** 2 / expected[some]).sum()
    freedom = some.sum() - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


# ---- against the definition, in float64 ----------------------------------------------------------


def by_definition(logits, param, uniform):
    """The id that a row draws: the inverse of the cumulative distribution, in the order of the ids."""
    x = logits.double().numpy() / param.temperature
    p = np.exp(x - x.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    best = p[order]
    keep = (best.cumsum() - best <= param.top_p) & (best >= param.min_p * best[0])
    keep[0] = True
    kept = np.zeros_like(p)
    kept[order[keep][: param.top_k or None]] = best[keep][: param.top_k or None]
    ends = kept.cumsum()
    return int(min(ends.searchsorted(uniform * ends[-1], side="right"), ends.searchsorted(ends[-1])))


def differing(logits, params, uniforms):
    """Rows that draw another id than the definition says, where no uniform within 1e-5 draws it either."""

    def draws(row, uniform):
        return by_definition(logits[row], params[row], min(max(uniform, 0), 1 - 1e-9))

    return [
        (row, got)
        for row, got in enumerate(sample(logits, params, uniforms).tolist())
        if all(got != draws(row, uniforms[row] + e) for e in (0, -1e-5, 1e-5))
    ]


@settings(deadline=None, derandomize=True, max_examples=80)
@given(
    st.integers(0, 10**6),
    st.sampled_from([1, 5, 63, 64, 65, 700]),
    st.floats(0.05, 5),
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    st.sampled_from([0, 1, 3, 40, 10_000]),
    st.sampled_from([0.0, 0.01, 0.3]),
    st.sampled_from([0.5, 3.0, 12.0]),
)
def test_a_draw_inverts_the_distribution_in_the_order_of_ids(
    seed, vocab, temperature, top_p, top_k, min_p, spread
):
    """All ways draw the same ids, except where a uniform is on a boundary."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(16, vocab, generator=generator)
    uniforms = torch.rand(16, generator=generator, dtype=torch.float64).tolist()
    params = [SamplingParams(temperature, top_p, top_k, min_p)] * 16
    assert not differing(logits, params, uniforms)


@pytest.mark.parametrize("spread", [3.0, 0.5])
def test_the_whole_vocabulary_draws_as_defined(spread):
    """32,016 ids, with rows of all kinds in one batch."""
    generator = torch.Generator().manual_seed(11)
    params = [
        plain(),
        plain(temperature=0.7),
        plain(top_k=40),
        plain(top_k=5000),
        plain(top_k=40_000),
        plain(top_p=0.95),
        plain(min_p=0.05),
        plain(top_p=0.9, top_k=100, min_p=0.001),
    ] * 2
    logits = spread * torch.randn(len(params), 32_016, generator=generator)
    uniforms = torch.rand(len(params), generator=generator, dtype=torch.float64).tolist()
    assert not differing(logits, params, uniforms)


@pytest.mark.parametrize("vocab", [1, 15, 16, 17, 64, 1000])
def test_nothing_beside_the_rows_is_read_or_written(vocab):
    """Rows stand in the middle of NaNs, and are drawn from by more threads than there are rows."""
    wide = torch.full((5, vocab), math.nan)
    wide[1:4] = 3 * torch.randn(3, vocab, generator=torch.Generator().manual_seed(9))
    rows = wide[1:4]
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for params in (plain(), plain(top_p=0.9), plain(top_k=3, min_p=0.01)):
            assert not differing(rows, [params] * 3, [0.1, 0.5, 0.999])
        logs = log_probabilities(rows, rows.argmax(dim=-1))
        assert torch.allclose(logs, torch.log_softmax(rows, dim=-1).amax(dim=-1), atol=1e-5)
    finally:
        torch.set_num_threads(before)
    assert wide[[0, 4]].isnan().all()
