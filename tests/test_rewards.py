"""Rewards: hand-computed values, bounds, symmetry, and what happens without a verdict."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_gym import rewards
from selfplay_gym.types import Verdict

RATES = st.floats(0, 1)
RIGHT, WRONG, UNFRAMED, NONE = Verdict(1.0), Verdict(0.0), Verdict(0.0, "format", well_formed=False), Verdict(None)


# At none, one, four, seven and all of eight attempts.
BY_HAND = {
    "absolute-zero": [0.0, 0.875, 0.5, 0.125, 0.0],
    "azr-code": [-0.5, 0.875, 0.5, 0.125, -0.5],
    "variance": [0.0, 0.4375, 1.0, 0.4375, 0.0],
    "peak": [0.0, 0.25, 1.0, 0.25, 0.0],
    "inverse": [1.0, 0.875, 0.5, 0.125, 0.0],
    "flat": [1.0, 1.0, 1.0, 1.0, 1.0],
}


@pytest.mark.parametrize("name", rewards.LEARNABILITY)
def test_learnability_at_the_rates_of_eight_attempts(name: str) -> None:
    assert [rewards.LEARNABILITY[name](solved / 8) for solved in (0, 1, 4, 7, 8)] == BY_HAND[name]


@given(RATES)
def test_an_admitted_task_pays_at_most_one_and_more_than_a_rejected_one(rate: float) -> None:
    for name, reward in rewards.LEARNABILITY.items():
        assert rewards.REJECTED < (-0.5 if name == "azr-code" else 0.0) <= reward(rate) <= 1.0, name


@given(RATES)
def test_variance_and_peak_do_not_tell_solved_from_unsolved(rate: float) -> None:
    assert rewards.variance(rate) == pytest.approx(rewards.variance(1 - rate))
    assert rewards.peak(rate) == pytest.approx(rewards.peak(1 - rate))


@given(RATES, RATES)
def test_within_the_ends_harder_pays_more(one: float, other: float) -> None:
    if 0 < one < other < 1:
        for name in ("absolute-zero", "azr-code", "inverse"):
            assert rewards.LEARNABILITY[name](one) >= rewards.LEARNABILITY[name](other), name


@given(RATES)
def test_the_published_code_differs_from_the_paper_at_the_ends_alone(rate: float) -> None:
    assert (rewards.azr_code(rate) == rewards.absolute_zero(rate)) is (0 < rate < 1)


@pytest.mark.parametrize(
    ("scheme", "right", "wrong", "unframed"), [("zero-one", 1.0, 0.0, 0.0), ("azr-code", 1.0, -0.5, -1.0)]
)
def test_solver_rewards(scheme: str, right: float, wrong: float, unframed: float) -> None:
    pay = rewards.SOLVER[scheme]
    assert [pay(verdict) for verdict in (RIGHT, WRONG, UNFRAMED, NONE)] == [right, wrong, unframed, None]


@pytest.mark.parametrize(("scheme", "expected"), [("zero-one", 0.0), ("azr-code", -1.0)])
def test_a_right_answer_in_bad_form_is_paid_for_its_form(scheme: str, expected: float) -> None:
    assert rewards.SOLVER[scheme](Verdict(1.0, well_formed=False)) == expected


@given(st.lists(st.sampled_from([RIGHT, WRONG, UNFRAMED, NONE])))
def test_attempts_without_a_verdict_leave_the_solve_rate_untouched(verdicts: list[Verdict]) -> None:
    judged = [verdict for verdict in verdicts if verdict is not NONE]
    assert rewards.solve_rate(verdicts) == rewards.solve_rate(judged)
    assert (rewards.solve_rate(verdicts) is None) is (not judged)
    if judged:
        assert rewards.solve_rate(verdicts) == judged.count(RIGHT) / len(judged)


def test_bonus_and_weight_by_hand() -> None:
    assert [rewards.count_bonus(earlier) for earlier in (0, 3, 8, 99)] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 10])
    # 4 p (1 - p), 1 where the rate is unknown, and 1 / sqrt(1 + n).
    weights = [rewards.curriculum_weight(rate, plays) for rate, plays in ((None, 0), (0.0, 3), (0.5, 3), (0.25, 8))]
    assert weights == pytest.approx([2, 1 / 2, 3 / 2, 3 / 4 + 1 / 3])


@given(st.integers(0, 10**6))
def test_the_novelty_bonus_falls_from_one_to_none(earlier: int) -> None:
    assert 0 < rewards.count_bonus(earlier + 1) < rewards.count_bonus(earlier) <= 1.0 == rewards.count_bonus(0)
