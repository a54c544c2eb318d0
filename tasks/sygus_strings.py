"""The string tasks of SyGuS' programming-by-example track: write a function of named arguments from examples.

``sygus_pbe_strings`` is the track's own score: all examples are shown, and a program that is right on all of them has
solved the task, even one that lists them. ``sygus_pbe_strings-held`` has the tasks with at least `ENOUGH` examples,
shows the first half and wants all right. Size variants of a task repeat each other: they form a group.
"""

from __future__ import annotations

from typing import cast

from selfplay_gym import literals
from selfplay_gym.errors import InvalidData
from selfplay_gym.suites import Problem, Row, Source, Suite, open_table
from selfplay_gym.tasks.examples import FromExamples, Pair, examples_problem, objects
from selfplay_gym.tasks.prompting import Style

FILE = "sygus_pbe_strings.jsonl"
ENOUGH = 6
SORTS = {"String": "str", "Int": "int", "Bool": "bool"}


def load(source: Source) -> list[Suite]:
    """Return the one suite ``sygus_pbe_strings``: every task, with all of its examples shown."""
    note = "all examples are shown, as the track does: a program that lists them is right"
    return [_suite("sygus_pbe_strings", source, held=False, note=note)]


def load_held(source: Source) -> list[Suite]:
    """Return the one suite ``sygus_pbe_strings-held``: half of the examples shown, where there are enough."""
    return [_suite("sygus_pbe_strings-held", source, held=True, note=f"tasks with at least {ENOUGH} examples")]


def _suite(name: str, source: Source, held: bool, note: str) -> Suite:
    data, _ = open_table(source.data_dir, FILE)
    style = cast(Style, source.style)
    rows = [(row, _pairs(row)) for row in data.rows]
    problems = tuple(_problem(row, pairs, held, style) for row, pairs in rows if not held or len(pairs) >= ENOUGH)
    return Suite(name, {"induction": FromExamples(style, judges="all")}, problems, data.sha256, note=note)


def _problem(row: Row, pairs: list[Pair], held: bool, style: Style) -> Problem:
    shown = (len(pairs) + 1) // 2 if held else len(pairs)
    message = "" if style == "compact" else f"The function is `{_signature(row)}`."
    return examples_problem(row.text("id"), pairs[:shown], pairs[shown:], message, group=row.text("family"))


def _signature(row: Row) -> str:
    arguments = ", ".join(f"{name}: {_type(row, sort)}" for name, sort in zip(*_arguments(row), strict=True))
    return f"f({arguments}) -> {_type(row, row.value('return_type'))}"


def _type(row: Row, sort: object) -> str:
    if sort not in SORTS:
        raise InvalidData(f"{row.where}: a sort must be one of {', '.join(SORTS)}, got {sort!r}")
    return SORTS[str(sort)]


def _arguments(row: Row) -> tuple[list[str], list[object]]:
    names, sorts = [str(name) for name in row.list("arg_names")], row.list("arg_types")
    if len(names) != len(sorts) or not all(map(str.isidentifier, names)):
        raise InvalidData(f"{row.where}: expected as many names of arguments as sorts, got {names} and {sorts}")
    return names, sorts


def _pairs(row: Row) -> list[Pair]:
    """Return the examples, as calls that name their arguments."""
    names, _ = _arguments(row)
    pairs: list[Pair] = []
    for example in objects(row, "examples", "inputs", "output"):
        inputs = example["inputs"]
        if not isinstance(inputs, list) or len(inputs) != len(names):
            raise InvalidData(f"{row.where}: field 'examples' must give {len(names)} inputs each, got {inputs!r}")
        given = ", ".join(f"{name}={literals.encode(value)}" for name, value in zip(names, inputs, strict=True))
        pairs.append((given, literals.encode(example["output"])))
    if not pairs:
        raise InvalidData(f"{row.where}: field 'examples' holds no example")
    return pairs
