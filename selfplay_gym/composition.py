"""Programs made of stored programs: one becomes a function ``g_0``, a proposal calls it, both become one program text.

Source that a model wrote is never pasted together: each part is parsed on its own, names are changed in the tree, and
the text is written from the tree and read back. So nothing in one part can close, comment out or continue another.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Sequence

from selfplay_gym import programs

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class NotComposed(ValueError):
    """A program does not use its helpers as it should."""


def name_of(number: int) -> str:
    """Return the name of a helper.

    >>> name_of(0)
    'g_0'
    """
    return f"g_{number}"


def helper(program: str, name: str) -> str | None:
    r"""Return a program as one function of that name, None where it is more than a function ``f`` and its imports.

    So a composed program is never a part of another one.

    >>> helper("import math\ndef f(x): return math.floor(x) if x < 9 else f(x - 9)", "g_0")
    'import math\n\ndef g_0(x):\n    return math.floor(x) if x < 9 else g_0(x - 9)'
    >>> helper("def h(x): return x\ndef f(x): return h(x)", "g_0") is None
    True
    """
    try:
        tree = programs.parse(program)
        body = [statement for statement in tree.body if not _is_remark(statement)]
        imports = [s for s in body if isinstance(s, (ast.Import, ast.ImportFrom))]
        functions = [s for s in body if isinstance(s, ast.FunctionDef) and s.name == "f"]
        bindings = [bound for node in ast.walk(tree) for bound in _bound(node)]
        if len(functions) != 1 or len(body) != len(imports) + 1 or bindings.count("f") != 1:
            return None
        if any(map(_is_special, ast.walk(tree))) or any(map(_is_ours, bindings)):
            return None
        _rename(functions[0], "f", name)
        return _written([*imports, *functions])
    except (programs.NotAProgram, NotComposed):
        return None


def compatible(helpers: Sequence[str]) -> bool:
    r"""Return whether no two of the functions' imports give the same name to different things.

    >>> compatible(["import re\ndef g_0(x): return x", "import re\ndef g_1(x): return x"])
    True
    >>> compatible(["import re\ndef g_0(x): return x", "import math as re\ndef g_1(x): return x"])
    False
    """
    names = [name for s in _imports(_parsed(helpers)) for node in ast.walk(s) for name in _bound(node)]
    return len(set(names)) == len(names)


def compose(program: str, helpers: Sequence[str]) -> str:
    r"""Return a program and the functions ``g_0``, ``g_1``... that it calls as one text.

    Args:
        program: What a proposer wrote.
        helpers: As `helper` wrote them, in order of their numbers, and `compatible`.

    Raises:
        NotAProgram: The program does not parse.
        NotComposed: It does not use each of them with a value of its own, gives one of their names or of the names
            that they use to something else, or cannot be put behind them.

    >>> print(compose("def f(y): return g_0(y) + 1", ["def g_0(x): return x * 3"]))
    def g_0(x):
        return x * 3
    <BLANKLINE>
    def f(y):
        return g_0(y) + 1
    """
    tree = programs.parse(program)
    parts = _parsed(helpers)
    imports = _imports(parts)
    functions = [s for s in parts if isinstance(s, ast.FunctionDef)]
    _check_use(tree, [function.name for function in functions])
    known = {ast.dump(statement) for statement in imports}
    own = [s for s in tree.body if not (isinstance(s, (ast.Import, ast.ImportFrom)) and ast.dump(s) in known)]
    taken = {name for statement in own for name in _module_names(statement)}
    if clash := sorted(taken & {name for function in functions for name in _outer_names(function)}):
        raise NotComposed(f"{clash[0]} means something else in one of the functions")
    return _written([*imports, *functions, *own])


def without(program: str, name: str) -> str:
    r"""Return a composed program in which one of the functions returns None and does nothing.

    >>> without("def g_0(x):\n    return x * 3\n\ndef f(y):\n    return g_0(y) + 1", "g_0")
    'def g_0(x):\n    return None\n\ndef f(y):\n    return g_0(y) + 1'
    """
    tree = programs.parse(program)
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == name:
            statement.body = [ast.Return(ast.Constant(None))]
    return _written(tree.body)


def _parsed(helpers: Sequence[str]) -> list[ast.stmt]:
    return [statement for text in helpers for statement in programs.parse(text).body]


def _imports(parts: Sequence[ast.stmt]) -> list[ast.stmt]:
    """Return the import statements, equal ones once."""
    return list({ast.dump(s): s for s in parts if not isinstance(s, ast.FunctionDef)}.values())


def _outer_names(function: ast.FunctionDef) -> Iterator[str]:
    """Yield the names in a function that may come from outside of it: builtins, imports, what is defined nowhere."""
    inner = {name for node in ast.walk(function) for name in _bound(node)}
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and (node.id not in inner or hasattr(builtins, node.id)):
            yield node.id


def _check_use(tree: ast.Module, names: Sequence[str]) -> None:
    own = {bound for node in ast.walk(tree) for bound in _bound(node)}
    for name in names:
        if name in own:
            raise NotComposed(f"{name} is given to something else")
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_name(node.func, name)]
        reads = sum(_is_name(node, name) for node in ast.walk(tree))
        if not reads:
            raise NotComposed(f"{name} is not called")
        if reads > len(calls):
            continue  # as in `map(g_0, values)`
        given = [[*call.args, *(keyword.value for keyword in call.keywords)] for call in calls]
        if not any(isinstance(node, ast.Name) and node.id in own for g in given for a in g for node in ast.walk(a)):
            raise NotComposed(f"{name} is called with constants alone")


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _bound(node: ast.AST) -> Iterator[str]:
    """Yield the names that a node gives to something, imports included."""
    if isinstance(node, ast.alias):
        yield node.asname or node.name.partition(".")[0]
    elif (name := programs.binds(node)) is not None:
        yield name


def _module_names(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement at top level binds there, what functions declare global included."""
    if isinstance(statement, _Definition):
        yield statement.name
        for node in ast.walk(statement):
            if isinstance(node, ast.Global):
                yield from node.names
    else:
        for node in ast.walk(statement):
            yield from _bound(node)


def _is_ours(name: str) -> bool:
    """Whether a program uses a name that another function may get."""
    return name.startswith("g_") and name[2:].isdecimal()


def _is_special(node: ast.AST) -> bool:
    """Whether a node would mean something else in a larger program."""
    match node:
        case ast.Name(id=name) if _is_ours(name):
            return True
        case ast.Global() | ast.Nonlocal() | ast.ImportFrom(module="__future__") | ast.alias(name="*"):
            return True
    return False


def _is_remark(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _rename(function: ast.FunctionDef, old: str, new: str) -> None:
    """Rename a function that is the only thing of its name, where it is defined and where it is read."""
    function.name = new
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id == old:
            node.id = new


def _written(body: Sequence[ast.stmt]) -> str:
    """Write a tree as text that reads back as the same tree.

    Raises:
        NotComposed: It has none; some f-strings and numbers cannot be written again.
    """
    tree = ast.fix_missing_locations(ast.Module(list(body), []))
    try:
        text = ast.unparse(tree)
        same = ast.dump(programs.parse(text)) == ast.dump(tree)
    except (ValueError, RecursionError) as error:  # an integer of too many digits has no text, here or in `dump`
        raise NotComposed(f"it cannot be written again: {str(error)[:80]}") from None
    if not same:
        raise NotComposed("it does not read back as it was written")
    if any(isinstance(s, ast.ImportFrom) and s.module == "__future__" for s in body):
        raise NotComposed("a __future__ import would not stand first")
    return text
