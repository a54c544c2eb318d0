"""What the sandbox costs, as a ratio to running the same programs with nothing around them.

Processor time of the whole process tree, in interleaved rounds, medians: clock time on a shared machine measures the
neighbours. Every round has programs of its own, the same for all.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from selfplay_gym.bench_programs import agreement, programs
from selfplay_gym.bench_rivals import Clock, Rival, Runner, own_seconds, rivals, run_in_process
from selfplay_gym.executors import connection, tickets
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.types import Execution, Job

IN_PROCESS, FRESH = "in-process", "python -I a run"
TOGETHER, FULL_SERVER = "independent programs, batch of 64", "the same, full server"
A_PROGRAM, A_RUN, A_FORK = "a child a program", "a child a run", "a fork a program"
MANY_INPUTS = "10 inputs, own child"
VALIDATED, VALIDATED_APART = "validated proposal", "validated, a child a program"


@dataclass(frozen=True)
class Row:
    """The processor time of one way to run programs.

    Attributes:
        name: Which way.
        ours: Whether it is an arrangement of the sandbox.
        microseconds: Median over the rounds of the processor time a run; where proposals are validated, a proposal.
        to_in_process: How many times the cost of one run of the same programs with nothing around them: median over
            the rounds.
        below_fresh_python: How many times cheaper than a fresh ``python -I`` a run.
        agreement: Share of the answers that are the same as in-process.
        spread: Lowest and highest round, in microseconds.
    """

    name: str
    ours: bool
    microseconds: float
    to_in_process: float
    below_fresh_python: float
    agreement: float
    spread: tuple[float, float]


@dataclass(frozen=True)
class Costs:
    """The rows, which rivals are missing, and how strongly ours were isolated."""

    rows: tuple[Row, ...]
    missing: tuple[str, ...]
    tier: str


@dataclass(frozen=True)
class _Sample:
    microseconds: float
    floor: float
    agreement: float


def measure_costs(rounds: int, count: int, say: Callable[[str], None]) -> Costs:
    """Run ``count`` programs by every rival and by every arrangement of ours, in as many rounds and one to warm up."""
    samples: defaultdict[str, list[_Sample]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        others, missing = rivals(stack)
        everyone = [("single", rival) for rival in (Rival(IN_PROCESS, run_in_process, own_seconds), *others)]
        ours, tier = _ours(stack)
        for turn in range(rounds + 1):
            say(f"processor time, round {turn} of {rounds}" if turn else "processor time, warming up")
            work = _work(count, seed=turn)
            floors = {kind: _floor(jobs) for kind, jobs in work.items()}
            for kind, rival in everyone + ours:
                sample = _measure(rival, work[kind][: rival.most], *floors[kind])
                if turn:
                    samples[rival.name].append(sample)
    return Costs(_rows(samples, {rival.name for _, rival in ours}), tuple(missing), tier)


def _ours(stack: contextlib.ExitStack) -> tuple[list[tuple[str, Rival]], str]:
    """Return our arrangements, each with the kind of work it gets, and the tier."""
    shared = stack.enter_context(SandboxExecutor(1, cache_bytes=0))
    apart = stack.enter_context(SandboxExecutor(1, cache_bytes=0, child_per="program"))
    strict = stack.enter_context(SandboxExecutor(1, cache_bytes=0, child_per="run"))
    forking = stack.enter_context(SandboxExecutor(1, cache_bytes=0, child_per="program", keep_children=False))
    arrangements = (
        (TOGETHER, shared, "single"),
        (FULL_SERVER, shared, "full"),
        (A_PROGRAM, apart, "single"),
        (A_RUN, strict, "single"),
        (A_FORK, forking, "single"),
        (MANY_INPUTS, apart, "many"),
        (VALIDATED, shared, "checked"),
        (VALIDATED_APART, apart, "checked"),
    )
    found = [(kind, Rival(name, run_in(executor), seconds_of(executor))) for name, executor, kind in arrangements]
    return found, str(shared.tier)


def _work(count: int, seed: int) -> dict[str, list[Job]]:
    """Return the jobs of one round, by kind."""
    single = programs(count, 1, seed)
    return {
        "single": single,
        "many": programs(max(1, count // 4), 10, seed),
        # The import alone sends it to a server that holds all modules, whose children cost more.
        "full": [replace(job, program=f"import json\n{job.program!s}") for job in single],
        "checked": [replace(job, check_determinism=True) for job in single],
    }


def _floor(jobs: Sequence[Job]) -> tuple[float, list[str]]:
    """Return what a run costs with nothing around it, in microseconds, and the answers."""
    answers = run_in_process(jobs)  # untimed: a floor that is cold would flatter all that is measured against it
    seconds, _ = timed(run_in_process, own_seconds, jobs)
    return 1e6 * seconds / len(answers), answers


def _measure(rival: Rival, jobs: Sequence[Job], floor: float, expected: Sequence[str]) -> _Sample:
    forget_literals()
    seconds, answers = timed(rival.run, rival.clock, jobs)
    return _Sample(1e6 * seconds / len(answers), floor, agreement(answers, expected[: len(answers)]))


def _rows(samples: dict[str, list[_Sample]], ours: set[str]) -> tuple[Row, ...]:
    medians = {name: statistics.median(s.microseconds for s in found) for name, found in samples.items()}
    rows = []
    for name, found in samples.items():
        cost = medians[name]
        # Round by round, so that a host that slows down for a while slows both. In-process is a rival like the others,
        # measured apart from the floors: its ratio shows the noise.
        ratio = statistics.median(sample.microseconds / sample.floor for sample in found)
        spread = min(s.microseconds for s in found), max(s.microseconds for s in found)
        agreed = statistics.mean(sample.agreement for sample in found)
        rows.append(Row(name, name in ours, cost, ratio, medians[FRESH] / cost, agreed, spread))
    return tuple(rows)


def timed(run: Runner, clock: Clock, jobs: Sequence[Job]) -> tuple[float, Sequence[str | Execution]]:
    """Return the seconds by ``clock`` that the jobs took, and the answers."""
    gc.collect()  # or whoever comes next would pay for what others left
    before = clock()
    answers = run(jobs)
    return clock() - before, answers


def run_in(executor: SandboxExecutor) -> Runner:
    """Return what runs jobs in an executor, and answers with one execution an input."""
    return lambda jobs: [execution for answer in executor.run(jobs) for execution in answer]


def seconds_of(executor: SandboxExecutor) -> Clock:
    """Return the clock of the processor time of this process, the executor's servers and their children."""
    return partial(_seconds, executor)


def _seconds(executor: SandboxExecutor) -> float:
    return own_seconds() + executor.cpu_seconds()


def forget_literals() -> None:
    """Forget the literals that executors have read: one that runs what another ran before would not read them again."""
    tickets._marshalled.cache_clear()
    connection._is_canonical.cache_clear()
