"""LiveCodeBench (arXiv:2403.07974): problems of programming contests, answered with a script or with a method.

A script reads standard input; what it prints is compared word by word, as text. A method of ``Solution`` is called
with the arguments of the statement, and its value compared as Python's ``==`` does. Rows with ``tests`` are judged by
them; the others only by the samples of their statement, which the answer has seen: such a score is an upper bound, and
not LiveCodeBench's. Where a problem takes any valid answer, or floats within a tolerance, others than the sample's are
wrong all the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import cast

from selfplay_gym import literals
from selfplay_gym.errors import InvalidData
from selfplay_gym.frame import last_block
from selfplay_gym.suites import Problem, Row, Source, Suite, open_table
from selfplay_gym.tasks import prompting, scripts
from selfplay_gym.tasks.comparing import python_equal
from selfplay_gym.tasks.examples import objects
from selfplay_gym.types import Execution, Job, Limits, Status, Task, Verdict

FILES = ("livecodebench.jsonl", "livecodebench_v5_statements.jsonl")
LIMITS = Limits(cpu_seconds=6.0, wall_seconds=30.0, memory_bytes=512 * 2**20, output_bytes=2**22)
"""Of one test; six seconds are LiveCodeBench's own."""

SAMPLES_NOTE = "sample tests of the statements alone: an upper bound, not a LiveCodeBench score"
PRINTS_NOTHING = frozenset({("abc367_c", 1), ("abc372_a", 2)})
"""Samples of the file whose output is empty; it holds the sentence that follows."""

# What contest sites have imported before a solution, the builtins that `math` hides among it.
_IMPORTS = """import bisect, collections, copy, functools, heapq, itertools, math, random, re, string
from math import *
from builtins import *
from bisect import *
from collections import *
from copy import copy, deepcopy
from functools import *
from heapq import *
from itertools import *
from typing import *

"""
_METHOD = re.compile(r"class Solution\b.*?\bdef\s+(\w+)\s*\(\s*self\b", re.DOTALL)
_NAME = re.compile(r"\s*(?:([A-Za-z_]\w*)\s*=\s*)?")
_COMMA = re.compile(r"\s*(?:,|\Z)")


class Script:
    """Asks for a program that reads standard input; the task's inputs are such texts, its outputs lists of words.

    Args:
        style: Prompt style.
    """

    name = "script"

    def __init__(self, style: prompting.Style = "azr") -> None:
        prompting.check_style(style)
        self.style = style

    def solve_prompt(self, task: Task) -> str:
        """Show the statement, with starter code if there is some."""
        return prompting.fill(self.name, "solve", self.style, statement=task.program, starter=task.message)

    def check(self, task: Task, answer: str) -> Verdict | Job:
        """Run the program on every test."""
        source = last_block(answer, "python")
        if not source:
            return Verdict(0.0, "no program")
        try:
            return self._job(task, source)
        except literals.NotALiteral as error:
            return Verdict(0.0, str(error))

    def _job(self, task: Task, source: str) -> Job:
        return scripts.printed(source, task.inputs)

    def judge(self, task: Task, executions: Sequence[Execution]) -> Verdict:
        """Right when every test is; the first that is not names the reason."""
        for execution, output in zip(executions, task.outputs, strict=True):
            if execution.status is not Status.OK or execution.value is None:
                return Verdict(0.0, execution.status)
            if not python_equal(execution.value, output):
                return Verdict(0.0, "another output")
        return Verdict(1.0)


class Method(Script):
    """Asks for class ``Solution``; the task's message is its starter code, its inputs are argument lists."""

    name = "method"

    def _job(self, task: Task, source: str) -> Job:
        return scripts.call_method(_IMPORTS + source, _method(task.message), task.inputs)


def load(source: Source) -> list[Suite]:
    """Return the one suite ``livecodebench``."""
    data, _ = open_table(source.data_dir, *FILES)
    style = cast(prompting.Style, source.style)
    families = {family.name: family for family in (Script(style), Method(style))}
    problems = tuple(_problem(row) for row in data.rows)
    note = "" if all("tests" in row.fields for row in data.rows) else SAMPLES_NOTE
    return [Suite("livecodebench", families, problems, data.sha256, LIMITS, note=note)]


def _problem(row: Row) -> Problem:
    starter = row.value("starter_code")
    tests = [_texts(row, test) for test in objects(row, "tests" if "tests" in row.fields else "sample_tests")]
    if not tests:
        raise InvalidData(f"{row.where}: holds no test")
    try:
        task = _script(row, tests) if starter is None else _call(row, str(starter), tests)
    except literals.NotALiteral as error:
        return Problem(row.text("id"), None, failure=f"a test is {error}")
    return Problem(row.text("id"), task)


def _texts(row: Row, test: dict[str, object]) -> tuple[str, str]:
    given, output = test["input"], test["output"]
    if not isinstance(given, str) or not isinstance(output, str):
        raise InvalidData(f"{row.where}: tests must hold 'input' and 'output' as text")
    return given, output


def _script(row: Row, tests: Sequence[tuple[str, str]]) -> Task:
    scripts.printed("", [given for given, _ in tests])  # refuses what could not be handed over
    outputs = [
        "" if "tests" not in row.fields and (row.text("id"), number) in PRINTS_NOTHING else output
        for number, (_, output) in enumerate(tests)
    ]
    words = tuple(literals.encode(output.split(), literals.MAX_PLAIN) for output in outputs)
    return Task(Script.name, row.text("question"), tuple(given for given, _ in tests), words)


def _call(row: Row, starter: str, tests: Sequence[tuple[str, str]]) -> Task:
    if not _METHOD.search(starter):
        raise InvalidData(f"{row.where}: field 'starter_code' must hold class Solution with a method, got {starter!r}")
    inputs = tuple(_arguments(row, given) for given, _ in tests)
    outputs = tuple(literals.encode(_json(row, output), literals.MAX_PLAIN) for _, output in tests)
    return Task(Method.name, row.text("question"), inputs, outputs, starter.rstrip())


def _method(starter: str) -> str:
    found = _METHOD.search(starter)
    assert found is not None
    return found[1]


def _arguments(row: Row, text: str) -> str:
    """Return an argument list of JSON values, which may be named, as Python's."""
    words, at, decoder = [], 0, json.JSONDecoder()
    while at < len(text):
        name = _NAME.match(text, at)
        assert name is not None
        try:
            value, at = decoder.raw_decode(text, name.end())
        except (ValueError, RecursionError):
            raise InvalidData(f"{row.where}: no argument list of JSON values: {text[:100]!r}") from None
        comma = _COMMA.match(text, at)
        if comma is None:
            raise InvalidData(f"{row.where}: no argument list of JSON values: {text[:100]!r}")
        at = comma.end()
        words.append((f"{name[1]}=" if name[1] else "") + literals.encode(value, literals.MAX_PLAIN))
    return ", ".join(words)


def _json(row: Row, text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidData(f"{row.where}: an output must be JSON, got {text[:100]!r}") from None
