"""The suites of pairs: what is shown, what judges, and that no cheat is paid."""

import json
import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfplay_gym import suites
from selfplay_gym.errors import InvalidData
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.grading import digest, grade
from selfplay_gym.results import SuiteResult
from selfplay_gym.suites import Source, Suite
from selfplay_gym.tasks.comparing import close

REAL = Path(os.environ.get(suites.DATA_VARIABLE, ""))
ARC = ("arc_1d", "arc_mini", "arc_agi1_training", "arc_agi1_evaluation", "arc_agi2_evaluation")
IO = ("humaneval_io", "mbpp_io")

Rows = list[dict[str, object]]


def pair(given: object, output: object) -> dict[str, object]:
    return {"input": given, "output": output}


DOUBLED: Rows = [pair([n, n + 1], [2 * n, 2 * n + 2]) for n in range(15)]
LONG: Rows = [pair([0] * n, n > 2) for n in range(1, 16)]
FILES: dict[str, Rows] = {
    "dreamcoder_list": [
        {"id": "double", "name": "twice everything", "input_type": "list-of-int", "output_type": "list-of-int",
         "examples": DOUBLED},
        {"id": "long", "name": "longer than two", "input_type": "list-of-int", "output_type": "bool", "examples": LONG},
    ],
    "mbpp_io_dev": [
        {"id": "half", "entry_point": "halve", "doc": "Halve a number.", "code": "def halve(x):\n    return x / 2\n",
         "train": [pair("1", "0.5"), pair("4", "2.0")], "test": [pair("3", "1.5"), pair("1000000", "500000.0")]},
        {"id": "ends", "entry_point": "ends", "doc": "First and last.",
         "code": "def ends(xs, n):\n    'ends([7, 8], 0) is 7'\n    return (xs[n], xs[-1 - n])\n",
         "train": [pair("[1, 2, 3], 0", "(1, 3)"), pair("[5, 5, 1, 0], 1", "(5, 1)")],
         "test": [pair("[7, 8], 0", "(7, 8)"), pair("['a', 'b', 'c'], 0", "('a', 'c')")]},
        {"id": "count", "entry_point": "count", "doc": "Count.", "code": "def count(text):\n    return len(text)\n",
         "train": [pair("'a'", "1"), pair("'abc'", "3")], "test": [pair("'ab'", "2"), pair("''", "0")]},
    ],
    "arc_1d": [
        {"id": "flip", "train": [pair([[1, 2]], [[2, 1]]), pair([[3, 0, 0]], [[0, 0, 3]])],
         "test": [pair([[4, 5, 6]], [[6, 5, 4]]), pair([[7], [8]], [[7], [8]])]},
        {"id": "clear", "train": [pair([[1, 2]], [[0, 0]]), pair([[3]], [[0]])],
         "test": [pair([[9, 9, 9]], [[0, 0, 0]])]},
    ],
    "sygus_pbe_strings": [
        {"id": "first-word", "family": "first", "arg_types": ["String"], "arg_names": ["name"],
         "return_type": "String", "examples": [{"inputs": [f"{w} x"], "output": w} for w in "abcdef"]},
        {"id": "first-word-small", "family": "first", "arg_types": ["String"], "arg_names": ["name"],
         "return_type": "String", "examples": [{"inputs": ["Ann Lee"], "output": "Ann"}]},
        {"id": "same", "family": "same", "arg_types": ["String", "Int"], "arg_names": ["_arg_0", "_arg_1"],
         "return_type": "Bool", "examples": [{"inputs": ["a" * n, n % 5], "output": n % 5 == n} for n in range(7)]},
    ],
    "test_output_prediction": [
        {"id": f"p{n}/{k}", "problem_id": f"p{n}", "difficulty": "Easy", "function_name": "count",
         "statement": f'"""\nCount letters, plus {n}.\n"""\nclass Solution:\n    def count(self, word: str) -> int:',
         "input": f"word = {'abc'[:k]!r}", "output": str(n + k)}
        for n, cases in enumerate((3, 1)) for k in range(1, cases + 1)
    ],
}  # fmt: skip
FILES["humaneval_io"] = FILES["mbpp_io_dev"]
FILES |= dict.fromkeys(ARC, FILES["arc_1d"])

PROGRAMS = {
    "double": "def f(xs):\n    return [2 * x for x in xs]",
    "long": "def f(xs):\n    return len(xs) > 2",
    "half": "def f(x):\n    return 0.5 * x",
    "ends": "def f(xs, n):\n    return (xs[n], xs[::-1][n])",
    "count": "def f(text):\n    return sum(1 for _ in text)",
    "flip": "def f(grid):\n    return [row[::-1] for row in grid]",
    "clear": "def f(grid):\n    return [[0 for _ in row] for row in grid]",
    "first-word": "def f(name):\n    return name.split()[0]",
    "first-word-small": "def f(name):\n    return name.split()[0]",
    "same": "def f(_arg_0, _arg_1):\n    return len(_arg_0) == _arg_1",
}
"""A right program for each row; for those with a reference, another one."""

INDUCTION = ("dreamcoder_list", *(f"{name}-induction" for name in IO), *ARC, "sygus_pbe_strings-held")
ANSWERED = (
    *(f"{name}-{use}" for name in IO for use in ("deduction", "abduction")),
    *(f"{name}-direct" for name in ARC),
    "test_output_prediction",
)


@pytest.fixture(scope="module")
def executor() -> Iterator[SandboxExecutor]:
    with SandboxExecutor(workers=1) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("data")
    for name, rows in FILES.items():
        write(made, name, rows)
    return made


def write(folder: Path, name: str, rows: Rows) -> Path:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def load(executor: SandboxExecutor, folder: Path, name: str, style: str = "azr") -> Suite:
    (suite,) = suites.load([name], Source(executor, folder, style))
    return suite


def score(executor: SandboxExecutor, suite: Suite, answers: dict[str, str]) -> SuiteResult:
    return grade(suite, {key: [answer] for key, answer in answers.items()}, executor)


# -- right answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*INDUCTION, "sygus_pbe_strings"])
def test_a_right_program_is_right_on_every_row(executor: SandboxExecutor, folder: Path, name: str) -> None:
    suite = load(executor, folder, name)
    result = score(executor, suite, {p.id: PROGRAMS[p.id] for p in suite.problems})
    assert [row.score for row in result.rows] == [1.0] * len(suite.problems)
    assert result.extra["pair_accuracy"] == 1.0


@pytest.mark.parametrize("name", [f"{name}-induction" for name in IO])
def test_the_reference_is_a_right_program(executor: SandboxExecutor, folder: Path, name: str) -> None:
    suite = load(executor, folder, name)
    assert score(executor, suite, {p.id: p.answer for p in suite.problems}).value == 1.0


@pytest.mark.parametrize("name", ANSWERED)
def test_known_answers_are_right_and_those_of_other_rows_wrong(
    executor: SandboxExecutor, folder: Path, name: str
) -> None:
    suite = load(executor, folder, name)
    answers = [problem.answer for problem in suite.problems]
    assert score(executor, suite, {p.id: p.answer for p in suite.problems}).value == 1.0
    moved = dict(zip([p.id for p in suite.problems], answers[1:] + answers[:1], strict=True))
    assert score(executor, suite, moved).value == 0.0


# -- cheats ------------------------------------------------------------------------------------------------------------

EQUAL_TO_ALL = "class Any({base}):\n    def __eq__(self, other):\n        return True\n    __hash__ = None\n\n\n"
CHEATS = {
    "equal to everything": EQUAL_TO_ALL.format(base="object") + "def f(*a, **k):\n    return Any()",
    "an int equal to everything": EQUAL_TO_ALL.format(base="int") + "def f(*a, **k):\n    return Any(1)",
    "a list equal to everything": EQUAL_TO_ALL.format(base="list") + "def f(*a, **k):\n    return [Any(), Any()]",
    "nothing": "def f(*a, **k):\n    pass",
    "no function": "answer = 1",
    "raises": "def f(*a, **k):\n    raise ValueError",
    "ends the process": "import os\n\n\ndef f(*a, **k):\n    os._exit(0)",
    "a constant": "def f(*a, **k):\n    return [1]",
    "no program": "```output\n1\n```",
}


@pytest.mark.parametrize("cheat", CHEATS)
@pytest.mark.parametrize("name", [*INDUCTION, "sygus_pbe_strings"])
def test_no_cheat_is_paid(executor: SandboxExecutor, folder: Path, name: str, cheat: str) -> None:
    suite = load(executor, folder, name)
    result = score(executor, suite, dict.fromkeys([p.id for p in suite.problems], CHEATS[cheat]))
    assert (result.value, result.no_verdict) == (0.0, 0)


@pytest.mark.parametrize("name", INDUCTION)
def test_printing_the_right_value_is_not_returning_it(executor: SandboxExecutor, folder: Path, name: str) -> None:
    suite = load(executor, folder, name)
    printing = {key: program.replace("return ", "print(") + ")" for key, program in PROGRAMS.items()}
    assert score(executor, suite, {p.id: printing[p.id] for p in suite.problems}).value == 0.0


@pytest.mark.parametrize("name", INDUCTION)
def test_a_table_of_the_shown_pairs_is_wrong(executor: SandboxExecutor, folder: Path, name: str) -> None:
    suite = load(executor, folder, name)
    assert score(executor, suite, tables(suite)).value == 0.0


def tables(suite: Suite) -> dict[str, str]:
    """Programs that know the shown pairs by heart, and nothing else."""
    family, programs = suite.families["induction"], {}
    for problem in suite.problems:
        if (task := problem.task) is not None:
            shown = dict(zip(task.inputs[: family.shown(task)], task.outputs, strict=False))  # type: ignore[attr-defined]
            known = "".join(f"    if (a, k) == call({given}):\n        return {out}\n" for given, out in shown.items())
            programs[problem.id] = f"def call(*a, **k):\n    return a, k\n\n\ndef f(*a, **k):\n{known}"
    return programs


def test_a_table_is_right_where_all_examples_are_shown_and_the_note_says_so(
    executor: SandboxExecutor, folder: Path
) -> None:
    suite = load(executor, folder, "sygus_pbe_strings")
    assert score(executor, suite, tables(suite)).value == 1.0
    assert "a program that lists them is right" in suite.note


def test_a_program_that_never_ends_is_wrong_and_the_next_one_is_still_judged(
    executor: SandboxExecutor, folder: Path
) -> None:
    suite = load(executor, folder, "arc_1d")
    result = score(executor, suite, {**PROGRAMS, "flip": "def f(grid):\n    while grid == [[1, 2]]:\n        pass"})
    assert [(row.score, row.reason) for row in result.rows] == [(0.0, "timeout"), (1.0, "")]


@pytest.mark.parametrize(
    ("name", "row", "program"),
    [
        ("dreamcoder_list", "long", "def f(xs):\n    return int(len(xs) > 2)"),
        ("dreamcoder_list", "double", "def f(xs):\n    return tuple(2 * x for x in xs)"),
        ("dreamcoder_list", "double", "def f(xs):\n    return [2.0 * x for x in xs]"),
        ("mbpp_io-induction", "count", "def f(text):\n    return float(len(text))"),
        ("mbpp_io-induction", "half", "def f(x):\n    return x // 2 if x % 2 == 0 else x / 2"),
        ("arc_1d", "clear", "def f(grid):\n    return [[False for _ in row] for row in grid]"),
        ("sygus_pbe_strings", "same", "def f(_arg_0, _arg_1):\n    return int(len(_arg_0) == _arg_1)"),
    ],
)
def test_another_type_is_another_value(
    executor: SandboxExecutor, folder: Path, name: str, row: str, program: str
) -> None:
    result = score(executor, load(executor, folder, name), {row: program})
    assert {r.id: r.reason for r in result.rows}[row] == "another value"


@pytest.mark.parametrize("answer", ["True", "2.0", "1 + 1", "len('ab')", "print(2)", "[2]", ""])
def test_an_output_is_a_literal_of_the_right_type(executor: SandboxExecutor, folder: Path, answer: str) -> None:
    suite = load(executor, folder, "test_output_prediction")
    assert {r.id: r.score for r in score(executor, suite, {"p0/2": answer}).rows}["p0/2"] == 0.0
    suite = load(executor, folder, "mbpp_io-deduction")
    assert {r.id: r.score for r in score(executor, suite, {"count": answer}).rows}["count"] == 0.0


def test_an_input_is_never_run(executor: SandboxExecutor, folder: Path) -> None:
    suite = load(executor, folder, "mbpp_io-abduction")
    result = score(executor, suite, {"count": "'a' + 'b'", "half": "[globals().update(f=lambda _: 1.5)]"})
    assert all(row.score == 0.0 and "not a literal" in row.reason for row in result.rows if row.id != "ends")


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_the_name_of_a_rule_and_the_hidden_pairs_stay_hidden(executor: SandboxExecutor, folder: Path) -> None:
    prompt = load(executor, folder, "dreamcoder_list").prompts()["double"]
    assert "twice" not in prompt
    assert "The rule turns list-of-int into list-of-int." in prompt
    assert "[7, 8]" in prompt
    assert "[8, 9]" not in prompt


def test_pairs_of_an_exercise_are_used_three_ways(executor: SandboxExecutor, folder: Path) -> None:
    loaded = {s.name: s.prompts() for s in suites.load(["mbpp_io"], Source(executor, folder))}
    induction, deduction, abduction = (loaded[f"mbpp_io-{use}"] for use in ("induction", "deduction", "abduction"))
    assert "[1, 2, 3], 0" in induction["ends"]
    assert all(text not in induction["ends"] for text in ("First", "'a', 'b', 'c'", "xs[n]"))
    # The docstring tells the output of the first test pair, so the second is asked.
    assert "['a', 'b', 'c'], 0" in deduction["ends"]
    assert "('a', 'c')" not in deduction["ends"]
    assert "('a', 'c')" in abduction["ends"]
    assert "['a', 'b', 'c']" not in abduction["ends"]
    assert "f = ends" in deduction["ends"]


def test_any_input_with_the_output_is_right(executor: SandboxExecutor, folder: Path) -> None:
    suite = load(executor, folder, "mbpp_io-abduction")
    result = score(executor, suite, {"count": "'zz'", "half": "2.999999999999", "ends": "['a', 'c'], 0"})
    assert [row.score for row in result.rows] == [1.0, 1.0, 1.0]


def test_the_answer_to_a_test_and_to_a_grid_is_not_shown(executor: SandboxExecutor, folder: Path) -> None:
    prompt = load(executor, folder, "test_output_prediction").prompts()["p0/3"]
    assert "word='abc'" in prompt
    assert "`count`" in prompt
    prompt = load(executor, folder, "arc_1d-direct").prompts()["flip/0"]
    assert "[[4, 5, 6]]" in prompt
    assert "[[3, 0, 0]]" in prompt
    assert all(hidden not in prompt for hidden in ("[[6, 5, 4]]", "[[7], [8]]"))
    assert "[[4, 5, 6]]" not in load(executor, folder, "arc_1d").prompts()["flip"]


def test_a_string_task_names_its_arguments_and_holds_half_back(executor: SandboxExecutor, folder: Path) -> None:
    every, held = (load(executor, folder, f"sygus_pbe_strings{end}").prompts() for end in ("", "-held"))
    assert "f(_arg_0: str, _arg_1: int) -> bool" in every["same"]
    assert "_arg_0='aaa', _arg_1=3" in every["same"]
    assert [f"name='{word} x'" in held["first-word"] for word in "abcdef"] == [True] * 3 + [False] * 3
    assert sorted(held) == ["first-word", "same"]


@pytest.mark.parametrize("name", ["arc_1d", "arc_1d-direct", "test_output_prediction", "sygus_pbe_strings"])
def test_the_compact_style_says_little(executor: SandboxExecutor, folder: Path, name: str) -> None:
    short, long = (load(executor, folder, name, style).prompts() for style in ("compact", "azr"))
    assert all(len(short[key]) + 500 < len(long[key]) for key in long)
    assert all(" = ?" in text or text.startswith("induction\nf(") for text in short.values())


PROMPTS = {
    "dreamcoder_list": "30e7ba36b9d1676e",
    "mbpp_io-induction": "ba2bdfb324e03bc9",
    "mbpp_io-deduction": "c21d002a94da6a8f",
    "mbpp_io-abduction": "afbc0e6173ac9fd2",
    "test_output_prediction": "e58571b1c08f2819",
    "arc_1d": "cc0a17fc3be7fb28",
    "arc_1d-direct": "2c07ed5f98e495da",
    "sygus_pbe_strings": "a6ce178c49eeadad",
    "sygus_pbe_strings-held": "9a482d889dea1461",
}
"""Of the rows above, in every style. Whoever changes a prompt makes another protocol of its suites."""


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_are_frozen(executor: SandboxExecutor, folder: Path, name: str) -> None:
    texts = {s: load(executor, folder, name, s).prompts() for s in ("azr", "chat", "compact")}
    assert digest(texts) == PROMPTS[name]


# -- groups and shares -------------------------------------------------------------------------------------------------


def test_scores_are_averaged_over_problems_tasks_and_families_first(executor: SandboxExecutor, folder: Path) -> None:
    tests = score(executor, load(executor, folder, "test_output_prediction"), {"p1/1": "2", "p0/1": "1"})
    assert (tests.n, tests.groups, tests.value) == (4, 2, pytest.approx((1 / 3 + 1) / 2))
    grids = score(
        executor, load(executor, folder, "arc_1d-direct"), {"flip/0": "[[6, 5, 4]]", "clear/0": "[[0, 0, 0]]"}
    )
    assert (grids.n, grids.groups, grids.value) == (3, 2, 0.75)
    suite = load(executor, folder, "sygus_pbe_strings")
    strings = score(executor, suite, {"first-word": PROGRAMS["first-word"], "same": PROGRAMS["same"]})
    assert (strings.n, strings.groups, strings.value) == (3, 2, 0.75)


def test_a_program_must_be_right_on_the_shown_grids_and_the_share_counts_test_grids(
    executor: SandboxExecutor, folder: Path
) -> None:
    only_test = "def f(grid):\n    return [row[::-1] for row in grid] if len(grid[0]) != 2 else grid"
    first_test = "def f(grid):\n    return [row[::-1] for row in grid] if len(grid) == 1 else []"
    suite = load(executor, folder, "arc_1d").first(1)
    shown_wrong, one_wrong = (score(executor, suite, {"flip": text}) for text in (only_test, first_test))
    assert (shown_wrong.value, shown_wrong.extra["pair_accuracy"]) == (0.0, 1.0)
    assert (one_wrong.value, one_wrong.extra["pair_accuracy"]) == (0.0, 0.5)


# -- floats ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("0.3", "0.30000000000000004", True),
        ("1e12", "1000000000000.1", True),
        ("0.0", "1e-7", True),
        ("1.0", "1.00001", False),
        ("1.0", "1", False),
        ("True", "1", False),
        ("(0.3, [1])", "(0.30000000000000004, [1])", True),
        ("[0.3]", "(0.3,)", False),
        ("[0.3]", "[0.3, 0.3]", False),
        ("{'a': 0.3, 'b': 1}", "{'a': 0.30000000000000004, 'b': 1}", True),
        ("{'a': 0.3}", "{'b': 0.3}", False),
        ("{1: 0.3}", "{True: 0.30000000000000004}", False),
        ("{0.3}", "{0.30000000000000004}", False),
        ("nan", "nan", True),
        ("inf", "-inf", False),
        ("[1...", "[1...", True),
        ("[1...", "[2...", False),
    ],
)
def test_floats_alone_may_differ_a_little(one: str, other: str, same: bool) -> None:
    assert close(one, other) is close(other, one) is same


def test_a_float_of_another_last_digit_is_right(executor: SandboxExecutor, folder: Path) -> None:
    induction, deduction = (load(executor, folder, f"mbpp_io-{use}") for use in ("induction", "deduction"))
    near = score(executor, induction.first(1), {"half": "def f(x):\n    return x / 2 + 1e-9"})
    far = score(executor, induction.first(1), {"half": "def f(x):\n    return x / 2 + 1e-3"})
    assert (near.value, far.value) == (1.0, 0.0)
    assert score(executor, deduction.first(1), {"half": "1.5000000001"}).value == 1.0


# -- rows that cannot judge, broken rows -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"test": [pair("3", "1.4")]}, "reference: another value here than in the data file"),
        ({"test": [pair("3", "1")]}, "reference: another value here than in the data file"),
        ({"test": [pair("'3'", "1.5")]}, "reference: error TypeError"),
        ({"test": [pair("3j", "1.5j")]}, "an example is not a literal: Constant"),
    ],
)
def test_a_row_whose_reference_fails_has_no_verdict_in_any_use(
    executor: SandboxExecutor, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    half, *others = FILES["mbpp_io_dev"]
    write(tmp_path, "mbpp_io", [{**half, **change}, *others])
    for suite in suites.load(["mbpp_io"], Source(executor, tmp_path)):
        result = score(executor, suite, {p.id: p.answer for p in suite.problems if p.task})
        assert (result.n, result.value, result.no_verdict) == (2, 1.0, 1)
        assert result.rows[0].reason == f"no verdict: {reason}"
        assert "half" not in suite.prompts()


def test_examples_that_contradict_or_hide_nothing_have_no_verdict(executor: SandboxExecutor, tmp_path: Path) -> None:
    row = FILES["dreamcoder_list"][0]
    twice = {**row, "id": "two", "examples": [*DOUBLED[:14], pair([0, 1], [9])]}
    known = {**row, "id": "known", "examples": DOUBLED[:8] + DOUBLED[:7]}
    suite = load(executor, write(tmp_path, "dreamcoder_list", [twice, known, row]), "dreamcoder_list")
    assert [p.failure for p in suite.problems] == [
        "the examples give two outputs for one input", "every hidden example is also shown", "",
    ]  # fmt: skip
    assert score(executor, suite, {"double": PROGRAMS["double"]}).no_verdict == 2


@pytest.mark.parametrize(
    ("file", "suite", "change", "message"),
    [
        ("dreamcoder_list", "dreamcoder_list", {"examples": DOUBLED[:3]}, "'examples' must hold 15 pairs, got 3"),
        ("dreamcoder_list", "dreamcoder_list", {"examples": [1]}, "must hold objects with 'input' and 'output'"),
        ("mbpp_io_dev", "mbpp_io", {"train": []}, "field 'train' holds no pair"),
        ("mbpp_io_dev", "mbpp_io", {"train": [pair(1, 2)]}, "'train' must hold inputs and outputs as Python source"),
        ("mbpp_io_dev", "mbpp_io", {"code": None}, "field 'code' must be text"),
        ("arc_1d", "arc_1d", {"test": []}, "field 'test' holds no pair"),
        ("arc_1d", "arc_1d-direct", {"train": []}, "field 'train' holds no pair"),
        ("sygus_pbe_strings", "sygus_pbe_strings", {"return_type": "Real"}, "a sort must be one of .*, got 'Real'"),
        ("sygus_pbe_strings", "sygus_pbe_strings", {"arg_names": ["a", "b"]}, "as many names of arguments as sorts"),
        ("sygus_pbe_strings", "sygus_pbe_strings", {"arg_names": ["a b"]}, "as many names of arguments as sorts"),
        ("sygus_pbe_strings", "sygus_pbe_strings", {"examples": []}, "'examples' holds no example"),
        ("sygus_pbe_strings", "sygus_pbe_strings", {"examples": [{"inputs": [], "output": 1}]}, "1 inputs each"),
        ("test_output_prediction", "test_output_prediction", {"output": "1 +"}, "not a literal"),
    ],
)
def test_a_broken_row_is_named(
    executor: SandboxExecutor, tmp_path: Path, file: str, suite: str, change: dict[str, object], message: str
) -> None:
    write(tmp_path, file, [{**FILES[file][0], **change}])
    with pytest.raises(InvalidData, match=f"line 1: .*{message}"):
        suites.load([suite], Source(executor, tmp_path))


# -- real data ---------------------------------------------------------------------------------------------------------

SIZES = {
    "humaneval_io-induction": (76, 0, 0),
    "humaneval_io-deduction": (76, 0, 0),
    "humaneval_io-abduction": (76, 0, 0),
    "mbpp_io-induction": (186, 0, 2),
    "mbpp_io-deduction": (186, 0, 2),
    "mbpp_io-abduction": (186, 0, 2),
    "test_output_prediction": (712, 178, 0),
    "arc_1d-direct": (901, 901, 0),
    "arc_mini-direct": (149, 149, 0),
    "arc_agi1_training-direct": (416, 400, 0),
    "arc_agi1_evaluation-direct": (419, 400, 0),
    "arc_agi2_evaluation-direct": (167, 120, 0),
    "dreamcoder_list": (217, 0, 2),
    "arc_1d": (901, 0, 0),
    "arc_mini": (149, 0, 0),
    "arc_agi1_training": (400, 0, 0),
    "arc_agi1_evaluation": (400, 0, 0),
    "arc_agi2_evaluation": (120, 0, 0),
    "sygus_pbe_strings": (209, 128, 4),
    "sygus_pbe_strings-held": (107, 38, 4),
}
"""Rows, groups, and rows without a verdict, of each suite."""


def slow_where_many(names: Iterable[str]) -> list[Any]:
    """The names of suites, those marked slow whose references take ten seconds to run."""
    return [pytest.param(name, marks=pytest.mark.slow) if name.startswith("mbpp_io") else name for name in names]


def real(executor: SandboxExecutor, name: str) -> Suite:
    file = name.partition("-")[0]
    if not any(REAL.glob(f"{file}*.jsonl*")) or not os.environ.get(suites.DATA_VARIABLE):
        pytest.skip(f"set {suites.DATA_VARIABLE} to a folder that holds {file}.jsonl")
    return load(executor, REAL, name)


@pytest.mark.parametrize("name", slow_where_many(SIZES))
def test_real_rows_load_and_those_without_a_verdict_are_few(executor: SandboxExecutor, name: str) -> None:
    suite = real(executor, name)
    groups = {problem.group for problem in suite.problems if problem.group}
    failures = [problem for problem in suite.problems if problem.task is None]
    assert (len(suite.problems), len(groups), len(failures)) == SIZES[name]
    assert all(problem.failure for problem in failures)


@pytest.mark.parametrize("name", slow_where_many(list(SIZES)[:12]))
def test_real_references_score_100_and_shuffled_ones_next_to_nothing(executor: SandboxExecutor, name: str) -> None:
    suite = real(executor, name)
    keys, answers = zip(*((p.id, p.answer) for p in suite.problems if p.task), strict=True)
    right = score(executor, suite, dict(zip(keys, answers, strict=True)))
    assert [row.id for row in right.rows if row.score == 0.0] == []
    assert right.value == 1.0
    shuffled = random.Random(0).sample(answers, len(answers))
    wrong = score(executor, suite, dict(zip(keys, shuffled, strict=True)))
    assert wrong.value is not None
    assert wrong.value < 0.1  # outputs such as True and 0 are right by chance


@pytest.mark.parametrize("name", [name for name in SIZES if name in INDUCTION])
def test_tables_of_the_real_pairs_score_nothing(executor: SandboxExecutor, name: str) -> None:
    suite = real(executor, name).first(40)
    assert score(executor, suite, tables(suite)).value == 0.0


POOL = {
    "dreamcoder_list": [
        "xs[::-1]", "sorted(xs)", "sum(xs)", "len(xs)", "xs[1:]", "xs[2:]", "xs[:1]", "xs + [1]", "[x + 1 for x in xs]",
        "[2 * x for x in xs]", "float(sum(xs))", "len(xs) > 0", "1 in xs", "int(1 in xs)", "max(xs)",
    ],
    "arc_1d": [
        "xs", "[[0] + xs[0][:-1]]", "[[0] * 2 + xs[0][:-2]]", "[[0] * 3 + xs[0][:-3]]", "[xs[0][::-1]]", "xs[0]",
        "[[float(x) for x in xs[0]]]", "[[x * (0 in xs[0][max(i - 1, 0):i + 2]) for i, x in enumerate(xs[0])]]",
    ],
    "sygus_pbe_strings": [
        "xs", "xs.split()[0]", "xs.split()[-1]", "xs.split('-')[1]", "xs[0]", "len(xs)", "xs.strip()", "xs[3:]",
        "''.join(c for c in xs if c.isalpha())", "xs.split(', ')[-1]", "len(xs) > 3",
    ],
}  # fmt: skip
"""Expressions of the first argument: some are right for some rows, most for few or none."""


def agrees(expression: str, row: dict[str, Any]) -> bool:
    """Judge a program of the pool by itself: JSON keeps 1, 1.0 and true apart."""
    function = eval(f"lambda xs, *others: {expression}")
    examples = row["examples"][8:] if "name" in row else row.get("examples") or row["train"] + row["test"]
    try:
        return all(
            json.dumps(function(*example.get("inputs", [example.get("input")]))) == json.dumps(example["output"])
            for example in examples
        )
    except Exception:
        return False


@pytest.mark.parametrize("name", ["dreamcoder_list", "arc_1d", "sygus_pbe_strings", "sygus_pbe_strings-held"])
def test_programs_score_as_a_plain_check_says(executor: SandboxExecutor, name: str) -> None:
    whole, file = real(executor, name), name.partition("-")[0]
    suite = replace(whole, problems=whole.problems[:: 10 if file == "arc_1d" else 1])
    rows = {row["id"]: row for row in map(json.loads, (REAL / f"{file}.jsonl").read_text().splitlines())}
    programs = [f"def f(*others, **named):\n    xs = [*others, *named.values()][0]\n    return {e}" for e in POOL[file]]
    result = grade(suite, {problem.id: programs for problem in suite.problems}, executor)
    judged = [row for row in result.rows if row.score is not None]
    assert [row.scores for row in judged] == [
        tuple(float(agrees(expression, rows[row.id])) for expression in POOL[file]) for row in judged
    ]
    assert sum(1.0 in row.scores for row in judged) >= 8
