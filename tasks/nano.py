"""The nano policy's hold-out: programs that pretraining never sees, solved through the three ordinary families.

``nano-easy`` has programs of one or two lines, the length that pretraining teaches; ``nano-harder`` of three to five,
which only self-play can reach. The files are shipped and their sha256 is checked on load, so that scores of different
machines are about the same problems. ``python -m selfplay_gym.tasks.nano FOLDER`` makes them again.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import cast

from selfplay_gym.errors import InvalidData
from selfplay_gym.protocols import TaskFamily
from selfplay_gym.suites import Problem, Row, Source, Suite, table
from selfplay_gym.tasks import nano_programs
from selfplay_gym.tasks.abduction import Abduction
from selfplay_gym.tasks.deduction import Deduction
from selfplay_gym.tasks.induction import Induction
from selfplay_gym.tasks.prompting import Style
from selfplay_gym.types import Task

FAMILIES = ("deduction", "abduction", "induction")
PER_FAMILY = 150
"""Tasks a family and level: a standard error of at most 4 points for one family, 2.4 for a level."""


@dataclass(frozen=True, slots=True)
class Level:
    """One shipped file: program lengths in lines, seed, and the sha256 it must have."""

    name: str
    lines: tuple[int, ...]
    seed: int
    sha256: str


EASY = Level("easy", (1, 2), 1001, "26290c800dcd9b82b8e8f6808d3c187059c7aba24f2b8be7d12997a7e6f8d29f")
HARDER = Level("harder", (3, 4, 5), 1002, "5b1752e8f20d6468fb926187e07d7da77ebc0caf00c56f3a63792a52de20dd1c")


def load(source: Source) -> list[Suite]:
    """Return ``nano-easy`` and ``nano-harder``; needs no data folder."""
    return [_suite(level, source) for level in (EASY, HARDER)]


def load_easy(source: Source) -> list[Suite]:
    """Return ``nano-easy`` alone."""
    return [_suite(EASY, source)]


def load_harder(source: Source) -> list[Suite]:
    """Return ``nano-harder`` alone."""
    return [_suite(HARDER, source)]


def holdout(level: Level) -> str:
    """Return the text of a level's file: the families in turn, no program twice."""
    rng = random.Random(level.seed)
    stream = _distinct(nano_programs.examples(level.lines, rng, held_out=True))
    tasks = [(f"{family}-{n:03d}", next(stream).task(family)) for n in range(PER_FAMILY) for family in FAMILIES]
    return "".join(json.dumps({"id": key, **_fields(task)}) + "\n" for key, task in tasks)


def _distinct(stream: Iterator[nano_programs.Example]) -> Iterator[nano_programs.Example]:
    seen: set[str] = set()
    for example in stream:
        if example.program.source not in seen:
            seen.add(example.program.source)
            yield example


def _fields(task: Task) -> dict[str, object]:
    return {name: value for name, value in asdict(task).items() if name != "behaviour"}


def _suite(level: Level, source: Source) -> Suite:
    name = f"nano_{level.name}.jsonl"
    data = (resources.files(__package__) / "data" / name).read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != level.sha256:
        raise InvalidData(f"{name} is not the shipped file (sha256 {found[:12]}); install the package again")
    rows = table(data, name)
    style = cast(Style, source.style)
    families: dict[str, TaskFamily] = {f.name: f for f in (Deduction(style), Abduction(style), Induction(style))}
    problems = tuple(_problem(row) for row in rows.rows)
    return Suite(f"nano-{level.name}", families, problems, rows.sha256)


def _problem(row: Row) -> Problem:
    inputs, outputs = (tuple(map(str, row.list(name))) for name in ("inputs", "outputs"))
    task = Task(row.text("family"), row.text("program"), inputs, outputs, row.text("message"))
    answers = {"deduction": outputs[0], "abduction": inputs[0], "induction": task.program}
    return Problem(row.text("id"), task, answers[task.family])


def main(folder: str) -> None:
    """Write both files into ``folder`` and print their sha256."""
    for level in (EASY, HARDER):
        data = holdout(level).encode()
        (Path(folder) / f"nano_{level.name}.jsonl").write_bytes(data)
        print(level.name, hashlib.sha256(data).hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:])
