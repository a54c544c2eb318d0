"""MBPP (arXiv:2108.07732), its sanitized half, and MBPP+ of EvalPlus (arXiv:2305.01210): a function from a sentence.

The sentence does not name the function, so the prompt shows asserts: of ``mbpp`` and ``mbpp_sanitized`` all of them, as
is the custom of the set. There, a program that only knows the asserts passes: that is what the score of these two
measures. ``mbpp+`` shows one, and has many more.

Reported are the rows with ``split`` test; the others are for prompts and training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from selfplay_gym.errors import InvalidData
from selfplay_gym.suites import Problem, Row, Source, Suite, Table, open_table
from selfplay_gym.tasks import asserts, evalplus
from selfplay_gym.tasks.prompting import Style
from selfplay_gym.tasks.unit_tests import LIMITS, LONG_LIMITS, SLOW, SLOW_LIMITS, ByUnitTests, UnitTests
from selfplay_gym.types import Limits


class Mbpp(ByUnitTests):
    """Shows a sentence and asserts."""

    name = "mbpp"


def load(source: Source) -> list[Suite]:
    """Return the one suite ``mbpp``."""
    return _load("mbpp", _setup_of_full, source)


def load_sanitized(source: Source) -> list[Suite]:
    """Return the one suite ``mbpp_sanitized``."""
    return _load("mbpp_sanitized", _setup_of_sanitized, source)


def load_plus(source: Source) -> list[Suite]:
    """Return the one suite ``mbpp+``."""
    data, found = open_table(source.data_dir, "mbppplus.jsonl", "mbppplus_dev.jsonl")
    rows = data.rows[: source.most]
    tasks = [UnitTests(Mbpp.name, _shown(row), (), ()) for row in rows]
    problems = evalplus.problems(rows, source, tasks, [row.text("canonical_solution") for row in rows])
    return [_suite("mbpp+", problems, data, found, source, LONG_LIMITS)]


def _load(name: str, setup: Callable[[Row], str], source: Source) -> list[Suite]:
    data, found = open_table(source.data_dir, f"{name}.jsonl", f"{name}_dev.jsonl")
    problems = [_problem(row, setup(row)) for row in data.rows if row.text("split") == "test"]
    if not problems:
        raise InvalidData(f"{found}: no row has the split 'test'")
    return [_suite(name, problems, data, found, source, LIMITS)]


def _suite(name: str, problems: Sequence[Problem], data: Table, found: str, source: Source, limits: Limits) -> Suite:
    note = "dev half" if "_dev" in found else ""
    family = Mbpp(cast(Style, source.style))
    return Suite(name, {family.name: family}, tuple(problems), data.sha256, limits, note=note)


def _problem(row: Row, setup: str) -> Problem:
    tests = _texts(row, "test_list")
    statement = "\n".join([row.text("prompt").strip(), *(test.strip() for test in tests)])
    key = row.text("id")
    try:
        source = asserts.Source("\n".join(tests))
        cases = asserts.cases(source, source.body)
    except asserts.NotCases as error:
        return Problem(key, None, failure=str(error))
    task = UnitTests(Mbpp.name, statement, (), (), setup=setup, level="stated").with_cases(cases)
    return Problem(key, task, row.text("code"), limits=SLOW_LIMITS if key in SLOW else None)


def _setup_of_full(row: Row) -> str:
    return row.text("test_setup_code").replace("\r\n", "\n")  # stands behind the answer, whose classes it may use


def _setup_of_sanitized(row: Row) -> str:
    return "\n".join(_texts(row, "test_imports"))


def _texts(row: Row, field: str) -> list[str]:
    found = row.list(field)
    if not all(isinstance(item, str) for item in found):
        raise InvalidData(f"{row.where}: field {field!r} must hold texts")
    return cast(list[str], found)


def _shown(row: Row) -> str:
    """Return the sentence and the assert of a prompt that is written as a docstring."""
    return row.text("prompt").strip().removeprefix('"""').removesuffix('"""').strip()
