"""The referee: all of the game's logic, in batches, without a model.

The trainer, the Gymnasium environments and the tests are thin layers over it, so a reward means the same everywhere.

    requests = referee.proposal_prompts(n, rng)           # families x references drawn from the archive
    outcomes = referee.judge_proposals(requests, texts)   # frame -> blocks -> gate: Task | Rejected | NoVerdict
    prompt   = referee.solve_prompt(task)
    verdicts = referee.judge_answers(tasks, texts)        # frame -> family -> executor: Verdict
    reward   = referee.proposal_reward(outcome, verdicts) # learnability; referee.solver_reward(verdict) for solvers
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from selfplay_gym import composition, intrinsic, programs, rewards
from selfplay_gym.archive import Archive, How, StoredTask
from selfplay_gym.errors import ExecutorError, InvalidConfig, InvalidData
from selfplay_gym.frame import answer_of, loose_answer_of
from selfplay_gym.gate import Candidate, Gate, Outcome, repeats_inputs
from selfplay_gym.protocols import ComposingFamily, Executor, ProposingFamily, TaskFamily
from selfplay_gym.registry import unknown
from selfplay_gym.types import Execution, Job, Limits, NoVerdict, Proposal, Rejected, Status, Task, Verdict

REFERENCES: tuple[How, ...] = ("uniform", "recency", "learnability")
"""Ways of `Archive.sample` to draw references; the others may find none."""


@dataclass(frozen=True, slots=True)
class RewardConfig:
    """How the two roles are paid.

    Attributes:
        learnability: Shape of the proposer's reward over the solve rate (`rewards.LEARNABILITY`).
        solver: Scheme of the solver's reward (`rewards.SOLVER`).
        novelty: Weight of `rewards.count_bonus` over program shapes, added to a positive learnability; 0 is off.
        intrinsic: Weights of further extras (`intrinsic.NAMES`), for a positive reward; none is off.
        intrinsic_cap: Most that each of them contributes.
        combine: How they and the reward become one (`intrinsic.COMBINE`).
    """

    learnability: str = "absolute-zero"
    solver: str = "zero-one"
    novelty: float = 0.0
    intrinsic: Mapping[str, float] = field(default_factory=dict)
    intrinsic_cap: float = 0.5
    combine: str = "sum"

    def __post_init__(self) -> None:
        names: list[tuple[str, str, Collection[str]]] = [
            ("learnability reward", self.learnability, rewards.LEARNABILITY),
            ("solver reward", self.solver, rewards.SOLVER),
            ("way to combine rewards", self.combine, intrinsic.COMBINE),
        ]
        names += [("intrinsic reward", name, intrinsic.NAMES) for name in self.intrinsic]
        for kind, name, known in names:
            if name not in known:
                raise InvalidConfig(unknown(kind, name, known))
        weights = {"novelty": self.novelty, "intrinsic_cap": self.intrinsic_cap, **self.intrinsic}
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:  # NaN is neither
                raise InvalidConfig(f"{name} must be a number from 0 on, got {weight}")


@dataclass(frozen=True, slots=True)
class ProposalRequest:
    """A prompt for a proposer, the stored tasks that it shows, and the functions that the program must call."""

    family: str
    prompt: str
    references: tuple[StoredTask, ...]
    functions: tuple[str, ...] = ()


class Referee:
    """Draws prompts, judges what comes back, and pays for it.

    Args:
        families: Task families by name. Those that can propose are played, the rest only solved.
        executor: The only judge of programs.
        archive: Where tasks come from and go to. An empty one is seeded with the families' seed tasks.
        gate: Admits proposals; by default a strict one over ``executor``.
        pay: How the two roles are paid.
        references: How references are drawn (`REFERENCES`).
        loose_frame: Also admit proposals and judge answers that stand in answer tags without keeping to the frame. They
            are paid as badly formatted.
    """

    def __init__(
        self,
        families: Mapping[str, TaskFamily],
        executor: Executor,
        archive: Archive,
        gate: Gate | None = None,
        pay: RewardConfig | None = None,
        references: str = "uniform",
        *,
        loose_frame: bool = False,
    ) -> None:
        if references not in REFERENCES:
            raise InvalidConfig(unknown("way to draw references", references, REFERENCES))
        self.references = next(how for how in REFERENCES if how == references)
        self.families, self.executor, self.archive = dict(families), executor, archive
        self.gate, self.pay = gate or Gate(executor), pay or RewardConfig()
        self.loose_frame = loose_frame
        self.proposing = {n: f for n, f in self.families.items() if isinstance(f, ProposingFamily)}
        self._values: intrinsic.Seen | None = None
        self._seed()

    def _seed(self) -> None:
        """Put the families' seed tasks into an empty archive, through the gate like any other task."""
        live = self.archive.counts()
        seeds = [t for name, family in self.proposing.items() if not live.get(name) for t in family.seeds()]
        outcomes = self.gate.judge([self._candidate(t.family, Proposal(t.program, t.inputs, t.message)) for t in seeds])
        with self.archive.transaction():
            for seed, outcome in zip(seeds, outcomes, strict=True):
                self.archive.add_task(_proven(seed, outcome), step=0)

    # -- propose ---------------------------------------------------------------------------------------------------

    def proposal_prompts(self, count: int, rng: random.Random) -> list[ProposalRequest]:
        """Return ``count`` prompts for each proposing family, with references out of the archive."""
        return [self.proposal_prompt(name, rng) for name in self.proposing for _ in range(count)]

    def proposal_prompt(self, family: str, rng: random.Random) -> ProposalRequest:
        """Return one prompt, with references from the family's own tasks or, where it says so, from everybody's."""
        maker = self.proposing[family]
        sources = self._lenders(family) if getattr(maker, "references_from_all", False) else [family]
        references = self.archive.sample(sources, maker.references, rng, self.references)
        tasks = [stored.task for stored in references]
        if isinstance(maker, ComposingFamily) and (functions := _functions(maker, tasks, rng)):
            prompt = maker.composite_prompt(tasks, functions, rng)
            return ProposalRequest(family, prompt, tuple(references), tuple(functions))
        return ProposalRequest(family, maker.proposal_prompt(tasks, rng), tuple(references))

    def _lenders(self, family: str) -> list[str]:
        """Return the families whose tasks another one can propose about: those with the same kind of output."""
        return [name for name in self.proposing if self._errs(name) == self._errs(family)]

    def _errs(self, family: str) -> bool:
        return getattr(self.proposing[family], "asks_for_errors", False) is True

    def judge_proposals(
        self, requests: Sequence[ProposalRequest], completions: Sequence[str], *, apart: bool = False
    ) -> list[Outcome]:
        """Return a task, a rejection or no verdict for each completion, in order. Stores nothing.

        Of several that do the same only the first is new, unless they are judged ``apart``, as if each came alone.
        """
        outcomes: dict[int, Outcome] = {}
        candidates: dict[int, Candidate] = {}
        for number, (request, completion) in enumerate(zip(requests, completions, strict=True)):
            parsed = self._parse(request, completion)
            if isinstance(parsed, Rejected):
                outcomes[number] = parsed
            else:
                candidates[number] = replace(parsed, lot=number) if apart else parsed
        outcomes.update(zip(candidates, self.gate.judge(list(candidates.values())), strict=True))
        return [outcomes[number] for number in range(len(requests))]

    def _parse(self, request: ProposalRequest, completion: str) -> Candidate | Rejected:
        answer = _answer(completion, loosely=self.loose_frame)
        if answer is None:
            return Rejected("format", "not <think>...</think><answer>...</answer>")
        try:
            tasks = [stored.task for stored in request.references]
            proposal = self.proposing[request.family].parse_proposal(answer, tasks)
        except ValueError as error:
            return Rejected("parse", str(error))
        return replace(self._candidate(request.family, proposal), known=self._is_known, functions=request.functions)

    def _candidate(self, family: str, proposal: Proposal) -> Candidate:
        return Candidate(family, proposal, errors=self._errs(family))

    def _is_known(self, task: Task) -> bool:
        if self.archive.has_behaviour(task.behaviour, task.family):
            return True
        earlier = self.archive.inputs_of(task.program, task.family) if len(task.inputs) > 1 else []
        return any(repeats_inputs(task.inputs, inputs) for inputs in earlier)

    # -- solve -----------------------------------------------------------------------------------------------------

    def solve_prompt(self, task: Task) -> str:
        """Return the solver's prompt of a task."""
        return self.families[task.family].solve_prompt(task)

    def judge_answers(self, tasks: Sequence[Task], completions: Sequence[str]) -> list[Verdict]:
        """Return a verdict for each (task, completion), in order, with one batch for the executor."""
        families = [self.families[task.family] for task in tasks]
        limits = self.gate.config.limits
        return judge_answers(families, tasks, completions, self.executor, limits, loosely=self.loose_frame)

    # -- pay -------------------------------------------------------------------------------------------------------

    def proposal_reward(
        self,
        outcome: Outcome,
        verdicts: Sequence[Verdict],
        extras: Mapping[str, float] | None = None,
        *,
        well_formed: bool = True,
    ) -> float | None:
        """Return the proposer's reward given the verdicts on its task's attempts; None without any verdict.

        ``extras`` are what `extras` returned for the task, where the pay is for any. A proposal that is not
        ``well_formed`` earns what a refused one does, whatever became of it.
        """
        if isinstance(outcome, Rejected) or not well_formed:
            return rewards.REJECTED
        rate = rewards.solve_rate(list(verdicts))
        if isinstance(outcome, NoVerdict) or rate is None:
            return None
        reward = rewards.LEARNABILITY[self.pay.learnability](rate)
        if self.pay.novelty and reward > 0:
            reward += self.pay.novelty * rewards.count_bonus(self._others_of_shape(outcome))
        if extras and reward > 0:
            paid = intrinsic.contributions(extras, self.pay.intrinsic, self.pay.intrinsic_cap)
            reward = intrinsic.COMBINE[self.pay.combine](reward, paid)
        return reward

    def extras(self, task: Task, references: Sequence[StoredTask]) -> dict[str, float]:
        """Return the extras of a task that have a weight; ``references`` are what its proposer was shown."""
        return {name: self._extra(name, task, references) for name in self.pay.intrinsic}

    def _extra(self, name: str, task: Task, references: Sequence[StoredTask]) -> float:
        if name == "mean_edit_distance":
            return intrinsic.mean_edit_distance(task.program, [stored.task.program for stored in references])
        if name == "novelty":
            return rewards.count_bonus(self._others_of_shape(task))
        if name in intrinsic.OF_PROGRAMS:
            return intrinsic.OF_PROGRAMS[name](task.program)
        part = name.removesuffix("_diversity")
        return self._seen().surprise(part, task, known=self.archive.has_key(task.key))

    def _seen(self) -> intrinsic.Seen:
        """Return the counts of values, for which the first call reads every task: few pay for diversity."""
        if self._values is None:
            values = intrinsic.Seen()
            for stored in self.archive.tasks(evicted=True):
                values.add(stored.task)
            self._values = values
        return self._values

    def _others_of_shape(self, task: Task) -> int:
        """Count the stored tasks of the same shape, the task itself left out."""
        return self.archive.count_alike(task.program) - self.archive.has_key(task.key)

    def solver_reward(self, verdict: Verdict) -> float | None:
        """Return the solver's reward; None without a verdict."""
        return rewards.SOLVER[self.pay.solver](verdict)

    # -- remember --------------------------------------------------------------------------------------------------

    def store(
        self, step: int, requests: Sequence[ProposalRequest], outcomes: Sequence[Outcome], texts: Sequence[str]
    ) -> list[int | None]:
        """Store what became of proposals; return the new tasks' ids, None where there is no task."""
        ids: list[int | None] = []
        for request, outcome, text in zip(requests, outcomes, texts, strict=True):
            ids.append(None)
            if isinstance(outcome, Task):
                if self._values is not None:
                    self._values.add(outcome)
                ids[-1] = self.archive.add_task(outcome, step, [stored.id for stored in request.references])
            elif isinstance(outcome, Rejected):
                self.archive.record_rejection(step, request.family, outcome.check, outcome.detail, text)
        return ids


def _functions(maker: ComposingFamily, references: Sequence[Task], rng: random.Random) -> list[str]:
    """Return the functions that a proposal must call: none but in the family's share of cases."""
    if not maker.composite or rng.random() >= maker.composite:
        return []
    functions: list[str] = []
    for program in {programs.identity(task.program): task.program for task in references}.values():
        function = composition.helper(program, composition.name_of(len(functions)))
        if function is not None and composition.compatible([*functions, function]):
            functions.append(function)
    return functions[: maker.functions]


def _proven(seed: Task, outcome: Outcome) -> Task:
    """Return the seed as the executor saw it."""
    if isinstance(outcome, NoVerdict):
        raise ExecutorError(f"a seed task of {seed.family} could not be run: {outcome.detail}")
    if isinstance(outcome, Rejected):
        raise InvalidData(f"a seed task of {seed.family} is refused by {outcome.check}: {outcome.detail}")
    if outcome.outputs != seed.outputs:
        raise InvalidData(f"a seed task of {seed.family} gives {outcome.outputs}, not {seed.outputs}")
    return outcome


def judge_answers(
    families: Sequence[TaskFamily],
    tasks: Sequence[Task],
    completions: Sequence[str],
    executor: Executor,
    limits: Limits | None = None,
    *,
    loosely: bool = False,
) -> list[Verdict]:
    """Return a verdict for each completion: frame, then the family, then one executor batch for all that need it.

    ``limits`` stand in for the default ones: a task that was admitted under wider limits needs them to be solved.
    Judged ``loosely``, an answer outside the frame, but in answer tags, has the score that it would have within.
    """
    verdicts: dict[int, Verdict] = {}
    jobs: dict[int, Job] = {}
    for number, (family, task, completion) in enumerate(zip(families, tasks, completions, strict=True)):
        checked = _check(family, task, completion, loosely=loosely)
        if isinstance(checked, Verdict):
            verdicts[number] = checked
        else:
            jobs[number] = replace(checked, limits=limits) if limits and checked.limits == Limits() else checked
    for number, executions in zip(jobs, run_distinct(list(jobs.values()), executor), strict=True):
        verdicts[number] = _judge(families[number], tasks[number], executions)
    for number in verdicts if loosely else ():
        if answer_of(completions[number]) is None:
            verdicts[number] = replace(verdicts[number], well_formed=False)
    return [verdicts[number] for number in range(len(tasks))]


def _answer(completion: str, *, loosely: bool) -> str | None:
    answer = answer_of(completion)
    return loose_answer_of(completion) if answer is None and loosely else answer


def _check(family: TaskFamily, task: Task, completion: str, *, loosely: bool) -> Verdict | Job:
    answer = _answer(completion, loosely=loosely)
    if answer is None:
        return Verdict(0.0, "format", well_formed=False)
    return family.check(task, answer)


def _judge(family: TaskFamily, task: Task, executions: Sequence[Execution]) -> Verdict:
    for execution in executions:
        if execution.status is Status.NO_VERDICT:
            return Verdict(None, execution.message or "the executor gave no answer")
    return family.judge(task, executions)


def run_distinct(jobs: Sequence[Job], executor: Executor) -> list[tuple[Execution, ...]]:
    """Run jobs as ``executor.run`` does, equal ones once.

    Different answers to one task never share a job, and so never a process: one could leave something behind there
    that makes another one's verdict.
    """
    distinct = list(dict.fromkeys(jobs))
    results = dict(zip(distinct, executor.run(distinct), strict=True))
    return [results[job] for job in jobs]
