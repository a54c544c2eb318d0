"""LeetCode contest problems of 2023 and 2024, as DeepSeek-Coder's evaluation collected them: complete a method.

An answer is the class ``Solution``; typing, collections and their like are there without an import, as on the site. All
calls are made on one object. A few problems accept several values on the site; the tests hold one.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

from selfplay_gym.suites import Problem, Row, Source, Suite, open_table
from selfplay_gym.tasks import asserts
from selfplay_gym.tasks.asserts import Case
from selfplay_gym.tasks.prompting import Style
from selfplay_gym.tasks.unit_tests import LONG_LIMITS, ByUnitTests, UnitTests

IMPORTS = """from typing import *
from collections import *
from itertools import *
from functools import *
from heapq import *
from bisect import *
import bisect, collections, functools, heapq, itertools, math, operator, re, string
from math import ceil, comb, factorial, floor, gcd, inf, isqrt, lcm, log, log2, perm, sqrt"""
_GIVEN = "test_input"


class LeetCode(ByUnitTests):
    """Shows a statement and the head of a method."""

    name = "leetcode"


def load(source: Source) -> list[Suite]:
    """Return the one suite ``leetcode``."""
    data, _ = open_table(source.data_dir, "leetcode_contest.jsonl")
    family = LeetCode(cast(Style, source.style))
    problems = tuple(map(_problem, data.rows))
    return [Suite("leetcode", {family.name: family}, problems, data.sha256, LONG_LIMITS)]


def _problem(row: Row) -> Problem:
    key = row.text("id")
    try:
        source = asserts.Source(row.text("test"))
        first = next((n for n, part in enumerate(source.body) if _input_of(part) is not None), 0)
        cases = list(_cases(source, source.body[first:]))
    except asserts.NotCases as error:
        return Problem(key, None, failure=str(error))
    setup = [source.text(part) for part in source.body[:first]]
    task = UnitTests(
        LeetCode.name,
        row.text("prompt").strip(),
        (),
        (),
        prelude="\n\n".join([IMPORTS, _classes(row.text("prompt"))]).strip(),
        setup="\n".join(setup),
        level="stated",
    )
    return Problem(key, task.with_cases(cases))


def _cases(source: asserts.Source, statements: Sequence[ast.stmt]) -> Iterator[Case]:
    """Yield the cases of asserts that take their arguments from an assignment before each."""
    given = ""
    for statement in statements:
        arguments = _input_of(statement)
        if arguments is not None:
            given = source.text(arguments)
            continue
        for case in asserts.cases(source, [statement]):
            yield replace(case, call=case.call.replace(f"**{_GIVEN}", f"**{given}"))


def _input_of(statement: ast.stmt) -> ast.expr | None:
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name == _GIVEN:
            return value
    return None


def _classes(prompt: str) -> str:
    """Return the classes that a prompt gives between its statement and the answer's own, such as a list's node."""
    return prompt.rpartition('"""')[2].partition("class Solution")[0].strip()
