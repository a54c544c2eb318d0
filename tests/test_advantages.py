"""Advantages: hand-computed cases, and what must hold for any rewards."""

from __future__ import annotations

import json
import random
from collections.abc import Hashable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_gym.training.advantages import EPSILON, ESTIMATORS, Estimator, RoleBaselines, make_estimator
from selfplay_gym.training.config import ADVANTAGES

NAN = float("nan")


def fresh_baselines(
    rewards: np.ndarray, kinds: Sequence[Hashable], groups: Sequence[Hashable], lengths: Sequence[int]
) -> np.ndarray:
    """Return what ``rae`` makes of its first batch."""
    return RoleBaselines()(rewards, kinds, groups, lengths)


FIRST = {**ESTIMATORS, "rae": fresh_baselines}
ALL = pytest.mark.parametrize("estimate", FIRST.values(), ids=FIRST)
BY_KIND = ("trr++", "trr++-token")


class Rows:
    """One batch: proposers alone in their groups, solvers in groups of any size, some rows without a verdict."""

    def __init__(self, rewards: list[float], kinds: list[Hashable], groups: list[Hashable], lengths: list[int]) -> None:
        self.rewards, self.kinds, self.groups, self.lengths = rewards, kinds, groups, lengths

    def advantages(self, estimate: Estimator) -> np.ndarray:
        return estimate(np.array(self.rewards, dtype=float), self.kinds, self.groups, self.lengths)

    def pick(self, order: list[int]) -> Rows:
        return Rows(*([column[n] for n in order] for column in vars(self).values()))  # type: ignore[arg-type]

    def judged(self) -> list[int]:
        return [n for n, reward in enumerate(self.rewards) if reward == reward]

    def __repr__(self) -> str:
        return f"Rows{tuple(vars(self).values())}"


@st.composite
def rows(draw: st.DrawFn, gaps: bool = True) -> Rows:
    reward = st.sampled_from([-1.0, -0.5, 0.0, 0.125, 0.5, 0.875, 1.0] + [NAN] * gaps)
    role, family = st.sampled_from(["propose", "solve"]), st.sampled_from(["deduction", "abduction"])
    count = draw(st.integers(1, 12))
    kinds: list[Hashable] = [(draw(role), draw(family)) for _ in range(count)]
    groups: list[Hashable] = [
        n if kind[0] == "propose" else (kind, draw(st.integers(0, 2))) for n, kind in enumerate(kinds)
    ]  # type: ignore[index]
    return Rows([draw(reward) for _ in kinds], kinds, groups, [draw(st.integers(0, 40)) for _ in kinds])


def test_every_estimator_can_be_configured() -> None:
    assert set(FIRST) == set(ADVANTAGES)
    assert all(callable(make_estimator(name)) for name in ADVANTAGES)


def by_hand(name: str, **batch: list) -> list[float]:  # type: ignore[type-arg]
    return Rows(**batch).advantages(ESTIMATORS[name]).tolist()


def test_trr_whitens_each_role_and_family() -> None:
    # Solvers: mean 0.5, deviation sqrt(4 * 0.25 / 3) = 0.57735. Proposers: mean 0, deviation sqrt(2).
    batch = {
        "rewards": [1.0, 1.0, -1.0, 0.0, 0.0, 1.0],
        "kinds": ["s", "p", "p", "s", "s", "s"],
        "groups": [0, 1, 2, 0, 3, 3],
        "lengths": [1, 2, 3, 4, 5, 6],
    }
    high, proposer = 0.5 / (3**-0.5 + EPSILON), 1 / (2**0.5 + EPSILON)
    assert by_hand("trr++", **batch) == pytest.approx([high, proposer, -proposer, -high, -high, high])


def test_trr_token_weighs_rows_by_their_length() -> None:
    # mean (3*1 + 1*0) / 4 = 3/4; variance (3 * 1/16 + 1 * 9/16) / 3 = 1/4: advantages 1/4 / 1/2 and -3/4 / 1/2.
    batch = {"rewards": [1.0, 0.0], "kinds": ["s", "s"], "groups": [0, 0], "lengths": [3, 1]}
    assert by_hand("trr++-token", **batch) == pytest.approx([0.5, -1.5])
    # mean (2*1 + 6*(-0.5) + 2*(-1)) / 10 = -0.3; variance (2*1.69 + 6*0.04 + 2*0.49) / 9 = 4.6 / 9.
    batch = {"rewards": [1.0, -0.5, -1.0], "kinds": ["s"] * 3, "groups": [0, 0, 0], "lengths": [2, 6, 2]}
    deviation = (4.6 / 9) ** 0.5
    assert by_hand("trr++-token", **batch) == pytest.approx([1.3 / deviation, -0.2 / deviation, -0.7 / deviation])


def test_trr_token_is_what_whitening_every_token_gives() -> None:
    rewards, lengths = [1.0, 0.0, -0.5, 1.0], [7, 3, 9, 1]
    tokens = np.repeat(rewards, lengths)
    whitened = (np.array(rewards) - tokens.mean()) / np.sqrt(tokens.var(ddof=1) + 1e-8)
    batch = {"rewards": rewards, "kinds": ["s"] * 4, "groups": [0] * 4, "lengths": lengths}
    assert by_hand("trr++-token", **batch) == pytest.approx(whitened.tolist())


def test_group_compares_attempts_at_one_task_and_proposals_with_each_other() -> None:
    batch = {
        "rewards": [1.0, 0.0, 0.0, 0.0, 0.875, -1.0],
        "kinds": ["s", "s", "s", "s", "p", "p"],
        "groups": ["a", "a", "b", "b", "c", "d"],
        "lengths": [1] * 6,
    }
    solver, proposer = 0.5 / (0.5**0.5 + EPSILON), 0.9375 / (1.875 / 2**0.5 + EPSILON)
    assert by_hand("group", **batch) == pytest.approx([solver, -solver, 0, 0, proposer, -proposer])
    assert by_hand("group-centred", **batch) == pytest.approx([0.5, -0.5, 0, 0, 0.9375, -0.9375])


@ALL
@given(batch=rows())
def test_every_part_has_mean_zero(estimate: Estimator, batch: Rows) -> None:
    advantages = batch.advantages(estimate)
    token = estimate is ESTIMATORS["trr++-token"]
    weights = np.maximum(batch.lengths, 1) if token else np.ones(len(advantages))
    for kind in set(batch.kinds):
        part = [n for n in batch.judged() if batch.kinds[n] == kind]
        assert np.dot(advantages[part], weights[part]) == pytest.approx(0, abs=1e-6)


@ALL
@given(batch=rows(), data=st.data())
def test_the_order_of_rows_does_not_matter(estimate: Estimator, batch: Rows, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(batch.rewards))))
    expected = batch.advantages(estimate)[order]
    assert batch.pick(order).advantages(estimate) == pytest.approx(expected, abs=1e-6)


@ALL
@given(batch=rows())
def test_rows_without_a_verdict_get_nothing_and_change_nothing(estimate: Estimator, batch: Rows) -> None:
    advantages = batch.advantages(estimate)
    judged = batch.judged()
    assert np.isfinite(advantages).all()
    assert all(advantages[n] == 0 for n in range(len(advantages)) if n not in judged)
    assert batch.pick(judged).advantages(estimate).tolist() == advantages[judged].tolist()


@ALL
@given(batch=rows(), shift=st.floats(-100, 100))
def test_a_constant_added_to_all_rewards_changes_nothing(estimate: Estimator, batch: Rows, shift: float) -> None:
    moved = Rows([reward + shift for reward in batch.rewards], batch.kinds, batch.groups, batch.lengths)
    assert moved.advantages(estimate) == pytest.approx(batch.advantages(estimate), abs=1e-6)


@pytest.mark.parametrize("name", ["trr++", "trr++-token", "group"])
@given(batch=rows(), scale=st.floats(0.1, 100))
def test_whitened_advantages_do_not_depend_on_the_scale(name: str, batch: Rows, scale: float) -> None:
    scaled = Rows([reward * scale for reward in batch.rewards], batch.kinds, batch.groups, batch.lengths)
    # Up to what is added to the deviation, relative to the smallest deviation of these rewards.
    assert scaled.advantages(ESTIMATORS[name]) == pytest.approx(batch.advantages(ESTIMATORS[name]), rel=0.03, abs=1e-6)


@pytest.mark.parametrize("name", ["group-centred", "rae"])
@given(batch=rows(), scale=st.floats(0.1, 100))
def test_centred_advantages_grow_with_the_rewards(name: str, batch: Rows, scale: float) -> None:
    estimate = FIRST[name]
    scaled = Rows([reward * scale for reward in batch.rewards], batch.kinds, batch.groups, batch.lengths)
    assert scaled.advantages(estimate) == pytest.approx(scale * batch.advantages(estimate), abs=1e-6)


@ALL
@given(batch=rows(gaps=False), factor=st.integers(2, 3))
def test_only_the_token_estimator_looks_at_lengths(estimate: Estimator, batch: Rows, factor: int) -> None:
    longer = Rows(batch.rewards, batch.kinds, batch.groups, [factor * n + i for i, n in enumerate(batch.lengths)])
    if estimate is not ESTIMATORS["trr++-token"]:
        assert longer.advantages(estimate).tolist() == batch.advantages(estimate).tolist()


@ALL
@pytest.mark.parametrize("reward", [0.0, 0.1, 1.0, -1.0])
@pytest.mark.parametrize("lengths", [[0, 0, 0], [5, 1, 9]])
def test_equal_rewards_teach_nothing(estimate: Estimator, reward: float, lengths: list[int]) -> None:
    batch = Rows([reward] * 3, ["s"] * 3, ["a"] * 3, lengths)
    assert batch.advantages(estimate) == pytest.approx([0, 0, 0], abs=1e-9)


@ALL
def test_a_row_alone_teaches_nothing(estimate: Estimator) -> None:
    assert Rows([0.7], ["s"], ["a"], [3]).advantages(estimate) == pytest.approx([0], abs=1e-9)
    assert Rows([], [], [], []).advantages(estimate).tolist() == []
    assert Rows([NAN, NAN], ["s", "s"], ["a", "a"], [3, 4]).advantages(estimate).tolist() == [0, 0]


@ALL
def test_a_part_does_not_feel_another(estimate: Estimator) -> None:
    kinds, groups = ["s", "s", "p", "p"], ["a", "a", "b", "c"]
    one = Rows([1, 0, 1, 0], kinds, groups, [1] * 4).advantages(estimate)
    other = Rows([1, 0, 50, -7], kinds, groups, [1] * 4).advantages(estimate)
    assert one[:2].tolist() == other[:2].tolist()
    assert one[2:].tolist() != [0, 0]


@ALL
@given(batch=rows())
def test_what_roles_families_and_prompts_are_called_changes_nothing(estimate: Estimator, batch: Rows) -> None:
    kinds: list[Hashable] = [("other", kind) for kind in batch.kinds]
    groups: list[Hashable] = [("other", group) for group in batch.groups]
    renamed = Rows(batch.rewards, kinds, groups, batch.lengths)
    assert renamed.advantages(estimate).tolist() == batch.advantages(estimate).tolist()


@ALL
@given(batch=rows())
def test_advantages_turn_with_the_rewards(estimate: Estimator, batch: Rows) -> None:
    turned = Rows([-reward for reward in batch.rewards], batch.kinds, batch.groups, batch.lengths)
    assert turned.advantages(estimate) == pytest.approx(-batch.advantages(estimate), abs=1e-9)


# -- an estimator with a past ------------------------------------------------------------------------------------------


def test_role_baselines_by_hand() -> None:
    estimate = RoleBaselines(decay=0.5)
    first = Rows([1.0, 0.0, 1.0, NAN, -1.0], ["s", "s", "s", "s", "p"], [0, 0, 1, 1, 2], [1] * 5)
    assert first.advantages(estimate) == pytest.approx([1 / 3, -2 / 3, 1 / 3, 0, 0])
    assert estimate.state() == pytest.approx({"s": 2 / 3, "p": -1.0})
    # s: two rows of mean 1/2 leave a quarter of the baseline: 2/3 / 4 + 3/4 * 1/2. p: -1/2 + 0.875/2. q is new.
    second = Rows([1.0, 0.0, 0.875, 0.5], ["s", "s", "p", "q"], [0, 1, 2, 3], [1] * 4)
    assert second.advantages(estimate) == pytest.approx([1 / 3, -2 / 3, 1.875, 0])
    assert estimate.state() == pytest.approx({"s": 1 / 6 + 3 / 8, "p": -0.0625, "q": 0.5})
    third = Rows([NAN, 0.0], ["s", "q"], [0, 1], [1, 1])
    assert third.advantages(estimate) == pytest.approx([0, -0.5])
    assert estimate.state()["s"] == pytest.approx(1 / 6 + 3 / 8)


def test_with_equal_rewards_a_batch_moves_a_baseline_as_its_rows_would_one_by_one() -> None:
    together, apart = RoleBaselines(0.9, {"s": 0.25}), RoleBaselines(0.9, {"s": 0.25})
    Rows([1.0] * 7, ["s"] * 7, list(range(7)), [1] * 7).advantages(together)
    for _ in range(7):
        Rows([1.0], ["s"], [0], [1]).advantages(apart)
    expected = 0.25
    for _ in range(7):
        expected = 0.9 * expected + 0.1 * 1.0  # as published
    for estimate in (together, apart):
        assert estimate.state() == pytest.approx({"s": expected})


def test_baselines_are_kept_by_role_and_family_and_come_back_from_json_bit_for_bit() -> None:
    estimate = RoleBaselines()
    kinds: list[Hashable] = [("solve", "deduction"), ("propose", "deduction"), ("solve", "deduction")]
    batch = Rows([0.1, 0.7, 1 / 3], kinds, [0, 1, 2], [1] * 3)
    batch.advantages(estimate)
    assert set(estimate.state()) == {"solve/deduction", "propose/deduction"}
    again = make_estimator("rae", 0.95, json.loads(json.dumps(estimate.state())))
    assert isinstance(again, RoleBaselines)
    for _ in range(3):
        assert batch.advantages(again).tolist() == batch.advantages(estimate).tolist()
    assert again.state() == estimate.state()


histories = st.lists(rows(), min_size=1, max_size=4)


def after(
    batches: list[Rows], move: float = 0.0, scale: float = 1.0, decay: float = 0.95
) -> tuple[list[float], RoleBaselines]:
    estimate = RoleBaselines(decay)
    found: list[float] = []
    for batch in batches:
        moved = Rows([scale * reward + move for reward in batch.rewards], batch.kinds, batch.groups, batch.lengths)
        found += moved.advantages(estimate).tolist()
    return found, estimate


@given(histories, st.floats(-100, 100), st.floats(0.1, 100))
def test_over_many_batches_a_constant_changes_nothing_and_a_scale_scales(
    batches: list[Rows], move: float, scale: float
) -> None:
    plain, _ = after(batches)
    assert after(batches, move=move)[0] == pytest.approx(plain, abs=1e-6)
    assert after(batches, scale=scale)[0] == pytest.approx([scale * value for value in plain], abs=1e-6)


@given(histories, st.randoms())
def test_the_order_within_a_batch_moves_no_baseline(batches: list[Rows], rng: random.Random) -> None:
    shuffled = [batch.pick(rng.sample(range(len(batch.rewards)), len(batch.rewards))) for batch in batches]
    assert after(shuffled)[1].state() == after(batches)[1].state()


@given(histories, st.floats(0, 0.999))
def test_a_baseline_stays_between_the_rewards_it_has_seen(batches: list[Rows], decay: float) -> None:
    rewards = [reward for batch in batches for reward in batch.rewards if reward == reward]
    for value in after(batches, decay=decay)[1].state().values():
        assert min(rewards) - 1e-12 <= value <= max(rewards) + 1e-12


@given(rows())
def test_a_row_without_a_verdict_moves_no_baseline(batch: Rows) -> None:
    with_gaps, without = RoleBaselines(), RoleBaselines()
    batch.advantages(with_gaps)
    batch.pick(batch.judged()).advantages(without)
    assert with_gaps.state() == without.state()
