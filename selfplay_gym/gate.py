"""The gate: what decides whether a proposal becomes a task.

A strict gate matters more for stability than the reward (arXiv:2605.22217), so each rule is a check with a name, every
rejection is counted by that name, and all of them are on by default. Checks run in the order of `CHECKS`; the first
that refuses decides. What needs execution runs in three batches for all proposals together: the proposed inputs, the
probes, and those probes again that gave a value; composed programs run once more, without each of their functions.
"""

from __future__ import annotations

import ast
import contextlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from selfplay_gym import composition, literals, probes, programs
from selfplay_gym.errors import InvalidConfig
from selfplay_gym.protocols import Executor
from selfplay_gym.registry import unknown
from selfplay_gym.types import (
    ERRORS,
    NO_ERROR,
    Execution,
    Job,
    Limits,
    NoVerdict,
    Proposal,
    Rejected,
    Status,
    Task,
)

CHECKS = {
    "format": "the completion keeps to the think/answer frame",
    "parse": "the answer has the blocks the family asks for",
    "size": "program, inputs and message are within their caps",
    "syntax": "the program parses",
    "composite": "it calls each of the functions that it was given, with effect, and gives their names to nothing else",
    "signature": "it defines f, with at least one parameter that must be given",
    "single_def": "where that is asked for, f is the only function that it defines, nested ones and methods included",
    "literal_inputs": "every input is an argument list of literals",
    "distinct_inputs": "the inputs of one proposal differ",
    "message": "the message holds no code, no statement of the program and no two of the pairs that judge",
    "raise": "a program whose error is asked for has no raise, assert or throw, and names nothing after an exception",
    "policy": "the program stays within the language policy",
    "runs": "it returns within its limits on every input",
    "value": "it returns a value of exact builtin types, under the size cap",
    "error": "where its error is asked for, that is a built-in exception whose name every Python knows",
    "deterministic": "two runs in one process and one in another with a different hash seed agree",
    "depends_on_input": "some other input gives another value, and so do the inputs that judge",
    "new": "no task of the family does the same on the probes, or with several inputs is its program on most of them",
    "held_out": "the program is not in a held-out set",
}
"""Every check by name, in order, with what it demands."""

OPTIONAL = frozenset({"distinct_inputs", "message", "depends_on_input", "new", "held_out", "deterministic", "raise"})
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
        single_def: Refuse programs with more than one ``def``.
        cut_outputs: Cut outputs of tasks in the middle to so many characters, and so make wrong ones of them; None
            leaves them whole. The published code of Absolute Zero cuts to 400.
    """

    program_characters: int = 4096
    input_characters: int = 1024
    message_characters: int = 1024
    limits: Limits = field(default_factory=Limits)
    disabled: frozenset[str] = frozenset()
    single_def: bool = False
    cut_outputs: int | None = None

    def __post_init__(self) -> None:
        if self.cut_outputs is not None and self.cut_outputs < 2:
            raise InvalidConfig(f"cut_outputs must be at least 2 characters or None, got {self.cut_outputs}")
        for name in ("program_characters", "input_characters", "message_characters"):
            if not 1 <= getattr(self, name) <= programs.MAX_SOURCE:
                raise InvalidConfig(f"{name} must be between 1 and {programs.MAX_SOURCE}, got {getattr(self, name)}")
        if self.limits.output_bytes > literals.MAX_TEXT:  # a solver could not answer with a longer value
            most = literals.MAX_TEXT
            raise InvalidConfig(f"output_bytes of the gate must be at most {most}, got {self.limits.output_bytes}")
        for name in sorted(self.disabled - CHECKS.keys()):
            raise InvalidConfig(unknown("check", name, OPTIONAL))
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
        errors: How its runs end is what is asked for: an exception is an output (`types.ERRORS`), and none is too.
        functions: Texts of the functions ``g_0``, ``g_1``... that the program must call; they become part of it.
    """

    family: str
    proposal: Proposal
    known: Callable[[Task], bool] = lambda task: False
    lot: int = 0
    errors: bool = False
    functions: tuple[str, ...] = ()


# Signs of code, or of a completion's frame, in a message. "return" alone is an ordinary word.
_CODE = re.compile(
    r"```|\bdef \w+\(|\blambda\b.*:|^[ \t]*(?:import|from|return)\b|\breturn \w\b|\bf\(|</?(?:answer|think)>",
    re.MULTILINE,
)

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
        self.held_out = frozenset(_identities(held_out))

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
        ran = self._check_use(list(alive.values()), self._run(list(alive.values())))
        for number, outcome in zip(alive, ran, strict=True):
            if isinstance(outcome, Task):
                tasks[number] = outcome
            else:
                outcomes[number] = outcome
        probed = self._probe(list(tasks.values()), [candidates[number].errors for number in tasks])
        earlier: list[tuple[int, Task]] = []
        for (number, _), outcome in zip(tasks.items(), probed, strict=True):
            outcomes[number] = self._check_new(outcome, candidates[number], earlier)
        return [self._cut(outcomes[number]) for number in range(len(candidates))]

    def _on(self, check: str) -> bool:
        return check not in self.config.disabled

    def _cut(self, outcome: Outcome) -> Outcome:
        """Cut a task's outputs, where that is asked for; the checks have seen them whole."""
        most = self.config.cut_outputs
        if most is None or not isinstance(outcome, Task):
            return outcome
        return replace(outcome, outputs=tuple(_cut(output, most) for output in outcome.outputs))

    # -- what the text alone tells ---------------------------------------------------------------------------------

    def _check_text(self, candidate: Candidate) -> Candidate | Rejected:
        """Return the candidate as one program with its inputs in one spelling, or the first refusal."""
        proposal = candidate.proposal
        if (refused := self._check_size(proposal)) is not None:
            return refused
        if candidate.functions:
            try:
                proposal = replace(proposal, program=composition.compose(proposal.program, candidate.functions))
            except programs.NotAProgram as error:
                return Rejected("syntax", str(error))
            except composition.NotComposed as error:
                return Rejected("composite", str(error))
            if (refused := self._check_size(proposal)) is not None:
                return refused
        try:
            if not programs.takes_arguments(proposal.program, "f"):
                return Rejected("signature", CHECKS["signature"])
            if self.config.single_def and (found := programs.definitions(candidate.proposal.program)) > 1:
                return Rejected("single_def", f"{found} function definitions")
        except programs.NotAProgram as error:
            return Rejected("syntax", str(error))
        try:
            names = programs.parameters(proposal.program, "f")
            inputs = tuple(_by_place(text, *names) for text in proposal.inputs)
        except literals.NotALiteral as error:
            return Rejected("literal_inputs", str(error))
        if not all(inputs):
            return Rejected("literal_inputs", "an empty argument list")
        if self._on("distinct_inputs") and len(set(inputs)) < len(inputs):
            return Rejected("distinct_inputs", f"{len(inputs) - len(set(inputs))} inputs occur twice")
        if self._on("message") and proposal.message and (leak := _leak(proposal.message, proposal.program)):
            return Rejected("message", leak)
        if self._on("raise") and candidate.errors and (sign := _by_hand(proposal.program)):
            return Rejected("raise", sign)
        return replace(candidate, proposal=replace(proposal, inputs=inputs))

    def _check_size(self, proposal: Proposal) -> Rejected | None:
        sizes = (
            ("program", len(proposal.program), self.config.program_characters),
            ("input", max(map(len, proposal.inputs), default=0), self.config.input_characters),
            ("message", len(proposal.message), self.config.message_characters),
        )
        for what, size, cap in sizes:
            if size > cap:
                return Rejected("size", f"{what} of {size} characters, at most {cap}")
        return None

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
        results = self._run_jobs(jobs, [candidate.errors for candidate in candidates])
        outcomes = [_outcome(candidate, runs) for candidate, runs in zip(candidates, results, strict=True)]
        return [self._check_told(outcome) for outcome in outcomes]

    def _run_jobs(self, jobs: Sequence[Job], errors: Sequence[bool]) -> list[tuple[Execution, ...]]:
        """Run jobs; where an error is an answer each input alone, since a determinism check ends at the first error."""
        parts = [
            [replace(job, inputs=(text,)) for text in job.inputs] if apart else [job]
            for job, apart in zip(jobs, errors, strict=True)
        ]
        results = iter(self.executor.run([job for part in parts for job in part]))
        return [tuple(run for _ in part for run in next(results)) for part in parts]

    def _check_told(self, outcome: Outcome) -> Outcome:
        """Refuse a message that tells the pairs that judge, now that their outputs are known."""
        if isinstance(outcome, Task) and self._on("message") and _tells_pairs(outcome):
            return Rejected("message", "the message tells pairs that judge")
        return outcome

    def _check_use(self, candidates: Sequence[Candidate], outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Refuse composed programs that end the same when one of the functions returns nothing."""
        jobs, owners = [], []
        for number, (candidate, outcome) in enumerate(zip(candidates, outcomes, strict=True)):
            for place in range(len(candidate.functions) if isinstance(outcome, Task) else 0):
                name = composition.name_of(place)
                program = composition.without(candidate.proposal.program, name)
                jobs.append(Job(program, candidate.proposal.inputs, limits=self.config.limits, policy="plain"))
                owners.append((number, name))
        checked = list(outcomes)
        for (number, name), runs in zip(owners, self.executor.run(jobs) if jobs else (), strict=True):
            outcome, errors = checked[number], candidates[number].errors
            if not isinstance(outcome, Task):
                continue
            if any(run.status is Status.NO_VERDICT for run in runs):
                checked[number] = NoVerdict("the executor gave no answer without one of the functions")
            elif tuple(_output(run, errors) for run in runs) == outcome.outputs:
                checked[number] = Rejected("composite", f"what {name} returns makes no difference")
        return checked

    def _probe(self, tasks: Sequence[Task], errors: Sequence[bool]) -> list[Outcome]:
        """Return the tasks with their behaviour hash; refuse those whose output is the same whatever the input."""
        fixed = [probes.fixed(task.inputs[0]) for task in tasks]
        near = [probes.neighbours(task.inputs[0]) for task in tasks]
        jobs = [
            Job(task.program, (*first, *second), limits=self.config.limits, policy="plain")
            for task, first, second in zip(tasks, fixed, near, strict=True)
        ]
        results = self.executor.run(jobs)
        repeats = self._repeat(jobs, results, errors)
        outcomes: list[Outcome] = []
        for task, probe, runs, again, err in zip(tasks, fixed, results, repeats, errors, strict=True):
            if any(run.status is Status.NO_VERDICT for run in (*runs, *again)):
                outcomes.append(NoVerdict("the executor gave no answer on a probe"))
            elif changed := [run for run in again if run.status is Status.NONDETERMINISTIC]:
                outcomes.append(Rejected("deterministic", f"on another input: {changed[0].message}"))
            elif self._on("depends_on_input") and (constant := _constant(task, runs, err)):
                outcomes.append(Rejected("depends_on_input", constant))
            else:
                outcomes.append(replace(task, behaviour=_behaviour(task, runs[: len(probe)], err)))
        return outcomes

    def _repeat(
        self, jobs: Sequence[Job], results: Sequence[Sequence[Execution]], errors: Sequence[bool]
    ) -> list[tuple[Execution, ...]]:
        """Run the probes that gave an output again, as proposed inputs are run.

        Else a program that is honest on its own input alone, and returns an address elsewhere, would be new for ever.
        """
        if not self._on("deterministic"):
            return [()] * len(jobs)
        again = []
        for job, runs, err in zip(jobs, results, errors, strict=True):
            inputs = [text for text, run in zip(job.inputs, runs, strict=True) if _output(run, err) is not None]
            again.append(replace(job, inputs=tuple(dict.fromkeys(inputs)), check_determinism=True))
        return self._run_jobs(again, errors)

    # -- what the archive tells ------------------------------------------------------------------------------------

    def _check_new(self, outcome: Outcome, candidate: Candidate, earlier: list[tuple[int, Task]]) -> Outcome:
        if not isinstance(outcome, Task):
            return outcome
        if self._on("new"):
            repeated = any(lot == candidate.lot and _repeats(outcome, other) for lot, other in earlier)
            if repeated or candidate.known(outcome):
                return Rejected("new", "does the same as a known task")
            earlier.append((candidate.lot, outcome))
        if self._on("held_out") and self.held_out and programs.identity(outcome.program) in self.held_out:
            return Rejected("held_out", "the program is in a held-out set")
        return outcome


def _identities(held_out: Iterable[str]) -> Iterator[str]:
    for program in held_out:
        with contextlib.suppress(programs.NotAProgram):  # then no proposal can be it either
            yield programs.identity(program)


def _outcome(candidate: Candidate, runs: Sequence[Execution]) -> Outcome:
    for run in runs:
        if run.status is Status.NO_VERDICT:
            return NoVerdict(run.message or "the executor gave no answer")
        if run.status is Status.ERROR and candidate.errors:
            if run.error_type not in ERRORS:
                return Rejected("error", f"{run.error_type} is no built-in exception that can be asked for")
        elif run.status is not Status.OK:
            detail = ": ".join(part for part in (run.status.value, run.error_type, run.message) if part)
            return Rejected(_RUN_CHECKS.get(run.status, "runs"), detail)
    proposal = candidate.proposal
    outputs = tuple(_output(run, candidate.errors) or "" for run in runs)
    return Task(candidate.family, proposal.program, proposal.inputs, outputs, proposal.message)


def _output(run: Execution, errors: bool) -> str | None:
    """Return what a run gives for an output: its value or, where errors are asked for, how it ended."""
    if errors and run.status in (Status.OK, Status.ERROR):
        return run.error_type if run.status is Status.ERROR else NO_ERROR
    return run.value if run.status is Status.OK else None


def _cut(output: str, most: int) -> str:
    """Return the two ends of what is longer than ``most`` characters, with dots between them."""
    return output if len(output) <= most else f"{output[: most // 2]}...{output[-(most // 2) :]}"


def _by_hand(program: str) -> str:
    """Return how a program fails by hand or disguises how it fails, or nothing.

    What is raised by name can be read off; and a class of the program's own may be called ``KeyError``, too.
    """
    for node in ast.walk(programs.parse(program)):
        match node:
            case ast.Raise():
                return "a raise statement"
            case ast.Assert():
                return "an assert statement"
            case ast.Attribute(attr="throw"):
                return "throw"
            case ast.Attribute(attr="__name__", ctx=ast.Store()):
                return "a name that is changed"
        if (name := programs.binds(node)) in ERRORS or name == NO_ERROR:
            return f"{name} is given to something else"
    return ""


def _by_place(text: str, by_place: Sequence[str], by_name: Sequence[str]) -> str:
    """Return an argument list in one spelling: keywords only where the program takes them in no other way.

    ``4`` and ``x=4`` are the same input of ``f(x)``, and the name ``x`` is nothing that an induction solver could know.

    Raises:
        NotALiteral: It is no argument list of literals.
    """
    positional, keywords = literals.parse_arguments(text)
    for name in by_place[len(positional) :]:
        if name not in keywords:
            break
        positional.append(keywords.pop(name))
    words = [literals.encode(value, keep_order=True) for value in positional]
    for name in sorted(keywords, key=[*by_name, *keywords].index):
        words.append(f"{name}={literals.encode(keywords[name], keep_order=True)}")
    return ", ".join(words)


def _constant(task: Task, runs: Sequence[Execution], errors: bool) -> str:
    """Return what is the same whatever the input, or nothing.

    Unless it is what is asked for, an error elsewhere shows nothing: a program that only accepts one input is a lock,
    not a task. Where the second half of several outputs judges, they must differ too, or ``return 1`` may be a right
    answer.
    """
    values = {output for run in runs if (output := _output(run, errors)) is not None} | set(task.outputs)
    if len(values) == 1:
        return f"always {task.outputs[0][:80]}"
    judging = task.outputs[len(task.outputs) // 2 :]
    if len(judging) > 1 and len(set(judging)) == 1:
        return f"the outputs that judge are all {judging[0][:80]}"
    return ""


def _behaviour(task: Task, runs: Sequence[Execution], errors: bool) -> str:
    """Hash the values on the fixed probes; where they say little, the text decides.

    How a probe fails is left out, unless it is asked for: otherwise another exception would make another program. Of
    several inputs the proposer chose each, for a program that was given, so there the same are the same program on the
    same inputs.
    """
    if len(task.inputs) > 1:
        return probes.behaviour(task.inputs[0], [programs.identity(task.program), *sorted(task.inputs)])
    outcomes = [run.outcome if _output(run, errors) is not None else "fails" for run in runs]
    if len(set(outcomes) - {"fails"}) < 2:
        outcomes.append(programs.identity(task.program))
    return probes.behaviour(task.inputs[0], outcomes)


def behaviours(tasks: Sequence[Task], executor: Executor, limits: Limits | None = None) -> list[str]:
    """Return the behaviour that the gate would give tasks of each program and its first input.

    Empty where that input is no list of literals, or the executor gave no answer.
    """
    found = {number: probes.fixed(task.inputs[0]) for number, task in enumerate(tasks) if _is_literal(task.inputs[0])}
    jobs = [
        Job(tasks[n].program, tuple(given), limits=limits or Limits(), policy="plain") for n, given in found.items()
    ]
    hashes = [""] * len(tasks)
    for number, runs in zip(found, executor.run(jobs) if jobs else (), strict=True):
        if not any(run.status is Status.NO_VERDICT for run in runs):
            task = tasks[number]
            hashes[number] = _behaviour(replace(task, inputs=task.inputs[:1]), runs, errors=False)
    return hashes


def _is_literal(arguments: str) -> bool:
    try:
        return bool(probes.fixed(arguments))
    except literals.NotALiteral:
        return False


def _repeats(task: Task, earlier: Task) -> bool:
    if task.family != earlier.family:
        return False
    if task.behaviour == earlier.behaviour:
        return True
    same_inputs = repeats_inputs(task.inputs, earlier.inputs)
    return same_inputs and programs.identity(task.program) == programs.identity(earlier.program)


def repeats_inputs(inputs: Sequence[str], earlier: Sequence[str]) -> bool:
    """Return whether more than half of several inputs of a program were among those of an earlier task.

    >>> repeats_inputs(["1", "2", "3", "5"], ["1", "2", "3", "4"]), repeats_inputs(["1", "2", "5", "6"], ["1", "2"])
    (True, False)
    """
    return len(inputs) > 1 and 2 * len(set(inputs) & set(earlier)) > len(inputs)


def _tells_pairs(task: Task) -> bool:
    """Return whether the message holds two of the pairs that judge, or the only one."""
    half = len(task.inputs) // 2
    if not half or not task.message:
        return False
    said, told = _plain(task.message).replace('"', "'"), 0
    for pair in zip(task.inputs[half:], task.outputs[half:], strict=True):
        rest = said
        for text in pair:  # each occurrence counts once, or a number alone would tell what maps it to itself
            rest, found = _written(text).subn(" ", rest, count=1)
            if not found:
                break
        else:
            said, told = rest, told + 1
    return told >= min(2, len(task.inputs) - half)


def _written(value: str) -> re.Pattern[str]:
    """Return a pattern for a value in running text: blanks do not matter, ``3`` is not in ``13`` or ``3.5``."""
    text = _squeezed(value).replace('"', "'")
    bare = text.strip("'")
    text = bare if len(bare) > 2 else text  # longer texts need no quotes to be told
    before = r"(?<!\w)(?<!\d\.)" if text[:1].isalnum() else ""
    after = r"(?!\w)(?!\.\d)" if text[-1:].isalnum() else ""
    return re.compile(before + r"\s*".join(map(re.escape, text)) + after)


def _leak(message: str, program: str) -> str:
    """Return how a message gives the program away, or nothing."""
    if sign := _CODE.search(message):
        return f"the message contains {sign[0]!r}"
    said = _squeezed(message)
    if any(words in said for words in map(_squeezed, _statements(program)) if _says_something(words)):
        return "the message contains a statement of the program"
    return ""


def _statements(program: str) -> list[str]:
    """Return the program's lines, simple statements, and what they assign or return."""
    source = program.encode()
    # `ast.get_source_segment` splits the whole program for each part: a second for a thousand statements.
    starts = [0, *(end.end() for end in re.finditer(rb"\r\n|\r|\n", source))]
    texts = program.splitlines()
    for node in ast.walk(programs.parse(program)):
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Return, ast.Expr)):
            for part in (node, node.value):
                if part is not None and part.end_lineno is not None and part.end_col_offset is not None:
                    first, last = starts[part.lineno - 1], starts[part.end_lineno - 1]
                    texts.append(source[first + part.col_offset : last + part.end_col_offset].decode())
    return texts


# Signs and letters that look like those of programs: dots and crosses for *, minus and dashes, Cyrillic and Greek.
_LOOK_ALIKES = str.maketrans(
    "\u00b7\u00d7\u22c5\u2217\u2219\u2022\u00f7\u2215\u2212\u2013"
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u03bf\u03c7",
    "******//--aeopcyxiox",
)


def _plain(text: str) -> str:
    """Write letters and signs in their plain form, and leave out what cannot be seen."""
    text = unicodedata.normalize("NFKC", text).translate(_LOOK_ALIKES)
    return "".join(c for c in text if c.isprintable() or c.isspace())


def _squeezed(text: str) -> str:
    """Write a text in its plain form without blanks."""
    return "".join(_plain(text).split())


def _says_something(words: str) -> bool:
    return len(words) > 8 or (len(words) > 3 and any(c in "=+-*/%<>[" for c in words))
