"""When a value that an answer computed is what a unit test expects.

A rule is a function of two values of exact builtin types, the one found and the one expected: both were read as
literals, so nothing that a model wrote runs when they meet. Python's own ``==`` is the usual rule of unit tests; there,
``1``, ``1.0`` and ``True`` are one value.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial

from selfplay_gym import literals

Rule = Callable[[object, object], bool]

_RELATIVE, _ABSOLUTE = 1e-7, 1e-6  # of EvalPlus (arXiv:2305.01210), for floats where a row names no tolerance


def same(found: object, expected: object) -> bool:
    """As ``is``, which asserts use of constants: the very value, types included."""
    return literals.encode(found) == literals.encode(expected)


def close(found: object, expected: object, relative: float, absolute: float) -> bool:
    """As `math.isclose` of two numbers."""
    numbers = (int, float)
    if not isinstance(found, numbers) or not isinstance(expected, numbers):
        return False
    try:
        return math.isclose(found, expected, rel_tol=relative, abs_tol=absolute)
    except OverflowError:  # an integer beyond all floats
        return found == expected


def evalplus(found: object, expected: object, absolute: float = 0.0) -> bool:
    """As EvalPlus: equal, or of one type and close, where the row has a tolerance or a float is expected.

    >>> evalplus(0.30000000000000004, 0.3), evalplus([0.1 + 0.2], (0.3,)), evalplus(2, 3)
    (True, False, False)
    """
    if found == expected:
        return True
    tolerance = absolute or (_ABSOLUTE if _is_floats(expected) else 0.0)
    return tolerance != 0 and type(found) is type(expected) and _all_close(found, expected, tolerance)


def as_sets(found: object, expected: object) -> bool:
    """Two collections with the same members, in any order and number."""
    try:
        return set(found) == set(expected)  # type: ignore[call-overload, no-any-return]
    except TypeError:
        return False


def root(absolute: float) -> Rule:
    """Return the rule of any root of the polynomial whose coefficients are expected, lowest first.

    >>> root(1e-6)(-0.5, [1, 2]), root(1e-6)(0.5, [1, 2])
    (True, False)
    """
    return partial(_is_root, absolute=absolute)


def _is_root(found: object, expected: object, absolute: float) -> bool:
    if not isinstance(found, (int, float)) or not isinstance(expected, list):
        return False
    return bool(abs(sum(factor * math.pow(found, power) for power, factor in enumerate(expected))) <= absolute)


def any_of(*rules: Rule) -> Rule:
    """Return the rule that is met where one of several is."""
    return lambda found, expected: any(rule(found, expected) for rule in rules)


def met(rule: Rule, found: object, expected: object) -> bool:
    """Return whether a rule is met; values that it cannot compare do not meet it."""
    try:
        return bool(rule(found, expected))
    except (TypeError, ValueError, OverflowError):
        return False


OPERATORS: dict[str, Rule] = {
    "Eq": operator.eq,
    "NotEq": operator.ne,
    "Lt": operator.lt,  # type: ignore[dict-item]
    "LtE": operator.le,  # type: ignore[dict-item]
    "Gt": operator.gt,  # type: ignore[dict-item]
    "GtE": operator.ge,  # type: ignore[dict-item]
    "In": lambda found, expected: found in expected,  # type: ignore[operator]
    "NotIn": lambda found, expected: found not in expected,  # type: ignore[operator]
    "Is": same,
    "IsNot": lambda found, expected: not same(found, expected),
}
"""Rules by the name of the comparison in a syntax tree."""


def within(tolerance: float, of: float | None = None) -> Rule:
    """Return the rule of numbers that differ by so much at most: from what is expected, or from another number."""
    if of is None:
        return partial(close, relative=0.0, absolute=tolerance)
    return lambda found, expected: close(found, of, relative=0.0, absolute=tolerance)


def _is_floats(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _all_close(found: object, expected: object, absolute: float) -> bool:
    if isinstance(found, (list, tuple)) and isinstance(expected, (list, tuple)):
        pairs = zip(found, expected, strict=False)
        return len(found) == len(expected) and all(_all_close(one, other, absolute) for one, other in pairs)
    if not isinstance(found, (int, float)) or not isinstance(expected, (int, float)):
        return False
    return found == expected or abs(found - expected) <= absolute + _RELATIVE * abs(expected)


REFLEXIVE: frozenset[object] = frozenset((operator.eq, same, close, evalplus, as_sets))
"""Rules, or functions that `functools.partial` made rules of, that every value meets with itself."""
