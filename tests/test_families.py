"""The three families: what they hide, what they ask, what they accept. One set of questions for every family."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_gym import literals
from selfplay_gym.errors import UnknownId
from selfplay_gym.protocols import Executor, ProposingFamily, TaskFamily
from selfplay_gym.registry import make_family
from selfplay_gym.types import Execution, Job, Status, Task, Verdict

NAMES = ("deduction", "abduction", "induction")
STYLES = ("azr", "chat", "compact")
PROGRAM = "def f(x, tag='$x'):\n    return [x * 3, 'secret output', tag]"


def task_of(name: str, program: str = "def f(x):\n    return x * 3") -> Task:
    count = 4 if name == "induction" else 1
    numbers = [str(n + 21) for n in range(count)]
    return Task(name, program, tuple(numbers), tuple(str(int(n) * 3) for n in numbers), "What grows?" * (count > 1))


HIDDEN = {"deduction": "63", "abduction": "21", "induction": "def f(x):\n    return x * 3"}
LABEL = {"deduction": "output", "abduction": "input", "induction": "python"}


def verdict_of(family: TaskFamily, task: Task, answer: str, executor: Executor) -> Verdict:
    asked = family.check(task, answer)
    return asked if isinstance(asked, Verdict) else family.judge(task, executor.run([asked])[0])


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", NAMES)
def test_the_hidden_part_is_not_in_the_prompt(name: str, style: str) -> None:
    task = task_of(name)
    prompt = make_family(name, style=style).solve_prompt(task)
    if name == "induction":
        assert "x * 3" not in prompt
        assert all(text in prompt for text in ("21", "63", "22", "66", "What grows?"))
        assert not any(text in prompt for text in ("23", "69", "24", "72"))
    else:
        shown, hidden = ("21", "63") if name == "deduction" else ("63", "21")
        assert task.program in prompt
        assert shown in prompt
        assert hidden not in prompt


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", NAMES)
def test_text_that_is_put_into_a_prompt_is_not_searched_for_blanks(name: str, style: str) -> None:
    program = "def f(x):\n    return '$program ${output} $$ {x} %s' + x"
    task = Task(name, program, ("'$input'",) * 2, ("'$output $message'",) * 2, "$program")
    family = make_family(name, style=style)
    assert "$" in family.solve_prompt(task)
    assert isinstance(family, ProposingFamily)
    assert program in family.proposal_prompt([task] * family.references, random.Random(0))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_ends_where_its_style_says(name: str, style: str) -> None:
    family: Any = make_family(name, style=style)
    for prompt in (family.solve_prompt(task_of(name)), family.proposal_prompt([task_of(name)], random.Random(0))):
        assert prompt.endswith("<think>") is (style != "chat")
        assert "$" not in prompt


@pytest.mark.parametrize("name", NAMES)
def test_a_proposal_prompt_shows_its_references(name: str) -> None:
    family: Any = make_family(name, style="compact")
    tasks = [task_of(name, f"def f(x):\n    return x * {n}") for n in (5, 7)][: family.references]
    prompt = family.proposal_prompt(tasks, random.Random(0))
    assert all(task.program in prompt for task in tasks)
    assert family.proposal_prompt(tasks, random.Random(1)) == prompt


@pytest.mark.parametrize("name", NAMES)
def test_the_hidden_part_is_the_passing_answer(sandbox: Executor, name: str) -> None:
    family, task = make_family(name), task_of(name)
    for answer in (
        HIDDEN[name],
        f"```{LABEL[name]}\n{HIDDEN[name]}\n```",
        f"so:\n```{LABEL[name]}\n{HIDDEN[name]}```\n",
    ):
        assert verdict_of(family, task, answer, sandbox) == Verdict(1.0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "answer", ["", "None", "```\n63\n```\n```\n21\n```", "```text\n4\n```", "I do not know", "``````"]
)
def test_anything_else_is_wrong_with_a_reason(sandbox: Executor, name: str, answer: str) -> None:
    verdict = verdict_of(make_family(name), task_of(name), answer, sandbox)
    assert verdict.score == 0.0
    assert verdict.reason


@pytest.mark.parametrize("name", NAMES)
def test_only_the_last_block_counts(sandbox: Executor, name: str) -> None:
    family, task = make_family(name), task_of(name)
    right, wrong = (f"```{LABEL[name]}\n{text}\n```" for text in (HIDDEN[name], "0"))
    assert verdict_of(family, task, wrong + right, sandbox).score == 1.0
    assert verdict_of(family, task, right + wrong, sandbox).score == 0.0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("label", ["", "python", "Python", "py", "python3", "Output", "text"])
def test_a_right_answer_in_a_fence_of_another_label_is_right(sandbox: Executor, name: str, label: str) -> None:
    answer = f"```{label}\n{HIDDEN[name]}\n```"
    assert verdict_of(make_family(name), task_of(name), answer, sandbox).score == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_the_seeds_are_true(sandbox: Executor, name: str) -> None:
    family: Any = make_family(name)
    assert family.seeds()
    for task in family.seeds():
        runs = sandbox.run([Job(task.program, task.inputs)])[0]
        assert tuple(run.value for run in runs) == task.outputs
        assert all(literals.canonical_arguments(text) == text for text in task.inputs)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_style_is_named(name: str) -> None:
    with pytest.raises(UnknownId, match="no prompt style 'short'; it is one of azr, chat, compact"):
        make_family(name, style="short")


# -- deduction ---------------------------------------------------------------------------------------------------------

EQUAL = {
    "[1, 2]": ["[1,2]", "[ 1 , 2 , ]", "[0x1, 2]", "[1, 2]  # both", "([1, 2])"],
    "{'a': 1, 'b': 2}": ["{'b': 2, 'a': 1}", '{"a":1,"b":2}'],
    "{1, 2, 3}": ["{3, 2, 1}", "{1, 1, 2, 3}", "set([1, 2, 3])"],
    "set()": ["set()", "set([])"],
    "frozenset({1})": ["frozenset([1])", "frozenset({1})"],
    "nan": ["nan", "-nan"],
    "[nan]": ["[nan]"],
    "-inf": ["-inf", "-1e999"],
    "-0.0": ["-0.0", "-0e0"],
    "1000": ["1000", "1_000", "+1000", "--1000"],
    "100.0": ["100.0", "1e2", "100."],
    "'a\\nb'": ["'a\\nb'", '"a\\nb"', "'a' '\\nb'", "'''a\nb'''"],
    "(1,)": ["(1,)", "1,"],
    "None": ["None"],
}
UNEQUAL = {
    "1": ["True", "1.0", "'1'", "[1]", "(1,)", "b'1'", "2"],
    "True": ["1", "1.0", "'True'", "true"],
    "0.0": ["-0.0", "0", "False"],
    "-0.0": ["0.0", "0"],
    "nan": ["None", "'nan'", "inf"],
    "[1, 2]": ["[2, 1]", "(1, 2)", "{1, 2}", "[1, 2, 2]", "[True, 2]", "[1.0, 2]"],
    "{1: 'a'}": ["{True: 'a'}", "{1.0: 'a'}", "{1: b'a'}", "[(1, 'a')]"],
    "{1}": ["frozenset({1})", "{1.0}", "{True}"],
    "'a'": ["b'a'", "a", "'A'", "'a '", "['a']"],
    "''": ["b''", "None", "' '"],
    "b'a'": ["'a'"],
    "()": ["[]", "set()", "{}", "None"],
    "{}": ["set()", "[]"],
}


@pytest.mark.parametrize(("output", "answer"), [(o, a) for o, answers in EQUAL.items() for a in answers])
def test_one_value_in_another_spelling_is_right(output: str, answer: str) -> None:
    assert make_family("deduction").check(Task("deduction", PROGRAM, ("1",), (output,)), answer) == Verdict(1.0)


@pytest.mark.parametrize(("output", "answer"), [(o, a) for o, answers in UNEQUAL.items() for a in answers])
def test_values_that_python_holds_equal_are_told_apart(output: str, answer: str) -> None:
    verdict = make_family("deduction").check(Task("deduction", PROGRAM, ("1",), (output,)), answer)
    assert isinstance(verdict, Verdict)
    assert verdict.score == 0.0


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.tuples(v, v) | st.dictionaries(SCALARS, v, max_size=2)
)


@given(VALUES, VALUES)
def test_an_answer_is_right_when_it_encodes_alike(output: object, answer: object) -> None:
    task = Task("deduction", PROGRAM, ("1",), (literals.encode(output),))
    verdict = make_family("deduction").check(task, literals.encode(answer, keep_order=True))
    assert isinstance(verdict, Verdict)
    assert verdict.passed is (literals.encode(output) == literals.encode(answer))


@given(st.text(alphabet="[](){}'\"\\,:-+0123456789abTrueNone#\n `", max_size=60))
def test_no_text_breaks_a_family(answer: str) -> None:
    for name in NAMES:
        assert isinstance(make_family(name).check(task_of(name), answer), (Verdict, Job))


@pytest.mark.parametrize(
    "answer", ["9" * 70_000, "[" * 70_000, "-" * 50_000 + "1", "'" + "a" * 70_000, "{" * 99 + "}" * 99]
)
def test_a_hostile_answer_is_wrong_at_once(answer: str) -> None:
    for name in ("deduction", "abduction"):
        verdict = make_family(name).check(task_of(name), answer)
        assert isinstance(verdict, Verdict)
        assert verdict.score == 0.0
        assert len(verdict.reason) < 100


# -- abduction ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "output", "answers"),
    [
        ("def f(x):\n    return x % 10", "3", ["3", "13", "-7", "x=3"]),
        ("def f(x):\n    return len(x)", "2", ["'ab'", "[1, 2]", "{1: 2, 3: 4}"]),
        ("def f(a, b=1):\n    return a + b", "5", ["4", "4, 1", "2, 3", "b=2, a=3", "2, b=3", "4,"]),
    ],
)
def test_any_preimage_is_right(sandbox: Executor, program: str, output: str, answers: Sequence[str]) -> None:
    task = Task("abduction", program, ("0",), (output,))
    for answer in answers:
        assert verdict_of(make_family("abduction"), task, answer, sandbox).score == 1.0, answer


@pytest.mark.parametrize("answer", ["4", "3.0", "y=3", "3, 3", "'3'", "[3]"])
def test_another_output_an_error_or_another_type_is_wrong(sandbox: Executor, answer: str) -> None:
    task = Task("abduction", "def f(x):\n    return x % 10", ("3",), ("3",))
    assert verdict_of(make_family("abduction"), task, answer, sandbox).score == 0.0


# -- induction ---------------------------------------------------------------------------------------------------------


def test_only_the_second_half_of_the_pairs_judges(fake: Callable[..., Any]) -> None:
    family, task = make_family("induction"), task_of("induction")
    job = family.check(task, "def f(x): ...")
    assert isinstance(job, Job)
    assert job.inputs == ("23", "24")
    right = [Execution(Status.OK, "69"), Execution(Status.OK, "72")]
    assert family.judge(task, right) == Verdict(1.0)
    assert family.judge(task, right[::-1]) == Verdict(0.0, "another value")
    assert family.judge(task, [right[0], Execution(Status.TIMEOUT)]) == Verdict(0.0, "timeout")


@pytest.mark.parametrize("status", [status for status in Status if status not in (Status.OK, Status.NO_VERDICT)])
@pytest.mark.parametrize("name", ["abduction", "induction"])
def test_a_run_that_did_not_end_well_is_wrong_whatever_value_it_claims(name: str, status: Status) -> None:
    runs = [Execution(status, task_of(name).outputs[0])] * (2 if name == "induction" else 1)
    assert make_family(name).judge(task_of(name), runs) == Verdict(0.0, status.value)


# -- proposals ---------------------------------------------------------------------------------------------------------

PYTHON, INPUT, MESSAGE = "```python\ndef f(x):\n    return x\n```", "```input\n{}\n```", "```message\nwhat?\n```"


@pytest.mark.parametrize("name", ["deduction", "abduction"])
def test_a_triplet_is_one_program_and_one_input(name: str) -> None:
    family: Any = make_family(name)
    proposal = family.parse_proposal(f"Here:\n{PYTHON}\nand\n{INPUT.format('4')}", [])
    assert (proposal.program, proposal.inputs, proposal.message) == ("def f(x):\n    return x", ("4",), "")


@pytest.mark.parametrize("name", ["deduction", "abduction"])
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "0 python blocks, expected 1"),
        (PYTHON, "0 input blocks, expected 1"),
        (INPUT, "0 python blocks, expected 1"),
        (PYTHON * 2 + INPUT, "2 python blocks, expected 1"),
        (PYTHON + INPUT * 2, "2 input blocks, expected 1"),
        (PYTHON.replace("python", "") + INPUT, "0 python blocks, expected 1"),
        (PYTHON + INPUT.replace("input", "given"), "0 input blocks, expected 1"),
    ],
)
def test_a_triplet_with_other_blocks_is_refused(name: str, answer: str, message: str) -> None:
    family: Any = make_family(name)
    with pytest.raises(ValueError, match=message):
        family.parse_proposal(answer, [])


def test_an_induction_proposal_is_about_the_program_it_was_shown() -> None:
    family: Any = make_family("induction", pairs=3)
    inputs = "".join(INPUT.format(n) for n in range(3))
    proposal = family.parse_proposal(PYTHON + inputs + MESSAGE, [task_of("deduction")])
    assert proposal.program == task_of("deduction").program
    assert (proposal.inputs, proposal.message) == (("0", "1", "2"), "what?")


@pytest.mark.parametrize(("pairs", "messages"), [(0, 1), (2, 1), (4, 1), (3, 0), (3, 2)])
def test_an_induction_proposal_needs_its_pairs_and_one_message(pairs: int, messages: int) -> None:
    family: Any = make_family("induction", pairs=3)
    with pytest.raises(ValueError, match=r"blocks, expected [13]"):
        family.parse_proposal(INPUT * pairs + MESSAGE * messages, [task_of("deduction")])


# -- when values are the same ----------------------------------------------------------------------------------------

ALIKE = {"True": "1", "1.0": "1", "-0.0": "0.0", "[1, {2: False}]": "[True, {2.0: 0}]", "(1, 2)": "(1, 2)"}
UNLIKE = {"'1'": "1", "[1, 2]": "(1, 2)", "nan": "1", "'a'": "'b'"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("value", "gold"), [*ALIKE.items(), *UNLIKE.items()])
def test_values_compare_as_asked_for(sandbox: Executor, name: str, value: str, gold: str) -> None:
    count = 4 if name == "induction" else 1
    task = Task(name, f"def f(x):\n    return {value}", tuple("1234"[:count]), (literals.canonical(gold),) * count)
    answer = {"deduction": value, "abduction": "9", "induction": task.program}[name]
    same = literals.canonical(value) == literals.canonical(gold)
    assert verdict_of(make_family(name), task, answer, sandbox).passed == same
    assert verdict_of(make_family(name, compare="canonical"), task, answer, sandbox).passed == same
    assert verdict_of(make_family(name, compare="python"), task, answer, sandbox).passed == (value in ALIKE)


@pytest.mark.parametrize("name", NAMES)
def test_no_equality_of_a_program_is_called(sandbox: Executor, name: str) -> None:
    program = "class C(int):\n    def __eq__(self, other):\n        return True\n\ndef f(x):\n    return C(3)"
    count = 4 if name == "induction" else 1
    task = Task(name, program, tuple("1234"[:count]), ("42",) * count)
    answer = {"deduction": "C(3)", "abduction": "9", "induction": program}[name]
    assert not verdict_of(make_family(name, compare="python"), task, answer, sandbox).passed


def test_an_output_that_was_cut_is_compared_as_text() -> None:
    task = Task("deduction", "def f(x):\n    return x", ("1",), ("[1, 2...9]",))
    family = make_family("deduction", compare="python")
    assert family.check(task, "[1, 2, 9]") == Verdict(0.0, "another value")


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_way_to_compare_brings_the_nearest(name: str) -> None:
    with pytest.raises(UnknownId, match="'python'"):
        make_family(name, compare="pyton")
