"""What is said of programs from their text: identity, shape, entry point."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_gym import programs
from selfplay_gym.tasks import nano_programs

PLAIN = "def f(x, k):\n    total = 0\n    for y in x:\n        total += y * k\n    return total"

DISGUISES = {
    "blank lines and spaces": "def f( x , k ):\n\n    total=0\n    for y in x :\n     total+=y*k\n    return total\n",
    "comments": "# note\n" + PLAIN.replace("= 0", "= 0  # start"),
    "a docstring": PLAIN.replace("    total = 0", '    """Add up."""\n    total = 0'),
    "brackets": PLAIN.replace("return total", "return (total)"),
    "other variables": PLAIN.replace("total", "s").replace("y", "item").replace("x", "items"),
    "swapped variables": PLAIN.replace("y", "#").replace("x", "y").replace("#", "x"),
    "annotations": PLAIN.replace("f(x, k):", "f(x: list, k: int) -> int:"),
    "tabs": PLAIN.replace("    ", "\t"),
    "other quotes and line ends": PLAIN.replace("\n", "\r\n"),
}
DIFFERENT = {
    "another constant": PLAIN.replace("= 0", "= 1"),
    "another operator": PLAIN.replace("y * k", "y + k"),
    "a mixed-up variable": PLAIN.replace("y * k", "k * k"),
    "another builtin": PLAIN.replace("return total", "return abs(total)"),
    "another type of constant": PLAIN.replace("= 0", "= 0.0"),
}


@pytest.mark.parametrize("how", DISGUISES)
def test_a_disguised_program_keeps_its_identity(how: str) -> None:
    assert programs.identity(DISGUISES[how]) == programs.identity(PLAIN)


@pytest.mark.parametrize("how", DIFFERENT)
def test_another_program_has_another_identity(how: str) -> None:
    assert programs.identity(DIFFERENT[how]) != programs.identity(PLAIN)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f(x): return 'x'", "def f(y): return 'y'"),
        ("def f(x): return x.real", "def f(x): return x.imag"),
        ("def f(x): return max(x)", "def f(x): return min(x)"),
        ("def f(x): return 1", "def f(x): return True"),
        ("def f(x): return b'a'", "def f(x): return 'a'"),
        ("def f(x): return int(x, base=2)", "def f(x): return int(x, bass=2)"),
        ("def f(a, b): return a - b", "def f(a, b): return b - a"),
        ("import math\ndef f(x): return math.floor(x)", "import cmath\ndef f(x): return cmath.floor(x)"),
    ],
)
def test_what_a_program_cannot_rename_stays_in_its_identity(one: str, other: str) -> None:
    assert programs.identity(one) != programs.identity(other)


def test_identity_and_shape_are_the_same_on_every_python() -> None:
    # Archives keep them, and may be resumed on another one; from 3.12 on a function has a field more.
    assert programs.identity(PLAIN) == "dc30b2d4f00c1df788bcd64c5673a854"
    assert programs.shape(PLAIN) == "43eef6c936bd6bf5fe436275411f3538"


def test_integers_too_long_to_write_in_decimals_keep_programs_apart() -> None:
    one, other = ("def f(x): return x + 0x" + "f" * 5000 + end for end in "12")
    assert programs.identity(one) != programs.identity(other)


def test_a_text_cannot_stand_for_a_renamed_variable() -> None:
    # Renamed variables are numbered; a constant that reads like such a number is still a constant.
    assert programs.identity("def f(x): return x") != programs.identity("def f(x): return '#1'")


@given(st.randoms(use_true_random=False))
def test_generated_programs_with_different_text_have_different_identities(rng: object) -> None:
    one, other = (nano_programs.random_program(rng.randint(1, 3), rng).source for _ in range(2))  # type: ignore[attr-defined]
    assert (programs.identity(one) == programs.identity(other)) is (one == other)


def test_depth_is_limited_long_before_it_depends_on_the_stack() -> None:
    def deep(terms: int) -> str:
        return f"def f(x):\n    return x{' + 1' * terms}"

    limit = next(terms for terms in range(1, 200) if not _parses(deep(terms)))
    assert programs.MAX_DEPTH - 10 < limit < programs.MAX_DEPTH
    assert programs.identity(deep(limit - 1)) != programs.identity(deep(limit - 2))
    assert _below_many_calls(lambda: _parses(deep(limit - 1)))
    assert not _parses(deep(1500))


def _parses(program: str) -> bool:
    try:
        return bool(programs.shape(program) and programs.identity(program))
    except programs.NotAProgram:
        return False


def _below_many_calls(function: Callable[[], bool], calls: int = 600) -> bool:
    return _below_many_calls(function, calls - 1) if calls else function()


BOMBS = {
    "unary": "def f(x): return " + "-" * 20_000 + "x",
    "brackets": "def f(x): return " + "(" * 20_000 + "x" + ")" * 20_000,
    "lists": "x = " + "[" * 20_000,
    "sums": "def f(x): return x" + "+1" * 20_000,
    "attributes": "def f(x): return x" + ".a" * 20_000,
    "calls": "def f(x): return x" + "()" * 20_000,
    "lambdas": "f = " + "lambda:" * 5_000 + "0",
    "indentation": "\n".join(" " * n + "if x:" for n in range(300)),
    "f-strings": "x = " + "f'{" * 100,
    "a NUL": "def f(x): return x\0",
    "a surrogate": "def f(x): return '\ud800'",
    "a big number": "x = " + "9" * 10_000,
    "an encoding": "# -*- coding: nonsense -*-\ndef f(x) return x",
    "nothing that parses": "def f(x",
    "too long": "#" * (programs.MAX_SOURCE + 1),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_for_the_parser_is_no_program(bomb: str) -> None:
    for look in (programs.identity, programs.shape, lambda text: programs.takes_arguments(text, "f")):
        with pytest.raises(programs.NotAProgram, match=r"^[^\n]{3,160}$"):
            look(BOMBS[bomb])


def test_shape_leaves_out_names_and_constants_but_not_calls() -> None:
    assert programs.shape("def f(x): return x + 1") == programs.shape("def f(y): return y + 'a'")
    assert programs.shape("def f(x): return len(x)") != programs.shape("def f(x): return sum(x)")
    assert programs.shape("def f(x): return x.upper()") != programs.shape("def f(x): return x.lower()")


@pytest.mark.parametrize(
    ("program", "given"),
    [
        ("def f(x): return x", True),
        ("def f(x, /): return x", True),
        ("def f(*, x): return x", True),
        ("def f(x=1, *, y): return x", True),
        ("def f(x, y=1, *rest, **more): return x", True),
        ("import functools\n@functools.cache\ndef f(x): return x", True),
        ("def f(): return 1\ndef f(x): return x", True),
        ("def g(f): return f\ndef f(x): return g(x)", True),
        ("def f(x):\n    f = x\n    return f", True),
        ("def f(): return 1", False),
        ("def f(x=1): return x", False),
        ("def f(x=1, *, y=2): return x", False),
        ("def f(*rest): return rest", False),
        ("def f(**more): return more", False),
        ("f = lambda x: x", False),
        ("class f:\n    def __init__(self, x): pass", False),
        ("async def f(x): return x", False),
        ("def g(x):\n    def f(x): return x\n    return f", False),
        ("if True:\n    def f(x): return x", False),
        ("def f(x): return x\ndef f(): return 1", False),
        ("def f(x): return x\nf = lambda x=1: x", False),
        ("def f(x): return x\nasync def f(x): return x", False),
        ("def f(x): return x\nclass f: pass", False),
        ("def f(x): return x\ndel f", False),
        ("def f(x): return x\nfor f in (): pass", False),
        ("def f(x): return x\nfrom math import floor as f", False),
        ("def f(x): return x\n(f := len)", False),
        ("def F(x): return x", False),
        ("", False),
    ],
)
def test_the_entry_is_the_last_f_and_needs_an_argument(program: str, given: bool) -> None:
    assert programs.takes_arguments(program, "f") is given


def test_parameters_say_how_arguments_may_be_given() -> None:
    assert programs.parameters("def f(a, /, b, c=1, *, d, e=2): return a", "f") == (["", "b", "c"], ["d", "e"])
    assert programs.parameters("g = 1", "f") == ([], [])
