"""HumanEval (arXiv:2107.03374) and HumanEval+ (EvalPlus, arXiv:2305.01210): write a function from its docstring.

``humaneval`` is scored by the tests of the original set, compared as EvalPlus does; ``humaneval+`` by those and many
more. A model may write the whole function or go on with its body; imports and helpers that the prompt shows stay.

A few tests are no plain asserts but loops, some over random arguments. Those run once around the reference, in the
sandbox and with a fixed seed; an answer is held to what the reference gave on the same arguments.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from selfplay_gym import literals
from selfplay_gym.errors import InvalidData
from selfplay_gym.suites import Problem, Row, Source, Suite, Table, open_table
from selfplay_gym.tasks import asserts, evalplus, rules
from selfplay_gym.tasks.asserts import Case, NotCases
from selfplay_gym.tasks.prompting import Style
from selfplay_gym.tasks.unit_tests import LIMITS, LONG_LIMITS, ByUnitTests, UnitTests, expected_text
from selfplay_gym.types import Execution, Job, Limits

ROOTS = {"find_zero": 1e-4}
"""Functions that may return any root of a polynomial, with the tolerance of their tests."""

_RECORDER = """
def _recorded():
    import copy, random
    random.seed(0)
    calls = []
    def candidate(*given):
        kept = copy.deepcopy(given)
        calls.append((kept, {entry}(*given)))
        return calls[-1][1]
    check(candidate)
    return calls
"""


class HumanEval(ByUnitTests):
    """Shows the head of a function with its docstring."""

    name = "humaneval"


def load(source: Source) -> list[Suite]:
    """Return the one suite ``humaneval``."""
    data, found = open_table(source.data_dir, "humaneval.jsonl", "humaneval_dev.jsonl")
    stated = [_stated(row) for row in data.rows]
    unread = [row for row, task in zip(data.rows, stated, strict=True) if task is None]
    recorded = iter(source.executor.run([_recorder(row) for row in unread]))
    problems = [
        _problem(row, task) if task else _recorded(row, next(recorded)[0])
        for row, task in zip(data.rows, stated, strict=True)
    ]
    return [_suite("humaneval", problems, data, found, source, LIMITS)]


def load_plus(source: Source) -> list[Suite]:
    """Return the one suite ``humaneval+``."""
    data, found = open_table(source.data_dir, "humanevalplus.jsonl", "humanevalplus_dev.jsonl")
    rows = data.rows[: source.most]
    tasks, answers = [_task(row) for row in rows], [_whole(row) for row in rows]
    problems = evalplus.problems(rows, source, tasks, answers)
    return [_suite("humaneval+", problems, data, found, source, LONG_LIMITS)]


def _suite(name: str, problems: Sequence[Problem], data: Table, found: str, source: Source, limits: Limits) -> Suite:
    note = "dev half" if "_dev" in found else ""
    family = HumanEval(cast(Style, source.style))
    return Suite(name, {family.name: family}, tuple(problems), data.sha256, limits, note=note)


def _problem(row: Row, task: UnitTests) -> Problem:
    return Problem(row.text("id"), task, _whole(row))


def _whole(row: Row) -> str:
    return row.text("prompt") + row.text("canonical_solution")


def _task(row: Row) -> UnitTests:
    """Return the task without its tests."""
    prompt, entry = row.text("prompt"), row.text("entry_point")
    return UnitTests(
        HumanEval.name, prompt.strip(), (), (), prelude=_before(prompt, entry, row), stub=prompt, entry=entry
    )


def _before(prompt: str, entry: str, row: Row) -> str:
    """Return what stands in a prompt before the function that is asked for."""
    try:
        body = ast.parse(prompt).body
    except SyntaxError as error:
        raise InvalidData(f"{row.where}: field 'prompt' is no Python: {error}") from None
    asked = [part for part in body if isinstance(part, ast.FunctionDef) and part.name == entry]
    if not asked:
        raise InvalidData(f"{row.where}: field 'prompt' defines no function {entry!r}")
    return "\n".join(prompt.split("\n")[: asked[-1].lineno - 1]).strip()


# -- the original tests ------------------------------------------------------------------------------------------------


def _stated(row: Row) -> UnitTests | None:
    """Return the task with the tests as they stand; None where they are no plain asserts."""
    source = asserts.Source(row.text("test"))
    try:
        cases = [_as_evalplus(case) for case in asserts.cases(source, _checks(source, row))]
    except NotCases:
        return None
    # The tests call what they check `candidate`.
    return replace(_task(row), setup=f"candidate = {row.text('entry_point')}", level="stated").with_cases(cases)


def _as_evalplus(case: Case) -> Case:
    """Return the case compared as EvalPlus does it with the original tests too: by value, floats with a tolerance."""
    plain = case.rule in (rules.OPERATORS["Eq"], rules.OPERATORS["Is"])
    return replace(case, rule=rules.evalplus) if plain else case


def _checks(source: asserts.Source, row: Row) -> Sequence[ast.stmt]:
    """Return the body of ``check``.

    Raises:
        InvalidData: There is no such function.
    """
    for statement in source.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "check":
            return statement.body
    raise InvalidData(f"{row.where}: field 'test' defines no function 'check'")


def _recorder(row: Row) -> Job:
    program = f"{_whole(row)}\n\n{row.text('test')}\n{_RECORDER.format(entry=row.text('entry_point'))}"
    return Job(program, ("",), "_recorded", evalplus.REFERENCE_LIMITS, "plain")


def _recorded(row: Row, execution: Execution) -> Problem:
    """Return the problem judged by the calls that the tests made of the reference."""
    calls = literals.parse(execution.value) if execution.value is not None else None
    if not isinstance(calls, list):
        return Problem(row.text("id"), None, failure=f"reference: {execution.status} {execution.error_type}".strip())
    task = replace(_task(row), level="recorded")
    cases = [_case(row.text("entry_point"), given, value) for given, value in calls]
    return _problem(row, task.with_cases(cases))


def _case(entry: str, given: Sequence[object], value: object) -> Case:
    """Return the case of a call that was recorded; where any root is right, the polynomial is what is expected."""
    written = [literals.encode(argument, keep_order=True) for argument in given]
    call = f"{entry}({', '.join(written)})"
    if entry in ROOTS:
        return Case(call, written[0], rules.root(ROOTS[entry]))
    return Case(call, expected_text(value), rules.evalplus)
