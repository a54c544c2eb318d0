"""What the executor costs, as a ratio to running the same programs with nothing around them.

Processor time of the whole process tree, in interleaved rounds, medians: clock time on a shared machine measures the
neighbours. Every rival does the same work, written by the templates below.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from rich.table import Table

from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.types import Job

# A small program each, `{n}` a number from 2 to 9, and what to call it with.
_TEMPLATES: tuple[tuple[str, str], ...] = (
    ("def f(xs):\n    total = 0\n    for i, x in enumerate(xs):\n        total += x * (i % {n} + 1)\n    return total",
     "[{i}, 2, 3, 5, 8, 13]"),
    ("def f(text):\n    words = text.split()\n"
     "    return ' '.join(w[::-1] if len(w) > {n} else w.upper() for w in words)",
     "'the quick brown fox {i} jumps'"),
    ("def f(n):\n    a, b = 0, 1\n    out = []\n    while len(out) < n + {n}:\n        out.append(a)\n"
     "        a, b = b, a + b\n    return out", "{i}"),
    ("def f(items):\n    counts = {{}}\n    for item in items:\n        counts[item] = counts.get(item, 0) + {n}\n"
     "    return sorted(counts.items())", "['a', 'b', 'a', 'c', 'b{i}']"),
    ("import re\n\ndef f(text):\n    return [int(d) * {n} for d in re.findall(r'[0-9]+', text)]", "'a1b22c333 {i}'"),
    ("def f(rows):\n    return [[x * {n} for x in column] for column in zip(*rows)]", "[[1, 2, {i}], [4, 5, 6]]"),
    ("class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n"
     "        self.items.append(item)\n        return self\n\ndef f(n):\n    stack = Stack()\n"
     "    for i in range(n + {n}):\n        stack.push(i * i)\n    return stack.items[::-1]", "{i}"),
    ("from collections import Counter\n\ndef f(text):\n    return dict(Counter(text).most_common({n}))",
     "'mississippi{i}'"),
    ("def f(n):\n    def walk(k):\n        return 1 if k < 2 else walk(k - 1) + walk(k - 2)\n"
     "    return walk(n % 5 + {n} // 2)", "{i}"),
    ("def f(xs, k):\n    seen = set()\n    for x in xs:\n        if (x + k) % {n} == 0:\n            seen.add(x)\n"
     "    return seen", "[3, 1, 4, 1, 5, 9, 2, 6], {i}"),
    ("import itertools\n\ndef f(xs):\n    return sum(a * b % {n} for a, b in itertools.combinations(xs, 2))",
     "[1, 2, 3, {i}]"),
    ("def f(n):\n    if n > {n}:\n        raise ValueError(f'too large: {{n}}')\n"
     "    return {{'n': n, 'half': n / 2}}", "{i}"),
)  # fmt: skip


def programs(count: int, inputs: int, seed: int = 0) -> list[Job]:
    """Return ``count`` different small programs with ``inputs`` inputs each; the seed fixes them."""
    rng = random.Random(seed)
    jobs = []
    for number in range(count):
        program, arguments = _TEMPLATES[number % len(_TEMPLATES)]
        text = program.format(n=rng.randint(2, 9)) + f"\n# {number}\n"
        texts = tuple(arguments.replace("{i}", str(rng.randint(1, 12))) for _ in range(inputs))
        jobs.append(Job(text, texts, policy="plain"))
    return jobs


@dataclass(frozen=True)
class Row:
    """One rival's processor time for a run, in microseconds, and its ratios.

    Attributes:
        name: The rival.
        microseconds: Median over the rounds of the processor time a run.
        to_in_process: How many times the cost of running the program with nothing around it.
        below_fresh_python: How many times cheaper than a fresh ``python -I`` a run.
        spread: Lowest and highest round, in microseconds.
    """

    name: str
    microseconds: float
    to_in_process: float
    below_fresh_python: float
    spread: tuple[float, float]


@dataclass(frozen=True)
class BenchResult:
    """What `bench_executor` measured, and where."""

    rows: tuple[Row, ...]
    rounds: int
    tier: str
    python: str = field(default_factory=lambda: sys.version.split()[0])
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for ``--json``."""
        return asdict(self)

    def table(self) -> Table:
        """Return the table for people."""
        table = Table(title=f"processor time a run, medians of {self.rounds} rounds, tier {self.tier}")
        table.add_column("design")
        for heading in ("microseconds", "x in-process", "below python -I"):
            table.add_column(heading, justify="right")
        for row in self.rows:
            cells = (f"{row.microseconds:.0f}", f"{row.to_in_process:.1f}", f"{row.below_fresh_python:.1f}")
            table.add_row(row.name, *cells)
        return table


def bench_executor(rounds: int = 7, count: int = 240) -> BenchResult:
    """Measure the sandbox against in-process execution, a fresh ``python -I`` a run, and pebble if installed."""
    single, many = programs(count, 1), programs(count // 4, 10)
    # The import alone sends it to a server that holds all modules, whose children cost more.
    full = [replace(job, program=f"import json\n{job.program!s}") for job in single]
    with contextlib.ExitStack() as stack:
        executor = stack.enter_context(SandboxExecutor(workers=1, cache_bytes=0))
        forking = stack.enter_context(SandboxExecutor(workers=1, cache_bytes=0, keep_children=False))
        rivals: list[tuple[str, Callable[[Sequence[Job]], object], Sequence[Job], Callable[[], float]]] = [
            ("in-process", _run_in_process, single, _own_seconds),
            ("python -I, one a run", _run_fresh, single[: max(6, count // 20)], _children_seconds),
        ]
        for title, sandbox, given in (
            ("sandbox, 1 input a program", executor, single),
            ("the same, full server", executor, full),
            ("the same, a fork a program", forking, single),
            ("sandbox, 10 inputs a program", executor, many),
        ):
            rivals.append((title, sandbox.run, given, partial(_sandbox_seconds, sandbox)))
        pebble = _pebble(stack)
        if pebble is not None:
            rivals.append(("pebble pool, no walls", pebble[0], single, pebble[1]))
        samples: dict[str, list[float]] = {name: [] for name, *_ in rivals}
        for turn in range(rounds + 1):
            for name, run, jobs, clock in rivals:
                seconds = _cost(run, jobs, clock)
                if turn:  # the first round warms up
                    samples[name].append(1e6 * seconds / sum(len(job.inputs) for job in jobs))
        tier = str(executor.tier)
    medians = {name: statistics.median(values) for name, values in samples.items()}
    bare, fresh = medians["in-process"], medians["python -I, one a run"]
    rows = tuple(
        Row(name, cost, cost / bare, fresh / cost, (min(samples[name]), max(samples[name])))
        for name, cost in medians.items()
    )
    return BenchResult(rows, rounds, tier)


def _cost(run: Callable[[Sequence[Job]], object], jobs: Sequence[Job], clock: Callable[[], float]) -> float:
    before = clock()
    run(jobs)
    return clock() - before


def _own_seconds() -> float:
    return time.process_time()


def _sandbox_seconds(executor: SandboxExecutor) -> float:
    return _own_seconds() + executor.cpu_seconds()


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime + time.process_time()


def evaluate(program: str, arguments: str) -> str:
    """Run one of our own programs here, with nothing around it: the floor that no sandbox can pass."""
    namespace: dict[str, Any] = {}
    try:
        exec(compile(program, "<program>", "exec", 0, True), namespace)
        values = eval(compile(f"({arguments}\n,)", "<input>", "eval", 0, True), {})  # noqa: S307
        return repr(namespace["f"](*values))
    except ValueError as error:
        return repr(error)


def _run_in_process(jobs: Sequence[Job]) -> None:
    for job in jobs:
        for arguments in job.inputs:
            evaluate(str(job.program), arguments)


_FRESH = "import sys\nn = {}\nexec(sys.argv[1], n)\nprint(repr(n['f'](*eval('(' + sys.argv[2] + ',)'))))"


def _run_fresh(jobs: Sequence[Job]) -> None:
    for job in jobs:
        subprocess.run(
            [sys.executable, "-I", "-c", _FRESH, str(job.program), job.inputs[0]], capture_output=True, check=False
        )


def _pebble(stack: contextlib.ExitStack) -> tuple[Callable[[Sequence[Job]], None], Callable[[], float]] | None:
    try:
        from pebble import ProcessPool
    except ImportError:
        return None
    import multiprocessing

    pool = stack.enter_context(ProcessPool(max_workers=1, context=multiprocessing.get_context("forkserver")))
    worker: int = pool.schedule(os.getpid).result()

    def run(jobs: Sequence[Job]) -> None:
        for job in jobs:
            pool.schedule(evaluate, args=(job.program, job.inputs[0]), timeout=5.0).result()

    # The worker's processor-time clock, as pthread_getcpuclockid makes it.
    return run, lambda: _own_seconds() + time.clock_gettime((~worker << 3) | 2)
