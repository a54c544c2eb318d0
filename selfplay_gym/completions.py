"""Score stored completions: any file of ids and texts, evalplus' samples among them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from selfplay_gym import suites
from selfplay_gym.errors import InvalidData
from selfplay_gym.grading import Progress, grade
from selfplay_gym.protocols import Executor
from selfplay_gym.results import Report
from selfplay_gym.suites import Source, Suite


def score_completions(
    path: Path,
    names: Sequence[str],
    executor: Executor,
    data_dir: Path | None = None,
    limit: int | None = None,
    on_progress: Progress | None = None,
    skip_missing: bool = False,
) -> Report:
    """Score a file of stored completions on the named suites.

    Raises:
        InvalidData: The file, or a data file, is missing or broken, or a line names a problem that is not asked.
        UnknownId: No suite of that name.
    """
    loaded = suites.load_named(names, Source(executor, data_dir)).present(skip_missing)
    asked = [suite for found in loaded.suites.values() for suite in found]
    completions = read_completions(path, asked)
    settings = {"answers": "completions"}
    results = [grade(suite.first(limit), completions[suite.name], executor, settings, on_progress) for suite in asked]
    return Report(tuple(results), str(path), tier=str(executor.tier), notes=tuple(loaded.notes()))


def read_completions(path: Path, asked: Sequence[Suite]) -> dict[str, dict[str, list[str]]]:
    """Return completions by suite and problem id.

    A line is ``{"id": ..., "completion": ...}`` or evalplus' ``{"task_id": ..., "solution": ...}``, which may also
    hold a ``completion``; several lines of one id are samples. The id is ``suite/problem``, or the problem's alone
    where only one suite asked has it.

    Raises:
        InvalidData: With the line number.
    """
    places = _places(asked)
    found: dict[str, dict[str, list[str]]] = {suite.name: {} for suite in asked}
    for row in suites.read(path):
        if "evaluation" in row.fields:  # the head that `eval --keep` writes
            continue
        names = ("id" if "id" in row.fields else "task_id", "solution" if "solution" in row.fields else "completion")
        if not set(names) <= row.fields.keys():
            raise InvalidData(f"{row.where}: expected the fields 'id' and 'completion', or 'task_id' and 'solution'")
        suite, problem = _place(row.text(names[0]), places, row.where)
        found[suite].setdefault(problem, []).append(row.text(names[1]))
    if not any(found.values()):
        raise InvalidData(f"{path}: holds no completion")
    return found


Place = tuple[str, str]


def _places(asked: Sequence[Suite]) -> dict[str, list[Place]]:
    """Return where each id may belong; an id in full belongs to one place, whatever else it might be short for."""
    places: dict[str, list[Place]] = {}
    for suite in asked:
        for problem in suite.problems:
            places.setdefault(problem.id, []).append((suite.name, problem.id))
    places.update({f"{s.name}/{p.id}": [(s.name, p.id)] for s in asked for p in s.problems})
    return places


def _place(key: str, places: Mapping[str, list[Place]], where: str) -> Place:
    found = places.get(key)
    if found is None:
        near = difflib.get_close_matches(key, places, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InvalidData(f"{where}: the suites asked for have no problem {key!r}{hint}")
    if len(found) > 1:
        choices = " or ".join(repr("/".join(place)) for place in found)
        raise InvalidData(f"{where}: id {key!r} could be one of several; write {choices}")
    return found[0]
