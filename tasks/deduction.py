"""Deduction: given a program and an input, name the output."""

from __future__ import annotations

import random
from collections.abc import Sequence

from selfplay_gym import literals
from selfplay_gym.frame import last_block
from selfplay_gym.tasks import prompting
from selfplay_gym.tasks.triplets import IDENTITY, parse_triplet
from selfplay_gym.types import Execution, Job, Proposal, Task, Verdict


class Deduction:
    """Hides the output of a triplet and asks for it.

    Args:
        style: Prompt style: ``azr``, ``chat`` or ``compact``.
        references: Stored tasks shown to the proposer (6 in Absolute Zero).
    """

    name = "deduction"

    def __init__(self, style: prompting.Style = "azr", references: int = 6) -> None:
        prompting.check_style(style)
        prompting.check_count("references", references, 0)
        self.style, self.references = style, references

    def seeds(self) -> Sequence[Task]:
        """Return the identity triplet."""
        return [Task(self.name, IDENTITY.program, (IDENTITY.input,), (IDENTITY.output,))]

    def proposal_prompt(self, references: Sequence[Task], rng: random.Random) -> str:
        """Ask for a program and an input whose output is hard to predict."""
        shown = prompting.references_block(references, self.style)
        return prompting.fill(self.name, "propose", self.style, references=shown)

    def parse_proposal(self, answer: str, references: Sequence[Task]) -> Proposal:
        """Return the program and its one input."""
        return parse_triplet(answer)

    def solve_prompt(self, task: Task) -> str:
        """Show program and input."""
        return prompting.fill(self.name, "solve", self.style, program=task.program, input=task.inputs[0])

    def check(self, task: Task, answer: str) -> Verdict | Job:
        """Compare values by their canonical text; the answer is parsed, never run."""
        try:
            value = literals.canonical(last_block(answer, "output"))
        except literals.NotALiteral as error:
            return Verdict(0.0, str(error))
        same = value == task.outputs[0]
        return Verdict(1.0) if same else Verdict(0.0, "another value")

    def judge(self, task: Task, executions: Sequence[Execution]) -> Verdict:
        """Never needed: `check` decides."""
        raise AssertionError("deduction needs no execution")
