"""Programs made of a reference that go wrong in ways that models do, or that cheats would: a corpus for judges."""

from __future__ import annotations

from collections.abc import Iterator

_WRAPPED = """

_reference = {entry}

def {entry}(*given):
    {before}
    value = _reference(*given)
    {after}
"""

_ONE_OFF = """if isinstance(value, bool): return not value
    if isinstance(value, (int, float)): return value + 1
    if isinstance(value, (str, list, tuple)): return value[:-1] if value else None
    return None"""
_OTHER_TYPE = """if isinstance(value, list): return tuple(value)
    if isinstance(value, tuple): return list(value)
    if isinstance(value, str): return value.encode()
    return str(value)"""

CHANGES: dict[str, tuple[str, str]] = {
    "nothing": ("", "return value"),
    "one off": ("", _ONE_OFF),
    "another type": ("", _OTHER_TYPE),
    "an equal number of another type": ("", "return float(value) if type(value) in (bool, int) else value"),
    "nearly": ("", "return value * (1 + 1e-9) if isinstance(value, float) else value"),
    "not so nearly": ("", "return value * (1 + 1e-3) + 1e-3 if isinstance(value, float) else value"),
    "a constant": ("if not hasattr(_reference, 'first'): _reference.first = _reference(*given)",
                   "return _reference.first"),
    "None": ("", "return None"),
    "printed": ("", "print(value)"),
    "an exception": ("", "raise ValueError(value)"),
    "an exit": ("", "raise SystemExit(0)"),
    "a process that ends well": ("import os", "os._exit(0)"),
    "right at first": ("_reference.calls = getattr(_reference, 'calls', 0) + 1",
                       "return value if _reference.calls < 3 else None"),
    "arguments emptied": ("import copy; given = copy.deepcopy(given)", "return value"),
    "arguments emptied afterwards": ("", "[each.clear() for each in given if isinstance(each, (list, dict))]; "
                                         "return value if not any(value is each for each in given) else None"),
    "huge": ("", "return [0] * 10**7"),
    "deep": ("", "return (lambda f: f(f))(lambda f: f(f))"),
}  # fmt: skip
LOOP = ("while given is given: pass", "return value")
"""Takes all the time there is, so it is not in the corpus for every row."""


def changed(program: str, entry: str, change: tuple[str, str]) -> str:
    """Return the program with its entry function replaced by one that calls it and goes wrong."""
    before, after = change
    return program.rstrip() + _WRAPPED.format(entry=entry, before=before or "pass", after=after)


def corpus(program: str, entry: str) -> Iterator[tuple[str, str]]:
    """Yield every change by name, with the program that has it."""
    for name, change in CHANGES.items():
        yield name, changed(program, entry, change)
