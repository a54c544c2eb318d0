"""Counterexamples: given a program and the value that it usually returns, find an input that gives another."""

import random
from collections.abc import Sequence

from selfplay_gym import Execution, Job, Proposal, Status, Task, Verdict, blocks, last_block, literals

PROPOSE = """Write a Python function `f` that returns the same value for nearly every input, and one usual input.

{references}Think inside <think> </think>. Then answer in the form of the examples, inside <answer> </answer>.
"""
SOLVE = """For which input does `f` return something other than `{output}`, without an error?

{program}

Think inside <think> </think>. Then answer with the argument list, in the form <answer>3, 'a'</answer>.
"""


class Counterexample:
    """Shows a program and an output; any input with another output is right."""

    name = "counterexample"
    references = 2  # stored tasks that a proposal prompt shows

    def seeds(self) -> Sequence[Task]:  # what an empty archive starts from
        return [Task(self.name, "def f(x):\n    return x * x >= 2 * x", ("7",), ("True",))]

    def proposal_prompt(self, references: Sequence[Task], rng: random.Random) -> str:
        shown = [f"```python\n{t.program}\n```\n```input\n{t.inputs[0]}\n```\n\n" for t in references]
        return PROPOSE.format(references="".join(shown))

    def parse_proposal(self, answer: str, references: Sequence[Task]) -> Proposal:
        programs, inputs = blocks(answer, "python"), blocks(answer, "input")
        if len(programs) != 1 or len(inputs) != 1:
            raise ValueError("expected one python block and one input block")
        return Proposal(programs[0], (inputs[0],))  # the gate runs it; nothing here is believed

    def solve_prompt(self, task: Task) -> str:
        return SOLVE.format(program=task.program, output=task.outputs[0])

    def check(self, task: Task, answer: str) -> Verdict | Job:  # a verdict, or what to run for one
        try:
            arguments = literals.canonical_arguments(last_block(answer, "input"))
        except literals.NotALiteral as error:
            return Verdict(0.0, str(error))
        return Job(task.program, (arguments,), policy="plain")

    def judge(self, task: Task, executions: Sequence[Execution]) -> Verdict:
        if executions[0].status is not Status.OK:
            return Verdict(0.0, executions[0].status)
        return Verdict(1.0) if executions[0].value != task.outputs[0] else Verdict(0.0, "the usual output")
