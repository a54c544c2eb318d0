"""Inputs to try a program on, chosen by the types of an input it is known to take.

Two sets: *fixed* probes, the same for all programs that take these types, whose outcomes make the behaviour hash; and
*neighbours*, small changes of the given input, which show whether the output depends on it at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from selfplay_gym import literals

_SCALARS: dict[type, tuple[object, ...]] = {
    bool: (True, False),
    int: (0, 1, 2, 5, -3, 12, 7, 30),
    float: (0.0, 1.0, 2.5, -3.0, 10.25, 0.5),
    str: ("", "a", "hello", "Abc Def", "zyx", "aab", "12 7", "x,y;z"),
    bytes: (b"", b"a", b"hello"),
    type(None): (None,),
}
_COUNT = 8
_CONTAINERS = (list, tuple, set, frozenset)


def fixed(arguments: str) -> list[str]:
    """Return the argument lists that every program with these argument types is tried on.

    >>> fixed("4")[:3]
    ['0', '1', '2']
    """
    positional, keywords = literals.parse_arguments(arguments)
    values = [*positional, *keywords.values()]
    rows = [[_probe(value, number + 3 * place) for place, value in enumerate(values)] for number in range(_COUNT)]
    return _write(rows, list(keywords), exclude=())


def neighbours(arguments: str) -> list[str]:
    """Return argument lists that differ from the given one in one place.

    >>> neighbours("4, 'ab'")
    ["5, 'ab'", "8, 'ab'", "4, 'aba'", "4, 'b'"]
    """
    positional, keywords = literals.parse_arguments(arguments)
    values = [*positional, *keywords.values()]
    rows = [
        [*values[:place], changed, *values[place + 1 :]]
        for place, value in enumerate(values)
        for changed in _changes(value)
    ]
    return _write(rows, list(keywords), exclude=(arguments,))[:_COUNT]


def behaviour(arguments: str, outcomes: Sequence[str]) -> str:
    """Return the hash of what a program does: the types it takes and its outcomes on the fixed probes."""
    positional, keywords = literals.parse_arguments(arguments)
    types = [type(value).__name__ for value in (*positional, *keywords.values())]
    # The names of keyword arguments are left out: renaming a parameter does not change what a program does.
    text = "\0".join([*types, "|", *outcomes])
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _write(rows: list[list[object]], keywords: list[str], exclude: Sequence[str]) -> list[str]:
    texts = []
    for row in rows:
        try:
            words = [literals.encode(value, keep_order=True) for value in row]
        except literals.NotALiteral:  # a change made it too large
            continue
        named = zip(keywords, words[len(words) - len(keywords) :], strict=True)
        texts.append(", ".join(words[: len(words) - len(keywords)] + [f"{name}={word}" for name, word in named]))
    return [text for text in dict.fromkeys(texts) if text not in exclude]


def _probe(example: object, number: int) -> object:
    """Return the probe of that number for values like ``example``: same type, items like its first item."""
    kind = type(example)
    if kind in _SCALARS:
        return _SCALARS[kind][number % len(_SCALARS[kind])]
    if isinstance(example, dict):
        key, value = next(iter(example.items()), ("a", 1))
        return {_probe(key, number + n): _probe(value, number + 2 * n + 1) for n in range(number % 4)}
    if isinstance(example, (set, frozenset)):  # not in the order of this process's hash seed
        example = sorted(example, key=literals.encode)
    first = next(iter(example), 1) if isinstance(example, _CONTAINERS) else 1
    items = [_probe(first, number + 3 * n + 1) for n in range((number + 2) % 6)]
    return _build(kind, items)


def _build(kind: type, items: list[object]) -> object:
    try:
        return kind(items)
    except TypeError:  # unhashable items of a set cannot come from a literal, but stay safe
        return kind()


def _changes(value: object) -> list[object]:
    """Return up to two values of the same type near ``value``."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [value + 1, value * 2]
    if isinstance(value, str):
        return [value + value[:1], value[1:]]
    if isinstance(value, bytes):
        return [value + value[:1], value[1:]]
    if isinstance(value, dict):
        items = list(value.items())
        return [dict(items[1:]), {key: _change(item) for key, item in items}]
    if isinstance(value, (list, tuple)):
        return [type(value)(_change(item) for item in value), value[1:]]
    if isinstance(value, (set, frozenset)):
        ordered = sorted(value, key=literals.encode)
        return [type(value)(ordered[1:])]
    return [0]


def _change(value: object) -> object:
    return (_changes(value) or [value])[0]
