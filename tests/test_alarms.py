"""Alarms are fed the metrics of steps, and told apart by what they ring for."""

from __future__ import annotations

import math

import pytest

from selfplay_gym import alarms
from selfplay_gym.alarms import DROUGHT, QUIET, WINDOW, Alarms

# A step of the shipped recipe, as it is on the way.
SOUND = {
    "rows": 472, "proposals": 24, "rejected/new": 6, "rejected/runs": 2, "no_verdict": 0, "no_gradient": 0.3,
    "tasks/always_solved": 0.27, "tasks/body_lines": 2.2, "tasks/shapes": 0.96, "entropy": 0.19, "unfinished": 0.002,
    "propose/deduction/admitted": 0.5, "mismatch/mean": 1e-6, "mismatch/max": 1e-4, "mismatch/kl": 0.0,
}  # fmt: skip

# What becomes of it, what is then said, and how soon.
FAILURES = {
    "retreat": ({"tasks/always_solved": 0.7, "tasks/body_lines": 1.2}, "fell from 2.2 to", WINDOW),
    "repeats": ({"rejected/new": 18}, "of the proposals repeat a task", WINDOW),
    "alike": ({"tasks/shapes": 0.1}, "distinct shapes", WINDOW),
    "entropy": ({"entropy": 0.02}, "entropy fell from 0.19 to", WINDOW),
    "no-gradient": ({"no_gradient": 0.95}, "of the rows have advantage 0", WINDOW),
    "unfinished": ({"unfinished": 0.6}, "are cut off at their limit", WINDOW),
    "no-verdict": ({"no_verdict": 30}, "of the rows have no verdict", alarms.BROKEN),
    "mismatch": ({"mismatch/mean": 0.06}, "differ from the trainer's by 0.06 a token", 1),
    "drought/deduction": ({"propose/deduction/admitted": 0.0}, "deduction has admitted no task", DROUGHT),
}


# What is not yet one of them.
NEARLY = {
    "retreat": {"tasks/always_solved": 0.59, "tasks/body_lines": 1.2},
    "repeats": {"rejected/new": 14},
    "alike": {"tasks/shapes": 0.36},
    "entropy": {"entropy": 0.06},
    "no-gradient": {"no_gradient": 0.79},
    "unfinished": {"unfinished": 0.24},
    "no-verdict": {"no_verdict": 23},
    "mismatch": {"mismatch/mean": 0.05},
}


def fresh() -> Alarms:
    return Alarms(["deduction"], mismatch_limit=0.05)


def feed(watching: Alarms, change: dict[str, float], steps: int) -> list[str]:
    return [sentence for _ in range(steps) for sentence in watching.saw({**SOUND, **change})]


def test_every_alarm_has_a_failure_here() -> None:
    named = [alarm.name for alarm in (*alarms.ALARMS, alarms.mismatch(1.0), alarms.drought("deduction"))]
    assert list(FAILURES) == named


def test_a_sound_run_is_left_alone() -> None:
    assert feed(fresh(), {}, 300) == []


@pytest.mark.parametrize("name", FAILURES)
def test_each_failure_rings_its_own_alarm_once_until_it_is_gone(name: str) -> None:
    change, said, soon = FAILURES[name]
    watching = fresh()
    assert feed(watching, {}, 2 * WINDOW) == []
    (sentence,) = feed(watching, change, soon)
    assert said in sentence
    assert feed(watching, change, 10 * WINDOW) == []
    assert feed(watching, {}, WINDOW + QUIET) == []
    (again,) = feed(watching, change, WINDOW)
    assert said in again


@pytest.mark.parametrize("name", NEARLY)
def test_below_its_limit_an_alarm_is_silent(name: str) -> None:
    watching = fresh()
    assert feed(watching, {}, WINDOW) + feed(watching, NEARLY[name], 2 * WINDOW) == []


@pytest.mark.parametrize("name", FAILURES)
def test_an_alarm_says_what_to_do(name: str) -> None:
    change, _, soon = FAILURES[name]
    watching = fresh()
    feed(watching, {}, WINDOW)
    (sentence,) = feed(watching, change, soon)
    assert sentence.count(": ") == 1 + sentence.count("in this one: ")
    assert "\n" not in sentence


def test_what_comes_and_goes_from_step_to_step_rings_once() -> None:
    watching = fresh()
    rung = [s for _ in range(50) for part in (0.2, 1e-6) for s in feed(watching, {"mismatch/mean": part}, 1)]
    assert len(rung) == 1


def test_easy_tasks_are_no_retreat_while_programs_grow() -> None:
    watching = fresh()
    for number in range(200):
        assert feed(watching, {"tasks/always_solved": 0.9, "tasks/body_lines": 1.5 + number / 100}, 1) == []


def test_shorter_programs_are_no_retreat_while_they_are_hard() -> None:
    watching = fresh()
    assert feed(watching, {}, WINDOW) == []
    assert feed(watching, {"tasks/body_lines": 1.0}, 5 * WINDOW) == []


def test_windows_are_full_before_they_are_judged() -> None:
    watching = fresh()
    assert feed(watching, {"no_gradient": 1.0}, WINDOW - 1) == []
    assert len(feed(watching, {"no_gradient": 1.0}, 1)) == 1


def test_a_broken_machine_is_told_of_at_once() -> None:
    assert len(feed(fresh(), {"no_verdict": 472}, 1)) == 1


@pytest.mark.parametrize("step", [{}, dict.fromkeys(SOUND, math.nan)])
def test_metrics_that_are_missing_or_no_numbers_ring_nothing_of_their_own(step: dict[str, float]) -> None:
    watching = fresh()
    rung = {sentence.split()[0] for _ in range(3 * WINDOW) for sentence in watching.saw(step)}
    assert rung == ({"the"} if step else {"deduction"})  # a mismatch that is no number; no task admitted


def test_a_resumed_run_says_nothing_twice() -> None:
    steps = [{**SOUND, "no_gradient": 1.0}] * (2 * WINDOW)
    whole, resumed = fresh(), fresh()
    assert len([s for step in steps for s in whole.saw(step)]) == 1
    for step in steps[:30]:  # what the run wrote before it was killed
        resumed.saw(step)
    assert [s for step in steps[30:] for s in resumed.saw(step)] == []
