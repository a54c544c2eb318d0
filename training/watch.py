"""What happened in a step, as numbers: metrics for files, trackers and the live table."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from selfplay_gym import programs, rewards
from selfplay_gym.gate import Outcome
from selfplay_gym.types import NoVerdict, Rejected, Task, Verdict

if TYPE_CHECKING:
    from selfplay_gym.training.generation import Sample
    from selfplay_gym.training.rollouts import Row


ROUNDING = 1e-9
"""An advantage below this is none: rewards are of the order of 1."""


class StepWatch:
    """Collects the metrics of one step.

    Names follow ``role/family/what``. ``seconds/...`` are clock times by phase; everything else is the same on every
    run of the same seed.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self.metrics: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase; one that is entered again goes on."""
        started = time.perf_counter()
        yield
        self.metrics[f"seconds/{name}"] = self.metrics.get(f"seconds/{name}", 0.0) + time.perf_counter() - started

    def saw(
        self, rows: Sequence[Row], outcomes: Sequence[Outcome], verdicts: Sequence[Sequence[Verdict]], new: int
    ) -> None:
        """Take in the rows of a step with their advantages, what became of its proposals, and the verdicts by task.

        New tasks come first among the verdicts.
        """
        self._rewards(rows)
        self._proposals(rows, outcomes)
        rates = [rate for group in verdicts[:new] if (rate := rewards.solve_rate(list(group))) is not None]
        self.metrics["tasks/new"] = new
        self.metrics["tasks/replayed"] = len(verdicts) - new
        self.metrics["tasks/never_solved"] = _share([rate == 0 for rate in rates])
        self.metrics["tasks/always_solved"] = _share([rate == 1 for rate in rates])
        self.metrics["rows"] = len(rows)
        self.metrics["no_verdict"] = sum(row.reward is None for row in rows)
        judged = [row for row in rows if row.trained and row.reward is not None]
        self.metrics["no_gradient"] = _share([abs(row.advantage) < ROUNDING for row in judged])
        self.metrics["tokens/prompts"] = sum(len(row.prompt_ids) for row in rows)
        self.metrics["tokens/sampled"] = sum(len(row.sample.ids) for row in rows)
        self.metrics["tokens/untrained"] = sum(len(row.sample.ids) for row in rows if not row.trained)
        self.metrics["unfinished"] = _share([not row.sample.finished for row in rows])

    def saw_untrained(self, samples: Sequence[Sample]) -> None:
        """Take in what was sampled beside the rows."""
        untrained = sum(len(sample.ids) for sample in samples)
        self.metrics["tokens/untrained"] += untrained
        self.metrics["tokens/sampled"] += untrained

    def saw_extras(self, extras: Sequence[Mapping[str, float]]) -> None:
        """Take in what the admitted proposals have of each extra that is paid for."""
        for name in sorted({name for values in extras for name in values}):
            found = [values[name] for values in extras if name in values]
            self.metrics[f"intrinsic/{name}"] = sum(found) / len(found)

    def saw_baselines(self, baselines: Mapping[str, float]) -> None:
        """Take in what rewards will be compared with in the next step, by role and family."""
        self.metrics.update({f"{kind}/baseline": value for kind, value in sorted(baselines.items())})

    def _rewards(self, rows: Sequence[Row]) -> None:
        for kind in sorted({(row.role, row.family) for row in rows}):
            paid = [row.reward for row in rows if (row.role, row.family) == kind and row.reward is not None]
            if paid:  # without a verdict there is nothing to report, least of all a zero
                self.metrics["/".join((*kind, "reward"))] = sum(paid) / len(paid)

    def _proposals(self, rows: Sequence[Row], outcomes: Sequence[Outcome]) -> None:
        proposals = [row for row in rows if row.role == "propose"]
        self.metrics["proposals"] = len(proposals)
        for family in sorted({row.family for row in proposals}):
            own = [o for row, o in zip(proposals, outcomes, strict=True) if row.family == family]
            judged = [outcome for outcome in own if not isinstance(outcome, NoVerdict)]
            if judged:
                self.metrics[f"propose/{family}/admitted"] = _share([isinstance(outcome, Task) for outcome in judged])
        rejected = Counter(outcome.check for outcome in outcomes if isinstance(outcome, Rejected))
        self.metrics.update({f"rejected/{check}": count for check, count in sorted(rejected.items())})
        admitted = [outcome for outcome in outcomes if isinstance(outcome, Task)]
        lines = [len(task.program.strip().splitlines()) - 2 for task in admitted]
        if lines:  # no task has no length, not length 0
            self.metrics["tasks/body_lines"] = sum(lines) / len(lines)
            self.metrics["tasks/shapes"] = len({programs.shape(task.program) for task in admitted}) / len(admitted)


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0
