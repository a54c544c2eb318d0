from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from selfplay_gym import gate, rewards
from selfplay_gym.archive import Archive, How
from selfplay_gym.errors import SelfPlayError
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.protocols import Executor
from selfplay_gym.referee import Referee
from selfplay_gym.registry import make_family
from selfplay_gym.training.advantages import ESTIMATORS, make_estimator
from selfplay_gym.training.config import Play
from selfplay_gym.training.generation import Request, Sample
from selfplay_gym.training.policy import Policy
from selfplay_gym.training.rollouts import Row, SelfPlay
from selfplay_gym.training.watch import StepWatch
from selfplay_gym.types import Execution, Job, NoVerdict, Rejected, Status, Task, Tier, Verdict
from tests.players import fresh_policy, good_player

FAMILIES = {"deduction": {"references": 1}, "abduction": {"references": 1}}
PLAY: dict[str, Any] = {"proposals": 4, "tasks": 12, "attempts": 4, "max_new_tokens": {"propose": 96, "solve": 32}}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive(":memory:") as opened:
        yield opened


def game(
    executor: Executor, archive: Archive, policy: Policy | None = None, advantage: str = "group", **play: Any
) -> SelfPlay:
    families = {name: make_family(name, style="compact", **how) for name, how in FAMILIES.items()}
    policy = policy or fresh_policy(player=good_player)
    settings = Play.model_validate({**PLAY, **play})
    referee = Referee(families, executor, archive, references=settings.references)
    return SelfPlay(policy, policy.backend, referee, settings, make_estimator(advantage), seed=0)


def play(game: SelfPlay, steps: int, first: int = 1) -> tuple[list[list[Row]], list[dict[str, float]]]:
    rows, metrics = [], []
    for step in range(first, first + steps):
        watch = StepWatch(step)
        rows.append(game.step(step, watch))
        metrics.append(watch.metrics)
    return rows, metrics


class Broken:
    """An executor that fails on its own account once it has worked ``works`` times."""

    tier = Tier.FULL

    def __init__(self, executor: Executor, works: int = 10**9, error: Exception | None = None) -> None:
        self.executor, self.works, self.error = executor, works, error

    def run(self, jobs: Sequence[Job]) -> list[tuple[Execution, ...]]:
        if self.works > 0:
            self.works -= bool(jobs)
            return self.executor.run(jobs)
        if self.error is not None:
            raise self.error
        fault = Execution(Status.NO_VERDICT, message="the machine broke")
        return [(fault,) * len(job.inputs) for job in jobs]

    def close(self) -> None:
        pass


# -- a step ------------------------------------------------------------------------------------------------------------


def test_a_step_gives_a_row_for_every_proposal_and_attempt(sandbox: SandboxExecutor, archive: Archive) -> None:
    (rows, *_), (metrics, *_) = play(game(sandbox, archive), 1)
    new = int(metrics["tasks/new"])
    assert new >= 3
    assert Counter(row.role for row in rows) == {"propose": 8, "solve": 4 * new}
    groups = Counter(row.group for row in rows if row.role == "solve")
    assert set(groups.values()) == {4}
    assert all(row.reward is not None for row in rows)
    assert archive.counts() == {
        "abduction": 1 + new - _new(rows, "deduction"),
        "deduction": 1 + _new(rows, "deduction"),
    }


def _new(rows: Sequence[Row], family: str) -> int:
    return sum(row.role == "propose" and row.family == family and not row.note for row in rows)


def test_the_same_seed_plays_the_same_step(sandbox: SandboxExecutor) -> None:
    played = []
    for _ in range(2):
        with Archive(":memory:") as fresh:
            rows, metrics = play(game(sandbox, fresh), 2)
            measured = [{k: v for k, v in m.items() if not k.startswith("seconds/")} for m in metrics]
            played.append((rows, measured, fresh.fingerprint()))
    assert played[0] == played[1]


def test_another_step_draws_otherwise(sandbox: SandboxExecutor, archive: Archive) -> None:
    rows, _ = play(game(sandbox, archive), 2)
    assert {row.text for row in rows[0]} != {row.text for row in rows[1]}


def test_rewards_follow_from_verdicts(sandbox: SandboxExecutor, archive: Archive) -> None:
    (rows, *_), _ = play(game(sandbox, archive), 1)
    solved: dict[str, list[float]] = {}
    for row in rows:
        if row.role == "solve":
            assert row.reward in (0.0, 1.0)
            solved.setdefault(row.group, []).append(float(row.reward))
    admitted = [row for row in rows if row.role == "propose" and not row.note]
    expected = [rewards.LEARNABILITY["absolute-zero"](sum(marks) / len(marks)) for marks in solved.values()]
    assert [row.reward for row in admitted] == expected
    assert len(set(expected)) > 1
    assert {row.reward for row in rows if row.role == "propose" and row.note} == {rewards.REJECTED}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_advantages_are_the_estimators(estimator: str, sandbox: SandboxExecutor, archive: Archive) -> None:
    (rows, *_), _ = play(game(sandbox, archive, advantage=estimator), 1)
    expected = ESTIMATORS[estimator](
        *_arrays([row.reward for row in rows]),
        [(row.role, row.family) for row in rows],
        [row.group for row in rows],
        [len(row.sample.ids) for row in rows],
    )
    assert [row.advantage for row in rows] == pytest.approx(expected.tolist(), abs=1e-12)
    assert any(row.advantage for row in rows)


def test_baselines_go_from_step_to_step(sandbox: SandboxExecutor, archive: Archive) -> None:
    player = game(sandbox, archive, advantage="rae")
    (first, second), (metrics, _) = play(player, 2)
    assert set(player.baselines()) == {f"{row.role}/{row.family}" for row in [*first, *second]}
    solved = [
        row.reward for row in first if (row.role, row.family) == ("solve", "deduction") and row.reward is not None
    ]
    before = sum(solved) / len(solved)
    assert metrics["solve/deduction/baseline"] == pytest.approx(before)
    for row in second:
        if (row.role, row.family) == ("solve", "deduction") and row.reward is not None:
            assert row.advantage == pytest.approx(row.reward - before)
    assert game(sandbox, archive).baselines() == {}


def _arrays(values: Sequence[float | None]) -> tuple[Any]:
    import numpy as np

    return (np.array([np.nan if value is None else value for value in values]),)


def test_the_archive_remembers_what_was_solved(sandbox: SandboxExecutor, archive: Archive) -> None:
    (rows, *_), _ = play(game(sandbox, archive), 1)
    marks: dict[str, list[bool]] = {}
    for row in rows:
        if row.role == "solve":
            marks.setdefault(row.group, []).append(row.reward == 1.0)
    stored = {f"solve-{task.id}": (task.attempts, task.solved) for task in archive.tasks() if task.attempts}
    assert stored == {group: (len(passed), sum(passed)) for group, passed in marks.items()}


# -- replays -----------------------------------------------------------------------------------------------------------


def test_only_half_solved_tasks_are_replayed(sandbox: SandboxExecutor, archive: Archive) -> None:
    player = game(sandbox, archive)
    replayed = 0
    for step in range(1, 7):
        before = {task.id: task.solve_rate for task in archive.tasks()}
        (rows, *_), (metrics, *_) = play(player, 1, first=step)
        ids = {int(row.group.removeprefix("solve-")) for row in rows if row.role == "solve"}
        old = ids & before.keys()
        assert all(before[id_] not in (None, 0.0, 1.0) for id_ in old)
        assert metrics["tasks/replayed"] == len(old)
        assert metrics["tasks/new"] == len(ids - before.keys())
        assert len(ids) <= PLAY["tasks"]
        replayed += len(old)
    assert replayed > 5


@pytest.mark.parametrize("how", ["uniform", "recency", "learnability"])
def test_other_ways_to_replay_draw_tasks_of_earlier_steps(how: How, sandbox: SandboxExecutor, archive: Archive) -> None:
    played = game(sandbox, archive, tasks=16, replays=how, references="learnability")
    for step in (1, 2, 3):
        last = max(stored.id for stored in archive.tasks())
        (rows, *_), (metrics, *_) = play(played, 1, first=step)
        ids = {int(row.group.removeprefix("solve-")) for row in rows if row.role == "solve"}
        replayed = {task_id for task_id in ids if task_id <= last}
        assert len(replayed) == metrics["tasks/replayed"]
        assert len(ids) == metrics["tasks/new"] + metrics["tasks/replayed"]  # none twice
        assert replayed


def test_replays_fill_a_step_up_though_families_do_not_divide_it(sandbox: SandboxExecutor, archive: Archive) -> None:
    play(game(sandbox, archive), 2)
    _, metrics = play(game(sandbox, archive, tasks=13, replays="uniform"), 4, first=3)
    assert [measured["tasks/new"] + measured["tasks/replayed"] for measured in metrics] == [13] * 4
    assert any(measured["tasks/replayed"] % 2 for measured in metrics)


def test_new_tasks_leave_no_room_for_replays(sandbox: SandboxExecutor, archive: Archive) -> None:
    _, metrics = play(game(sandbox, archive, tasks=1), 3)
    assert [m["tasks/replayed"] for m in metrics] == [0, 0, 0]


# -- all or nothing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("works", [0, 1])
def test_a_step_that_breaks_leaves_the_archive_as_it_was(
    works: int, sandbox: SandboxExecutor, archive: Archive
) -> None:
    executor = Broken(sandbox, error=RuntimeError("power cut"))
    player = game(executor, archive)
    play(player, 1)
    before = archive.fingerprint()
    executor.works = works
    with pytest.raises(RuntimeError, match="power cut"):
        play(player, 1, first=2)
    assert archive.fingerprint() == before


def test_a_step_that_breaks_at_the_last_batch_leaves_the_archive_as_it_was(
    sandbox: SandboxExecutor, archive: Archive
) -> None:
    player = breaking_game(sandbox, archive, "solve", error=RuntimeError("power cut"))
    before = archive.fingerprint()
    with pytest.raises(RuntimeError, match="power cut"):
        play(player, 1)
    assert archive.fingerprint() == before


def test_an_interrupt_in_the_middle_of_a_step_leaves_the_archive_as_it_was(
    sandbox: SandboxExecutor, archive: Archive
) -> None:
    player = game(sandbox, archive)
    play(player, 1)
    before = archive.fingerprint()

    class Interrupted:
        def generate(self, requests: Sequence[Request]) -> list[Sample]:
            if requests[0].max_new_tokens == 32:
                raise KeyboardInterrupt
            return player.policy.backend.generate(requests)

    player.generator = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        play(player, 1, first=2)
    assert archive.fingerprint() == before


# -- probes that are not reused ----------------------------------------------------------------------------------------

ALONE = {"reuse_probes": False, "tasks": 6, "answers": 2, "replays": "uniform"}


class Heard:
    """A generation back-end that remembers what it was asked for."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.requests: list[Request] = []

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        self.requests += requests
        return self.policy.backend.generate(requests)


def heard_game(executor: Executor, archive: Archive, **settings: Any) -> tuple[SelfPlay, Heard]:
    player = game(executor, archive, **settings)
    heard = Heard(player.policy)
    player.generator = heard
    return player, heard


def solver_tasks(rows: Sequence[Row], archive: Archive) -> Counter[int]:
    """Return how many solver rows each step of origin has."""
    groups = (int(row.group.removeprefix("solve-")) for row in rows if row.role == "solve")
    return Counter(archive.task(number).step for number in groups)


def test_probes_that_are_not_reused_measure_and_are_thrown_away(sandbox: SandboxExecutor, archive: Archive) -> None:
    player, heard = heard_game(sandbox, archive, **ALONE)
    (rows, *_), (metrics, *_) = play(player, 1)
    new, trained = int(metrics["tasks/new"]), sum(row.role == "solve" for row in rows)
    assert new >= 3
    assert metrics["tasks/replayed"] == 2  # the two seed tasks, in two answers each
    assert trained == 2 * 2
    assert len(heard.requests) == 8 + 4 * new + trained
    measured = [task for task in archive.tasks() if task.step == 1]
    assert [task.attempts for task in measured] == [4] * new
    paid = {row.reward for row in rows if row.role == "propose" and not row.note}
    assert paid == {rewards.absolute_zero(task.solve_rate or 0.0) for task in measured}
    assert metrics["tokens/untrained"] > 0
    assert metrics["tokens/sampled"] - metrics["tokens/untrained"] == sum(len(row.sample.ids) for row in rows)


def test_reused_probes_leave_nothing_untrained(sandbox: SandboxExecutor, archive: Archive) -> None:
    player, heard = heard_game(sandbox, archive)
    (rows, *_), (metrics, *_) = play(player, 1)
    assert len(heard.requests) == len(rows)
    assert metrics["tokens/untrained"] == 0


# -- proposals from the starting weights -------------------------------------------------------------------------------


def test_a_frozen_proposer_writes_all_proposals_and_learns_from_none(
    sandbox: SandboxExecutor, archive: Archive
) -> None:
    player, heard = heard_game(sandbox, archive, frozen_proposer=True)
    (rows, *_), (metrics, *_) = play(player, 1)
    limits = {True: PLAY["max_new_tokens"]["propose"], False: PLAY["max_new_tokens"]["solve"]}
    assert Counter(request.from_start for request in heard.requests)[True] == 8
    assert all(request.max_new_tokens == limits[request.from_start] for request in heard.requests)
    assert all(row.trained == (row.role == "solve") for row in rows)
    proposed = [row for row in rows if row.role == "propose"]
    assert metrics["tokens/untrained"] == sum(len(row.sample.ids) for row in proposed)
    assert metrics["tokens/sampled"] == sum(len(row.sample.ids) for row in rows)


def test_untrained_tokens_add_up(sandbox: SandboxExecutor, archive: Archive) -> None:
    player, heard = heard_game(sandbox, archive, **ALONE, frozen_proposer=True)
    (rows, *_), (metrics, *_) = play(player, 1)
    trained = sum(len(row.sample.ids) for row in rows if row.trained)
    assert len(heard.requests) > len(rows)
    assert metrics["tokens/untrained"] == metrics["tokens/sampled"] - trained > 0


@pytest.mark.parametrize("lag", [0, 1])
def test_solvers_learn_from_the_new_tasks_of_this_step_or_the_last(
    sandbox: SandboxExecutor, archive: Archive, lag: int
) -> None:
    player, _ = heard_game(sandbox, archive, **{**ALONE, "tasks": 4, "lag": lag})
    (first, second, third), metrics = play(player, 3)
    assert all(measured["tasks/new"] >= 4 for measured in metrics)
    assert set(solver_tasks(first, archive)) == {1 - lag}  # with a lag only the seed tasks are there
    assert solver_tasks(second, archive)[2 - lag] >= 6
    assert solver_tasks(third, archive)[3 - lag] >= 6
    assert set(solver_tasks(third, archive)) <= set(range(4 - lag))


def test_what_the_newest_leave_free_is_replayed(sandbox: SandboxExecutor, archive: Archive) -> None:
    player, _ = heard_game(sandbox, archive, **{**ALONE, "tasks": 24})
    rows, metrics = play(player, 3)
    before = 2 + metrics[0]["tasks/new"]
    found = solver_tasks(rows[2], archive)
    assert found[2] == 2 * metrics[1]["tasks/new"]
    assert sum(found.values()) == 2 * min(24, before + metrics[1]["tasks/new"])


@pytest.mark.parametrize(("asked", "expected"), [(None, 0.8), (0.0, 0.0), (0.5, 0.5)])
def test_probes_may_have_a_temperature_of_their_own(
    sandbox: SandboxExecutor, archive: Archive, asked: float | None, expected: float
) -> None:
    class Cold(Heard):
        """The scripted player has no logits to divide at temperature 0."""

        def generate(self, requests: Sequence[Request]) -> list[Sample]:
            self.requests += requests
            return self.policy.backend.generate([replace(request, temperature=1.0) for request in requests])

    roles = {"propose": 1.2, "solve": 0.8}
    player = game(sandbox, archive, probe_temperature=asked, temperature=roles, **ALONE)
    player.generator = heard = Cold(player.policy)
    _, (metrics, *_) = play(player, 1)
    probes = 4 * int(metrics["tasks/new"])
    found = [request.temperature for request in heard.requests]
    assert found[8 : 8 + probes] == [expected] * probes
    assert set(found[:8]) == {1.2}
    assert set(found[8 + probes :]) == {0.8}


def test_a_single_answer_does_not_hide_a_solve_rate(sandbox: SandboxExecutor, archive: Archive) -> None:
    player, _ = heard_game(sandbox, archive, **{**ALONE, "answers": 1, "lag": 0, "tasks": 12})
    (rows, *_), _ = play(player, 1)
    assert {row.role for row in rows} == {"propose", "solve"}
    assert {task.attempts for task in archive.tasks() if task.step == 1} == {4}


# -- the frame, kept loosely -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loosely", [True, False])
def test_tasks_of_bad_form_are_solved_and_paid_as_refused(
    sandbox: SandboxExecutor, archive: Archive, loosely: bool
) -> None:
    def talkative(prompt: str, rng: random.Random) -> str:
        return good_player(prompt, rng) + " that is it"

    player = game(sandbox, archive, fresh_policy(player=talkative))
    player.referee.loose_frame = loosely
    (rows, *_), (metrics, *_) = play(player, 1)
    assert (metrics["tasks/new"] >= 3) is loosely
    assert {row.reward for row in rows if row.role == "propose"} == {rewards.REJECTED}
    assert all(row.note for row in rows if row.role == "propose")
    assert {row.reward for row in rows if row.role == "solve"} <= {0.0}
    assert any(task.solved > 0 for task in archive.tasks()) is loosely


# -- seed tasks --------------------------------------------------------------------------------------------------------


def test_seeding_fills_the_archive_and_learns_nothing(sandbox: SandboxExecutor, archive: Archive) -> None:
    player = game(sandbox, archive, seed_tasks=9)
    player.seed_archive()
    assert archive.counts() == {"abduction": 9, "deduction": 9}
    stored = list(archive.tasks())
    assert {task.step for task in stored} == {0}
    assert len({task.task.key for task in stored}) == 18
    assert all(task.attempts == 0 for task in stored)
    assert archive.lineage(stored[-1].id)  # shown what was there already
    before = archive.fingerprint()
    player.seed_archive()
    assert archive.fingerprint() == before


def test_seed_tasks_are_not_the_new_tasks_of_a_step(sandbox: SandboxExecutor, archive: Archive) -> None:
    """The first step draws from all of them, and not the last ones that came."""
    player = game(sandbox, archive, seed_tasks=16, **{**ALONE, "tasks": 4})
    player.seed_archive()
    newest = {task.id for name in FAMILIES for task in archive.tasks(name, newest=2)}
    (rows, *_), _ = play(player, 1)
    drawn = {int(row.group.removeprefix("solve-")) for row in rows if row.role == "solve"}
    assert len(drawn) == 4
    assert drawn != newest


def test_without_seed_tasks_nothing_is_proposed(sandbox: SandboxExecutor, archive: Archive) -> None:
    player, heard = heard_game(sandbox, archive)
    player.seed_archive()
    assert heard.requests == []
    assert archive.counts() == {"abduction": 1, "deduction": 1}


def test_seeding_goes_on_where_it_was_killed(sandbox: SandboxExecutor, archive: Archive) -> None:
    game(sandbox, archive, seed_tasks=12).seed_archive()
    with Archive(":memory:") as killed:
        player, heard = heard_game(sandbox, killed, seed_tasks=12)

        def cut_off(requests: Sequence[Request]) -> list[Sample]:
            if len(heard.requests) > 8:
                raise KeyboardInterrupt
            return Heard.generate(heard, requests)

        heard.generate = cut_off  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            player.seed_archive()
        assert 2 < sum(killed.counts().values()) < 24
        game(sandbox, killed, seed_tasks=12).seed_archive()
        assert killed.fingerprint() == archive.fingerprint()


def test_a_seed_task_is_there_once_even_if_repetitions_may_be_tasks(sandbox: SandboxExecutor, archive: Archive) -> None:
    def repeating(prompt: str, rng: random.Random) -> str:
        text = f"```python\ndef f(x):\n    return x + {rng.randint(1, 3)}\n```\n```input\n4\n```"
        return f"</think><answer>{text}</answer>"

    player = game(sandbox, archive, fresh_policy(player=repeating), seed_tasks=4)
    player.referee.gate.config = gate.GateConfig(disabled=frozenset({"new"}))
    player.seed_archive()
    programs = Counter((task.task.family, task.task.program) for task in archive.tasks())
    assert set(programs.values()) == {1}
    assert archive.counts() == {"abduction": 4, "deduction": 4}


def test_a_policy_that_cannot_propose_cannot_seed(sandbox: SandboxExecutor, archive: Archive) -> None:
    silent = fresh_policy(player=lambda prompt, rng: "nothing")
    with pytest.raises(SelfPlayError, match=r"asks for 2 tasks a family, but deduction still lacks 1 after 20 rounds"):
        game(sandbox, archive, silent, seed_tasks=2).seed_archive()


# -- no verdict --------------------------------------------------------------------------------------------------------


def breaking_game(
    executor: Executor, archive: Archive, phase: str, error: Exception | None = None, **settings: Any
) -> SelfPlay:
    """Return a game whose executor breaks once the completions of a phase, propose or solve, are written."""
    broken = Broken(executor, error=error)
    player = game(broken, archive, **settings)
    limit = PLAY["max_new_tokens"][phase]

    class Breaking:
        def generate(self, requests: Sequence[Request]) -> list[Sample]:
            if requests[0].max_new_tokens == limit:
                broken.works = 0
            return player.policy.backend.generate(requests)

    player.generator = Breaking()
    return player


def test_a_broken_gate_pays_nobody(sandbox: SandboxExecutor, archive: Archive) -> None:
    (rows, *_), (metrics, *_) = play(breaking_game(sandbox, archive, "propose"), 1)
    unjudged = [row for row in rows if row.note == "" and row.role == "propose"]
    assert len(unjudged) >= 3
    assert all(row.reward is None and row.advantage == 0.0 for row in unjudged)
    assert metrics["no_verdict"] == len(unjudged)
    assert metrics["tasks/new"] == 0
    assert sum(archive.statistics().rejections.values()) == len(rows) - len(unjudged)


def test_answers_without_a_verdict_are_neither_right_nor_wrong(sandbox: SandboxExecutor, archive: Archive) -> None:
    # Only abduction runs programs to judge answers.
    (rows, *_), (metrics, *_) = play(breaking_game(sandbox, archive, "solve"), 1)
    broken = [row for row in rows if row.role == "solve" and row.reward is None]
    assert {row.family for row in broken} == {"abduction"}
    assert {row.note for row in broken} == {"the machine broke"}
    assert all(row.advantage == 0.0 for row in broken)
    admitted = [row for row in rows if (row.role, row.family, row.note) == ("propose", "abduction", "")]
    assert admitted
    assert {row.reward for row in admitted} == {None}
    assert metrics["no_verdict"] == len(broken) + len(admitted)
    assert "solve/abduction/reward" not in metrics
    assert "solve/deduction/reward" in metrics
    assert all(task.attempts == 0 for task in archive.tasks("abduction"))


def test_rows_without_a_verdict_do_not_move_the_others(sandbox: SandboxExecutor, archive: Archive) -> None:
    (rows, *_), _ = play(breaking_game(sandbox, archive, "solve", advantage="trr++"), 1)
    with Archive(":memory:") as other:
        (whole, *_), _ = play(game(sandbox, other, advantage="trr++"), 1)
    expected = {(row.group, row.text): row.advantage for row in whole if row.family == "deduction"}
    found = {(row.group, row.text): row.advantage for row in rows if row.family == "deduction"}
    assert found == expected


# -- length ------------------------------------------------------------------------------------------------------------


def test_too_long_proposal_prompts_are_left_out(sandbox: SandboxExecutor, archive: Archive) -> None:
    player = game(sandbox, archive)
    short = len(player.policy.encode("deduction\n", False)) + 20
    (rows, *_), _ = play(game(sandbox, archive, prompt_tokens=max(16, short)), 1)
    assert all(len(row.prompt_ids) <= max(16, short) for row in rows)
    (rows, *_), (metrics, *_) = play(game(sandbox, archive, prompt_tokens=16), 1, first=2)
    assert rows == []
    assert metrics["tokens/sampled"] == 0


@pytest.mark.parametrize("limits", [{"prompt_tokens": 100}, {"prompt_tokens": 1000, "content_tokens": 100}])
def test_a_proposal_prompt_that_is_too_long_is_drawn_again(
    sandbox: SandboxExecutor, archive: Archive, limits: dict[str, int]
) -> None:
    program = "def f(x):\n" + "    x = x + 1\n" * 40 + "    return x"
    player = game(sandbox, archive, **limits)
    archive.add_task(Task("deduction", program, ("1",), ("41",)), step=0)
    (rows, *_), _ = play(player, 1)
    prompts = [row.prompt for row in rows if (row.role, row.family) == ("propose", "deduction")]
    assert len(prompts) == 4
    assert all(program not in prompt for prompt in prompts)


def test_a_task_whose_prompt_is_too_long_is_refused(sandbox: SandboxExecutor, archive: Archive) -> None:
    def wordy(prompt: str, rng: random.Random) -> str:
        lines = "    x = x + 1\n" * 30
        return (
            f"</think><answer>```python\ndef f(x):\n{lines}    return x - {rng.randint(2, 9)}\n```\n"
            f"```input\n{rng.randint(1, 9)}\n```</answer>"
        )

    policy = fresh_policy(player=wordy)
    limits = {"prompt_tokens": 80, "max_new_tokens": {"propose": 300, "solve": 16}}
    (rows, *_), (metrics, *_) = play(game(sandbox, archive, policy, **limits), 1)
    assert {row.role for row in rows} == {"propose"}
    assert metrics["rejected/size"] == sum(row.note == "size" for row in rows) > 0
    assert metrics["tasks/new"] == 0


# -- the model as it is ------------------------------------------------------------------------------------------------


def test_an_untrained_policy_plays_too(sandbox: SandboxExecutor, archive: Archive) -> None:
    (rows, *_), (metrics, *_) = play(game(sandbox, archive, fresh_policy()), 1)
    assert len(rows) == 8
    assert {row.reward for row in rows} == {rewards.REJECTED}
    assert {row.advantage for row in rows} == {0.0}
    assert metrics["propose/deduction/admitted"] == 0.0


# -- the numbers of a step ---------------------------------------------------------------------------------------------


def row(role: str, family: str, reward: float | None, tokens: int = 2, finished: bool = True) -> Row:
    sample = Sample((5,) * tokens, (-1.0,) * tokens, finished)
    return Row(role, family, "g", "p", "t", (1,), sample, reward)  # type: ignore[arg-type]


def test_a_watch_counts_what_happened() -> None:
    task = Task("deduction", "def f(x):\n    x = x + 1\n    x = x * 2\n    return x", ("1",), ("4",))
    rows = [
        replace(row("propose", "deduction", 0.5, tokens=7), advantage=0.75),
        row("propose", "deduction", -1.0, finished=False),
        row("propose", "abduction", None),
        row("propose", "abduction", -1.0),
        *(row("solve", "deduction", mark) for mark in (1.0, 0.0, None, 1.0)),
        *(row("solve", "abduction", 0.0) for _ in range(4)),
    ]
    outcomes: list[gate.Outcome] = [task, Rejected("syntax"), NoVerdict(), Rejected("syntax")]
    verdicts = [[Verdict(1.0), Verdict(0.0), Verdict(None), Verdict(1.0)], [Verdict(0.0)] * 4, [Verdict(None)] * 4]
    watch = StepWatch(3)
    watch.saw(rows, outcomes, verdicts, new=2)
    assert watch.metrics == pytest.approx({
        "propose/abduction/reward": -1.0,
        "propose/deduction/reward": -0.25,
        "solve/abduction/reward": 0.0,
        "solve/deduction/reward": 2 / 3,
        "propose/deduction/admitted": 0.5,
        "propose/abduction/admitted": 0.0,
        "rejected/syntax": 2,
        "tasks/body_lines": 2.0,
        "tasks/new": 2,
        "tasks/replayed": 1,
        "tasks/never_solved": 0.5,
        "tasks/always_solved": 0.0,
        "tasks/shapes": 1.0,
        "proposals": 4,
        "rows": 12,
        "no_verdict": 2,
        "no_gradient": 0.9,
        "tokens/prompts": 12,
        "tokens/sampled": 7 + 11 * 2,
        "tokens/untrained": 0,
        "unfinished": 1 / 12,
    })  # fmt: skip


@pytest.mark.parametrize("replayed", [0.0, 1.0])
def test_a_replay_does_not_take_the_place_of_a_new_task_without_a_verdict(replayed: float) -> None:
    verdicts = [[Verdict(None)] * 2, [Verdict(1.0), Verdict(0.0)], [Verdict(replayed)] * 2]
    watch = StepWatch(1)
    watch.saw([], [], verdicts, new=2)
    assert (watch.metrics["tasks/never_solved"], watch.metrics["tasks/always_solved"]) == (0.0, 0.0)


def test_a_watch_tells_the_mean_of_the_extras() -> None:
    watch = StepWatch(1)
    watch.saw_extras([{"halstead": 0.5, "novelty": 1.0}, {}, {"halstead": 0.25, "novelty": 0.5}])
    assert watch.metrics == {"intrinsic/halstead": 0.375, "intrinsic/novelty": 0.75}


def test_a_watch_reports_no_rate_where_nothing_was_judged() -> None:
    watch = StepWatch(1)
    watch.saw([row("propose", "deduction", None)], [NoVerdict()], [], new=0)
    assert not any(name.startswith("propose/") for name in watch.metrics)
    assert watch.metrics["no_verdict"] == 1


def test_a_watch_times_its_phases() -> None:
    watch = StepWatch(1)
    with watch.phase("gate"):
        pass
    once = watch.metrics["seconds/gate"]
    assert 0 <= once < 1
    with watch.phase("gate"):
        time.sleep(0.01)
    assert watch.metrics["seconds/gate"] >= once + 0.01


def test_a_watch_shares_new_tasks_only(sandbox: SandboxExecutor, archive: Archive) -> None:
    _, metrics = play(game(sandbox, archive), 3)
    for measured in metrics:
        assert 0 <= measured["tasks/never_solved"] + measured["tasks/always_solved"] <= 1


def test_rows_are_frozen_values() -> None:
    first = row("solve", "deduction", 1.0)
    assert replace(first, advantage=1.0) != first
