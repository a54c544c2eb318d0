"""DreamCoder's list tasks (arXiv:2006.08381): 15 pairs of one rule; the first 8 are shown, the other 7 judge.

The source splits nothing. The rule's name says the rule in words and stays hidden. Several rules are also in List
Functions, so that the two suites are no independent evidence.
"""

from __future__ import annotations

from typing import cast

from selfplay_gym.errors import InvalidData
from selfplay_gym.suites import Problem, Row, Source, Suite, open_table
from selfplay_gym.tasks.examples import FromExamples, examples_problem, json_pairs
from selfplay_gym.tasks.prompting import Style

FILE = "dreamcoder_list.jsonl"
SHOWN, PAIRS = 8, 15


def load(source: Source) -> list[Suite]:
    """Return the one suite ``dreamcoder_list``; an extra metric ``pair_accuracy`` counts single pairs."""
    data, _ = open_table(source.data_dir, FILE)
    style = cast(Style, source.style)
    problems = tuple(_problem(row, style) for row in data.rows)
    return [Suite("dreamcoder_list", {"induction": FromExamples(style)}, problems, data.sha256)]


def _problem(row: Row, style: Style) -> Problem:
    pairs = json_pairs(row, "examples")
    if len(pairs) != PAIRS:
        raise InvalidData(f"{row.where}: field 'examples' must hold {PAIRS} pairs, got {len(pairs)}")
    message = f"The rule turns {row.text('input_type')} into {row.text('output_type')}."
    return examples_problem(row.text("id"), pairs[:SHOWN], pairs[SHOWN:], "" if style == "compact" else message)
