"""Error prediction: which endings become tasks, which tricks do not, and what an answer must say."""

from __future__ import annotations

import builtins
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium
import pytest

from selfplay_gym.archive import Archive
from selfplay_gym.gate import Candidate, Gate, GateConfig, Outcome
from selfplay_gym.protocols import Executor, ProposingFamily
from selfplay_gym.referee import Referee
from selfplay_gym.registry import make_family
from selfplay_gym.types import ERRORS, NO_ERROR, Execution, Limits, NoVerdict, Proposal, Rejected, Status, Task, Verdict

LIMITS = Limits(cpu_seconds=0.2, wall_seconds=1.0)
Judge = Callable[..., Outcome]


@pytest.fixture(scope="module")
def judge(sandbox: Executor) -> Judge:
    def judge(program: str, given: str = "4", **settings: Any) -> Outcome:
        gate = Gate(sandbox, GateConfig(limits=LIMITS, **settings))
        return gate.judge([Candidate("error", Proposal(program, (given,)), errors=True)])[0]

    return judge


def refused_by(outcome: Outcome) -> str:
    assert not isinstance(outcome, NoVerdict)
    return outcome.check if isinstance(outcome, Rejected) else "admitted"


# -- what becomes a task -----------------------------------------------------------------------------------------------

ENDINGS = [
    ("ZeroDivisionError", "def f(x):\n    return 12 // x", "0"),
    (NO_ERROR, "def f(x):\n    return 12 // x", "5"),
    ("IndexError", "def f(x):\n    return x[len(x) // 2]", "''"),
    ("KeyError", "def f(x):\n    return {1: 2, 5: 3}[x]", "3"),
    ("ValueError", "def f(x):\n    return 'abcdefgh'.index(x)", "'seven'"),
    ("TypeError", "def f(x):\n    return sum(x if x > 2 else [x])", "4"),
    ("AttributeError", "def f(x):\n    return (x or None).bit_length()", "0"),
    ("StopIteration", "def f(x):\n    return next(i for i in range(9) if i > x)", "30"),
    (
        "RuntimeError",
        "def f(x):\n    d = {n: n for n in range(x)}\n    for n in d:\n        d[-n - 1] = n\n    return x",
        "5",
    ),
    ("RecursionError", "def f(x):\n    return f(x - 1) if x else 0", "-3"),
    ("UnboundLocalError", "def f(x):\n    for y in range(x):\n        pass\n    return y", "0"),
    ("UnicodeEncodeError", "def f(x):\n    return chr(200 + x - 12).encode('ascii' if x > 4 else 'utf-8')", "7"),
    ("OverflowError", "def f(x):\n    return 2.0 ** (x * x * x)", "30"),
    ("NameError", "def f(x):\n    return unknown if x > 2 else x", "4"),
    (
        NO_ERROR,
        "def f(x):\n    try:\n        return 1 // x\n    except ZeroDivisionError:\n        return [][x > 9]",
        "3",
    ),
    (
        "IndexError",
        "def f(x):\n    try:\n        return 1 // x\n    except ZeroDivisionError:\n        return [][x > 9]",
        "0",
    ),
]


@pytest.mark.parametrize(("ending", "program", "given"), ENDINGS)
def test_how_a_call_ends_is_the_output_that_was_seen(judge: Judge, ending: str, program: str, given: str) -> None:
    task = judge(program, given)
    assert isinstance(task, Task), task
    assert (task.family, task.inputs, task.outputs) == ("error", (given,), (ending,))
    assert len(task.behaviour) == 32


def test_every_name_is_that_of_a_builtin_exception_and_none_of_a_value() -> None:
    assert all(issubclass(getattr(builtins, name), Exception) for name in ERRORS)
    assert not hasattr(builtins, NO_ERROR)
    assert NO_ERROR not in ERRORS


def test_the_message_is_no_part_of_a_task(judge: Judge) -> None:
    first = judge("def f(x):\n    return {1: 2}[x]", "3")
    second = judge("def f(x):\n    return {1: 2}[x]", "4")
    assert isinstance(first, Task)
    assert isinstance(second, Task)
    assert first.outputs == second.outputs == ("KeyError",)
    assert first.behaviour == second.behaviour


def test_another_exception_elsewhere_makes_another_program_here_but_not_in_deduction(sandbox: Executor) -> None:
    programs = ["def f(x):\n    return [x][x]", "def f(x):\n    return {0: x}[x]"]
    found = {}
    for errors in (True, False):
        lot = [Candidate("any", Proposal(p, ("0",)), errors=errors) for p in programs]
        gate = Gate(sandbox, GateConfig(limits=LIMITS, disabled=frozenset({"depends_on_input"})))
        found[errors] = [outcome for outcome in gate.judge(lot) if isinstance(outcome, Task)]
    assert len({task.behaviour for task in found[True]}) == 2
    assert len(found[True]) == 2


# -- what does not -----------------------------------------------------------------------------------------------------

FAILS = "def f(x):\n    return 12 // (x - 4)"
REFUSED: dict[str, list[tuple[str, str]]] = {
    "raise": [
        ("an exception by name", "def f(x):\n    if x == 4:\n        raise ValueError\n    return x"),
        (
            "one raised again",
            "def f(x):\n    try:\n        return 1 // (x - 4)\n    except ArithmeticError:\n        raise",
        ),
        ("an assertion", "def f(x):\n    assert x != 4\n    return x"),
        (
            "thrown into a generator",
            "def g():\n    yield 1\n\ndef f(x):\n    k = g()\n    return k.throw(KeyError) if x == 4 else x",
        ),
        (
            "thrown from a bound name",
            "def g():\n    yield 1\n\ndef f(x):\n    t = g().throw\n    return t(KeyError) if x == 4 else x",
        ),
        ("a class of its own", "class KeyError(Exception):\n    pass\n\n" + FAILS),
        ("a class above Exception", "class ValueError(BaseException):\n    pass\n\n" + FAILS),
        ("a class called as no error", "class NoError(Exception):\n    pass\n\n" + FAILS),
        ("another name for one", "KeyError = IndexError\n\n" + FAILS),
        ("an import under its name", "from math import floor as KeyError\n\n" + FAILS),
        ("a parameter of its name", "def f(x, TypeError=1):\n    return 12 // (x - 4)"),
        (
            "one caught under another's name",
            "def f(x):\n    try:\n        return 1 // (x - 4)\n    except ZeroDivisionError as KeyError:\n"
            "        return {}[x]",
        ),
        ("a changed name", "class E(Exception):\n    pass\n\nE.__name__ = 'KeyError'\n\n" + FAILS),
    ],
    "error": [
        ("a class of a module", "import decimal\n\ndef f(x):\n    return 1 if x != 4 else decimal.Decimal('x')"),
        (
            "another one, whose name changed with Python 3.13",
            "import re\n\ndef f(x):\n    return 1 if x != 4 else re.compile('(')",
        ),
        (
            "one of a dataclass",
            "import dataclasses\n\n@dataclasses.dataclass(frozen=True)\nclass P:\n    a: int\n\ndef f(x):\n"
            "    p = P(1)\n    if x == 4:\n        p.a = 2\n    return x",
        ),
        ("what only the compiler finds", "def f(x):\n    return x\n\nreturn 3"),
    ],
    "policy": [("leaving the interpreter", "def f(x):\n    return exit() if x == 4 else x")],
    "runs": [
        ("an endless loop", "def f(x):\n    while x == 4:\n        pass\n    return x"),
        ("too much memory", "def f(x):\n    return len([0] * 10 ** (3 * x))"),
    ],
    "value": [("no value", "def f(x):\n    return (i for i in range(x)) if x == 4 else x")],
    "deterministic": [
        (
            "another class each time",
            "def f(x):\n    w = list({'a', 'b', 'c', 'd'})\n"
            "    return x if x != 4 else [][0] if w[0] < w[1] else {}[0]",
        ),
        (
            "the same on another input",
            "def f(x):\n    w = list({'a', 'b', 'c', 'd'})\n"
            "    return x if x != 5 else [][0] if w[0] < w[1] else {}[0]",
        ),
        (
            "now and then",
            "def f(x):\n    w = list({'a', 'b', 'c', 'd'})\n    return [1, 2, 3][w.index('a') if x == 4 else 0]",
        ),
    ],
    "depends_on_input": [
        ("always the same error", "def f(x):\n    return x // 0"),
        ("an error before the call", "n = 1 // 0\n\ndef f(x):\n    return x"),
        ("a call that cannot be", "def f(x, y):\n    return x"),
        ("never an error", "def f(x):\n    return x * 2"),
    ],
}


@pytest.mark.parametrize(
    ("check", "program"), [pytest.param(c, p, id=f"{c}: {name}") for c, cases in REFUSED.items() for name, p in cases]
)
def test_a_trick_is_refused_by_the_check_that_is_meant_for_it(judge: Judge, check: str, program: str) -> None:
    assert refused_by(judge(program)) == check


RAISING = {
    "KeyError": "def f(x):\n    if x == 4:\n        raise KeyError\n    return x",
    "SystemExit": "def f(x):\n    if x == 4:\n        raise SystemExit\n    return x",
    "KeyboardInterrupt": "def f(x):\n    if x == 4:\n        raise KeyboardInterrupt\n    return x",
    "GeneratorExit": "def f(x):\n    if x == 4:\n        raise GeneratorExit\n    return x",
    "ExceptionGroup": "def f(x):\n    if x == 4:\n        raise ExceptionGroup('a', [KeyError()])\n    return x",
    "NoError": "class NoError(Exception):\n    pass\n\ndef f(x):\n    if x == 4:\n        raise NoError\n    return x",
    "Ñandú": "class Ñandú(Exception):\n    pass\n\ndef f(x):\n    if x == 4:\n        raise Ñandú\n    return x",
    "Mine": "class Mine(KeyError):\n    pass\n\ndef f(x):\n    if x == 4:\n        raise Mine\n    return x",
}


@pytest.mark.parametrize("name", RAISING)
def test_without_the_check_a_program_may_raise_but_only_what_can_be_asked_for(judge: Judge, name: str) -> None:
    assert refused_by(judge(RAISING[name])) == "raise"
    outcome = judge(RAISING[name], disabled=frozenset({"raise"}))
    assert refused_by(outcome) == ("admitted" if name == "KeyError" else "error")


def test_several_inputs_are_each_run_on_their_own(sandbox: Executor) -> None:
    """A determinism check ends at the first error: in one job the inputs after it would take that error over."""
    inputs = ("0", "5", "'a'", "1")
    candidate = Candidate("error", Proposal("def f(x):\n    return 12 // x", inputs), errors=True)
    (task,) = Gate(sandbox, GateConfig(limits=LIMITS)).judge([candidate])
    assert isinstance(task, Task)
    assert task.outputs == ("ZeroDivisionError", NO_ERROR, "TypeError", NO_ERROR)


def test_in_the_other_families_an_error_is_a_failure_as_ever(sandbox: Executor) -> None:
    (outcome,) = Gate(sandbox, GateConfig(limits=LIMITS)).judge([Candidate("deduction", Proposal(FAILS, ("4",)))])
    assert refused_by(outcome) == "runs"


def test_our_own_failure_is_no_ending(fake: Callable[[Any], Executor]) -> None:
    executor = fake(lambda program, text: Execution(Status.NO_VERDICT, message="broken"))
    (outcome,) = Gate(executor).judge([Candidate("error", Proposal(FAILS, ("4",)), errors=True)])
    assert outcome == NoVerdict("broken")


# -- asking and answering ----------------------------------------------------------------------------------------------

TASK = Task("error", "def f(x):\n    return {1: 2}[x]", ("3",), ("KeyError",))
STYLES = ("azr", "chat", "compact")


@pytest.mark.parametrize("style", STYLES)
def test_the_prompt_shows_program_and_input_and_not_the_ending(style: str) -> None:
    prompt = make_family("error", style=style).solve_prompt(TASK)
    assert TASK.program in prompt
    assert "3" in prompt
    assert "KeyError" not in prompt
    assert "$" not in prompt
    assert prompt.endswith("<think>") is (style != "chat")
    if style != "compact":
        assert NO_ERROR in prompt


@pytest.mark.parametrize("style", STYLES)
def test_a_proposal_prompt_shows_its_references(style: str) -> None:
    family = make_family("error", style=style)
    assert isinstance(family, ProposingFamily)
    prompt = family.proposal_prompt([TASK], random.Random(0))
    assert TASK.program in prompt
    assert "$" not in prompt
    if style != "compact":
        assert "```error\nKeyError\n```" in prompt


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("KeyError", 1.0),
        ("```error\nKeyError\n```", 1.0),
        ("it is\n```\n KeyError \n```", 1.0),
        ("```error\nNoError\n```\n```error\nKeyError\n```", 1.0),
        ("```error\nKeyError\n```\n```error\nNoError\n```", 0.0),
        ("keyerror", 0.0),
        ("'KeyError'", 0.0),
        ("KeyError: 3", 0.0),
        ("KeyError NoError", 0.0),
        ("KeyError\nIndexError", 0.0),
        ("builtins.KeyError", 0.0),
        ("LookupError", 0.0),
        ("NoError", 0.0),
        ("K\u0435\u0443Error", 0.0),  # two letters are Cyrillic
        ("", 0.0),
    ],
)
def test_only_the_exact_name_is_right(answer: str, score: float) -> None:
    verdict = make_family("error").check(TASK, answer)
    assert isinstance(verdict, Verdict)
    assert verdict.score == score
    assert bool(verdict.reason) is not bool(score)


# -- in the game -------------------------------------------------------------------------------------------------------


@pytest.fixture
def referee(sandbox: Executor) -> Iterator[Referee]:
    with Archive(":memory:") as archive:
        names = ("deduction", "induction", "error")
        yield Referee({name: make_family(name, style="compact") for name in names}, sandbox, archive)


def framed(*blocks: Sequence[str]) -> str:
    return "</think><answer>" + "\n".join(f"```{label}\n{body}\n```" for label, body in blocks) + "</answer>"


def test_a_proposal_is_judged_solved_and_stored(referee: Referee) -> None:
    request = referee.proposal_prompt("error", random.Random(0))
    text = framed(("python", TASK.program), ("input", "3"))
    outcomes = referee.judge_proposals([request] * 2, [text, text])
    assert [refused_by(outcome) for outcome in outcomes] == ["admitted", "new"]
    (task_id,) = referee.store(1, [request], outcomes[:1], [text])
    assert task_id is not None
    task = referee.archive.task(task_id).task
    assert task.outputs == ("KeyError",)
    answers = [framed(("error", name)) for name in ("KeyError", "IndexError")]
    assert [verdict.score for verdict in referee.judge_answers([task] * 2, answers)] == [1.0, 0.0]
    assert refused_by(referee.judge_proposals([request], [text])[0]) == "new"


def test_induction_is_not_asked_about_a_program_that_fails(referee: Referee) -> None:
    lent = {
        reference.task.family
        for seed in range(30)
        for reference in referee.proposal_prompt("induction", random.Random(seed)).references
    }
    assert lent == {"deduction", "induction"}


def test_it_has_an_environment() -> None:
    env = gymnasium.make("selfplay_gym/Error-v0", style="chat")
    seen = set()
    for seed in range(8):
        prompt, _ = env.reset(seed=seed)
        right = NO_ERROR if "x[1]" in prompt else "ZeroDivisionError"
        seen.add(right)
        _, reward, terminated, _, _ = env.step(framed(("error", right)))
        assert (reward, terminated) == (1.0, True)
    assert len(seen) == 2
    env.close()
