"""Asserts of a data set, taken apart: what is called, what is expected, and which rule compares the two.

An assert that ran beside an answer could be made to hold by the answer: by an object that equals everything, by a
replaced builtin, by an exit. So none runs there. It is read here, from its syntax tree, as a *case*: an expression that
gives a value in the answer's process, and a literal that this value is held to elsewhere. Nothing is run to read it. An
assert of another form is refused (`NotCases`): its caller finds another way, or has no verdict.
"""

from __future__ import annotations

import ast
import builtins
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from selfplay_gym import literals
from selfplay_gym.tasks import rules
from selfplay_gym.tasks.rules import Rule


class NotCases(ValueError):
    """The tests do not come apart into calls and expected values."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to compute and what it must be.

    Attributes:
        call: An expression, evaluated beside the answer.
        expected: Canonical text of a value.
        rule: How the two are compared.
    """

    call: str
    expected: str
    rule: Rule = operator.eq


# The value of what is compared must be the answer's own: if these were asked beside it, it could say what they see.
_DECIDING = (ast.Compare, ast.BoolOp, ast.Not, ast.IfExp, ast.GeneratorExp, ast.ListComp, ast.NamedExpr, ast.Lambda)
_DECIDING_CALLS = frozenset(("all", "any", "bool", "callable", "hasattr", "isinstance", "issubclass"))
_BUILDERS: dict[str, Callable[..., object]] = {
    "set": set, "frozenset": frozenset, "tuple": tuple, "list": list, "sorted": sorted,
}  # fmt: skip
_NUMBERS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
_MIRRORED = {"Eq": "Eq", "NotEq": "NotEq", "Lt": "Gt", "LtE": "GtE", "Gt": "Lt", "GtE": "LtE", "Is": "Is"}


class Source:
    """Text with its syntax tree, and the text of any node.

    Raises:
        NotCases: It is no Python.
    """

    def __init__(self, text: str) -> None:
        try:
            self.body: Sequence[ast.stmt] = ast.parse(text).body
        except (SyntaxError, ValueError) as error:
            raise NotCases(f"tests that are no Python: {error}") from None
        self._lines = text.encode().split(b"\n")  # columns count bytes; `ast.get_source_segment` splits each time

    def text(self, node: ast.expr | ast.stmt) -> str:
        """Return what a node was written as."""
        assert node.end_lineno is not None
        first, last = node.lineno - 1, node.end_lineno - 1
        if first == last:
            return self._lines[first][node.col_offset : node.end_col_offset].decode()
        inner = self._lines[first + 1 : last]
        parts = [self._lines[first][node.col_offset :], *inner, self._lines[last][: node.end_col_offset]]
        return b"\n".join(parts).decode()


def cases(source: Source, statements: Sequence[ast.stmt]) -> list[Case]:
    """Return the cases of asserts; statements that do nothing are passed over.

    >>> source = Source("assert f('a') == [1] and True")
    >>> cases(source, source.body)
    Traceback (most recent call last):
    ...
    selfplay_gym.tasks.asserts.NotCases: a test that is no call with an expected value: f('a') == [1] and True
    """
    return list(_cases(source, statements))


def _cases(source: Source, statements: Sequence[ast.stmt]) -> Iterator[Case]:
    for statement in statements:
        if isinstance(statement, ast.Assert):
            if not isinstance(statement.test, ast.Constant):
                yield case(source, statement.test)
        elif not (isinstance(statement, ast.Pass) or _is_text(statement)):
            raise NotCases(f"a test that is no assert: {type(statement).__name__}")


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def case(source: Source, test: ast.expr) -> Case:
    """Return the case that stands after ``assert``.

    Raises:
        NotCases: It is of no form that is known.
    """
    match test:
        case ast.Compare(left=left, ops=[found], comparators=[right]):
            return _compared(source, test, left, type(found).__name__, right)
        case ast.UnaryOp(op=ast.Not(), operand=ast.Call() as call) if _is_own(call):
            return Case(f"bool({source.text(call)})", "False")
        case ast.Call(func=ast.Name(id="isclose") | ast.Attribute(attr="isclose"), args=[left, right]):
            return _is_close(source, test, left, right)
        case ast.Call() if _is_own(test):
            return Case(f"bool({source.text(test)})", "True")
    raise _other(source, test)


def _compared(source: Source, test: ast.expr, left: ast.expr, name: str, right: ast.expr) -> Case:
    match left:
        case ast.Call(func=ast.Name(id="abs"), args=[ast.BinOp(left=found, op=ast.Sub(), right=other)]):
            if name in ("Lt", "LtE"):
                return _case(source, test, found, other, rules.within(float(_number(source, test, right))))
    try:
        return _case(source, test, left, right, rules.OPERATORS[name])
    except NotCases:
        if name not in _MIRRORED:
            raise
    return _case(source, test, right, left, rules.OPERATORS[_MIRRORED[name]])


def _is_close(source: Source, test: ast.Call, left: ast.expr, right: ast.expr) -> Case:
    given = {keyword.arg: float(_number(source, test, keyword.value)) for keyword in test.keywords}
    if not given.keys() <= {"rel_tol", "abs_tol"}:
        raise _other(source, test)
    relative, absolute = given.get("rel_tol", 1e-9), given.get("abs_tol", 0.0)  # as `math.isclose` has them
    rule = partial(rules.close, relative=relative, absolute=absolute)
    try:
        return _case(source, test, left, right, rule)
    except NotCases:
        return _case(source, test, right, left, rule)


def _case(source: Source, test: ast.expr, found: ast.expr, expected: ast.expr, rule: Rule) -> Case:
    if not _gives_a_value(found):
        raise _other(source, test)
    try:
        return Case(source.text(found), literals.encode(folded(expected)), rule)
    except (literals.NotALiteral, ValueError, TypeError):
        raise _other(source, test) from None


def _gives_a_value(found: ast.expr) -> bool:
    nodes = list(ast.walk(found))
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    deciding = any(isinstance(node, _DECIDING) for node in nodes)
    return bool(called) and not deciding and not any(_name(each) in _DECIDING_CALLS for each in called)


def _is_own(call: ast.Call) -> bool:
    """Return whether it calls a function that no builtin is: its truth is then its own."""
    name = _name(call.func)
    return bool(name) and not hasattr(builtins, name) and _gives_a_value(call)


def _name(function: ast.expr) -> str:
    return function.id if isinstance(function, ast.Name) else ""


def _number(source: Source, test: ast.expr, node: ast.expr) -> float:
    value = folded(node)
    if not isinstance(value, (int, float)):
        raise _other(source, test)
    return value


def folded(node: ast.expr) -> object:
    """Return the value of a literal, of sums and products of numbers, and of a collection made of a literal.

    Raises:
        ValueError: It is something else.
    """
    match node:
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _NUMBERS:
            one, other = folded(left), folded(right)
            if isinstance(one, (int, float)) and isinstance(other, (int, float)):
                return _NUMBERS[type(sign)](one, other)
        case ast.Call(func=ast.Name(id=name), args=[made_of], keywords=[]) if name in _BUILDERS:
            return _BUILDERS[name](folded(made_of))
    return value(node)


_VALUES: dict[str, object] = {"inf": float("inf"), "nan": float("nan")}


def value(node: ast.expr) -> object:
    """Return the value of a literal in the data, where ``inf`` and ``nan`` are numbers and a size has no limit.

    Raises:
        ValueError: It is something else.
    """
    match node:
        case ast.Name(id=name) if name in _VALUES:
            return _VALUES[name]
        case ast.List(elts=items):
            return [value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(value(item) for item in items)
        case ast.Set(elts=items):
            return {value(item) for item in items}
        case ast.Dict(keys=keys, values=items) if None not in keys:
            pairs = zip(keys, items, strict=True)
            return {value(key): value(item) for key, item in pairs if key is not None}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id="inf")):
            return float("-inf")
    return ast.literal_eval(node)


def _other(source: Source, test: ast.expr) -> NotCases:
    return NotCases(f"a test that is no call with an expected value: {source.text(test)[:100]}")
