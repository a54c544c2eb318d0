"""Scores of the policy on held-out suites while it is trained, as `selfplay-gym eval` would give them.

An evaluation leaves two files in the run's folder: the answers, which ``rescore`` grades again, and the scores, which
``compare`` reads. It draws nothing from the run's random state and begins afresh wherever a kill cut it off, so a run
is the same with it and without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from selfplay_gym import results
from selfplay_gym.answers import Sampling
from selfplay_gym.comparison import Comparison, compare_results, corrected
from selfplay_gym.errors import InvalidData
from selfplay_gym.evaluating import Exam, Model, examine, prepare
from selfplay_gym.protocols import Executor
from selfplay_gym.results import Report
from selfplay_gym.suites import Source, parted
from selfplay_gym.training import vllm
from selfplay_gym.training.config import RunConfig
from selfplay_gym.training.evaluate import PolicyAnswerer
from selfplay_gym.training.folder import RunFolder
from selfplay_gym.training.generation import GenerationBackend
from selfplay_gym.training.policy import Policy

CHUNK = 1024
"""Questions that are asked at a time."""


def due(config: RunConfig, step: int) -> bool:
    """Return whether the suites are answered after this step; after the last one they always are."""
    if config.eval is None:
        return False
    return step == config.steps or (config.eval.every is not None and step % config.eval.every == 0)


def rows(config: RunConfig) -> int:
    """Return how many answers are asked for at a time at most; 0 where no suite is."""
    asked = config.eval
    if asked is None:
        return 0
    parts = [(parted(name)[1] or CHUNK, sampling.samples) for name, sampling in asked.samplings(config.style).items()]
    return min(max(min(asked.limit or CHUNK, problems) * samples for problems, samples in parts), CHUNK)


def load(config: RunConfig, executor: Executor) -> Exam | None:
    """Return the suites of a run as they are put to its policy; None if it asks for none.

    Raises:
        InvalidData: A data file is missing or broken.
    """
    asked = config.eval
    if asked is None:
        return None
    source = Source(executor, Path(asked.data_dir) if asked.data_dir else None, config.style)
    return prepare(
        asked.suites, source, asked.choice(config.seed), limit=asked.limit, skip_missing=asked.skip_missing
    )  # fmt: skip


class Milestones:
    """Rank 0's evaluations of a run.

    Args:
        config: The run's settings.
        folder: Where answers and scores are kept.
        policy: What is trained.
        generator: Samples from it on all ranks.
        executor: Judges.
    """

    def __init__(
        self, config: RunConfig, folder: RunFolder, policy: Policy, generator: GenerationBackend, executor: Executor
    ) -> None:
        self.config, self.folder, self.executor = config, folder, executor
        self.policy = Policy(policy.model, policy.tokenizer, generator)
        self.exam = load(config, executor)

    def measure(self, step: int) -> dict[str, float]:
        """Score the policy as it is after a step (0: before the first) and return the metrics, ``eval/SUITE``."""
        scores = self.folder.path / self.folder.evaluation(step)
        scores.parent.mkdir(exist_ok=True)
        for left in (scores, scores.with_suffix(".jsonl"), scores.with_suffix(".jsonl.failures")):
            left.unlink(missing_ok=True)
        report = self._report(step, scores.with_suffix(".jsonl"))
        self.folder.write_json(self.folder.evaluation(step), report.as_dict())
        return {f"eval/{result.suite}": result.value for result in report.results if result.value is not None}

    def _report(self, step: int, answers: Path) -> Report:
        assert self.exam is not None
        config, vllm_runs = self.config, self.config.backend == "vllm"
        model = Model(
            name=f"{self.folder.path.name}, step {step}",
            answerer=self._answerer,
            source={"model": config.model, "run": str(self.folder.path), "step": step, "backend": config.backend},
            style=config.style,
            versions=results.versions_of("torch", "transformers", *(["vllm"] if vllm_runs else [])),
        )
        return examine(model, self.exam, self.executor, keep=answers)

    def _answerer(self, chat: bool, sampling: Sampling) -> PolicyAnswerer:
        context = vllm.context(self.config) if self.config.backend == "vllm" else None
        return PolicyAnswerer(self.policy, chat, sampling, CHUNK, context)

    def measured(self, step: int) -> bool:
        """Return whether the scores after a step are there, whole."""
        return (self.folder.path / self.folder.evaluation(step)).exists()

    def result(self) -> list[dict[str, Any]]:
        """Return a row a suite: its score at the end, and where the start was measured, that and the difference."""
        last = self.folder.read_json(self.folder.evaluation(self.config.steps))
        first = self.folder.read_json(self.folder.evaluation(0)) or {"suites": []}
        return result_rows(first["suites"], last["suites"])


KEPT = ("suite", "metric", "n", "no_verdict", "protocol", "data_sha256")


def result_rows(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what ``result.json`` holds of two evaluations; of suites that the first one lacks the end alone."""
    rows = {result["suite"]: {name: result[name] for name in KEPT} | _part(result, "after") for result in after}
    results = {result["suite"]: result for result in after}
    before = [result for result in before if result["suite"] in rows]
    for result in before:
        rows[result["suite"]] |= _part(result, "before")
    for found in corrected(_compared(before, results)):
        change = found.interval
        rows[found.suite] |= {
            "difference": change.difference,
            "difference_interval": [change.low, change.high],
            "p_value": change.p_value,
            "within_noise": found.within_noise,
        }
    return list(rows.values())


def _part(result: Mapping[str, Any], when: str) -> dict[str, Any]:
    return {when: result["value"], f"{when}_interval": result["interval"]}


def _compared(before: Sequence[Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]) -> list[Comparison]:
    """Compare suite by suite, but for those where no problem has a verdict both times."""
    found = []
    for result in before:
        with suppress(InvalidData):
            found.append(compare_results(result, after[result["suite"]]))
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table that a run ends with."""
    shown = Table(box=box.SIMPLE_HEAD, caption_justify="left", pad_edge=False, collapse_padding=True)
    told = "Scores in % with 95% intervals; the difference is paired by problem. ~: within noise."
    shown.caption = "\n".join([told, *_notes(rows)])
    shown.add_column("suite", no_wrap=True)
    for name in ("n", "before", "after", "difference"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        noise = " ~" if row.get("within_noise") else ""
        cells = (_percent(row, "before"), _percent(row, "after"), _percent(row, "difference", "+.1f") + noise)
        shown.add_row(row["suite"], str(row["n"]), *map(escape, cells))
    return shown


def _notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how many answers at the end have no verdict, by suite."""
    return [f"{row['suite']}: no verdict on {row['no_verdict']}, left out" for row in rows if row["no_verdict"]]


def _percent(row: Mapping[str, Any], part: str, form: str = ".0f") -> str:
    value, interval = row.get(part), row.get(f"{part}_interval")
    if value is None or interval is None:
        return "-"
    low, high = (format(100 * bound, form) for bound in interval)
    return f"{format(100 * value, form.replace('.0', '.1'))} [{low}, {high}]"
