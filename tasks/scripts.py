"""Runs a whole program that a model wrote as one call of the sandbox, where it must find an environment of its own.

The source is an argument, in hexadecimal, of a fixed program: it is never pasted into one. So standard input can be in
place before its first line runs, whatever ends it is seen, and integers of any length can stand in it. The fixed
program shares a process with the answer, which can thereby forge its own value or output and nothing else; what that is
compared with must never be among the arguments.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from selfplay_gym import literals
from selfplay_gym.programs import MAX_SOURCE
from selfplay_gym.types import Job

_PROGRAM = r'''
import io, sys


def _run(source, **names):
    sys.set_int_max_str_digits(0)
    names |= {"exit": sys.exit, "quit": sys.exit}
    exec(compile(bytes.fromhex(source).decode("utf-8", "surrogatepass"), "<program>", "exec"), names)
    return names


def call(source, entry, /, *arguments):
    return _run(source, __name__="program")[entry](*arguments)


def call_method(source, method, /, *positional, **named):
    return getattr(_run(source, __name__="program")["Solution"](), method)(*positional, **named)


def printed(source, lines, /):
    """The words that a script prints which reads these lines."""
    given = "\n".join(lines)
    sys.stdin = io.TextIOWrapper(io.BytesIO(given.encode()), "utf-8", newline="\n")
    sys.stdout = io.TextIOWrapper(written := io.BytesIO(), "utf-8", "surrogatepass", newline="\n")

    def opened(file, *others, **named):
        return sys.stdin if file == 0 else open(file, *others, **named)

    try:
        _run(source, __name__="__main__", open=opened)
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
    sys.stdout.flush()
    return written.getvalue().decode("utf-8", "replace").split()
'''
# The sandbox goes by the text of a program to choose a server that holds what it imports.
_WITH_NUMPY = "import numpy\n" + _PROGRAM
_NUMPY = re.compile(r"^[ \t]*(?:import|from)[ \t]+numpy\b", re.MULTILINE)


def call(source: str, entry: str, *arguments: str) -> Job:
    """Return the job that calls a function of a program.

    Args:
        source: Python that defines ``entry``.
        entry: Name of the function.
        arguments: Literals, as canonical text.

    Raises:
        NotALiteral: The source is too long.
    """
    return _job(source, "call", [", ".join((literals.encode(entry), *arguments))])


def call_method(source: str, method: str, inputs: Sequence[str]) -> Job:
    """Return the job that calls a method of the program's class ``Solution``, of a new object in each run.

    Args:
        source: Python that defines ``Solution``.
        method: Name of the method.
        inputs: Argument lists, as canonical text; one a run.

    Raises:
        NotALiteral: The source is too long.
    """
    return _job(source, "call_method", [", ".join(filter(None, (literals.encode(method), text))) for text in inputs])


def printed(source: str, inputs: Sequence[str]) -> Job:
    """Return the job that runs a script once for each text of standard input; a value is the list of printed words.

    Raises:
        NotALiteral: The source is too long.
    """
    lines = [literals.encode(text.split("\n"), literals.MAX_PLAIN) for text in inputs]
    return _job(source, "printed", lines)


def _job(source: str, entry: str, inputs: Sequence[str]) -> Job:
    if len(source) > MAX_SOURCE:
        raise literals.NotALiteral("too large")
    program = _WITH_NUMPY if _NUMPY.search(source) else _PROGRAM
    text = source.encode("utf-8", "surrogatepass").hex()
    return Job(program, tuple(f"'{text}', {given}" for given in inputs), entry, policy="plain")
