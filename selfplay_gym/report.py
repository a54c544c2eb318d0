"""One HTML file about a run: its result, its curves, its newest tasks. No network, no scripts.

Everything a model wrote is escaped (`selfplay_gym.page`): a report must not become a way out of the sandbox.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfplay_gym.archive import Archive, StoredTask
from selfplay_gym.errors import InvalidData
from selfplay_gym.output import write_whole
from selfplay_gym.page import chart, escape, page, table

CHARTS = {
    "Solver: share of attempts that pass": "solve/{}/reward",
    "Proposer: share of proposals admitted": "propose/{}/admitted",
    "Proposer: mean reward": "propose/{}/reward",
    "New tasks: lines in the body": "tasks/body_lines",
    "Hold-out of easier programs": "holdout/nano-easy",
    "Hold-out of harder programs": "holdout/nano-harder",
    "Seconds a step": "seconds/step",
    "Live tasks in the archive": "archive/tasks",
}


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run folder, finished or not, and return its path.

    Raises:
        InvalidData: The folder holds no run with a finished step, or its metrics, result or archive are broken.
    """
    steps = read_metrics(run / "metrics.jsonl")
    name = run.resolve().name
    parts = [f"<h1>{escape(name)}</h1>", *_result(run / "result.json")]
    parts += [f"<h2>Curves</h2><p>{len(steps)} step{'' if len(steps) == 1 else 's'}.</p>", *_charts(steps)]
    with Archive.read(run / "archive.sqlite") as archive:
        parts += _archive(archive)
    path = run / "report.html"
    write_whole(path, page(name, parts))
    return path


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the numbers of each step of a run; what is none, such as the loss of a step without rows, is left out.

    Raises:
        InvalidData: There is no finished step, or a line is no JSON object with a step.
    """
    steps = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            record = json.loads(line)
            float(record["step"])
            steps.append({key: float(value) for key, value in record.items() if _is_number(value)})
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            raise InvalidData(f"{path}, line {number}: not a JSON object with a step") from None
    return steps


def _lines(path: Path) -> list[str]:
    """Return the whole lines: the last may be about to be written, or was cut off by a kill."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidData(f"{path.parent} is no run folder with a finished step: {path.name}: {reason}") from None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


# -- result ------------------------------------------------------------------------------------------------------------


def _result(path: Path) -> list[str]:
    if not path.exists():
        return []
    try:
        return _result_parts(json.loads(path.read_bytes()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidData(f"{path} was not written by a run: {type(error).__name__} {error}") from None


def _result_parts(result: Mapping[str, Any]) -> list[str]:
    names = ("suite", "family", "n", "before", "after", "difference")
    rows = [
        [row["suite"], row["family"], row["n"], *(_percent(row, part) for part in names[3:])]
        for row in result["holdout"]
    ]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    facts = (
        f"{result['steps']} steps in {result['seconds'] / 60:.1f} minutes; sandbox tier {result['tier']}; {versions}."
    )
    scores = [table(names, rows), "<p>Solve rates in % with 95% intervals; the difference is paired by problem.</p>"]
    return [
        f"<p><strong>{escape(result['verdict'])}</strong></p>",
        *(scores if rows else []),
        f"<p>{escape(facts)}</p>",
    ]


def _percent(row: Mapping[str, Any], part: str) -> str:
    low, high = row[f"{part}_interval"]
    return f"{100 * row[part]:.1f} ({100 * low:.1f} to {100 * high:.1f})"


# -- curves ------------------------------------------------------------------------------------------------------------


def _charts(steps: Sequence[Mapping[str, float]]) -> list[str]:
    families = sorted({key.split("/")[1] for step in steps for key in step if key.startswith("propose/")})
    found = []
    for title, key in CHARTS.items():
        keys = {name: key.format(name) for name in families} if "{}" in key else {"": key}
        series = {n: [(s["step"], s[k]) for s in steps if k in s] for n, k in keys.items()}
        series = {name: points for name, points in series.items() if len(points) > 1}
        if series:
            found.append(f"<figure><figcaption>{escape(title)}</figcaption>{chart(series)}</figure>")
    return found


# -- archive -----------------------------------------------------------------------------------------------------------


def _archive(archive: Archive) -> list[str]:
    facts = archive.statistics()
    rejections = sorted(facts.rejections.items(), key=lambda item: -item[1])
    parts = [
        "<h2>Archive</h2>",
        f"<p>{facts.tasks} tasks of {facts.programs} programs, {facts.attempts} attempts, {facts.solved} solved.</p>",
        *([table(("rejected by check", "proposals"), rejections)] if rejections else []),
        "<h2>Newest tasks</h2>",
    ]
    for family in sorted(archive.counts()):
        parts += [_task(archive, stored) for stored in archive.tasks(family, newest=4)]
    return parts


def _task(archive: Archive, stored: StoredTask) -> str:
    ancestors = ", ".join(map(str, archive.lineage(stored.id))) or "none"
    title = f"{stored.task.family} task {stored.id}, step {stored.step}: solved {stored.solved} of {stored.attempts}"
    calls = [f"f({triplet.input}) == {triplet.output}" for triplet in stored.task.triplets]
    text = "\n".join([stored.task.program, *calls, *filter(None, [stored.task.message])])
    return f"<h3>{escape(title)}</h3><p>Ancestors: {ancestors}.</p><pre>{escape(text)}</pre>"
