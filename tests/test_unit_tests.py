"""The suites of unit tests: how tests are read, which program an answer stands for, and that no cheat is paid."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfplay_gym import literals, suites
from selfplay_gym.completions import read_completions
from selfplay_gym.errors import InvalidData
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.grading import grade
from selfplay_gym.results import SuiteResult
from selfplay_gym.suites import Source, Suite
from selfplay_gym.tasks import asserts, beside, rules
from selfplay_gym.tasks.asserts import Case, NotCases
from selfplay_gym.tasks.unit_tests import UnitTests, outcomes_job, program_of
from selfplay_gym.types import Execution, Job
from tests.wrong_programs import CHANGES, LOOP, changed

REAL = Path(os.environ.get(suites.DATA_VARIABLE, ""))
needs_data = pytest.mark.skipif(
    not os.environ.get(suites.DATA_VARIABLE) or not (REAL / "mbpp_dev.jsonl").is_file(),
    reason=f"set {suites.DATA_VARIABLE} to a folder that holds mbpp_dev.jsonl and its like",
)
Rows = list[dict[str, Any]]

FIXTURES = Path(__file__).parent / "fixtures" / "unit_tests"
HUMANEVAL, MBPP = (
    [dict(row.fields) for row in suites.read(FIXTURES / f"{name}.jsonl")] for name in ("humaneval", "mbpp")
)
LEETCODE_ANSWERS = {
    "weekly-contest-1-add": "class Solution:\n    def add(self, a: int, b: List[int]) -> List[int]:\n"
    "        return [a + x for x in b]",
    "weekly-contest-1-list": "class Solution:\n    def rest(self, head: Optional[ListNode]):\n        return head.next",
}
NAMES = ("humaneval", "humaneval+", "mbpp", "mbpp_sanitized", "mbpp+", "leetcode")


@pytest.fixture(scope="module")
def executor() -> Iterator[SandboxExecutor]:
    with SandboxExecutor(workers=1) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def loaded(executor: SandboxExecutor) -> dict[str, Suite]:
    return {suite.name: suite for suite in suites.load(NAMES, Source(executor, FIXTURES))}


def write(folder: Path, name: str, rows: Rows) -> Path:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def score(executor: SandboxExecutor, suite: Suite, key: str, *programs: str) -> tuple[float | None, ...]:
    result = scored(executor, suite, {key: list(programs)})
    return next(row for row in result.rows if row.id == key).scores


def scored(executor: SandboxExecutor, suite: Suite, answers: dict[str, list[str]]) -> SuiteResult:
    # That is enough for programs that end, and what does not end is waited for.
    return grade(replace(suite, limits=replace(suite.limits, cpu_seconds=0.3)), answers, executor)


def answers_of(suite: Suite) -> dict[str, list[str]]:
    known = LEETCODE_ANSWERS if suite.name == "leetcode" else {}
    return {problem.id: [known.get(problem.id, problem.answer)] for problem in suite.problems}


def task_of(suite: Suite, key: str) -> UnitTests:
    task = next(problem.task for problem in suite.problems if problem.id == key)
    assert isinstance(task, UnitTests)
    return task


# -- what is right -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_reference_is_right_and_says_how_its_tests_were_come_by(
    executor: SandboxExecutor, loaded: dict[str, Suite], name: str
) -> None:
    suite = loaded[name]
    result = scored(executor, suite, answers_of(suite))
    assert [(row.id, row.score, row.reason) for row in result.rows] == [(p.id, 1.0, "") for p in suite.problems]
    levels = {row.id: row.levels for row in result.rows}
    special = {"HumanEval/2": ("recorded",), "HumanEval/3": ("computed",), "HumanEval/32": ("computed",)}
    assert levels == {key: special.get(key, ("stated",)) for key in levels}


@pytest.mark.parametrize("style", ["azr", "chat", "compact"])
def test_prompts_show_the_statement_and_no_reference(executor: SandboxExecutor, style: str) -> None:
    for suite in suites.load(NAMES, Source(executor, FIXTURES, style)):
        for prompt in suite.prompts().values():
            assert "$" not in prompt
            for hidden in ("canonical", "half(x) for", "len(text)", "sum(xs)", "sorted(xs)", "not node.below", "set(a)",
                           "w[0] ==", "re.search", "my_solution", "_f1", "METADATA", "[9000]"):  # fmt: skip
                assert hidden not in prompt, (suite.name, hidden)
    shown = {s.name: s.prompts() for s in suites.load(NAMES, Source(executor, FIXTURES, style))}
    assert str(HUMANEVAL[0]["prompt"]).strip() in shown["humaneval"]["HumanEval/0"]
    assert all(test in shown["mbpp"]["mbpp/11"] for test in MBPP[0]["test_list"])
    assert 'assert starting("ab ba", "b") == ("ba",)' in shown["mbpp+"]["mbpp/30"]
    assert "xa xb" not in shown["mbpp+"]["mbpp/30"]
    assert "class ListNode" in shown["leetcode"]["weekly-contest-1-list"]


def test_mbpp_is_reported_on_its_test_split(loaded: dict[str, Suite]) -> None:
    assert [problem.id for problem in loaded["mbpp"].problems] == ["mbpp/11", "mbpp/12"]


@pytest.mark.parametrize(
    ("key", "program", "right"),
    [
        ("HumanEval/0", "def halves(xs):\n    return [half(x) for x in xs]", 1.0),  # a helper of the prompt
        ("HumanEval/0", "def halves(xs: List[int]):\n    return [x >> 1 for x in xs]", 1.0),  # its import
        ("HumanEval/0", "from __future__ import annotations\ndef halves(xs):\n    return [x >> 1 for x in xs]", 1.0),
        ("HumanEval/0", "    return [half(x) for x in xs]\n", 1.0),
        ("HumanEval/0", "    ys = []\n    for x in xs:\n        ys.append(half(x))\n    return ys\n", 1.0),
        ("HumanEval/0", "    return [half(x) for x in xs]\n\n\nprint(halves([1]))\ndef other(", 1.0),
        ("HumanEval/0", "    def inner(x):\n        return x // 2\n    return [inner(x) for x in xs]", 1.0),
        ("HumanEval/0", "```python\ndef halves(xs):\n    return [half(x) for x in xs]\n```", 1.0),
        ("HumanEval/0", "</think><answer>\n```python\nhalves = lambda xs: [x // 2 for x in xs]\n```\n</answer>", 1.0),
        ("HumanEval/0", "def halved(xs):\n    return [half(x) for x in xs]", 0.0),  # another name
        ("HumanEval/0", "def halves(xs):\n    return [x / 2 for x in xs]", 0.0),
        ("HumanEval/0", "", 0.0),
        ("HumanEval/0", "no idea", 0.0),
        ("HumanEval/1", "def mean(xs):\n    return round(sum(xs) / len(xs), 8)", 1.0),  # within the test's tolerance
        ("HumanEval/1", "def mean(xs):\n    return round(sum(xs) / len(xs), 3)", 0.0),
        ("HumanEval/2", "def letters(text):\n    return sum(1 for _ in text)", 1.0),
        ("HumanEval/2", "def letters(text):\n    return len(text) if len(text) < 150 else 0", 0.0),
    ],
)  # fmt: skip
def test_a_program_may_be_whole_or_go_on_with_the_prompt(
    executor: SandboxExecutor, loaded: dict[str, Suite], key: str, program: str, right: float
) -> None:
    assert score(executor, loaded["humaneval"], key, program) == (right,)


@pytest.mark.parametrize(
    ("name", "key", "program", "right"),
    [
        ("humaneval+", "HumanEval/1", "def mean(xs):\n    return sum(x / len(xs) for x in xs)", 1.0),  # 0.15, nearly
        ("humaneval+", "HumanEval/1", "def mean(xs):\n    return sum(xs) / len(xs) + 1e-3", 0.0),
        ("humaneval+", "HumanEval/3", "def count(n):\n    return [float(x) for x in range(n)]", 1.0),  # by digest
        ("humaneval+", "HumanEval/3", "def count(n):\n    return tuple(range(n))", 0.0),
        ("humaneval+", "HumanEval/3", "def count(n):\n    return list(range(n - (n > 99)))", 0.0),
        ("humaneval+", "HumanEval/32", "def find_zero(xs):\n    return 3.0 if xs[1] else -1.0", 1.0),  # other roots
        ("humaneval+", "HumanEval/32", "def find_zero(xs):\n    return 2.0 if xs[1] else 0.9", 0.0),
        ("mbpp", "mbpp/12", "class Node:\n    def __init__(self, n): self.below = ()\n"
         "def is_leaf(node): return len(node.below) == 0", 1.0),
        ("mbpp_sanitized", "mbpp/21", "def shared(a, b):\n    return [x for x in a if x in b][::-1]", 1.0),
        ("mbpp_sanitized", "mbpp/21", "def shared(a, b):\n    return {x: 1 for x in a if x in b}", 1.0),
        ("mbpp+", "mbpp/30", "from collections import namedtuple\ndef starting(t, l):\n"
         "    ws = [w for w in t.split() if w[0] == l]\n    return namedtuple('W', 'a b c'[: 2 * len(ws)])(*ws)", 1.0),
        ("mbpp+", "mbpp/30", "def starting(t, l):\n    return [w for w in t.split() if w[0] == l]", 0.0),
        ("mbpp+", "mbpp/31", "def check_str(text):\n    return 'a' in text", 1.0),
        ("mbpp+", "mbpp/31", "def check_str(text):\n    return text.find('a')", 0.0),
    ],
)  # fmt: skip
def test_values_are_held_to_the_rules_of_the_set(
    executor: SandboxExecutor, loaded: dict[str, Suite], name: str, key: str, program: str, right: float
) -> None:
    assert score(executor, loaded[name], key, program) == (right,)


def test_a_reference_that_fails_here_is_no_verdict(executor: SandboxExecutor, tmp_path: Path) -> None:
    write(tmp_path, "humaneval", [{**HUMANEVAL[2], "canonical_solution": "    return 1 / 0\n"}])
    (suite,) = suites.load(["humaneval"], Source(executor, tmp_path))
    result = scored(executor, suite, {})
    assert (result.no_verdict, result.rows[0].reason) == (1, "no verdict: reference: error ZeroDivisionError")


def test_results_that_are_no_values_are_computed_and_a_reference_that_gives_none_is_no_verdict(
    executor: SandboxExecutor, tmp_path: Path
) -> None:
    row = {"entry_point": "f", "prompt": '"""\nShown.\n"""', "atol": 0, "base_input": [[1]], "plus_input": []}
    rows = [
        {
            **row,
            "id": "mbpp/1",
            "canonical_solution": "def f(x): return 2 * x",
            "test": "inputs = [[1]]\nresults = [g()]",
        },
        {**row, "id": "mbpp/2", "canonical_solution": "def f(x): return f", "test": "inputs = [[1]]\nresults = [g()]"},
        {**row, "id": "mbpp/3", "canonical_solution": "def f(x): return x", "test": "inputs = [[1j]]\nresults = [1j]"},
    ]
    write(tmp_path, "mbppplus", rows)
    (suite,) = suites.load(["mbpp+"], Source(executor, tmp_path))
    result = scored(executor, suite, {problem.id: [problem.answer] for problem in suite.problems})
    assert [row.score for row in result.rows] == [1.0, None, None]
    assert [row.reason for row in result.rows][1:] == ["no verdict: reference: unserialisable"] * 2


def test_tests_that_do_not_come_apart_are_no_verdict(executor: SandboxExecutor, tmp_path: Path) -> None:
    write(tmp_path, "mbpp", [{**MBPP[0], "test_list": ["assert order([1]) == order([1])"]}])
    (suite,) = suites.load(["mbpp"], Source(executor, tmp_path))
    assert "no call with an expected value" in scored(executor, suite, {}).rows[0].reason


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("humaneval", {"test": "def chock(candidate):\n    pass"}, "defines no function 'check'"),
        ("humaneval", {"prompt": "def other(x):\n    pass"}, "defines no function 'halves'"),
        ("humaneval", {"prompt": "def ("}, "field 'prompt' is no Python"),
    ],
)
def test_a_broken_row_is_named(
    executor: SandboxExecutor, tmp_path: Path, name: str, row: dict[str, object], said: str
) -> None:
    write(tmp_path, name, [{**HUMANEVAL[0], **row}])
    with pytest.raises(InvalidData, match=said):
        suites.load([name], Source(executor, tmp_path))


# -- cheats ------------------------------------------------------------------------------------------------------------

EQUAL = """
class Equal(list):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __getattr__(self, name): return self
    def __call__(self, *given): return self
    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __eq__
    def __hash__(self): return 0
    def __sub__(self, other): return self
    __rsub__ = __add__ = __radd__ = __abs__ = __sub__
    def __float__(self): return 0.0
    def __bool__(self): return True
"""
CHEATS = {
    "an exit": "raise SystemExit(0)",
    "an exit in the call": "def ENTRY(*given):\n    raise SystemExit(0)",
    "a process that ends well": "import os\ndef ENTRY(*given):\n    os._exit(0)",
    "a process that ends well at once": "import os\nos._exit(0)",
    "always equal": EQUAL + "def ENTRY(*given):\n    return Equal()",
    "always equal, of no type": EQUAL.replace("(list)", "") + "def ENTRY(*given):\n    return Equal()",
    "a mock": "from unittest.mock import ANY\ndef ENTRY(*given):\n    return ANY",
    "a mock, by import": "def ENTRY(*given):\n    return __import__('unittest.mock').mock.ANY",
    "its own check": "def ENTRY(*given):\n    return None\n\ndef check(candidate):\n    pass\n\ncheck(ENTRY)",
    "its own driver": "def _outcomes(part):\n    return [1]\ndef ENTRY(*given):\n    return None",
    "its own candidate": "candidate = lambda *given: None\ndef ENTRY(*given):\n    return None",
    "asserts switched off": "import builtins\nbuiltins.AssertionError = Exception\n__debug__ and None\n"
                            "def ENTRY(*given):\n    return None",
    "builtins replaced": "import builtins\nfor name in ('len', 'repr', 'isinstance', 'all', 'set', 'abs'):\n"
                         "    setattr(builtins, name, lambda *given: True)\ndef ENTRY(*given):\n    return None",
    "numpy replaced": "import numpy\nnumpy.allclose = lambda *given, **more: True\nnumpy.all = numpy.allclose\n"
                      "numpy.testing.assert_allclose = numpy.allclose\ndef ENTRY(*given):\n    return None",
    "unittest replaced": "import unittest\nunittest.TestCase.assertEqual = lambda *given: None\n"
                         "def ENTRY(*given):\n    return None",
    "math replaced": "import math\nmath.isclose = lambda *given, **more: True\ndef ENTRY(*given):\n    return None",
    "what it is held to, out of frames": """
import sys
def ENTRY(*given):
    frame = sys._getframe(1)
    while frame is not None:
        for space in (frame.f_locals, frame.f_globals):
            for name in ('exp', 'expected', 'results', 'outputs', 'ref_func', '_reference', 'right'):
                if name in space:
                    return space[name]
        frame = frame.f_back
""",
    "what it is held to, out of memory": """
import gc
def ENTRY(*given):
    held = [each for each in gc.get_objects() if isinstance(each, list) and len(each) == 3]
    return held[-1] if held else None
""",
    "caught": "def ENTRY(*given):\n    try:\n        raise AssertionError\n    except AssertionError:\n        pass",
    "a trace that skips": "import sys\nsys.settrace(lambda *given: None)\ndef ENTRY(*given):\n    return None",
    "printed": "def ENTRY(*given):\n    print('True')\n    print('PASS')\n    print('[2, 3]')",
    "an exit code printed": "import sys\ndef ENTRY(*given):\n    sys.stdout.write('1.0\\n')\n    sys.stdout.flush()",
    "arguments changed": "def ENTRY(*given):\n    for each in given:\n        if hasattr(each, 'clear'): each.clear()\n"
                         "    return given[0]",
    "a reference that is poisoned": "def ref_func(*given):\n    return None\n_reference = ref_func\n"
                                    "results = []\ninputs = []\ndef ENTRY(*given):\n    return None",
    "text that swallows the tests": "def ENTRY(*given):\n    return None\n'''",
    "text that goes on": "def ENTRY(*given):\n    return None\nif False: \\",
    "a frame written by hand": """
import os, struct, marshal
def ENTRY(*given):
    for number in range(3, 20):
        try:
            os.write(number, struct.pack('<IBII', 4, 0, 0, 1) + b'True')
        except OSError:
            pass
""",
    "an endless loop": "def ENTRY(*given):\n    while True: pass",
    "a thread that goes on": "import threading\nthreading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()\n"
                             "def ENTRY(*given):\n    return None",
    "a digest out of the air": "def ENTRY(*given):\n    return 'digest ' + '0' * 64",
    "replaced digests": "def ENTRY(*given):\n    return None\n"
                        "import hashlib\nhashlib.sha256 = lambda *given: ENTRY\nENTRY.hexdigest = lambda: ''",
    "or True": "ENTRY = lambda *given: None or True",
    "deep": "def ENTRY(*given):\n    value = []\n    for _ in range(10**5): value = [value]\n    return value",
    "huge": "def ENTRY(*given):\n    return [0] * 10**7",
    "a huge integer": "def ENTRY(*given):\n    return 10 ** 10**5",
}  # fmt: skip
"""Answers that know nothing and want to be paid. None may return a value that is right by chance."""

KNOWN = {
    "humaneval": "HumanEval/0",
    "humaneval+": "HumanEval/0",
    "mbpp": "mbpp/11",
    "mbpp_sanitized": "mbpp/20",
    "mbpp+": "mbpp/30",
    "leetcode": "weekly-contest-1-add",
}


def cheat_of(suite: Suite, key: str, text: str) -> str:
    """Return the cheat as an answer to a problem."""
    if suite.name == "leetcode":
        return (
            text.replace("ENTRY", "cheat")
            + "\nclass Solution:\n    def add(self, **given): return cheat(*given.values())"
        )
    call = task_of(suite, key).inputs[0]
    entry = call.partition("(")[0]
    return text.replace("ENTRY", task_of(suite, key).entry if entry == "candidate" else entry)


@pytest.mark.parametrize("name", NAMES)
def test_no_cheat_is_paid(executor: SandboxExecutor, loaded: dict[str, Suite], name: str) -> None:
    suite, key = loaded[name], KNOWN[name]
    texts = {title: cheat_of(suite, key, text) for title, text in CHEATS.items()}
    scores = score(executor, suite, key, *texts.values())
    paid = {title for title, found in zip(texts, scores, strict=True) if found != 0.0}
    assert paid == set()


@pytest.mark.parametrize("key", ["HumanEval/2", "HumanEval/3", "HumanEval/32"])
def test_no_cheat_is_paid_where_tests_were_run_around_the_reference(
    executor: SandboxExecutor, loaded: dict[str, Suite], key: str
) -> None:
    suite = loaded["humaneval" if key == "HumanEval/2" else "humaneval+"]
    texts = {title: text.replace("ENTRY", task_of(suite, key).entry) for title, text in CHEATS.items()}
    scores = score(executor, suite, key, *texts.values())
    assert {title for title, found in zip(texts, scores, strict=True) if found != 0.0} == set()


def test_a_table_of_what_the_prompt_shows_is_not_right_where_more_is_tested(
    executor: SandboxExecutor, loaded: dict[str, Suite]
) -> None:
    table = "def halves(xs):\n    return {'[4, 7]': [2, 3]}.get(str(xs))"
    assert score(executor, loaded["humaneval"], "HumanEval/0", table) == (0.0,)
    assert score(executor, loaded["humaneval+"], "HumanEval/0", table) == (0.0,)
    shown = "def starting(text, letter):\n    return ('ba',) if text == 'ab ba' else None"
    assert score(executor, loaded["mbpp+"], "mbpp/30", shown) == (0.0,)
    seen = "class Solution:\n    def add(self, a, b): return [3] if (a, b) == (1, [2]) else None"
    assert score(executor, loaded["leetcode"], "weekly-contest-1-add", seen) == (0.0,)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_is_expected_enters_the_process_of_an_answer(
    loaded: dict[str, Suite], name: str, executor: SandboxExecutor
) -> None:
    for problem in loaded[name].problems:
        task = problem.task
        assert isinstance(task, UnitTests)
        job = outcomes_job(task, program_of(task, "pass"))
        marked = replace(task, outputs=tuple("'expected marker'" for _ in task.outputs))
        assert outcomes_job(marked, program_of(marked, "pass")) == job  # the job does not depend on what is expected
        assert job.policy == "plain"


STILL_RIGHT = {"nothing", "an equal number of another type", "nearly", "not so nearly", "arguments emptied",
               "arguments emptied afterwards"}  # fmt: skip
"""Changes that leave the values of a function of short lists as they were."""


@pytest.mark.parametrize("change", CHANGES)
def test_a_reference_that_was_made_wrong_is_wrong(
    executor: SandboxExecutor, loaded: dict[str, Suite], change: str
) -> None:
    program = changed("def halves(xs):\n    return [x // 2 for x in xs]\n", "halves", CHANGES[change])
    assert score(executor, loaded["humaneval"], "HumanEval/0", program) == (float(change in STILL_RIGHT),)


def test_a_loop_costs_its_own_row_alone(executor: SandboxExecutor, loaded: dict[str, Suite]) -> None:
    program = "def halves(xs):\n    return [x // 2 for x in xs]\n"
    found = score(executor, loaded["humaneval"], "HumanEval/0", program, changed(program, "halves", LOOP), program)
    assert found == (1.0, 0.0, 1.0)


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "call", "expected", "found", "right"),
    [
        ("f(1) == [1, 2]", "f(1)", "[1, 2]", [1, 2], True),
        ("[1, 2] == f(1)", "f(1)", "[1, 2]", [1, 2.0], True),
        ("f(1) is True", "f(1)", "True", 1, False),
        ("f(1) == True", "f(1)", "True", 1, True),
        ("f('é') == -2.5", "f('é')", "-2.5", -2.5, True),
        ("f(x)", "bool(f(x))", "True", True, True),
        ("not f(x)", "bool(f(x))", "False", True, False),
        ("abs(f(1) - 2.0 / 4) < 1e-6", "f(1)", "0.5", 0.5000001, True),
        ("abs(f(1) - 2.0 / 4) < 1e-6", "f(1)", "0.5", 0.51, False),
        ("math.isclose(f(1), 3.0, rel_tol=0.01)", "f(1)", "3.0", 3.02, True),
        ("math.isclose(3.0, f(1), rel_tol=0.001)", "f(1)", "3.0", 3.02, False),
        ("set(f(1)) == set((1, 2))", "set(f(1))", "{1, 2}", {2, 1}, True),
        ("tuple(f(1)) == tuple([1])", "tuple(f(1))", "(1,)", (1,), True),
        ("f(1) != 3", "f(1)", "3", 3, False),
        ("f(1) < 3", "f(1)", "3", 2, True),
        ("3 < f(1)", "f(1)", "3", 2, False),
        ("f(1) in (1, 2)", "f(1)", "(1, 2)", 2, True),
        ("my.f(**{'a': 1}) == {'b': inf}", "my.f(**{'a': 1})", "{'b': inf}", {"b": float("inf")}, True),
    ],
)
def test_an_assert_is_read_as_a_call_and_what_it_must_give(
    text: str, call: str, expected: str, found: object, right: bool
) -> None:
    source = asserts.Source(f"assert {text}, 'a message'")
    (case,) = asserts.cases(source, source.body)
    assert (case.call, case.expected, rules.met(case.rule, found, literals.parse(case.expected))) == (
        call,
        expected,
        right,
    )


@pytest.mark.parametrize(
    "text",
    [
        "f(1) == f(1)",
        "f(1) == g(2)",
        "f(1) == x",
        "all(f(x) == x for x in y)",
        "isinstance(f(1), int)",
        "(f(1) > 2) == True",
        "bool(f(1) == 2)",
        "f(1) == 1 or f(1) == 2",
        "f(1) == 1j",
        "1 < f(1) < 3",
        "any([f(1)])",
        "len([f(1) == 2]) == 1",
        "(lambda: True)()",
    ],
)
def test_an_assert_whose_answer_could_be_forged_is_not_read(text: str) -> None:
    source = asserts.Source(f"assert {text}")
    with pytest.raises(NotCases):
        asserts.cases(source, source.body)


def test_equal_values_have_one_digest_and_others_another() -> None:
    equal = [[1, True, 1.0, [2.5, "a"], ("b", None)], [1.0, 1, True, [2.5, "a"], ("b", None)]]
    other = [[1, 1, 1, [2.5, "a"], ["b", None]], [1, 1, 1, [2.5], "a", ("b", None)], [1, 1, 2, [2.5, "a"], ("b", None)]]
    digests = [beside._digest(value) for value in (*equal, *other)]
    assert (digests[0], len(set(digests))) == (digests[1], 4)
    large = [beside._digest(value) for value in (10**9000, [10**9000], 10**9000 + 1)]
    assert len(set(large)) == 3


def test_a_digest_is_held_to_equality_whatever_the_rule(loaded: dict[str, Suite]) -> None:
    long = repr(beside._digest([1] * 5000))
    task = task_of(loaded["mbpp+"], "mbpp/30").with_cases(
        [Case("f()", long, rules.as_sets), Case("f()", "1", rules.as_sets)]
    )
    assert (task.rules, task.digests) == ((rules.OPERATORS["Eq"], rules.as_sets), (True, False))
    assert not task.with_cases([Case("f()", "'digest of news'")]).digests[0]


def test_evalplus_samples_may_hold_completions_in_place_of_solutions(
    executor: SandboxExecutor, loaded: dict[str, Suite], tmp_path: Path
) -> None:
    file = tmp_path / "samples.jsonl"
    lines = [
        {"task_id": "HumanEval/0", "completion": "    return [half(x) for x in xs]\n"},
        {"task_id": "HumanEval/1", "solution": f"{HUMANEVAL[1]['prompt']}    return sum(xs) / len(xs)\n"},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = read_completions(file, [loaded["humaneval"]])["humaneval"]
    assert [row.score for row in scored(executor, loaded["humaneval"], found).rows] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("name", ["humaneval+", "mbpp+"])
def test_references_of_problems_that_are_not_asked_do_not_run(executor: SandboxExecutor, name: str) -> None:
    (whole,) = suites.load([name], Source(executor, FIXTURES))
    for names, most in ((f"{name}:1", None), (name, 1)):
        (part,) = suites.load([names], Source(Unused(), FIXTURES, most=most))
        assert [problem.id for problem in part.problems] == [whole.problems[0].id]


class Unused:
    """An executor that may be asked to run nothing."""

    def run(self, jobs: Sequence[Job]) -> list[tuple[Execution, ...]]:
        assert not jobs
        return []


# -- the real sets -----------------------------------------------------------------------------------------------------

SIZES = {"humaneval": 82, "mbpp": 372, "mbpp_sanitized": 129, "humaneval+": 82, "mbpp+": 195}


@needs_data
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [
    "humaneval", "mbpp", "mbpp_sanitized", *(pytest.param(n, marks=pytest.mark.slow) for n in ("humaneval+", "mbpp+")),
])  # fmt: skip
def test_every_real_reference_is_right_and_that_of_another_row_is_not(executor: SandboxExecutor, name: str) -> None:
    (suite,) = suites.load([name], Source(executor, REAL))
    answers = [problem.answer for problem in suite.problems]
    result = grade(suite, {p.id: [a] for p, a in zip(suite.problems, answers, strict=True)}, executor)
    assert [(row.id, row.reason) for row in result.rows if row.score != 1.0] == []
    assert (len(result.rows), result.no_verdict) == (SIZES[name], 0)
    shifted = dict(zip((p.id for p in suite.problems), ([a] for a in answers[1:] + answers[:1]), strict=True))
    assert grade(suite, shifted, executor).value == 0.0


@needs_data
def test_real_prompts_show_no_reference(executor: SandboxExecutor) -> None:
    for suite in suites.load(["humaneval", "mbpp", "mbpp_sanitized"], Source(executor, REAL)):
        prompts = suite.prompts()
        for problem in suite.problems:
            lines = [line for line in problem.answer.splitlines() if len(line.strip()) > 30 and line.startswith(" ")]
            own = [line for line in lines if line not in task_of(suite, problem.id).program]
            assert not [line for line in own if line in prompts[problem.id]]


CONTESTS = {
    "weekly-contest-357-faulty-keyboard": """
class Solution:
    def finalString(self, s: str) -> str:
        return functools.reduce(lambda out, c: out[::-1] if c == 'i' else out + c, s, '')
""",
    "weekly-contest-356-number-of-employees-who-met-the-target": """
class Solution:
    def numberOfEmployeesWhoMetTarget(self, hours: List[int], target: int) -> int:
        return sum(each >= target for each in hours)
""",
    "weekly-contest-358-double-a-number-represented-as-a-linked-list": """
class Solution:
    def doubleIt(self, head: Optional[ListNode]) -> Optional[ListNode]:
        digits = []
        while head:
            digits.append(str(head.val))
            head = head.next
        for digit in reversed(str(2 * int(''.join(digits)))):
            head = ListNode(int(digit), head)
        return head
""",
}


@needs_data
def test_real_contest_problems_can_be_solved_and_a_mistake_shows(executor: SandboxExecutor) -> None:
    (suite,) = suites.load(["leetcode"], Source(executor, REAL))
    assert (len(suite.problems), [p.id for p in suite.problems if p.task is None]) == (180, [])
    right = grade(suite, {key: [program] for key, program in CONTESTS.items()}, executor)
    assert {row.id for row in right.rows if row.score} == set(CONTESTS)
    wrong = {
        key: [program.replace("==", "!=").replace(">=", ">").replace("2 *", "3 *")] for key, program in CONTESTS.items()
    }
    assert grade(suite, wrong, executor).value == 0.0
