"""One step of self-play: propose, judge, solve, judge, reward, advantage. Knows nothing of TRL.

Two generation phases: one for all proposals, one for all attempts. The attempts that measure a new task's solve rate
are trained on like any other; the rest of the step's tasks are replays of tasks that are solved sometimes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from selfplay_gym.archive import StoredTask
from selfplay_gym.gate import Outcome
from selfplay_gym.referee import ProposalRequest, Referee
from selfplay_gym.training.advantages import Estimator, RoleBaselines
from selfplay_gym.training.config import Play
from selfplay_gym.training.generation import GenerationBackend, Policy, Request, Sample, row_seed
from selfplay_gym.training.watch import StepWatch
from selfplay_gym.types import Rejected, Role, Task, Verdict

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One completion with what the update needs.

    Attributes:
        role: Who wrote it.
        family: For which task family.
        group: Rows with the same value answer the same prompt.
        prompt: What was asked.
        text: What was answered.
        prompt_ids: Tokens of the prompt.
        sample: Sampled tokens with their log-probabilities.
        reward: None without a verdict: the row is then left out of baseline, loss and metrics.
        note: Check or reason, for people.
        advantage: Reward minus baseline; 0.0 without a verdict.
    """

    role: Role
    family: str
    group: str
    prompt: str
    text: str
    prompt_ids: tuple[int, ...]
    sample: Sample
    reward: float | None
    note: str = ""
    advantage: float = 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """What the policy wrote to a prompt."""

    prompt: str
    text: str
    prompt_ids: tuple[int, ...]
    sample: Sample


class SelfPlay:
    """Plays steps; used on rank 0.

    Args:
        policy: Plays both roles; gives the tokenizer.
        generator: Generates for it, perhaps over several ranks.
        referee: Draws, judges, pays, remembers.
        play: How many proposals, tasks and attempts.
        estimate: How advantages are made of rewards (`advantages.make_estimator`).
        seed: With the step number, fixes everything that is drawn.
        chat: Wrap prompts in the policy's chat template.
    """

    def __init__(
        self,
        policy: Policy,
        generator: GenerationBackend,
        referee: Referee,
        play: Play,
        estimate: Estimator,
        seed: int,
        *,
        chat: bool = False,
    ) -> None:
        self.policy, self.generator, self.referee, self.play = policy, generator, referee, play
        self.estimate, self.seed, self.chat = estimate, seed, chat

    def step(self, step: int, watch: StepWatch) -> list[Row]:
        """Play one step and return its rows; ``watch`` is told what happened. The archive changes as a whole or not."""
        rng = random.Random(f"{self.seed}-{step}")
        with self.referee.archive.transaction():
            with watch.phase("propose"):
                requests = self._proposal_requests(rng)
                proposals = self._complete([r.prompt for r in requests], "propose", step)
            with watch.phase("gate"):
                outcomes = self._judge_proposals(requests, proposals)
                ids = self.referee.store(step, requests, outcomes, [p.text for p in proposals])
            new = {number: id_ for number, id_ in enumerate(ids) if id_ is not None}
            played = [self.referee.archive.task(id_) for id_ in new.values()]
            played += self._replays(self.play.tasks - len(played), rng, step)
            with watch.phase("solve"):
                prompts = [self.referee.solve_prompt(stored.task) for stored in played]
                answers = self._complete([p for p in prompts for _ in range(self.play.attempts)], "solve", step)
            with watch.phase("judge"):
                tasks = [stored.task for stored in played for _ in range(self.play.attempts)]
                verdicts = _chunks(self.referee.judge_answers(tasks, [a.text for a in answers]), self.play.attempts)
                self._record(step, played, verdicts)
        tried = dict(zip(new, verdicts, strict=False))
        extras = [
            self.referee.extras(outcome, request.references) if isinstance(outcome, Task) else {}
            for request, outcome in zip(requests, outcomes, strict=True)
        ]
        rows = self._proposer_rows(requests, proposals, outcomes, tried, extras)
        rows += self._solver_rows(played, _chunks(answers, self.play.attempts), verdicts)
        watch.saw(rows, outcomes, verdicts, len(new))
        watch.saw_extras(extras)
        rows = self._with_advantages(rows)
        watch.saw_baselines(self.baselines())
        return rows

    def baselines(self) -> dict[str, float]:
        """Return what the estimator of advantages keeps from step to step, nothing where it keeps nothing."""
        return self.estimate.state() if isinstance(self.estimate, RoleBaselines) else {}

    # -- propose -------------------------------------------------------------------------------------------------------

    def _proposal_requests(self, rng: random.Random) -> list[ProposalRequest]:
        """Draw prompts; one that is too long is drawn again a few times, then left out."""
        requests = []
        for family in self.referee.proposing:
            for _ in range(self.play.proposals):
                drawn = (self.referee.proposal_prompt(family, rng) for _ in range(8))
                fitting = (request for request in drawn if self._fits(request.prompt))
                requests += [request for request in [next(fitting, None)] if request is not None]
        return requests

    def _judge_proposals(self, requests: list[ProposalRequest], proposals: list[Completion]) -> list[Outcome]:
        outcomes = self.referee.judge_proposals(requests, [p.text for p in proposals])
        return [self._refuse_long(outcome) for outcome in outcomes]

    def _refuse_long(self, outcome: Outcome) -> Outcome:
        if isinstance(outcome, Task) and not self._fits(self.referee.solve_prompt(outcome)):
            return Rejected("size", f"a solver's prompt of more than {self.play.prompt_tokens} tokens")
        return outcome

    def _fits(self, prompt: str) -> bool:
        return len(self.policy.encode(prompt, self.chat)) <= self.play.prompt_tokens

    # -- solve ---------------------------------------------------------------------------------------------------------

    def _replays(self, count: int, rng: random.Random, step: int) -> list[StoredTask]:
        """Draw tasks of earlier steps, by default such that are solved sometimes, evenly over the families."""
        names = list(self.referee.proposing)
        shares = [count // len(names) + (place < count % len(names)) for place in range(len(names))]
        drawn = []
        for name, share in zip(names, shares, strict=True):
            drawn += self.referee.archive.sample(name, max(share, 0), rng, self.play.replays, before=step)
        return [stored for stored in drawn if self._fits(self.referee.solve_prompt(stored.task))]

    def _record(self, step: int, played: list[StoredTask], verdicts: list[list[Verdict]]) -> None:
        records = []
        for stored, group in zip(played, verdicts, strict=True):
            judged = [verdict for verdict in group if verdict.score is not None]
            records.append((stored.id, len(judged), sum(verdict.passed for verdict in judged)))
        self.referee.archive.record_attempts(step, records)

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _complete(self, prompts: Sequence[str], role: Role, step: int) -> list[Completion]:
        limit = self.play.max_new_tokens.propose if role == "propose" else self.play.max_new_tokens.solve
        requests = [
            Request(
                self.policy.encode(text, self.chat), limit, self.play.temperature, row_seed(self.seed, step, role, n)
            )
            for n, text in enumerate(prompts)
        ]
        samples = self.generator.generate(requests) if requests else []
        return [
            Completion(prompt, self.policy.decode(sample.ids), request.prompt_ids, sample)
            for prompt, request, sample in zip(prompts, requests, samples, strict=True)
        ]

    def _proposer_rows(
        self,
        requests: list[ProposalRequest],
        proposals: list[Completion],
        outcomes: list[Outcome],
        tried: dict[int, list[Verdict]],
        extras: list[dict[str, float]],
    ) -> list[Row]:
        rows = []
        for n, (request, proposal, outcome) in enumerate(zip(requests, proposals, outcomes, strict=True)):
            reward = self.referee.proposal_reward(outcome, tried.get(n, []), extras[n])
            note = outcome.check if isinstance(outcome, Rejected) else ""
            rows.append(_row("propose", request.family, f"propose-{n}", proposal, reward, note))
        return rows

    def _solver_rows(
        self, played: list[StoredTask], answers: list[list[Completion]], verdicts: list[list[Verdict]]
    ) -> list[Row]:
        return [
            _row("solve", s.task.family, f"solve-{s.id}", answer, self.referee.solver_reward(verdict), verdict.reason)
            for s, group, group_verdicts in zip(played, answers, verdicts, strict=True)
            for answer, verdict in zip(group, group_verdicts, strict=True)
        ]

    def _with_advantages(self, rows: list[Row]) -> list[Row]:
        rewards = np.array([np.nan if row.reward is None else row.reward for row in rows])
        kinds = [(row.role, row.family) for row in rows]
        lengths = [len(row.sample.ids) for row in rows]
        advantages = self.estimate(rewards, kinds, [row.group for row in rows], lengths)
        return [replace(row, advantage=float(a)) for row, a in zip(rows, advantages, strict=True)]


def _row(role: Role, family: str, group: str, completion: Completion, reward: float | None, note: str) -> Row:
    c = completion
    return Row(role, family, group, c.prompt, c.text, c.prompt_ids, c.sample, reward, note)


def _chunks(items: list[T], size: int) -> list[list[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
