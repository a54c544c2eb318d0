"""The ARC sets: pairs of grids of one rule. The answer is a program, or the output grid itself.

ARC-AGI 1 and 2 (arXiv:1911.01547, arXiv:2505.11831), 1D-ARC (arXiv:2305.18354) and Mini-ARC. As induction the train
pairs are shown, and a program must get every cell of every train and test output right; ``pair_accuracy`` is the share
of test outputs. Answered directly, each test input is a problem, and those of a task form a group: a task counts as the
share of its test inputs that are right. That is one try; ARC-AGI's own score allows two, pass@2 of two samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

from selfplay_gym.errors import InvalidData
from selfplay_gym.suites import Problem, Row, Source, Suite, open_table
from selfplay_gym.tasks import prompting
from selfplay_gym.tasks.deduction import Deduction
from selfplay_gym.tasks.examples import FromExamples, Pair, examples_problem, json_pairs
from selfplay_gym.types import Task, Triplet

MESSAGE = "The rule turns one grid of colours into another; a grid is a list of rows, a colour a number from 0 to 9."


class Grid(Deduction):
    """Deduction without a program: pairs stand in its place, as the message."""

    name = "arc"

    def solve_prompt(self, task: Task) -> str:
        """Show the train pairs and one test input."""
        return prompting.fill(self.name, "solve", self.style, pairs=task.message, input=task.inputs[0])


def _load(name: str, source: Source) -> list[Suite]:
    data, _ = open_table(source.data_dir, f"{name}.jsonl")
    style = cast(prompting.Style, source.style)
    message = "" if style == "compact" else MESSAGE
    problems = tuple(examples_problem(row.text("id"), *_split(row), message) for row in data.rows)
    return [Suite(name, {"induction": FromExamples(style, judges="all")}, problems, data.sha256)]


def _load_direct(name: str, source: Source) -> list[Suite]:
    data, _ = open_table(source.data_dir, f"{name}.jsonl")
    family = Grid(cast(prompting.Style, source.style))
    problems = tuple(problem for row in data.rows for problem in _direct(row, family.style))
    return [Suite(f"{name}-direct", {family.name: family}, problems, data.sha256)]


load_1d, load_1d_direct = partial(_load, "arc_1d"), partial(_load_direct, "arc_1d")
load_mini, load_mini_direct = partial(_load, "arc_mini"), partial(_load_direct, "arc_mini")
load_agi1_training = partial(_load, "arc_agi1_training")
load_agi1_training_direct = partial(_load_direct, "arc_agi1_training")
load_agi1_evaluation = partial(_load, "arc_agi1_evaluation")
load_agi1_evaluation_direct = partial(_load_direct, "arc_agi1_evaluation")
load_agi2_evaluation = partial(_load, "arc_agi2_evaluation")
load_agi2_evaluation_direct = partial(_load_direct, "arc_agi2_evaluation")


def _split(row: Row) -> tuple[list[Pair], list[Pair]]:
    train, test = json_pairs(row, "train"), json_pairs(row, "test")
    for field, pairs in (("train", train), ("test", test)):
        if not pairs:
            raise InvalidData(f"{row.where}: field {field!r} holds no pair")
    return train, test


def _direct(row: Row, style: prompting.Style) -> Sequence[Problem]:
    train, test = _split(row)
    shown = prompting.pairs_block([Triplet("", *pair) for pair in train], style)
    key = row.text("id")
    return [
        Problem(f"{key}/{number}", Task(Grid.name, "", (given,), (output,), shown), output, group=key)
        for number, (given, output) in enumerate(test)
    ]
