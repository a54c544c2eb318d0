"""The arguments of a run, as the process that runs untrusted code comes by them.

Read before the program's first statement, so that it cannot change how. Loaded like `runner`, with builtins of its own.

Standard library only.
"""

from __future__ import annotations

import builtins
import marshal
from collections.abc import Callable

from selfplay_gym.literals import NotALiteral

_loads = marshal.loads

Arguments = tuple[list[object], dict[str, object]]
Supply = Callable[[], Arguments]


def supply(given: str | bytes, literal: bool) -> Supply:
    """Return what gives the arguments, each time anew.

    Args:
        given: Marshalled arguments; or, as text, why they are no literals, or an expression.
        literal: Whether they must be literals.
    """
    if type(given) is bytes:
        return lambda: _loads(given)
    if literal:
        return lambda: _raise(NotALiteral(given))
    return _evaluated_supply(str(given))


def _evaluated_supply(text: str) -> Supply:
    """Return what evaluates an argument list; for inputs of data sets, which no model wrote."""
    import ast  # a light server has none, and never gets here

    try:
        tree = ast.parse(f"f({text}\n)", mode="eval")
        call = tree.body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "f"):
            raise NotALiteral("not one argument list")
        code = compile(tree, "<input>", "eval", 0, True)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        refusal = NotALiteral(f"not one argument list: {type(error).__name__}")
        return lambda: _raise(refusal)
    return lambda: eval(code, {"f": _collect, "__builtins__": builtins})  # noqa: S307


def _collect(*positional: object, **keywords: object) -> Arguments:
    return list(positional), keywords


def _raise(error: NotALiteral) -> Arguments:
    raise error
