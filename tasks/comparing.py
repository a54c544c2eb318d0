"""When two values are the same.

By their canonical texts; by Python's ``==`` as in the published Absolute Zero; or by their canonical texts but for
floats, which held-out sets compare within a tolerance.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Literal

from selfplay_gym import literals
from selfplay_gym.errors import UnknownId
from selfplay_gym.registry import unknown

Compare = Literal["canonical", "python", "close"]

TOLERANCE = 1e-6
"""Of `close`, relative and absolute: that of the input/output pairs made from EvalPlus."""


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


def close(one: str, other: str) -> bool:
    """Return whether two texts are one value, where floats at the same place may differ by `TOLERANCE`.

    Types are as strict as in canonical texts, and the items of sets and the keys of dicts compare exactly.

    >>> close("[0.3, 1]", "[0.30000000000000004, 1]"), close("1", "1.0"), close("{0.3}", "{0.30000000000000004}")
    (True, False, False)
    """
    if one == other:
        return True
    try:
        return _close(literals.parse(one), literals.parse(other))
    except literals.NotALiteral:
        return False


def _close(one: object, other: object) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_close, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        # Both were read from canonical texts, so equal keys stand in the same order.
        same_keys = literals.encode(list(one)) == literals.encode(list(other))
        return same_keys and all(map(_close, one.values(), other.values()))
    return literals.encode(one) == literals.encode(other)


def spelled(spell: Callable[[str], str], text: str) -> str:
    """Return a literal in one spelling, nothing for what is none.

    >>> spelled(literals.canonical, "[1,2]"), spelled(literals.canonical, "no idea")
    ('[1, 2]', '')
    """
    try:
        return spell(text)
    except literals.NotALiteral:
        return ""


_SAME: dict[str, Callable[[str, str], bool]] = {"canonical": operator.eq, "python": python_equal, "close": close}


def comparison(name: str) -> Callable[[str, str], bool]:
    """Return what compares two canonical texts under that name.

    Raises:
        UnknownId: It is none of ``canonical``, ``python`` and ``close``.
    """
    if name not in _SAME:
        raise UnknownId(unknown("way to compare values", name, _SAME))
    return _SAME[name]
