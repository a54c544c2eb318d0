"""What can be said of a program without running it: its identity, its shape, its entry point.

Source from a model is parsed here, in a trusted process, and never compiled or run. Parsing hostile text is safe as
long as its size is capped and every way in which the parser gives up is caught.
"""

from __future__ import annotations

import ast
import hashlib
import warnings
from functools import lru_cache
from typing import NamedTuple

MAX_SOURCE = 65_536
MAX_DEPTH = 100  # of the tree. Beyond a few hundred it would depend on the caller's own stack whether it can be read.

_ASKED_AGAIN = 512  # programs: gate, referee and metrics ask the same of each proposal of a step
_DECIMAL_BITS = 2000  # of an integer that Python writes in decimals whatever its limit on those; below 640 digits

# Where a node holds a name that the program may choose freely. Attributes and keywords of calls are not free.
_FREE_NAMES: dict[type[ast.AST], str] = {
    ast.Name: "id",
    ast.arg: "arg",
    ast.FunctionDef: "name",
    ast.AsyncFunctionDef: "name",
    ast.ClassDef: "name",
    ast.ExceptHandler: "name",
    ast.MatchAs: "name",
    ast.MatchStar: "name",
    ast.MatchMapping: "rest",
    ast.alias: "asname",
}
_REMARKS = {(ast.arg, "annotation"), (ast.FunctionDef, "returns"), (ast.AsyncFunctionDef, "returns")}


class NotAProgram(ValueError):
    """The text is not Python source that can be parsed here."""


def parse(program: str) -> ast.Module:
    """Return the syntax tree.

    Raises:
        NotAProgram: Bad syntax, over `MAX_SOURCE` characters, or nested more deeply than `MAX_DEPTH`.
    """
    if len(program) > MAX_SOURCE:
        raise NotAProgram("too large")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(program)
    except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError) as error:
        raise NotAProgram(f"{type(error).__name__}: {str(error)[:120]}") from None
    level: list[ast.AST] = [tree]
    for _ in range(MAX_DEPTH):
        if not level:
            break
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    if level:
        raise NotAProgram("nested too deeply")
    return tree


@lru_cache(maxsize=_ASKED_AGAIN)
def identity(program: str) -> str:
    r"""Return a hash that ignores comments, docstrings, formatting, and how the program names its own things.

    >>> identity("def f(x):  # note\n  return x") == identity("def f( value ):\n\n    return value")
    True
    >>> identity("def f(x): return len(x)") == identity("def f(x): return sum(x)")
    False
    """
    tree = parse(program)
    own = {name for node in ast.walk(tree) if (name := binds(node)) is not None}
    numbers: dict[str, str] = {}
    words: list[str] = []
    todo: list[object] = [tree]
    while todo:
        item = todo.pop()
        if isinstance(item, ast.AST):
            free = _FREE_NAMES.get(type(item))
            todo.append(_Word(")"))
            for field, value in reversed(list(ast.iter_fields(item))):
                if field == free and value in own:
                    value = _Word(numbers.setdefault(value, f"#{len(numbers)}"))
                empty = field == "type_params" and not value  # Python 3.11 has no such field
                if (type(item), field) not in _REMARKS and not empty:
                    todo += (value, _Word(field))
            todo.append(_Word(f"({type(item).__name__}"))
        elif isinstance(item, list):
            todo += (_Word("]"), *(part for part in reversed(item) if not _is_remark(part)), _Word("["))
        else:
            words.append(item.text if isinstance(item, _Word) else _written(item))
    return _hash("\0".join(words))


def _written(constant: object) -> str:
    if isinstance(constant, int) and constant.bit_length() > _DECIMAL_BITS:
        return hex(constant)
    return repr(constant)


class _Word(NamedTuple):
    text: str


def binds(node: ast.AST) -> str | None:
    """Return the name that a node gives to something, if any."""
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Store):
        return None
    name = getattr(node, _FREE_NAMES.get(type(node), ""), None)
    return name if isinstance(name, str) else None


def _is_remark(node: object) -> bool:
    """Docstrings, and other constants that stand as statements, do nothing."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


@lru_cache(maxsize=_ASKED_AGAIN)
def shape(program: str) -> str:
    """Return a hash of the tree without names and constants: which constructs and calls, in which order.

    >>> shape("def f(x): return x + 1") == shape("def f(y): return y + 22")
    True
    >>> shape("def f(x): return x + 1") == shape("def f(x): return x - 1")
    False
    """
    return _hash(" ".join(_kind(node) for node in ast.walk(parse(program))))


def kinds(program: str) -> list[str]:
    """Return the constructs and calls of a program in order of the text, names and constants left out.

    >>> kinds("def f(x): return x")[:4]
    ['FunctionDef', 'arguments', 'arg', 'Return']
    """
    found: list[str] = []
    todo: list[ast.AST] = [*reversed(parse(program).body)]
    while todo:
        node = todo.pop()
        if not isinstance(node, ast.expr_context):  # whether a name is read or written follows from where it stands
            found.append(_kind(node))
            todo += reversed([*ast.iter_child_nodes(node)])
    return found


def _kind(node: ast.AST) -> str:
    """Name of the construct; calls also say what they call, since ``sum(x)`` and ``max(x)`` are not alike."""
    match node:
        case ast.Call(func=ast.Name(id=name)) | ast.Call(func=ast.Attribute(attr=name)):
            return f"call:{name}"
        case _:
            return type(node).__name__


def takes_arguments(program: str, entry: str) -> bool:
    """Return whether the last thing of that name at top level is a function with a parameter that must be given.

    >>> takes_arguments("def f(x, y=1): return x", "f"), takes_arguments("def f(x=1): return x", "f")
    (True, False)
    """
    function = _function(program, entry)
    if function is None:
        return False
    given = function.args
    return len(given.posonlyargs) + len(given.args) > len(given.defaults) or None in given.kw_defaults


def definitions(program: str) -> int:
    r"""Return how many functions a program defines with ``def``, nested ones and methods among them.

    >>> definitions("def f(x):\n    def g(y): return y\n    return g(x)"), definitions("f = lambda x: x")
    (2, 0)
    """
    return sum(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) for node in ast.walk(parse(program)))


def parameters(program: str, entry: str) -> tuple[list[str], list[str]]:
    """Return the names of parameters that may be given by position, "" where only so, and of those by keyword only.

    >>> parameters("def f(a, /, b, *, c): return a", "f")
    (['', 'b'], ['c'])
    """
    function = _function(program, entry)
    if function is None:
        return [], []
    given = function.args
    by_place = [""] * len(given.posonlyargs) + [parameter.arg for parameter in given.args]
    return by_place, [parameter.arg for parameter in given.kwonlyargs]


def _function(program: str, entry: str) -> ast.FunctionDef | None:
    """Return what stands under ``entry`` after the top level ran, where that is a plain function definition."""
    last = None
    for statement in parse(program).body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound = {statement.name}
        else:
            bound = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
            bound |= {n.asname or n.name for n in ast.walk(statement) if isinstance(n, ast.alias)}
        if entry in bound:
            last = statement
    return last if isinstance(last, ast.FunctionDef) else None


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
