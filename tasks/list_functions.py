"""List Functions (Rule 2020; BIG-bench): 8 pairs of integer lists are shown, a program must get 8 others right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from selfplay_gym import literals
from selfplay_gym.errors import InvalidData
from selfplay_gym.suites import Problem, Row, Source, Suite, open_table
from selfplay_gym.tasks.induction import Induction
from selfplay_gym.tasks.prompting import Style
from selfplay_gym.types import Execution, Task

FILES = ("list_functions.jsonl", "list_functions_dev.jsonl")
PAIRS = 8
MESSAGE = "The rule turns one list of whole numbers into another."


class ListFunctions(Induction):
    """Induction whose second half of pairs is the row's test half; task accuracy wants all of them right."""

    def share(self, task: Task, executions: Sequence[Execution]) -> float:
        """Return the share of hidden pairs that are right, the set's second usual metric."""
        hidden = task.outputs[len(task.outputs) // 2 :]
        return sum(e.value == output for e, output in zip(executions, hidden, strict=True)) / len(hidden)


def load(source: Source) -> list[Suite]:
    """Return the one suite ``list_functions``; an extra metric ``pair_accuracy`` counts single pairs."""
    data, name = open_table(source.data_dir, *FILES)
    style = cast(Style, source.style)
    message = "" if style == "compact" else MESSAGE
    problems = tuple(Problem(row.text("id"), _task(row, message)) for row in data.rows)
    note = "dev half" if "_dev" in name else ""
    suite = Suite("list_functions", {"induction": ListFunctions(style)}, problems, data.sha256, note=note)
    return [suite]


def _task(row: Row, message: str) -> Task:
    pairs = [_pair(row, field, value) for field in ("train", "test") for value in _eight(row, field)]
    return Task("induction", "", tuple(i for i, _ in pairs), tuple(o for _, o in pairs), message)


def _eight(row: Row, field: str) -> list[object]:
    values = row.list(field)
    if len(values) != PAIRS:
        raise InvalidData(f"{row.where}: field {field!r} must hold {PAIRS} pairs, got {len(values)}")
    return values


def _pair(row: Row, field: str, value: object) -> tuple[str, str]:
    if not isinstance(value, dict) or not {"input", "output"} <= value.keys():
        raise InvalidData(f"{row.where}: field {field!r} must hold objects with 'input' and 'output'")
    try:
        return literals.encode(value["input"]), literals.encode(value["output"])
    except literals.NotALiteral as error:
        raise InvalidData(f"{row.where}: field {field!r}: {error}") from None
