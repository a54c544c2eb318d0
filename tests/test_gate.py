"""The gate: every check by name, three-valued outcomes, and proposals that try to be new without being so."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from selfplay_gym.errors import InvalidConfig
from selfplay_gym.gate import CHECKS, OPTIONAL, Candidate, Gate, GateConfig, Outcome, _statements
from selfplay_gym.protocols import Executor
from selfplay_gym.types import Execution, Limits, NoVerdict, Proposal, Rejected, Status, Task

DOUBLE = "def f(x):\n    return x * 2"
FAST = Limits(cpu_seconds=0.2, wall_seconds=1.0)

Judge = Callable[..., Outcome]


@pytest.fixture(scope="module")
def judge(sandbox: Executor) -> Judge:
    """Judges one proposal with the real sandbox."""
    gate = Gate(sandbox, GateConfig(limits=FAST))

    def judge(program: str, *inputs: str, message: str = "", family: str = "deduction") -> Outcome:
        return gate.judge([Candidate(family, Proposal(program, inputs or ("4",), message))])[0]

    return judge


def refused_by(outcome: Outcome) -> str:
    assert not isinstance(outcome, NoVerdict)
    return outcome.check if isinstance(outcome, Rejected) else "admitted"


# -- what becomes a task ---------------------------------------------------------------------------------------------

HONEST = {
    "arithmetic": ("def f(x, k):\n    return x ** 2 % k", "7, 5", "7, 5", "4"),
    "a recursive helper": (
        "def g(n):\n    return 1 if n < 2 else n * g(n - 1)\n\ndef f(n):\n    return g(n)",
        "5",
        "5",
        "120",
    ),
    "a nested function": ("def f(n):\n    def g(k):\n        return k + n\n    return g(n)", "5", "5", "10"),
    "a class": (
        "class C:\n    def __init__(self, n):\n        self.n = n\n\ndef f(n):\n    return C(n).n + 1",
        "5",
        "5",
        "6",
    ),
    "an allowed import": ("import math\n\ndef f(n):\n    return math.gcd(n, 12)", "8", "8", "4"),
    "a decorator": ("import functools\n\n@functools.cache\ndef f(n):\n    return n + 1", "8", "8", "9"),
    "a keyword-only parameter": ("def f(*, n):\n    return n + 1", "n=8", "n=8", "9"),
    "a default that is not used": ("def f(n, k=1):\n    return n + k", "8", "8", "9"),
    "a set": ("def f(n):\n    return {n, 1, 2, 'a', ()}", "3", "3", "{'a', (), 1, 2, 3}"),
    "floats": ("def f(n):\n    return [n / 3, n * 1e308 * 10, -0.0]", "3", "3", "[1.0, inf, -0.0]"),
    "input in another spelling": (DOUBLE, "[ 0x10,'b' ]  # note", "[16, 'b']", "[16, 'b', 16, 'b']"),
    "a keyword for a place": (DOUBLE, "x=4", "4", "8"),
    "state of its own run": ("n = 0\n\ndef f(x):\n    global n\n    n += x\n    return n", "4", "4", "4"),
    "a mutable default": ("def f(x, seen=[]):\n    seen.append(x)\n    return seen", "4", "4", "[4]"),
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_program_becomes_a_task_with_the_output_that_was_seen(judge: Judge, name: str) -> None:
    program, given, stored, output = HONEST[name]
    task = judge(program, given)
    assert isinstance(task, Task), task
    assert (task.program, task.inputs, task.outputs) == (program, (stored,), (output,))
    assert len(task.behaviour) == 32


def test_induction_keeps_all_pairs_and_the_message(judge: Judge) -> None:
    inputs = ("1", "2", "3", "4", "5", "6")
    task = judge(DOUBLE, *inputs, message="What grows?", family="induction")
    assert isinstance(task, Task)
    assert (task.inputs, task.outputs, task.message) == (inputs, ("2", "4", "6", "8", "10", "12"), "What grows?")


# -- every check by name ---------------------------------------------------------------------------------------------

REFUSED: dict[str, list[tuple[str, ...]]] = {
    "size": [("def f(x):\n    return x" + " " * 4096, "4"), (DOUBLE, "'" + "a" * 1024 + "'")],
    "syntax": [
        ("def f(x) return x", "4"),
        ("def f(x):\n    return " + "-" * 3000 + "x", "4"),
        ("def f(x):\n    return " + "(" * 500 + "x" + ")" * 500, "4"),
        ("def f(x):\n    return x" + "+1" * 1900, "4"),
        ("def f(x):\n    return x\0", "4"),
        ("def f(x):\n    return '\ud800'", "4"),
    ],
    "signature": [
        ("", "4"),
        ("def g(x):\n    return x", "4"),
        ("def f():\n    return 4", "4"),
        ("def f(x=4):\n    return x", "4"),
        ("def f(*x):\n    return x", "4"),
        ("f = lambda x: x", "4"),
        ("async def f(x):\n    return x", "4"),
        ("def f(x):\n    return x\n\nf = lambda x=1: x", "4"),
        ("def f(x):\n    return x\n\ndel f", "4"),
        ("class f:\n    def __init__(self, x):\n        pass", "4"),
        ("def g():\n    def f(x):\n        return x\n    return f", "4"),
    ],
    "literal_inputs": [
        (DOUBLE, ""),
        (DOUBLE, "   "),
        (DOUBLE, "# 4"),
        (DOUBLE, "1 + 1"),
        (DOUBLE, "len('a')"),
        (DOUBLE, "x"),
        (DOUBLE, "*[4]"),
        (DOUBLE, "**{'x': 4}"),
        (DOUBLE, "x=4, x=5"),
        (DOUBLE, "(y := 4)"),
        (DOUBLE, "lambda: 4"),
        (DOUBLE, "4) + f(5"),
        (DOUBLE, "4)\nf(5"),
        (DOUBLE, "f'{4}'"),
        (DOUBLE, "..."),
        (DOUBLE, "4j"),
        (DOUBLE, "y for y in (1,)"),
        (DOUBLE, "{**{}}"),
        (DOUBLE, "[[]] * 9"),
        (DOUBLE, "__import__('os')"),
        (DOUBLE, "[" * 60 + "]" * 60),
        (DOUBLE, "-" * 1000 + "4"),
        (DOUBLE, "4\0"),
        (DOUBLE, "{[]: 4}"),
    ],
    "policy": [
        ("import os\n\ndef f(x):\n    return x", "4"),
        ("def f(x):\n    return eval('x')", "4"),
        ("def f(x):\n    return x.__class__.__name__", "4"),
        ("def f(x):\n    return x\n\nasync def g():\n    pass", "4"),
    ],
    "runs": [
        ("def f(x):\n    return x / 0", "4"),
        ("def f(x):\n    while True:\n        x += 1", "4"),
        ("def f(x):\n    return f(x)", "4"),
        ("def f(x):\n    return [0] * 10 ** 12", "4"),
        ("def f(x, y):\n    return x", "4"),
        ("def f(x):\n    return x", "4, 5"),
        ("def f(x):\n    return x", "y=4"),
        ("raise ValueError\n\ndef f(x):\n    return x", "4"),
    ],
    "value": [
        ("def f(x):\n    return 'a' * 5000 * x", "4"),
        ("def f(x):\n    return lambda: x", "4"),
        ("def f(x):\n    yield x", "4"),
        ("def f(x):\n    return x + 1j", "4"),
        ("def f(x):\n    return range(x)", "4"),
        ("def f(x):\n    return 10 ** 5000 + x", "4"),
        ("def f(x):\n    y = [x]\n    y.append(y)\n    return y", "4"),
        ("import collections\n\ndef f(x):\n    return collections.Counter([x])", "4"),
        ("class I(int):\n    pass\n\ndef f(x):\n    return [I(x)]", "4"),
        ("class S(str):\n    pass\n\ndef f(x):\n    return {S(x): 1}", "4"),
    ],
    "deterministic": [
        ("def f(x):\n    return str(f) + x", "'a'"),
        ("def f(x):\n    return list({'a', 'b', 'c', 'd', 'e', x})", "'f'"),
        ("def f(x):\n    return 5 if x == 4 else str(f)", "4"),
        ("class A:\n    pass\n\ndef f(x):\n    return 5 if x == 4 else f'{A()}'", "4"),
        ("def f(x):\n    return 5 if x == 4 else ''.join({'a', 'b', 'c', 'd', 'e'})", "4"),
    ],
    "depends_on_input": [
        ("def f(x):\n    return 7", "4"),
        ("def f(x):\n    return x - x", "4"),
        ("def f(x):\n    assert x == 4\n    return x", "4"),
        ("n = 0\n\ndef f(x):\n    global n\n    n += 1\n    return n", "4"),
        ("def f(x):\n    if x != 4:\n        while True:\n            pass\n    return x", "4"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("check", "proposal"),
    [pytest.param(check, p, id=f"{check}-{n}") for check, cases in REFUSED.items() for n, p in enumerate(cases)],
)
def test_a_bad_proposal_is_refused_by_the_check_that_is_meant_for_it(
    judge: Judge, check: str, proposal: tuple[str, ...]
) -> None:
    assert refused_by(judge(*proposal)) == check


def test_every_check_is_tested() -> None:
    elsewhere = {"format", "parse", "distinct_inputs", "message", "new", "held_out", "raise", "error", "composite"}
    assert elsewhere | {"single_def"} | set(REFUSED) == set(CHECKS)
    assert set(CHECKS) >= OPTIONAL


PAIRS = ("1", "2", "3", "4")


@pytest.mark.parametrize(
    ("program", "inputs"),
    [
        (DOUBLE, ("1", "2", "3", "1")),
        (DOUBLE, ("1", "2", "3", " 1 ")),
        (DOUBLE, ("1", "2", "3", "0x1")),
        (DOUBLE, ("1", "2", "3", "x=1")),
        (DOUBLE, ("'ab'", "'a' 'b'", '"ab"', "4")),
        (DOUBLE, ("[1,2]", "[1, 2]", "[1, 2,]", "4")),
        (DOUBLE, ("{1, 2}", "{2, 1}", "3", "4")),
        ("def f(a, b):\n    return a - b", ("1, 2", "2, 1", "b=2, a=1", "3, 4")),
        ("def f(*, a, b):\n    return a - b", ("a=1, b=2", "b=2, a=1", "b=4, a=1", "a=3, b=4")),
    ],
)
def test_one_input_in_two_spellings_is_one_input(judge: Judge, program: str, inputs: tuple[str, ...]) -> None:
    assert refused_by(judge(program, *inputs, family="induction")) == "distinct_inputs"


def test_inputs_of_different_types_are_different(judge: Judge) -> None:
    assert isinstance(judge(DOUBLE, "1", "1.0", "True", "'1'", family="induction"), Task)


LONG = """import math

def f(x, limit=3):
    total = x * 2 + 1
    for y in range(limit):
        total += y
    return total
"""


@pytest.mark.parametrize(
    "message",
    [
        "```\nx\n```",
        "def g(x): x",
        "try lambda x: x",
        "just return x",
        "import math",
        "what is f(3)?",
        "<answer>",
        "<think>",
        "total = x * 2 + 1",
        "it has total=x*2+1 in it",
        "total\t=\n x  *  2 + 1",
        "compute x*2+1 and more",
        "for y in range( limit ) :",
        "total+=y",
        "x\u200b *\u200b 2 +\u200b 1",
        "x\uff0a2\uff0b1",
        "x\u00a0*\u20032 + 1",
        "x \u00b7 2 + 1",
        "x \u00d7 2 + 1",
        "\u0445 * 2 + 1",
    ],
)
def test_a_message_that_gives_the_program_away_is_refused(judge: Judge, message: str) -> None:
    outcome = judge(LONG, *PAIRS, message=message, family="induction")
    assert refused_by(outcome) == "message"


@pytest.mark.parametrize(
    "message",
    ["", "What is the total?", "Double it, add one, then what?", "A limit of x totals: 2 and 1.", "Wie groß? 数える"],
)
def test_a_message_in_plain_words_is_not(judge: Judge, message: str) -> None:
    assert isinstance(judge(LONG, *PAIRS, message=message, family="induction"), Task)


@pytest.mark.parametrize(
    ("program", "inputs", "message", "check"),
    [
        (DOUBLE, ("1", "2", "30", "40"), "30 gives 60 and 40 gives 80", "message"),
        (DOUBLE, ("1", "2", "30", "40"), "30,40 -> 60,80", "message"),
        (DOUBLE, ("[1]", "[2]", "[3]", "[4]"), "[ 3 ] is [3,3], [4] is [4,4]", "message"),
        (DOUBLE, ("'a'", "'b'", "'abc'", "'hey'"), "abc gives abcabc, \"hey\" gives 'heyhey'", "message"),
        (DOUBLE, ("7", "8"), "8 gives 16", "message"),
        (DOUBLE, ("1", "2", "30", "40"), "30 gives 60, and 40?", "admitted"),
        (DOUBLE, ("1", "2", "3", "4"), "1 gives 2 and 2 gives 4", "admitted"),
        (DOUBLE, ("1", "2", "3", "4"), "What of 13, 26, 48.5 and 4.3?", "admitted"),
        ("def f(x):\n    return abs(x)", ("-1", "2", "3", "4"), "Is it 3 or 4?", "admitted"),
    ],
)
def test_a_message_that_tells_the_pairs_that_judge_is_refused(
    judge: Judge, program: str, inputs: tuple[str, ...], message: str, check: str
) -> None:
    assert refused_by(judge(program, *inputs, message=message, family="induction")) == check


def test_statements_are_cut_out_at_the_right_places() -> None:
    program = "def f(x):\r\n    ä = 'größer'; b = (x +\n      ä)\r    return (ä,\x0c b)\n"
    parts = [" ".join(text.split()) for text in _statements(program)]
    for part in ("ä = 'größer'", "b = (x + ä)", "x + ä", "return (ä, b)", "(ä, b)", "'größer'"):
        assert part in parts or f"({part})" in parts, part


def test_a_program_of_a_thousand_statements_is_compared_in_no_time() -> None:
    program = "def f(x):\n" + " ;".join([" x=1"] * 1000)
    start = time.process_time()
    assert len(_statements(program)) > 2000
    assert time.process_time() - start < 0.5


def test_a_long_message_is_refused(judge: Judge) -> None:
    assert refused_by(judge(LONG, *PAIRS, message="a" * 1025, family="induction")) == "size"


@pytest.mark.parametrize(
    ("program", "inputs", "check"),
    [
        ("def f(x):\n    return x > 2", ("1", "3", "4", "5"), "depends_on_input"),
        ("def f(x):\n    return x > 2", ("1", "4", "2", "5"), "admitted"),
        ("def f(x):\n    return x % 2", ("1", "2", "3", "5", "7", "9"), "depends_on_input"),
    ],
)
def test_a_constant_cannot_be_right_on_the_pairs_that_judge(
    judge: Judge, program: str, inputs: tuple[str, ...], check: str
) -> None:
    assert refused_by(judge(program, *inputs, family="induction")) == check


# -- new ---------------------------------------------------------------------------------------------------------------


def batch(sandbox: Executor, *candidates: Candidate, **settings: Any) -> list[str]:
    gate = Gate(sandbox, GateConfig(limits=FAST), **settings)
    return [refused_by(outcome) for outcome in gate.judge(candidates)]


def candidate(program: str, *inputs: str, family: str = "deduction", message: str = "", lot: int = 0) -> Candidate:
    return Candidate(family, Proposal(program, inputs or ("4",), message), lot=lot)


SAME = {
    "the same text": (DOUBLE, "4"),
    "another input": (DOUBLE, "5"),
    "formatting": ("def f( x ):\n\n    return x*2", "4"),
    "a comment": ("# new!\n" + DOUBLE, "4"),
    "another variable": ("def f(value):\n    return value * 2", "4"),
    "a keyword": (DOUBLE, "x=4"),
    "another keyword": ("def f(value):\n    return value * 2", "value=4"),
    "a keyword-only parameter": ("def f(*, value):\n    return value * 2", "value=4"),
    "another way": ("def f(x):\n    return sum([x, x])", "4"),
    "an unused default": ("def f(x, y=3):\n    return x + x", "4"),
    "dead code": ("def f(x):\n    if x == 'never':\n        return 0\n    return x * 2", "4"),
}


@pytest.mark.parametrize("how", SAME)
def test_a_program_that_does_the_same_is_not_new(sandbox: Executor, how: str) -> None:
    assert batch(sandbox, candidate(DOUBLE), candidate(*SAME[how])) == ["admitted", "new"]


def test_failing_in_another_way_is_not_new(sandbox: Executor) -> None:
    programs = (
        f"def f(x):\n    if x < 0:\n        raise {kind}\n    return x + 1" for kind in ("ValueError", "KeyError")
    )
    assert batch(sandbox, *map(candidate, programs)) == ["admitted", "new"]


def test_programs_that_differ_are_new(sandbox: Executor) -> None:
    triple = "def f(x):\n    return x * 3"
    found = batch(sandbox, candidate(DOUBLE), candidate(triple), candidate(DOUBLE, "'a'"), candidate(DOUBLE, "4.0"))
    assert found == ["admitted"] * 4


def test_two_programs_of_which_the_probes_say_nothing_are_told_apart_by_their_text(sandbox: Executor) -> None:
    # Both give an empty list on every probe, so by their behaviour alone the second would be refused wrongly.
    keys = "import re\n\ndef f(text):\n    return re.findall('<([a-z]+)=', text)"
    values = "import re\n\ndef f(text):\n    return re.findall('=([a-z]+)>', text)"
    renamed = keys.replace("text", "s")
    found = batch(sandbox, *(candidate(program, "'<a=b>'") for program in (keys, values, renamed)))
    assert found == ["admitted", "admitted", "new"]


def test_families_and_lots_do_not_share_what_is_new(sandbox: Executor) -> None:
    other, alone = candidate(DOUBLE, family="abduction"), candidate(DOUBLE, lot=1)
    assert batch(sandbox, candidate(DOUBLE), other, alone) == ["admitted"] * 3


def test_what_is_known_is_not_new(sandbox: Executor) -> None:
    seen: list[Task] = []

    def known(task: Task) -> bool:
        seen.append(task)
        return True

    gate = Gate(sandbox)
    outcome = gate.judge([Candidate("deduction", Proposal(DOUBLE, ("4",)), known)])[0]
    assert refused_by(outcome) == "new"
    assert seen[0].behaviour


@pytest.mark.parametrize(
    ("inputs", "message", "found"),
    [
        (("1", "2", "3", "4"), "other words", "new"),
        (("4", "3", "2", "1"), "", "new"),
        (("1", "2", "3", "x=4"), "", "new"),
        (("1", "2", "3", "5"), "", "new"),
        (("5", "1", "2", "x=3"), "", "new"),
        (("1", "2", "5", "6"), "", "admitted"),
        (("1.0", "2.0", "3.0", "4.0"), "", "admitted"),
    ],
)
def test_an_induction_task_needs_a_new_program_or_half_of_its_inputs_new(
    sandbox: Executor, inputs: tuple[str, ...], message: str, found: str
) -> None:
    first = candidate(DOUBLE, "1", "2", "3", "4", family="induction")
    assert batch(sandbox, first, candidate(DOUBLE, *inputs, family="induction", message=message)) == ["admitted", found]


@pytest.mark.parametrize(
    "disguise",
    [
        DOUBLE,
        "# mine\ndef f( x ) :\n    '''Doubles.'''\n\n    return ( x*2 )\n",
        "def f(number: int) -> int:\n    return number * 2",
    ],
)
def test_a_held_out_program_is_refused_however_it_is_written(sandbox: Executor, disguise: str) -> None:
    deep = "def f(x):\n    return x" + "+1" * 2000  # nothing that a proposal can be, and no reason to fail
    assert batch(sandbox, candidate(disguise), held_out=[deep, DOUBLE]) == ["held_out"]
    assert batch(sandbox, candidate("def f(x):\n    return x * 3"), held_out=[deep, DOUBLE]) == ["admitted"]


# -- three-valued, in order, switchable --------------------------------------------------------------------------------


def test_a_failure_of_ours_is_no_verdict_and_touches_no_other_row(fake: Any) -> None:
    def answer(program: str, text: str) -> Execution:
        if "broken" in program:
            return Execution(Status.NO_VERDICT, message="out of order")
        return Execution(Status.OK, f"[{len(program)}, {text}]")

    rows = [candidate(f"def f(x):\n    return {what}") for what in ("x", "broken", "x + 1", "1 +")]
    outcomes = Gate(fake(answer)).judge(rows)
    assert [type(outcome) for outcome in outcomes] == [Task, NoVerdict, Task, Rejected]
    assert outcomes[1] == NoVerdict("out of order")
    without = Gate(fake(answer)).judge([rows[n] for n in (0, 2, 3)])
    assert without == [outcomes[n] for n in (0, 2, 3)]


@pytest.mark.parametrize("batch_number", [1, 2, 3])
def test_a_failure_of_ours_in_any_batch_is_no_verdict(fake: Any, batch_number: int) -> None:
    def answer(program: str, text: str) -> Execution:
        late = len(executor.batches) >= batch_number
        return Execution(Status.NO_VERDICT) if late else Execution(Status.OK, text)

    executor = fake(answer)
    assert isinstance(Gate(executor).judge([candidate(DOUBLE)])[0], NoVerdict)
    assert len(executor.batches) >= batch_number


def test_all_proposals_share_three_batches(echo: Any) -> None:
    program = "def f(x):\n    return x + {}"
    outcomes = Gate(echo).judge([candidate(program.format(n)) for n in range(10)])
    assert len(outcomes) == 10
    assert [len(jobs) for jobs in echo.batches] == [10, 10, 10]


def test_nothing_to_judge_runs_nothing(echo: Any) -> None:
    assert Gate(echo).judge([]) == []
    assert refused_by(Gate(echo).judge([candidate("def f(")])[0]) == "syntax"
    assert not any(jobs for jobs in echo.batches)


SWITCHED = {
    "distinct_inputs": ("def f(x):\n    return x * 2", ("1", "2", "2", "3"), ""),
    "message": (DOUBLE, ("1", "2", "3", "4"), "return x * 2"),
    "depends_on_input": ("def f(x):\n    return 7", ("4",), ""),
    "deterministic": ("def f(x):\n    return [str(f), x]", ("4",), ""),
}


@pytest.mark.parametrize("check", SWITCHED)
def test_an_optional_check_can_be_switched_off(sandbox: Executor, check: str) -> None:
    program, inputs, message = SWITCHED[check]
    proposal = candidate(program, *inputs, message=message)
    for disabled, expected in ((frozenset(), check), (frozenset({check}), "admitted")):
        gate = Gate(sandbox, GateConfig(limits=FAST, disabled=disabled))
        assert refused_by(gate.judge([proposal])[0]) == expected


def test_new_and_held_out_can_be_switched_off(sandbox: Executor) -> None:
    gate = Gate(sandbox, GateConfig(disabled=frozenset({"new", "held_out"})), held_out=[DOUBLE])
    assert [refused_by(outcome) for outcome in gate.judge([candidate(DOUBLE)] * 2)] == ["admitted", "admitted"]


@pytest.mark.parametrize("check", [*sorted(set(CHECKS) - OPTIONAL), "nonsense"])
def test_no_other_check_can(check: str) -> None:
    with pytest.raises(InvalidConfig, match=check):
        GateConfig(disabled=frozenset({check}))


def test_an_unknown_check_is_named_with_the_nearest_one() -> None:
    with pytest.raises(InvalidConfig, match="no check 'massage'; did you mean 'message'"):
        GateConfig(disabled=frozenset({"massage"}))


@pytest.mark.parametrize("field", ["program_characters", "input_characters", "message_characters"])
@pytest.mark.parametrize("value", [0, -1, 65_537])
def test_impossible_caps_are_refused(field: str, value: int) -> None:
    with pytest.raises(InvalidConfig, match=f"{field} must be between 1 and 65536, got {value}"):
        GateConfig(**{field: value})  # type: ignore[arg-type]


def test_values_that_no_answer_could_hold_are_no_tasks() -> None:
    with pytest.raises(InvalidConfig, match="output_bytes of the gate must be at most 65536, got 65537"):
        GateConfig(limits=Limits(output_bytes=65_537))


# -- what is off unless asked for ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "single"),
    [
        ("arithmetic", True),
        ("a decorator", True),
        ("a nested function", False),
        ("a class", False),
        ("a recursive helper", False),
    ],
)
def test_helpers_are_refused_where_one_def_is_asked_for(sandbox: Executor, name: str, single: bool) -> None:
    program, given, *_ = HONEST[name]
    candidate = Candidate("deduction", Proposal(program, (given,)))
    assert refused_by(Gate(sandbox, GateConfig()).judge([candidate])[0]) == "admitted"
    strict = Gate(sandbox, GateConfig(single_def=True)).judge([candidate])[0]
    assert refused_by(strict) == ("admitted" if single else "single_def")


def test_a_lambda_is_no_def(sandbox: Executor) -> None:
    candidate = Candidate("deduction", Proposal("def f(x):\n    return (lambda y: y + 1)(x)", ("4",)))
    assert isinstance(Gate(sandbox, GateConfig(single_def=True)).judge([candidate])[0], Task)


@pytest.mark.parametrize("length", [8, 9, 300])
def test_outputs_are_cut_only_where_that_is_asked_for(sandbox: Executor, length: int) -> None:
    """The published code cuts in the middle, and what is left of a string is another string."""
    program = "def f(x, n):\n    return ('ab' * 500)[:n] if x else 'b'"
    candidate = Candidate("deduction", Proposal(program, (f"True, {length - 2}",)))
    (task,) = Gate(sandbox, GateConfig()).judge([candidate])
    (cut,) = Gate(sandbox, GateConfig(cut_outputs=8)).judge([candidate])
    assert isinstance(task, Task)
    assert isinstance(cut, Task)
    (whole,) = task.outputs
    assert len(whole) == length
    assert cut.outputs == (whole if length == 8 else f"{whole[:4]}...{whole[-4:]}",)


@pytest.mark.parametrize("most", [1, 0, -400])
def test_an_output_keeps_two_ends(most: int) -> None:
    with pytest.raises(InvalidConfig, match="cut_outputs must be at least 2"):
        GateConfig(cut_outputs=most)


def test_the_lax_gate_admits_what_the_published_code_does(sandbox: Executor) -> None:
    """What is refused by an optional check alone is a task when all that azr-paper switches off are off."""
    lax = GateConfig(disabled=frozenset({"distinct_inputs", "message", "depends_on_input", "new", "deterministic"}))
    unordered = "def f(x):\n    return list({str(x), 'b', 'c', 'd', 'e', 'f', 'g'})"
    proposals = {
        "depends_on_input": Candidate("deduction", Proposal("def f(x):\n    return 1", ("4",))),
        "deterministic": Candidate("deduction", Proposal(unordered, ("4",))),
        "distinct_inputs": Candidate("induction", Proposal(DOUBLE, ("1", "1"), "What grows?")),
        "message": Candidate("induction", Proposal(DOUBLE, ("1", "2"), "return x * 2")),
        "new": Candidate("deduction", Proposal(DOUBLE, ("4",)), known=lambda task: True),
    }
    for check, candidate in proposals.items():
        assert refused_by(Gate(sandbox).judge([candidate])[0]) == check
        assert refused_by(Gate(sandbox, lax).judge([candidate])[0]) == "admitted", check
