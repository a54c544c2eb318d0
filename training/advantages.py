"""Advantages as pure array functions: reward minus its baseline, for each row of one batch.

A *row* is one completion. ``rewards`` is a float array ``(N,)`` in which NaN means no verdict: such rows get advantage
0 and leave every baseline untouched. ``kinds`` says which (role, family) a row belongs to, ``groups`` which prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
EPSILON = 1e-4
"""Added to a standard deviation before dividing, as TRL's GRPO does."""


class Estimator(Protocol):
    """Maps rewards to advantages, both of shape ``(N,)``."""

    def __call__(
        self, rewards: Floats, kinds: Sequence[Hashable], groups: Sequence[Hashable], lengths: Sequence[int]
    ) -> Floats:
        """Return the advantages; rows whose reward is NaN get 0."""
        ...


def trr_plus_plus(
    rewards: Floats, kinds: Sequence[Hashable], groups: Sequence[Hashable], lengths: Sequence[int]
) -> Floats:
    """Task-relative REINFORCE++: whitened within each (role, family), over sequences (arXiv:2505.03335, Eq. 8).

    >>> trr_plus_plus(np.array([1.0, 0.0, 5.0]), ["a", "a", "b"], [0, 1, 2], [1, 1, 1]).round(3).tolist()
    [0.707, -0.707, 0.0]
    """
    return _apply(_whiten, rewards, kinds)


def trr_plus_plus_token(
    rewards: Floats, kinds: Sequence[Hashable], groups: Sequence[Hashable], lengths: Sequence[int]
) -> Floats:
    """Whitened within each (role, family) over *tokens*, so that long rows dominate the baseline.

    With ``L`` the lengths and ``N`` their sum: mean ``sum(L R) / N``, variance ``sum(L (R - mean)^2) / (N - 1)``. This
    is what the published code of Absolute Zero computes, not what its paper says.

    >>> trr_plus_plus_token(np.array([1.0, 0.0]), ["a", "a"], [0, 1], [3, 1]).round(3).tolist()
    [0.5, -1.5]
    """
    weights = np.maximum(np.asarray(lengths, dtype=float), 1.0)  # an empty row still ended: one token
    advantages = np.zeros(len(rewards))
    for rows in _rows_by_part(rewards, kinds):
        part, weight = rewards[rows], weights[rows]
        centred = part - (weight * part).sum() / weight.sum()
        spread = (weight * centred**2).sum() / max(weight.sum() - 1.0, 1.0)
        advantages[rows] = centred / np.sqrt(spread + 1e-8)
    return advantages


def group(rewards: Floats, kinds: Sequence[Hashable], groups: Sequence[Hashable], lengths: Sequence[int]) -> Floats:
    """Whitened within each prompt's group (GRPO, arXiv:2402.03300); a row alone in its group is compared by kind.

    A proposal prompt is sampled once, so proposers are compared with each other and solvers within their task.

    >>> group(np.array([1.0, 0.0, 3.0, 1.0]), ["s", "s", "p", "p"], [0, 0, 1, 2], [1] * 4).round(3).tolist()
    [0.707, -0.707, 0.707, -0.707]
    """
    return _apply(_whiten, rewards, _group_or_kind(rewards, kinds, groups))


def group_centred(
    rewards: Floats, kinds: Sequence[Hashable], groups: Sequence[Hashable], lengths: Sequence[int]
) -> Floats:
    """As `group`, but not divided by the deviation, which favours tasks that nearly all or nearly none pass.

    Source: Dr. GRPO, arXiv:2503.20783.
    """
    return _apply(lambda part: part - part.mean(), rewards, _group_or_kind(rewards, kinds, groups))


ESTIMATORS: dict[str, Estimator] = {
    "trr++": trr_plus_plus,
    "trr++-token": trr_plus_plus_token,
    "group": group,
    "group-centred": group_centred,
}


def _group_or_kind(rewards: Floats, kinds: Sequence[Hashable], groups: Sequence[Hashable]) -> list[Hashable]:
    sizes = Counter(g for g, reward in zip(groups, rewards, strict=True) if not np.isnan(reward))
    return [("group", g) if sizes[g] > 1 else ("kind", kind) for g, kind in zip(groups, kinds, strict=True)]


def _rows_by_part(rewards: Floats, parts: Sequence[Hashable]) -> list[list[int]]:
    rows: dict[Hashable, list[int]] = {}
    for row, part in enumerate(parts):
        if not np.isnan(rewards[row]):
            rows.setdefault(part, []).append(row)
    return list(rows.values())


def _apply(function: Callable[[Floats], Floats], rewards: Floats, parts: Sequence[Hashable]) -> Floats:
    advantages = np.zeros(len(rewards))
    for rows in _rows_by_part(rewards, parts):
        advantages[rows] = function(rewards[rows])
    return advantages


def _whiten(values: Floats) -> Floats:
    if len(values) < 2:
        return np.zeros(len(values))
    return np.asarray((values - values.mean()) / (values.std(ddof=1) + EPSILON))
