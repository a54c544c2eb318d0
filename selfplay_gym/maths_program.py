r"""The program that compares two answers with math-verify. It runs in the sandbox alone; here it is a text.

math-verify subtracts what it compares, as floats or with 15 digits, and takes what is below 1e-15 for 0. So sums of
large parts that cancel, such as ``1.0 \cdot 10^{30} - 10^{30} \cdot 1.0``, swallow whatever they are subtracted from
and equal every reference; and every small reference equals ``0+0``. The program therefore stands in front of three of
its functions: expressions count as numerically equal only if their values, each worked out by itself, are near each
other; symbolically, and as sets, only with every decimal as the fraction it stands for.
"""

PROGRAM = r"""
from math_verify import grader, parse, verify
from math_verify.grader import (
    is_atomic_or_pct_atomic, sympy_compare_interval, sympy_compare_sets, sympy_deep_compare_set_and_tuple,
    sympy_numeric_eq, sympy_symbolic_eq,
)
from sympy import FiniteSet, Float, Interval, Rational, Set, Tuple
from sympy.core.function import AppliedUndef

NEAR = 1e-5  # as for plain numbers
# ImportError: some sums are evaluated by code that sympy writes, and the server lacks what writes it.
NO_NUMBER = (ArithmeticError, AttributeError, ImportError, NotImplementedError, TypeError, ValueError)


def exact(value):
    return value.xreplace({each: Rational(str(each)) for each in value.atoms(Float)})


def anywhere(*sides):
    unknown = set().union(*(side.free_symbols | side.atoms(AppliedUndef) for side in sides))
    return {each: Rational(3 + 2 * i, 7 + i) for i, each in enumerate(sorted(unknown, key=str))}


def near(gold, given):
    if gold.is_Matrix or all(is_atomic_or_pct_atomic(side, Rational) for side in (gold, given)):
        return True  # element by element, or without rounding
    point = anywhere(gold, given)
    try:
        right = gold.subs(point).evalf(20)
        complex(right)
    except NO_NUMBER:
        return True
    try:
        value = given.subs(point).evalf(20)
        return abs(complex(value / right) - 1) <= NEAR if right != 0 else abs(complex(value)) <= 1e-12
    except NO_NUMBER:
        return False


def numerically(gold, given, *how):
    return sympy_numeric_eq(gold, given, *how) and near(gold, given)


def symbolically(gold, given):
    return sympy_symbolic_eq(exact(gold), exact(given))


def as_sets(gold, given, *how):
    sides = [side if isinstance(side, (Set, Tuple)) else FiniteSet(side) for side in (gold, given)]
    for kind, compare in (((FiniteSet, Tuple), sympy_deep_compare_set_and_tuple), (Interval, sympy_compare_interval)):
        if all(isinstance(side, kind) for side in sides) and compare(*sides, *how):
            return True
    return sympy_compare_sets(exact(gold), exact(given), *how)


grader.sympy_numeric_eq, grader.sympy_symbolic_eq, grader.sympy_compare_sets = numerically, symbolically, as_sets


def number(parsed):
    for value in parsed:
        if getattr(value, "is_number", False) and value.is_finite is not False:
            try:
                return complex(value.evalf(20))
            except NO_NUMBER:
                return None
    return None


def f(reference, answer, relative):
    gold, given = (parse("\\boxed{" + text + "}", parsing_timeout=None) for text in (reference, answer))
    if verify(gold, given, timeout_seconds=None):
        return True
    if not relative:
        return False
    right, value = number(gold), number(given)
    return right is not None and value is not None and abs(value - right) <= relative * abs(right)
"""
