"""Input/output pairs of HumanEval's and MBPP's functions, used three ways: induction, deduction and abduction.

The pairs come out of the tests of EvalPlus (arXiv:2305.01210); there are no published scores. A function keeps its name
in the program that is shown, which ends by calling it ``f`` too. Induction shows the train pairs and not the text of
the exercise, whose examples may be among the hidden pairs. Deduction and abduction ask for one test pair a row. Floats
compare within 1e-6. A row whose reference disagrees with the file here, or takes what is no literal (complex numbers),
has no verdict in any of the three.

In 13 of the 262 rows of the dev halves every hidden output is the same: there, induction accepts a table of the shown
pairs that has this output as its default.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

from selfplay_gym import literals
from selfplay_gym.errors import InvalidData
from selfplay_gym.protocols import Executor, TaskFamily
from selfplay_gym.suites import Problem, Row, Source, Suite, open_table
from selfplay_gym.tasks.abduction import Abduction
from selfplay_gym.tasks.comparing import close
from selfplay_gym.tasks.deduction import Deduction
from selfplay_gym.tasks.examples import FromExamples, Pair, examples_problem, objects
from selfplay_gym.tasks.prompting import Style
from selfplay_gym.types import Execution, Job, Limits, Status, Task

USES = ("induction", "deduction", "abduction")
LIMITS = Limits(cpu_seconds=2.0, wall_seconds=10.0)
"""Runs of the reference of mbpp/599 take 0.9 s of a busy core; those of any other at most 0.4 s."""

MESSAGE = "The function solves a small programming exercise."
_UNLIKE_IN_TEXT = re.compile(r"[\s'\"]")


@dataclass(frozen=True, slots=True)
class _Exercise:
    """A row that was read; with a failure, its pairs are not to be used."""

    id: str
    program: str
    train: Sequence[Pair] = ()
    test: Sequence[Pair] = ()
    failure: str = ""

    @property
    def asked(self) -> Pair:
        """The pair of deduction and abduction: the first test pair whose input the program's text does not tell."""
        text = _UNLIKE_IN_TEXT.sub("", self.program)
        return next((pair for pair in self.test if _UNLIKE_IN_TEXT.sub("", pair[0]) not in text), self.test[0])


def _load(name: str, uses: Sequence[str], source: Source) -> list[Suite]:
    data, found = open_table(source.data_dir, f"{name}.jsonl", f"{name}_dev.jsonl")
    exercises = _checked([_exercise(row) for row in data.rows], source.executor)
    note = "dev half" if "_dev" in found else ""
    style = cast(Style, source.style)
    families: dict[str, TaskFamily] = {
        "induction": FromExamples(style, compare="close"),
        "deduction": Deduction(style, compare="close"),
        "abduction": Abduction(style, compare="close"),
    }
    message = "" if style == "compact" else MESSAGE
    problems = {use: tuple(_problem(exercise, use, message) for exercise in exercises) for use in uses}
    return [Suite(f"{name}-{use}", {use: families[use]}, problems[use], data.sha256, LIMITS, note=note) for use in uses]


load_humaneval = partial(_load, "humaneval_io", USES)
load_humaneval_induction = partial(_load, "humaneval_io", USES[:1])
load_humaneval_deduction = partial(_load, "humaneval_io", USES[1:2])
load_humaneval_abduction = partial(_load, "humaneval_io", USES[2:])
load_mbpp = partial(_load, "mbpp_io", USES)
load_mbpp_induction = partial(_load, "mbpp_io", USES[:1])
load_mbpp_deduction = partial(_load, "mbpp_io", USES[1:2])
load_mbpp_abduction = partial(_load, "mbpp_io", USES[2:])


def _exercise(row: Row) -> _Exercise:
    program = f"{row.text('code').strip()}\n\n\nf = {row.text('entry_point')}"
    exercise = _Exercise(row.text("id"), program)
    try:
        train, test = _pairs(row, "train"), _pairs(row, "test")
    except literals.NotALiteral as error:
        return replace(exercise, failure=f"an example is {error}")
    return replace(exercise, train=train, test=test)


def _pairs(row: Row, field: str) -> list[Pair]:
    pairs = []
    for found in objects(row, field):
        given, output = found["input"], found["output"]
        if not isinstance(given, str) or not isinstance(output, str):
            raise InvalidData(f"{row.where}: field {field!r} must hold inputs and outputs as Python source")
        pairs.append((literals.canonical_arguments(given), literals.canonical(output)))
    if not pairs:
        raise InvalidData(f"{row.where}: field {field!r} holds no pair")
    return pairs


def _checked(exercises: Sequence[_Exercise], executor: Executor) -> list[_Exercise]:
    """Run every reference on every input."""
    readable = [exercise for exercise in exercises if not exercise.failure]
    pairs = [[*exercise.train, *exercise.test] for exercise in readable]
    jobs = [
        Job(exercise.program, tuple(given for given, _ in found), limits=LIMITS, policy="plain")
        for exercise, found in zip(readable, pairs, strict=True)
    ]
    failures = {
        exercise.id: _failure(runs, [output for _, output in found])
        for exercise, found, runs in zip(readable, pairs, executor.run(jobs), strict=True)
    }
    return [replace(exercise, failure=failures.get(exercise.id, exercise.failure)) for exercise in exercises]


def _failure(runs: Sequence[Execution], stated: Sequence[str]) -> str:
    for run, output in zip(runs, stated, strict=True):
        if run.status is not Status.OK or run.value is None:
            return f"reference: {run.status} {run.error_type}".strip()
        if not close(run.value, output):
            return "reference: another value here than in the data file"
    return ""


def _problem(exercise: _Exercise, use: str, message: str) -> Problem:
    if exercise.failure:
        return Problem(exercise.id, None, failure=exercise.failure)
    if use == "induction":
        return examples_problem(exercise.id, exercise.train, exercise.test, message, exercise.program)
    given, output = exercise.asked
    task = Task(use, exercise.program, (given,), (output,))
    return Problem(exercise.id, task, output if use == "deduction" else given)
