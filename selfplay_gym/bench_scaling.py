"""How the executor behaves as it grows: cores, jobs a call, time-outs; how fast it starts and how much it holds.

Ratios within one run again. Clock time appears only where it is what a caller waits for.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from selfplay_gym.bench_costs import forget_literals, run_in, seconds_of, timed
from selfplay_gym.bench_programs import programs
from selfplay_gym.errors import ExecutorError
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.types import Execution, Job, Limits, Status

Say = Callable[[str], None]

# --- cores ------------------------------------------------------------------------------------------------------------

ONE_CORE, ONE_WORKER, TWO_CORES = "one worker, one core", "one worker, any core", "two workers, two cores"


@dataclass(frozen=True)
class Throughput:
    """Programs a second of clock time, of one arrangement.

    Attributes:
        name: The arrangement.
        programs_per_second: Median over the rounds.
        to_one_core: How many times what one core does, this process included.
    """

    name: str
    programs_per_second: float
    to_one_core: float


def measure_throughput(rounds: int, count: int, say: Say) -> tuple[Throughput, ...]:
    """Run ``count`` programs a call on one and on two cores, by turns; nothing on a machine with a single core."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return ()
    arrangements = {ONE_CORE: (1, set(cores[:1])), ONE_WORKER: (1, set(cores)), TWO_CORES: (2, set(cores[:2]))}
    rates: defaultdict[str, list[float]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        executors = {}
        for name, (workers, where) in arrangements.items():
            with _on(where):  # servers stay on the cores that they were started on
                executors[name] = stack.enter_context(SandboxExecutor(workers, cache_bytes=0))
        for turn in range(rounds + 1):
            say(f"throughput, round {turn} of {rounds}" if turn else "throughput, warming up")
            jobs = programs(count, 1, seed=turn)
            for name, (_, where) in arrangements.items():
                forget_literals()
                with _on(where):
                    seconds, _ = timed(run_in(executors[name]), time.monotonic, jobs)
                if turn:
                    rates[name].append(count / seconds)
    return tuple(
        Throughput(name, statistics.median(found), _median_ratio(found, rates[ONE_CORE]))
        for name, found in rates.items()
    )


@contextlib.contextmanager
def _on(cores: set[int]) -> Iterator[None]:
    """Keep this thread, and the processes it starts, on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _median_ratio(values: Sequence[float], bases: Sequence[float]) -> float:
    return statistics.median(value / base for value, base in zip(values, bases, strict=True))


# --- jobs a call ------------------------------------------------------------------------------------------------------

_BASE_JOBS = 1000  # the size that the others are compared to; smaller ones are called more often to make up for it


@dataclass(frozen=True)
class Size:
    """What a job costs in calls of one size.

    Attributes:
        jobs: A call.
        microseconds: Median over the rounds of the processor time a job.
        to_thousand: How many times what it costs in calls of a thousand jobs, or of the size next to that.
        trainer_peak_mb: Most memory that this process held during a call, jobs and answers included.
        server_peak_mb: The same of the largest process of the sandbox, from its start.
    """

    jobs: int
    microseconds: float
    to_thousand: float
    trainer_peak_mb: float
    server_peak_mb: float


def measure_sizes(rounds: int, sizes: Sequence[int], say: Say) -> tuple[Size, ...]:
    """Measure calls of each size by turns; sizes over ten thousand once."""
    costs: defaultdict[int, list[float]] = defaultdict(list)
    peaks: dict[int, tuple[float, float]] = {}
    started_before = set(_descendants())
    with SandboxExecutor(1, cache_bytes=0) as executor:
        timed(run_in(executor), seconds_of(executor), programs(64, 1))
        for turn in range(rounds):
            for size in sorted(sizes):
                if turn and size > 10 * _BASE_JOBS:
                    continue
                say(f"{size} jobs a call, round {turn + 1} of {rounds}")
                costs[size].append(_cost_a_job(executor, size, seed=turn))
                if not turn:  # before a larger call has left its mark
                    ours = [_status_mb(pid, "VmHWM") for pid in _descendants().keys() - started_before]
                    peaks[size] = (_status_mb(os.getpid(), "VmHWM"), max(ours))
    base = costs[min(sizes, key=lambda size: abs(size - _BASE_JOBS))]
    medians = {size: statistics.median(found) for size, found in costs.items()}
    return tuple(Size(size, cost, cost / statistics.median(base), *peaks[size]) for size, cost in medians.items())


def _cost_a_job(executor: SandboxExecutor, size: int, seed: int) -> float:
    calls = max(1, _BASE_JOBS // size)
    jobs = programs(size * calls, 1, seed)
    forget_literals()
    _restart_peak()
    run = run_in(executor)

    def call_by_call(jobs: Sequence[Job]) -> Sequence[str | Execution]:
        return [answer for n in range(calls) for answer in run(jobs[size * n : size * (n + 1)])]

    return 1e6 * timed(call_by_call, seconds_of(executor), jobs)[0] / len(jobs)


def _restart_peak() -> None:
    """Have the kernel count this process's peak from now on; where it does not, the peak is that of its whole life."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


# --- time-outs --------------------------------------------------------------------------------------------------------

SOFT, HARD, IN_COMPANY = "a loop", "long operation in C", "a loop among 63 others"
# Between two steps of the interpreter its timer can end a program; `sum` over a range takes none, for minutes.
_ENDLESS: Final = {
    SOFT: "def f(n):\n    while True:\n        n += 1",
    HARD: "def f(n):\n    return sum(range(10**10 + n))",
    IN_COMPANY: "def f(n):\n    while True:\n        n += 1",
}


@dataclass(frozen=True)
class Overrun:
    """What a program that does not end costs beyond its budget.

    Attributes:
        kind: Of program.
        budget_seconds: Of processor time.
        processor_beyond: Processor time over the budget, as a share of it: median.
        clock_beyond: The same of clock time.
    """

    kind: str
    budget_seconds: float
    processor_beyond: float
    clock_beyond: float


def measure_overruns(rounds: int, budgets: Sequence[float], say: Say) -> tuple[Overrun, ...]:
    """Measure programs that do not end, each alone in its call and one among others."""
    samples: defaultdict[tuple[str, float], list[tuple[float, float]]] = defaultdict(list)
    with SandboxExecutor(1, cache_bytes=0) as executor:
        for turn in range(rounds + 1):
            say(f"time-outs, round {turn} of {rounds}" if turn else "time-outs, warming up")
            for budget in budgets if turn else budgets[:1]:
                for number, kind in enumerate(_ENDLESS):
                    # A program that overran is remembered: each has a number.
                    sample = _overrun(executor, kind, budget, seed=turn * len(_ENDLESS) + number)
                    if turn:
                        samples[kind, budget].append(sample)
    return tuple(
        Overrun(*key, statistics.median(cpu for cpu, _ in found), statistics.median(wall for _, wall in found))
        for key, found in samples.items()
    )


def _overrun(executor: SandboxExecutor, kind: str, budget: float, seed: int) -> tuple[float, float]:
    """Return the shares of the budget by which processor time and clock time of one time-out are over it."""
    limits = Limits(cpu_seconds=budget, wall_seconds=10 * budget)
    endless = Job(f"{_ENDLESS[kind]}\n# {seed}", ("0",), limits=limits, policy="plain")
    company = programs(63, 1, seed) if kind == IN_COMPANY else []
    others = _both_clocks(executor, company)[:2] if company else (0.0, 0.0)
    *both, answers = _both_clocks(executor, [*company, endless])
    if answers[-1].status is not Status.TIMEOUT:
        raise ExecutorError(f"{kind} was to run into its limit of {budget} s, and ended as {answers[-1].status}")
    processor, clock = (used - rest for used, rest in zip(both, others, strict=True))
    return processor / budget - 1, clock / budget - 1


def _both_clocks(executor: SandboxExecutor, jobs: Sequence[Job]) -> tuple[float, float, list[Execution]]:
    clock = seconds_of(executor)
    processor, began = clock(), time.monotonic()
    answers = [execution for answer in executor.run(jobs) for execution in answer]
    took = time.monotonic() - began
    return clock() - processor, took, answers


# --- start and memory -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Footprint:
    """What an executor of one worker takes.

    Attributes:
        start_milliseconds: Clock time from nothing to its first answer, median.
        resident_mb: Memory resident in each process after 500 programs, by its name; pages that processes share count
            in each.
    """

    start_milliseconds: float
    resident_mb: dict[str, float]


def measure_footprint(rounds: int, say: Say) -> Footprint:
    """Start an executor as often as there are rounds, and once to warm up; weigh the processes of the last."""
    first, many = programs(1, 1), programs(500, 1)
    full = [replace(job, program=f"import json\n{job.program!s}") for job in many]
    times, resident = [], {}
    for turn in range(rounds + 1):
        say(f"start, round {turn} of {rounds}" if turn else "start, warming up")
        before = set(_descendants())
        began = time.monotonic()
        with SandboxExecutor(1, cache_bytes=0) as executor:
            executor.run(first)
            if turn:
                times.append(time.monotonic() - began)
            if turn == rounds:
                executor.run(many)  # each writes to other pages, of which the server then holds a copy
                resident = _resident("light", before)
                before = set(_descendants())
                executor.run(full)
                resident |= _resident("full", before)
    return Footprint(1000 * statistics.median(times), resident)


def _resident(size: str, before: set[int]) -> dict[str, float]:
    """Return the memory of the processes that came since, the largest of each part."""
    parents = {pid: parent for pid, parent in _descendants().items() if pid not in before}
    found: dict[str, float] = {}
    for pid, parent in parents.items():
        depth = 0 if parent not in parents else 1 if parents[parent] not in parents else 2
        name = f"{size} {('keeper', 'server', 'child')[depth]}"
        found[name] = max(found.get(name, 0.0), _status_mb(pid, "VmRSS"))
    return found


def _descendants() -> dict[int, int]:
    """Return the processes below this one, each with its parent."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found: dict[int, int] = {}
    todo = [os.getpid()]
    for above in todo:  # grows while it is walked
        below = [pid for pid, parent in parents.items() if parent == above]
        found |= dict.fromkeys(below, above)
        todo += below
    return found


def _status_mb(pid: int, name: str) -> float:
    """Return a size from a process's status file, in MB; 0.0 if it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0
