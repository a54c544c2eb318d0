import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfplay_gym.errors import InvalidConfig
from selfplay_gym.statistics import bootstrap_mean, group_means, paired_difference, pass_at_k, wilson


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


def test_the_sign_flip_p_value_is_the_share_of_all_flips() -> None:
    differences = np.array([0.5, -0.25, 1.0, 0.75, 0.125])
    flips = np.array(list(itertools.product((-1, 1), repeat=5))) @ differences
    exact = np.mean(np.abs(flips) >= differences.sum() - 1e-9)
    found = paired_difference(np.zeros(5), differences, resamples=40_000).p_value
    assert found == pytest.approx(exact, abs=0.01)


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
