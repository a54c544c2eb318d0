"""What a run shows while it goes on: a live table on a terminal, a line a step elsewhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

FAMILIES = ("deduction", "abduction", "induction")

COLUMNS = ("lines", "archive", "no verdict", "tok/s", "untrained %", "sandbox %", "s/step")

LEAVES = ("sandbox %", "untrained %", "top rejection", "no verdict", "new+replayed", "tok/s", "archive", "lines")
"""What a terminal that is too narrow for all columns goes without, in this order: figures are never cut."""

FRAME = 7  # lines of the table that are no steps, and the one below it
WIDEST = 1000


class LiveTable:
    """Shows the newest steps of a run."""

    ROWS = 16

    def __init__(self, console: Console, steps: int, families: tuple[str, ...] = FAMILIES) -> None:
        self.console, self.steps, self.families = console, steps, families
        self._rows: deque[list[str]] = deque(maxlen=self.ROWS)
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Leave the table as it is; what is printed next comes below it."""
        if self._live:
            self._live.stop()

    def show(self, record: Mapping[str, float]) -> None:
        """Take in one step's metrics."""
        cells = self._cells(record)
        self._rows.append(cells)
        if self._live:
            self._live.update(self._table(), refresh=True)
        else:
            named = zip(self._columns(), cells, strict=True)
            self.console.print("  ".join(f"{name} {cell}" for name, cell in named), highlight=False, soft_wrap=True)

    def _columns(self) -> list[str]:
        initials = "/".join(name[:3] for name in self.families)
        by_family = [f"solved % {initials}", f"admitted % {initials}"]
        return ["step", *by_family, "top rejection", "new+replayed", *COLUMNS]

    def _cells(self, record: Mapping[str, float]) -> list[str]:
        rejected = {k.removeprefix("rejected/"): n for k, n in record.items() if k.startswith("rejected/")}
        top = max(rejected, key=lambda check: rejected[check], default="-")
        seconds = record.get("seconds/step", 0.0) or 1e-9
        sandbox = record.get("seconds/gate", 0.0) + record.get("seconds/judge", 0.0)
        return [
            f"{record['step']:.0f}/{self.steps}",
            self._each(record, "solve/{}/reward"),
            self._each(record, "propose/{}/admitted"),
            f"{top} {rejected[top]:.0f}" if rejected else top,
            f"{record['tasks/new']:.0f}+{record['tasks/replayed']:.0f}",
            f"{record['tasks/body_lines']:.1f}" if "tasks/body_lines" in record else "-",
            f"{record['archive/tasks']:.0f}",
            f"{record['no_verdict']:.0f}",
            f"{record['tokens/sampled'] / seconds:.0f}",
            f"{100 * record.get('tokens/untrained', 0.0) / (record['tokens/sampled'] or 1):.0f}",
            f"{100 * sandbox / seconds:.0f}",
            f"{seconds:.1f}",
        ]

    def _each(self, record: Mapping[str, float], key: str) -> str:
        values = [record.get(key.format(name)) for name in self.families]
        return "/".join("-" if value is None else f"{100 * value:.0f}" for value in values)

    def _table(self) -> Table:
        """Return the newest steps that there is room for, a line each, with the columns that are there in full."""
        endless = self.console.options.update(width=WIDEST)
        tables = (self._without(LEAVES[:count]) for count in range(len(LEAVES) + 1))
        fitting = (t for t in tables if self.console.measure(t, options=endless).maximum <= self.console.width)
        return next(fitting, self._without(LEAVES))

    def _without(self, left_out: Collection[str]) -> Table:
        table = Table(title="Self-play (Ctrl-C: finish the step, save, stop)", title_justify="left")
        shown = [(i, name) for i, name in enumerate(self._columns()) if name not in left_out]
        for _, name in shown:
            table.add_column("\n".join(name.rsplit(" ", 1)), justify="right", no_wrap=True)
        for row in list(self._rows)[-max(self.console.height - FRAME, 1) :]:
            table.add_row(*(row[i] for i, _ in shown))
        return table
