"""Programming puzzles (P3, arXiv:2106.05784): write a function whose value satisfies a program that is shown.

The answer and the program that judges it never share a process, or the answer could replace what judges. ``sol()`` runs
first and its value leaves the sandbox as text; ``sat`` is called with that value in another run, and the answer is
right when that returns the very ``True``. So an answer's value must be of builtin types: one that only looks like a
list, or equals everything, is none. A long value (over 64 KiB) must hold integers, strings and lists alone.

Variants of a puzzle form a group. Puzzles without a known solution are a suite of their own. A puzzle whose known
solution fails here has no verdict; of the known ones that is ``ExponentialCoinMoves:0``, whose value has 81 MB.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import cast

from selfplay_gym import grading, literals, programs
from selfplay_gym.errors import InvalidData
from selfplay_gym.frame import last_block
from selfplay_gym.protocols import Executor
from selfplay_gym.suites import Problem, Row, Source, Suite, open_table
from selfplay_gym.tasks import prompting, scripts
from selfplay_gym.types import Execution, Job, Limits, Status, Task, Verdict

FILES = ("p3.jsonl", "p3_dev.jsonl")
LIMITS = Limits(cpu_seconds=10.0, wall_seconds=40.0, output_bytes=2**20)
"""The known solutions of the dev half take 2 s at most, and their values, but for the one, 0.8 MB."""

_DEFINITION = re.compile(r"^def sol\b", re.MULTILINE)
_ENVIRONMENT = "from typing import *\n\n"


class Puzzle:
    """Shows a program that judges and the head of the function to write; the task's message is that head.

    Args:
        style: Prompt style.
    """

    name = "puzzle"

    def __init__(self, style: prompting.Style = "azr") -> None:
        prompting.check_style(style)
        self.style = style

    def solve_prompt(self, task: Task) -> str:
        """Show ``sat`` and the head of ``sol``, with its docstring if the task has one."""
        return prompting.fill(self.name, "solve", self.style, program=task.program, head=task.message)

    def check(self, task: Task, answer: str) -> Verdict | Job:
        """Run ``sol`` alone."""
        body = last_block(answer, "python")
        if not body:
            return Verdict(0.0, "no program")
        try:
            return scripts.call(_ENVIRONMENT + whole(task.message, body), "sol")
        except literals.NotALiteral as error:
            return Verdict(0.0, str(error))

    def examine(self, task: Task, executions: Sequence[Execution]) -> Verdict | Job:
        """Run ``sat`` on what ``sol`` returned."""
        found = executions[0]
        if found.status is not Status.OK or found.value is None:
            return Verdict(0.0, found.status)
        return Job(_judging(task.program), (found.value,), entry="satisfied", policy="plain")

    def judge(self, task: Task, executions: Sequence[Execution]) -> Verdict:
        """Right when ``sat`` returned True."""
        if executions[0].status is not Status.OK:
            return Verdict(0.0, f"sat: {executions[0].status} {executions[0].error_type}".strip())
        return Verdict(1.0) if executions[0].value == "True" else Verdict(0.0, "not satisfied")


def _judging(sat: str) -> str:
    """Return the program that calls ``sat``; its text comes from the data, and may hold integers of any length."""
    environment = f"import sys\n{_ENVIRONMENT}sys.set_int_max_str_digits(0)\nexec({sat!r})\n\n\n"
    return environment + "def satisfied(answer):\n    return sat(answer) is True\n"


def whole(head: str, answer: str) -> str:
    r"""Return the function that an answer says, which may leave out the head, and the spaces before its first line.

    >>> whole("def sol():", "return 1"), whole("def sol():", "x = 1\n    return x"), whole("", "def sol(): return 1")
    ('def sol():\n    return 1', 'def sol():\n    x = 1\n    return x', 'def sol(): return 1')
    """
    if _DEFINITION.search(answer):
        return answer
    indented = (f"    {answer}", textwrap.indent(answer, "    "))
    return f"{head}\n{next((body for body in indented if _is_body(body)), indented[0])}"


def _is_body(text: str) -> bool:
    try:
        return len(programs.parse(f"def sol():\n{text}").body) == 1
    except programs.NotAProgram:
        return False


# -- the sets ----------------------------------------------------------------------------------------------------------


def _load(name: str, source: Source) -> list[Suite]:
    """Return the puzzles with a known solution, and as ``-open`` those without."""
    data, found = open_table(source.data_dir, *FILES)
    family = Puzzle(cast(prompting.Style, source.style))
    known = [_problem(row, name) for row in data.rows if row.list("sol_bodies")]
    unknown = tuple(_problem(row, name) for row in data.rows if not row.list("sol_bodies"))
    note = "dev half" if "_dev" in found else ""
    suite = Suite(name, {family.name: family}, tuple(known), data.sha256, LIMITS, note=note)
    unsolved = replace(suite, name=f"{name}-open", problems=unknown)
    return [_checked(suite, source.executor), *([unsolved] if unknown else [])]


load = partial(_load, "p3")
load_with_docstring = partial(_load, "p3-docstring")


def _problem(row: Row, suite: str) -> Problem:
    head = row.text("sol_header")
    if suite == "p3-docstring":
        head = f"{head}\n{row.text('sol_docstring')}"
    answer = f"{row.text('sol_header')}\n{_body(row)}" if row.list("sol_bodies") else ""
    return Problem(
        row.text("id"), Task(Puzzle.name, row.text("sat"), ("",), ("True",), head), answer, group=row.text("family")
    )


def _body(row: Row) -> str:
    body = row.list("sol_bodies")[0]
    if not isinstance(body, str):
        raise InvalidData(f"{row.where}: field 'sol_bodies' must hold texts, got {type(body).__name__}")
    return body


def _checked(suite: Suite, executor: Executor) -> Suite:
    """Run every known solution: where it does not satisfy its puzzle here, no answer can be trusted to."""
    attempts = [(problem.task, problem.answer) for problem in suite.problems if problem.task is not None]
    verdicts = [found.verdict for found in grading.judge(attempts, suite, executor)]
    return replace(suite, problems=tuple(map(_seen, suite.problems, verdicts)))


def _seen(problem: Problem, verdict: Verdict) -> Problem:
    return problem if verdict.passed else replace(problem, task=None, failure=f"known solution: {verdict.reason}")
