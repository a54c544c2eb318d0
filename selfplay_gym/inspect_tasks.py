"""Exported suites as tasks of Inspect (https://inspect.aisi.org.uk); needs the extra ``inspect``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ContentReasoning, ContentText, GenerateConfig, ModelOutput
from inspect_ai.scorer import Metric, SampleScore, Score, Target, mean, metric, scorer, stderr
from inspect_ai.solver import TaskState, generate

from selfplay_gym.grading import extract
from selfplay_gym.harness import Scorer, mean_of_groups
from selfplay_gym.results import RowScore
from selfplay_gym.suites import read


def suite_task(folder: Path, suite: str) -> Task:
    """Return a suite of an exported folder as a task: its prompts as user messages, judged in the sandbox.

    Raises:
        InvalidData: The folder was not written by `selfplay_gym.harness.export`.
    """
    judge = Scorer(folder)
    rows = read(folder / f"{suite}.jsonl")
    samples = [Sample(input=row.text("prompt"), id=row.text("id")) for row in rows]
    facts = judge.export.suites[suite]
    return Task(
        dataset=MemoryDataset(samples, name=suite),
        solver=generate(),
        scorer=_grouped(judge, suite) if facts.groups else _plain(judge, suite),
        config=GenerateConfig(
            temperature=facts.temperature, max_tokens=facts.max_new_tokens, stop_seqs=list(facts.stops) or None
        ),
        name=f"selfplay_gym_{suite}",
        metadata=asdict(facts),
    )


def completion_of(output: ModelOutput) -> str:
    """Return what the model wrote; Inspect takes reasoning out of it, which is put back."""
    content = output.message.content if output.choices else ""
    return content if isinstance(content, str) else "".join(map(_text_of, content))


def _text_of(part: Any) -> str:
    if isinstance(part, ContentReasoning):
        return f"<think>{part.reasoning}</think>"
    return part.text if isinstance(part, ContentText) else ""


@metric(name="mean")  # type: ignore[untyped-decorator]  # inspect_ai is not installed where types are checked
def group_mean() -> Metric:
    """The mean over groups of the mean within each."""

    def measure(scores: list[SampleScore]) -> float:
        units = [(score.score.metadata or {})["unit"] for score in scores]
        items = [[score.score.as_float(), *unit] for score, unit in zip(scores, units, strict=True)]
        return mean_of_groups(items) if items else 0.0

    return measure


@scorer(metrics=[mean(), stderr()], name="sandbox")  # type: ignore[untyped-decorator]
def _plain(judge: Scorer, suite: str) -> Callable[..., Any]:
    return _judging(judge, suite)


@scorer(metrics=[group_mean()], name="sandbox")  # type: ignore[untyped-decorator]
def _grouped(judge: Scorer, suite: str) -> Callable[..., Any]:
    return _judging(judge, suite)


def _judging(judge: Scorer, suite: str) -> Callable[..., Any]:
    alone = asyncio.Lock()  # the sandbox takes one batch at a time

    async def score(state: TaskState, target: Target) -> Score:
        completion = completion_of(state.output)
        async with alone:
            row = await asyncio.to_thread(judge.score, suite, str(state.sample_id), completion)
        return _score(row, completion)

    return score


def _score(row: RowScore, completion: str) -> Score:
    """Return Inspect's score; without a verdict NaN, which it leaves out and counts as unscored."""
    value = float("nan") if row.score is None else row.score
    metadata = {"unit": list(row.unit)}
    return Score(value=value, answer=extract(completion), explanation=row.reason or "right", metadata=metadata)
