"""Error prediction: given a program and an input, name the exception that the call ends in, or say that there is none.

The family ``code_e`` of Absolute Zero, which its published code holds but cannot run. As there, the class is the whole
answer, and a program may not write the answer down by raising it: the gate's check ``raise`` sees to that.
"""

from __future__ import annotations

from collections.abc import Sequence

from selfplay_gym.frame import last_block
from selfplay_gym.tasks import prompting
from selfplay_gym.tasks.triplets import TripletProposals
from selfplay_gym.types import NO_ERROR, Execution, Job, Task, Verdict


class ErrorPrediction(TripletProposals):
    """Hides how a call ends and asks for it: the name of a built-in exception, or ``NoError``.

    Args:
        style: Prompt style: ``azr``, ``chat`` or ``compact``.
        references: Stored tasks shown to the proposer.
        composite: Share of proposals that must call stored programs.
        functions: Of how many.
    """

    name = "error"
    asks_for_errors = True
    reference = "error.reference"

    def __init__(
        self, style: prompting.Style = "azr", references: int = 6, composite: float = 0.0, functions: int = 1
    ) -> None:
        super().__init__(style, references, composite=composite, functions=functions)

    def seeds(self) -> Sequence[Task]:
        """Return a call that ends well and one that does not; the identity, which never fails, is no task here."""
        return [
            Task(self.name, "def f(x):\n    return x[1]", ("'Hello world'",), (NO_ERROR,)),
            Task(self.name, "def f(x):\n    return 12 // x", ("0",), ("ZeroDivisionError",)),
        ]

    def solve_prompt(self, task: Task) -> str:
        """Show program and input."""
        return prompting.fill(
            self.name, "solve", self.style, program=task.program, input=task.inputs[0], no_error=NO_ERROR
        )

    def check(self, task: Task, answer: str) -> Verdict | Job:
        """Compare with what the executor saw; nothing is run, and nothing but the bare name is right."""
        name = last_block(answer, "error").strip()
        if not name.isidentifier():
            return Verdict(0.0, "not the name of an exception")
        return Verdict(1.0) if name == task.outputs[0] else Verdict(0.0, "another ending")

    def judge(self, task: Task, executions: Sequence[Execution]) -> Verdict:
        """Never needed: `check` decides."""
        raise AssertionError("error prediction needs no execution")

    def vote(self, task: Task, answer: str, executions: Sequence[Execution]) -> str:
        """Return the name."""
        name = last_block(answer, "error").strip()
        return name if name.isidentifier() else ""
