"""Functions whose text is put beside an answer, where its values are made ready to leave the sandbox.

Each is whole by itself: its source goes into another program, so it imports what it needs and names nothing here. The
digest is computed by the same function outside. An answer may replace any of them, and so send another value of its
own; no more.
"""

# mypy: ignore-errors
# It has no way to say that a value is of whatever type a loop over types has come to.

from __future__ import annotations


def _digest(value: object) -> str:
    """Return a text that stands for a value of numbers, text, lists and tuples, the same for equal values."""
    from hashlib import sha256

    def alike(value, written=int):
        """Return the value with equal numbers in one form."""
        if isinstance(value, (list, tuple)):
            if written is int and set(map(type, value)) <= {int, str, type(None)}:
                return value
            return (list if isinstance(value, list) else tuple)([alike(item, written) for item in value])
        if isinstance(value, (int, float)) and value % 1 == 0:
            return written(int(value))
        if value is None or isinstance(value, (float, str)):
            return value
        raise TypeError(type(value).__name__)

    try:
        text = ascii(alike(value))
    except ValueError:  # an integer of more digits than Python writes
        text = ascii(alike(value, hex))
    return "digest " + sha256(text.encode()).hexdigest()


def _short(value: object) -> object:
    """Return a value, or its digest where its text is long."""
    try:
        is_long = (isinstance(value, (str, list, tuple)) and len(value) > 4000) or len(repr(value)) > 4000
    except ValueError:  # an integer of more digits than Python writes
        is_long = True
    return _digest(value) if is_long else value


def _plain(value: object) -> object:
    """Return the value of an exact builtin type that Python holds to be equal to this one, if there is one."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str, bytes):
        if isinstance(value, kind):
            return kind(value)
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return kind([_plain(item) for item in kind.__iter__(value)])
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in dict.items(value)}
    if isinstance(value, (type({}.keys()), type({}.items()))):
        return {_plain(item) for item in value}
    if getattr(value, "ndim", None) == 0:  # a number of numpy's
        return value.item()
    if type(value).__name__ in ("Decimal", "Fraction") and value == float(value):
        return float(value)
    return value
