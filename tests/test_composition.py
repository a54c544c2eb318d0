"""Composed programs: what can be a part, what a proposal must do with the parts, and that nothing else slips in."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from selfplay_gym import composition, literals
from selfplay_gym.archive import Archive
from selfplay_gym.composition import NotComposed, compatible, compose, helper, without
from selfplay_gym.errors import InvalidConfig
from selfplay_gym.gate import Candidate, Gate, GateConfig, Outcome
from selfplay_gym.protocols import ComposingFamily, Executor
from selfplay_gym.referee import Referee
from selfplay_gym.registry import make_family
from selfplay_gym.tasks import nano_programs
from selfplay_gym.types import Execution, Job, Limits, NoVerdict, Proposal, Rejected, Status, Task

TRIPLE = "def g_0(x):\n    return x * 3"
LIMITS = Limits(cpu_seconds=0.2, wall_seconds=1.0)

# -- parts -------------------------------------------------------------------------------------------------------------

PLAIN = {
    "def f(x): return x * 3": TRIPLE,
    '"""What it does."""\ndef f(x): return x * 3  # triples': TRIPLE,
    "import math\nfrom re import sub as s\ndef f(x): return math.floor(s('a', '', x))": (
        "import math\nfrom re import sub as s\n\ndef g_0(x):\n    return math.floor(s('a', '', x))"
    ),
    "def f(x): return [f(y) for y in x] or 'f(x)'": "def g_0(x):\n    return [g_0(y) for y in x] or 'f(x)'",
    "def f(x, *, k=2): return x.f(f=k)": "def g_0(x, *, k=2):\n    return x.f(f=k)",
    "import functools\n@functools.cache\ndef f(n): return n and f(n - 1) + n": (
        "import functools\n\n@functools.cache\ndef g_0(n):\n    return n and g_0(n - 1) + n"
    ),
}


@pytest.mark.parametrize(("program", "function"), PLAIN.items())
def test_a_plain_function_becomes_one_of_another_name(program: str, function: str) -> None:
    assert helper(program, "g_0") == function


@pytest.mark.parametrize(
    "program",
    [
        "def f(x) return",
        "def g(x): return x",
        "def h(x): return x\ndef f(x): return h(x)",
        "n = 3\ndef f(x): return x * n",
        "class C:\n    pass\ndef f(x): return C",
        "f = lambda x: x",
        "async def f(x): return x",
        "def f(x): return x\ndef f(x): return 2",
        "def f(x):\n    f = 3\n    return f",
        "def f(f): return f",
        "def f(x):\n    def f(y): return y\n    return f(x)",
        "from math import floor as f\ndef f(x): return x",
        "def f(x):\n    global n\n    n = x\n    return n",
        "from __future__ import annotations\ndef f(x): return x",
        "from math import *\ndef f(x): return x",
        "def f(x): return g_1(x)",
        "def f(g_0): return g_0",
        "print(1)\ndef f(x): return x",
    ],
)
def test_anything_more_is_no_part(program: str) -> None:
    assert helper(program, "g_0") is None


def test_a_composed_program_is_no_part_again() -> None:
    assert helper(compose("def f(y): return g_0(y)", [TRIPLE]), "g_0") is None


def test_two_functions_may_share_an_import_but_no_name() -> None:
    parts = ["import math\ndef g_0(x): return math.floor(x)", "import math\ndef g_1(x): return math.ceil(x)"]
    assert compatible(parts)
    assert not compatible([parts[0], "from statistics import mean as math\ndef g_1(x): return math(x)"])
    text = compose("import math\ndef f(x): return g_0(x) + g_1(x) + math.pi", parts)
    assert text.count("import math") == 1


# -- putting them together ---------------------------------------------------------------------------------------------

REFUSED = {
    "not called": ("def f(x): return x", "g_0 is not called"),
    "called in a text": ("def f(x): return 'g_0(x)'  # g_0(x)", "g_0 is not called"),
    "an attribute of that name": ("def f(x): return x.g_0(x)", "g_0 is not called"),
    "constants alone": ("def f(x): return x + g_0(3)", "g_0 is called with constants alone"),
    "nothing": ("def f(x): return x + g_0()", "g_0 is called with constants alone"),
    "written again": ("def g_0(x): return 5\ndef f(x): return g_0(x)", "g_0 is given to something else"),
    "a parameter": ("def f(x, g_0=abs): return g_0(x)", "g_0 is given to something else"),
    "a variable": ("def f(x):\n    g_0 = abs\n    return g_0(x)", "g_0 is given to something else"),
    "imported over": ("from math import floor as g_0\ndef f(x): return g_0(x)", "g_0 is given to something else"),
    "caught over": (
        "def f(x):\n    try:\n        return g_0(x)\n    except E as g_0:\n        return 1",
        "something else",
    ),
    "a builtin replaced": ("def len(x): return 7\ndef f(x): return g_0(x)", "len means something else"),
    "replaced from inside": ("def f(x):\n    global len\n    len = 3\n    return g_0(x)", "len means something else"),
    "an import replaced": ("math = 5\ndef f(x): return g_0(x)", "math means something else"),
    "what was undefined": ("missing = 5\ndef f(x): return g_0(x)", "missing means something else"),
    "not first": ("from __future__ import annotations\ndef f(x): return g_0(x)", "__future__"),
}


@pytest.mark.parametrize(("program", "message"), REFUSED.values(), ids=REFUSED)
def test_a_program_that_does_not_use_its_parts_as_they_are_is_refused(program: str, message: str) -> None:
    part = "import math\ndef g_0(x): return math.floor(len([x])) if x else missing"
    with pytest.raises(NotComposed, match=message):
        compose(program, [part])


@pytest.mark.parametrize(
    "program",
    [
        "def f(x): return g_0(x)",
        "def f(x): return list(map(g_0, x))",
        "def f(x): return g_0(x=x)",
        "def f(x):\n    len = 3\n    return g_0(x) + len",
        "import math\ndef f(x): return g_0(math.floor(x))",
        "def h(n): return g_0(n) + 1\n\ndef f(x): return h(x)",
        "def f(x): return g_0([y for y in x])",
    ],
)
def test_a_program_that_does_is_one_text_with_them(program: str) -> None:
    text = compose(program, ["import math\ndef g_0(x): return math.floor(len([x]))"])
    names = [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    assert names[0] == "g_0"
    assert names[-1] == "f"


def test_what_cannot_be_written_again_is_refused_and_not_a_crash() -> None:
    with pytest.raises(NotComposed, match="written"):
        compose("def f(x): return g_0(x) + " + hex(10**6000), [TRIPLE])


def test_the_parts_do_in_company_what_they_do_alone(sandbox: Executor) -> None:
    rng = random.Random(0)
    jobs, expected = [], []
    while len(jobs) < 40:
        inner, outer = (nano_programs.random_program(rng.randint(1, 3), rng) for _ in range(2))
        value = nano_programs.random_value(inner.takes, rng)
        if (first := inner.trace(value)) is None or type(first[-1]) is not outer.takes:
            continue
        if (second := outer.trace(first[-1])) is None:
            continue
        parts = [helper(inner.source, "g_0"), helper(outer.source, "g_1")]
        assert parts[0] is not None
        assert parts[1] is not None
        program = compose("def f(x):\n    return g_1(g_0(x))", [parts[0], parts[1]])
        jobs.append(Job(program, (literals.encode(value),)))
        expected.append(literals.encode(second[-1]))
    assert [runs[0].value for runs in sandbox.run(jobs)] == expected


def test_a_part_can_be_taken_out() -> None:
    text = compose("def f(y): return g_1(g_0(y))", [TRIPLE, "def g_1(x):\n    return x + 1"])
    assert without(text, "g_1") == text.replace("return x + 1", "return None")
    assert without(text, "g_2") == text


# -- the gate ----------------------------------------------------------------------------------------------------------


def judged(
    executor: Executor, program: str, given: str = "4", parts: tuple[str, ...] = (TRIPLE,), **caps: Any
) -> Outcome:
    gate = Gate(executor, GateConfig(limits=LIMITS, **caps))
    return gate.judge([Candidate("deduction", Proposal(program, (given,)), functions=parts)])[0]


def test_a_composed_proposal_becomes_a_task_that_stands_alone(sandbox: Executor) -> None:
    task = judged(sandbox, "def f(y):\n    return g_0(y) + 1")
    assert isinstance(task, Task)
    assert (task.outputs, task.program) == (("13",), f"{TRIPLE}\n\ndef f(y):\n    return g_0(y) + 1")


@pytest.mark.parametrize(
    "program",
    [
        "def f(y):\n    return y + 1",
        "def f(y):\n    if False:\n        g_0(y)\n    return y + 1",
        "def f(y):\n    g_0(y)\n    return y + 1",
        "def f(y):\n    z = g_0(y)\n    return y + 1",
        "def f(y):\n    try:\n        return y + 1\n    finally:\n        g_0(y)",
        "def h(n):\n    return g_0(n)\n\ndef f(y):\n    return y + 1",
        "def f(y):\n    return (g_0, y)[1]",
    ],
)
def test_a_call_without_effect_is_no_use(sandbox: Executor, program: str) -> None:
    outcome = judged(sandbox, program)
    assert isinstance(outcome, Rejected)
    assert outcome.check == "composite"


def test_every_part_must_matter(sandbox: Executor) -> None:
    parts = (TRIPLE, "def g_1(x):\n    return x + 1")
    assert isinstance(judged(sandbox, "def f(y):\n    return g_1(g_0(y))", parts=parts), Task)
    outcome = judged(sandbox, "def f(y):\n    z = g_1(y)\n    return g_0(y)", parts=parts)
    assert outcome == Rejected("composite", "what g_1 returns makes no difference")


@pytest.mark.parametrize(
    ("check", "program"),
    [
        ("syntax", "def f(y) return g_0(y)"),
        ("policy", "import os\n\ndef f(y):\n    return g_0(y)"),
        ("signature", "def h(y):\n    return g_0(y)"),
        ("runs", "def f(y):\n    return g_0(y) // 0"),
        ("depends_on_input", "def f(y):\n    return g_0(y) * 0"),
    ],
)
def test_the_other_checks_see_the_whole_program(sandbox: Executor, check: str, program: str) -> None:
    outcome = judged(sandbox, program)
    assert isinstance(outcome, Rejected)
    assert outcome.check == check


def test_the_cap_is_on_the_whole_program(sandbox: Executor) -> None:
    program = "def f(y):\n    return g_0(y) + 1"
    outcome = judged(sandbox, program, program_characters=len(program) + 10)
    assert isinstance(outcome, Rejected)
    assert outcome.check == "size"


def test_our_own_failure_without_a_part_is_no_verdict(fake: Callable[[Any], Executor]) -> None:
    def answer(program: str, text: str) -> Execution:
        broken = "return None" in program
        return Execution(Status.NO_VERDICT) if broken else Execution(Status.OK, text)

    assert isinstance(judged(fake(answer), "def f(y):\n    return g_0(y)"), NoVerdict)


# -- the game ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive(":memory:") as opened:
        yield opened


def referee_of(executor: Executor, archive: Archive, **settings: Any) -> Referee:
    family = make_family("deduction", style="compact", references=3, **settings)
    return Referee({"deduction": family}, executor, archive)


def test_the_share_of_composed_proposals_is_the_setting(sandbox: Executor, archive: Archive) -> None:
    referee = referee_of(sandbox, archive, composite=0.3)
    rng = random.Random(0)
    requests = [referee.proposal_prompt("deduction", rng) for _ in range(1000)]
    composed = [request for request in requests if request.functions]
    assert abs(len(composed) - 300) < 58  # four deviations
    assert all(request.functions[0] in request.prompt for request in composed)
    assert all("g_0" not in request.prompt for request in requests if not request.functions)


@pytest.mark.parametrize("functions", [1, 2])
def test_no_more_functions_must_be_called_than_is_set(functions: int, sandbox: Executor, archive: Archive) -> None:
    referee = referee_of(sandbox, archive, composite=1.0, functions=functions)
    for number in range(2):
        archive.add_task(Task("deduction", f"def f(x):\n    return [x, {number}]", ("1",), (f"[1, {number}]",)), 0)
    request = referee.proposal_prompt("deduction", random.Random(0))
    assert (len(request.references), len(request.functions)) == (3, functions)


def test_off_is_as_if_there_were_no_such_thing(sandbox: Executor, archive: Archive) -> None:
    rng, other = random.Random(0), random.Random(0)
    referee = referee_of(sandbox, archive)
    assert [referee.proposal_prompt("deduction", rng).functions for _ in range(9)] == [()] * 9
    for _ in range(9):
        archive.sample("deduction", 3, other)
    assert rng.getstate() == other.getstate()


@pytest.mark.parametrize("style", ["azr", "chat", "compact"])
@pytest.mark.parametrize("name", ["deduction", "abduction", "error"])
def test_the_families_that_write_programs_compose(name: str, style: str) -> None:
    family = make_family(name, style=style, composite=1)
    assert isinstance(family, ComposingFamily)
    prompt = family.composite_prompt([], [TRIPLE, "def g_1(x): return '$x'"], random.Random(0))
    assert TRIPLE in prompt
    assert "'$x'" in prompt
    assert not isinstance(make_family("induction", style=style), ComposingFamily)


def test_a_composed_proposal_is_stored_with_what_it_was_made_of(sandbox: Executor, archive: Archive) -> None:
    referee = referee_of(sandbox, archive, composite=1.0, functions=2)
    archive.add_task(Task("deduction", "def f(x):\n    return [x]", ("1",), ("[1]",)), 0)
    request = referee.proposal_prompt("deduction", random.Random(0))
    assert [composition.name_of(n) in text for n, text in enumerate(request.functions)] == [True, True]
    program = (
        "def f(y):\n    return g_1(g_0(y)) + g_0(y)"
        if "[x]" in request.functions[0]
        else ("def f(y):\n    return g_0(g_1(y)) + g_1(y)")
    )
    text = f"</think><answer>```python\n{program}\n```\n```input\n5\n```</answer>"
    (outcome,) = referee.judge_proposals([request], [text])
    assert isinstance(outcome, Task), outcome
    assert outcome.outputs == ("[5, 5]",)
    (task_id,) = referee.store(1, [request], [outcome], [text])
    assert task_id is not None
    assert archive.lineage(task_id) == sorted(stored.id for stored in request.references)


@pytest.mark.parametrize(
    ("setting", "value"), [("composite", -0.1), ("composite", 2), ("composite", True), ("functions", 0)]
)
def test_impossible_settings_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(InvalidConfig, match=setting):
        make_family("abduction", **{setting: value})
