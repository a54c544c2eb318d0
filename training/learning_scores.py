"""The files of a learning benchmark as numbers: runs, scores by problem, paired differences, curves over tokens.

The unit of every interval is the problem: its scores are averaged over seeds first. Such an interval says how sure a
difference is for these trained models on other problems, and nothing of other seeds; so the spread over seeds stands
beside it.
"""

from __future__ import annotations

import json
import statistics as plain
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfplay_gym.errors import InvalidData
from selfplay_gym.report import read_metrics
from selfplay_gym.statistics import Interval, mean_with_interval, paired_difference, pass_at_k

START = "start"
"""The policy before any arm has trained it."""

SELF_PLAY = "self-play"

ByProblem = Mapping[str, float]
Scores = dict[tuple[str, str], dict[str, float]]
"""Of one model: for each suite and measure, a score for each problem with a verdict."""


# -- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        sampled: Tokens sampled in each step.
        seconds: From its start to its end, over all sessions.
        points: What was measured, in order, with ``tokens``: how many millions had been sampled until then. The first
            is the start, before any step.
        versions: Of the packages that matter.
    """

    sampled: tuple[float, ...]
    seconds: float
    points: tuple[Mapping[str, float], ...]
    versions: Mapping[str, str]

    @property
    def tokens(self) -> float:
        """Tokens sampled, rejected proposals and probes included."""
        return sum(self.sampled)


def read_run(folder: Path) -> Run:
    """Read a finished run.

    Raises:
        InvalidData: A file of it is missing or was not written by a run.
    """
    steps = read_metrics(folder / "metrics.jsonl")
    try:
        sampled = tuple(step["tokens/sampled"] for step in steps)
        result = json.loads((folder / "result.json").read_bytes())
        rows = [row for row in result["holdout"] if row["family"] == "all" and row["suite"] != "all"]
        before, after = ({f"holdout/{row['suite']}": float(row[when]) for row in rows} for when in ("before", "after"))
        done = np.cumsum(sampled) / 1e6
        points = [{"tokens": 0.0, **before}]
        points += [{**_played(step), "tokens": float(tokens)} for step, tokens in zip(steps, done, strict=True)]
        points[-1] |= after
        return Run(sampled, float(result["seconds"]), tuple(points), result["versions"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InvalidData(f"{folder} holds no finished run: {type(error).__name__} {error}") from None


def _played(step: Mapping[str, float]) -> dict[str, float]:
    """Return a step's numbers with the mean reward of its solvers."""
    rewards = [value for key, value in step.items() if key.startswith("solve/") and key.endswith("/reward")]
    return {**step, **({"solve": sum(rewards) / len(rewards)} if rewards else {})}


def read_scores(path: Path, sampled: bool) -> Scores:
    """Read a file of ``eval --json``.

    Args:
        path: The file.
        sampled: Whether its answers were sampled, which gives ``avg@N`` and ``pass@N`` for N samples; else ``greedy``.

    Raises:
        InvalidData: It is no such file.
    """
    found: Scores = {}
    try:
        for suite in json.loads(path.read_bytes())["suites"]:
            rows = {row["id"]: [x for x in row.get("scores", [row["score"]]) if x is not None] for row in suite["rows"]}
            judged = {problem: scores for problem, scores in rows.items() if scores}
            samples = max(map(len, judged.values()), default=1)
            for name, score in _measures(samples if sampled else 0).items():
                found[suite["suite"], name] = {problem: score(scores) for problem, scores in judged.items()}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InvalidData(f"{path} was not written by eval --json: {type(error).__name__} {error}") from None
    return found


def _measures(samples: int) -> dict[str, Callable[[Sequence[float]], float]]:
    """Return what is made of a problem's scores; none are samples where they are greedy."""

    def passes(scores: Sequence[float]) -> float:
        return pass_at_k(len(scores), sum(score == 1.0 for score in scores), min(samples, len(scores)))

    if not samples:
        return {"greedy": plain.fmean}
    return {f"avg@{samples}": plain.fmean, f"pass@{samples}": passes}


# -- statistics --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """What an arm's models score on one suite by one measure.

    Attributes:
        suite: Its name.
        measure: ``avg@8``, ``pass@8`` or ``greedy``.
        arm: Name of the arm, or `START`.
        n: Problems with a verdict.
        value: Mean over seeds and problems.
        interval: 95% interval of it, over problems.
        seeds: Mean over problems, for each seed.
        over_start: The arm minus the start, paired by problem; None for the start.
        below_self_play: Self-play minus the arm, likewise; None for self-play and the start.
    """

    suite: str
    measure: str
    arm: str
    n: int
    value: float
    interval: tuple[float, float]
    seeds: tuple[float, ...]
    over_start: Interval | None
    below_self_play: Interval | None

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for one seed."""
        return plain.stdev(self.seeds) if len(self.seeds) > 1 else None


def score(suite: str, measure: str, by_arm: Mapping[str, Sequence[ByProblem]]) -> list[Score]:
    """Compare arms on one suite by one measure.

    Args:
        suite: Its name.
        measure: Its name.
        by_arm: For each arm, `START` and self-play among them, the scores by problem of each of its seeds.

    Raises:
        InvalidData: Two arms have no problem with a verdict in common.
    """
    means = {arm: _over_seeds(seeds) for arm, seeds in by_arm.items()}
    found = []
    for arm, own in means.items():
        estimate = mean_with_interval(list(own.values()))
        over_start = None if arm == START else _difference(means[START], own)
        below = None if arm in (START, SELF_PLAY) else _difference(own, means[SELF_PLAY])
        seeds = tuple(plain.fmean(scores.values()) for scores in by_arm[arm])
        found.append(
            Score(suite, measure, arm, estimate.n, estimate.value, estimate.interval, seeds, over_start, below)
        )
    return found


def _over_seeds(seeds: Sequence[ByProblem]) -> dict[str, float]:
    """Return each problem's mean over the seeds that have a verdict of it."""
    problems = dict.fromkeys(problem for scores in seeds for problem in scores)
    return {p: plain.fmean(scores[p] for scores in seeds if p in scores) for p in problems}


def _difference(before: ByProblem, after: ByProblem) -> Interval:
    shared = [problem for problem in before if problem in after]
    if not shared:
        raise InvalidData("two models have no problem with a verdict in common: their scores are of different data")
    return paired_difference([before[p] for p in shared], [after[p] for p in shared])


def curve(runs: Sequence[Run], key: str) -> list[tuple[float, float]]:
    """Return points (million tokens, value), each the mean over the runs that measured it there.

    Point by point, since the runs of an arm have equally many steps; their tokens differ a little and are averaged.
    """
    found = []
    for points in zip(*(run.points for run in runs), strict=True):
        values = [point[key] for point in points if key in point]
        if values:
            found.append((round(plain.fmean(point["tokens"] for point in points), 4), plain.fmean(values)))
    return found
