"""Deduction: given a program and an input, name the output."""

from __future__ import annotations

from collections.abc import Sequence

from selfplay_gym import literals
from selfplay_gym.frame import last_block
from selfplay_gym.tasks import prompting
from selfplay_gym.tasks.comparing import spelled
from selfplay_gym.tasks.triplets import TripletProposals
from selfplay_gym.types import Execution, Job, Task, Verdict


class Deduction(TripletProposals):
    """Hides the output of a triplet and asks for it."""

    name = "deduction"

    def solve_prompt(self, task: Task) -> str:
        """Show program and input."""
        return prompting.fill(self.name, "solve", self.style, program=task.program, input=task.inputs[0])

    def check(self, task: Task, answer: str) -> Verdict | Job:
        """Compare values; the answer is parsed, never run."""
        try:
            value = literals.canonical(last_block(answer, "output"))
        except literals.NotALiteral as error:
            return Verdict(0.0, str(error))
        return Verdict(1.0) if self.same(value, task.outputs[0]) else Verdict(0.0, "another value")

    def judge(self, task: Task, executions: Sequence[Execution]) -> Verdict:
        """Never needed: `check` decides."""
        raise AssertionError("deduction needs no execution")

    def vote(self, task: Task, answer: str, executions: Sequence[Execution]) -> str:
        """Return the value that is named, as canonical text."""
        return spelled(literals.canonical, last_block(answer, "output"))
