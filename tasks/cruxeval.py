"""CRUXEval (arXiv:2401.03065): input and output prediction over short functions, as abduction and deduction.

A reference is trusted data and its input may be an expression; what it returns is found by running it here, once, so
that answers compare by canonical text. That is stricter than the ``==`` of the paper in one way: ``1``, ``1.0`` and
``True`` are three answers.

A few reference inputs are expressions, such as ``range(100, 120)`` or a name that the program defines. They are
evaluated as part of the row's program.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

from selfplay_gym import literals
from selfplay_gym.frame import last_block
from selfplay_gym.suites import Problem, Row, Source, Suite, open_table
from selfplay_gym.tasks.abduction import Abduction
from selfplay_gym.tasks.comparing import spelled
from selfplay_gym.tasks.deduction import Deduction
from selfplay_gym.tasks.prompting import Style
from selfplay_gym.types import Execution, Job, Status, Task, Verdict

FILES = ("cruxeval.jsonl", "cruxeval_dev.jsonl")
_CALL = re.compile(r"f\((.*)\)", re.DOTALL)


class InputPrediction(Abduction):
    """CRUXEval-I: any argument list that gives the reference output is right."""

    def check(self, task: Task, answer: str) -> Verdict | Job:
        """Run the program on the answer, which must be literals, bare or as a call ``f(...)``.

        An expression that a model wrote would be code in the process whose result judges it: it could return what it
        likes, or replace what the program calls. So none is accepted but the reference's own text, byte for byte.
        """
        text = _arguments(answer)
        if text == task.inputs[0].strip() and not _is_literal(text):
            return _reference_job(task.program, text)
        return super().check(task, text)

    def vote(self, task: Task, answer: str, executions: Sequence[Execution]) -> str:
        """Return the input that is named; an expression counts by its text."""
        text = _arguments(answer)
        return spelled(literals.canonical_arguments, text) or text


class OutputPrediction(Deduction):
    """CRUXEval-O: the literal of what the function returns."""


def _arguments(answer: str) -> str:
    """Return the argument list in an answer, which may be written as a call."""
    text = last_block(answer, "input")
    call = _CALL.fullmatch(text)
    return text if call is None else call[1].strip()


def load(source: Source) -> list[Suite]:
    """Return input prediction and output prediction, as ``cruxeval-i`` and ``cruxeval-o``."""
    data, name = open_table(source.data_dir, *FILES)
    note = "dev half" if "_dev" in name else ""
    jobs = [_reference_job(row.text("code"), row.text("input")) for row in data.rows]
    executions = [runs[0] for runs in source.executor.run(jobs)]
    rows = list(zip(data.rows, executions, strict=True))
    style = cast(Style, source.style)
    inputs = tuple(_problem(row, execution, "abduction", row.text("input")) for row, execution in rows)
    outputs = tuple(_problem(row, execution, "deduction", row.text("output")) for row, execution in rows)
    return [
        Suite("cruxeval-i", {"abduction": InputPrediction(style)}, inputs, data.sha256, note=note),
        Suite("cruxeval-o", {"deduction": OutputPrediction(style)}, outputs, data.sha256, note=note),
    ]


def load_input_prediction(source: Source) -> list[Suite]:
    """Return ``cruxeval-i`` alone."""
    return load(source)[:1]


def load_output_prediction(source: Source) -> list[Suite]:
    """Return ``cruxeval-o`` alone."""
    return load(source)[1:]


def _reference_job(program: str, arguments: str) -> Job:
    """Return the job that calls ``f`` with arguments out of the data file, which may name what the program defines."""
    if _is_literal(arguments):
        return Job(program, (arguments,), policy="plain")
    # No model wrote this text, so it may be pasted; the line break ends a comment in it.
    call = f"{program}\n\n\ndef _reference():\n    return f({arguments}\n    )\n"
    return Job(call, ("",), entry="_reference", policy="plain")


def _problem(row: Row, execution: Execution, family: str, answer: str) -> Problem:
    failure = _failure(execution, row.text("output"))
    if execution.value is None or failure:
        return Problem(row.text("id"), None, failure=failure)
    task = Task(family, row.text("code"), (row.text("input"),), (execution.value,))
    return Problem(row.text("id"), task, answer)


def _failure(execution: Execution, stated: str) -> str:
    """Return why the reference cannot judge here; a value that the data file contradicts is our environment's fault."""
    if execution.status is not Status.OK:
        return f"reference: {execution.status} {execution.error_type}".strip()
    try:
        same = literals.canonical(stated) == execution.value
    except literals.NotALiteral:
        return ""  # nothing to compare with
    return "" if same else "reference: another value here than in the data file"


def _is_literal(text: str) -> bool:
    try:
        literals.parse_arguments(text)
    except literals.NotALiteral:
        return False
    return True
