"""Scores with their uncertainty: intervals, pass@k and majority@k, and paired comparison of two policies.

The unit of every resampling is the *problem*: samples of one problem are alike, so counting each as an observation
would give intervals that are too narrow. Pure functions of their arguments and a seed; numpy alone.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selfplay_gym.errors import InvalidConfig

Floats = NDArray[np.float64]

BLOCK = 2**21
"""Random numbers drawn at once; bounds memory to some 16 MB whatever the number of problems."""

NOISE = 0.05
"""A difference whose p-value is not below is within noise."""

_FEW = 12  # problems whose flips are all tried
_MOST_SUMS = 2**14  # distinct sums of flipped differences that are counted one by one; beyond, flips are drawn
_LARGEST_DENOMINATOR = 1000  # of scores that are shares: those of up to so many samples or problems of a group


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

    @property
    def within_noise(self) -> bool:
        """Whether chance alone may well have made it: the interval holds 0, or the p-value is not below `NOISE`."""
        return self.low <= 0 <= self.high or self.p_value >= NOISE


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


def majority_at_k(votes: Sequence[tuple[int, float]], k: int, abstained: int = 0) -> float:
    """Return the expected score of the most frequent answer among k samples, drawn without replacement.

    Where several answers are as frequent, each is taken alike: by expectation, and not by the order of the samples. No
    subset is drawn; all are counted (self-consistency, arXiv:2203.11171; over subsets as pass@k is).

    Args:
        votes: For each distinct answer how many samples gave it, and its score.
        k: Samples that vote.
        abstained: Further samples, that gave no answer: they may be drawn and have no vote. Where only they are drawn
            the score is 0.

    >>> majority_at_k([(3, 1.0), (2, 0.0)], k=5), majority_at_k([(1, 1.0), (1, 0.0)], k=2)
    (1.0, 0.5)
    >>> majority_at_k([(2, 1.0), (1, 0.0)], k=1) == 2 / 3
    True

    Raises:
        InvalidConfig: ``k`` outside 1 to the number of samples, or a count below 1.
    """
    counts = [count for count, _ in votes]
    n = sum(counts) + abstained
    if abstained < 0 or any(count < 1 for count in counts):
        raise InvalidConfig(f"counts of answers must be at least 1, got {counts} and {abstained} without")
    if not 1 <= k <= n:
        raise InvalidConfig(f"k must be between 1 and n={n}, got {k}")
    won = {count: _subsets_won(counts, count, k, abstained) for count in {c for c, score in votes if score}}
    expected = sum((won[count] * Fraction(score) for count, score in votes if score), start=Fraction(0))
    return float(expected / math.comb(n, k))


def _subsets_won(counts: Sequence[int], own: int, k: int, abstained: int) -> Fraction:
    """Return in how many subsets of k an answer that ``own`` samples gave wins; of a tie of t answers it has 1/t."""
    others = list(counts)
    others.remove(own)
    won = Fraction(0)
    for most in range(1, min(own, k) + 1):
        # ways[drawn, tied]: how many ways there are to draw from the others so that none has more than `most`
        ways = {(drawn, 0): math.comb(abstained, drawn) for drawn in range(min(abstained, k - most) + 1)}
        for count in others:
            more: dict[tuple[int, int], int] = {}
            for (drawn, tied), number in ways.items():
                for taken in range(min(count, most, k - most - drawn) + 1):
                    place = drawn + taken, tied + (taken == most)
                    more[place] = more.get(place, 0) + number * math.comb(count, taken)
            ways = more
        ending = sum((Fraction(m, tied + 1) for (drawn, tied), m in ways.items() if drawn == k - most), Fraction(0))
        won += math.comb(own, most) * ending
    return won


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
    (Fisher 1935, section 21; two-sided). It counts all flips wherever their sums take few values: for few problems,
    and for scores that are 0 or 1, where it is McNemar's exact test, or shares of a few samples. Else flips are drawn,
    with the observed difference among them, so that it is never 0.

    >>> result = paired_difference([0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1])
    >>> round(result.difference, 3), result.low > 0, result.p_value
    (0.667, True, 0.125)

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


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm, Scand. J. Stat. 6, 1979, 65-70).

    That any of them is below a level although no hypothesis is wrong has at most that level's chance.

    >>> holm([0.01, 0.04, 0.03]), holm([0.04])
    ([0.03, 0.06, 0.06], [0.04])
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def _sign_flip(differences: Floats, seed: int, resamples: int) -> float:
    differences = differences[differences != 0]  # which no flip changes
    n = len(differences)
    if n <= _FEW:
        return 0.5**n * _reached(np.arange(2**n)[:, None] >> np.arange(n) & 1, differences)
    exact = _share_that_reaches(differences)
    if exact is not None:
        return exact
    rng = np.random.default_rng([seed, 1])
    drawn = sum(_reached(rng.integers(2, size=(size, n)), differences) for size in _blocks(n, resamples))
    return (1 + drawn) / (1 + resamples)


def _reached(flips: NDArray[np.int64], differences: Floats) -> int:
    """Return how many rows of flips give a sum as far from 0 as no flip at all does."""
    # Sums that are equal on paper differ in the last bits; without slack they would count as smaller.
    return int((np.abs((2 * flips - 1) @ differences) >= abs(differences.sum()) - 1e-9).sum())


def _share_that_reaches(differences: Floats) -> float | None:
    """Return the share of all flips that reach so far, sum by sum; None where there are too many different sums."""
    steps = _in_whole_steps(differences)
    if steps is None:
        return None
    sums, shares = np.zeros(1, dtype=np.int64), np.ones(1)
    for step in np.abs(steps):
        sums, places = np.unique(np.concatenate([sums + step, sums - step]), return_inverse=True)
        if len(sums) > _MOST_SUMS:
            return None
        shares = np.bincount(places.ravel(), np.concatenate([shares, shares])) / 2
    return min(1.0, float(shares[np.abs(sums) >= abs(int(steps.sum()))].sum()))


def _in_whole_steps(differences: Floats) -> NDArray[np.int64] | None:
    """Return differences of shares as whole multiples of the step that all have in common; None where there is none."""
    common = 1
    for value in np.unique(np.abs(differences)):
        common = math.lcm(common, Fraction(float(value)).limit_denominator(_LARGEST_DENOMINATOR).denominator)
        if common > 2**31:
            return None
    steps = np.rint(differences * common)
    # Shares are off by some last bits; numbers of another kind by more.
    if np.abs(differences * common - steps).max(initial=0.0) > 1e-12 * common:
        return None
    return steps.astype(np.int64)


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
