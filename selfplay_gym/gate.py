"""The gate: what decides whether a proposal becomes a task.

A strict gate matters more for stability than the reward (arXiv:2605.22217), so each rule is a check with a name, every
rejection is counted by that name, and all of them are on by default. Checks run in the order of `CHECKS`; the first
that refuses decides. What needs execution runs in two batches for all proposals together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from selfplay_gym import literals, probes, programs
from selfplay_gym.errors import InvalidConfig
from selfplay_gym.protocols import Executor
from selfplay_gym.types import Execution, Job, Limits, NoVerdict, Proposal, Rejected, Status, Task

CHECKS = {
    "format": "the completion keeps to the think/answer frame",
    "parse": "the answer has the blocks the family asks for",
    "size": "program, inputs and message are within their caps",
    "syntax": "the program parses",
    "signature": "it defines f, with at least one parameter that must be given",
    "literal_inputs": "every input is an argument list of literals",
    "distinct_inputs": "the inputs of one proposal differ",
    "message": "the message holds no code and no line of the program",
    "policy": "the program stays within the language policy",
    "runs": "it returns within its limits on every input",
    "value": "it returns a value of exact builtin types, under the size cap",
    "deterministic": "two runs in one process and one in another with a different hash seed agree",
    "depends_on_input": "some other input gives another value",
    "new": "no stored task of the family does the same",
    "held_out": "the program is not in a held-out set",
}
"""Every check by name, in order, with what it demands."""

OPTIONAL = frozenset({"distinct_inputs", "message", "depends_on_input", "new", "held_out", "deterministic"})
"""Checks that an ablation may switch off. Without the others there is no task."""

_RUN_CHECKS = {
    Status.FORBIDDEN: "policy",
    Status.OUTPUT_LIMIT: "value",
    Status.UNSERIALISABLE: "value",
    Status.NONDETERMINISTIC: "deterministic",
}


@dataclass(frozen=True, slots=True)
class GateConfig:
    """Caps and limits of the gate.

    Attributes:
        program_characters: Longest program.
        input_characters: Longest argument list, each.
        message_characters: Longest message.
        limits: Of each run.
        disabled: Optional checks that are switched off.
    """

    program_characters: int = 4096
    input_characters: int = 1024
    message_characters: int = 1024
    limits: Limits = field(default_factory=Limits)
    disabled: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name in ("program_characters", "input_characters", "message_characters"):
            if not 1 <= getattr(self, name) <= programs.MAX_SOURCE:
                raise InvalidConfig(f"{name} must be between 1 and {programs.MAX_SOURCE}, got {getattr(self, name)}")
        if refused := sorted(self.disabled - OPTIONAL):
            raise InvalidConfig(
                f"these gate checks cannot be disabled: {', '.join(refused)}; only {sorted(OPTIONAL)} can"
            )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A parsed proposal of a family.

    Attributes:
        family: Its name.
        proposal: What the proposer wrote.
        known: Tells whether a stored task already does the same.
        lot: Proposals of one batch count as each other's repetition only within a lot.
    """

    family: str
    proposal: Proposal
    known: Callable[[Task], bool] = lambda task: False
    lot: int = 0


Outcome = Task | Rejected | NoVerdict


class Gate:
    """Turns candidates into tasks, rejections or no verdicts.

    Args:
        executor: Runs the programs.
        config: Caps, limits and switched-off checks.
        held_out: Programs of held-out sets; a proposal that is one of them is refused, however it is formatted.
    """

    def __init__(self, executor: Executor, config: GateConfig | None = None, held_out: Iterable[str] = ()) -> None:
        self.executor, self.config = executor, config or GateConfig()
        self.held_out = frozenset(programs.identity(program) for program in held_out)

    def judge(self, candidates: Sequence[Candidate]) -> list[Outcome]:
        """Return one outcome a candidate, in order. Two that do the same in one batch: only the first is new."""
        outcomes: dict[int, Outcome] = {}
        alive: dict[int, Candidate] = {}
        for number, candidate in enumerate(candidates):
            checked = self._check_text(candidate)
            if isinstance(checked, Rejected):
                outcomes[number] = checked
            else:
                alive[number] = checked
        tasks: dict[int, Task] = {}
        for number, outcome in zip(alive, self._run(list(alive.values())), strict=True):
            if isinstance(outcome, Task):
                tasks[number] = outcome
            else:
                outcomes[number] = outcome
        probed = self._probe(list(tasks.values()))
        batch_keys: set[tuple[int, str, str]] = set()
        for (number, _), outcome in zip(tasks.items(), probed, strict=True):
            outcomes[number] = self._check_new(outcome, candidates[number], batch_keys)
        return [outcomes[number] for number in range(len(candidates))]

    def _on(self, check: str) -> bool:
        return check not in self.config.disabled

    # -- what the text alone tells ---------------------------------------------------------------------------------

    def _check_text(self, candidate: Candidate) -> Candidate | Rejected:
        """Return the candidate with its inputs in one spelling, or the first refusal."""
        proposal, config = candidate.proposal, self.config
        sizes = (
            ("program", len(proposal.program), config.program_characters),
            ("input", max(map(len, proposal.inputs), default=0), config.input_characters),
            ("message", len(proposal.message), config.message_characters),
        )
        for what, size, cap in sizes:
            if size > cap:
                return Rejected("size", f"{what} of {size} characters, at most {cap}")
        try:
            if not programs.takes_arguments(proposal.program, "f"):
                return Rejected("signature", CHECKS["signature"])
        except programs.NotAProgram as error:
            return Rejected("syntax", str(error))
        try:
            inputs = tuple(literals.canonical_arguments(text) for text in proposal.inputs)
        except literals.NotALiteral as error:
            return Rejected("literal_inputs", str(error))
        if not all(inputs):
            return Rejected("literal_inputs", "an empty argument list")
        if self._on("distinct_inputs") and len(set(inputs)) < len(inputs):
            return Rejected("distinct_inputs", f"{len(inputs) - len(set(inputs))} inputs occur twice")
        if self._on("message") and (leak := _leak(proposal.message, proposal.program)):
            return Rejected("message", leak)
        return replace(candidate, proposal=replace(proposal, inputs=inputs))

    # -- what running it tells -------------------------------------------------------------------------------------

    def _run(self, candidates: Sequence[Candidate]) -> list[Outcome]:
        jobs = [
            Job(
                candidate.proposal.program,
                candidate.proposal.inputs,
                limits=self.config.limits,
                policy="strict",
                check_determinism=self._on("deterministic"),
            )
            for candidate in candidates
        ]
        results = self.executor.run(jobs)
        return [_outcome(candidate, runs) for candidate, runs in zip(candidates, results, strict=True)]

    def _probe(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Return the tasks with their behaviour hash; refuse those whose output is the same whatever the input."""
        fixed = [probes.fixed(task.inputs[0]) for task in tasks]
        near = [probes.neighbours(task.inputs[0]) for task in tasks]
        jobs = [
            Job(task.program, (*first, *second), limits=self.config.limits, policy="plain")
            for task, first, second in zip(tasks, fixed, near, strict=True)
        ]
        outcomes: list[Outcome] = []
        for task, probe, runs in zip(tasks, fixed, self.executor.run(jobs), strict=True):
            if any(run.status is Status.NO_VERDICT for run in runs):
                outcomes.append(NoVerdict("the executor gave no answer on a probe"))
            elif self._on("depends_on_input") and not _depends_on_input(task, runs):
                outcomes.append(Rejected("depends_on_input", f"always {task.outputs[0][:80]}"))
            else:
                outcomes.append(replace(task, behaviour=_behaviour(task, runs[: len(probe)])))
        return outcomes

    # -- what the archive tells ------------------------------------------------------------------------------------

    def _check_new(self, outcome: Outcome, candidate: Candidate, batch: set[tuple[int, str, str]]) -> Outcome:
        if not isinstance(outcome, Task):
            return outcome
        if self._on("new"):
            what = outcome.behaviour if len(outcome.inputs) == 1 else outcome.key
            key = (candidate.lot, outcome.family, what)
            if key in batch or candidate.known(outcome):
                return Rejected("new", "does the same as a known program")
            batch.add(key)
        if self._on("held_out") and self.held_out and programs.identity(outcome.program) in self.held_out:
            return Rejected("held_out", "the program is in a held-out set")
        return outcome


def _outcome(candidate: Candidate, runs: Sequence[Execution]) -> Outcome:
    for run in runs:
        if run.status is Status.NO_VERDICT:
            return NoVerdict(run.message or "the executor gave no answer")
        if run.status is not Status.OK:
            detail = ": ".join(part for part in (run.status.value, run.error_type, run.message) if part)
            return Rejected(_RUN_CHECKS.get(run.status, "runs"), detail)
    proposal = candidate.proposal
    outputs = tuple(run.value or "" for run in runs)
    return Task(candidate.family, proposal.program, proposal.inputs, outputs, proposal.message)


def _depends_on_input(task: Task, runs: Sequence[Execution]) -> bool:
    """An error elsewhere shows nothing: a program that only accepts one input is a lock, not a task."""
    values = {run.value for run in runs if run.status is Status.OK} | set(task.outputs)
    return len(values) > 1


def _behaviour(task: Task, runs: Sequence[Execution]) -> str:
    """Hash the outcomes on the fixed probes; where nearly all fail they say little, and the text decides."""
    outcomes = [run.outcome for run in runs]
    if sum(run.status is Status.OK for run in runs) < 2:
        outcomes.append(programs.identity(task.program))
    return probes.behaviour(task.inputs[0], outcomes)


def _leak(message: str, program: str) -> str:
    """Return how a message gives the program away, or nothing."""
    for sign in ("```", "def ", "lambda", "return ", "import ", "f(", "<answer>", "<think>"):
        if sign in message:
            return f"the message contains {sign!r}"
    words = " ".join(message.split())
    for line in program.splitlines():
        text = " ".join(line.split())
        if len(text) > 8 and text in words:
            return "the message contains a line of the program"
    return ""
