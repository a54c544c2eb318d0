"""Scores with their uncertainty: intervals, unbiased pass@k, and paired comparison of two policies.

The unit of every resampling is the *problem*: samples of one problem are alike, so counting each as an observation
would give intervals that are too narrow. Pure functions of their arguments and a seed; numpy alone.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selfplay_gym.errors import InvalidConfig

Floats = NDArray[np.float64]

BLOCK = 2**21
"""Random numbers drawn at once; bounds memory to some 16 MB whatever the number of problems."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A paired difference of means and how sure it is.

    Attributes:
        difference: Mean of after minus before.
        low: Lower end of the bootstrap interval.
        high: Upper end.
        p_value: Two-sided, of the hypothesis that neither is better (sign-flip test).
    """

    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems.

    Attributes:
        n: Problems.
        value: Their mean.
        interval: Its confidence interval, low and high end.
    """

    n: int
    value: float
    interval: tuple[float, float]


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the score interval of a share (Wilson, J. Am. Stat. Assoc. 22, 1927, 209-212).

    Unlike the textbook interval it stays within [0, 1] and has positive width at 0 and n successes.

    >>> low, high = wilson(8, 10)
    >>> round(low, 4), round(high, 4)
    (0.4902, 0.9433)
    >>> wilson(0, 0)
    (0.0, 1.0)

    Raises:
        InvalidConfig: ``successes`` outside 0 to ``n``, or a level outside (0, 1).
    """
    if not 0 <= successes <= n:
        raise InvalidConfig(f"successes must be between 0 and n={n}, got {successes}")
    z = NormalDist().inv_cdf(0.5 + _level(level) / 2)
    if n == 0:
        return 0.0, 1.0
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    # At the ends the exact bound is 0 or 1; rounding would leave it beside that.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the chance that k of n samples, drawn without replacement, hold one of the c right ones.

    ``1 - C(n - c, k) / C(n, k)``, as a product that cannot overflow (Chen et al., arXiv:2107.03374, section 2.1).

    >>> pass_at_k(n=10, c=5, k=1), pass_at_k(n=4, c=2, k=3)
    (0.5, 1.0)

    Raises:
        InvalidConfig: ``c`` outside 0 to ``n``, or ``k`` outside 1 to ``n``.
    """
    if not 0 <= c <= n:
        raise InvalidConfig(f"c must be between 0 and n={n}, got {c}")
    if not 1 <= k <= n:
        raise InvalidConfig(f"k must be between 1 and n={n}, got {k}")
    missed = 1.0
    for i in range(k):
        missed *= max(0, n - c - i) / (n - i)
    return 1.0 - missed


def bootstrap_mean(
    values: ArrayLike, seed: int = 0, level: float = 0.95, resamples: int = 10_000
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean over problems (Efron & Tibshirani 1993, chapter 13).

    Args:
        values: One number a problem, such as its mean score over samples; shape ``(problems,)``.
        seed: Of the resampling; the same seed gives the same interval.
        level: Coverage aimed at.
        resamples: Bootstrap draws.

    >>> low, high = bootstrap_mean([0.0, 1.0] * 50)
    >>> round(low, 1), round(high, 1)
    (0.4, 0.6)
    """
    return _percentiles(_bootstrap_means(_values(values), seed, resamples), level)


def mean_with_interval(values: ArrayLike, seed: int = 0, level: float = 0.95) -> Estimate:
    """Return the mean of one score in [0, 1] a problem, with the interval that suits it.

    Wilson's where every score is 0 or 1, else the bootstrap; and Wilson's again, with the sum as count, where all
    problems score the same, since a bootstrap then has no width.

    >>> estimate = mean_with_interval([1.0, 0.0, 1.0, 1.0])
    >>> estimate.n, estimate.value, [round(end, 2) for end in estimate.interval]
    (4, 0.75, [0.3, 0.95])
    """
    array = _values(values)
    counts = bool(np.isin(array, (0.0, 1.0)).all()) or np.ptp(array) == 0
    total = min(float(array.sum()), float(len(array)))
    interval = wilson(total, len(array), level) if counts else bootstrap_mean(array, seed, level)
    return Estimate(len(array), float(array.mean()), interval)


def group_means(values: Sequence[float], groups: Sequence[Hashable]) -> list[float]:
    """Return the mean of each group's values, in the order in which the groups first occur.

    Values of one group are alike, so an interval is one over such means.

    >>> group_means([1.0, 0.0, 1.0], ["a", "a", "b"])
    [0.5, 1.0]
    """
    members: dict[Hashable, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        members.setdefault(group, []).append(value)
    return [sum(found) / len(found) for found in members.values()]


def paired_difference(
    before: ArrayLike, after: ArrayLike, seed: int = 0, level: float = 0.95, resamples: int = 10_000
) -> Interval:
    """Compare two policies on the same problems, in the same order.

    The interval is a percentile bootstrap over problems. The p-value is that of the sign-flip randomisation test
    (Fisher 1935, section 21; two-sided, with the observed difference counted among the draws, so never 0).

    >>> result = paired_difference([0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1])
    >>> round(result.difference, 3), result.low > 0
    (0.667, True)

    Raises:
        InvalidConfig: Different lengths, no problem at all, or a value that is no finite number.
    """
    first, second = _values(before), _values(after)
    if first.shape != second.shape:
        raise InvalidConfig(f"paired values need equal lengths, got {len(first)} and {len(second)}")
    differences = second - first
    low, high = _percentiles(_bootstrap_means(differences, seed, resamples), level)
    p_value = _sign_flip(differences, seed, resamples)
    return Interval(float(differences.mean()), low, high, p_value)


def _bootstrap_means(values: Floats, seed: int, resamples: int) -> Floats:
    rng = np.random.default_rng(seed)
    sizes = _blocks(len(values), resamples)
    return np.concatenate([values[rng.integers(len(values), size=(s, len(values)))].mean(axis=1) for s in sizes])


def _sign_flip(differences: Floats, seed: int, resamples: int) -> float:
    rng = np.random.default_rng([seed, 1])
    # Sums that are equal on paper differ in the last bits; without slack they would count as smaller.
    observed = abs(differences.sum()) - 1e-9
    reached = 0
    for size in _blocks(len(differences), resamples):
        signs = rng.integers(2, size=(size, len(differences))) * 2 - 1
        reached += int((np.abs(signs @ differences) >= observed).sum())
    return (1 + reached) / (1 + resamples)


def _blocks(width: int, resamples: int) -> Iterator[int]:
    if resamples < 1:
        raise InvalidConfig(f"resamples must be at least 1, got {resamples}")
    rows = max(1, BLOCK // width)
    for done in range(0, resamples, rows):
        yield min(rows, resamples - done)


def _percentiles(means: Floats, level: float) -> tuple[float, float]:
    tail = (1 - _level(level)) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise InvalidConfig(f"level must be between 0 and 1, both excluded, got {level}")
    return level


def _values(values: ArrayLike | Sequence[float]) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise InvalidConfig(f"expected one number a problem, at least one, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise InvalidConfig("every value must be a finite number; leave problems without a verdict out")
    return array
