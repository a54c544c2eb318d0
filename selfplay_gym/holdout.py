"""The shipped hold-out as a trainer uses it: prompts out, completions in, paired differences at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from selfplay_gym import statistics, suites
from selfplay_gym.errors import InvalidConfig
from selfplay_gym.grading import SuiteResult, grade
from selfplay_gym.protocols import Executor
from selfplay_gym.suites import Source, Suite

Sampler = Callable[[Sequence[str]], Sequence[Sequence[str]]]
"""Gives the completions, one or more, for each prompt."""


@dataclass(frozen=True, slots=True)
class SolveRate:
    """How often one hold-out problem was solved.

    Attributes:
        id: ``suite/problem``, stable over runs and machines.
        level: Its suite, ``nano-easy`` or ``nano-harder``.
        family: Its task family.
        rate: Share of samples that are right; None without a verdict.
    """

    id: str
    level: str
    family: str
    rate: float | None


class Holdout:
    """Frozen problems to judge a policy by, before and after it played itself.

    Args:
        executor: Runs answers.
        style: Prompt style of the policy.
        problems: A family and level; all of them (150) unless told.
        names: Suites to take the problems from.

    Attributes:
        suites: The problems, one suite a level.
    """

    def __init__(
        self, executor: Executor, style: str = "compact", problems: int | None = None, names: Sequence[str] = ("nano",)
    ) -> None:
        self.executor = executor
        loaded = suites.load(names, Source(executor, style=style))
        # The families take turns in the files, so that the first few hold equally many of each.
        self.suites = [s.first(None if problems is None else problems * len(s.families)) for s in loaded]

    def prompts(self) -> dict[str, str]:
        """Return the solver's prompt by problem id (``suite/problem``), in a fixed order."""
        return {f"{suite.name}/{key}": text for suite in self.suites for key, text in suite.prompts().items()}

    def grade(self, completions: Mapping[str, Sequence[str]]) -> list[SolveRate]:
        """Return the solve rate of every problem, given completions by problem id; none at all is a rate of 0."""
        rates: list[SolveRate] = []
        for suite in self.suites:
            texts = {problem.id: completions.get(f"{suite.name}/{problem.id}", ()) for problem in suite.problems}
            rates += _rates(suite, grade(suite, texts, self.executor))
        return rates

    def run(self, sample: Sampler) -> list[SolveRate]:
        """Return the solve rate of every problem, calling ``sample`` once for all prompts."""
        prompts = self.prompts()
        return self.grade(dict(zip(prompts, sample(list(prompts.values())), strict=True)))


def summary(rates: Sequence[SolveRate], seed: int = 0) -> dict[str, statistics.Estimate]:
    """Return mean solve rate, n and interval by level and by ``level/family``, over problems with a verdict."""
    return {
        name: statistics.mean_with_interval([rate.rate for rate in group if rate.rate is not None], seed)
        for name, group in _groups(rates).items()
        if any(rate.rate is not None for rate in group)
    }


def compare(before: Sequence[SolveRate], after: Sequence[SolveRate], seed: int = 0) -> dict[str, statistics.Interval]:
    """Return the paired difference by level, and by ``level/family``, over problems with a verdict both times.

    Raises:
        InvalidConfig: The two do not hold the same problems.
    """
    later = {rate.id: rate.rate for rate in after}
    if later.keys() != {rate.id for rate in before}:
        raise InvalidConfig("the two hold-out results are not about the same problems")
    differences = {}
    for name, group in _groups(before).items():
        pairs = [(rate.rate, later[rate.id]) for rate in group]
        known = [(old, new) for old, new in pairs if old is not None and new is not None]
        if known:
            old_rates, new_rates = zip(*known, strict=True)
            differences[name] = statistics.paired_difference(old_rates, new_rates, seed)
    return differences


def _groups(rates: Sequence[SolveRate]) -> dict[str, list[SolveRate]]:
    groups: dict[str, list[SolveRate]] = {}
    for rate in rates:
        groups.setdefault(rate.level, []).append(rate)
        groups.setdefault(f"{rate.level}/{rate.family}", []).append(rate)
    return groups


def _rates(suite: Suite, result: SuiteResult) -> list[SolveRate]:
    return [
        SolveRate(f"{suite.name}/{problem.id}", suite.name, problem.task.family, row.score)
        for problem, row in zip(suite.problems, result.rows, strict=True)
        if problem.task is not None
    ]
