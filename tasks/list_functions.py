"""List Functions (Rule 2020; BIG-bench): 8 pairs of integer lists are shown, a program must get 8 others right."""

from __future__ import annotations

from typing import cast

from selfplay_gym.errors import InvalidData
from selfplay_gym.suites import Problem, Row, Source, Suite, open_table
from selfplay_gym.tasks.examples import FromExamples, Pair, examples_problem, json_pairs
from selfplay_gym.tasks.prompting import Style

FILES = ("list_functions.jsonl", "list_functions_dev.jsonl")
PAIRS = 8
MESSAGE = "The rule turns one list of whole numbers into another."


def load(source: Source) -> list[Suite]:
    """Return the one suite ``list_functions``; an extra metric ``pair_accuracy`` counts single pairs."""
    data, name = open_table(source.data_dir, *FILES)
    style = cast(Style, source.style)
    message = "" if style == "compact" else MESSAGE
    problems = tuple(_problem(row, message) for row in data.rows)
    note = "dev half" if "_dev" in name else ""
    suite = Suite("list_functions", {"induction": FromExamples(style)}, problems, data.sha256, note=note)
    return [suite]


def _problem(row: Row, message: str) -> Problem:
    return examples_problem(row.text("id"), _eight(row, "train"), _eight(row, "test"), message)


def _eight(row: Row, field: str) -> list[Pair]:
    pairs = json_pairs(row, field)
    if len(pairs) != PAIRS:
        raise InvalidData(f"{row.where}: field {field!r} must hold {PAIRS} pairs, got {len(pairs)}")
    return pairs
