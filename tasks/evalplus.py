"""Rows of EvalPlus (arXiv:2305.01210): many inputs a function, held to what the reference gives.

Inputs and results stand in the row's test program, as Python that tells tuples and sets from lists. They are read
there, and nothing of that program runs. Where it computes its results, and only there, the reference runs here, once.
What is right follows the evaluator of EvalPlus: equality, a tolerance for floats, and the rules of single functions
that it has.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from selfplay_gym import literals
from selfplay_gym.errors import InvalidData
from selfplay_gym.suites import Problem, Row, Source
from selfplay_gym.tasks import asserts, rules
from selfplay_gym.tasks.asserts import Case
from selfplay_gym.tasks.rules import Rule
from selfplay_gym.tasks.unit_tests import SLOW, SLOW_LIMITS, UnitTests, expected_text, reference_job
from selfplay_gym.types import Execution, Limits, Status

REFERENCE_LIMITS = Limits(cpu_seconds=10.0, wall_seconds=120.0, memory_bytes=96 * 2**20, output_bytes=2**16)
"""Of one call. Four of mbpp/255 need more memory, one of them a gigabyte, and so are left out."""

BEYOND = frozenset((Status.TIMEOUT, Status.MEMORY))
"""Calls that end so are left out of a row's tests: no answer could be held to them."""

ROOTS = frozenset(("find_zero",))
"""Functions for which any root of the polynomial that they are given is right."""

IN_ANY_ORDER = frozenset((
    "similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum",
    "intersection_array", "find_dissimilar", "Diff",
))  # fmt: skip
"""Functions whose result counts as a set."""

NOT_NONE = frozenset(("check_str", "text_match_three", "text_starta_endb"))
"""Functions of which only counts whether they return something; a boolean must be the right one."""

_NUMBERS = ("inf", "nan")
_NUMBERS_AS_NAMES = "inf, nan = float('inf'), float('nan')"
_IS_SOMETHING = "(lambda value: value if isinstance(value, bool) else value is not None)"


@dataclass(frozen=True, slots=True)
class _Call:
    """One input.

    Attributes:
        written: The arguments as source.
        node: Their list in the syntax tree.
        result: What the data says the reference gives, in the syntax tree; None where it does not say.
    """

    written: str
    node: ast.expr
    result: ast.expr | None


def problems(rows: Sequence[Row], source: Source, tasks: Sequence[UnitTests], answers: Sequence[str]) -> list[Problem]:
    """Return the problems of rows.

    Args:
        rows: Of the data file.
        source: Its executor runs references.
        tasks: Each row's task, without its tests.
        answers: Each row's reference, as a program.

    Raises:
        InvalidData: A row's tests cannot be read.
    """
    calls = [_calls(row) for row in rows]
    stated = [_stated(found) for found in calls]
    jobs = [
        reference_job(answer, [_expression(row, call) for call in found], REFERENCE_LIMITS)
        for row, answer, found, known in zip(rows, answers, calls, stated, strict=True)
        if known is None
    ]
    runs = iter(source.executor.run(jobs))
    read = zip(rows, tasks, answers, calls, stated, strict=True)
    return [
        _computed(row, task, answer, found, next(runs)) if known is None else _problem(row, task, answer, found, known)
        for row, task, answer, found, known in read
    ]


def _stated(calls: Sequence[_Call]) -> list[str] | None:
    """Return what the data says that each call gives; None where it does not, or says what is no value."""
    results = [call.result for call in calls if call.result is not None]
    if len(results) < len(calls):
        return None
    try:
        return [expected_text(asserts.value(result)) for result in results]
    except (ValueError, TypeError):
        return None


def _computed(row: Row, task: UnitTests, answer: str, calls: Sequence[_Call], runs: Sequence[Execution]) -> Problem:
    """Return the problem whose expected values the reference gave."""
    kept = [(call, run) for call, run in zip(calls, runs, strict=True) if run.status not in BEYOND]
    failed = next((run for _, run in kept if run.status is not Status.OK), None if kept else runs[0])
    if failed is not None:
        return Problem(row.text("id"), None, failure=f"reference: {failed.status} {failed.error_type}".strip())
    values = [run.value or "" for _, run in kept]
    return _problem(row, replace(task, level="computed"), answer, [call for call, _ in kept], values)


def _problem(row: Row, task: UnitTests, answer: str, calls: Sequence[_Call], expected: Sequence[str]) -> Problem:
    cases = [_case(row, call, text) for call, text in zip(calls, expected, strict=True)]
    nodes = (node for call in calls for node in ast.walk(call.node))
    named = any(isinstance(node, ast.Name) and node.id in _NUMBERS for node in nodes)
    task = replace(task, level=task.level or "stated", setup=_NUMBERS_AS_NAMES if named else "")
    key = row.text("id")
    return Problem(key, task.with_cases(cases), answer, limits=SLOW_LIMITS if key in SLOW else None)


# -- reading -----------------------------------------------------------------------------------------------------------


def _calls(row: Row) -> list[_Call]:
    try:
        source = asserts.Source(row.text("test"))
    except asserts.NotCases as error:
        raise InvalidData(f"{row.where}: field 'test' holds {error}") from None
    inputs, results = _list(source, "inputs"), _list(source, "results")
    if inputs is None:
        return [*_listed(row, "base_input"), *_listed(row, "plus_input")]
    stated: Sequence[ast.expr | None] = results if results is not None else [None] * len(inputs)
    if len(stated) != len(inputs) or not inputs:
        raise InvalidData(f"{row.where}: field 'test' holds {len(inputs)} inputs and {len(stated)} results")
    return [_Call(_arguments(source, node), node, result) for node, result in zip(inputs, stated, strict=True)]


def _list(source: asserts.Source, name: str) -> list[ast.expr] | None:
    """Return the items of the list that a test program binds to a name, at top level or in a function."""
    for statement in _statements(source.body):
        match statement:
            case ast.Assign(targets=[ast.Name(id=bound)], value=ast.List(elts=items)) if bound == name:
                return items
    return None


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        if isinstance(statement, ast.FunctionDef):
            yield from statement.body


def _listed(row: Row, field: str) -> Iterator[_Call]:
    """Yield the inputs of a field of JSON, for rows whose test program does not list them."""
    for given in row.list(field):
        if not isinstance(given, list):
            raise InvalidData(f"{row.where}: field {field!r} must hold lists of arguments")
        written = ", ".join(map(repr, given))
        yield _Call(written, ast.parse(f"[{written}]", mode="eval").body, None)


def _arguments(source: asserts.Source, node: ast.expr) -> str:
    if isinstance(node, (ast.List, ast.Tuple)) and node.elts:
        return ", ".join(source.text(argument) for argument in node.elts)
    return f"*{source.text(node)}"


# -- what is right -----------------------------------------------------------------------------------------------------


def _expression(row: Row, call: _Call) -> str:
    entry = row.text("entry_point")
    expression = f"{entry}({call.written})"
    return f"{_IS_SOMETHING}({expression})" if entry in NOT_NONE else expression


def _case(row: Row, call: _Call, expected: str) -> Case:
    entry, tolerance = row.text("entry_point"), row.value("atol")
    if not isinstance(tolerance, (int, float)):
        raise InvalidData(f"{row.where}: field 'atol' must be a number, got {tolerance!r}")
    if entry in ROOTS:
        polynomial = asserts.value(call.node)
        assert isinstance(polynomial, list)
        return Case(_expression(row, call), literals.encode(polynomial[0]), rules.root(float(tolerance)))
    rule: Rule = rules.as_sets if entry in IN_ANY_ORDER else partial(rules.evalplus, absolute=float(tolerance))
    if entry in _ALSO:
        rule = rules.any_of(rule, _ALSO[entry](asserts.value(call.node), float(tolerance)))
    return Case(_expression(row, call), expected, rule)


def _anything(given: object, tolerance: float) -> Rule:
    """What is right is disputed: to EvalPlus any value is."""
    return lambda found, expected: True


def _nothing_found(given: object, tolerance: float) -> Rule:
    """Divisors of which there are none may also add up to 0."""
    return lambda found, expected: found == 0


def _by_true_height(given: object, tolerance: float) -> Rule:
    """A pyramid's height may also be read as the one over the middle of its base, not as that of a side."""
    edge, height = given  # type: ignore[misc]
    area = round(edge**2 + 2 * edge * math.hypot(edge / 2, height))  # type: ignore[has-type]
    return rules.within(tolerance, of=area)


def _digit_by_digit(given: object, tolerance: float) -> Rule:
    """The distance of two numbers may also be that of their digits, place by place."""
    one, other = (str(number) for number in given)  # type: ignore[attr-defined]
    width = max(len(one), len(other))
    pairs = zip(one.zfill(width), other.zfill(width), strict=True)
    return rules.within(0.0, of=sum(abs(int(left) - int(right)) for left, right in pairs))


_ALSO: dict[str, Callable[[object, float], Rule]] = {
    "are_equivalent": _anything,
    "sum_div": _nothing_found,
    "surface_Area": _by_true_height,
    "digit_distance_nums": _digit_by_digit,
}
"""Functions whose sentence can be read in two ways, and when a value is right in the other."""
