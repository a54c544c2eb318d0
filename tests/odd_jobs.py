"""Jobs that nobody would write: noise, maimed programs, fragments put together at random. A seed fixes each."""

from __future__ import annotations

import ast
import random
import textwrap
import warnings
from collections.abc import Callable

from selfplay_gym.bench_programs import programs
from selfplay_gym.types import Job, Limits
from tests.test_sandbox_attacks import HOST, NOT_VALUES, PATCHES, RESOURCES

# What may put an address, a time or a neighbour's trace into a value: only a check says that this is one answer.
_SEES_MORE = (
    "id", "hash", "object", "repr", "str", "format", "now", "today", "time", "random", "gc", "getrefcount", "sizeof",
    "f'", "%", "set", "{",
)  # fmt: skip

_WORDS = (
    "def f(x):", "return", "x", "f", "(", ")", "[", "]", "{", "}", ":", ",", "=", "==", ":=", "+", "-", "*", "**",
    "//", "%", "<<", "~", "@", "->", ";", "\n", "\n    ", "\n\t", "\\\n", "#", "'", '"', "'''", "f'{", "b'", "r'\\",
    "lambda", "class A:", "if", "else", "for", "in", "while", "try:", "except:", "finally:", "raise", "yield", "await",
    "async", "import", "from", "global x", "nonlocal x", "del", "with", "match x:", "case _:", "pass", "not", "is",
    "None", "True", "...", "0", "1", "9" * 30, "1e999", "0x", "1_0", "1j", "len", "print(x)", "sorted", "range", "\0",
    "\ufeff", "\ud800", "é", "\U0001d487", "\u202e", "\x0c", "\r", "# coding: latin-1\n", "# coding: no-such\n",
    "*" * 9, "__name__",
)  # fmt: skip

_NUMBERS = ("0", "-1", "3", "255", "2**31", "2**63", "10**9", "10**100", "1<<10**6", "1e308", "float('nan')", "0.1")
_INPUTS = (
    "", "1", "-3", "[]", "[3, 1, 2]", "'text'", "''", "None", "True", "1.5", "nan, inf", "{1, 2}", "{'a': [1]}",
    "(1,)", "b'\\xff'", "'\\ud800'", "'\ud800'", "x=1", "1, 2", "*[1]", "f(1)", "1)", "(", "1 #", "\0", "\ufeff1",
    "1\n2", "-", "{[]}", "--1", "'a' 'b'", "9" * 5000, "0x" + "f" * 9000, "[" * 99 + "]" * 99, "(" * 10**5,
    "'" + "y" * 40_000 + "'", "lambda: 1", "1 if 1 else 2", "...", "1j", "{**{}}", "set()", "frozenset({1})",
    "1" + "+1" * 20_000, "é" * 9,
)  # fmt: skip

_SIMPLE_INPUTS = ("1", "3", "[3, 1, 2]", "'text'", "[[1], [2]]", "{'a': 1}")

_EXPRESSIONS: tuple[str, ...] = (
    "x", "f", "y", "1", "'a'", "x + x", "x * 3", "x[0]", "x[::-1]", "-x", "not x", "x == x", "x in [x]", "len(x)",
    "sorted(x)", "list(x)", "sum(x)", "max(x, key=abs)", "{x}", "{x: x}", "{*x}", "[y for y in x]", "{y for y in x}",
    "{y: 1 for y in x}", "tuple(y for y in x if y)", "f'{x!r:>9}'", "'%s' % x", "x.a", "x.append(x)", "A()", "A.b",
    "next(g())", "[*g()]", "(y := x)", "lambda: x", "(lambda y: y)(x)", "x if x else 1", "range(x)", "map(f, [x])",
    "zip(x, x)", "10 ** x", "1 // x", "1 << x", "f(x - 1)", "int(x)", "str(x)", "bytes(x)", "float('nan')", "...",
    "frozenset(x)", "[x] * 1000", "'ab' * 10 ** 4", "[[]] * 3", "type(x)", "isinstance(x, A)", "print(x)", "super()",
    "list({'a', 'b', 'c'})", "id(x)", "hash('a')", "x @ x", "await x", "yield x", "*x", "__name__", "0x" + "f" * 5000,
    "9" * 5000, "((((((((x))))))))", "1_0", "1e400",
)  # fmt: skip
_STATEMENTS: tuple[str, ...] = (
    "y = {e}", "x = {e}", "x += {e}", "y, *z = {e}", "x[0] = {e}", "del x", "x.a = {e}", "pass", "return {e}",
    "raise ValueError({e})", "raise A", "raise E from E({e})", "assert {e}, {e}", "global y", "nonlocal x", "break",
    "import math", "import json, re", "from collections import Counter", "import os", "import no_such", "yield {e}",
    "if {e}:\n{b}", "if {e}:\n{b}\nelse:\n{b}", "for y in {e}:\n{b}", "for y in range(3):\n{b}",
    "while x:\n{b}\n    x = 0", "try:\n{b}\nexcept Exception as e:\n{b}", "try:\n{b}\nfinally:\n{b}",
    "with A() as y:\n{b}", "try:\n{b}\nexcept* E:\n{b}", "def g(*a, k=1):\n{b}", "def g():\n    yield {e}\n{b}",
    "class A:\n    b = {e}\n    def __init__(s, *a):\n        s.a = a", "class A(list):\n{b}",
    "class E(Exception):\n{b}", "async def g():\n{b}",
    "match x:\n    case [a, *b]:\n        return a\n    case {{'k': v}}:\n        return v\n    case A(b=1):\n{b}",
    "type X = int", "print({e})",
)  # fmt: skip

# What raises nothing, whatever `x` is.
_MILD_EXPRESSIONS = (
    "x", "1", "'a'", "[x]", "(x, 1)", "{'k': x}", "[y for y in [x, 1]]", "x == 1", "sorted([3, 1])",
    "(lambda y: [y])(x)", "sum(range(9))", "not x", "{1, 2}", "[*[x], 2]", "'abc'[::-1]", "x if x else 0",
    "len('abc') ** 9", "{3, 1} | {2}", "max(1, 2.5)", "(y := x)", "'a b'.split()", "type(x) is int", "b'a' * 3",
    "dict(a=x)", "round(1 / 3, 3)", "1 << 70", "(lambda *a, **k: (a, k))(x, a=x)", "any(y for y in [x])",
    "list(zip('ab', [x, x]))", "frozenset('ab')", "float('nan')",
)  # fmt: skip
_MILD_STATEMENTS = (
    "y = {e}", "y = [{e}, {e}]", "pass", "y, *z = [{e}, {e}]", "if {e}:\n{b}", "if {e}:\n{b}\nelse:\n{b}",
    "for y in [x, {e}]:\n{b}", "while True:\n{b}\n    break", "try:\n{b}\nexcept Exception:\n{b}", "import math",
    "try:\n{b}\n    1 / 0\nexcept ZeroDivisionError as e:\n{b}\nfinally:\n{b}", "def g(*a, k=1):\n{b}\n    return {e}",
    "class A(list):\n    b = {e}\n    def __len__(s): return 3", "from collections import Counter, deque",
    "return {e}", "def g():\n    yield {e}\ny = [*g()]",
    "match x:\n    case [a, *b]:\n        y = a\n    case _:\n{b}", "import json, re",
)  # fmt: skip

_DEEP = (
    "x = " + "(" * 10**5,
    "def f(x): return " + "(" * 150 + "x" + ")" * 150,
    "x = " + "[" * 95 + "]" * 95 + "\ndef f(x): return 1",
    "def f(x): return " + "-" * 5000 + "1",
    "def f(x): return x" + ".b" * 20_000,
    "def f(x): return x" + "[0]" * 5000,
    "def f(x): return " + "not " * 5000 + "x",
    "def f(x): return " + "+".join("1" * 6000),
    "def f(x): return " + "lambda: " * 500 + "x",
    "def f(x):\n" + "".join(" " * n + "if x:\n" for n in range(1, 99)) + " " * 99 + "return x",
    "if 0: pass\n" + "elif 0: pass\n" * 3000 + "def f(x): return 1",
    "def f(x): return '" + "a" * 10**6 + "'",
    "def f(x): return [" + "1," * 10**5 + "]",
    "def f(x): return {" + "1:2," * 3000 + "}",
    "def f(x): return f'" + "{x}" * 3000 + "'",
    "def f(x): return f'" + "{" * 300,
    "x = 1\n" * 20_000 + "def f(x): return x",
    "def f(x):\n    return x\n" + "\0",
    "\ufeffdef f(x): return x",
    "def f(x): return '\ud800'",
    "def f(x): return 'é\u2028\U0001d487'",
    "def f(" + ",".join(f"a{n}" for n in range(3000)) + "): return 1",
    "global " + ",".join(f"a{n}" for n in range(300)) + "\ndef f(x): return 1",
    "from x import y" + " " * 30_000 + "!",
    "@" * 5000,
    "'" * 9999,
    "\\" * 5000,
    "\n" * 10**5 + "def f(x): return 1",
    "\t" * 150 + "x",
)
_BYTES = (
    b"\xef\xbb\xbfdef f(x): return 1",
    b"# coding: utf-16\ndef f(x): return 1",
    b"# -*- coding: latin-1 -*-\ndef f(x): return '\xe9'",
    b"# coding: rot13\nqrs s(k): erghea k",
    b"# coding: utf-7\ndef f(x): return 1 # +AAo-x",
    "def f(x): return 1".encode("utf-16"),
    b"def f(x): return '\xff'",
    b"\xff\xfe\x00",
    b"def f(x): return 1\x00",
    b"",
)


ODD_SOURCES: tuple[str | bytes, ...] = (*_DEEP, *_BYTES)


def hostile_programs() -> list[str]:
    """Every program that some other test has the sandbox hold against, sleepers left out: each costs its clock."""
    bodies = [body for name, (body, _) in (*HOST.items(), *RESOURCES.items()) if "sleep" not in body]
    bodies += [f"import builtins, sys\n{patch}" for patch in PATCHES.values()]
    bodies += NOT_VALUES.values()
    return [b if "def f(" in b else "def f(*a):\n" + textwrap.indent(textwrap.dedent(b), "    ") for b in bodies]


def _parses(program: str | bytes) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(program)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


class OddJobs:
    """Makes jobs from a seed."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._good = [(str(job.program), job.inputs[0]) for job in programs(60, 1)]
        self._hostile = [(program, "") for program in hostile_programs()]
        self._fitting = ""  # an input for the program that was made last
        self._expressions, self._statements = _EXPRESSIONS, _STATEMENTS

    def job(self) -> Job:
        """Return the next job."""
        rng = self._rng
        make = rng.choices(
            (self._noise, self._words, self._maimed, self._grown, self._deep, self._bad), (2, 3, 8, 8, 1, 2)
        )[0]
        program = make()
        for _ in range(rng.choice((0, 4, 9))):  # most of what is put together at random does not parse
            if make not in (self._words, self._maimed, self._grown) or _parses(program):
                break
            program = make()
        limits = Limits(
            cpu_seconds=rng.choice((0.001, 0.02, 0.1, 0.1, 0.2)),
            wall_seconds=rng.choice((0.2, 0.3, 1.0)),
            memory_bytes=rng.choice((2**20, 2**22, 2**24, 2**26, 2**26, 2**26)),
            output_bytes=rng.choice((1, 30, 4096, 4096, 2**16)),
        )
        text = program if isinstance(program, str) else program.decode("latin-1")
        return Job(
            program,
            tuple(self._input() for _ in range(rng.choice((0, 1, 1, 1, 2, 3)))),
            entry=rng.choice(("f",) * 40 + ("g", "x", "", "no such", "__builtins__", "\ud800")),
            limits=limits,
            policy=rng.choice(("plain", "plain", "strict")),
            check_determinism=rng.random() < 0.2 or any(word in text for word in _SEES_MORE),
        )

    def _input(self) -> str:
        rng = self._rng
        match rng.randrange(8):
            case 0:
                return rng.choice(_INPUTS)
            case 1:
                return "".join(rng.choices("1'[](),{}:-=*\\\0 x", k=9))
            case 2 | 3:
                return rng.choice(_SIMPLE_INPUTS)
        return self._fitting

    def _noise(self) -> str | bytes:
        rng = self._rng
        noise = rng.randbytes(rng.choice((1, 20, 200, 3000)))
        return noise if rng.random() < 0.5 else noise.decode(rng.choice(("latin-1", "utf-16-le")), "replace")

    def _words(self) -> str:
        rng = self._rng
        return rng.choice(("", "def f(x):\n    ")) + rng.choice((" ", "")).join(
            rng.choices(_WORDS, k=rng.choice((3, 12, 60)))
        )

    def _bad(self) -> str:
        program, self._fitting = self._rng.choice(self._hostile)
        return program

    def _deep(self) -> str | bytes:
        return self._rng.choice(ODD_SOURCES)

    def _maimed(self) -> str:
        text, self._fitting = self._rng.choice(self._good if self._rng.random() < 0.7 else self._hostile)
        ways: tuple[Callable[[str], str], ...] = (
            self._move_lines, self._move_words, self._change_number, self._change_operator, self._slip_in,
        )  # fmt: skip
        for _ in range(self._rng.choice((1, 1, 2, 5))):
            text = self._rng.choice(ways)(text)
        return text

    def _move_lines(self, text: str) -> str:
        return "\n".join(self._moved(text.split("\n")))

    def _move_words(self, text: str) -> str:
        return " ".join(self._moved(text.split(" ")))

    def _moved(self, parts: list[str]) -> list[str]:
        rng = self._rng
        at, other = rng.randrange(len(parts)), rng.randrange(len(parts))
        match rng.randrange(3):
            case 0:
                del parts[at]
            case 1:
                parts.insert(other, parts[at])
            case 2:
                parts[at], parts[other] = parts[other], parts[at]
        return parts

    def _change_number(self, text: str) -> str:
        places = [at for at, letter in enumerate(text) if letter.isdigit()]
        return self._replaced(text, places, _NUMBERS)

    def _change_operator(self, text: str) -> str:
        places = [at for at, letter in enumerate(text) if letter in "+-*/%<>=()[]:,."]
        return self._replaced(
            text, places, ("+", "-", "**", "<<", "%", "==", "(", ")", "[", ":", ",", ".", "", "@", "\0")
        )

    def _replaced(self, text: str, places: list[int], by: tuple[str, ...]) -> str:
        if not places:
            return text
        at = self._rng.choice(places)
        return text[:at] + self._rng.choice(by) + text[at + 1 :]

    def _slip_in(self, text: str) -> str:
        lines = text.split("\n")
        at = self._rng.randrange(len(lines) + 1)
        before = lines[at - 1] if at else ""
        depth = len(before) - len(before.lstrip()) + 4 * before.rstrip().endswith(":")
        lines[at:at] = textwrap.indent(self._statement(1), " " * depth).split("\n")
        return "\n".join(lines)

    def _grown(self) -> str:
        self._fitting = self._rng.choice(_SIMPLE_INPUTS)
        mild = self._rng.random() < 0.5
        self._expressions = _MILD_EXPRESSIONS if mild else _EXPRESSIONS
        self._statements = _MILD_STATEMENTS if mild else _STATEMENTS
        body = textwrap.indent(self._block(self._rng.choice((1, 2, 3))), "    ")
        above = self._block(1) + "\n" if self._rng.random() < 0.3 else ""
        return f"{above}def f(x):\n{body}\n    return {self._expression()}"

    def _block(self, depth: int) -> str:
        return "\n".join(self._statement(depth) for _ in range(self._rng.choice((1, 1, 2, 3))))

    def _statement(self, depth: int) -> str:
        form = self._rng.choice(self._statements)
        while depth <= 0 and "{b}" in form:
            form = self._rng.choice(self._statements)
        while "{e}" in form:
            form = form.replace("{e}", self._expression(), 1)
        while "{b}" in form:
            form = form.replace("{b}", textwrap.indent(self._block(depth - 1), "    "), 1)
        return form.replace("{{", "{").replace("}}", "}")

    def _expression(self) -> str:
        expression = self._rng.choice(self._expressions)
        while self._expressions is _EXPRESSIONS and self._rng.random() < 0.4:
            expression = self._rng.choice(self._expressions).replace("x", f"({expression})", 1)
        return expression
