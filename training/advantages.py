"""Advantages as pure array functions: reward minus its baseline, for each row of one batch.

A *row* is one completion. ``rewards`` is a float array ``(N,)`` in which NaN means no verdict: such rows get advantage
0 and leave every baseline untouched. ``kinds`` says which (role, family) a row belongs to, ``groups`` which prompt.

One estimator, `RoleBaselines`, carries something from batch to batch; a run keeps it in its checkpoints.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
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


# Without a past; the one that has one is made by `make_estimator`.
ESTIMATORS: dict[str, Estimator] = {
    "trr++": trr_plus_plus,
    "trr++-token": trr_plus_plus_token,
    "group": group,
    "group-centred": group_centred,
}


class RoleBaselines:
    """``rae``: reward minus a running mean of its (role, family), not divided by anything.

    Role-conditioned advantage estimation of SPIRAL (arXiv:2506.24119), which takes b <- decay * b + (1 - decay) * R for
    each trajectory, from b = 0 on, and R - b for its advantage. Here every row of a batch is compared with the b of the
    batches before, of which it is no part: then neither the order of rows nor a row's own reward moves its baseline.
    Afterwards b <- decay^n b + (1 - decay^n) mean of its n rows. The first batch of a kind, which has no b yet, is
    compared with its own mean, and not with a 0 that would call every right answer better than expected.

    >>> estimate = RoleBaselines(decay=0.5)
    >>> estimate(np.array([1.0, 0.0]), ["s", "s"], [0, 1], [1, 1]).tolist()
    [0.5, -0.5]
    >>> estimate(np.array([1.0]), ["s"], [0], [1]).tolist(), estimate.state()
    ([0.5], {'s': 0.75})

    Args:
        decay: How much of a baseline is left after one more row.
        state: What `state` returned.
    """

    def __init__(self, decay: float = 0.95, state: Mapping[str, float] | None = None) -> None:
        self.decay = decay
        self._baselines = dict(state or {})

    def __call__(
        self, rewards: Floats, kinds: Sequence[Hashable], groups: Sequence[Hashable], lengths: Sequence[int]
    ) -> Floats:
        """Return the advantages, and take the rewards into the baselines."""
        advantages = np.zeros(len(rewards))
        names = [_name(kind) for kind in kinds]
        for rows in _rows_by_part(rewards, names):
            name, mean = names[rows[0]], math.fsum(rewards[rows]) / len(rows)  # exact, so that no order changes it
            before = self._baselines.get(name, mean)
            advantages[rows] = rewards[rows] - before
            left = self.decay ** len(rows)
            self._baselines[name] = left * before + (1 - left) * mean
        return advantages

    def state(self) -> dict[str, float]:
        """Return the baselines by role and family, such as ``solve/deduction``."""
        return dict(self._baselines)


def _name(kind: Hashable) -> str:
    return "/".join(map(str, kind)) if isinstance(kind, tuple) else str(kind)


def make_estimator(name: str, decay: float = 0.95, state: Mapping[str, float] | None = None) -> Estimator:
    """Return the estimator of that name; ``decay`` and ``state`` are for the one that has a past."""
    return RoleBaselines(decay, state) if name == "rae" else ESTIMATORS[name]


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
