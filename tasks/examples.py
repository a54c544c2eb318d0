"""Induction over the examples of a data file: some pairs of a function are shown, a program must get the others right.

Unlike a proposed task, such a row says itself how many of its pairs are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from selfplay_gym import literals
from selfplay_gym.errors import InvalidData
from selfplay_gym.suites import Problem, Row
from selfplay_gym.tasks import prompting
from selfplay_gym.tasks.comparing import Compare
from selfplay_gym.tasks.induction import Induction
from selfplay_gym.types import Execution, Task

Pair = tuple[str, str]
"""An argument list and an output, as canonical text."""


@dataclass(frozen=True, slots=True)
class Examples(Task):
    """Pairs of one function, those that are shown first.

    Attributes:
        seen: How many are shown.
    """

    seen: int = 0


class FromExamples(Induction):
    """Induction whose tasks are `Examples`.

    Args:
        style: Prompt style: ``azr``, ``chat`` or ``compact``.
        compare: When two values are the same.
        judges: Which pairs a program must get right: the ``hidden`` ones, or ``all``.
    """

    def __init__(
        self,
        style: prompting.Style = "azr",
        compare: Compare = "canonical",
        judges: Literal["hidden", "all"] = "hidden",
    ) -> None:
        super().__init__(style, compare=compare)
        self.judges = judges

    def shown(self, task: Task) -> int:
        """Return how many pairs the row shows."""
        assert isinstance(task, Examples)
        return task.seen

    def judged_from(self, task: Task) -> int:
        """Return the first hidden pair, or the first of all."""
        return self.shown(task) if self.judges == "hidden" else 0

    def share(self, task: Task, executions: Sequence[Execution]) -> float:
        """Return the share of hidden pairs that are right; of all pairs where none is hidden."""
        asked = len(task.outputs) - self.shown(task) or len(task.outputs)
        found = zip(executions[-asked:], task.outputs[-asked:], strict=True)
        return sum(run.value is not None and self.same(run.value, output) for run, output in found) / asked


def examples_problem(
    key: str,
    shown: Sequence[Pair],
    hidden: Sequence[Pair],
    message: str = "",
    program: str = "",
    group: str = "",
) -> Problem:
    """Return a row's problem; without a task where its pairs cannot tell a right program from a wrong one.

    Args:
        key: The row's id.
        shown: Pairs that the prompt shows.
        hidden: Further pairs; may be empty.
        message: What else the prompt says.
        program: The reference, where there is one.
        group: Of the problem.
    """
    pairs = [*shown, *hidden]
    if failure := _failure(shown, hidden):
        return Problem(key, None, failure=failure, group=group)
    inputs, outputs = tuple(text for text, _ in pairs), tuple(text for _, text in pairs)
    task = Examples("induction", program, inputs, outputs, message, seen=len(shown))
    return Problem(key, task, program, group=group)


def _failure(shown: Sequence[Pair], hidden: Sequence[Pair]) -> str:
    if len(dict([*shown, *hidden])) < len({*shown, *hidden}):
        return "the examples give two outputs for one input"
    if hidden and {*hidden} <= {*shown}:
        return "every hidden example is also shown"
    return ""


def json_pairs(row: Row, field: str) -> list[Pair]:
    """Return the ``{"input", "output"}`` objects of a field, of functions of one argument with JSON values.

    Raises:
        InvalidData: Something else is there.
    """
    try:
        return [(literals.encode(pair["input"]), literals.encode(pair["output"])) for pair in objects(row, field)]
    except literals.NotALiteral as error:
        raise InvalidData(f"{row.where}: field {field!r}: {error}") from None


def objects(row: Row, field: str, *names: str) -> list[dict[str, object]]:
    """Return the objects of a field, which have ``names``; by default ``input`` and ``output``.

    Raises:
        InvalidData: Something else is there.
    """
    found: list[dict[str, object]] = []
    names = names or ("input", "output")
    for value in row.list(field):
        if not isinstance(value, dict) or not value.keys() >= {*names}:
            raise InvalidData(f"{row.where}: field {field!r} must hold objects with {' and '.join(map(repr, names))}")
        found.append(value)
    return found
