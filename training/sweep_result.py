"""What a sweep over the checkpoints of a run found: a table and a curve by suite, as text, HTML and JSON."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.markup import escape as as_text
from rich.table import Table
from rich.text import Text

from selfplay_gym import page
from selfplay_gym.comparison import Comparison, compare_results, corrected
from selfplay_gym.errors import InvalidData
from selfplay_gym.output import inert, write_whole
from selfplay_gym.results import Report, SuiteResult

HEADINGS = ("step", "checkpoint", "n", "value, %", "change, points", "p")
LEGEND = (
    "With 95% intervals. The change is against the first checkpoint shown, paired by problem; p is corrected for the "
    "number of checkpoints (Holm). ~: within noise."
)


@dataclass(frozen=True)
class Measured:
    """A checkpoint that was evaluated.

    Attributes:
        step: Of the run.
        name: Of the checkpoint.
        results: One a suite.
        changes: Against the first checkpoint of the sweep by suite, where problems could be paired; none for itself.
    """

    step: int
    name: str
    results: tuple[SuiteResult, ...]
    changes: Mapping[str, Comparison]

    @classmethod
    def of(cls, step: int, name: str, report: Report, first: Measured | None) -> Measured:
        """Take a report in and pair it with the first checkpoint's."""
        changes = {}
        before = {result.suite: result.as_dict() for result in first.results} if first else {}
        for result in report.results:
            if result.suite not in before:
                continue
            try:
                changes[result.suite] = compare_results(before[result.suite], result.as_dict())
            except InvalidData:  # not one problem has a verdict in both: the numbers of verdicts say so
                continue
        return cls(step, name, report.results, changes)


@dataclass(frozen=True)
class Row:
    """A checkpoint on one suite, its change with p-values for the whole suite."""

    step: int
    name: str
    result: SuiteResult
    change: Comparison | None


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        run: The run folder.
        points: The checkpoints that were evaluated, by step.
        skipped: Why others were not, by name.
        seed: Of sampling.
        versions: Of the packages that matter.
        command: The command line.
    """

    run: str
    points: tuple[Measured, ...]
    skipped: Mapping[str, str]
    seed: int | None
    versions: Mapping[str, str]
    command: str = field(default_factory=lambda: shlex.join(["selfplay-gym", *sys.argv[1:]]))

    def by_suite(self) -> dict[str, list[Row]]:
        """Return the rows of each suite, by step."""
        found: dict[str, list[Row]] = {}
        for number, suite in enumerate(result.suite for result in self.points[0].results):
            changes = iter(corrected([p.changes[suite] for p in self.points if suite in p.changes]))
            found[suite] = [
                Row(p.step, p.name, p.results[number], next(changes) if suite in p.changes else None)
                for p in self.points
            ]
        return found

    # -- for people ----------------------------------------------------------------------------------------------------

    def table(self) -> Group:
        """Return a table for each suite, and what was found of it in a sentence."""
        parts: list[Table | Text] = []
        for suite, rows in self.by_suite().items():
            shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
            for number, heading in enumerate(HEADINGS):
                shown.add_column(heading, justify="left" if number == 1 else "right")
            for row in rows:
                shown.add_row(*map(as_text, _cells(row)))
            parts += [Text(inert(_title(suite, rows[0].result))), shown, Text(inert(said(suite, rows)) + "\n")]
        return Group(*parts, Text(LEGEND), *(Text(inert(line)) for line in self.warnings()))

    def warnings(self) -> list[str]:
        """Say which checkpoints were skipped, and which results are not comparable as they stand."""
        lines = [f"{name} was skipped: {reason}" for name, reason in self.skipped.items()]
        for suite, rows in self.by_suite().items():
            caveats = {row.change.caveat: row.name for row in rows if row.change and row.change.caveat}
            lines += [f"{suite}, {name}: {caveat}" for caveat, name in caveats.items()]
        return lines

    # -- files ---------------------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        return {
            "run": self.run,
            "command": self.command,
            "seed": self.seed,
            "versions": dict(self.versions),
            "suites": [_suite_as_dict(suite, rows) for suite, rows in self.by_suite().items()],
            "skipped": dict(self.skipped),
        }

    def write(self, folder: Path) -> None:
        """Write ``sweep.html`` and ``sweep.json``."""
        write_whole(folder / "sweep.json", json.dumps(self.as_dict(), indent=2) + "\n")
        title = f"Checkpoints of {Path(self.run).resolve().name}"
        write_whole(folder / "sweep.html", page.page(title, self._parts(title)))

    def _parts(self, title: str) -> Iterator[str]:
        yield f"<h1>{page.escape(title)}</h1><p>{page.escape(LEGEND)}</p>"
        yield from (f"<p><strong>{page.escape(line)}</strong></p>" for line in self.warnings())
        for suite, rows in self.by_suite().items():
            yield f"<h2>{page.escape(_title(suite, rows[0].result))}</h2><p>{page.escape(said(suite, rows))}</p>"
            if len(series := _series(rows)) and len(series["value"]) > 1:
                yield page.chart(series, width=880, from_zero=False)
            yield page.table(HEADINGS, map(_cells, rows))
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        yield f"<p>{page.escape(versions)}</p><pre>{page.escape(self.command)}</pre>"


def said(suite: str, rows: Sequence[Row]) -> str:
    """Say in one sentence at which steps a suite changed."""
    changed = [row for row in rows if row.change and not row.change.within_noise]
    if not any(row.change for row in rows):
        return f"{suite}: nothing to compare with."
    if not changed:
        return f"{suite}: no checkpoint differs from the first beyond noise."
    steps = ", ".join(f"{row.step} ({100 * row.change.interval.difference:+.1f})" for row in changed if row.change)
    return f"{suite}: beyond noise at step {steps}; the others are within noise of the first."


def _title(suite: str, result: SuiteResult) -> str:
    facts = (result.metric, result.note, f"protocol {result.protocol}", f"data {result.data_sha256[:12]}")
    return f"{suite}: {', '.join(filter(None, facts))}"


def _cells(row: Row) -> tuple[str, ...]:
    result, change = row.result, row.change
    value = "-"
    if result.value is not None and result.interval is not None:
        low, high = (100 * end for end in result.interval)
        value = f"{100 * result.value:.1f} [{low:.0f}, {high:.0f}]"
    if change is None:
        return str(row.step), row.name, str(result.n), value, "", ""
    i, noise = change.interval, " ~" if change.within_noise else ""
    points = f"{100 * i.difference:+.1f} [{100 * i.low:+.1f}, {100 * i.high:+.1f}]{noise}"
    return str(row.step), row.name, str(result.n), value, points, f"{change.p_corrected:.2g}"


def _series(rows: Sequence[Row]) -> page.Series:
    """Return the value and the ends of its interval over steps."""
    found: page.Series = {"value": [], "95% from": [], "to": []}
    for row in rows:
        if row.result.value is not None and row.result.interval is not None:
            for points, y in zip(found.values(), (row.result.value, *row.result.interval), strict=True):
                points.append((row.step, y))
    return found


def _suite_as_dict(suite: str, rows: Sequence[Row]) -> dict[str, Any]:
    first = rows[0].result
    return {
        "suite": suite,
        "metric": first.metric,
        "data_sha256": first.data_sha256,
        "note": first.note,
        "summary": said(suite, rows),
        "points": [_point_as_dict(row) for row in rows],
    }


def _point_as_dict(row: Row) -> dict[str, Any]:
    result, change = row.result, row.change
    told = ("n", "value", "interval", "no_verdict", "missing", "extra", "protocol")
    return {
        "step": row.step,
        "checkpoint": row.name,
        **{name: getattr(result, name) for name in told},
        "change": {**asdict(change), "within_noise": change.within_noise} if change else None,
    }
