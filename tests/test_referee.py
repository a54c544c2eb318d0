"""The referee: prompts, judging in batches, pay, and rows that our own failures must leave untouched."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_gym import rewards
from selfplay_gym.archive import Archive
from selfplay_gym.errors import InvalidConfig
from selfplay_gym.gate import Gate, GateConfig
from selfplay_gym.protocols import Executor
from selfplay_gym.referee import (
    REFERENCES,
    ProposalRequest,
    Referee,
    RewardConfig,
    judge_answers,
    run_distinct,
)
from selfplay_gym.registry import make_family
from selfplay_gym.types import Execution, Job, Limits, NoVerdict, Rejected, Status, Task, Verdict

NAMES = ("deduction", "abduction", "induction")
DOUBLE = "def f(x):\n    return x * 2"
TASKS = {
    "deduction": Task("deduction", DOUBLE, ("4",), ("8",)),
    "abduction": Task("abduction", DOUBLE, ("4",), ("8",)),
    "induction": Task("induction", DOUBLE, ("1", "2", "3", "4"), ("2", "4", "6", "8"), "What grows?"),
}
RIGHT = {"deduction": "8", "abduction": "4", "induction": DOUBLE}
WRONG = {"deduction": "9", "abduction": "5", "induction": "def f(x):\n    return x"}


def framed(answer: str) -> str:
    return f"thought</think><answer>{answer}</answer>"


def triplet(program: str, given: str = "4") -> str:
    return framed(f"```python\n{program}\n```\n```input\n{given}\n```")


def pairs(*inputs: str, message: str = "What grows?") -> str:
    return framed("".join(f"```input\n{given}\n```\n" for given in inputs) + f"```message\n{message}\n```")


def families() -> dict[str, Any]:
    return {
        "deduction": make_family("deduction", style="compact", references=2),
        "abduction": make_family("abduction", style="compact", references=2),
        "induction": make_family("induction", style="compact", pairs=4),
    }


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive(":memory:") as archive:
        yield archive


@pytest.fixture
def referee(sandbox: Executor, archive: Archive) -> Referee:
    return Referee(families(), sandbox, archive)


# -- proposing ---------------------------------------------------------------------------------------------------------


def test_an_empty_archive_is_seeded_once(sandbox: Executor, archive: Archive) -> None:
    Referee(families(), sandbox, archive)
    assert archive.counts() == dict.fromkeys(NAMES, 1)
    Referee(families(), sandbox, archive)
    assert archive.counts() == dict.fromkeys(NAMES, 1)


def test_prompts_are_drawn_for_every_proposing_family_and_only_by_the_seed(referee: Referee) -> None:
    requests = referee.proposal_prompts(3, random.Random(5))
    assert [request.family for request in requests] == [name for name in NAMES for _ in range(3)]
    assert requests == referee.proposal_prompts(3, random.Random(5))
    assert all(request.references for request in requests)


@pytest.mark.parametrize("how", REFERENCES)
def test_references_are_drawn_as_asked_for(how: str, sandbox: Executor, archive: Archive) -> None:
    referee = Referee(families(), sandbox, archive, references=how)
    archive.add_task(TASKS["deduction"], 0)
    shown = [referee.proposal_prompt("deduction", random.Random(seed)).references for seed in range(9)]
    assert [archive.sample(["deduction"], 2, random.Random(seed), referee.references) for seed in range(9)] == [
        list(references) for references in shown
    ]


@pytest.mark.parametrize("how", ["half_solved", "oldest", ""])
def test_a_way_that_may_find_no_references_is_refused(how: str, sandbox: Executor, archive: Archive) -> None:
    with pytest.raises(InvalidConfig, match="way to draw references"):
        Referee(families(), sandbox, archive, references=how)


def test_a_family_that_cannot_propose_is_only_solved(sandbox: Executor, archive: Archive) -> None:
    class SolveOnly:
        name = "exam"

        def solve_prompt(self, task: Task) -> str:
            return "?"

        def check(self, task: Task, answer: str) -> Verdict:
            return Verdict(float(answer == "yes"))

        def judge(self, task: Task, executions: Sequence[Execution]) -> Verdict:
            raise AssertionError

    referee = Referee({**families(), "exam": SolveOnly()}, sandbox, archive)
    assert {request.family for request in referee.proposal_prompts(1, random.Random(0))} == set(NAMES)
    exam = Task("exam", "", ("",), ("",))
    assert [v.score for v in referee.judge_answers([exam, exam], [framed("yes"), framed("no")])] == [1.0, 0.0]


def request_for(referee: Referee, family: str) -> ProposalRequest:
    return referee.proposal_prompt(family, random.Random(0))


@pytest.mark.parametrize("name", ["deduction", "abduction"])
def test_a_seed_task_is_not_new(referee: Referee, name: str) -> None:
    completions = [triplet("def f(y):\n    return y", "'a'"), triplet("def f(x):\n    return x + x", "'a'")]
    outcomes = referee.judge_proposals([request_for(referee, name)] * 2, completions)
    assert [type(outcome) for outcome in outcomes] == [Rejected, Task]
    assert isinstance(outcomes[0], Rejected)
    assert outcomes[0].check == "new"


def test_proposals_are_judged_in_order_with_named_reasons(referee: Referee) -> None:
    asked = [request_for(referee, name) for name in ("deduction", "deduction", "abduction", "induction", "deduction")]
    completions = [triplet(DOUBLE), "no frame", framed("no blocks"), pairs("1", "2", "3", "5"), triplet("import os")]
    outcomes = referee.judge_proposals(asked, completions)
    found = [o.check if isinstance(o, Rejected) else o.family for o in outcomes if not isinstance(o, NoVerdict)]
    assert found == ["deduction", "format", "parse", "induction", "signature"]


def test_what_is_stored_is_known_and_what_is_refused_is_recorded(referee: Referee, archive: Archive) -> None:
    asked = [request_for(referee, "deduction")] * 3
    texts = [triplet(DOUBLE), triplet(DOUBLE.replace("x", "y")), "no frame"]
    outcomes = referee.judge_proposals(asked, texts)
    ids = referee.store(1, asked, outcomes, texts)
    assert [number is None for number in ids] == [False, True, True]
    assert ids[0] is not None
    assert archive.task(ids[0]).task == outcomes[0]
    assert archive.lineage(ids[0]) == sorted(stored.id for stored in asked[0].references)
    assert archive.statistics().rejections == {"format": 1, "new": 1}
    again = referee.judge_proposals(asked[:1], [triplet("def f(x):\n    return x + x", "9")])[0]
    assert isinstance(again, Rejected)
    assert again.check == "new"


def test_an_induction_repeat_is_known_whatever_its_message_and_order(referee: Referee) -> None:
    asked = [request_for(referee, "induction")]
    texts = [pairs("1", "2", "3", "5")]
    outcomes = referee.judge_proposals(asked, texts)
    assert isinstance(outcomes[0], Task)
    referee.store(1, asked, outcomes, texts)
    for again in (
        texts[0],
        pairs("5", "2", "3", "1"),
        pairs("1", "2", "3", "5", message="Which rule?"),
        pairs("1", "2", "3", "9"),
    ):
        outcome = referee.judge_proposals(asked, [again])[0]
        assert isinstance(outcome, Rejected)
        assert outcome.check == "new"


def test_a_known_program_is_known_again_until_half_of_the_inputs_are_new(sandbox: Executor, archive: Archive) -> None:
    referee = Referee(families(), sandbox, archive)
    asked, texts = [request_for(referee, "induction")], [pairs("11", "12", "13", "14")]
    referee.store(1, asked, referee.judge_proposals(asked, texts), texts)
    for again in (referee, Referee(families(), sandbox, archive)):
        outcomes = again.judge_proposals(
            asked * 2, [pairs("11", "12", "13", "15"), pairs("11", "12", "15", "16")], apart=True
        )
        assert [type(outcome) for outcome in outcomes] == [Rejected, Task]


def test_apart_means_as_if_each_came_alone(referee: Referee) -> None:
    asked, texts = [request_for(referee, "deduction")] * 2, [triplet(DOUBLE)] * 2
    assert [type(o) for o in referee.judge_proposals(asked, texts)] == [Task, Rejected]
    assert [type(o) for o in referee.judge_proposals(asked, texts, apart=True)] == [Task, Task]


# -- solving -----------------------------------------------------------------------------------------------------------


def test_answers_of_all_families_are_judged_in_order(referee: Referee) -> None:
    rows = [(TASKS[n], framed(text[n]), score) for n in NAMES for text, score in ((RIGHT, 1.0), (WRONG, 0.0))]
    random.Random(1).shuffle(rows)
    verdicts = referee.judge_answers([row[0] for row in rows], [row[1] for row in rows])
    assert [verdict.score for verdict in verdicts] == [row[2] for row in rows]
    assert referee.judge_answers([], []) == []


def test_a_task_with_as_many_completions_as_tasks_is_demanded(referee: Referee) -> None:
    with pytest.raises(ValueError, match="zip"):
        referee.judge_answers([TASKS["deduction"]], [])


def test_badly_framed_answers_are_told_apart_from_wrong_ones(referee: Referee) -> None:
    verdicts = referee.judge_answers([TASKS["deduction"]] * 2, ["8", framed("9")])
    assert [(v.score, v.well_formed) for v in verdicts] == [(0.0, False), (0.0, True)]


def test_answers_are_judged_under_the_limits_that_admitted_the_task(sandbox: Executor, archive: Archive) -> None:
    wide = Gate(sandbox, GateConfig(limits=Limits(output_bytes=20_000)))
    referee = Referee(families(), sandbox, archive, wide)
    asked = [request_for(referee, "abduction")]
    task = referee.judge_proposals(asked, [triplet("def f(x):\n    return x * 9000", "'a'")])[0]
    assert isinstance(task, Task), task
    assert referee.judge_answers([task], [framed(task.inputs[0])])[0].score == 1.0


def test_equal_answers_share_a_job_and_different_ones_do_not(fake: Callable[..., Any]) -> None:
    executor = fake(lambda program, text: Execution(Status.OK, str(int(text) * 2)))
    answers = ["4", "5", "4", " 4 ", "x=4", "nonsense"]
    verdicts = judge_answers(
        [make_family("abduction")] * 6,
        [TASKS["abduction"]] * 6,
        [framed(a) for a in answers[:4] + answers[5:] * 2],
        executor,
    )
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    assert [[job.inputs for job in batch] for batch in executor.batches] == [[("4",), ("5",)]]


def test_a_wrong_answer_does_not_change_the_verdict_on_another(referee: Referee) -> None:
    program = "import math\n\ndef f(x):\n    if x == 777:\n        math.floor = abs\n    return math.floor(x / 2)"
    task = Task("abduction", program, ("7",), ("3",))
    answers = [framed("777"), framed("7"), framed("777"), framed("6")]
    assert [verdict.score for verdict in referee.judge_answers([task] * 4, answers)] == [0.0, 1.0, 0.0, 1.0]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.sampled_from("123"), max_size=4)), max_size=8))
def test_distinct_jobs_answer_as_if_each_ran_alone(rows: list[tuple[str, list[str]]]) -> None:
    class Echo:
        def run(self, jobs: Sequence[Job]) -> list[tuple[Execution, ...]]:
            assert len(set(jobs)) == len(jobs)
            return [tuple(Execution(Status.OK, f"{job.program!r}{text}") for text in job.inputs) for job in jobs]

    jobs = [Job(program, tuple(inputs)) for program, inputs in rows]
    alone = [tuple(Execution(Status.OK, f"{program!r}{text}") for text in inputs) for program, inputs in rows]
    assert run_distinct(jobs, Echo()) == alone  # type: ignore[arg-type]


# -- three-valued ------------------------------------------------------------------------------------------------------


def breaks_on(*marks: str) -> Callable[[str, str], Execution]:
    """Pretends that we fail on programs or inputs with one of the marks in them; the others double or echo."""

    def answer(program: str, text: str) -> Execution:
        if any(mark in program or mark in text for mark in marks):
            return Execution(Status.NO_VERDICT, message="a server of the sandbox ended")
        return Execution(Status.OK, str(int(text) * 2) if "* 2" in program else text)

    return answer


def test_an_answer_that_we_failed_to_judge_has_no_score_and_no_reward(
    fake: Callable[..., Any], archive: Archive
) -> None:
    rows = [framed("4"), framed("77"), framed("5"), "no frame"]
    referee = Referee(families(), fake(breaks_on("77")), archive)
    verdicts = referee.judge_answers([TASKS["abduction"]] * 4, rows)
    assert [verdict.score for verdict in verdicts] == [1.0, None, 0.0, 0.0]
    assert verdicts[1].reason == "a server of the sandbox ended"
    assert not verdicts[1].passed
    assert [referee.solver_reward(verdict) for verdict in verdicts] == [1.0, None, 0.0, 0.0]
    del rows[1]
    assert referee.judge_answers([TASKS["abduction"]] * 3, rows) == [verdicts[n] for n in (0, 2, 3)]


def test_a_family_is_never_asked_about_a_failure_of_ours(fake: Callable[..., Any]) -> None:
    class Strict:
        name = "strict"

        def solve_prompt(self, task: Task) -> str:
            return ""

        def check(self, task: Task, answer: str) -> Job:
            return Job(DOUBLE, ("1", answer))

        def judge(self, task: Task, executions: Sequence[Execution]) -> Verdict:
            assert Status.NO_VERDICT not in [execution.status for execution in executions]
            return Verdict(1.0)

    task = Task("strict", DOUBLE, ("1",), ("2",))
    verdicts = judge_answers([Strict()] * 2, [task] * 2, [framed("77"), framed("3")], fake(breaks_on("77")))
    assert [verdict.score for verdict in verdicts] == [None, 1.0]


def test_a_proposal_that_we_failed_to_judge_is_neither_paid_nor_stored(
    fake: Callable[..., Any], archive: Archive
) -> None:
    referee = Referee(families(), fake(breaks_on("broken")), archive)
    asked = [request_for(referee, "deduction")] * 3
    texts = [triplet("def f(x):\n    return x + 1"), triplet("def f(x):\n    return broken"), "no frame"]
    outcomes = referee.judge_proposals(asked, texts)
    assert [type(outcome) for outcome in outcomes] == [Task, NoVerdict, Rejected]
    paid = [referee.proposal_reward(outcome, [Verdict(1.0), Verdict(0.0)]) for outcome in outcomes]
    assert paid == [0.5, None, -1.0]
    before = archive.statistics()
    ids = referee.store(1, asked, outcomes, texts)
    assert ids[1] is None
    after = archive.statistics()
    assert (after.tasks - before.tasks, sum(after.rejections.values())) == (1, 1)


@pytest.mark.parametrize(
    ("scores", "paid"),
    [
        ([1.0, 0.0, 0.0, 0.0], 0.75),
        ([1.0, 0.0, None, None], 0.5),
        ([1.0, None], 0.0),
        ([0.0, None], 0.0),
        ([None, None], None),
        ([], None),
    ],
)
def test_attempts_without_a_verdict_do_not_move_the_proposers_pay(
    referee: Referee, scores: list[float | None], paid: float | None
) -> None:
    assert referee.proposal_reward(TASKS["deduction"], [Verdict(score) for score in scores]) == paid


# -- pay ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", rewards.LEARNABILITY)
def test_the_proposer_is_paid_by_the_chosen_shape(sandbox: Executor, archive: Archive, name: str) -> None:
    referee = Referee(families(), sandbox, archive, pay=RewardConfig(learnability=name))
    verdicts = [Verdict(1.0), Verdict(0.0), Verdict(0.0), Verdict(0.0)]
    assert referee.proposal_reward(TASKS["deduction"], verdicts) == rewards.LEARNABILITY[name](0.25)


def test_novelty_is_paid_by_shape_and_only_on_top_of_learnability(sandbox: Executor, archive: Archive) -> None:
    referee = Referee(families(), sandbox, archive, pay=RewardConfig(novelty=0.5))
    task = TASKS["deduction"]
    half, none = [Verdict(1.0), Verdict(0.0)], [Verdict(0.0)] * 2
    assert referee.proposal_reward(task, half) == 0.5 + 0.5
    assert referee.proposal_reward(task, none) == 0.0
    asked = [request_for(referee, "deduction")]
    for count in (2, 3, 4):
        referee.store(1, asked, [task], [""])
        like_it = replace(task, program="def f(value):\n    return value * 77")
        assert referee.proposal_reward(like_it, half) == pytest.approx(0.5 + 0.5 * count**-0.5)
    other = replace(task, program="def f(x):\n    return x + 2")
    assert referee.proposal_reward(other, half) == 1.0


def test_a_task_does_not_stand_in_the_way_of_its_own_novelty(sandbox: Executor, archive: Archive) -> None:
    referee = Referee(families(), sandbox, archive, pay=RewardConfig(novelty=0.5))
    task = replace(TASKS["deduction"], program="def f(x):\n    return x - 7")
    half = [Verdict(1.0), Verdict(0.0)]
    before = referee.proposal_reward(task, half)
    referee.store(1, [request_for(referee, "deduction")], [task], [""])
    assert referee.proposal_reward(task, half) == before == 1.0


# -- opened again ------------------------------------------------------------------------------------------------------

PROPOSALS = [
    ("deduction", triplet(DOUBLE)), ("abduction", triplet(DOUBLE)), ("deduction", triplet(DOUBLE.replace("2", "3"))),
    ("induction", pairs("11", "12", "13", "14")), ("induction", pairs("11", "12", "13", "15")),
    ("induction", pairs("13", "14", "15", "16")), ("induction", pairs("15", "16", "17", "18")),
]  # fmt: skip


def test_a_referee_opened_again_pays_and_refuses_as_the_one_that_runs(sandbox: Executor, tmp_path: Path) -> None:
    def opened(archive: Archive) -> Referee:
        return Referee(families(), sandbox, archive, pay=RewardConfig(novelty=0.5))

    def says(referee: Referee) -> tuple[list[type], list[float]]:
        outcomes = referee.judge_proposals(asked, texts, apart=True)
        paid = [referee.proposal_reward(task, [Verdict(1.0), Verdict(0.0)]) for task in TASKS.values()]
        return [type(outcome) for outcome in outcomes], [reward or 0.0 for reward in paid]

    with Archive(tmp_path / "archive.sqlite", capacity=2) as archive:
        running = opened(archive)
        asked, texts = [request_for(running, name) for name, _ in PROPOSALS], [text for _, text in PROPOSALS]
        before = says(running)
        running.store(1, asked, running.judge_proposals(asked, texts), texts)
        after = says(running)
        assert (before[0], after[0]) == ([Task] * len(asked), [Rejected] * len(asked))
        assert max(after[1]) < min(before[1])
        with Archive.read(tmp_path / "archive.sqlite") as reader:
            assert says(opened(reader)) == after
        archive.rewind(0)
        assert says(running) == says(opened(archive)) == before


def test_opening_reads_no_task(echo: Executor, archive: Archive) -> None:
    Referee(families(), echo, archive)
    none = _instructions_to_open(echo, archive)
    for number in range(200):
        archive.add_task(Task(NAMES[number % 3], f"no program ({number}", ("1", "2"), ("1", "2")), 0)
    assert _instructions_to_open(echo, archive) == none


def _instructions_to_open(executor: Executor, archive: Archive) -> int:
    """Return how many instructions SQLite runs for a referee to begin."""
    done = itertools.count()
    archive._file.db.set_progress_handler(lambda: next(done) < 0, 1)
    Referee(families(), executor, archive, pay=RewardConfig(novelty=0.5, intrinsic={"novelty": 0.5, "halstead": 0.5}))
    archive._file.db.set_progress_handler(None, 1)
    return next(done)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learnability": "peek"}, "did you mean 'peak'"),
        ({"solver": "azr"}, "did you mean 'azr-code'"),
        ({"novelty": -0.1}, "novelty must be a number from 0 on, got -0.1"),
        ({"novelty": float("nan")}, "novelty must be a number from 0 on, got nan"),
        ({"novelty": float("inf")}, "novelty must be a number from 0 on, got inf"),
    ],
)
def test_impossible_pay_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidConfig, match=words):
        RewardConfig(**settings)


# -- the frame, kept loosely -------------------------------------------------------------------------------------------

LOOSE = "so <answer>none</answer>, or rather <answer>{}</answer> is it"
"""No thought, two answers, and words behind them."""


@pytest.mark.parametrize("loosely", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_an_answer_in_tags_alone_has_a_score_where_that_is_asked_for(
    sandbox: Executor, archive: Archive, name: str, loosely: bool
) -> None:
    referee = Referee(families(), sandbox, archive, loose_frame=loosely, pay=RewardConfig(solver="azr-code"))
    texts = [LOOSE.format(RIGHT[name]), LOOSE.format(WRONG[name]), framed(RIGHT[name]), RIGHT[name]]
    verdicts = referee.judge_answers([TASKS[name]] * 4, texts)
    assert [v.score for v in verdicts] == [float(loosely), 0.0, 1.0, 0.0]
    assert [v.well_formed for v in verdicts] == [False, False, True, False]
    assert [referee.solver_reward(v) for v in verdicts] == [-1.0, -1.0, 1.0, -1.0]
    assert rewards.solve_rate(verdicts) == (2 if loosely else 1) / 4


@pytest.mark.parametrize("loosely", [True, False])
def test_a_proposal_in_tags_alone_becomes_a_task_where_that_is_asked_for(
    sandbox: Executor, archive: Archive, loosely: bool
) -> None:
    referee = Referee(families(), sandbox, archive, loose_frame=loosely)
    text = LOOSE.format(f"```python\n{DOUBLE}\n```\n```input\n4\n```")
    (outcome,) = referee.judge_proposals([request_for(referee, "deduction")], [text])
    assert isinstance(outcome, Task) is loosely
    assert isinstance(outcome, Task) or outcome == Rejected("format", "not <think>...</think><answer>...</answer>")


def test_a_task_of_bad_form_earns_what_a_refused_proposal_does(referee: Referee) -> None:
    verdicts = [Verdict(1.0), Verdict(0.0)]
    assert referee.proposal_reward(TASKS["deduction"], verdicts) == 0.5
    assert referee.proposal_reward(TASKS["deduction"], verdicts, well_formed=False) == rewards.REJECTED
