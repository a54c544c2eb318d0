"""Values as text: parse literals without running anything, write them canonically.

Two texts are the same value exactly when their canonical encodings are equal, so the judge compares strings and no
``__eq__`` runs. ``1``, ``1.0`` and ``True`` stay three values, NaN equals NaN, ``-0.0`` is not ``0.0``, and sets and
dicts compare without regard to order. The types are None, bool, int, float, str, bytes, list, tuple, set, frozenset
and dict, exactly.

Standard library only: the process that runs untrusted programs loads this file too.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Callable
from functools import cache

MAX_TEXT = 65_536
MAX_PLAIN = 2**22
"""Characters of integers, strings and lists alone, which are read at little cost; only where asked for."""
MAX_DEPTH = 50
MAX_INT_BITS = 14_000  # below CPython's limit of 4300 decimal digits, so that writing a value never raises

_SCALARS = frozenset({bool, int, float, str, bytes, type(None)})
_NUMBERS = frozenset({bool, int, float, type(None)})
_FEW = 100  # numbers, written without counting characters on the way
_SHORT = MAX_INT_BITS // 4  # characters: no integer in fewer digits is too large
# An escape or a number that runs into a word may be warned of; nothing else in a literal is.
_MAY_WARN = re.compile(r"\\|[0-9][A-Za-z_]")
_AS_IN_JSON = re.compile(r"(?:[\[\]0-9, -]|'[ !#-&(-\[\]-~]*+')*+")  # but for the quotes
_NAMES = {"nan": math.nan, "inf": math.inf}


class NotALiteral(ValueError):
    """The text or value is outside the closed set of value types, or too large."""


def parse(text: str, limit: int = MAX_TEXT) -> object:
    """Return the value of a literal; nothing is evaluated.

    Beyond `ast.literal_eval` it knows ``nan``, ``inf``, ``set()`` and ``frozenset(...)``, as `encode` writes them, and
    ``float('nan')`` and ``float('-inf')``, as programs do.

    >>> parse("{'a': [1, (2.5, None)]}"), parse("-inf"), parse("set()")
    ({'a': [1, (2.5, None)]}, -inf, set())

    Text over `MAX_TEXT` characters, up to ``limit``, is read if it is plain: integers, strings without quotes and
    backslashes, and lists of them.

    Raises:
        NotALiteral: Anything else, including text that is too long.
    """
    text = text.strip()
    if len(text) <= MAX_TEXT:
        return _convert(_tree(text).body, MAX_DEPTH)
    items = _as_in_json(text, limit)
    if items is None or len(items) != 1:
        raise NotALiteral("too large")
    return items[0]


def parse_arguments(text: str, limit: int = MAX_TEXT) -> tuple[list[object], dict[str, object]]:
    """Return positional and keyword arguments of a call, given what stands between its parentheses.

    >>> parse_arguments("3, 'a', key=[1]")
    ([3, 'a'], {'key': [1]})

    Of long text the same is read as by `parse`.

    Raises:
        NotALiteral: The text is not exactly one argument list of literals.
    """
    simple = _as_in_json(text, limit)
    if simple is not None:
        return simple, {}
    call = _tree(f"f({text}\n)").body
    # The shape is checked on the tree, so a text that closes the parenthesis early is refused here.
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "f"):
        raise NotALiteral("not one argument list")
    positional = [_convert(node, MAX_DEPTH) for node in call.args]
    keywords: dict[str, object] = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in keywords:
            raise NotALiteral("keyword arguments must be named, each once")
        keywords[keyword.arg] = _convert(keyword.value, MAX_DEPTH)
    return positional, keywords


def encode(value: object, limit: int = MAX_TEXT, *, keep_order: bool = False) -> str:
    """Return the canonical text of a value of exact builtin types; `parse` reads it back.

    Sets are written in order of their items' encodings, dicts in order of their keys' (``keep_order`` leaves dicts
    as they are, for inputs, whose order a program can see).

    >>> encode({"b": {3, 1}, "a": float("nan")})
    "{'a': nan, 'b': {1, 3}}"

    Raises:
        NotALiteral: A type outside the set (subclasses included), nesting over `MAX_DEPTH`, or a text over ``limit``
            UTF-8 bytes, or over `MAX_TEXT` characters and not plain. The message is ``"too large"`` in these cases.
    """
    text = _as_in_repr(value) or _Encoder(limit, keep_order).write(value, MAX_DEPTH)
    too_long = len(text) > limit or not (text.isascii() or len(text.encode("utf-8", "surrogatepass")) <= limit)
    if too_long or (len(text) > MAX_TEXT and not _AS_IN_JSON.fullmatch(text)):
        raise NotALiteral("too large")
    return text


def _as_in_repr(value: object) -> str | None:
    """Return a number, a short string or a short list of numbers as `repr` writes it canonically; None for all else."""
    if type(value) is list:
        if len(value) > _FEW or not _NUMBERS.issuperset(map(type, value)):
            return None
    elif type(value) is str:
        if len(value) > _SHORT:
            return None
    elif type(value) not in _NUMBERS:
        return None
    try:
        text = repr(value)
    except ValueError:  # an integer of too many digits
        return None
    return text if len(text) < _SHORT else None


def canonical(text: str, limit: int = MAX_TEXT) -> str:
    """Return the canonical encoding of a literal given as text.

    >>> canonical("[1,2 , {2,1}]")
    '[1, 2, {1, 2}]'
    """
    return encode(parse(text, limit), limit)


def canonical_arguments(text: str) -> str:
    """Return an argument list in one spelling; the order of dict items is kept, since programs see it.

    >>> canonical_arguments("(1,2), {'b':1,'a':2}")
    "(1, 2), {'b': 1, 'a': 2}"
    """
    positional, keywords = parse_arguments(text)
    words = [encode(value, keep_order=True) for value in positional]
    words += [f"{name}={encode(value, keep_order=True)}" for name, value in keywords.items()]
    return ", ".join(words)


def _as_in_json(text: str, limit: int) -> list[object] | None:
    """Return integers, strings and lists of them by the fastest parser there is; None where it may differ from ours."""
    if len(text) > limit or not _AS_IN_JSON.fullmatch(text):
        return None
    document = "[{}]".format(text.replace("'", '"'))
    try:
        items, end = _scan_json()(document, 0)
    except (ValueError, StopIteration, RecursionError):  # also what Python would take, such as a comma at the end
        return None
    if end < len(document):
        return None
    return items if text.count("[") < MAX_DEPTH or _is_shallow(items) else None


def _is_shallow(level: list[object]) -> bool:
    """Return whether lists are nested no more deeply than a value may be."""
    for _ in range(MAX_DEPTH):
        level = [item for each in level if type(each) is list for item in each]
        if not level:
            return True
    return False


@cache
def _scan_json() -> Callable[[str, int], tuple[list[object], int]]:
    """Return what reads the JSON at a place, without the checks of `json.loads` that cost as much again."""
    from json import JSONDecoder  # only the trainer gets here; a light server has no such module

    scan: Callable[[str, int], tuple[list[object], int]] = JSONDecoder().scan_once  # type: ignore[attr-defined]
    return scan


def _tree(text: str) -> ast.Expression:
    if len(text) > MAX_TEXT:
        raise NotALiteral("too large")
    try:
        if not _MAY_WARN.search(text):
            return ast.parse(text, mode="eval")
        with warnings.catch_warnings():  # an invalid escape such as '\d' warns; it is still a literal
            warnings.simplefilter("ignore")
            return ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError) as error:
        raise NotALiteral(f"not a literal: {type(error).__name__}") from None


def _convert(node: ast.expr, depth: int) -> object:
    if depth == 0:
        raise NotALiteral("nested too deeply")
    try:
        match node:
            case ast.Constant(value=value) if type(value) in _SCALARS:
                return value
            case ast.List(elts=items):
                return [_convert(item, depth - 1) for item in items]
            case ast.Tuple(elts=items):
                return tuple([_convert(item, depth - 1) for item in items])
            case ast.Set(elts=items):
                return {_convert(item, depth - 1) for item in items}
            case ast.Dict(keys=keys, values=values):
                return {_convert_key(k, depth): _convert(v, depth - 1) for k, v in zip(keys, values, strict=True)}
            case ast.Name(id=name) if name in _NAMES:
                return _NAMES[name]
            case ast.Call(func=ast.Name(id="set" | "frozenset" as name), args=args, keywords=[]) if len(args) <= 1:
                return _convert_set_call(name, args, depth)
            case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value=str(word))], keywords=[]):
                return _convert_float_call(word)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
                number = _convert_number(operand, depth)
                return -number if isinstance(sign, ast.USub) else +number
    except TypeError:  # an unhashable key or item
        raise NotALiteral("not a literal: unhashable") from None
    raise NotALiteral(f"not a literal: {type(node).__name__}")


def _convert_key(node: ast.expr | None, depth: int) -> object:
    if node is None:
        raise NotALiteral("not a literal: ** in a dict")
    return _convert(node, depth - 1)


def _convert_set_call(name: str, args: list[ast.expr], depth: int) -> object:
    items = _convert(args[0], depth - 1) if args else ()
    if not isinstance(items, (list, tuple, set)):
        raise NotALiteral(f"not a literal: {name}() of a {type(items).__name__}")
    return set(items) if name == "set" else frozenset(items)


def _convert_float_call(word: str) -> float:
    sign, name = (word[0], word[1:]) if word[:1] in ("+", "-") else ("", word)
    if name not in _NAMES:
        raise NotALiteral("not a literal: float() of something else than nan, inf or -inf")
    return -_NAMES[name] if sign == "-" else _NAMES[name]


def _convert_number(node: ast.expr, depth: int) -> int | float:
    value = _convert(node, depth - 1)
    if type(value) not in (int, float):
        raise NotALiteral("not a literal: a sign before something that is no number")
    return value  # type: ignore[return-value]


class _Encoder:
    """Writes one value; counts characters as it goes, so that shared structure (2**60 leaves) stops early."""

    def __init__(self, limit: int, keep_order: bool) -> None:
        self.left = limit
        self.keep_order = keep_order

    def write(self, value: object, depth: int) -> str:
        if depth == 0:
            raise NotALiteral("nested too deeply")
        kind = type(value)
        if kind in _SCALARS:
            return self._spend(_scalar(value))
        if kind is list:
            return "[" + self._join(value, depth) + "]"
        if kind is tuple:
            body = self._join(value, depth)
            return f"({body},)" if len(value) == 1 else f"({body})"  # type: ignore[arg-type]
        if kind is set or kind is frozenset:
            body = ", ".join(sorted(_distinct(self._items(value, depth))))
            text = f"{{{body}}}" if body else "set()"
            return text if kind is set else f"frozenset({text if body else ''})"
        if kind is dict:
            return "{" + ", ".join(self._pairs(value, depth)) + "}"  # type: ignore[arg-type]
        raise NotALiteral(f"a {kind.__name__} is not a value")

    def _join(self, items: object, depth: int) -> str:
        return ", ".join(self._items(items, depth))

    def _items(self, items: object, depth: int) -> list[str]:
        self._spend("[]" + ", " * (len(items) - 1))  # type: ignore[arg-type]
        return [self.write(item, depth - 1) for item in items]  # type: ignore[attr-defined]

    def _pairs(self, value: dict[object, object], depth: int) -> list[str]:
        self._spend("{}" + ": , " * len(value))
        keys = _distinct([self.write(key, depth - 1) for key in value])
        pairs = list(zip(keys, [self.write(item, depth - 1) for item in value.values()], strict=True))
        return [f"{key}: {item}" for key, item in (pairs if self.keep_order else sorted(pairs))]

    def _spend(self, text: str) -> str:
        self.left -= len(text)
        if self.left < 0:
            raise NotALiteral("too large")
        return text


def _distinct(texts: list[str]) -> list[str]:
    """Refuse what no literal can say: several NaNs that a set or dict holds apart."""
    if len(set(texts)) < len(texts):
        raise NotALiteral("items that only their identity tells apart")
    return texts


def _scalar(value: object) -> str:
    if type(value) is int and value.bit_length() > MAX_INT_BITS:
        raise NotALiteral("too large")
    return repr(value)
