"""One step of self-play: propose, judge, solve, judge, reward, advantage. Knows nothing of TRL.

Two generation phases: one for all proposals, one for all attempts. The attempts that measure a new task's solve rate
are trained on like any other; the rest of the step's tasks are replays of tasks that are solved sometimes. With
``reuse_probes`` off it is as in Absolute Zero: those attempts are thrown away, and answers to other tasks trained on.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import TypeVar

import numpy as np

from selfplay_gym.archive import StoredTask
from selfplay_gym.errors import SelfPlayError
from selfplay_gym.frame import answer_of
from selfplay_gym.gate import Outcome
from selfplay_gym.referee import ProposalRequest, Referee
from selfplay_gym.training.advantages import Estimator, RoleBaselines
from selfplay_gym.training.config import Play
from selfplay_gym.training.generation import GenerationBackend, Request, Sample, row_seed
from selfplay_gym.training.policy import Policy
from selfplay_gym.training.watch import StepWatch
from selfplay_gym.types import Rejected, Role, Task, Verdict

T = TypeVar("T")
_PROMPTS = 1024  # of which the tokens are remembered
_Draw = Callable[[str, int, random.Random, int], list[StoredTask]]


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
        trained: Whether the update sees it: not what the starting weights wrote.
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
    trained: bool = True


@dataclass(frozen=True, slots=True)
class Completion:
    """What the policy wrote to a prompt."""

    prompt: str
    text: str
    prompt_ids: tuple[int, ...]
    sample: Sample


@dataclass(frozen=True, slots=True)
class _Group:
    """A task that is solved in a step: how many answers, at which temperature, and whether they are trained on."""

    stored: StoredTask
    answers: int
    temperature: float
    trained: bool = True


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
        # A task's prompt is measured, then asked as often as there are attempts, and again when the task comes back.
        self._encode = lru_cache(maxsize=_PROMPTS)(lambda prompt: policy.encode(prompt, chat))

    def step(self, step: int, watch: StepWatch) -> list[Row]:
        """Play one step and return its rows; ``watch`` is told what happened. The archive changes as a whole or not."""
        rng = random.Random(f"{self.seed}-{step}")
        with self.referee.archive.transaction():
            requests = self._proposal_requests(rng)
            proposals = self._propose(requests, step, watch)
            with watch.phase("gate"):
                outcomes = self._judge_proposals(requests, proposals)
                ids = self.referee.store(step, requests, outcomes, [p.text for p in proposals])
            new = {number: id_ for number, id_ in enumerate(ids) if id_ is not None}
            groups = self._groups([self.referee.archive.task(id_) for id_ in new.values()], rng, step)
            answers = self._solve(groups, step, watch)
            with watch.phase("judge"):
                verdicts = self._judge_answers(groups, answers)
                self._record(step, groups, verdicts)
        tried = dict(zip(new, verdicts, strict=False))
        extras = [
            self.referee.extras(outcome, request.references) if isinstance(outcome, Task) else {}
            for request, outcome in zip(requests, outcomes, strict=True)
        ]
        rows = self._proposer_rows(requests, proposals, outcomes, tried, extras)
        rows += self._solver_rows(groups, answers, verdicts)
        rows = self._with_advantages(rows)
        watch.saw(rows, outcomes, verdicts, len(new))
        watch.saw_untrained([a.sample for g, own in zip(groups, answers, strict=True) if not g.trained for a in own])
        watch.saw_extras(extras)
        watch.saw_baselines(self.baselines())
        return rows

    def baselines(self) -> dict[str, float]:
        """Return what the estimator of advantages keeps from step to step, nothing where it keeps nothing."""
        return self.estimate.state() if isinstance(self.estimate, RoleBaselines) else {}

    # -- seed ----------------------------------------------------------------------------------------------------------

    def seed_archive(self) -> None:
        """Propose until every family has ``play.seed_tasks`` tasks, before the first step; nothing is learnt.

        A round is known by what is recorded so far: after a kill, seeding goes on with the round that was cut off.

        Raises:
            SelfPlayError: The policy cannot, within 20 times the rounds that it would need if all were admitted.
        """
        patience = 20 * math.ceil(self.play.seed_tasks / self.play.proposals)
        for _ in range(patience):
            missing = self._missing_seeds()
            if not missing:
                return
            with self.referee.archive.transaction():
                self._seeding_round(missing)
        if missing := self._missing_seeds():
            family, count = next(iter(missing.items()))
            raise SelfPlayError(
                f"play.seed_tasks asks for {self.play.seed_tasks} tasks a family, but {family} still lacks {count} "
                f"after {patience} rounds of {self.play.proposals} proposals: lower it, or start from a policy that "
                "proposes valid programs more often"
            )

    def _missing_seeds(self) -> dict[str, int]:
        live = self.referee.archive.counts()
        missing = {name: self.play.seed_tasks - live.get(name, 0) for name in self.referee.proposing}
        return {name: count for name, count in missing.items() if count > 0}

    def _seeding_round(self, missing: Mapping[str, int]) -> None:
        facts = self.referee.archive.statistics()
        name = f"seeding-{facts.tasks + sum(facts.rejections.values())}"
        requests = self._proposal_requests(random.Random(f"{self.seed}-{name}"), missing)
        proposals = self._propose(requests, name, StepWatch(0))
        outcomes = self._judge_proposals(requests, proposals)
        kept = self._distinct_seeds(requests, outcomes, missing)
        texts = [proposals[n].text for n in kept]
        self.referee.store(0, [requests[n] for n in kept], list(kept.values()), texts)

    def _distinct_seeds(
        self, requests: Sequence[ProposalRequest], outcomes: Sequence[Outcome], missing: Mapping[str, int]
    ) -> dict[int, Outcome]:
        """Return what to record of a round by its place: no task twice, and none beyond those that are missing."""
        kept: dict[int, Outcome] = {}
        keys: set[str] = set()
        left = Counter(missing)
        for number, (request, outcome) in enumerate(zip(requests, outcomes, strict=True)):
            if isinstance(outcome, Task):
                if outcome.key in keys or self.referee.archive.has_key(outcome.key):
                    outcome = Rejected("new", "a seed task that is there already")
                elif not left[request.family]:
                    continue
                else:
                    keys.add(outcome.key)
                    left[request.family] -= 1
            kept[number] = outcome
        return kept

    # -- propose -------------------------------------------------------------------------------------------------------

    def _proposal_requests(self, rng: random.Random, families: Iterable[str] | None = None) -> list[ProposalRequest]:
        """Draw prompts; one that is too long is drawn again a few times, then left out."""
        most = self.play.content_tokens or self.play.prompt_tokens
        requests = []
        for family in self.referee.proposing if families is None else families:
            for _ in range(self.play.proposals):
                drawn = (self.referee.proposal_prompt(family, rng) for _ in range(8))
                fitting = (request for request in drawn if self._tokens(request.prompt) <= most)
                requests += [request for request in [next(fitting, None)] if request is not None]
        return requests

    def _propose(self, requests: Sequence[ProposalRequest], step: int | str, watch: StepWatch) -> list[Completion]:
        prompts = [(request.prompt, self.play.temperature.propose) for request in requests]
        return self._complete(prompts, "propose", step, watch, from_start=self.play.frozen_proposer)

    def _judge_proposals(self, requests: list[ProposalRequest], proposals: list[Completion]) -> list[Outcome]:
        outcomes = self.referee.judge_proposals(requests, [p.text for p in proposals])
        return [self._refuse_long(outcome) for outcome in outcomes]

    def _refuse_long(self, outcome: Outcome) -> Outcome:
        if isinstance(outcome, Task) and not self._fits(self.referee.solve_prompt(outcome)):
            return Rejected("size", f"a solver's prompt of more than {self.play.prompt_tokens} tokens")
        return outcome

    def _fits(self, prompt: str) -> bool:
        return self._tokens(prompt) <= self.play.prompt_tokens

    def _tokens(self, prompt: str) -> int:
        return len(self._encode(prompt))

    # -- solve ---------------------------------------------------------------------------------------------------------

    def _groups(self, new: list[StoredTask], rng: random.Random, step: int) -> list[_Group]:
        """Return what is solved in a step, the new tasks first."""
        play, warmth = self.play, self.play.temperature.solve
        if play.reuse_probes:
            played = new + self._drawn(play.tasks - len(new), self._replays, rng, step)
            return [_Group(stored, play.attempts, warmth) for stored in played]
        probing = warmth if play.probe_temperature is None else play.probe_temperature
        probes = [_Group(stored, play.attempts, probing, trained=False) for stored in new]
        drawn = self._drawn(play.tasks, self._newest_and_replays, rng, step)
        return probes + [_Group(stored, play.answers, warmth) for stored in drawn]

    def _drawn(self, count: int, draw: _Draw, rng: random.Random, step: int) -> list[StoredTask]:
        """Draw tasks evenly over the families, less those whose prompts are too long."""
        names = list(self.referee.proposing)
        shares = [count // len(names) + (place < count % len(names)) for place in range(len(names))]
        drawn = []
        for name, share in zip(names, shares, strict=True):
            drawn += draw(name, max(share, 0), rng, step)
        return [stored for stored in drawn if self._fits(self.referee.solve_prompt(stored.task))]

    def _replays(self, family: str, count: int, rng: random.Random, before: int) -> list[StoredTask]:
        """Draw tasks of earlier steps, by default such that are solved sometimes."""
        return self.referee.archive.sample(family, count, rng, self.play.replays, before=before)

    def _newest_and_replays(self, family: str, count: int, rng: random.Random, step: int) -> list[StoredTask]:
        """Draw the tasks of this step or the last one, and replays for what is left (``max_new`` of Absolute Zero)."""
        first = max(1, step - self.play.lag)  # seed tasks are not new
        newest = self.referee.archive.sample(family, count, rng, "newest", before=step + 1 - self.play.lag)
        newest = [stored for stored in newest if stored.step >= first]
        return newest + self._replays(family, count - len(newest), rng, first)

    def _solve(self, groups: Sequence[_Group], step: int, watch: StepWatch) -> list[list[Completion]]:
        prompts = []
        for group in groups:
            prompts += [(self.referee.solve_prompt(group.stored.task), group.temperature)] * group.answers
        return _parts(self._complete(prompts, "solve", step, watch), groups)

    def _judge_answers(self, groups: Sequence[_Group], answers: Sequence[Sequence[Completion]]) -> list[list[Verdict]]:
        tasks = [group.stored.task for group in groups for _ in range(group.answers)]
        texts = [answer.text for own in answers for answer in own]
        return _parts(self.referee.judge_answers(tasks, texts), groups)

    def _record(self, step: int, groups: Sequence[_Group], verdicts: Sequence[Sequence[Verdict]]) -> None:
        """Record solve rates; a single answer tells none, and would hide the one that is known."""
        records = []
        for group, own in zip(groups, verdicts, strict=True):
            judged = [verdict for verdict in own if verdict.score is not None]
            if group.answers > 1:
                records.append((group.stored.id, len(judged), sum(verdict.passed for verdict in judged)))
        self.referee.archive.record_attempts(step, records)

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _complete(
        self,
        prompts: Sequence[tuple[str, float]],
        role: Role,
        step: int | str,
        watch: StepWatch,
        *,
        from_start: bool = False,
    ) -> list[Completion]:
        """Sample an answer to each prompt at its temperature; the phase of a role is the sampling alone."""
        limit = getattr(self.play.max_new_tokens, role)
        requests = [
            Request(self._encode(text), limit, temperature, row_seed(self.seed, step, role, n), from_start)
            for n, (text, temperature) in enumerate(prompts)
        ]
        with watch.phase(role):
            samples = self.generator.generate(requests) if requests else []
        return [
            Completion(prompt, self.policy.decode(sample.ids), request.prompt_ids, sample)
            for (prompt, _), request, sample in zip(prompts, requests, samples, strict=True)
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
            formed = answer_of(proposal.text) is not None
            reward = self.referee.proposal_reward(outcome, tried.get(n, []), extras[n], well_formed=formed)
            note = outcome.check if isinstance(outcome, Rejected) else "" if formed else "format"
            row = _row("propose", request.family, f"propose-{n}", proposal, reward, note)
            rows.append(replace(row, trained=not self.play.frozen_proposer))
        return rows

    def _solver_rows(
        self, groups: list[_Group], answers: list[list[Completion]], verdicts: list[list[Verdict]]
    ) -> list[Row]:
        return [
            self._solver_row(group.stored, answer, verdict)
            for group, own, own_verdicts in zip(groups, answers, verdicts, strict=True)
            for answer, verdict in zip(own, own_verdicts, strict=True)
            if group.trained
        ]

    def _solver_row(self, stored: StoredTask, answer: Completion, verdict: Verdict) -> Row:
        reward = self.referee.solver_reward(verdict)
        return _row("solve", stored.task.family, f"solve-{stored.id}", answer, reward, verdict.reason)

    def _with_advantages(self, rows: list[Row]) -> list[Row]:
        rewards = np.array([np.nan if row.reward is None else row.reward for row in rows])
        kinds = [(row.role, row.family) for row in rows]
        lengths = [len(row.sample.ids) for row in rows]
        advantages = self.estimate(rewards, kinds, [row.group for row in rows], lengths)
        return [replace(row, advantage=float(a)) for row, a in zip(rows, advantages, strict=True)]


def _row(role: Role, family: str, group: str, completion: Completion, reward: float | None, note: str) -> Row:
    c = completion
    return Row(role, family, group, c.prompt, c.text, c.prompt_ids, c.sample, reward, note)


def _parts(items: Iterable[T], groups: Sequence[_Group]) -> list[list[T]]:
    """Return the items of each group."""
    rest = iter(items)
    return [list(islice(rest, group.answers)) for group in groups]
