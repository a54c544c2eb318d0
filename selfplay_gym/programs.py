"""What can be said of a program without running it: its identity, its shape, its entry point.

Source from a model is parsed here, in a trusted process, and never compiled or run. Parsing hostile text is safe as
long as its size is capped and every way in which the parser gives up is caught.
"""

from __future__ import annotations

import ast
import hashlib
import warnings

MAX_SOURCE = 65_536


class NotAProgram(ValueError):
    """The text is not Python source that can be parsed here."""


def parse(program: str) -> ast.Module:
    """Return the syntax tree.

    Raises:
        NotAProgram: Bad syntax, over `MAX_SOURCE` characters, or beyond what the parser can take.
    """
    if len(program) > MAX_SOURCE:
        raise NotAProgram("too large")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(program)
    except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError) as error:
        raise NotAProgram(f"{type(error).__name__}: {str(error)[:120]}") from None


def identity(program: str) -> str:
    r"""Return a hash that ignores comments, blank lines and formatting.

    >>> identity("def f(x):  # note\n  return x") == identity("def f( x ):\n\n    return x")
    True
    """
    return _hash(ast.dump(parse(program)))


def shape(program: str) -> str:
    """Return a hash of the tree without names and constants: which constructs and calls, in which order.

    >>> shape("def f(x): return x + 1") == shape("def f(y): return y + 22")
    True
    >>> shape("def f(x): return x + 1") == shape("def f(x): return x - 1")
    False
    """
    return _hash(" ".join(_kind(node) for node in ast.walk(parse(program))))


def _kind(node: ast.AST) -> str:
    """Name of the construct; calls also say what they call, since ``sum(x)`` and ``max(x)`` are not alike."""
    match node:
        case ast.Call(func=ast.Name(id=name)) | ast.Call(func=ast.Attribute(attr=name)):
            return f"call:{name}"
        case _:
            return type(node).__name__


def takes_arguments(program: str, entry: str) -> bool:
    """Return whether a top-level function of that name has a parameter that a caller must give.

    >>> takes_arguments("def f(x, y=1): return x", "f"), takes_arguments("def f(x=1): return x", "f")
    (True, False)
    """
    for node in parse(program).body:
        if isinstance(node, ast.FunctionDef) and node.name == entry:
            return len(node.args.posonlyargs) + len(node.args.args) > len(node.args.defaults)
    return False


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
