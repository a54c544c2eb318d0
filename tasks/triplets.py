"""What deduction and abduction share: the seed triplet and the form of a proposed triplet."""

from __future__ import annotations

from selfplay_gym.frame import blocks
from selfplay_gym.types import Proposal, Triplet

IDENTITY = Triplet("def f(x):\n    return x", "'Hello world'", "'Hello world'")
"""The one triplet that Absolute Zero starts from."""


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
