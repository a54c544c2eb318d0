import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfplay_gym.errors import InvalidConfig
from selfplay_gym.statistics import (
    bootstrap_mean,
    group_means,
    holm,
    majority_at_k,
    paired_difference,
    pass_at_k,
    wilson,
)


def counts() -> st.SearchStrategy[tuple[int, int]]:
    return st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_sample(n: int) -> None:
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        draws = list(itertools.combinations([1] * c + [0] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_holds_for_thousands_of_samples() -> None:
    assert pass_at_k(5000, 0, 2500) == 0.0
    assert pass_at_k(5000, 1, 2500) == pytest.approx(0.5)


@given(counts(), st.floats(0.5, 0.999))
def test_wilson_holds_the_share_and_mirrors(count: tuple[int, int], level: float) -> None:
    c, n = count
    low, high = wilson(c, n, level)
    assert 0.0 <= low <= c / n + 1e-12
    assert c / n - 1e-12 <= high <= 1.0
    assert wilson(n - c, n, level) == pytest.approx((1 - high, 1 - low))


@given(counts())
def test_wilson_widens_with_the_level(count: tuple[int, int]) -> None:
    narrow, wide = wilson(*count, level=0.8), wilson(*count, level=0.99)
    assert wide[0] <= narrow[0]
    assert narrow[1] <= wide[1]


def test_wilson_covers_the_true_share_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for share in (0.05, 0.3, 0.5):
        found = [wilson(int(c), 60) for c in rng.binomial(60, share, size=2000)]
        assert 0.92 < np.mean([low <= share <= high for low, high in found]) < 0.98


def test_bootstrap_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    means = rng.beta(2, 5, size=(300, 80))
    found = [bootstrap_mean(row, seed=i, resamples=500) for i, row in enumerate(means)]
    assert 0.90 < np.mean([low <= 2 / 7 <= high for low, high in found]) < 0.98


def test_a_seed_fixes_the_bootstrap() -> None:
    values = np.random.default_rng(1).random(40)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_the_bootstrap_agrees_with_itself_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).random(40)
    whole = bootstrap_mean(values, resamples=1000)
    monkeypatch.setattr("selfplay_gym.statistics.BLOCK", 40 * 7)
    assert bootstrap_mean(values, resamples=1000) == pytest.approx(whole)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_swapping_the_two_policies_mirrors_the_difference(pairs: list[tuple[float, float]]) -> None:
    before, after = zip(*pairs, strict=True)
    there = paired_difference(before, after, resamples=200)
    back = paired_difference(after, before, resamples=200)
    assert there.difference == pytest.approx(-back.difference)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.p_value == back.p_value


def test_no_difference_has_p_value_one() -> None:
    result = paired_difference([0.0, 1.0, 0.5], [0.0, 1.0, 0.5])
    assert (result.difference, result.low, result.high, result.p_value) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("n", [5, 14])
def test_the_sign_flip_p_value_is_the_share_of_all_flips(n: int) -> None:
    for seed in range(3):
        differences = np.random.default_rng(seed).integers(-4, 6, n) / 4
        flips = np.array(list(itertools.product((-1, 1), repeat=n))) @ differences
        exact = np.mean(np.abs(flips) >= abs(differences.sum()) - 1e-9)
        assert paired_difference(np.zeros(n), differences, resamples=10).p_value == pytest.approx(exact)


def test_flips_of_numbers_without_a_common_step_are_all_tried_if_few_and_else_drawn() -> None:
    differences = np.random.default_rng(0).normal(0.3, 1, 15)
    for n in (12, 15):
        flips = np.array(list(itertools.product((-1, 1), repeat=n)), dtype=np.int8) @ differences[:n]
        exact = np.mean(np.abs(flips) >= abs(differences[:n].sum()) - 1e-9)
        found = paired_difference(np.zeros(n), differences[:n], resamples=20_000).p_value
        assert found == pytest.approx(exact, abs=1e-12 if n == 12 else 0.01)
    drawn = [paired_difference(np.zeros(15), differences, seed, resamples=50).p_value for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]


@settings(max_examples=60)
@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=300))
def test_for_right_and_wrong_the_p_value_is_that_of_mcnemars_exact_test(changes: list[int]) -> None:
    lost, gained = changes.count(-1), changes.count(1)
    tail = sum(math.comb(lost + gained, i) for i in range(min(lost, gained) + 1))
    mcnemar = min(1.0, 2 * tail / 2 ** (lost + gained))
    before = [float(change < 0) for change in changes]
    after = [float(change > 0) for change in changes]
    assert paired_difference(before, after, resamples=10).p_value == pytest.approx(mcnemar, rel=1e-9)


def test_flips_of_very_many_problems_are_counted_in_a_moment() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 5, (2, 2000)) / 4
    assert 0 < paired_difference(before, after, resamples=1).p_value <= 1


@settings(max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_raises_p_values_keeps_their_order_and_leaves_a_single_one(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(
        old <= new <= min(1.0, len(p_values) * old) + 1e-12 for old, new in zip(p_values, corrected, strict=True)
    )
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [corrected[place] for place in order] == sorted(corrected)


# -- majority ----------------------------------------------------------------------------------------------------------


def answers() -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(["a", "b", "c", "d", ""]), min_size=1, max_size=7)


def votes_of(samples: list[str]) -> tuple[list[tuple[int, float]], int]:
    """Count the answers, "a" and "b" being right; an empty one is none."""
    counts = Counter(filter(None, samples))
    return [(count, float(answer in "ab")) for answer, count in counts.items()], samples.count("")


def score_of_majority(drawn: tuple[str, ...]) -> float:
    counts = Counter(filter(None, drawn))
    first = [answer for answer, count in counts.items() if count == max(counts.values())]
    return sum(answer in "ab" for answer in first) / len(first) if first else 0.0


@settings(max_examples=200)
@given(answers(), st.data())
def test_majority_at_k_is_the_mean_over_all_subsets_with_ties_shared(samples: list[str], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(samples)))
    draws = list(itertools.combinations(samples, k))
    expected = sum(map(score_of_majority, draws)) / len(draws)
    votes, abstained = votes_of(samples)
    assert majority_at_k(votes, k, abstained) == pytest.approx(expected)


@given(answers())
def test_majority_of_one_is_the_mean_score(samples: list[str]) -> None:
    votes, abstained = votes_of(samples)
    assert majority_at_k(votes, 1, abstained) == pytest.approx(sum(c * s for c, s in votes) / len(samples))


def test_a_majority_of_hundreds_of_samples_is_exact() -> None:
    assert majority_at_k([(129, 1.0), (127, 0.0)], 256) == 1.0
    assert majority_at_k([(128, 1.0), (128, 0.0)], 255) == pytest.approx(0.5)
    assert majority_at_k([(20, 1.0)] + [(1, 0.0)] * 44, 32) > 0.999


def test_the_p_value_is_small_under_a_true_null_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    p_values = [paired_difference(*rng.random((2, 40)), seed=i, resamples=300).p_value for i in range(300)]
    assert np.mean(np.array(p_values) < 0.05) < 0.09


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(3, 2),
        lambda: wilson(1, 2, level=1.0),
        lambda: pass_at_k(8, 1, 9),
        lambda: pass_at_k(8, 9, 1),
        lambda: majority_at_k([(2, 1.0)], 3),
        lambda: majority_at_k([(2, 1.0)], 0),
        lambda: majority_at_k([(0, 1.0), (2, 0.0)], 1),
        lambda: bootstrap_mean([]),
        lambda: bootstrap_mean([1.0, float("nan")]),
        lambda: bootstrap_mean([1.0], resamples=0),
        lambda: paired_difference([1.0], [1.0, 2.0]),
    ],
)
def test_impossible_arguments_are_refused(call: object) -> None:
    with pytest.raises(InvalidConfig):
        call()  # type: ignore[operator]


def test_group_means_come_in_the_order_of_the_groups_and_need_one_group_a_value() -> None:
    assert group_means([1.0, 0.0, 0.0, 1.0, 0.5], ["b", "a", "b", "b", "a"]) == pytest.approx([2 / 3, 0.25])
    with pytest.raises(ValueError, match="shorter"):
        group_means([1.0, 0.0], ["a"])
