"""The benchmark of the sandbox: complete at the smallest size. No figure is looked at."""

from __future__ import annotations

import contextlib
import io
import json
import sys

import pytest
from rich.console import Console

from selfplay_gym import bench_costs, bench_scaling
from selfplay_gym.bench import BenchResult, Plan, Target, bench_executor, progress
from selfplay_gym.bench_programs import KINDS, agreement, programs
from selfplay_gym.bench_rivals import rivals, run_in_process, run_text
from selfplay_gym.types import Execution, Status

OURS = [
    "independent programs, batch of 64",
    "the same, full server",
    "a child a program",
    "a child a run",
    "a fork a program",
    "10 inputs, own child",
    "validated proposal",
    "validated, a child a program",
]
RIVALS = [
    "in-process",
    "python -I a run",
    "ProcessPoolExecutor, one worker",
    "pebble, one worker",
    "exec and pickle, one worker",
    "RestrictedPython, in-process",
]


@pytest.fixture(scope="module")
def result() -> BenchResult:
    return bench_executor(Plan(rounds=1, programs=24, stream=64, sizes=(10, 20), budgets=(0.05,)))


@pytest.mark.slow
def test_every_rival_and_every_arrangement_of_ours_is_measured(result: BenchResult) -> None:
    assert [row.name for row in result.costs.rows] == RIVALS + OURS
    assert result.costs.missing == ()
    assert [row.name for row in result.costs.rows if row.ours] == OURS
    assert all(row.microseconds > 0 < row.to_in_process for row in result.costs.rows)


@pytest.mark.slow
def test_our_answers_are_those_of_python(result: BenchResult) -> None:
    shares = {row.name: row.agreement for row in result.costs.rows}
    assert {name: share for name, share in shares.items() if share != 1.0}.keys() == {"RestrictedPython, in-process"}
    assert shares["RestrictedPython, in-process"] > 0.8


@pytest.mark.slow
def test_sizes_time_outs_start_and_memory_are_measured(result: BenchResult) -> None:
    assert [size.jobs for size in result.sizes] == [10, 20]
    assert all(size.trainer_peak_mb > 0 < size.server_peak_mb for size in result.sizes)
    assert [(over.kind, over.budget_seconds) for over in result.overruns] == [
        (kind, 0.05) for kind in (bench_scaling.SOFT, bench_scaling.HARD, bench_scaling.IN_COMPANY)
    ]
    parts = [f"{size} {part}" for size in ("light", "full") for part in ("keeper", "server")]
    assert set(parts) <= result.footprint.resident_mb.keys()
    assert result.footprint.start_milliseconds > 0


@pytest.mark.slow
def test_throughput_is_measured_where_there_are_two_cores(result: BenchResult) -> None:
    names = [bench_scaling.ONE_CORE, bench_scaling.ONE_WORKER, bench_scaling.TWO_CORES]
    assert [rate.name for rate in result.throughput] == (names if result.cores > 1 else [])


def test_a_single_core_has_no_throughput_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_scaling.os, "sched_getaffinity", lambda process: {0})
    assert bench_scaling.measure_throughput(1, 1, print) == ()


@pytest.mark.slow
def test_json_holds_everything_and_comes_back(result: BenchResult) -> None:
    text = json.dumps(result.as_dict())
    again = json.loads(text)
    assert json.dumps(again) == text
    assert {"costs", "throughput", "sizes", "overruns", "footprint", "plan", "targets", "cores"} <= again.keys()
    assert len(again["targets"]) == 10
    assert all(isinstance(target["met"], bool) for target in again["targets"] if target["measured"] is not None)


@pytest.mark.slow
def test_the_tables_mark_every_target(result: BenchResult) -> None:
    console = Console(width=80, file=io.StringIO())
    with console.capture() as capture:
        console.print(result.table())
    shown = capture.get()
    assert all(str(target) in shown for target in result.targets)
    assert all(name in shown for name in RIVALS + OURS)


def test_a_target_is_met_missed_or_open() -> None:
    assert str(Target("cost", 2.2, 2.2, "x")) == "<= 2.2x met"
    assert str(Target("cost", 2.3, 2.2, "x")) == "<= 2.2x missed"
    assert str(Target("cores", 1.7, 1.8, "x", at_least=True)) == ">= 1.8x missed"
    assert str(Target("cores", None, 1.8, "x", at_least=True)) == ">= 1.8x not measured"


def test_without_a_terminal_every_stage_is_a_line() -> None:
    shown = io.StringIO()
    with progress(Console(file=shown, width=20)) as say:
        say("warming up, and 0.5b [of] it")
        say("round 1 of 7")
    assert shown.getvalue() == "warming up, and 0.5b [of] it\nround 1 of 7\n"


def test_a_rival_whose_package_is_missing_is_left_out_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pebble", None)
    with contextlib.ExitStack() as stack:
        found, missing = rivals(stack)
        assert [rival.name for rival in found] == [RIVALS[1], RIVALS[2], RIVALS[5]]
    assert missing == [f"{name}: left out, since pebble is not installed" for name in RIVALS[3:5]]


def test_the_programs_are_fixed_by_their_seed_and_all_different() -> None:
    assert programs(30, 2, seed=1) == programs(30, 2, seed=1) != programs(30, 2, seed=2)
    assert len({job.program for job in programs(3 * KINDS, 1)}) == 3 * KINDS
    assert any(answer.startswith("ValueError: too large") for answer in run_in_process(programs(200, 1)))


def test_answers_agree_as_values() -> None:
    ours = [Execution(Status.OK, "{1, 9}"), Execution(Status.ERROR, None, "KeyError", "3"), Execution(Status.TIMEOUT)]
    assert agreement(ours, ["{9, 1}", "KeyError: 3", "7"]) == 2 / 3
    assert agreement([Execution(Status.OK, "1")], ["True"]) == 0.0


def test_the_scheme_that_evaluates_text_reports_the_last_line_of_a_traceback() -> None:
    assert run_text("def f(x):\n    return x\nrepr(f('a'))", 1.0) == ("'a'", "done")
    assert run_text("def f(x):\n    return 1 / x\nrepr(f(0))", 1.0) == ("", "ZeroDivisionError: division by zero")
    assert run_text("while True: pass\n1", 0.05) == ("", "TimeoutError")


def test_costs_are_the_medians_of_their_rounds() -> None:
    samples = {
        bench_costs.IN_PROCESS: [bench_costs._Sample(cost, 10.0, 1.0) for cost in (9.0, 10.0, 20.0)],
        bench_costs.FRESH: [bench_costs._Sample(1000.0, 10.0, 0.5)],
    }
    first, fresh = bench_costs._rows(samples, {bench_costs.TOGETHER})
    assert (first.microseconds, first.to_in_process, first.below_fresh_python, first.spread) == (10, 1, 100, (9, 20))
    assert (fresh.to_in_process, fresh.agreement) == (100, 0.5)
