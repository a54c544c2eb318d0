"""Intrinsic extras: hand-computed values, laws that hold for any programs, and that they cost nothing when off."""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Iterator
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_gym import intrinsic, programs
from selfplay_gym.archive import Archive
from selfplay_gym.errors import InvalidConfig
from selfplay_gym.protocols import Executor
from selfplay_gym.referee import Referee, RewardConfig
from selfplay_gym.registry import make_family
from selfplay_gym.tasks import nano_programs
from selfplay_gym.types import Task, Verdict

HALF = [Verdict(1.0), Verdict(0.0)]
PROGRAMS = [nano_programs.random_program(1 + n % 4, random.Random(n)).source for n in range(40)]
SOURCES = st.sampled_from(PROGRAMS)


def function(*lines: str) -> str:
    return "def f(x):\n" + "".join(f"    {line}\n" for line in lines)


# -- complexity --------------------------------------------------------------------------------------------------------

COGNITIVE = [
    (0, function("return x + 1")),
    (1, function("if x:", "    return 1", "return 2")),
    (2, function("if x:", "    return 1", "else:", "    return 2")),
    (3, function("if x:", "    return 1", "elif x > 2:", "    return 2", "else:", "    return 3")),
    (6, function("for y in x:", "    while y:", "        if y:", "            y -= 1", "return x")),  # 1 + 2 + 3
    (2, function("for y in x:", "    pass", "else:", "    return 1")),
    (1, function("return x and y and z")),
    (2, function("return x and y or z")),
    (3, function("return 1 if x else 2 if y else 3")),  # 1 + 2
    (3, function("try:", "    return 1", "except E:", "    if x:", "        return 2")),  # 1 + 2
    (1, function("match x:", "    case 1:", "        return 2", "    case _:", "        return 3")),
    (2, function("return f(x - 1) if x else 0")),  # 1 for the condition, 1 for the recursion
    (2, function("def g(y):", "    if y:", "        return y", "return g(x)")),  # 2, nested in g
    (1, function("return [y for y in x]")),
    (3, function("return [y for y in x if y]")),  # as a loop with a condition in it: 1 + 2
    (6, function("return [y for z in x for y in z if y]")),  # 1 + 2 + 3
    (2, function("return lambda y: 1 if y else 2")),
]


@pytest.mark.parametrize(("expected", "program"), COGNITIVE)
def test_cognitive_complexity_by_hand(expected: int, program: str) -> None:
    assert intrinsic.cognitive_complexity(program) == expected
    assert intrinsic.complexity(program) == expected / 15


def test_complexity_is_at_most_one() -> None:
    deep = "".join("    " * n + "if x:\n" for n in range(1, 9)) + "    " * 9 + "return x\n"
    assert intrinsic.cognitive_complexity("def f(x):\n" + deep) == 36
    assert intrinsic.complexity("def f(x):\n" + deep) == 1.0


CYCLOMATIC = [
    (1, function("return x")),
    (2, function("return 1 if x else 2")),
    (3, function("for y in x:", "    pass", "else:", "    return 1")),
    (3, function("return x and y and z")),
    (3, function("return [y for y in x if y]")),
    (3, function("try:", "    pass", "except A:", "    pass", "except B:", "    pass")),
    (3, function("try:", "    pass", "except A:", "    pass", "else:", "    pass")),
    (3, function("match x:", "    case 1:", "        return 2", "    case _:", "        return 3")),
    (2, "def g(x):\n    return x\n" + function("assert x", "return x")),
    (1, "x = 3"),
]


@pytest.mark.parametrize(("expected", "program"), CYCLOMATIC)
def test_cyclomatic_complexity_by_hand(expected: int, program: str) -> None:
    assert intrinsic.cyclomatic_complexity(program) == expected


def test_halstead_by_hand() -> None:
    # Operators: Gt, Mult, Add, USub, Mult of `x *= 2`. Operands: x, 0; x, 3; x * 3, y; y; x, 2. n1 = 4, N1 = 5;
    # different operands: x, 0, 3, x * 3, y, 2, so n2 = 6, N2 = 9.
    program = function("if x > 0:", "    return x * 3 + y", "x *= 2", "return -y")
    volume = (5 + 9) * math.log2(4 + 6)
    effort = volume * 4 * 9 / (2 * 6)
    assert intrinsic.halstead_measures(program) == pytest.approx((effort, volume))
    assert intrinsic.halstead(program) == pytest.approx(0.5 * effort / 10_000 + 0.3 * 0.2 + 0.2 * volume / 500)


def test_a_program_without_operators_has_no_volume() -> None:
    assert intrinsic.halstead_measures(function("return x")) == (0.0, 0.0)
    assert intrinsic.halstead(function("return x")) == pytest.approx(0.03)  # one path of ten


@given(SOURCES)
def test_what_a_program_earns_by_itself_is_from_0_to_1_and_does_not_depend_on_names(program: str) -> None:
    renamed = re.sub(r"\bx\b", "value", program)
    for name, measure in intrinsic.OF_PROGRAMS.items():
        assert 0 <= measure(program) <= 1, name
        assert measure(renamed) == measure(program), name


@pytest.mark.parametrize(
    "program",
    [
        "def f(x): return x % 0x" + "f" * 3900,
        "def f(x): return " + "-" * 80 + "x",
        "def f(x): return [" + "1," * 1900 + "]",
        "def f(x): return x" + "+1" * 90,
        "def f(x):\n" + "    x += 1\n" * 350,
        "",
    ],
)
def test_no_program_within_the_caps_takes_long(program: str) -> None:
    began = time.process_time()
    for measure in intrinsic.OF_PROGRAMS.values():
        assert 0 <= measure(program) <= 1
    assert intrinsic.edit_distance(program, program) == 0
    assert time.process_time() - began < 2  # about 0.1


# -- distance ----------------------------------------------------------------------------------------------------------


def slowly(one: str, other: str) -> int:
    """Edit distance by its definition."""

    @cache
    def least(n: int, m: int) -> int:
        if not n or not m:
            return n + m
        replaced = least(n - 1, m - 1) + (one[n - 1] != other[m - 1])
        return min(replaced, least(n - 1, m) + 1, least(n, m - 1) + 1)

    return least(len(one), len(other))


WORDS = st.text("abc", max_size=9)


@given(WORDS, WORDS)
def test_the_edit_distance_is_that_of_its_definition(one: str, other: str) -> None:
    assert intrinsic.levenshtein(one, other) == slowly(one, other)


def test_the_edit_distance_by_hand() -> None:
    # FunctionDef, arguments, arg, Return, Name; and before the Name UnaryOp, USub.
    plain, minus = function("return x"), function("return -x")
    assert intrinsic.edit_distance(plain, minus) == 2 / 7
    assert intrinsic.mean_edit_distance(minus, [plain, minus]) == 1 / 7
    assert intrinsic.mean_edit_distance(plain, []) == 1.0  # it was shown nothing


def test_beyond_its_bound_a_program_is_not_compared() -> None:
    long, longer = (function("return [" + "1," * count + "]") for count in (3000, 4000))
    assert intrinsic.edit_distance(long, longer) == 0
    assert intrinsic.edit_distance(function("return x"), long) > 0.9


@given(SOURCES, SOURCES, SOURCES)
def test_the_edit_distance_is_a_distance(one: str, two: str, three: str) -> None:
    assert 0 <= intrinsic.edit_distance(one, two) == intrinsic.edit_distance(two, one) <= 1
    assert (intrinsic.edit_distance(one, two) == 0) is (programs.kinds(one) == programs.kinds(two))
    nodes = [programs.kinds(program) for program in (one, two, three)]
    straight = intrinsic.levenshtein(nodes[0], nodes[2])
    assert straight <= intrinsic.levenshtein(nodes[0], nodes[1]) + intrinsic.levenshtein(nodes[1], nodes[2])


@given(SOURCES, st.lists(SOURCES, max_size=4), st.randoms())
def test_the_mean_distance_has_no_order_and_no_names(program: str, others: list[str], rng: random.Random) -> None:
    mean = intrinsic.mean_edit_distance(program, others)
    shuffled = rng.sample(others, len(others))
    renamed = re.sub(r"\bx\b", "value", program)
    assert intrinsic.mean_edit_distance(renamed, shuffled) == pytest.approx(mean)
    if others:
        assert mean == pytest.approx(sum(intrinsic.edit_distance(program, o) for o in others) / len(others))


# -- diversity ---------------------------------------------------------------------------------------------------------


def task(inputs: str, outputs: str, family: str = "deduction") -> Task:
    return Task(family, f"def f(x): return {inputs!r}, {outputs!r}", tuple(inputs), tuple(outputs))


def test_surprise_by_hand() -> None:
    seen = intrinsic.Seen()
    for stored in (task("a", "1"), task("a", "2"), task("b", "2"), task("c", "2"), task("a", "1", "abduction")):
        seen.add(stored)
    assert seen.surprise("input", task("a", "9"), known=False) == 0.5  # 2 of 4
    assert seen.surprise("output", task("z", "2"), known=False) == 0.25  # 3 of 4
    assert seen.surprise("output", task("a", "1"), known=True) == 1.0  # none of the 3 others
    assert seen.surprise("output", task("a", "2"), known=True) == pytest.approx(1 / 3)  # 2 of the 3 others
    assert seen.surprise("input", task("z", "1"), known=False) == 1.0
    assert seen.surprise("input", task("a", "1", "induction"), known=False) == 1.0
    assert seen.surprise("input", task("az", "12"), known=False) == pytest.approx((0.5 + 1) / 2)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.randoms())
def test_surprise_is_from_0_to_1_and_does_not_depend_on_the_order(inputs: list[str], rng: random.Random) -> None:
    seen, again = intrinsic.Seen(), intrinsic.Seen()
    for letter in inputs:
        seen.add(task(letter, "1"))
    for letter in rng.sample(inputs, len(inputs)):
        again.add(task(letter, "1"))
    values = {letter: seen.surprise("input", task(letter, "1"), known=False) for letter in "abc"}
    assert values == {letter: again.surprise("input", task(letter, "1"), known=False) for letter in "abc"}
    assert all(0 <= value <= 1 for value in values.values())
    assert sum(values.values()) == pytest.approx(2)  # the shares of three values sum to one


# -- pay ---------------------------------------------------------------------------------------------------------------


def test_ways_to_combine_by_hand() -> None:
    extras = intrinsic.contributions({"a": 0.5, "b": 0.9}, {"a": 0.5, "b": 2.0}, cap=0.4)
    assert extras == [0.25, 0.4]
    paid = {name: how(0.75, extras) for name, how in intrinsic.COMBINE.items()}
    assert paid == pytest.approx({"sum": 1.4, "multiply": 0.075, "sum_multiply": 0.85, "multiply_sum": 0.4875})


@given(
    st.floats(0, 1),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 10)), min_size=1, max_size=5),
    st.floats(0, 1),
    st.sampled_from(sorted(intrinsic.COMBINE)),
)
def test_no_extra_pays_more_than_the_cap(reward: float, pairs: list[tuple[float, float]], cap: float, how: str) -> None:
    values = {str(n): value for n, (value, _) in enumerate(pairs)}
    weights = {str(n): weight for n, (_, weight) in enumerate(pairs)}
    extras = intrinsic.contributions(values, weights, cap)
    assert all(0 <= extra <= cap for extra in extras)
    assert 0 <= intrinsic.COMBINE[how](reward, extras) <= reward + len(extras) * cap + 1e-9
    assert intrinsic.COMBINE[how](reward, extras[::-1]) == pytest.approx(intrinsic.COMBINE[how](reward, extras))


# -- in the game -------------------------------------------------------------------------------------------------------


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive(":memory:") as opened:
        yield opened


def referee_of(executor: Executor, archive: Archive, pay: RewardConfig) -> Referee:
    return Referee({"deduction": make_family("deduction", style="compact", references=1)}, executor, archive, pay=pay)


def propose(referee: Referee, program: str, given: str) -> tuple[Task, dict[str, float]]:
    request = referee.proposal_prompt("deduction", random.Random(0))
    text = f"</think><answer>```python\n{program}\n```\n```input\n{given}\n```</answer>"
    (outcome,) = referee.judge_proposals([request], [text])
    assert isinstance(outcome, Task), outcome
    referee.store(1, [request], [outcome], [text])
    return outcome, referee.extras(outcome, request.references)


WEIGHTS = {name: 0.1 * (n + 1) for n, name in enumerate(intrinsic.NAMES)}


def test_a_proposer_is_paid_for_every_extra_with_a_weight(sandbox: Executor, archive: Archive) -> None:
    referee = referee_of(sandbox, archive, RewardConfig(intrinsic=WEIGHTS, intrinsic_cap=0.25))
    program = "def f(x):\n    return [x] if x > 2 else [-x]"
    task, extras = propose(referee, program, "4")
    assert extras == {
        "complexity": 1 / 15,
        "halstead": intrinsic.halstead(program),
        "mean_edit_distance": intrinsic.edit_distance(program, "def f(x):\n    return x"),
        "input_diversity": 1.0,
        "output_diversity": 1.0,
        "novelty": 1.0,
    }
    expected = 0.5 + sum(min(WEIGHTS[name] * value, 0.25) for name, value in extras.items())
    assert referee.proposal_reward(task, HALF, extras) == pytest.approx(expected)
    assert referee.proposal_reward(task, [Verdict(1.0)], extras) == 0.0  # nothing is added to nothing
    assert referee.proposal_reward(task, [Verdict(None)], extras) is None


def test_what_was_seen_before_is_worth_less(sandbox: Executor, archive: Archive) -> None:
    pay = RewardConfig(intrinsic={"input_diversity": 1.0, "output_diversity": 1.0, "novelty": 1.0})
    referee = referee_of(sandbox, archive, pay)
    propose(referee, "def f(x):\n    return x + 1", "4")
    _, extras = propose(referee, "def f(x):\n    return x + 2", "4")
    assert extras == {"input_diversity": 0.5, "output_diversity": 1.0, "novelty": 2**-0.5}  # beside the seed
    task, extras = propose(referee, "def f(x):\n    return x + 3", "3")
    assert extras == pytest.approx({"input_diversity": 1.0, "output_diversity": 2 / 3, "novelty": 3**-0.5})
    again = referee_of(sandbox, archive, pay)  # as after a resume
    assert again.extras(task, ()) == extras


def test_nothing_is_computed_that_has_no_weight(
    sandbox: Executor, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object) -> float:
        raise AssertionError("computed")

    for name in ("mean_edit_distance", "Seen"):
        monkeypatch.setattr(intrinsic, name, never)
    monkeypatch.setattr(intrinsic, "OF_PROGRAMS", dict.fromkeys(intrinsic.OF_PROGRAMS, never))
    task, extras = propose(referee_of(sandbox, archive, RewardConfig()), "def f(x):\n    return [x]", "4")
    assert extras == {}
    for name in ("halstead", "input_diversity"):
        with pytest.raises(AssertionError, match="computed"):
            referee_of(sandbox, archive, RewardConfig(intrinsic={name: 1.0})).extras(task, ())


@pytest.mark.parametrize(
    "settings",
    [
        {"intrinsic": {"haltstead": 1.0}},
        {"intrinsic": {"halstead": -1.0}},
        {"intrinsic": {"halstead": float("nan")}},
        {"intrinsic_cap": float("inf")},
        {"combine": "add"},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InvalidConfig):
        RewardConfig(**settings)  # type: ignore[arg-type]
