"""When two values are the same: by their canonical texts, or by Python's ``==`` as in the published Absolute Zero."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Literal

from selfplay_gym import literals
from selfplay_gym.errors import UnknownId
from selfplay_gym.registry import unknown

Compare = Literal["canonical", "python"]


def python_equal(one: str, other: str) -> bool:
    """Return whether two texts are values that Python holds to be equal.

    Both are parsed and neither is run, so that no ``__eq__`` but those of builtin types is called. A text that is no
    literal, such as an output that was cut, equals its own text alone.

    >>> python_equal("[1, True]", "[1.0, 1]"), python_equal("'a'", "'b'"), python_equal("[1...", "[1...")
    (True, False, True)
    """
    try:
        return literals.parse(one) == literals.parse(other)
    except literals.NotALiteral:
        return one == other


_SAME: dict[str, Callable[[str, str], bool]] = {"canonical": operator.eq, "python": python_equal}


def comparison(name: str) -> Callable[[str, str], bool]:
    """Return what compares two canonical texts under that name.

    Raises:
        UnknownId: It is neither ``canonical`` nor ``python``.
    """
    if name not in _SAME:
        raise UnknownId(unknown("way to compare values", name, _SAME))
    return _SAME[name]
