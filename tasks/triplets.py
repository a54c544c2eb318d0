"""The proposing half that deduction, abduction and error prediction share: a program and one input for it.

What makes the proposals different is their prompt, which is found by the family's name.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from selfplay_gym import literals
from selfplay_gym.errors import InvalidConfig
from selfplay_gym.frame import blocks
from selfplay_gym.tasks import prompting
from selfplay_gym.tasks.comparing import Compare, comparison
from selfplay_gym.types import Proposal, Task, Triplet

IDENTITY = Triplet("def f(x):\n    return x", "'Hello world'", "'Hello world'")
"""The one triplet that Absolute Zero starts from."""


class TripletProposals:
    """Asks for triplets and reads them.

    Args:
        style: Prompt style: ``azr``, ``chat`` or ``compact``.
        references: Stored tasks shown to the proposer (6 in Absolute Zero).
        seed_input: Input of the identity triplet that an empty archive starts from, a literal. A policy must be able
            to read it: the proposer sees nothing else at first.
        composite: Share of proposals that must call stored programs as functions ``g_0``... Absolute Zero raises its
            share during training, and is published with 0.
        functions: Of how many, if so many of the references are plain functions.
        compare: ``canonical``: ``1``, ``1.0`` and ``True`` are three values; ``python``: they are one; ``close``: they
            are three, but floats may differ by 1e-6.
    """

    name: str
    reference = "reference"
    """Name of the prompt text that shows a stored task."""

    def __init__(
        self,
        style: prompting.Style = "azr",
        references: int = 6,
        seed_input: str = IDENTITY.input,
        composite: float = 0.0,
        functions: int = 1,
        compare: Compare = "canonical",
    ) -> None:
        prompting.check_style(style)
        prompting.check_count("references", references, 0)
        prompting.check_share("composite", composite)
        prompting.check_count("functions", functions, 1)
        self.style, self.references, self.composite, self.functions = style, references, composite, functions
        self.same = comparison(compare)
        try:
            self.seed_input = literals.canonical(str(seed_input))
        except literals.NotALiteral as error:
            raise InvalidConfig(f"seed_input must be a literal, got {seed_input!r}: {error}") from None

    def seeds(self) -> Sequence[Task]:
        """Return the identity triplet."""
        return [Task(self.name, IDENTITY.program, (self.seed_input,), (self.seed_input,))]

    def proposal_prompt(self, references: Sequence[Task], rng: random.Random) -> str:
        """Ask for a program and an input, unlike those of the references."""
        return self.composite_prompt(references, (), rng)

    def composite_prompt(self, references: Sequence[Task], functions: Sequence[str], rng: random.Random) -> str:
        """Ask for a program that calls these functions."""
        shown = prompting.references_block(references, self.style, self.reference)
        shown += prompting.functions_block(functions, self.style)
        return prompting.fill(self.name, "propose", self.style, references=shown)

    def parse_proposal(self, answer: str, references: Sequence[Task]) -> Proposal:
        """Return the program and its one input."""
        return parse_triplet(answer)


def parse_triplet(answer: str) -> Proposal:
    """Return program and input of a proposal with one ``python`` and one ``input`` block.

    Raises:
        ValueError: Either block is missing or there are several.
    """
    programs, inputs = blocks(answer, "python"), blocks(answer, "input")
    for label, found in (("python", programs), ("input", inputs)):
        if len(found) != 1:
            raise ValueError(f"{len(found)} {label} blocks, expected 1")
    return Proposal(programs[0], (inputs[0],))
