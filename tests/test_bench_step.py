"""The benchmark of a step: complete at the smallest size. No figure is looked at."""

from __future__ import annotations

import io
import json
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from selfplay_gym.archive import Archive
from selfplay_gym.errors import SelfPlayError
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.training import bench_step as bench
from selfplay_gym.training.bench_step import Plan, Ranks, Size, StepResult
from selfplay_gym.types import Job

FAMILIES = ("deduction", "abduction", "induction")
TINY = Plan(
    rounds=1, steps=3, sizes=(30, 60), turns=2,
    settings=("play.proposals=2", "play.tasks=6", "play.attempts=2", "update.warmup_steps=0"),
)  # fmt: skip


def silent(words: str) -> None:
    pass


def a_step(sampled: float, seconds: float, untrained: float = 0.0) -> dict[str, float]:
    return {
        "tokens/sampled": sampled, "tokens/untrained": untrained, "seconds/step": 10 * seconds,
        "seconds/propose": 0.25 * seconds, "seconds/solve": 0.75 * seconds, "seconds/gate": 0.5 * seconds,
        "seconds/update": 8 * seconds, "seconds/mismatch": 0.25 * seconds,
    }  # fmt: skip


def ranks(processes: int, **changed: Any) -> Ranks:
    seconds = {"propose": 0.1, "gate": 0.02, "solve": 0.3, "judge": 0.01, "update": 1.0, "other": 0.03, "step": 1.46}
    values = {"seconds": seconds, "beside": 0.04, "untrained": 0.1, "tokens_per_second": 9000.0, "to_one": 1.0}
    return Ranks(processes, **{**values, **changed})


def result(*found: Ranks, sizes: tuple[Size, ...] = (Size(10, 1.0, 0.1, 1.0),)) -> StepResult:
    return StepResult(found or (ranks(1), ranks(2, to_one=1.7)), sizes, Plan())


# -- archives ----------------------------------------------------------------------------------------------------------


def test_archives_have_their_size_and_each_begins_as_the_smaller_one(tmp_path: Path) -> None:
    files = bench.fill((60, 25), FAMILIES, tmp_path, silent)
    assert list(files) == [25, 60]
    stored = {}
    for size, path in files.items():
        with Archive.read(path) as archive:
            stored[size] = list(archive.tasks())
            assert set(archive.counts()) == set(FAMILIES)
    assert {size: len(tasks) for size, tasks in stored.items()} == {25: 25, 60: 60}
    assert stored[60][:25] == stored[25]
    assert len({task.task.key for task in stored[60]}) == 60
    assert {task.solve_rate for task in stored[60]} == {0.0, 0.5, 1.0}


def test_the_tasks_that_fill_archives_are_right(sandbox: SandboxExecutor) -> None:
    tasks = list(islice(bench.distinct_tasks(FAMILIES), 60))
    answers = sandbox.run([Job(task.program, task.inputs) for task in tasks])
    assert [tuple(run.value for run in runs) for runs in answers] == [task.outputs for task in tasks]


def test_a_large_archive_is_written_in_several_transactions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_TRANSACTION", 7)
    files = bench.fill((30,), FAMILIES, tmp_path, silent)
    with Archive.read(files[30]) as archive:
        steps = [task.step for task in archive.tasks()]
    assert steps == sorted(steps)
    assert (len(steps), steps[-1]) == (30, 3)


# -- figures -----------------------------------------------------------------------------------------------------------


def test_what_is_beside_the_model_is_all_but_its_phases() -> None:
    alone = [[a_step(1000, 1.0, untrained=100), a_step(3000, 1.0)], [a_step(2000, 2.0), a_step(2000, 2.0)]]
    both = [[a_step(1000, 0.5), a_step(3000, 0.5)], [a_step(2000, 0.5), a_step(2000, 0.5)]]
    found = bench._ranks(2, both, alone)
    assert found.beside == pytest.approx(0.075)
    assert (found.tokens_per_second, found.to_one) == (4000, 3.0)  # 2 and 4 times
    assert bench._ranks(1, alone, alone).untrained == pytest.approx(100 / 4000)
    assert found.seconds["other"] == pytest.approx(0.5 * 0.25)


def test_sizes_are_compared_round_by_round() -> None:
    taken = {10: [[(1.0, 0.1), (9.0, 9.0), (1.0, 0.1)], [(2.0, 0.2)]], 90: [[(1.1, 0.2)], [(2.4, 0.4)]]}
    small, large = bench._sizes(taken)
    assert (small.seconds, small.to_smallest) == (1.5, 1.0)
    assert large.to_smallest == pytest.approx(1.15)
    assert large.beside == pytest.approx(0.3)


def test_targets_take_the_worst_figure() -> None:
    sizes = (Size(10, 1.0, 0.1, 1.0), Size(1000, 0.85, 0.1, 0.85))
    found = {t.name: t for t in result(ranks(1, beside=0.06), ranks(2, untrained=0.3, to_one=1.7), sizes=sizes).targets}
    assert {name: target.met for name, target in found.items()} == {
        "beside the model": False,
        "tokens not trained on": False,
        "rollouts of two ranks to one": True,
        "a step, difference up to 1,000 tasks": False,
    }
    assert found["a step, difference up to 1,000 tasks"].measured == pytest.approx(15)


def test_a_single_core_has_no_two_ranks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert str(result(ranks(1)).targets[2]) == ">= 1.6x not measured"
    monkeypatch.setattr(bench.os, "sched_getaffinity", lambda process: {0})
    monkeypatch.setattr(bench, "_steps_of_a_run", lambda plan, processes, folder: [a_step(1000, 1.0)])
    assert [found.processes for found in bench.measure_ranks(TINY, tmp_path, silent)] == [1]


def test_the_tables_mark_every_target_and_json_holds_everything() -> None:
    found = result()
    console = Console(width=100, file=io.StringIO())
    with console.capture() as capture:
        console.print(found.table())
    assert all(str(target) in capture.get() for target in found.targets)
    assert all(word in capture.get() for word in ("propose", "other", "2 processes", "9,000 tokens/s"))
    again = json.loads(json.dumps(found.as_dict()))
    assert {"ranks", "sizes", "plan", "targets", "cores"} <= again.keys()
    assert [target["met"] for target in again["targets"]] == [True] * 4


# -- the real thing ----------------------------------------------------------------------------------------------------


def test_steps_are_played_on_each_archive(tmp_path: Path) -> None:
    sizes = bench.measure_sizes(TINY, tmp_path, silent)
    assert [size.tasks for size in sizes] == [30, 60]
    assert all(0 < size.beside < size.seconds for size in sizes)
    for size in sizes:
        with Archive.read(tmp_path / f"archive-{size.tasks}.sqlite") as archive:
            assert archive.last_step == 60 // bench._A_STEP + 2 * TINY.turns
            assert any(task.attempts == 2 for task in archive.tasks())


@pytest.mark.slow
def test_a_run_that_fails_is_told_of(tmp_path: Path) -> None:
    plan = Plan(steps=2, settings=("model=/nowhere.at/all",))
    with pytest.raises(SelfPlayError, match=r"a run to be measured ended with exit code 1: .*nowhere"):
        bench._steps_of_a_run(plan, 1, tmp_path / "run")


@pytest.mark.slow
def test_a_step_is_measured_by_the_command_line_s_own_runs() -> None:
    began = time.monotonic()
    found = bench.bench_step(TINY)
    took = time.monotonic() - began
    assert [r.processes for r in found.ranks] == ([1, 2] if found.cores > 1 else [1])
    for measured in found.ranks:
        assert 0 < measured.beside < 1
        assert measured.seconds["update"] > 0 < measured.tokens_per_second
        assert measured.seconds["step"] < took
    assert all(target.met is not None for target in found.targets if found.cores > 1)
