"""A second judge of answers, as simple as can be, that shares nothing with ours: run with `python -I`, cases on stdin.

Each case has a process of its own, which executes what it is given and compares as the data's README says, with no
walls at all: it is only ever given answers that the tests wrote. Values are equal when Python holds them to be and when
their types are, at every depth, floats within 1e-6 where a set says so; ``loose`` is Python's ``==`` alone.
"""

import ast
import contextlib
import io
import json
import math
import os
import resource
import signal
import sys

SECONDS = 6
LONG = 65_536  # docs/evaluation.md: a longer value of a puzzle holds integers, strings and lists alone
RIGHT = 42  # an answer may end its process as well
NAMES = {"nan": math.nan, "inf": math.inf}


def same(one: object, other: object, how: str) -> bool:
    if how == "loose":
        return one == other
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        near = how == "close" and math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6)
        return near or one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b, how) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key], how) for key in one)
    return one == other


def value_of(text: str) -> object:
    """A literal of the data, which may say nan and inf."""
    return eval(text, dict(NAMES))


def names_of(program: str) -> dict[str, object]:
    names: dict[str, object] = {"__name__": "program"}
    exec(program, names)
    return names


def literal(text: str) -> object:
    """What an answer says, if it is a literal."""
    try:
        return ast.literal_eval(text.strip())
    except ValueError:
        if text.strip() in NAMES:
            return NAMES[text.strip()]
        raise


def arguments(text: str) -> tuple[list[object], dict[str, object]]:
    call = ast.parse(f"f({text}\n)", mode="eval").body
    assert isinstance(call, ast.Call)
    assert isinstance(call.func, ast.Name)
    assert text.strip()
    return [ast.literal_eval(each) for each in call.args], {k.arg: ast.literal_eval(k.value) for k in call.keywords}


def judge_program(case: dict) -> bool:
    for given, expected in case["calls"]:
        names = names_of(case["answer"])
        if not same(eval(f"f({given}\n)", names), value_of(expected), case["how"]):
            return False
    return True


def judge_output(case: dict) -> bool:
    return same(literal(case["answer"]), value_of(case["expected"]), case["how"])


def judge_result(case: dict) -> bool:
    """An output that the reference must be run for."""
    return same(literal(case["answer"]), eval(f"f({case['given']}\n)", names_of(case["program"])), case["how"])


def judge_input(case: dict) -> bool:
    if case["answer"] == case["reference"]:  # may be an expression
        return True
    positional, named = arguments(case["answer"])
    found = names_of(case["program"])["f"](*positional, **named)
    return same(found, value_of(case["expected"]), case["how"])


def is_plain(value: object) -> bool:
    if type(value) is list:
        return all(map(is_plain, value))
    return type(value) is int or (type(value) is str and not set("'\"\\") & set(value))


def judge_puzzle(case: dict) -> bool:
    sys.set_int_max_str_digits(0)
    prelude = "from typing import *\n"
    written = repr(names_of(prelude + case["answer"])["sol"]())
    value = ast.literal_eval(written) if written not in NAMES else NAMES[written]
    if len(written) > LONG and not is_plain(value):  # the one limit of ours that the README does not know
        return False
    return names_of(prelude + case["sat"])["sat"](value) is True


def judge_script(case: dict) -> bool:
    for given, expected in case["tests"]:
        sys.stdin, printed = io.StringIO(given), io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(case["answer"], {"__name__": "__main__"})
        if printed.getvalue().split() != expected.split():
            return False
    return True


def judge_method(case: dict) -> bool:
    words = {"true": True, "false": False, "null": None}
    for given, expected in case["tests"]:
        names = names_of("from typing import *\n" + case["answer"])
        value = getattr(names["Solution"](), case["method"])(**eval(f"dict({given})", dict(words)))
        if not same(value, json.loads(expected), "loose"):
            return False
    return True


JUDGES = {
    "program": judge_program, "output": judge_output, "result": judge_result, "input": judge_input,
    "puzzle": judge_puzzle, "script": judge_script, "method": judge_method,
}  # fmt: skip


def right(case: dict) -> bool:
    """Judge a case in a process of its own; whatever ends it otherwise is wrong."""
    child = os.fork()
    if not child:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
            resource.setrlimit(resource.RLIMIT_CPU, (case.get("seconds", SECONDS),) * 2)
            signal.alarm(10 * SECONDS)
            nowhere = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(nowhere, descriptor)
            status = RIGHT if JUDGES[case["kind"]](case) else 1
        except BaseException:
            status = 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == RIGHT


if __name__ == "__main__":
    json.dump([right(case) for case in json.load(sys.stdin)], sys.stdout)
