"""Prompt texts live in files beside the families; this fills them in.

A prompt has a *body* for each family and role, long (``azr`` and ``chat``) or short (``compact``), and a *frame* around
it. In style ``azr`` the frame is a plain-text conversation for base models that ends inside the thought; in ``chat``
the body is the user's message and the policy's own chat template does the rest; ``compact`` spends few tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from string import Template
from typing import Literal, get_args

from selfplay_gym.errors import InvalidConfig, UnknownId
from selfplay_gym.types import Task, Triplet

Style = Literal["azr", "chat", "compact"]


def check_style(style: str) -> None:
    """Raise `UnknownId` unless ``style`` is one of the three."""
    if style not in get_args(Style):
        raise UnknownId(f"no prompt style {style!r}; it is one of {', '.join(get_args(Style))}")


def check_count(name: str, value: object, least: int) -> None:
    """Raise `InvalidConfig` unless a family's setting is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidConfig(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_share(name: str, value: object) -> None:
    """Raise `InvalidConfig` unless a family's setting is a number from 0 to 1."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise InvalidConfig(f"{name} must be a number from 0 to 1, got {value!r}")


def fill(family: str, role: str, style: Style, **parts: str) -> str:
    """Return the prompt of a family and role, with ``$name`` replaced; text that is put in is not searched again."""
    body = _text(f"{family}.{role}.{_length(style)}.txt").substitute(parts).rstrip()
    return _text(f"frame.{style}.txt").substitute(body=body)


def fill_task(name: str, task: Task) -> str:
    """Return the prompt text of that name with a task's ``$program``, ``$input``, ``$output`` and ``$message``."""
    parts = {"program": task.program, "input": task.inputs[0], "output": task.outputs[0], "message": task.message}
    return _text(f"{name}.txt").substitute(parts).rstrip()


def references_block(references: Sequence[Task], style: Style, template: str = "reference") -> str:
    """Return stored triplets as a proposer sees them."""
    text = _text(f"{template}.{_length(style)}.txt")
    shown = [
        text.substitute(number=str(number), program=t.program, input=t.input, output=t.output)
        for number, t in enumerate((task.triplets[0] for task in references), start=1)
    ]
    return "".join(shown)


def functions_block(functions: Sequence[str], style: Style) -> str:
    """Return the functions that a proposed program must call, nothing where there are none."""
    if not functions:
        return ""
    return _text(f"functions.{_length(style)}.txt").substitute(functions="\n\n".join(functions))


def pairs_block(triplets: Sequence[Triplet], style: Style) -> str:
    """Return input/output pairs as an induction solver sees them."""
    template = _text(f"pair.{_length(style)}.txt")
    shown = [
        template.substitute(number=str(n), input=t.input, output=t.output) for n, t in enumerate(triplets, start=1)
    ]
    return "".join(shown)


def _length(style: Style) -> str:
    return "compact" if style == "compact" else "long"


@cache
def _text(name: str) -> Template:
    return Template((resources.files(__package__) / "prompts" / name).read_text(encoding="utf-8"))
