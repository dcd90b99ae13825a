"""pass@k, and its intervals of 95 %. Never imports torch.

pass@k is the chance that at least one of k samples of a problem passes. `pass_at_k` estimates it from n samples
without bias (Chen et al. 2021, arXiv 2107.03374, section 2.1); the figure of a benchmark is the mean over its problems.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import EvaluationError

__all__ = ["Estimate", "bootstrap", "estimate", "pass_at_k", "wilson"]

# The 97.5 % quantile of the normal distribution: an interval of 95 % leaves out 2.5 % on each side.
_Z = 1.959963984540054
_RESAMPLES = 10_000
# Draws that are in memory at the same time: 8 MiB of each array.
_DRAWS = 1 << 20

Draws = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Estimate:
    """A share of 1, the ends of its interval of 95 %, and how that was made: wilson or bootstrap."""

    value: float
    low: float
    high: float
    method: str


def pass_at_k(n: int, passed: int, k: int) -> float:
    """The unbiased estimate 1 - C(n - passed, k) / C(n, k): the share of all choices of k samples with one that passes.

    In exact integers until the one division, so that no n is too large.

    Raises:
        EvaluationError: k is below 1 or above n, or `passed` is not within 0 and n.
    """
    if not 0 <= passed <= n:
        raise EvaluationError(f"{passed:,} of {n:,} samples cannot have passed")
    if not 1 <= k <= n:
        raise EvaluationError(
            f"pass@{k} needs at least {max(k, 1):,} samples of each problem, and there are {n:,}"
        )
    choices = math.comb(n, k)
    return (choices - math.comb(n - passed, k)) / choices


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """Wilson's interval of 95 % for a share (Wilson 1927): all p that the observed share is within 1.96 errors of.

    Unlike share +- error it stays within 0 and 1, and has a width where none or all succeed.

    Args:
        successes: from 0 to `trials`.
        trials: at least 1.
    """
    share = successes / trials
    spread = _Z * _Z / trials
    middle = share + spread / 2
    half = math.sqrt(spread * (share * (1 - share) + spread / 4))
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    # Rounding alone could leave the observed share outside where it is 0 or 1.
    return max(0.0, min(low, share)), min(1.0, max(high, share))


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """The percentile bootstrap's interval of 95 % for the mean of `values`, one for each problem.

    Whole problems are drawn, with replacement, 10,000 times: samples of one problem are no independent trials.
    The same number of values gives the same draws on every machine and with every release of numpy, since they come
    from integer arithmetic that is written out here.

    Args:
        values: at least one.
    """
    found = np.asarray(values, dtype=np.float64)
    count = len(found)
    rows = max(1, _DRAWS // count)
    means = np.empty(_RESAMPLES)
    for start in range(0, _RESAMPLES, rows):
        end = min(start + rows, _RESAMPLES)
        drawn = _indices(start * count, end * count, count)
        means[start:end] = found[drawn].reshape(end - start, count).mean(axis=1)
    means.sort()
    cut = _RESAMPLES // 40  # 2.5 %
    return float(means[cut]), float(means[-1 - cut])


def _indices(start: int, end: int, count: int) -> Draws:
    """Draws number `start` to `end` - 1 of a stream of indices below `count` (at most 2^32)."""
    high = _splitmix64(np.arange(start, end, dtype=np.uint64)) >> np.uint64(32)
    return (high * np.uint64(count)) >> np.uint64(32)


def _splitmix64(counters: Draws) -> Draws:
    """SplitMix64 (Steele, Lea, Flood 2014): the outputs with these numbers, from seed 0. Modulo 2^64."""
    state = (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def estimate(values: Sequence[float], *, single: bool) -> Estimate:
    """The mean of one value for each problem, with its interval.

    Args:
        values: from 0 to 1, at least one.
        single: whether each comes from one sample, so that it is a success or none: Wilson's interval then. Else the
            bootstrap's, unless all values are the same, which it takes for certainty: Wilson's over the problems then.
    """
    mean = math.fsum(values) / len(values)
    if single or min(values) == max(values):
        return Estimate(mean, *wilson(mean * len(values), len(values)), "wilson")
    return Estimate(mean, *bootstrap(values), "bootstrap")
