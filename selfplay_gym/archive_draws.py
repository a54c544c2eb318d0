"""How tasks are drawn: from ranges of positions, by integers alone, so that the cost does not grow with the ranges.

A spot is a family and a position among its tasks; the live spots of each family are one range. All draws are without
repeats, and functions of ``live`` and the state of ``rng``.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping

Live = Mapping[str, range]
Spot = tuple[str, int]


def uniform(live: Live, n: int, rng: random.Random) -> list[Spot]:
    """Draw distinct (family, position), each live one alike."""
    total = sum(map(len, live.values()))
    return [_locate(live, index) for index in rng.sample(range(total), min(n, total))]


def _locate(live: Live, index: int) -> Spot:
    for family, positions in live.items():
        if index < len(positions):
            return family, positions[index]
        index -= len(positions)
    raise IndexError(index)


def recency(live: Live, n: int, rng: random.Random) -> list[Spot]:
    """Draw distinct (family, position): families as in `uniform`, newer positions more often, in random order."""
    share = Counter(family for family, _ in uniform(live, n, rng))
    spots = [
        (family, positions[rank - 1])
        for family, positions in live.items()
        for rank in _recent_ranks(len(positions), share[family], rng)
    ]
    rng.shuffle(spots)
    return spots


def _recent_ranks(total: int, n: int, rng: random.Random) -> list[int]:
    """Draw ``n`` distinct ranks of 1 to ``total``, one after the other, rank k with weight k among those left."""
    if total < 4 * n:
        # Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir": the n greatest u ** (1 / weight).
        return sorted(range(1, total + 1), key=lambda rank: rng.random() ** (1 / rank), reverse=True)[:n]
    # Here the ranks already drawn weigh at most 1 - (3/4)^2 of all, so that fewer than half of the draws repeat one.
    ranks: dict[int, None] = {}
    while len(ranks) < n:
        ranks[_rank_at(rng.randrange(total * (total + 1) // 2))] = None
    return list(ranks)


def _rank_at(weight: int) -> int:
    """Return the least rank k with 1 + 2 + ... + k above ``weight``, in exact arithmetic.

    >>> [_rank_at(weight) for weight in range(7)]
    [1, 2, 2, 3, 3, 3, 4]
    """
    return (math.isqrt(8 * weight + 1) + 1) // 2


def by_weight(live: Live, n: int, rng: random.Random, weigh: Callable[[Spot], float], most: float) -> list[Spot]:
    """Draw spots one after the other, each by its weight, at most ``most``, among those left.

    One drawn uniformly is taken with a chance in proportion to its weight: how many are weighed depends on how far
    ``most`` is above the others, and not on how many there are.
    """
    total = sum(map(len, live.values()))
    if total < 4 * n:
        weights = {spot: weigh(spot) for spot in (_locate(live, index) for index in range(total))}
        # Efraimidis and Spirakis, as in `_recent_ranks`
        return sorted(weights, key=lambda spot: rng.random() ** (1 / weights[spot]), reverse=True)[:n]
    drawn: dict[Spot, None] = {}
    while len(drawn) < n:
        spot = _locate(live, rng.randrange(total))
        if rng.random() * most < weigh(spot):
            drawn[spot] = None
    return list(drawn)
