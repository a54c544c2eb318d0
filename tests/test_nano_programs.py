"""The nano policy's programs: values agree with the sandbox, and the hold-out never meets pretraining."""

from __future__ import annotations

import json
import random
from importlib import resources
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_gym import literals
from selfplay_gym.gate import Candidate, Gate
from selfplay_gym.protocols import Executor
from selfplay_gym.referee import judge_answers
from selfplay_gym.registry import make_family
from selfplay_gym.tasks import nano, nano_programs
from selfplay_gym.tasks.nano_programs import OPERATIONS, Program, examples
from selfplay_gym.types import Job, Proposal, Status, Task

LEVELS = (nano.EASY, nano.HARDER)


def tasks_of(level: nano.Level) -> list[Task]:
    text = (resources.files(nano.__package__) / "data" / f"nano_{level.name}.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    return [
        Task(row["family"], row["program"], tuple(row["inputs"]), tuple(row["outputs"]), row["message"]) for row in rows
    ]


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_every_row_of_the_hold_out_agrees_with_the_sandbox(sandbox: Executor, level: nano.Level) -> None:
    tasks = tasks_of(level)
    assert len(tasks) == 3 * nano.PER_FAMILY
    results = sandbox.run([Job(task.program, task.inputs) for task in tasks])
    for task, runs in zip(tasks, results, strict=True):
        assert tuple(run.value for run in runs) == task.outputs, task


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_every_problem_of_the_hold_out_can_be_solved(sandbox: Executor, level: nano.Level) -> None:
    tasks = tasks_of(level)
    answers = [{"deduction": t.outputs[0], "abduction": t.inputs[0], "induction": t.program}[t.family] for t in tasks]
    completions = [f"</think><answer>{answer}</answer>" for answer in answers]
    families = {name: make_family(name, style="compact") for name in nano.FAMILIES}
    verdicts = judge_answers([families[task.family] for task in tasks], tasks, completions, sandbox)
    assert [task for task, verdict in zip(tasks, verdicts, strict=True) if verdict.score != 1.0] == []


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_the_shipped_hold_out_is_what_its_seed_makes(level: nano.Level) -> None:
    text = (resources.files(nano.__package__) / "data" / f"nano_{level.name}.jsonl").read_text()
    assert nano.holdout(level) == text


def test_no_program_of_the_hold_out_occurs_twice_and_all_are_held_out() -> None:
    held_out = [task.program for level in LEVELS for task in tasks_of(level)]
    assert len(set(held_out)) == len(held_out)
    for level in LEVELS:
        assert {len(task.program.splitlines()) - 2 for task in tasks_of(level)} == set(level.lines)


def test_pretraining_never_meets_the_hold_out_whatever_the_seed() -> None:
    held_out = {task.program for level in LEVELS for task in tasks_of(level)}
    seen = {
        example.program.source
        for seed in range(60)
        for example in islice(examples((1, 2), random.Random(seed), held_out=False), 40)
    }
    assert len(seen) > 500
    assert not seen & held_out


@given(st.integers(), st.integers(1, 5))
def test_a_program_is_held_out_or_not_by_its_text_alone(seed: int, lines: int) -> None:
    program = nano_programs.random_program(lines, random.Random(seed))
    same = Program(program.steps)
    assert same.held_out is program.held_out
    assert same.source == program.source


def test_about_one_program_in_four_is_held_out() -> None:
    rng = random.Random(3)
    share = sum(nano_programs.random_program(3, rng).held_out for _ in range(4000)) / 4000
    assert abs(share - 1 / 4) < 0.02


def test_traces_agree_with_real_execution_line_by_line(sandbox: Executor) -> None:
    found = [
        example
        for held_out in (False, True)
        for example in islice(examples((1, 2, 3, 4, 5), random.Random(11), held_out=held_out), 60)
    ]
    jobs, expected = [], []
    for example in found:
        texts = tuple(literals.encode(value) for value in example.inputs)
        for stop in range(1, len(example.program.steps) + 1):
            jobs.append(Job(Program(example.program.steps[:stop]).source, texts))
            expected.append(tuple(literals.encode(trace[stop - 1]) for trace in example.traces))
    results = sandbox.run(jobs)
    for job, runs, values in zip(jobs, results, expected, strict=True):
        assert tuple(run.value for run in runs) == values, job.program


def test_every_operation_with_every_constant_does_what_its_text_says(sandbox: Executor) -> None:
    rng = random.Random(2)
    programs = [Program(((op, k),)) for op in OPERATIONS for k in op.constants or (None,)]
    values = {kind: [nano_programs.random_value(kind, rng) for _ in range(12)] for kind in (int, list, str)}
    values[list] += [[], [5]]
    values[str] += ["", "a", "12"]
    jobs = [Job(p.source, tuple(literals.encode(value) for value in values[p.takes])) for p in programs]
    for program, job, runs in zip(programs, jobs, sandbox.run(jobs), strict=True):
        for value, run in zip(values[program.takes], runs, strict=True):
            trace = program.trace(value)
            if trace is not None:
                assert run.value == literals.encode(trace[-1]), (job.program, value)
            elif run.status is Status.OK:
                assert run.value is not None
                assert not nano_programs._is_small(literals.parse(run.value))  # type: ignore[arg-type]


def test_consecutive_steps_fit_in_type() -> None:
    rng = random.Random(5)
    for _ in range(300):
        steps = nano_programs.random_program(4, rng).steps
        assert all(before.gives is after.takes for (before, _), (after, _) in pairwise(steps))


def test_examples_are_the_same_for_the_same_seed() -> None:
    one, other = (list(islice(examples((1, 2), random.Random(9), held_out=False), 20)) for _ in range(2))
    assert one == other


def test_examples_have_distinct_inputs_and_outputs_that_depend_on_them() -> None:
    for example in islice(examples((1, 2, 3), random.Random(4), held_out=False), 100):
        task = example.task("induction")
        assert len(set(task.inputs)) == nano_programs.PAIRS
        assert len(set(task.outputs)) > 1
        assert task.message == example.program.message
        for family in ("deduction", "abduction"):
            single = example.task(family)
            assert (single.inputs, single.outputs, single.message) == (task.inputs[:1], task.outputs[:1], "")


def test_the_gate_admits_what_pretraining_teaches_to_propose(sandbox: Executor) -> None:
    found = list(islice(examples((1, 2), random.Random(8), held_out=False), 40))
    tasks = [example.task("induction") for example in found]
    gate = Gate(sandbox)
    outcomes = gate.judge(
        [Candidate("induction", Proposal(t.program, t.inputs, t.message), lot=n) for n, t in enumerate(tasks)]
    )
    admitted = [outcome for outcome in outcomes if isinstance(outcome, Task)]
    assert len(admitted) >= 34  # the others judge by a constant
    assert all(outcome.outputs in [task.outputs for task in tasks] for outcome in admitted)
