"""One HTML file about a run: its result, its curves, its newest tasks. No network, no scripts.

Everything a model wrote is escaped, and the page forbids itself to load or run anything: a report must not become a way
out of the sandbox.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfplay_gym.archive import Archive, StoredTask
from selfplay_gym.errors import InvalidData
from selfplay_gym.output import inert, write_whole

Series = dict[str, list[tuple[float, float]]]
"""Points (step, value) by name."""

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
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")
WIDTH, HEIGHT, LEFT, BOTTOM = 420, 200, 44, 22

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse}td,th{padding:.2em .7em;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}pre{background:#f6f6f6;padding:.6em;overflow:auto}
figure{display:inline-block;margin:0 1em 1em 0}figcaption{font-weight:600}svg{background:#fff}"""

_PAGE = """<!doctype html>
<meta charset=utf-8>
<meta http-equiv=Content-Security-Policy content="default-src 'none'; style-src 'unsafe-inline'">
<title>{}</title><style>{}</style>
{}
"""


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run folder, finished or not, and return its path.

    Raises:
        InvalidData: The folder holds no run with a finished step, or its metrics, result or archive are broken.
    """
    steps = _metrics(run / "metrics.jsonl")
    name = run.resolve().name
    parts = [f"<h1>{escape(name)}</h1>", *_result(run / "result.json")]
    parts += [f"<h2>Curves</h2><p>{len(steps)} step{'' if len(steps) == 1 else 's'}.</p>", *_charts(steps)]
    with Archive.read(run / "archive.sqlite") as archive:
        parts += _archive(archive)
    path = run / "report.html"
    write_whole(path, _PAGE.format(escape(name), _STYLE, "\n".join(parts)))
    return path


def escape(text: str) -> str:
    r"""Return text that is shown as it is and does nothing, control characters as escapes.

    >>> escape("<b>\x1b[0m")
    '&lt;b&gt;\\x1b[0m'
    """
    return html.escape(inert(text, keep="\n\t"))


def _metrics(path: Path) -> list[dict[str, float]]:
    """Return the numbers of each step; what is none, such as the loss of a step without rows, is left out."""
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
    scores = [_table(names, rows), "<p>Solve rates in % with 95% intervals; the difference is paired by problem.</p>"]
    return [
        f"<p><strong>{escape(result['verdict'])}</strong></p>",
        *(scores if rows else []),
        f"<p>{escape(facts)}</p>",
    ]


def _percent(row: Mapping[str, Any], part: str) -> str:
    low, high = row[f"{part}_interval"]
    return f"{100 * row[part]:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


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


def chart(series: Series) -> str:
    """Return a line chart as SVG; each line is a running mean over about a twentieth of its points."""
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    low, high = min(0.0, *ys), max(ys)
    high = high if high > low else low + 1.0

    def place(x: float, y: float) -> str:
        across = LEFT + (x - min(xs)) / (max(xs) - min(xs) or 1.0) * (WIDTH - LEFT - 8)
        return f"{across:.1f},{8 + (high - y) / (high - low) * (HEIGHT - BOTTOM - 8):.1f}"

    lines = [
        f"<polyline fill=none stroke-width=1.6 stroke='{colour}' "
        f"points='{' '.join(place(x, y) for x, y in _smooth(points))}'/>"
        for colour, points in zip(_colours(), series.values(), strict=False)
    ]
    words = [
        f"<text x=2 y=14 font-size=11>{high:.3g}</text><text x=2 y={HEIGHT - BOTTOM} font-size=11>{low:.3g}</text>"
    ]
    words += [f"<text x={LEFT} y={HEIGHT - 6} font-size=11>step {min(xs):.0f} to {max(xs):.0f}</text>"]
    words += [
        f"<text x={LEFT + 110 + 95 * n} y={HEIGHT - 6} font-size=11 fill='{colour}'>{escape(name)}</text>"
        for n, (colour, name) in enumerate(zip(_colours(), series, strict=False))
    ]
    return f"<svg width={WIDTH} height={HEIGHT} xmlns='http://www.w3.org/2000/svg'>{''.join(lines + words)}</svg>"


def _colours() -> Iterable[str]:
    while True:
        yield from COLOURS


def _smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    half = len(points) // 40
    windows = [points[max(0, n - half) : n + half + 1] for n in range(len(points))]
    return [(points[n][0], sum(y for _, y in window) / len(window)) for n, window in enumerate(windows)]


# -- archive -----------------------------------------------------------------------------------------------------------


def _archive(archive: Archive) -> list[str]:
    facts = archive.statistics()
    rejections = sorted(facts.rejections.items(), key=lambda item: -item[1])
    parts = [
        "<h2>Archive</h2>",
        f"<p>{facts.tasks} tasks of {facts.programs} programs, {facts.attempts} attempts, {facts.solved} solved.</p>",
        *([_table(("rejected by check", "proposals"), rejections)] if rejections else []),
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
