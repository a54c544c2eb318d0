"""A step of self-play on the nano policy, measured: what it costs beside the model, and how that grows.

Phases, tokens and ranks are those of real runs of the command line, started by turns. Archives of several sizes are
filled with distinct tasks that are right, and played on by turns.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console, Group
from rich.table import Table

from selfplay_gym.archive import Archive
from selfplay_gym.bench import Target, figure_table, progress
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.gate import Gate
from selfplay_gym.referee import Referee
from selfplay_gym.report import SANDBOX, phase_seconds
from selfplay_gym.tasks import nano_programs
from selfplay_gym.training.advantages import make_estimator
from selfplay_gym.training.config import RunConfig, dump, load
from selfplay_gym.training.folder import RunFolder
from selfplay_gym.training.jobs import run_apart
from selfplay_gym.training.rollouts import SelfPlay
from selfplay_gym.training.run import load_policy
from selfplay_gym.training.watch import StepWatch
from selfplay_gym.types import Task

Say = Callable[[str], None]
Record = Mapping[str, float]

LARGEST_ARCHIVE = 1_000_000
"""Tasks of one archive, for those who want to wait for it."""

MODEL = ("propose", "solve", "mismatch", "update")
"""Phases of a step that are the model's: sampling, measuring its log-probs, learning."""

_A_STEP = 12  # tasks that a filled archive counts to a step, as a run of the recipe admits
_TRANSACTION = 10_000


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        rounds: Interleaved rounds; medians are taken over them.
        steps: Of each run; the first one, which starts much up, is left out.
        sizes: Tasks in the archives.
        turns: Steps on each archive and round.
        settings: Other than those of the recipe nano, as for ``train --set``.
    """

    rounds: int = 3
    steps: int = 20
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000)
    turns: int = 6
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ranks:
    """Runs in one number of processes.

    Attributes:
        processes: How many.
        seconds: A step by phase: means over a run, medians over the rounds.
        beside: Share of the time that is not the model's.
        untrained: Share of the sampled tokens that nothing is learnt from.
        tokens_per_second: While it samples.
        to_one: How many times what one process samples in a second, round by round.
    """

    processes: int
    seconds: dict[str, float]
    beside: float
    untrained: float
    tokens_per_second: float
    to_one: float


@dataclass(frozen=True)
class Size:
    """Steps on an archive of one size, without their updates.

    Attributes:
        tasks: In the archive.
        seconds: A step, median over the rounds.
        beside: Seconds of it that the model does not take.
        to_smallest: How many times what a step takes on the smallest archive, round by round.
    """

    tasks: int
    seconds: float
    beside: float
    to_smallest: float


@dataclass(frozen=True)
class StepResult:
    """What `bench_step` measured, and where."""

    ranks: tuple[Ranks, ...]
    sizes: tuple[Size, ...]
    plan: Plan
    python: str = field(default_factory=lambda: sys.version.split()[0])
    torch: str = field(default_factory=lambda: str(torch.__version__))
    machine: str = field(default_factory=lambda: os.uname().machine)
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))

    @property
    def targets(self) -> tuple[Target, ...]:
        """Every target with its figure; those of several figures have the worst."""
        on_two = [ranks.to_one for ranks in self.ranks if ranks.processes == 2]
        grown = 100 * max(abs(size.to_smallest - 1) for size in self.sizes)
        largest = max(size.tasks for size in self.sizes)
        return (
            Target("beside the model", 100 * max(ranks.beside for ranks in self.ranks), 5, "%"),
            Target("tokens not trained on", 100 * max(ranks.untrained for ranks in self.ranks), 20, "%"),
            Target("rollouts of two ranks to one", on_two[0] if on_two else None, 1.6, "x", at_least=True),
            Target(f"a step, difference up to {largest:,} tasks", grown, 10, "%"),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for ``--json``."""
        return {**asdict(self), "targets": [{**asdict(target), "met": target.met} for target in self.targets]}

    def table(self) -> Group:
        """Return the tables for people."""
        return Group(self.phase_table(), self.growth_table())

    def phase_table(self) -> Table:
        """Return the time of a step by phase."""
        table = Table(title=f"seconds a step of recipe nano, medians of {self.plan.rounds} rounds")
        table.add_column("phase")
        for ranks in self.ranks:
            table.add_column("1 process" if ranks.processes == 1 else f"{ranks.processes} processes", justify="right")
        for phase in self.ranks[0].seconds:
            cells = (f"{r.seconds[phase]:.3f}  {100 * r.seconds[phase] / r.seconds['step']:3.0f}%" for r in self.ranks)
            table.add_row(phase, *cells, end_section=phase == "other")
        return table

    def growth_table(self) -> Table:
        """Return sampling, archives and targets."""
        title = f"growth, {self.cores} cores, Python {self.python}, torch {self.torch}"
        return figure_table(title, self._growth_rows(), self.targets)

    def _growth_rows(self) -> Iterator[tuple[str, str]]:
        for ranks in self.ranks:
            yield f"sampling, processes: {ranks.processes}", f"{ranks.tokens_per_second:,.0f} tokens/s"
            yield "  beside the model", f"{100 * ranks.beside:.1f}%"
            yield "  of it the sandbox", f"{100 * sum(ranks.seconds[p] for p in SANDBOX) / ranks.seconds['step']:.1f}%"
        for size in self.sizes:
            yield f"a step without update, {size.tasks:,} tasks", f"{size.seconds:.3f} s  {size.to_smallest:.2f}x"
            yield "  of it beside the model", f"{1000 * size.beside:.0f} ms"


def bench_step(plan: Plan | None = None, console: Console | None = None) -> StepResult:
    """Measure steps of self-play with the nano policy, in interleaved rounds.

    Args:
        plan: How much; by default some minutes.
        console: Where to show progress.

    Raises:
        SelfPlayError: A run failed.
    """
    plan = plan or Plan()
    with progress(console) as say, TemporaryDirectory(prefix="selfplay-gym-bench-") as folder:
        ranks = measure_ranks(plan, Path(folder), say)
        sizes = measure_sizes(plan, Path(folder), say)
    return StepResult(ranks, sizes, plan)


# -- runs --------------------------------------------------------------------------------------------------------------


def measure_ranks(plan: Plan, folder: Path, say: Say) -> tuple[Ranks, ...]:
    """Run the recipe in one process and, where there are two cores, in two, by turns."""
    numbers = (1, 2) if len(os.sched_getaffinity(0)) > 1 else (1,)
    runs: defaultdict[int, list[Sequence[Record]]] = defaultdict(list)
    for turn in range(plan.rounds):
        for number in numbers:
            say(f"runs in {number} process{'es' if number > 1 else ''}, round {turn + 1} of {plan.rounds}")
            runs[number].append(_steps_of_a_run(plan, number, folder / f"run-{turn}-{number}"))
    return tuple(_ranks(number, runs[number], runs[1]) for number in numbers)


def _steps_of_a_run(plan: Plan, processes: int, folder: Path) -> Sequence[Record]:
    """Return the metrics of a run's steps but the first."""
    recipe = folder.with_suffix(".yaml")
    # One seed: each run plays the same steps, whatever its processes.
    recipe.write_text(dump(_config(plan, f"steps={plan.steps}", f"processes={processes}")), encoding="utf-8")
    run_apart(["train", str(recipe), "--output", str(folder)])
    return [*RunFolder(folder).records()][1:]


def _config(plan: Plan, *more: str) -> RunConfig:
    return load("nano", ["holdout=null", *plan.settings, *more])


def _ranks(processes: int, runs: Sequence[Sequence[Record]], alone: Sequence[Sequence[Record]]) -> Ranks:
    found = [phase_seconds(steps) for steps in runs]
    seconds = {phase: statistics.median(one[phase] for one in found) for phase in found[0]}
    rates = [_tokens_per_second(steps) for steps in runs]
    return Ranks(
        processes,
        seconds,
        beside=statistics.median(1 - sum(one[phase] for phase in MODEL) / one["step"] for one in found),
        untrained=max(_sum(steps, "tokens/untrained") / _sum(steps, "tokens/sampled") for steps in runs),
        tokens_per_second=statistics.median(rates),
        to_one=statistics.median(rate / _tokens_per_second(steps) for rate, steps in zip(rates, alone, strict=True)),
    )


def _tokens_per_second(steps: Sequence[Record]) -> float:
    return _sum(steps, "tokens/sampled") / (_sum(steps, "seconds/propose") + _sum(steps, "seconds/solve"))


def _sum(steps: Sequence[Record], name: str) -> float:
    return sum(step[name] for step in steps)


# -- archives ----------------------------------------------------------------------------------------------------------


def measure_sizes(plan: Plan, folder: Path, say: Say) -> tuple[Size, ...]:
    """Play steps on archives of several sizes by turns, here, without updates."""
    config = _config(plan)
    taken: defaultdict[int, list[list[tuple[float, float]]]] = defaultdict(list)
    with ExitStack() as stack:
        executor = stack.enter_context(SandboxExecutor())
        policy = load_policy(config)
        games = {}
        for size, path in fill(plan.sizes, list(config.families), folder, say).items():
            say(f"opening an archive of {size:,} tasks")
            archive = stack.enter_context(Archive(path))
            gate = Gate(executor, config.gate.build())
            referee = Referee(config.make_families(), executor, archive, gate, config.reward.build())
            estimate = make_estimator(config.update.advantage)
            games[size] = SelfPlay(policy, policy.backend, referee, config.play, estimate, config.seed)
        first = 1 + max(game.referee.archive.last_step or 0 for game in games.values())
        for turn in range(plan.rounds + 1):  # one to warm up
            say(f"steps by size of archive, round {turn} of {plan.rounds}")
            steps = range(first + turn * plan.turns, first + (turn + 1) * plan.turns)
            found: dict[int, list[tuple[float, float]]] = {size: [] for size in games}
            for step in steps:
                for size, game in games.items():
                    found[size].append(_timed(game, step))
            for size, times in found.items() if turn else ():
                taken[size].append(times)
    return _sizes(taken)


def _timed(game: SelfPlay, step: int) -> tuple[float, float]:
    """Play a step; return its seconds, and those beside the model."""
    watch = StepWatch(step)
    began = time.perf_counter()
    game.step(step, watch)
    whole = time.perf_counter() - began
    return whole, whole - watch.metrics["seconds/propose"] - watch.metrics["seconds/solve"]


def _sizes(taken: Mapping[int, Sequence[Sequence[tuple[float, float]]]]) -> tuple[Size, ...]:
    # Step by step, not by sums: one step that the machine was busy in would decide a round.
    whole = {size: [statistics.median(s for s, _ in times) for times in rounds] for size, rounds in taken.items()}
    beside = {size: [statistics.median(b for _, b in times) for times in rounds] for size, rounds in taken.items()}
    base = whole[min(whole)]
    return tuple(
        Size(
            size,
            statistics.median(seconds),
            statistics.median(beside[size]),
            statistics.median(one / other for one, other in zip(seconds, base, strict=True)),
        )
        for size, seconds in whole.items()
    )


def fill(sizes: Sequence[int], families: Sequence[str], folder: Path, say: Say) -> dict[int, Path]:
    """Write archives of so many distinct tasks, smallest first; return their files by size.

    Every task is right, and half of them are half solved. Each archive begins as the next smaller one.
    """
    tasks, stock, done, files = distinct_tasks(families), folder / "stock.sqlite", 0, {}
    for size in sorted(sizes):
        say(f"filling an archive with {size:,} tasks")
        with Archive(stock) as archive:
            _add(archive, islice(tasks, size - done), done)
        files[size], done = folder / f"archive-{size}.sqlite", size
        shutil.copyfile(stock, files[size])  # closed, so that it is whole
    return files


def distinct_tasks(families: Sequence[str]) -> Iterator[Task]:
    """Yield tasks without end, the families by turns: the nano policy's own, of two to five lines."""
    seen: set[str] = set()
    for number, example in enumerate(nano_programs.examples((2, 3, 4, 5), Random(0), held_out=False)):
        task = example.task(families[number % len(families)])
        if task.key not in seen:
            seen.add(task.key)
            yield task


def _add(archive: Archive, tasks: Iterator[Task], done: int) -> None:
    """Add tasks and what became of them, in large transactions; so many are there already."""
    while chunk := list(islice(tasks, _TRANSACTION)):
        with archive.transaction():
            ids = [archive.add_task(task, 1 + number // _A_STEP) for number, task in enumerate(chunk, start=done)]
            done += len(chunk)
            archive.record_attempts(1 + (done - 1) // _A_STEP, [(id_, 8, (0, 4, 8, 4)[id_ % 4]) for id_ in ids])
