"""Induction: given input/output pairs and a message, write the program."""

from __future__ import annotations

import random
from collections.abc import Sequence

from selfplay_gym.frame import blocks, last_block
from selfplay_gym.tasks import prompting
from selfplay_gym.tasks.comparing import Compare, comparison
from selfplay_gym.tasks.triplets import IDENTITY
from selfplay_gym.types import Execution, Job, Proposal, Status, Task, Verdict


class Induction:
    """Hides the program; the first half of the pairs is shown, the second half judges.

    Args:
        style: Prompt style: ``azr``, ``chat`` or ``compact``.
        pairs: Inputs a proposal must bring (10 in Absolute Zero, half of them shown).
        compare: ``canonical``: ``1``, ``1.0`` and ``True`` are three values; ``python``: they are one; ``close``: they
            are three, but floats may differ by 1e-6.
    """

    name = "induction"
    references = 1
    references_from_all = True

    def __init__(self, style: prompting.Style = "azr", pairs: int = 10, compare: Compare = "canonical") -> None:
        prompting.check_style(style)
        prompting.check_count("pairs", pairs, 2)
        self.style, self.pairs, self.same = style, pairs, comparison(compare)

    def seeds(self) -> Sequence[Task]:
        """Return the identity program with a spread of inputs."""
        inputs = ("'Hello world'", "1", "{'a': 1, 'b': 2}", "(1.1, 1.2, 1.3)", "'[[1, 0], [0, 1]]'", "1001101100010001")
        return [Task(self.name, IDENTITY.program, inputs, inputs, "Return the input unchanged.")]

    def proposal_prompt(self, references: Sequence[Task], rng: random.Random) -> str:
        """Ask for inputs and a message for a stored program."""
        return prompting.fill(
            self.name,
            "propose",
            self.style,
            program=references[0].program,
            input=references[0].inputs[0],
            pairs=str(self.pairs),
        )

    def parse_proposal(self, answer: str, references: Sequence[Task]) -> Proposal:
        """Return the inputs and the message, for the program that was shown."""
        inputs, messages = blocks(answer, "input"), blocks(answer, "message")
        if len(inputs) != self.pairs:
            raise ValueError(f"{len(inputs)} input blocks, expected {self.pairs}")
        if len(messages) != 1:
            raise ValueError(f"{len(messages)} message blocks, expected 1")
        return Proposal(references[0].program, tuple(inputs), messages[0].strip())

    def solve_prompt(self, task: Task) -> str:
        """Show the first half of the pairs and the message."""
        shown = prompting.pairs_block(task.triplets[: self.shown(task)], self.style)
        return prompting.fill(self.name, "solve", self.style, pairs=shown, message=task.message)

    def shown(self, task: Task) -> int:
        """Return how many pairs, from the first on, the solver sees."""
        return len(task.inputs) // 2

    def judged_from(self, task: Task) -> int:
        """Return the first pair that judges; all after it do too."""
        return self.shown(task)

    def check(self, task: Task, answer: str) -> Verdict | Job:
        """Run the answer on the inputs that judge."""
        program = last_block(answer, "python")
        if not program:
            return Verdict(0.0, "no program")
        return Job(program, task.inputs[self.judged_from(task) :], policy="plain")

    def judge(self, task: Task, executions: Sequence[Execution]) -> Verdict:
        """Right when every pair that judges is; the first that is not names the reason."""
        for execution, output in zip(executions, task.outputs[self.judged_from(task) :], strict=True):
            if execution.status is not Status.OK:
                return Verdict(0.0, execution.status)
            if execution.value is None or not self.same(execution.value, output):
                return Verdict(0.0, "another value")
        return Verdict(1.0)

    def vote(self, task: Task, answer: str, executions: Sequence[Execution]) -> str:
        """Return what the program gives for the inputs that judge; nothing for one that fails on any of them."""
        values = [execution.value for execution in executions if execution.value is not None]
        return "\0".join(values) if len(values) == len(executions) else ""
