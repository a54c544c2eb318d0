"""Abduction: given a program and an output, name an input that gives it."""

from __future__ import annotations

from collections.abc import Sequence

from selfplay_gym import literals
from selfplay_gym.frame import last_block
from selfplay_gym.tasks import prompting
from selfplay_gym.tasks.comparing import spelled
from selfplay_gym.tasks.triplets import TripletProposals
from selfplay_gym.types import Execution, Job, Status, Task, Verdict


class Abduction(TripletProposals):
    """Hides the input of a triplet; any input with the same output is right."""

    name = "abduction"

    def solve_prompt(self, task: Task) -> str:
        """Show program and output."""
        return prompting.fill(self.name, "solve", self.style, program=task.program, output=task.outputs[0])

    def check(self, task: Task, answer: str) -> Verdict | Job:
        """Run the program on the answer, which must be an argument list of literals."""
        try:
            arguments = literals.canonical_arguments(last_block(answer, "input"))
        except literals.NotALiteral as error:
            return Verdict(0.0, str(error))
        # An empty argument list would call a function with defaults; no admitted task hides one.
        if not arguments:
            return Verdict(0.0, "no arguments")
        return Job(task.program, (arguments,), policy="plain")

    def judge(self, task: Task, executions: Sequence[Execution]) -> Verdict:
        """Right when the output is the task's."""
        execution = executions[0]
        if execution.status is not Status.OK:
            return Verdict(0.0, execution.status)
        same = execution.value is not None and self.same(execution.value, task.outputs[0])
        return Verdict(1.0) if same else Verdict(0.0, "another value")

    def vote(self, task: Task, answer: str, executions: Sequence[Execution]) -> str:
        """Return the input that is named: two inputs of one output are two answers."""
        return spelled(literals.canonical_arguments, last_block(answer, "input"))
