"""The only judge of a run: frozen programs that it never trains on, solved before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from selfplay_gym import grading, suites
from selfplay_gym.protocols import Executor
from selfplay_gym.statistics import mean_with_interval, paired_difference
from selfplay_gym.suites import Source, Suite
from selfplay_gym.training.config import RunConfig
from selfplay_gym.training.generation import GenerationBackend, Request, row_seed
from selfplay_gym.training.policy import Policy

Scores = dict[str, dict[str, float | None]]
"""Share of attempts that passed, by suite and problem; None without a verdict."""

CHUNK = 1024
"""Attempts that are asked for at a time."""

FAMILIES = 3
"""Of each suite."""


def rows(config: RunConfig) -> int:
    """Return how many attempts are asked for at a time at most; 0 where nothing is measured."""
    asked = config.holdout
    return min(FAMILIES * asked.problems * asked.samples, CHUNK) if asked else 0


def load(executor: Executor, style: str) -> list[Suite]:
    """Return the suites of easier and harder programs."""
    return suites.load(["nano"], Source(executor, style=style))


def programs(loaded: Sequence[Suite]) -> list[str]:
    """Return every program of the suites: the gate keeps them out of training."""
    return [problem.task.program for suite in loaded for problem in suite.problems if problem.task is not None]


def measure(
    config: RunConfig, policy: Policy, generator: GenerationBackend, executor: Executor, loaded: Sequence[Suite]
) -> Scores:
    """Solve the hold-outs at the solver's temperature of play and return the solve rates.

    The same seeds are drawn each time, so that before and after differ by the policy alone.
    """
    assert config.holdout is not None
    scores: Scores = {}
    for suite in loaded:
        # The families take turns in the file, so its first rows hold equally many of each.
        part = suite.first(config.holdout.problems * len(suite.families))
        result = grading.grade(part, _solve(config, policy, generator, part), executor)
        scores[suite.name] = {row.id: row.score for row in result.rows}
    return scores


def _solve(config: RunConfig, policy: Policy, generator: GenerationBackend, suite: Suite) -> dict[str, list[str]]:
    assert config.holdout is not None
    play, samples = config.play, config.holdout.samples
    prompts = suite.prompts()
    requests = [
        Request(
            policy.encode(prompt, config.style == "chat"),
            play.max_new_tokens.solve,
            play.temperature.solve,
            row_seed(config.seed, "holdout", suite.name, problem, sample),
        )
        for problem, prompt in prompts.items()
        for sample in range(samples)
    ]
    chunks = (requests[start : start + CHUNK] for start in range(0, len(requests), CHUNK))
    texts = [policy.decode(sample.ids) for chunk in chunks for sample in generator.generate(chunk)]
    return {problem: texts[n * samples : (n + 1) * samples] for n, problem in enumerate(prompts)}


def rates(scores: Scores) -> dict[str, float]:
    """Return each suite's solve rate as a metric, such as ``holdout/nano-harder``."""
    found = {}
    for suite, problems in scores.items():
        judged = [score for score in problems.values() if score is not None]
        if judged:
            found[f"holdout/{suite}"] = sum(judged) / len(judged)
    return found


def compare(before: Scores, after: Scores) -> list[dict[str, Any]]:
    """Return a row for each suite and family, then for all together: both means and the paired difference."""
    pairs = [
        (suite, problem, old, new)
        for suite, problems in before.items()
        for problem, old in problems.items()
        if old is not None and (new := after[suite].get(problem)) is not None
    ]
    parts: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for suite, problem, old, new in pairs:
        family = problem.partition("-")[0]
        for key in ((suite, family), (suite, "all"), ("all", family), ("all", "all")):
            parts.setdefault(key, []).append((old, new))
    order = sorted(parts, key=lambda key: (key[0] == "all", key[0], key[1] == "all", key[1]))
    return [_row(*key, parts[key]) for key in order]


def _row(suite: str, family: str, pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    old, new = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    first, last, change = mean_with_interval(old), mean_with_interval(new), paired_difference(old, new)
    return {
        "suite": suite,
        "family": family,
        "n": len(pairs),
        "before": first.value,
        "before_interval": list(first.interval),
        "after": last.value,
        "after_interval": list(last.interval),
        "difference": change.difference,
        "difference_interval": [change.low, change.high],
        "p_value": change.p_value,
        "within_noise": change.within_noise,
    }


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence whether the policy improved."""
    overall = rows[-1]
    low, high = overall["difference_interval"]
    points = f"{100 * overall['difference']:+.1f} points (95% interval {100 * low:+.1f} to {100 * high:+.1f})"
    if low > 0:
        return f"The hold-out solve rate rose by {points}."
    if high < 0:
        return f"The hold-out solve rate FELL by {points}: this run made the policy worse."
    return f"Nothing improved beyond chance: the hold-out solve rate changed by {points}."


def table(rows: Sequence[Mapping[str, Any]], samples: int) -> Table:
    """Return the table that a run ends with."""
    shown = Table(box=box.SIMPLE_HEAD, caption_justify="left", pad_edge=False, collapse_padding=True)
    shown.caption = f"Solve rates in %, mean of {samples} attempts a problem, with 95% intervals. ~: within noise."
    for name in ("suite", "family"):
        shown.add_column(name, no_wrap=True)
    for name in ("n", "before", "after", "difference"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        name = row["suite"].removeprefix("nano-")
        cells = [_percent(row[part], row[f"{part}_interval"]) for part in ("before", "after")]
        noise = " ~" if row["within_noise"] else ""
        cells.append(_percent(row["difference"], row["difference_interval"], "+.1f") + noise)
        together = row["family"] == "all"
        style = "bold" if together else None
        shown.add_row(name, row["family"], str(row["n"]), *map(escape, cells), style=style, end_section=together)
    return shown


def _percent(value: float, interval: Sequence[float], form: str = ".0f") -> str:
    low, high = (format(100 * bound, form) for bound in interval)
    return f"{format(100 * value, form.replace('.0', '.1'))} [{low}, {high}]"
