"""Test output prediction: a problem's statement and one call are shown; the answer is the value that is right for it.

It follows the task of that name of LiveCodeBench (arXiv:2403.07974) on other problems, so that published scores do not
apply. Several calls of one problem form a group: scores are averaged over problems first.
"""

from __future__ import annotations

from typing import cast

from selfplay_gym import literals
from selfplay_gym.errors import InvalidData
from selfplay_gym.suites import Problem, Row, Source, Suite, open_table
from selfplay_gym.tasks import prompting
from selfplay_gym.tasks.deduction import Deduction
from selfplay_gym.types import Task

FILE = "test_output_prediction.jsonl"


class OutputOfTest(Deduction):
    """Deduction without a program: the statement stands in its place, and the message is the method's name."""

    name = "test_output"

    def solve_prompt(self, task: Task) -> str:
        """Show statement, method and arguments."""
        return prompting.fill(
            self.name, "solve", self.style, statement=task.program, function=task.message, input=task.inputs[0]
        )


def load(source: Source) -> list[Suite]:
    """Return the one suite ``test_output_prediction``."""
    data, _ = open_table(source.data_dir, FILE)
    family = OutputOfTest(cast(prompting.Style, source.style))
    problems = tuple(_problem(row) for row in data.rows)
    return [Suite("test_output_prediction", {family.name: family}, problems, data.sha256)]


def _problem(row: Row) -> Problem:
    try:
        given, output = literals.canonical_arguments(row.text("input")), literals.canonical(row.text("output"))
    except literals.NotALiteral as error:
        raise InvalidData(f"{row.where}: {error}") from None
    task = Task(OutputOfTest.name, row.text("statement"), (given,), (output,), row.text("function_name"))
    return Problem(row.text("id"), task, row.text("output"), group=row.text("problem_id"))
