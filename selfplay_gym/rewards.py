"""What proposers and solvers are paid. Pure functions; each formula with its source.

``solve_rate`` is the share of a task's attempts that passed, over the attempts that have a verdict.
"""

from __future__ import annotations

from collections.abc import Callable

from selfplay_gym.types import Verdict


def absolute_zero(solve_rate: float) -> float:
    """1 - p for tasks solved sometimes but not always, else 0 (Absolute Zero, arXiv:2505.03335, Eq. 4).

    >>> absolute_zero(0.25), absolute_zero(0.0), absolute_zero(1.0)
    (0.75, 0.0, 0.0)
    """
    return 1.0 - solve_rate if 0.0 < solve_rate < 1.0 else 0.0


def azr_code(solve_rate: float) -> float:
    """As `absolute_zero`, but -0.5 at the ends, as the published code of Absolute Zero pays.

    >>> azr_code(0.25), azr_code(0.0), azr_code(1.0)
    (0.75, -0.5, -0.5)
    """
    return 1.0 - solve_rate if 0.0 < solve_rate < 1.0 else -0.5


def variance(solve_rate: float) -> float:
    """4 p (1 - p): the variance of a pass, scaled to 1 at p = 1/2.

    >>> variance(0.5), variance(0.25)
    (1.0, 0.75)
    """
    return 4.0 * solve_rate * (1.0 - solve_rate)


def peak(solve_rate: float) -> float:
    """1 - 2 |p - 1/2| (R-Zero, arXiv:2508.05004).

    >>> peak(0.5), peak(0.25), peak(1.0)
    (1.0, 0.5, 0.0)
    """
    return 1.0 - 2.0 * abs(solve_rate - 0.5)


def inverse(solve_rate: float) -> float:
    """1 - p, tasks that nobody solves included (an option of the published code of Absolute Zero).

    >>> inverse(0.0), inverse(0.75)
    (1.0, 0.25)
    """
    return 1.0 - solve_rate


def flat(solve_rate: float) -> float:
    """1 for any admitted task: the ablation in which difficulty earns nothing.

    >>> flat(0.0)
    1.0
    """
    return 1.0


LEARNABILITY: dict[str, Callable[[float], float]] = {
    "absolute-zero": absolute_zero,
    "azr-code": azr_code,
    "variance": variance,
    "peak": peak,
    "inverse": inverse,
    "flat": flat,
}

REJECTED = -1.0
"""Reward of a proposal that is badly formatted or refused by the gate (Absolute Zero, Eq. 6)."""


def solver_zero_one(verdict: Verdict) -> float | None:
    """1 right and well formed, 0 otherwise, None without a verdict.

    >>> solver_zero_one(Verdict(1.0)), solver_zero_one(Verdict(0.0)), solver_zero_one(Verdict(None))
    (1.0, 0.0, None)
    """
    return verdict.score if verdict.score is None or verdict.well_formed else 0.0


def solver_azr_code(verdict: Verdict) -> float | None:
    """1 right, -0.5 wrong, -1 badly formatted (published code of Absolute Zero), None without a verdict.

    >>> solver_azr_code(Verdict(0.0)), solver_azr_code(Verdict(0.0, well_formed=False))
    (-0.5, -1.0)
    """
    if verdict.score is None:
        return None
    if not verdict.well_formed:
        return -1.0
    return verdict.score if verdict.passed else -0.5


SOLVER: dict[str, Callable[[Verdict], float | None]] = {"zero-one": solver_zero_one, "azr-code": solver_azr_code}


def count_bonus(earlier: int) -> float:
    """1 / sqrt(1 + n) for the n earlier tasks of the same shape (count-based exploration, arXiv:1606.01868).

    >>> count_bonus(0), count_bonus(3)
    (1.0, 0.5)
    """
    return float((1 + earlier) ** -0.5)


def curriculum_weight(solve_rate: float | None, plays: int) -> float:
    """4 p (1 - p) + 1 / sqrt(1 + n): how much a task that was played n times is worth playing again.

    The first part is how much its answers vary (sampling for learnability, arXiv:2408.15099), scaled to 1 at p = 1/2,
    which is also what a task counts that was never played; the second is the bonus of `count_bonus`, without which a
    task that was once solved always or never would not be looked at again.

    >>> curriculum_weight(0.5, 0), curriculum_weight(1.0, 3), curriculum_weight(0.25, 3), curriculum_weight(None, 0)
    (2.0, 0.5, 1.25, 2.0)
    """
    return (1.0 if solve_rate is None else variance(solve_rate)) + count_bonus(plays)


def solve_rate(verdicts: list[Verdict]) -> float | None:
    """Return the share of verdicts that passed, leaving out those without a score; None when none has one.

    >>> solve_rate([Verdict(1.0), Verdict(0.0), Verdict(None)])
    0.5
    """
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    return sum(scores) / len(scores) if scores else None
