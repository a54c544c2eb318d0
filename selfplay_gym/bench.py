"""The sandbox measured in one run: what it costs beside its rivals, how it grows, and which targets that meets."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from rich.console import Console, Group
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from selfplay_gym import bench_costs as costs
from selfplay_gym import bench_scaling as scaling
from selfplay_gym.bench_costs import Costs
from selfplay_gym.bench_scaling import Footprint, Overrun, Size, Throughput

LARGEST_CALL = 100_000
"""Jobs of one call, for those who want to wait for it."""

_MOST_ROUNDS = 5  # of what is measured in seconds rather than in milliseconds


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        rounds: Interleaved rounds; medians are taken over them.
        programs: In each round, for every rival.
        stream: Programs a call where throughput is measured.
        sizes: Jobs a call, to see whether its cost stays flat.
        budgets: Of programs that do not end, in seconds of processor time.
    """

    rounds: int = 7
    programs: int = 384
    stream: int = 3840
    sizes: tuple[int, ...] = (100, 1_000, 10_000)
    budgets: tuple[float, ...] = (0.2, 1.0)


@dataclass(frozen=True)
class Target:
    """What one figure should be.

    Attributes:
        name: The row of the tables that it belongs to.
        measured: The figure; None where this host cannot show it.
        limit: What it should at most be, or at least.
        unit: What follows the figure.
        at_least: Which of the two.
        strictly: The limit itself is not enough.
    """

    name: str
    measured: float | None
    limit: float
    unit: str
    at_least: bool = False
    strictly: bool = False

    @property
    def met(self) -> bool | None:
        """Whether it is as it should be; None if it was not measured."""
        if self.measured is None:
            return None
        if self.strictly and self.measured == self.limit:
            return False
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def __str__(self) -> str:
        said = {True: "met", False: "missed", None: "not measured"}[self.met]
        sign = (">" if self.at_least else "<") + ("" if self.strictly else "=")
        return f"{sign} {self.limit:g}{self.unit} {said}"


@dataclass(frozen=True)
class BenchResult:
    """What `bench_executor` measured, and where."""

    costs: Costs
    throughput: tuple[Throughput, ...]
    sizes: tuple[Size, ...]
    overruns: tuple[Overrun, ...]
    footprint: Footprint
    plan: Plan
    python: str = field(default_factory=lambda: sys.version.split()[0])
    kernel: str = field(default_factory=lambda: os.uname().release)
    machine: str = field(default_factory=lambda: os.uname().machine)
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))

    @property
    def targets(self) -> tuple[Target, ...]:
        """Every target with its figure; those of several figures have the worst."""
        ratios = {row.name: row.to_in_process for row in self.costs.rows}
        on_two = [t.to_one_core for t in self.throughput if t.name == scaling.TWO_CORES]
        beyond = {
            kind: 100 * max(overrun.processor_beyond for overrun in self.overruns if overrun.kind == kind)
            for kind in (scaling.SOFT, scaling.HARD)
        }
        servers = [mb for name, mb in self.footprint.resident_mb.items() if not name.endswith("child")]
        return (
            Target(costs.TOGETHER, ratios[costs.TOGETHER], 2.2, "x"),
            Target(costs.VALIDATED, ratios[costs.VALIDATED], 4.5, "x"),
            Target(costs.MANY_INPUTS, ratios[costs.MANY_INPUTS], 2.6, "x"),
            Target(costs.A_RUN, ratios[costs.A_RUN], 20.0, "x"),
            Target("two cores to one", on_two[0] if on_two else None, 1.8, "x", at_least=True),
            Target("a job's cost, largest difference", 100 * max(abs(s.to_thousand - 1) for s in self.sizes), 20, "%"),
            Target(f"over budget: {scaling.SOFT}", beyond[scaling.SOFT], 10, "%"),
            Target(f"over budget: {scaling.HARD}", beyond[scaling.HARD], 60, "%"),
            Target("start to first answer", self.footprint.start_milliseconds, 150, " ms"),
            Target("resident, largest server or keeper", max(servers), 20, " MB"),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for ``--json``."""
        return {**asdict(self), "targets": [{**asdict(target), "met": target.met} for target in self.targets]}

    def table(self) -> Group:
        """Return the tables for people."""
        return Group(self.cost_table(), self.growth_table())

    def cost_table(self) -> Table:
        """Return what a run costs, a row for every rival and for every arrangement of ours."""
        title = f"processor time a run, medians of {self.plan.rounds} rounds, tier {self.costs.tier}"
        table = Table(title=title, caption="\n".join(self.costs.missing) or None, pad_edge=False)
        table.add_column("design")
        for heading in ("us", "x in-\nprocess", "agree"):
            table.add_column(heading, justify="right")
        table.add_column("target")
        targets = {target.name: str(target) for target in self.targets}
        rows = self.costs.rows
        for row, following in zip(rows, [*rows[1:], None], strict=True):
            cells = (f"{row.microseconds:.0f}", f"{row.to_in_process:.2f}", f"{100 * row.agreement:.1f}%")
            begins_ours = following is not None and following.ours and not row.ours
            table.add_row(row.name, *cells, targets.get(row.name, ""), end_section=begins_ours)
        return table

    def growth_table(self) -> Table:
        """Return cores, jobs a call, time-outs, start and memory, and the targets that are not in the other table."""
        ratios = {row.name for row in self.costs.rows}
        targets = [target for target in self.targets if target.name not in ratios]
        title = f"growth, limits and size, {self.cores} cores, Python {self.python}"
        return figure_table(title, self._growth_rows(), targets)

    def _growth_rows(self) -> Iterator[tuple[str, str]]:
        for rate in self.throughput:
            yield f"throughput: {rate.name}", f"{rate.programs_per_second:,.0f}/s  {rate.to_one_core:.2f}x"
        for size in self.sizes:
            yield f"a job, {size.jobs:,} a call", f"{size.microseconds:.0f} us  {size.to_thousand:.2f}x"
            yield "  peak memory: here", f"{size.trainer_peak_mb:.0f} MB"
            yield "  peak memory: largest in sandbox", f"{size.server_peak_mb:.0f} MB"
        for overrun in self.overruns:
            figures = f"{100 * overrun.processor_beyond:+.0f}%, clock {100 * overrun.clock_beyond:+.0f}%"
            yield f"over {overrun.budget_seconds:g} s: {overrun.kind}", figures
        for name, megabytes in self.footprint.resident_mb.items():
            yield f"resident: {name}", f"{megabytes:.1f} MB"


def figure_table(title: str, rows: Iterable[tuple[str, str]], targets: Iterable[Target]) -> Table:
    """Return a table of figures with their names, and below them the targets."""
    table = Table(title=title)
    table.add_column("what")
    table.add_column("figure", justify="right")
    table.add_column("target")
    for what, figure in rows:
        table.add_row(what, figure)
    table.add_section()
    for target in targets:
        figure = "-" if target.measured is None else f"{target.measured:.3g}{target.unit}"
        table.add_row(target.name, figure, str(target))
    return table


def bench_executor(plan: Plan | None = None, console: Console | None = None) -> BenchResult:
    """Measure the sandbox and what else runs programs, in interleaved rounds.

    Args:
        plan: How much; by default about a minute.
        console: Where to show progress.
    """
    plan = plan or Plan()
    with progress(console) as say:
        # Size first: what is measured later would be beside the remains of the rivals.
        footprint = scaling.measure_footprint(plan.rounds, say)
        found = costs.measure_costs(plan.rounds, plan.programs, say)
        few = min(_MOST_ROUNDS, plan.rounds)
        throughput = scaling.measure_throughput(few, plan.stream, say)
        sizes = scaling.measure_sizes(min(3, plan.rounds), plan.sizes, say)
        overruns = scaling.measure_overruns(min(3, plan.rounds), plan.budgets, say)
    return BenchResult(found, throughput, sizes, overruns, footprint, plan)


@contextlib.contextmanager
def progress(console: Console | None) -> Iterator[Callable[[str], None]]:
    """Yield what says what is being measured: in one line that changes on a terminal, in a line each elsewhere."""
    if console is None:
        yield lambda words: None
        return
    if not console.is_terminal:
        yield partial(console.print, highlight=False, soft_wrap=True, markup=False)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    # Drawn between measurements only: to draw takes processor time of this process.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task("")

        def say(words: str) -> None:
            bar.update(task, description=words)
            bar.refresh()

        yield say
