"""What a learning benchmark found: tables, curves and plain verdicts, on the console and as one HTML file."""

from __future__ import annotations

import json
import shlex
import statistics as plain
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.markup import escape as as_text
from rich.table import Table
from rich.text import Text

from selfplay_gym.bench import Target
from selfplay_gym.output import write_whole
from selfplay_gym.page import Series, chart, escape, page, table
from selfplay_gym.statistics import Interval
from selfplay_gym.training.learning_scores import SELF_PLAY, START, Run, Score, Scores, curve, score

FROZEN = "frozen-proposer"
HARDER = "nano-harder"
TOLERANCE = 0.05
"""Largest share by which an arm's tokens may differ from self-play's and still be called equal."""

CURVES = {
    "Hold-out of harder programs: solve rate": "holdout/nano-harder",
    "Hold-out of easier programs: solve rate": "holdout/nano-easy",
    "Attempts in play that pass": "solve",
    "New tasks: lines in the body": "tasks/body_lines",
    "New tasks a step": "tasks/new",
}
"""What is drawn over tokens, by title."""


@dataclass(frozen=True)
class Arm:
    """What the runs of an arm took.

    Attributes:
        name: The arm.
        what: What is different in it.
        overrides: The settings that make it so.
        steps: Of each run.
        tokens: Sampled in each run.
        seconds: Of each run, on one core.
        curves: Mean over seeds, by title; points (million tokens, value).
    """

    name: str
    what: str
    overrides: tuple[str, ...]
    steps: int
    tokens: tuple[float, ...]
    seconds: tuple[float, ...]
    curves: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class LearningResult:
    """What `bench_learning` found.

    Attributes:
        arms: What each took.
        scores: By suite, measure and arm.
        recipe: What all arms are made of.
        settings: Overrides of all arms.
        samples: Answers to a problem at temperature 1.
        versions: Of the packages that matter.
        command: The command line.
    """

    arms: tuple[Arm, ...]
    scores: tuple[Score, ...]
    recipe: str
    settings: tuple[str, ...]
    samples: int
    versions: Mapping[str, str]
    command: str = field(default_factory=lambda: shlex.join(["selfplay-gym", *sys.argv[1:]]))

    @classmethod
    def of(
        cls,
        runs: Mapping[str, Sequence[Run]],
        scores: Mapping[str, Sequence[Scores]],
        *,
        recipe: str,
        overrides: Mapping[str, tuple[str, tuple[str, ...]]],
        settings: tuple[str, ...],
        samples: int,
    ) -> LearningResult:
        """Make the result of runs and scores by arm, one a seed; `START` is among the scores."""
        arms = tuple(
            Arm(
                name, *overrides[name], len(own[0].sampled),
                tuple(run.tokens for run in own), tuple(run.seconds for run in own),
                {title: curve(own, key) for title, key in CURVES.items()},
            )
            for name, own in runs.items()
        )  # fmt: skip
        found = tuple(
            row
            for suite, measure in _by_suite(scores[START][0])
            for row in score(suite, measure, {arm: [s[suite, measure] for s in own] for arm, own in scores.items()})
        )
        return cls(arms, found, recipe, settings, samples, runs[SELF_PLAY][0].versions)

    # -- what it says --------------------------------------------------------------------------------------------------

    def find(self, arm: str, suite: str = HARDER, measure: str | None = None) -> Score | None:
        """Return a score; without a measure, that at temperature 1."""
        asked = (suite, measure or f"avg@{self.samples}", arm)
        return next((row for row in self.scores if (row.suite, row.measure, row.arm) == asked), None)

    @property
    def targets(self) -> tuple[Target, ...]:
        """What self-play should reach on harder programs at temperature 1."""
        own, frozen = self.find(SELF_PLAY), self.find(FROZEN)
        gain = 100 * own.over_start.difference if own and own.over_start else None
        lead = 100 * frozen.below_self_play.low if frozen and frozen.below_self_play else None
        return (
            Target(f"{SELF_PLAY} over its start", gain, 10, " points", at_least=True),
            Target(f"{SELF_PLAY} over {FROZEN}, lower end", lead, 0, " points", at_least=True, strictly=True),
        )

    def verdicts(self) -> list[str]:
        """Say in plain sentences what is shown and what is not, on programs at temperature 1."""
        said = []
        for suite, what in ((HARDER, "harder programs"), ("nano-easy", "easier programs")):
            own = self.find(SELF_PLAY, suite)
            if own and own.over_start:
                said.append(f"{_judged(own.over_start, 'Self-play improves on its start', what)}.")
        for arm in self.arms:
            found = self.find(arm.name)
            if found and found.below_self_play:
                said.append(f"{_judged(found.below_self_play, f'Self-play is above {arm.name}', 'harder programs')}.")
        return said + self.unequal()

    @property
    def budget(self) -> float:
        """Tokens that self-play sampled, mean over its runs: what the others should have sampled too."""
        return next(plain.fmean(arm.tokens) for arm in self.arms if arm.name == SELF_PLAY)

    def unequal(self) -> list[str]:
        """Say which arms did not sample as many tokens as self-play."""
        shares = {arm.name: plain.fmean(arm.tokens) / self.budget - 1 for arm in self.arms}
        return [
            f"Not at equal tokens: {name} sampled {100 * share:+.0f}% of what self-play did."
            for name, share in shares.items()
            if abs(share) > TOLERANCE
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for ``--json``."""
        targets = [{**asdict(target), "met": target.met} for target in self.targets]
        return {**asdict(self), "budget": self.budget, "verdicts": self.verdicts(), "targets": targets}

    # -- for people ----------------------------------------------------------------------------------------------------

    def table(self) -> Group:
        """Return the tables and verdicts for people."""
        targets = [Text(f"target: {target.name}: {_figure(target)} {target}") for target in self.targets]
        return Group(self.cost_table(), *self.score_tables(), *map(Text, self.verdicts()), *targets)

    def cost_table(self) -> Table:
        """Return what each arm took."""
        seeds = len(self.arms[0].tokens)
        title = f"recipe {self.recipe}, {'1 seed' if seeds == 1 else f'means of {seeds} seeds'}"
        # Where they did not, the verdicts say so.
        caption = None if self.unequal() else "All arms sampled as many tokens as self-play, within 5%."
        shown = Table(title=title, box=box.SIMPLE_HEAD, caption=caption)
        shown.caption_justify = "left"
        for number, heading in enumerate(COSTS):
            shown.add_column(heading, justify="right" if number else "left", no_wrap=True)
        for row in self._costs():
            shown.add_row(*row)
        return shown

    def _costs(self) -> Iterator[tuple[str, ...]]:
        for arm in self.arms:
            tokens, minutes = plain.fmean(arm.tokens), plain.fmean(arm.seconds) / 60
            yield arm.name, str(arm.steps), f"{tokens / 1e6:.3f}", f"{tokens / self.budget:.3f}", f"{minutes:.1f}"

    def score_tables(self) -> list[Table]:
        """Return a table for each suite and measure."""
        found = []
        for (suite, measure), rows in self._grouped().items():
            title = f"\n{suite}, {measure}, {rows[0].n} problems"
            # As dense as 80 columns need; what is still too wide there, such as -100.0, has its interval below it.
            shown = Table(title=title, box=box.SIMPLE_HEAD, padding=0, show_edge=False)
            for number, heading in enumerate(HEADINGS):
                shown.add_column(heading, justify="right" if number else "left", no_wrap=not number)
            for row in rows:
                shown.add_row(*map(as_text, _cells(row)))
            found.append(shown)
        if found:
            found[-1].caption, found[-1].caption_justify = LEGEND, "left"
        return found

    def _grouped(self) -> dict[tuple[str, str], list[Score]]:
        found: dict[tuple[str, str], list[Score]] = {}
        for row in self.scores:
            found.setdefault((row.suite, row.measure), []).append(row)
        return found

    def write(self, folder: Path) -> None:
        """Write ``learning.html`` and ``learning.json``."""
        write_whole(folder / "learning.json", json.dumps(self.as_dict(), indent=2) + "\n")
        write_whole(folder / "learning.html", page("Does self-play learn?", self._parts()))

    def _parts(self) -> Iterator[str]:
        yield "<h1>Does self-play learn?</h1>"
        yield from (f"<p><strong>{escape(line)}</strong></p>" for line in self.verdicts())
        yield table(("target", "figure", ""), [(t.name, _figure(t), str(t)) for t in self.targets])
        yield "<h2>Curves</h2><p>Means over seeds, over millions of tokens sampled.</p>"
        for title in CURVES:
            series: Series = {arm.name: list(arm.curves[title]) for arm in self.arms if len(arm.curves[title]) > 1}
            if series:
                drawn = chart(series, "million tokens", width=880, from_zero=False)
                yield f"<figure><figcaption>{escape(title)}</figcaption>{drawn}</figure>"
        yield f"<h2>Scores</h2><p>{escape(LEGEND)}</p>"
        for (suite, measure), rows in self._grouped().items():
            yield f"<h3>{escape(f'{suite}, {measure}, {rows[0].n} problems')}</h3>"
            yield table(HEADINGS, map(_cells, rows))
        yield "<h2>Runs</h2>" + table(COSTS, self._costs())
        arms = [(arm.name, arm.what, ", ".join(arm.overrides)) for arm in self.arms]
        yield "<h2>Arms</h2>" + table(("arm", "what is different", "settings"), arms)
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        yield f"<p>{escape(f'Recipe {self.recipe}; {versions}.')}</p><pre>{escape(self.command)}</pre>"


COSTS = ("arm", "steps", "M tokens", "to self-play", "minutes a run")
HEADINGS = ("arm", "score", "over start", "self-play over it", "spread")
LEGEND = (
    "In %, means over seeds. Intervals are 95%, over problems: a problem's scores are averaged over seeds, differences "
    "paired by problem. Spread: standard deviation over seeds, which the intervals do not hold."
)


def _by_suite(keys: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return suites and measures with all measures of a suite together."""
    keys = list(keys)
    suites = [suite for suite, _ in keys]
    return sorted(keys, key=lambda key: suites.index(key[0]))


def _judged(difference: Interval, claim: str, what: str) -> str:
    """Return a claim with its figure, and whether that shows it."""
    low, high = 100 * difference.low, 100 * difference.high
    shown = "shown" if low > 0 else "the CONTRARY is shown" if high < 0 else "NOT shown"
    points = f"{100 * difference.difference:+.1f} points (95% interval {low:+.1f} to {high:+.1f})"
    return f"{claim} on {what}: {shown}, {points}"


def _cells(row: Score) -> tuple[str, ...]:
    low, high = (100 * end for end in row.interval)
    differences = (row.over_start, row.below_self_play)
    spread = "" if row.spread is None else f"{100 * row.spread:.1f}"
    return row.arm, f"{100 * row.value:.1f} [{low:.0f},{high:.0f}]", *map(_points, differences), spread


def _points(difference: Interval | None) -> str:
    if difference is None:
        return ""
    return f"{100 * difference.difference:+.1f} [{100 * difference.low:+.1f},{100 * difference.high:+.1f}]"


def _figure(target: Target) -> str:
    return "-" if target.measured is None else f"{target.measured:+.1f}"
