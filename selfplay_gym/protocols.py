"""The contracts: what an executor and a task family promise. Everything else is handed one of these."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from selfplay_gym.types import Execution, Job, Proposal, Task, Tier, Verdict


class Executor(Protocol):
    """Runs programs that nobody trusts and says how each run ended."""

    @property
    def tier(self) -> Tier:
        """How strongly programs are isolated here."""
        ...

    def run(self, jobs: Sequence[Job]) -> list[tuple[Execution, ...]]:
        """Run every job; answer in the same order, with one `Execution` an input, whatever happens.

        A program that raises, hangs or eats memory is a *result*. A failure of the executor itself is retried once
        and then reported as `Status.NO_VERDICT` for the runs it concerns.

        Raises:
            ExecutorError: The sandbox as a whole could not be started.
        """
        ...

    def close(self) -> None:
        """End every process of this executor. Safe to call twice."""
        ...


@runtime_checkable
class TaskFamily(Protocol):
    """What is hidden of a task, how it is asked for, and how an answer is checked."""

    name: str

    def solve_prompt(self, task: Task) -> str:
        """Return the solver's prompt, which must not show what is hidden."""
        ...

    def check(self, task: Task, answer: str) -> Verdict | Job:
        """Return a verdict where none needs execution, else the job whose result decides."""
        ...

    def judge(self, task: Task, executions: Sequence[Execution]) -> Verdict:
        """Return the verdict on the job that `check` asked for; never called with a `NO_VERDICT` execution."""
        ...


@runtime_checkable
class TwoRunFamily(TaskFamily, Protocol):
    """A family of held-out suites whose answers run apart from the program that judges what they returned.

    For programs of a data set that could be replaced by an answer in the same process, or told what it should return.
    """

    def examine(self, task: Task, executions: Sequence[Execution]) -> Verdict | Job:
        """Return a verdict where the job of `check` decides, else the job that `judge` sees the executions of."""
        ...


@runtime_checkable
class ProposingFamily(TaskFamily, Protocol):
    """A task family for which the policy can also write tasks. Held-out sets leave this half out.

    References come from the family's own tasks; with an attribute ``references_from_all = True`` from every family's,
    for families that propose *about* a program.

    With an attribute ``asks_for_errors = True`` a call that ends in an exception is no failed proposal: its output is
    the name of the class, or ``NoError`` (`selfplay_gym.types.ERRORS`). Such tasks are shown to no other family.
    """

    references: int
    """How many stored tasks a proposal prompt shows."""

    def seeds(self) -> Sequence[Task]:
        """Return the tasks that an empty archive starts from."""
        ...

    def proposal_prompt(self, references: Sequence[Task], rng: random.Random) -> str:
        """Return the proposer's prompt, showing ``references``."""
        ...

    def parse_proposal(self, answer: str, references: Sequence[Task]) -> Proposal:
        """Return what the proposer wrote.

        Raises:
            ValueError: With the missing part as message.
        """
        ...


@runtime_checkable
class ComposingFamily(ProposingFamily, Protocol):
    """A family some of whose proposals must call stored programs, as functions ``g_0``, ``g_1``..."""

    composite: float
    """Share of its proposals that must."""
    functions: int
    """How many stored programs such a proposal must call, if so many of its references are plain functions."""

    def composite_prompt(self, references: Sequence[Task], functions: Sequence[str], rng: random.Random) -> str:
        """Return the proposer's prompt, showing ``references`` and the text of the ``functions``."""
        ...
