"""The rules that environments play by, without Gymnasium's interface: lists of episodes and texts become turns.

A *game* (`SelfPlay`, `Solving`) judges with the functions of `selfplay_gym.referee`, in one executor batch for all
episodes that are played side by side. An environment plays a list of one, a vector environment as many as it has
sub-environments.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium.error import ResetNeeded

from selfplay_gym import rewards
from selfplay_gym.archive import Archive
from selfplay_gym.errors import ExecutorError, InvalidConfig
from selfplay_gym.gate import Gate, GateConfig, Outcome
from selfplay_gym.protocols import Executor, ProposingFamily
from selfplay_gym.referee import ProposalRequest, Referee, RewardConfig, judge_answers
from selfplay_gym.registry import executors, make_family, unknown
from selfplay_gym.types import Execution, Job, Limits, NoVerdict, Rejected, Role, Task, Tier, Verdict


class LazySandbox:
    """An executor that starts on its first job, so that an environment which is only looked at starts no process.

    Args:
        name: Under which the executor is registered.
        settings: What it is made with.
    """

    def __init__(self, name: str = "sandbox", **settings: Any) -> None:
        self._name, self._settings = name, settings
        self._started: Executor | None = None
        self._closed = False

    @property
    def tier(self) -> Tier:
        """How strongly programs are isolated here. Starts the executor."""
        return self._executor().tier

    def run(self, jobs: Sequence[Job]) -> list[tuple[Execution, ...]]:
        """Run every job, as `Executor.run` promises."""
        return self._executor().run(jobs) if jobs else []

    def close(self) -> None:
        """End every process. Safe to call twice."""
        self._closed = True
        if self._started is not None:
            self._started.close()

    def _executor(self) -> Executor:
        if self._closed:
            raise ExecutorError("this environment is closed")
        if self._started is None:
            self._started = executors.load(self._name)(**self._settings)
        return self._started


class Turn(NamedTuple):
    """What a step returns."""

    observation: str
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


@dataclass
class Episode:
    """Where one episode stands.

    Attributes:
        role: Whom the prompt addresses; after the end, who spoke last.
        family: Task family of the episode.
        prompt: What is asked now; empty after the end.
        request: The proposer's prompt with its references (self-play).
        task: What the attempts are made at.
        task_id: Its place in the archive, where it is stored.
        verdicts: On the attempts so far.
        paid: To the solver so far.
        over: Whether a reset is due.
        said: Headings and texts of the dialogue so far.
    """

    role: Role
    family: str
    prompt: str
    request: ProposalRequest | None = None
    task: Task | None = None
    task_id: int | None = None
    verdicts: list[Verdict] = field(default_factory=list)
    paid: float = 0.0
    over: bool = False
    said: list[tuple[str, str]] = field(default_factory=list)

    @property
    def info(self) -> dict[str, Any]:
        """What every step and reset tells: a new dict each time."""
        told: dict[str, Any] = {"role": self.role, "family": self.family}
        if self.task is not None:
            told["task_key"] = self.task.key
        return told

    @property
    def dialogue(self) -> str:
        """The dialogue so far, for people."""
        asked = [] if self.over else [_heading(self)]
        return "\n".join(f"--- {heading} ---\n{text}" for heading, text in [*self.said, *asked])


class Game(ABC):
    """The rules that environments share, over lists of episodes.

    Args:
        executor: The judge of programs: an object, which stays the caller's to close, or a registered name. By default
            a sandbox of our own that starts on first need.
        players: How many episodes are played side by side; for one, an own sandbox gets one worker, else one a core.
    """

    def __init__(self, executor: Executor | str | None, players: int) -> None:
        self._owned: list[Executor | Archive] = []
        if executor is None:
            executor = LazySandbox(workers=1 if players == 1 else None)
            self._owned.append(executor)
        elif isinstance(executor, str):
            executor = LazySandbox(executor)
            self._owned.append(executor)
        self.executor: Executor = executor

    @abstractmethod
    def begin(self, rng: np.random.Generator, options: Mapping[str, Any] | None = None) -> Episode:
        """Return a new episode, a function of the generator's state and the archive's contents."""

    def play(self, episodes: Sequence[Episode], texts: Sequence[str]) -> list[Turn]:
        """Take one step in each episode, in one executor batch for proposals and one for attempts.

        Raises:
            ResetNeeded: An episode is over.
        """
        if not episodes:
            return []
        if any(episode.over for episode in episodes):
            raise ResetNeeded("the episode is over; call reset() before the next step()")
        for episode, text in zip(episodes, texts, strict=True):
            episode.said += [_heading(episode), ("answer", text)]
        turns = self._judge(episodes, texts)
        for episode, turn in zip(episodes, turns, strict=True):
            episode.prompt, episode.over = turn.observation, turn.terminated or turn.truncated
            episode.said.append((f"reward {turn.reward:g}", turn.info["check"] or turn.info["reason"]))
        return turns

    @abstractmethod
    def _judge(self, episodes: Sequence[Episode], texts: Sequence[str]) -> list[Turn]: ...

    def close(self) -> None:
        """Close what this game opened itself. Safe to call twice."""
        for owned in self._owned:
            owned.close()

    def _open(self, archive: Archive | str | Path, write: bool) -> Archive:
        if isinstance(archive, Archive):
            return archive
        opened = Archive(archive) if write else Archive.read(archive)
        self._owned.append(opened)
        return opened


class SelfPlay(Game):
    """One proposal and its attempts an episode.

    Args:
        families: Names of the task families to propose for, or their settings by name, such as
            ``{"induction": {"pairs": 6}}``. Each episode draws one; ``reset(options={"family": name})`` chooses it.
        style: Prompt style of the families that have styles.
        attempts: Answers asked for a task.
        weight: Of the solver in the return (lambda in Absolute Zero).
        learnability: The proposer's reward (`rewards.LEARNABILITY`).
        solver: The solver's reward (`rewards.SOLVER`).
        references: How the tasks that a proposal prompt shows are drawn (`referee.REFERENCES`).
        gate: Caps, limits and switched-off checks.
        archive: File to draw references from, and to keep admitted tasks, refusals and solve counts in; created where
            there is none, and with ``":memory:"`` one that lives as long as the environment. An open `Archive` is
            used as it is. None keeps nothing: references are seed tasks, and every episode stands alone.
        record: Write to the archive. Without, it is opened for reading and must hold tasks of every family.
        executor: As in `Game`.
        players: As in `Game`.

    Raises:
        InvalidConfig: A setting is impossible, or a family cannot propose.
        UnknownId: No such family, or style.
    """

    def __init__(
        self,
        families: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("deduction", "abduction", "induction"),
        *,
        style: str | None = None,
        attempts: int = 4,
        weight: float = 1.0,
        learnability: str = "absolute-zero",
        solver: str = "zero-one",
        references: str = "uniform",
        gate: GateConfig | None = None,
        archive: Archive | str | Path | None = None,
        record: bool = True,
        executor: Executor | str | None = None,
        players: int = 1,
    ) -> None:
        super().__init__(executor, players)
        if attempts < 1:
            raise InvalidConfig(f"attempts must be at least 1, got {attempts}")
        if not 0 <= weight < float("inf"):
            raise InvalidConfig(f"weight must be finite and not negative, got {weight}")
        self.attempts, self.weight = attempts, weight
        self.keeps = archive is not None and record
        pay = RewardConfig(learnability, solver)
        settings = families if isinstance(families, Mapping) else {name: {} for name in families}
        made = {name: make_family(name, style, **how) for name, how in settings.items()}
        idle = [name for name, family in made.items() if not isinstance(family, ProposingFamily)]
        if idle or not made:
            raise InvalidConfig(f"self-play needs families that can propose, got {idle or 'none'}")
        store = self._open(":memory:" if archive is None else archive, archive is None or record)
        self.referee = Referee(made, self.executor, store, Gate(self.executor, gate), pay, references)

    def begin(self, rng: np.random.Generator, options: Mapping[str, Any] | None = None) -> Episode:
        """Return an episode of a drawn family, or of ``options["family"]``."""
        names = list(self.referee.proposing)
        family = names[int(rng.integers(len(names)))]
        family = str(_option(options, "family", family))
        if family not in names:
            raise InvalidConfig(unknown("family in this environment", family, names))
        request = self.referee.proposal_prompt(family, _python_random(rng))
        return Episode("propose", family, request.prompt, request)

    def _judge(self, episodes: Sequence[Episode], texts: Sequence[str]) -> list[Turn]:
        proposals, attempts = ([n for n, e in enumerate(episodes) if e.role == role] for role in ("propose", "solve"))
        turns: dict[int, Turn] = {}
        for chosen, judge in ((attempts, self._judge_attempts), (proposals, self._judge_proposals)):
            turns.update(zip(chosen, judge([episodes[n] for n in chosen], [texts[n] for n in chosen]), strict=True))
        return [turns[number] for number in range(len(episodes))]

    def _judge_proposals(self, episodes: Sequence[Episode], texts: Sequence[str]) -> list[Turn]:
        if not episodes:
            return []
        requests = [episode.request for episode in episodes if episode.request is not None]
        outcomes = self.referee.judge_proposals(requests, texts, apart=not self.keeps)
        if self.keeps:
            with self.referee.archive.transaction():
                ids = self.referee.store(self._next_step(), requests, outcomes, texts)
            for episode, task_id in zip(episodes, ids, strict=True):
                episode.task_id = task_id
        return [self._admit(episode, outcome) for episode, outcome in zip(episodes, outcomes, strict=True)]

    def _admit(self, episode: Episode, outcome: Outcome) -> Turn:
        if isinstance(outcome, NoVerdict):
            return _end(episode, no_verdict=True, reason=outcome.detail)
        if isinstance(outcome, Rejected):
            penalty = self.referee.proposal_reward(outcome, []) or 0.0
            return _end(episode, propose=penalty, check=outcome.check, reason=outcome.detail)
        episode.task, episode.role = outcome, "solve"
        return _turn(episode, self.referee.solve_prompt(outcome))

    def _judge_attempts(self, episodes: Sequence[Episode], texts: Sequence[str]) -> list[Turn]:
        if not episodes:
            return []
        tasks = [episode.task for episode in episodes if episode.task is not None]
        verdicts = self.referee.judge_answers(tasks, texts)
        turns = [self._pay(*pair) for pair in zip(episodes, tasks, verdicts, strict=True)]
        self._record([episode for episode in episodes if len(episode.verdicts) == self.attempts])
        return turns

    def _pay(self, episode: Episode, task: Task, verdict: Verdict) -> Turn:
        episode.verdicts.append(verdict)
        told: dict[str, Any] = {"no_verdict": verdict.score is None, "reason": verdict.reason, "passed": verdict.passed}
        if len(episode.verdicts) < self.attempts:
            share = self.weight * (self.referee.solver_reward(verdict) or 0.0) / self.attempts
            episode.paid += share
            return _turn(episode, self.referee.solve_prompt(task), solve=share, **told)
        proposer = self.referee.proposal_reward(task, episode.verdicts)
        earned = [reward for v in episode.verdicts if (reward := self.referee.solver_reward(v)) is not None]
        if proposer is None or not earned:
            return _end(episode, **told | {"no_verdict": True})
        rest = self.weight * sum(earned) / len(earned) - episode.paid
        turn = _end(episode, propose=proposer, solve=rest, **told)
        turn.info["solve_rate"] = rewards.solve_rate(episode.verdicts)
        return turn

    def _record(self, episodes: Iterable[Episode]) -> None:
        counts = [(e.task_id, _judged(e), sum(v.passed for v in e.verdicts)) for e in episodes]
        known = [(task_id, judged, solved) for task_id, judged, solved in counts if task_id is not None]
        if self.keeps and known:
            with self.referee.archive.transaction():
                self.referee.archive.record_attempts(self._next_step(), known)

    def _next_step(self) -> int:
        return (self.referee.archive.last_step or 0) + 1


class Solving(Game):
    """One task and one answer an episode.

    Args:
        family: Name of the task family.
        style: Prompt style, if the family has styles.
        settings: Further settings of the family.
        tasks: What to draw from. By default the family's seed tasks.
        archive: File, or open `Archive`, whose live tasks of the family are drawn from as well. Only read.
        solver: The solver's reward (`rewards.SOLVER`).
        limits: Of each run, for tasks that were admitted under other limits than the default ones.
        executor: As in `Game`.
        players: As in `Game`.

    Raises:
        InvalidConfig: A setting is impossible, or there is no task to draw.
        UnknownId: No such family, or style.
    """

    def __init__(
        self,
        family: str,
        *,
        style: str | None = None,
        settings: Mapping[str, Any] | None = None,
        tasks: Iterable[Task] | None = None,
        archive: Archive | str | Path | None = None,
        solver: str = "zero-one",
        limits: Limits | None = None,
        executor: Executor | str | None = None,
        players: int = 1,
    ) -> None:
        super().__init__(executor, players)
        self.limits = limits
        self.reward = rewards.SOLVER[RewardConfig(solver=solver).solver]
        self.family = make_family(family, style, **(settings or {}))
        self.archive = None if archive is None else self._open(archive, write=False)
        if tasks is not None:
            self.tasks = [self._own(task) for task in tasks]
        elif isinstance(self.family, ProposingFamily):
            self.tasks = [t for t in self.family.seeds() if not (self.archive and self.archive.has_key(t.key))]
        else:
            self.tasks = []
        if not self.tasks and not self._stored():
            self.close()
            raise InvalidConfig(f"there is no task of family {family!r}; pass tasks=[...] or archive=PATH")

    def begin(self, rng: np.random.Generator, options: Mapping[str, Any] | None = None) -> Episode:
        """Return an episode over a drawn task, or over ``options["task"]``."""
        index = int(rng.integers(len(self.tasks) + self._stored()))
        drawn = self.tasks[index] if index < len(self.tasks) else self._draw(rng)
        task = self._own(_option(options, "task", drawn))
        return Episode("solve", self.family.name, self.family.solve_prompt(task), task=task)

    def _judge(self, episodes: Sequence[Episode], texts: Sequence[str]) -> list[Turn]:
        tasks = [episode.task for episode in episodes if episode.task is not None]
        verdicts = judge_answers([self.family] * len(tasks), tasks, texts, self.executor, self.limits)
        return [self._pay(episode, verdict) for episode, verdict in zip(episodes, verdicts, strict=True)]

    def _pay(self, episode: Episode, verdict: Verdict) -> Turn:
        episode.verdicts.append(verdict)
        reward = self.reward(verdict)
        told: dict[str, Any] = {"no_verdict": reward is None, "reason": verdict.reason, "passed": verdict.passed}
        return _end(episode, solve=reward or 0.0, **told)

    def _own(self, task: object) -> Task:
        if not isinstance(task, Task) or task.family != self.family.name:
            found = f"one of {task.family!r}" if isinstance(task, Task) else f"a {type(task).__name__}"
            raise InvalidConfig(f"this environment asks tasks of family {self.family.name!r}, got {found}")
        return task

    def _stored(self) -> int:
        return self.archive.counts().get(self.family.name, 0) if self.archive else 0

    def _draw(self, rng: np.random.Generator) -> Task:
        assert self.archive is not None
        return self.archive.sample(self.family.name, 1, _python_random(rng))[0].task


def _turn(
    episode: Episode,
    observation: str,
    *,
    propose: float = 0.0,
    solve: float = 0.0,
    terminated: bool = False,
    truncated: bool = False,
    no_verdict: bool = False,
    check: str = "",
    reason: str = "",
    passed: bool = False,
) -> Turn:
    info = episode.info | {
        "attempt": len(episode.verdicts),
        "reward_parts": {"propose": propose, "solve": solve},
        "no_verdict": no_verdict,
        "check": check,
        "reason": reason,
        "passed": passed,
    }
    return Turn(observation, propose + solve, terminated, truncated, info)


def _end(episode: Episode, **told: Any) -> Turn:
    """Return the last turn: terminated, or truncated where nothing is known."""
    unknown_end = bool(told.get("no_verdict"))
    return _turn(episode, "", terminated=not unknown_end, truncated=unknown_end, **told)


def _heading(episode: Episode) -> tuple[str, str]:
    return f"{episode.family}: prompt to {episode.role}", episode.prompt


def _judged(episode: Episode) -> int:
    return sum(verdict.score is not None for verdict in episode.verdicts)


def _option(options: Mapping[str, Any] | None, name: str, default: object) -> object:
    """Return a reset option.

    Raises:
        InvalidConfig: There are options of other names.
    """
    if strange := sorted(set(options or {}) - {name}):
        raise InvalidConfig(f"reset takes the option {name!r} here, got {strange}")
    return (options or {}).get(name, default)


def _python_random(rng: np.random.Generator) -> random.Random:
    return random.Random(int(rng.integers(2**63)))
