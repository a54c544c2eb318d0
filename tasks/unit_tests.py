"""Programs that are judged by unit tests: the answer computes values in the sandbox, and the verdict falls outside it.

What a test expects never enters the process of an answer. Its tests are *cases* (`selfplay_gym.tasks.asserts`): the
calls are put behind the answer as one more function, the values that come back are held to the expected ones here, as
literals. So an answer that exits, patches what it likes, looks into frames or returns objects of its own can say
nothing but values, and is right only if it knows them.

All calls run one after the other in one namespace, as the tests of these sets do. A value too large to send is sent as
a digest.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from selfplay_gym import literals, programs
from selfplay_gym.frame import last_block
from selfplay_gym.tasks import beside, prompting, rules
from selfplay_gym.tasks.asserts import Case
from selfplay_gym.types import Execution, Job, Limits, Status, Task, Verdict

LIMITS = Limits(cpu_seconds=2.0, wall_seconds=20.0, memory_bytes=2**30, output_bytes=2**16)
"""Of all calls of one part. References need some milliseconds, but for those in `SLOW`."""

LONG_LIMITS = replace(LIMITS, cpu_seconds=4.0, wall_seconds=30.0)
"""Where there are hundreds of calls, of which references need less than a second."""

SLOW = frozenset((
    "HumanEval/15", "HumanEval/130", "HumanEval/139", "mbpp/123", "mbpp/255", "mbpp/271", "mbpp/389", "mbpp/392",
    "mbpp/583", "mbpp/599",
))  # fmt: skip
SLOW_LIMITS = replace(LIMITS, cpu_seconds=20.0, wall_seconds=120.0)
"""Of rows whose reference needs up to six seconds."""

PART_CHARACTERS = 24_000
"""Of expected values in one run, so that a right answer's values fit into the limit on output, however written."""

DIGEST_CHARACTERS = 4_000
"""A value whose text is longer comes as a digest: it can only be equal, not close."""

_EQUAL = rules.OPERATORS["Eq"]  # all that can be said of digests
_ENTRY = "_outcomes"
_INDENT = "    "

_DIGEST, _SHORT, _PLAIN = (inspect.getsource(function) for function in (beside._digest, beside._short, beside._plain))
# A program without these words gives no value that equals one of an exact builtin type and is of another.
_OTHER_TYPES = re.compile(
    r"Counter|OrderedDict|[Dd]efault[Dd]ict|ChainMap|[Nn]amed[Tt]uple|Decimal|Fraction|numpy|enum|keys\(|items\("
    r"|class |type\(|import_module|__import__"
)
_IS_DIGEST = re.compile("'digest [0-9a-f]{64}'")
_MOST_ENDS = 20  # of a body, that are tried
_FUTURE = re.compile(r"^from __future__ import [^\n]*\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class UnitTests(Task):
    """A statement with unit tests: ``inputs`` are calls as expressions, ``outputs`` what they must give.

    Attributes:
        prelude: What stands before an answer: imports, and helpers that the prompt shows.
        setup: What stands after it: what the calls need.
        stub: Head of the function that an answer may continue; empty where it must be whole.
        entry: Name of that function.
        rules: How each value is compared.
        digests: Whether each value comes as a digest.
        parts: How many calls each run makes.
        level: How the tests were come by.
    """

    prelude: str = ""
    setup: str = ""
    stub: str = ""
    entry: str = ""
    rules: tuple[rules.Rule, ...] = ()
    digests: tuple[bool, ...] = ()
    parts: tuple[int, ...] = ()
    level: str = ""

    def with_cases(self, cases: Sequence[Case]) -> UnitTests:
        """Return the task judged by these."""
        digests = tuple(is_digest(case.expected) for case in cases)
        return replace(
            self,
            inputs=tuple(case.call for case in cases),
            outputs=tuple(case.expected for case in cases),
            rules=tuple(_EQUAL if long else case.rule for case, long in zip(cases, digests, strict=True)),
            digests=digests,
            parts=tuple(_parts([len(case.expected) for case in cases])),
        )


class ByUnitTests:
    """Asks for a program and holds what it computes to expected values.

    Args:
        style: Prompt style.
    """

    name = "unit_tests"

    def __init__(self, style: prompting.Style = "azr") -> None:
        prompting.check_style(style)
        self.style: prompting.Style = style

    def solve_prompt(self, task: Task) -> str:
        """Show the statement."""
        return prompting.fill(self.name, "solve", self.style, statement=task.program)

    def check(self, task: Task, answer: str) -> Verdict | Job:
        """Run the calls on the answer."""
        assert isinstance(task, UnitTests)
        written = last_block(answer, "python")
        if not written:
            return Verdict(0.0, "no program", level=task.level)
        return outcomes_job(task, program_of(task, written))

    def judge(self, task: Task, executions: Sequence[Execution]) -> Verdict:
        """Right when every value is; the first that is not names the reason."""
        assert isinstance(task, UnitTests)
        for part, execution in zip(_slices(task.parts), executions, strict=True):
            if reason := _reason(task, part, execution):
                return Verdict(0.0, reason, level=task.level)
        return Verdict(1.0, level=task.level)


# -- the program -------------------------------------------------------------------------------------------------------


def outcomes_job(task: UnitTests, program: str) -> Job:
    """Return the job whose runs give the values of the calls, one run a part."""
    calls = [f"_digest({call})" if long else call for call, long in zip(task.inputs, task.digests, strict=True)]
    parts = ["[" + ",\n".join(calls[part]) + "]" for part in _slices(task.parts)]
    helpers = [task.setup, _DIGEST] if any(task.digests) else [task.setup]
    if _OTHER_TYPES.search(program):
        helpers, parts = [*helpers, _PLAIN], [f"_plain({values})" for values in parts]
    return _job([program, *helpers], parts, LIMITS)


def reference_job(program: str, calls: Sequence[str], limits: Limits) -> Job:
    """Return the job that gives what a reference computes, one run a call, digests in place of what is long."""
    if _OTHER_TYPES.search(program):
        calls, helpers = [f"_plain({call})" for call in calls], [_DIGEST, _SHORT, _PLAIN]
    else:
        helpers = [_DIGEST, _SHORT]
    return _job([program, *helpers], [f"_short({call})" for call in calls], limits)


def _job(texts: Sequence[str], values: Sequence[str], limits: Limits) -> Job:
    """Return the job that evaluates one expression a run, behind a program and what it needs."""
    lines = [f"{_INDENT}if part == {number}: return {value}" for number, value in enumerate(values)]
    driver = "\n".join([f"def {_ENTRY}(part):", *lines])
    inputs = tuple(map(str, range(len(values))))
    return Job("\n\n\n".join([*filter(None, texts), driver]) + "\n", inputs, _ENTRY, limits, "plain")


def program_of(task: UnitTests, written: str) -> str:
    """Return the program that an answer stands for: a whole one, or the body of the function that the prompt began."""
    if task.stub and not _is_whole(task, written):
        return _continued(task, written)
    if not task.prelude:
        return written
    future = _FUTURE.findall(written)  # must stand first
    return "".join(future) + task.prelude + "\n\n" + (_FUTURE.sub("", written) if future else written)


def _is_whole(task: UnitTests, written: str) -> bool:
    """Return whether the function is there at top level, not just its body."""
    return (
        re.search(rf"^(async )?def {re.escape(task.entry)}\b|^{re.escape(task.entry)}\s*=", written, re.M) is not None
    )


def _continued(task: UnitTests, written: str) -> str:
    """Return stub and body, without what a model wrote after the body's end.

    Blanks at the start were stripped when the answer was taken out of its completion.
    """
    lines = (written if written[:1].isspace() else _INDENT + written).split("\n")
    ends = [number for number, line in enumerate(lines) if line.strip() and not line[0].isspace()]
    for end in ends[:_MOST_ENDS]:
        program = task.stub + "\n".join(lines[:end])
        if _parses(program):
            return program
    return task.stub + "\n".join(lines)


def _parses(program: str) -> bool:
    try:
        programs.parse(program)
    except programs.NotAProgram:
        return False
    return True


# -- the verdict -------------------------------------------------------------------------------------------------------


def _reason(task: UnitTests, part: slice, execution: Execution) -> str:
    """Return why a run is not right; nothing if it is."""
    if execution.status is not Status.OK or execution.value is None:
        return execution.status
    expected = task.outputs[part]
    if execution.value == f"[{', '.join(expected)}]" and all(map(_is_reflexive, task.rules[part])):
        return ""
    found = literals.parse(execution.value)
    if not isinstance(found, list) or len(found) != len(expected):
        return "other values than asked for"
    for call, value, text, rule in zip(task.inputs[part], found, expected, task.rules[part], strict=True):
        if not rules.met(rule, value, literals.parse(text)):
            return f"another value: {call[:80]}"
    return ""


def _is_reflexive(rule: rules.Rule) -> bool:
    return rule in rules.REFLEXIVE or getattr(rule, "func", None) in rules.REFLEXIVE


def _parts(sizes: Sequence[int]) -> Iterator[int]:
    """Yield how many values each run gives, so that none gives too much."""
    count = total = 0
    for size in sizes:
        if count and total + size > PART_CHARACTERS:
            yield count
            count = total = 0
        count, total = count + 1, total + size + 2
    yield count


def _slices(parts: Sequence[int]) -> Iterator[slice]:
    start = 0
    for count in parts:
        yield slice(start, start + count)
        start += count


# -- expected values ---------------------------------------------------------------------------------------------------


def expected_text(value: object) -> str:
    """Return the canonical text of a value, or of its digest where that is too long.

    Raises:
        NotALiteral: It has neither.
    """
    try:
        return literals.encode(value, DIGEST_CHARACTERS)
    except literals.NotALiteral as error:
        if str(error) != "too large":
            raise
    return repr(beside._digest(value))


def is_digest(expected: str) -> bool:
    """Return whether an expected value is a digest in place of the value."""
    return _IS_DIGEST.fullmatch(expected) is not None
