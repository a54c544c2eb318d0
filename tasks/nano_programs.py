"""Programs for the nano policy: a chain of one-line steps over a small int, a short list or a short string.

Every program has the form ``def f(x):``, lines ``x = ...``, ``return x``. The hash of its text decides whether it may
be seen in pretraining or belongs to the hold-out, so the two never share a program, whatever the seeds. Values come
from the Python functions below; a test runs all of the hold-out in the sandbox to show that they agree with the text.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from selfplay_gym import literals
from selfplay_gym.errors import InvalidConfig
from selfplay_gym.types import Task

Value = int | list[int] | str
Step = Callable[..., Value]

PAIRS = 8
"""Inputs of an induction task; half of them are shown."""
HOLDOUT_SHARE = 4
"""One program in this many is held out."""
MAX_INT = 99
MAX_LENGTH = 8
LETTERS = "abcd"


@dataclass(frozen=True, slots=True)
class Operation:
    """One kind of step: its word in messages, its types, its text with ``k`` for a constant, and its meaning."""

    word: str
    takes: type
    gives: type
    text: str
    apply: Step
    constants: tuple[int | str, ...] = ()


def _operations() -> list[Operation]:
    small, digits, pairs = (1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5), ("a", "b", "ab", "cd")
    return [
        Operation("plus", int, int, "x + {k}", lambda x, k: x + k, small),
        Operation("subtract", int, int, "x - {k}", lambda x, k: x - k, small),
        Operation("multiply", int, int, "x * {k}", lambda x, k: x * k, (2, 3)),
        Operation("divide", int, int, "x // {k}", lambda x, k: x // k, (2, 3)),
        Operation("modulo", int, int, "x % {k}", lambda x, k: x % k, (2, 3, 4, 5)),
        Operation("negate", int, int, "-x", lambda x: -x),
        Operation("absolute", int, int, "abs(x)", abs),
        Operation("atleast", int, int, "max(x, {k})", max, small),
        Operation("atmost", int, int, "min(x, {k})", min, small),
        Operation("pair", int, list, "[x, {k}]", lambda x, k: [x, k], digits),
        Operation("sort", list, list, "sorted(x)", sorted),
        Operation("reverse", list, list, "x[::-1]", lambda x: x[::-1]),
        Operation("append", list, list, "x + [{k}]", lambda x, k: [*x, k], digits),
        Operation("prepend", list, list, "[{k}] + x", lambda x, k: [k, *x], digits),
        Operation("drop", list, list, "x[{k}:]", lambda x, k: x[k:], (1, 2)),
        Operation("take", list, list, "x[:{k}]", lambda x, k: x[:k], (1, 2)),
        Operation("shorten", list, list, "x[:-1]", lambda x: x[:-1]),
        Operation("rotate", list, list, "x[1:] + x[:1]", lambda x: x[1:] + x[:1]),
        Operation("each_add", list, list, "[y + {k} for y in x]", lambda x, k: [y + k for y in x], (1, 2, 3)),
        Operation("each_double", list, list, "[y * 2 for y in x]", lambda x: [y * 2 for y in x]),
        Operation("above", list, list, "[y for y in x if y > {k}]", lambda x, k: [y for y in x if y > k], small),
        Operation("sum", list, int, "sum(x)", sum),
        Operation("count_items", list, int, "len(x)", len),
        Operation("largest", list, int, "max(x)", max),
        Operation("smallest", list, int, "min(x)", min),
        Operation("first", list, int, "x[0]", lambda x: x[0]),
        Operation("last", list, int, "x[-1]", lambda x: x[-1]),
        Operation("upper", str, str, "x.upper()", lambda x: x.upper()),
        Operation("backwards", str, str, "x[::-1]", lambda x: x[::-1]),
        Operation("suffix", str, str, "x + '{k}'", lambda x, k: x + k, pairs),
        Operation("prefix", str, str, "'{k}' + x", lambda x, k: k + x, pairs),
        Operation("cut", str, str, "x[{k}:]", lambda x, k: x[k:], (1, 2)),
        Operation("begin", str, str, "x[:{k}]", lambda x, k: x[:k], (1, 2)),
        Operation("twice", str, str, "x * 2", lambda x: x * 2),
        Operation("length", str, int, "len(x)", len),
        Operation("occurrences", str, int, "x.count('{k}')", lambda x, k: x.count(k), tuple("abcd")),
    ]


OPERATIONS = _operations()


@dataclass(frozen=True, slots=True)
class Program:
    """A chain of operations with their constants."""

    steps: tuple[tuple[Operation, int | str | None], ...]

    @property
    def takes(self) -> type:
        """Type of the argument."""
        return self.steps[0][0].takes

    @property
    def source(self) -> str:
        """Python source."""
        lines = [f"    x = {operation.text.format(k=k)}\n" for operation, k in self.steps]
        return f"def f(x):\n{''.join(lines)}    return x"

    @property
    def message(self) -> str:
        """What a proposer would tell an induction solver: the kinds of steps, without their constants."""
        return ", ".join(operation.word for operation, _ in self.steps)

    @property
    def held_out(self) -> bool:
        """Whether the program belongs to the hold-out; a property of its text alone."""
        return hashlib.blake2b(self.source.encode(), digest_size=4).digest()[0] % HOLDOUT_SHARE == 0

    def trace(self, value: Value) -> list[Value] | None:
        """Return the value after each line, or None when a step fails or leaves the small domain."""
        values = []
        for operation, k in self.steps:
            try:
                value = operation.apply(value) if k is None else operation.apply(value, k)
            except (ValueError, IndexError):
                return None
            if not _is_small(value):
                return None
            values.append(value)
        return values


def _is_small(value: Value) -> bool:
    if isinstance(value, int):
        return abs(value) <= MAX_INT
    if isinstance(value, str):
        return len(value) <= MAX_LENGTH
    return len(value) <= MAX_LENGTH and all(abs(item) <= MAX_INT for item in value)


def random_value(kind: type, rng: random.Random) -> Value:
    """Return an argument: an int from -5 to 15, or two to four digits or letters."""
    if kind is int:
        return rng.randint(-5, 15)
    if kind is list:
        return [rng.randint(0, 9) for _ in range(rng.randint(2, 4))]
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(2, 4)))


def random_program(lines: int, rng: random.Random) -> Program:
    """Return a program of that many lines; consecutive steps fit in type."""
    kind: type = rng.choice((int, list, str))
    steps: list[tuple[Operation, int | str | None]] = []
    for _ in range(lines):
        operation = rng.choice([o for o in OPERATIONS if o.takes is kind])
        steps.append((operation, rng.choice(operation.constants) if operation.constants else None))
        kind = operation.gives
    return Program(tuple(steps))


@dataclass(frozen=True, slots=True)
class Example:
    """A program with inputs that it maps within the small domain, and the value after each line for each."""

    program: Program
    inputs: tuple[Value, ...]
    traces: tuple[list[Value], ...]

    def task(self, family: str) -> Task:
        """Return the example as a task of a family; only the first pair unless it is induction."""
        count = len(self.inputs) if family == "induction" else 1
        return Task(
            family,
            self.program.source,
            tuple(literals.encode(value) for value in self.inputs[:count]),
            tuple(literals.encode(trace[-1]) for trace in self.traces[:count]),
            self.program.message if family == "induction" else "",
        )


def examples(lines: tuple[int, ...], rng: random.Random, *, held_out: bool, pairs: int = PAIRS) -> Iterator[Example]:
    """Yield examples without end, each with ``pairs`` distinct inputs; neither half of the outputs is constant.

    Raises:
        InvalidConfig: ``pairs`` is odd or below 4: a half of one output cannot vary.
    """
    if pairs < 4 or pairs % 2:
        raise InvalidConfig(f"pairs must be an even number from 4 on, got {pairs}")
    while True:
        program = random_program(rng.choice(lines), rng)
        if program.held_out is not held_out:
            continue
        inputs: dict[str, tuple[Value, list[Value]]] = {}
        for _ in range(4 * pairs):
            value = random_value(program.takes, rng)
            if (trace := program.trace(value)) is not None:
                inputs.setdefault(literals.encode(value), (value, trace))
            if len(inputs) == pairs:
                values, traces = zip(*inputs.values(), strict=True)
                if _varies(traces[: pairs // 2]) and _varies(traces[pairs // 2 :]):
                    yield Example(program, values, traces)
                break


def _varies(traces: Sequence[list[Value]]) -> bool:
    return len({literals.encode(trace[-1]) for trace in traces}) > 1
