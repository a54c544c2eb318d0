"""The cheaper ways a job can take (light server, kept child, code compiled outside) change no verdict."""

import marshal
import os
import signal
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_gym import literals
from selfplay_gym.executors import compiler, connection, tickets
from selfplay_gym.executors.cache import remembered_if_short
from selfplay_gym.executors.compiler import CODE_FD, SOURCE_FD, Compiler, compiled
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.executors.tickets import FULL, MATHS, NUMERIC, is_light, size_of
from selfplay_gym.types import Job, Limits, Status, Tier
from tests.test_sandbox import job, one, processes_of, run

DOUBLE = "def f(x): return x * 2"


@pytest.fixture(scope="module", params=[Tier.FULL, Tier.FILTER_ONLY])
def executor(request):
    with SandboxExecutor(cache_bytes=0, workers=1, tier=request.param) as executor:
        yield executor


@pytest.fixture(scope="module", params=[Tier.FULL, Tier.FILTER_ONLY])
def forking(request):
    with SandboxExecutor(cache_bytes=0, workers=1, tier=request.param, keep_children=False) as executor:
        yield executor


def started(executor) -> set[str]:
    return {kind for kind, servers in executor._pool.servers.items() if servers}


# --- light or full ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "light"),
    [
        (DOUBLE, True),
        ("import re", True),
        ("import itertools as it\nfrom collections import Counter, deque\n", True),
        ("    from math import (pi)\n", True),
        ("from typing import *", True),
        ("from __future__ import annotations", True),
        ("import json", False),
        ("import re, json", False),
        ("import re; import json", False),
        ("from math import pi; import json", False),
        ("from os import path", False),
        ("from re import (\n  sub)", True),
        ("import re # json", False),
        ("__import__('re')", False),
        ("from . import x", False),
        ("import \\\n json", False),
        ("x = 'important'", False),
        (r"x = '\N{DASH}'", False),
        (b"x = 1", False),
        ("def f(x): return x.encode()", False),
        ("def f(x): return x.decode()", False),
        ("def f(x): return str(x, 'cp1252')", True),
        ("x = 'codecs'", False),
        ("x = 'namereplace'", False),
    ],
)
def test_only_programs_that_plainly_need_little_are_light(program, light):
    assert is_light(Job(program, ("",))) is light


@pytest.mark.parametrize(
    ("program", "size"),
    [
        ("import numpy", NUMERIC),
        ("import numpy.linalg as la", NUMERIC),
        ("import sys, numpy as np", NUMERIC),
        ("def f():\n    from numpy import array", NUMERIC),
        ("import sys; import numpy", NUMERIC),
        ("try: import numpy\nexcept ImportError: pass", NUMERIC),
        ("from math_verify import parse", MATHS),
        ("import re, math_verify", MATHS),
        (b"import numpy", NUMERIC),
        ("import numpyro", FULL),
        ("from mynumpy import x", FULL),
        ("x = 1 # or import numpy", FULL),
        ("def f(numpy): return numpy", ""),
    ],
)
def test_plain_programs_are_sent_to_where_their_package_is(program, size):
    assert size_of(Job(program, ("",), policy="plain")) == size
    assert size_of(Job(program, ("",), policy="strict")) in ("", FULL)


def test_no_text_keeps_the_trainer_looking_for_imports():
    started = time.process_time()
    for text in ("import a,", ":import a,", ";from ", " ", "import ", "import numpy, " * 2 + "\n", ": : ;"):
        size_of(Job("numpy math_verify" + text * (2**20 // len(text)), ("",), policy="plain"))
    assert time.process_time() - started < 2.0


def test_the_full_server_starts_when_it_is_needed():
    with SandboxExecutor(cache_bytes=0, workers=1) as executor:
        assert one(executor, DOUBLE, "1", check_determinism=True).value == "2"
        assert started(executor) == {"A", "B"}
        assert one(executor, "import json\ndef f(): return json.dumps([1])").value == "'[1]'"
        assert started(executor) == {"A", "B", "A full"}


def test_plain_programs_get_numpy_and_strict_ones_do_not():
    program = (
        "import numpy as n\nfrom numpy.linalg import det\ndef f(x): return (n.array(x) * 2).tolist(), round(det(x))"
    )
    with SandboxExecutor(workers=1, cache_bytes=0) as executor:
        results = run(executor, program, "[[1, 2], [3, 4]]", "[[2, 0], [0, 2]]", check_determinism=True)
        assert [r.value for r in results] == ["([[2, 4], [6, 8]], -2)", "([[4, 0], [0, 4]], 4)"]
        assert started(executor) == {"A", "A numeric", "B numeric"}
        assert one(executor, program, "[[1]]", policy="strict").status is Status.FORBIDDEN
        assert one(executor, program.encode(), "[[1]]").value == "([[2]], 1)"
        seeded = "import numpy\ndef f(): return numpy.random.RandomState(3).randint(0, 99, 4).tolist()"
        assert one(executor, seeded, check_determinism=True).value == "[24, 3, 56, 72]"
        unseeded = "import numpy\ndef f(): return numpy.random.default_rng().random()"
        assert one(executor, unseeded, check_determinism=True).status is Status.NONDETERMINISTIC
        noise = "import numpy\ndef f(): return numpy.random.rand()"
        assert one(executor, noise, check_determinism=True).status is Status.NONDETERMINISTIC
        reaches = "import numpy.ctypeslib\ndef f(): return numpy.ctypeslib.ctypes.CDLL(None).fork()"
        assert one(executor, reaches).status in (Status.FORBIDDEN, Status.ERROR)
        assert one(executor, "import json\ndef f(): return json.dumps(1)").value == "'1'"


LATE = {  # modules that Python itself imports when it first needs them
    "from __future__ import annotations\ndef f(x: nothing_such): return x": "1",
    "import datetime\ndef f(x): return datetime.datetime.strptime('2024-01-02', '%Y-%m-%d').day": "2",
    "import time\ndef f(x): return time.strptime('12:30', '%H:%M').tm_hour": "12",
    "def f(x): return '\\N{BULLET}'": "'•'",
    "def f(x): return b'\\xe9'.decode('latin-1').encode('utf-16-le')": r"b'\xe9\x00'",
    "import re\ndef f(x): return re.sub(r'(?i:(a+))|\\d', '<\\g<0>>', 'AAb1')": "'<AA>b<1>'",
    "import traceback\ndef f(x):\n    try: 1 / 0\n    except Exception: return traceback.format_exc()[-18:]": (
        r"' division by zero\n'"
    ),
}


@pytest.mark.parametrize("program", LATE)
def test_what_python_imports_late_is_there(executor, forking, program):
    assert {one(where, program, "1").value for where in (executor, forking)} == {LATE[program]}


HIDDEN_IMPORT = "g = globals()['__builtins__'].__dict__['__im' + 'port__']\n"


@pytest.mark.parametrize(
    ("program", "value"),
    [
        (HIDDEN_IMPORT + "def f(): return g('json').dumps([1])", "'[1]'"),
        ("def f(): return bytes('x', 'shift_jis'), str(b'\\xe9', 'cp1252')", "(b'x', 'é')"),
    ],
)
@pytest.mark.parametrize("check", [False, True])
def test_what_a_light_server_lacks_is_run_again_on_a_full_one(executor, program, value, check):
    assert is_light(job(program))
    results = run(executor, program, "", "", check_determinism=check)
    assert [(r.status, r.value) for r in results] == [(Status.OK, value)] * 2


@pytest.mark.parametrize(
    ("program", "value"),
    [
        ("b'\\xe9'.decode('cp1252')", "'é'"),
        ("'x'.encode('shift_jis')", "b'x'"),
        ("'\u2013'.encode('ascii', 'namereplace')", r"b'\\N{EN DASH}'"),
    ],
)
def test_a_program_that_catches_what_a_light_server_lacks_gets_the_full_answer(executor, program, value):
    caught = f"def f():\n    try: return {program}\n    except Exception: return 'nothing'"
    assert one(executor, caught).value == value


@pytest.mark.parametrize(
    ("program", "error_type"),
    [
        (HIDDEN_IMPORT + "def f(): return g('nothing_such')", "ModuleNotFoundError"),
        ("def f(): return bytes('x', 'nothing_such')", "LookupError"),
        ("def f(): raise ImportError", "ImportError"),
    ],
)
def test_what_a_full_server_lacks_too_is_an_error(executor, program, error_type):
    assert is_light(job(program))
    result = one(executor, program)
    assert (result.status, result.error_type) == (Status.ERROR, error_type)


# --- compiled here or there ------------------------------------------------------------------------------------------

BOMB = "def f(x):\n" + "".join(
    " " * depth + "try: pass\n" + " " * depth + "finally:\n" for depth in range(1, 19)
) + " " * 19 + "pass"  # fmt: skip

SOURCES = {
    "fine": DOUBLE,
    "empty": "",
    "lone surrogate": "def f(x): return '\ud800'",
    "NUL": "def f(x): return 1\0",
    "syntax": "x = 1\ndef f(x): return 2 2\n",
    "indentation": "def f(x):\nreturn 1",
    "tabs": "def f(x):\n\tif x:\n        return 1",
    "wrong escape": "def f(x): return '\\d'",
    "many parentheses": "(" * 5000,
    "many braces": "{" * 90 + ":",
    "many signs": "-" * 16_000 + "1",
    "many operators": "def f(x): return " + "+".join("1" * 4000),
    "deep calls": "def f(x): return " + "(" * 90 + "x" + ")" * 90,
    "many attributes": "x" + ".b" * 8000,
    "long integer": "x = " + "9" * 5000,
    "doubled code": BOMB,
    "large constant": "def f(x): return len('ab' * 2000)",
    "order of sets": "def f(x): return [list(s) for s in ({8, 0, 16}, {'b', 'a', 'c'})], x in {8, 0, 16}",
    "raises": "\n\ndef f(x):\n    raise KeyError(x)",
    "same constants": "def f(x):\n    a = 'one two'\n    def g(): return 'one two'\n    return a is g(), a",
    "single bytes": "def f(x): return bytes([97]) is b'a', 'ab'.encode()[:1] is (b'a', x)[0]",
    "names": "def f(x): return f.__code__.co_filename, f.__qualname__, f.__doc__",
    "end of file": "def f(x): return '''",
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_ends_the_same_wherever_it_is_compiled(executor, forking, name):
    limits = Limits(cpu_seconds=0.3, wall_seconds=5, memory_bytes=64 * 2**20)
    # Bytes, and jobs with a small budget, are never compiled outside the child.
    source = SOURCES[name].encode("utf-8", "surrogatepass")
    jobs = [job(text, "3", limits=limits) for text in (SOURCES[name] + "\n#json import", source + b"\n#json import")]
    outside, inside = forking.run(jobs)
    assert [result.outcome for (result,) in executor.run(jobs)] == [outside[0].outcome, inside[0].outcome]
    if name == "lone surrogate":  # as bytes this is not UTF-8
        assert outside[0].error_type == "UnicodeEncodeError"
    else:
        assert (outside[0].outcome, outside[0].line) == (inside[0].outcome, inside[0].line)
    assert outside[0].status is not Status.NO_VERDICT
    assert one(executor, DOUBLE, "4").value == "8"


def test_only_what_behaves_the_same_is_compiled_outside():
    assert marshal.loads(compiled(b"x = 1")).co_filename == "<program>"
    assert marshal.loads(compiled(b"def f(x): return x in {'a'}, (b'ab', b'')"))
    for source in (b"x = b'a'", b"def f(x): return x in (1, (b'a', 2))", b"def f(x): return x in {b'a'}"):
        assert compiled(source) == b""  # each of them is one object, wherever it comes from
    for source in (b"x = = 1", b"x = 1\0", b"\xff", "'\ud800'".encode("utf-8", "surrogatepass"), BOMB.encode()):
        assert compiled(source) == b""
    orders = {compiled(b"def f(x): return x in {%d, 0, 16}" % first) != b"" for first in (8, 24, 32)}
    assert False in orders  # marshal would put these in another order


def test_a_killed_compiler_costs_no_verdict(forking):
    executor = forking
    for round_ in range(4):
        assert one(executor, DOUBLE, str(round_)).value == str(2 * round_)
        keeper = executor._pool.servers["A"][0]._keeper.pid
        server, helper = sorted(p for p in processes_of(keeper) if p != keeper)
        os.kill(helper, signal.SIGKILL)
        time.sleep(0.02)
        assert [one(executor, DOUBLE, str(n)).value for n in range(3)] == ["0", "2", "4"]
        assert server in processes_of(keeper)


def forked(act, source_end: int, code_end: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        source, code = os.dup(source_end), os.dup(code_end)
        os.dup2(source, SOURCE_FD)
        os.dup2(code, CODE_FD)
        os.closerange(SOURCE_FD + 1, 256)
        act()
    finally:
        os._exit(0)


def test_recycling_the_compiler_loses_nothing(monkeypatch):
    monkeypatch.setattr(compiler, "JOBS_A_PROCESS", 3)
    seen = []
    helper = Compiler(lambda *given: seen.append(forked(*given)) or seen[-1])
    try:
        for number in range(10):
            assert marshal.loads(helper.compile(b"x = %d" % number)).co_consts[0] == number
    finally:
        helper.end()
    assert len(seen) == 4
    with pytest.raises(ChildProcessError):  # none is left behind
        os.waitpid(seen[0], os.WNOHANG)


@pytest.mark.parametrize(
    "answer", [None, b"", b"\xff\xff\xff\xff", b"\1\0\0\0ab", b"\1\0\0\0", b"\1\0\4\0" + b"x" * (2**18 + 1)]
)
def test_a_compiler_that_dies_stalls_or_babbles_is_replaced(monkeypatch, answer):
    monkeypatch.setattr(compiler, "PATIENCE_SECONDS", 0.2)
    misbehaves = [True, False]

    def strange() -> None:
        os.read(SOURCE_FD, 4096)
        if answer is not None:
            os.write(CODE_FD, answer)
            time.sleep(5)

    helper = Compiler(lambda act, *ends: forked(strange if misbehaves.pop(0) else act, *ends))
    try:
        assert helper.compile(b"x = 1") == b""
        assert helper.compile(b"x = 1") != b""
    finally:
        helper.end()


def test_a_long_source_is_left_to_the_child(executor):
    source = "#" * compiler.LARGEST_SOURCE + "\n" + DOUBLE
    assert Compiler(lambda *given: 1 // 0).compile(source.encode()) == b""
    assert one(executor, source, "4").value == "8"


# --- inputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        r"'\ud800', b'\xff', nan, -inf, -0.0",
        "{1, (2.5, nan), frozenset({'a'})}, set(), frozenset()",
        "{'b': [1, [2, [3]]], 'a': None, 1.5: True}, ()",
        "[" * 40 + "]" * 40,
        str(10**4000),
        "k=[1], j={2: (3,)}",
    ],
)
def test_every_value_reaches_the_program(executor, text):
    positional, keywords = literals.parse_arguments(text)
    result = one(executor, "def f(*a, **k): return a, k", text, limits=Limits(output_bytes=2**16))
    assert result.value == literals.encode((tuple(positional), keywords), 2**16)


def test_a_run_never_sees_what_an_earlier_one_did_to_its_arguments(executor):
    program = "def f(x, y):\n    x[0].append(1)\n    y.add(2)\n    return x, y"
    results = run(executor, program, *["[[]], set()"] * 3)
    assert {r.value for r in results} == {"([[1]], {2})"}


def test_the_trainer_compiles_no_literal(executor, monkeypatch):
    compile_ = compile

    def only_parse(source, filename, mode, flags=0, *rest, **named):
        assert flags & 0x400, "code made in the trainer"
        return compile_(source, filename, mode, flags, *rest, **named)

    monkeypatch.setattr("builtins.compile", only_parse)
    assert one(executor, "def f(x): return x", "'never seen before'").value == "'never seen before'"


@pytest.mark.slow
def test_a_job_that_a_kept_and_a_fresh_child_run_to_its_clock_is_no_hung_server(monkeypatch):
    monkeypatch.setattr(tickets, "_SLACK_SECONDS", 0.1)
    program = "import time\ndef f():\n    time.sleep(1.8)\n    raise MemoryError"
    with SandboxExecutor(workers=1, cache_bytes=0) as executor:
        result = one(executor, program, limits=Limits(cpu_seconds=0.1, wall_seconds=2.0))
    assert result.status is Status.MEMORY


PLAIN = st.none() | st.booleans() | st.integers(-30, 30) | st.text("ab' ,:{}()\\é", max_size=3)
KINDS = (
    PLAIN
    | st.lists(PLAIN, max_size=3)
    | st.sets(st.integers(-30, 30), max_size=4)
    | st.dictionaries(st.text("ab ,:", max_size=2), st.integers(-30, 30), max_size=4)
    | st.dictionaries(PLAIN, PLAIN, max_size=3)
)


@given(KINDS, st.data())
def test_what_looks_canonical_is(value, data):
    texts = {literals.encode(value), repr(value), str(value)}
    whole = literals.encode(value)
    place = data.draw(st.integers(0, len(whole)))
    texts |= {whole[:place] + data.draw(st.text("ab' ,:{}01-", max_size=2)) + whole[place:], whole[:place]}
    for text in texts:
        assert not connection._is_plainly_canonical(text) or connection._is_canonical(text)


@pytest.mark.parametrize(
    "text", ["set()", "{}", "{2}", "{1, 30, 4}", "{'a b': 1, 'a': -2}", "{'': 0}", "[1, ('a', None)]", "'a'"]
)
def test_common_values_are_known_as_canonical_without_a_parser(text):
    assert connection._is_plainly_canonical(text)
    assert connection._is_canonical(text)


@pytest.mark.parametrize("text", ["{2, 1}", "{1, 1}", "{'b': 1, 'a': 2}", "{'a': 1, 'a': 1}", "{'a': 01}", "{1: 2}x"])
def test_what_is_out_of_order_or_there_twice_is_not_canonical(text):
    assert not connection._is_plainly_canonical(text)
    assert not connection._is_canonical(text)


@pytest.mark.parametrize("remembers", [tickets._marshalled, tickets._cached_refusal, connection._is_canonical])
def test_only_short_texts_are_remembered(remembers):
    """Thousands of long ones took the trainer gigabytes."""
    before = remembers.cache_info().currsize
    for number in range(2):
        text = f"'{'a' * 5000} {number}'"
        assert remembered_if_short(remembers, text) == remembers.__wrapped__(text)
    assert remembers.cache_info().currsize == before
    remembers.cache_clear()
    remembered_if_short(remembers, "'a'")
    assert remembers.cache_info().currsize == 1


def test_long_plain_values_go_in_and_come_out_where_the_limits_say_so(executor):
    wide = Limits(output_bytes=2**20, cpu_seconds=5.0)
    numbers = literals.encode(list(range(100_000)), 2**20)
    assert one(executor, "def f(n): return list(range(n))", "100_000", limits=wide).value == numbers
    assert one(executor, "def f(xs): return len(xs), xs[-1]", numbers, limits=wide).value == "(100000, 99999)"
    assert one(executor, "def f(n): return list(range(n))", "100_000").status is Status.OUTPUT_LIMIT
    refused = one(executor, "def f(n): return [i / 2 for i in range(n)]", "100_000", limits=wide)
    assert (refused.status, refused.error_type) == (Status.OUTPUT_LIMIT, "value")
