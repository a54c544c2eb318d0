"""The values that travel between the parts: frozen, typed, free of behaviour worth mocking."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, get_args

from selfplay_gym.errors import InvalidConfig

Role = Literal["propose", "solve"]
Policy = Literal["strict", "plain"]


class Status(StrEnum):
    """How one run of a program ended. The set is closed; only `NO_VERDICT` is our own fault."""

    OK = "ok"
    ERROR = "error"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT_LIMIT = "output_limit"
    UNSERIALISABLE = "unserialisable"
    CRASHED = "crashed"
    FORBIDDEN = "forbidden"
    NONDETERMINISTIC = "nondeterministic"
    NO_VERDICT = "no_verdict"


NO_ERROR = "NoError"
"""Output of a task that asks for the exception of a call, where the call returns."""

ERRORS = frozenset({
    "ArithmeticError", "AssertionError", "AttributeError", "BufferError", "EOFError", "IndexError", "KeyError",
    "LookupError", "NameError", "NotImplementedError", "OverflowError", "RecursionError", "RuntimeError",
    "StopIteration", "TypeError", "UnboundLocalError", "UnicodeDecodeError", "UnicodeEncodeError",
    "UnicodeError", "ValueError", "ZeroDivisionError",
})  # fmt: skip
"""The built-in exceptions that can be such an output: every Python has them, and the machine decides none of them."""


class Tier(StrEnum):
    """How strongly an executor isolates what it runs, strongest first."""

    FULL = "full"
    FILTER_ONLY = "filter_only"
    PROCESS_ONLY = "process_only"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run (one input) may use.

    Attributes:
        cpu_seconds: Processor time; decides the verdict, so that host load does not.
        wall_seconds: Clock time, for programs that sleep. At least ``cpu_seconds``.
        memory_bytes: Address space beyond what the warmed interpreter holds.
        output_bytes: Length of the encoded value in UTF-8. Longer values are refused, never cut. Beyond 64 KiB a value
            must be plain: integers, strings without quotes and backslashes, lists of them.
    """

    cpu_seconds: float = 1.0
    wall_seconds: float = 5.0
    memory_bytes: int = 256 * 2**20
    output_bytes: int = 4096

    def __post_init__(self) -> None:
        for name, kinds, low, high in (
            ("cpu_seconds", (int, float), 0.001, 3600.0),
            ("wall_seconds", (int, float), self.cpu_seconds, 7200.0),
            ("memory_bytes", (int,), 2**20, 2**40),
            ("output_bytes", (int,), 1, 2**22),
        ):
            value = getattr(self, name)
            # Exactly these types: a subclass, such as one of numpy's, does not reach a server as a number.
            if type(value) not in kinds or not low <= value <= high:
                kind = kinds[-1].__name__
                raise InvalidConfig(f"limit {name} must be of type {kind} between {low} and {high}, got {value!r}")


@dataclass(frozen=True, slots=True)
class Job:
    """A program to run on several inputs, each run with a fresh namespace.

    Attributes:
        program: Python source. Bytes are taken as they are (they may not even be UTF-8).
        inputs: Argument lists as source text, such as ``"3, 'a'"``; one run each.
        entry: Name of the function to call.
        limits: Applied to each run.
        policy: ``strict`` compiles under RestrictedPython first, ``plain`` takes any Python. Both run behind the same
            walls.
        literal_inputs: Inputs must be literals. Switch off only for inputs that no model wrote.
        check_determinism: Run each input twice in one process and once in another with a different hash seed.
    """

    program: str | bytes
    inputs: tuple[str, ...]
    entry: str = "f"
    limits: Limits = Limits()
    policy: Policy = "strict"
    literal_inputs: bool = True
    check_determinism: bool = False

    def __post_init__(self) -> None:
        if type(self.program) not in (str, bytes):
            raise InvalidConfig(f"a job's program must be str or bytes, got {type(self.program).__name__}")
        if type(self.inputs) is not tuple or any(type(text) is not str for text in self.inputs):
            raise InvalidConfig(f"a job's inputs must be a tuple of str, got {str(self.inputs)[:100]}")
        if type(self.entry) is not str:
            raise InvalidConfig(f"a job's entry must be str, got {self.entry!r}")
        if type(self.limits) is not Limits:
            raise InvalidConfig(f"a job's limits must be Limits, got {self.limits!r}")
        if self.policy not in get_args(Policy):
            raise InvalidConfig(f"a job's policy must be one of {', '.join(get_args(Policy))}, got {self.policy!r}")


ChildPer = Literal["batch", "program", "run"]
"""What has a process of the sandbox to itself."""


@dataclass(frozen=True, slots=True)
class Execution:
    """How one run of one input ended.

    Attributes:
        status: Which of the closed set of endings.
        value: Canonical text of what the program returned (`selfplay_gym.literals`), only when ``ok``.
        error_type: Exception class, signal or policy name, sanitised to 80 characters.
        message: The program's own words, cut to 200 characters. Display only.
        line: Line of ``program`` that raised or was refused, where known.
        cpu_seconds: Processor time of the run, as its process measured it; 0.0 where unknown.
    """

    status: Status
    value: str | None = None
    error_type: str = ""
    message: str = ""
    line: int | None = None
    cpu_seconds: float = 0.0

    @property
    def outcome(self) -> str:
        """What a caller of the program can observe: its value, or the class of its failure."""
        return f"={self.value}" if self.status is Status.OK else f"{self.status}:{self.error_type}"


@dataclass(frozen=True, slots=True)
class Triplet:
    """A program, one input for it, and the output the executor saw.

    Attributes:
        program: Python source that defines ``f``.
        input: The argument list as Python literals, such as ``"3, 'a'"``.
        output: Canonical text of what ``f`` returned. Always from an executor, never from the proposer.
    """

    program: str
    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a proposer wrote, parsed but not yet believed: a program, inputs for it, perhaps a message."""

    program: str
    inputs: tuple[str, ...]
    message: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """Triplets of one program, seen through the family that hides a part of them.

    Attributes:
        family: Id of the family.
        program: Python source that defines the entry function.
        inputs: Argument lists; one for deduction and abduction, several for induction.
        outputs: Canonical outputs, one an input, as an executor saw them. In families that ask for errors the name out
            of `ERRORS` or `NO_ERROR`, bare and so no value's text.
        message: What the proposer tells the solver (induction).
        behaviour: Hash of what the program does on probe inputs; empty where it was not measured.
    """

    family: str
    program: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    message: str = ""
    behaviour: str = ""

    @property
    def triplets(self) -> tuple[Triplet, ...]:
        """The task's triplets, in order."""
        return tuple(Triplet(self.program, i, o) for i, o in zip(self.inputs, self.outputs, strict=True))

    @property
    def key(self) -> str:
        """Stable identity: hash of everything that the solver's problem depends on."""
        parts = (self.family, self.program, *self.inputs, *self.outputs, self.message)
        return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Rejected:
    """A proposal that did not become a task, and the named check that refused it."""

    check: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class NoVerdict:
    """Our machinery broke while judging. Leaves baseline, loss and metrics untouched."""

    detail: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A further metric of a suite, as far as one answer decides it.

    Attributes:
        name: Of the metric: the sum of ``right`` over that of ``of``, over all answers.
        right: How many parts of the answer are right.
        of: How many it has.
    """

    name: str
    right: int
    of: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What checking one answer gave.

    Attributes:
        score: 1.0 right, 0.0 wrong, ``None`` for no verdict (our own failure).
        reason: Why it is not right, in a few words; empty when right.
        well_formed: The completion kept to the think/answer frame.
        level: Which of several ways to decide did so, where a family has such.
        marks: What the answer counts for in further metrics of its suite.
    """

    score: float | None
    reason: str = ""
    well_formed: bool = True
    level: str = ""
    marks: tuple[Mark, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the answer is right; False without a verdict."""
        return self.score == 1.0
