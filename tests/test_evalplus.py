"""Our verdicts beside evalplus' own, row by row on the same programs, and what both cost.

These run where SELFPLAY_GYM_EVALPLUS names the Python of an environment that has evalplus, and SELFPLAY_GYM_DATA the
data; docs/evaluation.md has the commands. The programs are every reference, and each of them changed in the ways of
`tests.wrong_programs`.
"""

import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfplay_gym import suites
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.grading import grade
from selfplay_gym.suites import Source, Suite
from tests.wrong_programs import LOOP, changed, corpus

PYTHON = os.environ.get("SELFPLAY_GYM_EVALPLUS", "")
DATA = Path(os.environ.get(suites.DATA_VARIABLE, ""))
ROWS = int(os.environ.get("SELFPLAY_GYM_EVALPLUS_ROWS", "1000"))
SECONDS = 8.0  # of the clock for each call that evalplus makes: on a busy machine its own second is too short
FILES = {"humaneval": "humanevalplus_dev.jsonl", "mbpp": "mbppplus_dev.jsonl"}
FIELDS = ("id", "prompt", "entry_point", "canonical_solution", "base_input", "plus_input", "atol")

DIFFERENCES = {
    # The original tests compare both sides as tuples; EvalPlus compares with the list that its reference returns.
    ("humaneval", "HumanEval/37", "another type"),
}
"""Where the verdicts differ, and why."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(4 * 3600),
    pytest.mark.skipif(not PYTHON, reason="set SELFPLAY_GYM_EVALPLUS to a Python that has evalplus"),
    pytest.mark.skipif(
        not os.environ.get(suites.DATA_VARIABLE)
        or not all((DATA / f"{name}").is_file() or (DATA / f"{name}.gz").is_file() for name in FILES.values()),
        reason=f"set {suites.DATA_VARIABLE} to a folder that holds the data of EvalPlus",
    ),
]

Sample = tuple[str, str, str]
"""Id of a row, name of the change, program."""


def rows_of(dataset: str) -> list[dict[str, Any]]:
    return [dict(row.fields) for row in suites.open_table(DATA, FILES[dataset])[0].rows][:ROWS]


def reference(dataset: str, row: dict[str, Any]) -> str:
    head = row["prompt"] if dataset == "humaneval" else ""
    return f"{head}{row['canonical_solution']}"


def judged_by_evalplus(
    dataset: str, rows: Sequence[dict[str, Any]], samples: Sequence[Sample], base_only: bool
) -> tuple[list[float], float]:
    """Return evalplus' verdicts, and its processor time."""
    request = {
        "dataset": dataset,
        "problems": [{field: row[field] for field in FIELDS} for row in rows],
        "samples": [(key, program) for key, _, program in samples],
        "base_only": base_only,
        "workers": 2,
        "seconds": SECONDS,
    }
    script = Path(__file__).with_name("evalplus_judge.py")
    done = subprocess.run([PYTHON, str(script)], input=json.dumps(request).encode(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    answer = json.loads(done.stdout)
    return [float(found[not base_only]) for found in answer["verdicts"]], answer["cpu_seconds"]


def judged_by_us(executor: SandboxExecutor, suite: Suite, samples: Sequence[Sample]) -> list[float | None]:
    """Return our verdicts, in the order of the samples."""
    completions: dict[str, list[str]] = {}
    for key, _, program in samples:
        completions.setdefault(key, []).append(program)
    asked = replace(suite, problems=tuple(p for p in suite.problems if p.id in completions))
    scores = {row.id: iter(row.scores) for row in grade(asked, completions, executor).rows}
    return [next(scores[key]) for key, _, _ in samples]


@pytest.mark.parametrize(
    ("name", "dataset"), [("humaneval", "humaneval"), ("humaneval+", "humaneval"), ("mbpp+", "mbpp")]
)
def test_verdicts_are_those_of_evalplus(name: str, dataset: str) -> None:
    rows = rows_of(dataset)
    samples = [(r["id"], *each) for r in rows for each in corpus(reference(dataset, r), r["entry_point"])]
    samples += [(r["id"], "a loop", changed(reference(dataset, r), r["entry_point"], LOOP)) for r in rows[::20]]
    theirs, _ = judged_by_evalplus(dataset, rows, samples, base_only="+" not in name)
    with SandboxExecutor(workers=2) as executor:
        (suite,) = suites.load([name], Source(executor, DATA))
        ours = judged_by_us(executor, suite, samples)
    found = zip(samples, theirs, ours, strict=True)
    differing = {(name, key, change) for (key, change, _), one, other in found if one != other}
    assert differing - DIFFERENCES == set()


def test_base_tests_cost_at_most_a_fifth_of_what_they_cost_evalplus() -> None:
    rows = rows_of("humaneval")
    usual = {"nothing", "one off", "another type", "nearly", "None", "printed", "an exception"}
    programs = [(r["id"], reference("humaneval", r), r["entry_point"]) for r in rows]
    samples = [(key, *each) for key, text, entry in programs for each in corpus(text, entry) if each[0] in usual]
    costs = []
    for _ in range(3):  # by turns, since the machine is not the same from minute to minute
        _, theirs = judged_by_evalplus("humaneval", rows, samples, base_only=True)
        began = time.process_time()
        with SandboxExecutor(workers=2, cache_bytes=0) as executor:
            (suite,) = suites.load(["humaneval"], Source(executor, DATA))
            judged_by_us(executor, suite, samples)
            costs.append((theirs, executor.cpu_seconds() + time.process_time() - began))
    theirs, ours = (sum(part) for part in zip(*costs, strict=True))
    told = f"evalplus {theirs:.1f} s, this {ours:.1f} s of processor time, {theirs / ours:.1f} to 1"
    print(f"{len(costs) * len(samples)} programs: {told}")
    assert theirs / ours >= 5
