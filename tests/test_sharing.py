"""Several programs in one child: who may share it, what is seen again alone, and that neighbours change nothing."""

import asyncio
import random
import subprocess
import sys
import textwrap
import time
import warnings
from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from selfplay_gym.bench_programs import programs
from selfplay_gym.errors import ExecutorError
from selfplay_gym.executors import scheduling
from selfplay_gym.executors.cache import ResultCache
from selfplay_gym.executors.router import Anatomy, Router
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.executors.scheduling import Batch, Memory
from selfplay_gym.executors.tickets import LARGEST_PARCEL, Ticket, next_parcel
from selfplay_gym.types import Execution, Job, Limits, Status, Tier
from tests.test_kept_children import hostile_jobs, outcome
from tests.test_sandbox import DOUBLE, LOOP, job, one
from tests.test_sandbox_attacks import HONEST, HOST, NOT_VALUES, PATCHES, RESOURCES

ROOT = Path(__file__).parent.parent
HONEST_VALUE = "[7, 4, '1.5', [1, 3]]"


@pytest.fixture(scope="module", params=[(Tier.FULL, True), (Tier.FILTER_ONLY, True), (Tier.FULL, False)], ids=str)
def executor(request):
    tier, keep_children = request.param
    with SandboxExecutor(workers=1, tier=tier, keep_children=keep_children, cache_bytes=0) as executor:
        yield executor


# --- the router ------------------------------------------------------------------------------------------------------

SHARES = [
    "def f(x): return x",
    "import math\ndef f(x): return math.sqrt(x)",
    "from collections import Counter, deque\ndef f(x): return Counter(x).most_common(1)",
    "import re\ndef f(x): return re.findall('a+', x)",
    "class A:\n    def __init__(s, x): s.x = x\n    def __eq__(s, other): return True\ndef f(x): return A(x).x",
    "class A(list):\n    def add(self, x):\n        self.append(x)\n        self._n = 1\ndef f(x): return len(A(x))",
    "def f(x):\n    def g():\n        nonlocal x\n        x += 1\n    g()\n    return x",
    "def f(x): return f'{x!r:>3}', '%s' % x",
    "def f(x):\n    try: return x[0]\n    except (IndexError, TypeError) as e: return str(e)",
    "from typing import List\ndef f(x: List[int]) -> int: return x[0]",
    "from __future__ import annotations\nimport json\ndef f(x): return json.dumps(x)",
    "_total = 0\ndef f(x):\n    global _total\n    _total += x\n    return _total",
    "def f(x):\n    f.calls = 1\n    return [y for y in x if y]",
    "from functools import reduce, lru_cache\n@lru_cache(None)\ndef f(x): return reduce(max, x)",
    "import itertools as it\ndef f(x): return [*it.chain(x, x)]",
    "if __name__ == '__main__':\n    print(1)\ndef f(x): return x",
    "def f(*_): return len(_)",
]

ALONE = [
    "import os\ndef f(x): return x",
    "import sys\ndef f(x): return x",
    "import random\ndef f(x): return random.random()",
    "def f(x):\n    import gc\n    return x",
    "def f(x): return x.__class__",
    "def f(x): return getattr(x, 'real')",
    "def f(x): return globals()",
    "def f(x): return eval('x')",
    "def f(x): return (i for i in x).gi_frame.f_back",
    "import math\ndef f(x):\n    math.pi = 3\n    return x",
    "from collections import Counter\ndef f(x):\n    Counter.most_common = len\n    return x",
    "from collections import Counter\ndef f(x):\n    del Counter.most_common\n    return x",
    "from collections import Counter\nclass A:\n    def g(self): self.update = len\nA.g(Counter)\ndef f(x): return x",
    "import functools\ndef f(x): return functools.update_wrapper(x, x, assigned=['real'])",
    "from functools import *\ndef f(x): return wraps(x)",
    "from operator import attrgetter\ndef f(x): return attrgetter('real')(x)",
    "import string\ndef f(x): return string.Formatter().get_field('0.real', [x], {})",
    "import re\ndef f(x): return re.enum.sys",
    "import copy\ndef f(x): copy.dispatch_table[int] = len",
    "from collections import abc\nabc.Sized.register(int)\ndef f(x): return x",
    "class A:\n    def __del__(self): pass\ndef f(x): return A() and x",
    "def f(x):\n    match x:\n        case object(__class__=c): return c",
    "def f(x):\n    match x:\n        case object(gi_frame=g): return g",
    "import typing\ndef f(x): return typing.get_type_hints(x)",
    "def f(x): return type('A', (), {})",
    "class M(type): pass\ndef f(x): return x",
    "import statistics\ndef f(x): return statistics.NormalDist(0, 1).samples(1)",
    "import re\nclass F(int):\n    def __eq__(s, o): return True\n    def __hash__(s): return 2\ndef f(x): return x",
    "def f(x):\n    try: x()\n    except BaseException as e: return e",
    "def f(x):\n    try: yield 1\n    finally: print(x)",
    "async def f(x): return x",
    "import datetime\ndef f(x): return x",
    "import copy\ndef f(x): return copy._nil",
    "from math import *\ndef f(x): return pi",
    "def f(x): return __builtins__",
    "def f(x): return (lambda: 0).__repr__()",
    "import math\ndef f(x): return math.__dict__",
    "import re\ndef f(x): re.__annotations__['x'] = 1",
    "class A:\n    def __getattr__(self, name): return name\ndef f(x): return A().x",
    "class A:\n    def f(self): return super().f()\ndef f(x): return x",
    "def f(x): return f.__globals__",
    "def f(x): return memoryview(x)",
    "import math as _m\nfrom collections import _sys\ndef f(x): return x",
    "def f(x): return '{0.real}'.format(x)",
    "def f(x): return [*map(str.format_map, [x], [{}])]",
    "class A:\n    def __enter__(self): pass\n    def __exit__(self, t, v, w): t.x = 1\ndef f(x):\n    with A(): x()",
    "T = type\ndef f(x):\n    def g(): return __builtins__\n    return g()",
]


@pytest.fixture(scope="module")
def router():
    import bisect  # noqa: F401

    return Router()


def code(program: str):
    return compile(program, "<program>", "exec", 0, True)


@pytest.mark.parametrize("program", SHARES)
def test_ordinary_programs_share(router, program):
    assert router.shares(Anatomy(code(program)))


@pytest.mark.parametrize("program", ALONE)
def test_programs_that_reach_further_run_alone(router, program):
    assert not router.shares(Anatomy(code(program)))


@pytest.mark.parametrize(
    "program",
    [
        "def f(x): return {x, 1}",
        "def f(x): return list(set(x))",
        "def f(x): return x in {'a', 'b'}",
        "def f(x): return [*{y for y in x}]",
        "def f(x): return hash(x)",
        "def f(x): return id(x)",
        "def f(x): return str(map(int, x))",
        "def f(x): return f'{f}'",
        "def f(x): return '%s' % f",
        "def f(x): return x.keys() & x",
        "class A: pass\ndef f(x): return A",
        "def f(x): return (chr(37) + 's') % x",
        "def f(x): return b'%a' % x",
        "def f(x):\n    t = ('%s', 1)\n    return t[0] % x",
        "import operator\ndef f(x): return operator.mod('%s', f)",
        "def f(x): return (0x2572).to_bytes(2, 'big') % (f,)",
        "def f(x): return '\\u7225'.encode('utf-16-le') % (f,)",
        "from string import printable\ndef f(x): return (printable[66] + 's') % f",
        "import string\ndef f(x): return (string.punctuation[4] + 's') % f",
        "import json\ndef f(x): return json.loads(x) % f",
        "import re\ndef f(x): return re.sub('a', r'\\45s', x) % f",
        "import re\ndef f(x): return re.subn('a', r'\\45s', x)[0] % f",
        "import re\ndef f(x): return re.match('a', x).expand(r'\\45s') % f",
        "import copy\ndef f(x):\n    memo = {}\n    copy.deepcopy(x, memo)\n    return list(memo)[0] >> 24",
    ],
)
def test_what_may_depend_on_the_hash_seed_or_an_address_is_not_steady(router, program):
    assert not router.is_steady(Anatomy(code(program)))


def test_plain_computation_is_steady(router):
    program = "def f(x):\n    y = [i * i for i in x if i % 2]\n    return sorted(y), {'a': sum(y)}"
    assert router.is_steady(Anatomy(code(program)))


@pytest.mark.parametrize("text", ["{'a', 'b', 'c', 'd', 'e', 'f'}", "[{1, 'b', 'c', 'd', 'e', 'a'}]"])
def test_an_input_that_holds_a_set_is_checked_under_another_seed(executor, text):
    results = executor.run(
        [job("def f(s):\n    for x in s: return [*x] if len(x) > 1 else [*s]", text, check_determinism=True)] * 2
    )
    assert {result.status for (result,) in results} == {Status.NONDETERMINISTIC}


def test_an_escaped_percent_sign_in_an_input_is_checked_under_another_seed(executor):
    """It shows an address, which is the same in every run on one server."""
    program = "import copy\ndef f(x): return x % copy.copy"
    results = executor.run([job(program, r"'\x25s'", check_determinism=True)] * 2)
    assert {result.status for (result,) in results} == {Status.NONDETERMINISTIC}


TAMPERING = {
    "a builtin": "builtins.len = lambda x: 0",
    "a new builtin": "builtins.left = 1",
    "a change that was taken back": "builtins.left = 1; del builtins.left",
    "a module": "math.gcd = max",
    "a class of a module": "collections.Counter.most_common = len",
    "an object that equals everything": "builtins.len = type('A', (), {'__eq__': lambda *a: True})()",
}


@pytest.mark.parametrize("name", TAMPERING)
def test_tampering_with_the_interpreter_shows(name):
    script = f"""
        import builtins, collections, math
        from selfplay_gym.executors.router import Anatomy, Router
        router = Router()
        assert not router.changed()
        {TAMPERING[name]}
        print(router.changed())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=True,
    )
    assert done.stdout == "True\n"


CARELESS = """
    import marshal, os
    from selfplay_gym.executors import runner, walls
    from selfplay_gym.executors.children import Children, Filters
    class Careless(runner.Router):
        def shares(self, code): return True
    runner._router = Careless()
    runner.reset()
    children = Children(runner, "process_only", Filters(None, None, None), walls.address_space(), None)
    children.learn_known_answer()
    def statuses(*programs):
        inputs = (marshal.dumps(([], {})),)
        jobs = [runner.Job(p, True, "f", inputs, (0,), True, False, 5.0, 5.0, 2**28, 999) for p in programs]
        return b" ".join(b"%d" % frame[4] for frames in children.run(jobs, b"") for frame in frames)
"""
NO_GOOD_NEIGHBOURS = {
    "changes what the known answer uses": "import builtins\ndef f(): builtins.abs = len",
    "changes what the known answer does not use": "import math\ndef f(): math.gcd = max",
    "ends the process": "import os\ndef f(): os._exit(0)",
    "dies of a signal": "import os\ndef f(): os.kill(os.getpid(), 11)",
    "says something of its own": "import os\ndef f(): os.write(3, bytes(13))",
}


@pytest.mark.parametrize("name", NO_GOOD_NEIGHBOURS)
def test_jobs_that_tampered_or_died_together_leave_no_answer(name):
    """With a router that lets everything through, all that shared the child are told to run again alone."""
    script = f"""
        fine, bad = b"def f(): return 1", {NO_GOOD_NEIGHBOURS[name].encode()!r}
        for others in ([fine, fine], [fine, bad], [bad, fine]):
            os.write(1, statuses(*others) + b";")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CARELESS) + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=True,
    )
    assert done.stdout == "0 0;9 9;9 9;"  # OK, then ALONE


def test_what_compiling_takes_counts_in_the_budget_of_the_first_run():
    script = """
        slow = b"def f(): return 1\\n" + b"x = [1, 2, 3]\\n" * 4000
        def jobs(budget):
            inputs = (marshal.dumps(([], {})),)
            last = (budget, 5.0, 2**28, 999)
            return [runner.Job(p, True, "f", inputs, (0,), True, False, *last) for p in (slow, b"def f(): return 1")]
        for budget in (1.0, 0.002):
            for frame in list(runner._shared_frames(jobs(budget)))[:2]:
                _, status, _, micros = runner.FRAME.unpack_from(frame)
                os.write(1, b"%d %d;" % (status, micros > 2000))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CARELESS) + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=True,
    )
    assert done.stdout == "0 1;0 0;2 1;0 0;"  # OK and slow, OK; TIMEOUT, OK


# --- neighbours ------------------------------------------------------------------------------------------------------


def hostile_programs() -> list[str]:
    bodies = [body for body, _ in (*HOST.values(), *RESOURCES.values())]
    bodies += [f"import builtins, sys\n{patch}" for patch in PATCHES.values()]
    bodies += NOT_VALUES.values()
    return [b if "def f(" in b else "def f(*a):\n" + textwrap.indent(textwrap.dedent(b), "    ") for b in bodies]


def test_hostile_neighbours_change_no_answer(executor):
    limits = Limits(cpu_seconds=0.1, wall_seconds=0.5, memory_bytes=64 * 2**20)
    hostile = [job(textwrap.dedent(program), "", limits=limits) for program in hostile_programs()]
    honest = [job(HONEST, "7", limits=limits) for _ in hostile]
    jobs = [job for pair in zip(honest, hostile, strict=True) for job in pair]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an audit that is not confirmed warns
        answers = executor.run(jobs)
    assert {result.value for (result,) in answers[::2]} == {HONEST_VALUE}
    assert all(len(results) == 1 and results[0].status is not Status.NO_VERDICT for results in answers)


# What a neighbour leaves in a cache of a module, and a program that would find it there.
CACHED = {
    "flags that equal others": (
        "import re\ndef f(s): return re.findall('a+', s, re.I)",
        "import re\ndef f(s): return re.findall('a+', s, 2.0)",
    ),
    "a union in another order": (
        "from typing import List, Union\ndef f(s): return str(List[Union[int, str]])",
        "from typing import List, Union\ndef f(s): return str(List[Union[str, int]])",
    ),
    "an optional in another order": (
        "from typing import Dict, Optional, Union\ndef f(s): return str(Dict[str, Union[int, None, str]])",
        "from typing import Dict, Optional, Union\ndef f(s): return str(Dict[str, Union[str, int, None]])",
    ),
}


@pytest.mark.parametrize("check_determinism", [False, True])
@pytest.mark.parametrize("name", CACHED)
def test_what_a_neighbour_left_in_a_cache_is_not_found(executor, router, name, check_determinism):
    assert all(router.shares(Anatomy(code(program))) for program in CACHED[name])
    neighbour, asks = (job(program, "'aAb'", check_determinism=check_determinism) for program in CACHED[name])
    (alone,) = executor.run([asks])
    assert executor.run([neighbour, neighbour, asks])[-1][0].outcome == alone[0].outcome


@pytest.mark.parametrize("check_determinism", [False, True])
def test_what_a_neighbour_left_on_a_class_of_the_runner_is_not_found(executor, check_determinism):
    """`__exit__` is handed the class of what stops a program that prints too much."""
    program = """
class A:
    def __enter__(self): pass
    def __exit__(self, kind, error, trace):
        {act}
        return True
def f():
    with A(): print('x' * (2**20 + 1))
    return A.found
A.found = 'nothing'
"""
    leaves, finds = (program.format(act=act) for act in ("kind.left = 'the answer'", "A.found = kind.left"))
    answers = executor.run([job(text, "", check_determinism=check_determinism) for text in (leaves, HONEST, finds)])
    assert answers[0][0].value == "'nothing'"
    assert answers[2][0].error_type == "AttributeError"


def test_a_difference_is_seen_alone_before_it_counts(executor):
    """Also where the first answers came from company and the second check was alone in its parcel."""
    batch = Batch(executor._pool, executor._memory, "batch", [])
    ran = ticket()
    ran.job = replace(ran.job, check_determinism=True)
    ran.company = ([ran, ticket()], [ran])
    ran.shares = False  # as `next_parcel` says of one that is alone in its parcel
    batch._conclude(ran, [Execution(Status.NONDETERMINISTIC, error_type="seed")])
    (again,) = batch._later["A"]
    assert (again.index, again.shares, again.company) == (ran.index, False, ())


def test_no_verdict_depends_on_what_shares_a_child():
    hostile = hostile_jobs()
    jobs = programs(120, 2) + hostile
    jobs += [Job(j.program, j.inputs, policy="plain", check_determinism=True) for j in programs(48, 3, seed=1)]
    jobs += [
        job(p, "[3, 1]", check_determinism=True) for p in (*SHARES, "def f(x): return [*{'b', 'a', 'c', 'd', 'e'}]")
    ]

    def outcomes(child_per, order):
        with SandboxExecutor(workers=2, child_per=child_per, cache_bytes=0) as executor:
            answers = executor.run([jobs[index] for index in order])
        by_index = dict(zip(order, answers, strict=True))
        return [[outcome(result) for result in by_index[n]] for n in range(len(jobs))]

    straight = list(range(len(jobs)))
    expected = outcomes("program", straight)
    assert outcomes("batch", straight) == expected
    assert outcomes("batch", random.Random(1).sample(straight, len(straight))) == expected
    assert outcomes("run", straight) == expected


def test_a_program_that_needs_longer_gets_its_whole_budget(executor):
    slow = "def f(n):\n    while n: n -= 1\n    return 'done'"
    limits = Limits(cpu_seconds=5.0, wall_seconds=20.0)
    jobs = [job(slow, "40000000", limits=limits), *[job(HONEST, "7")] * 5]
    answers = executor.run(jobs)
    assert answers[0][0].value == "'done'"
    assert answers[0][0].cpu_seconds > 0.1


def test_what_runs_long_spends_little_of_its_budget_in_company(executor):
    before = executor.cpu_seconds()
    answers = executor.run([job(LOOP, "1", limits=Limits(cpu_seconds=0.6, wall_seconds=20)), job(DOUBLE, "4")])
    assert [result.status for (result,) in answers] == [Status.TIMEOUT, Status.OK]
    assert executor.cpu_seconds() - before < 1.1  # or it would be twice the budget


@pytest.mark.parametrize("child_per", ["batch", "program", "run"])
def test_what_has_a_child_to_itself(monkeypatch, child_per):
    shared = []

    def seen(waiting, most):
        parcel = next_parcel(waiting, most)
        shared.append(len(parcel.tickets))
        return parcel

    monkeypatch.setattr(scheduling, "next_parcel", seen)
    counts = "import math\ndef f(x):\n    math.n = getattr(math, 'n', 0) + 1\n    return math.n"
    with SandboxExecutor(workers=1, child_per=child_per, cache_bytes=0) as executor:
        answers = executor.run([job(DOUBLE, str(n)) for n in range(10)])
        assert [result.value for (result,) in answers] == [str(2 * n) for n in range(10)]
        assert max(shared) == (10 if child_per == "batch" else 1)
        (runs,) = executor.run([job(counts, "1", "1")])
        assert [result.value for result in runs] == ["1", "1" if child_per == "run" else "2"]


def test_memory_that_neighbours_took_is_no_verdict_on_the_next(executor):
    hoards = "def f():\n    x = [0] * 5000000\n    x[0] = x\n    return 1"
    asks = "def f():\n    try: return len(bytes(50 * 2**20))\n    except Exception: return 'refused'"
    limits = Limits(memory_bytes=64 * 2**20)
    answers = executor.run([job(program, "", limits=limits) for _ in range(6) for program in (hoards, asks)])
    assert [result.value for (result,) in answers] == ["1", str(50 * 2**20)] * 6


def test_an_overrun_is_remembered():
    with SandboxExecutor(workers=1, cache_bytes=0) as executor:
        limits = Limits(cpu_seconds=0.6, wall_seconds=3.0)
        first = one(executor, LOOP, "1", limits=limits)
        began = time.monotonic()
        answers = executor.run([job(LOOP, "1", limits=limits), job(LOOP, "1", limits=limits, check_determinism=True)])
        assert time.monotonic() - began < 0.3
        assert {first.status, *(result.status for (result,) in answers)} == {Status.TIMEOUT}
        assert one(executor, LOOP.replace("while True: pass", "return x"), "1", limits=limits).value == "1"


# --- audits ----------------------------------------------------------------------------------------------------------


class Once:
    """Draws what has the second that asks audited."""

    def __init__(self) -> None:
        self.draws = iter((1.0, 0.0))

    def random(self) -> float:
        return next(self.draws, 1.0)


class Always:
    """Draws what has everything audited."""

    def random(self) -> float:
        return 0.0


def test_audits_confirm_what_shared_children_answered():
    with SandboxExecutor(workers=1, cache_bytes=0) as executor:
        executor._memory.rng = Always()
        jobs = [Job(j.program, j.inputs, policy="plain", check_determinism=True) for j in programs(60, 2)]
        answers = executor.run(jobs)
        ok = sum(all(result.status is Status.OK for result in results) for results in answers)
        assert executor.audits == (ok, 0)
        assert executor.describe()["audits"] == (ok, 0)


def test_programs_that_may_differ_are_not_held_to_it():
    unsteady = ["def f(n): return id([n])", "def f(n): return str(object())", "def f(n): return hash('x')"]
    with SandboxExecutor(workers=1, cache_bytes=0) as executor:
        executor._memory.rng = Always()
        executor.run([job(program, str(n)) for n in range(5) for program in unsteady])
        assert executor.audits == (0, 0)


def test_all_that_shared_a_child_with_an_unconfirmed_answer_run_again(monkeypatch):
    monkeypatch.setattr(scheduling, "_is_fixed", lambda ticket: True)
    address = "def f(n):\n    x = [[i] for i in range(n)]\n    return id(x)"
    with SandboxExecutor(workers=1, cache_bytes=0) as executor:
        executor._memory.rng = Once()
        with pytest.warns(RuntimeWarning, match="please report it"):
            answers = executor.run([job(HONEST, "7"), *[job(address, str(n)) for n in (1000, 1001, 1002)]])
        assert executor.audits == (1, 1)
        assert [r.value for (r,) in answers[1:]] == [one(executor, address, str(n)).value for n in (1000, 1001, 1002)]


def test_an_answer_that_an_audit_does_not_confirm_is_alarmed_and_replaced(monkeypatch):
    monkeypatch.setattr(scheduling, "_is_fixed", lambda ticket: True)  # holds a program to the address of an object
    address = "def f(n):\n    x = [[i] for i in range(n)]\n    return id(x)"
    with SandboxExecutor(workers=1, cache_bytes=0) as executor:
        executor._memory.rng = Always()
        with pytest.warns(RuntimeWarning, match="please report it"):
            answers = executor.run([job(HONEST, "7"), job(address, "1000"), job(HONEST, "7")])
        assert executor.audits == (2, 1)  # the third was still to be made when its job began again
        assert answers[1][0].value == one(executor, address, "1000").value


def test_an_answer_that_was_refuted_is_not_remembered(executor):
    memory = Memory(ResultCache(2**20))
    batch, early = Batch(executor._pool, memory, "batch", []), ticket()
    early.key = b"key"
    memory.cache.put(early.key, (OK,))
    batch._begin_again(early)
    assert memory.cache.get(early.key) is None


def test_what_an_earlier_run_answers_late_does_not_replace_the_later_answer():
    with SandboxExecutor(workers=1, cache_bytes=0) as executor:
        batch = Batch(executor._pool, executor._memory, "batch", [])
    early = ticket()
    batch._answers, batch._open = [None], 1
    batch._begin_again(early)
    (late,) = batch._later["A"]
    batch._settle(late, [Execution(Status.OK, "2")])
    batch._settle(early, [Execution(Status.OK, "1")])
    assert (batch._answers, batch._open) == ([(Execution(Status.OK, "2"),)], 0)


# --- parcels ---------------------------------------------------------------------------------------------------------


def ticket(program: str = "x", shares: bool = True, memory: int = 2**28) -> Ticket:
    made = Ticket(0, Job(program, ("1",), limits=Limits(memory_bytes=memory)), "A", (0,), False)
    made.shares = shares
    return made


@example([(1, True, 2**28)] * 200)
@given(st.lists(st.tuples(st.integers(0, 20_000), st.booleans(), st.sampled_from([2**26, 2**28])), max_size=200))
def test_parcels_hold_every_ticket_once_and_keep_their_bounds(shapes):
    tickets = [ticket("x" * length, shares, memory) for length, shares, memory in shapes]
    waiting = deque(tickets)
    parcels = []
    while waiting:
        parcels.append(next_parcel(waiting, LARGEST_PARCEL).tickets)
    assert [t for parcel in parcels for t in parcel] == tickets
    for parcel in parcels:
        assert len(parcel) <= LARGEST_PARCEL
        assert len(parcel) == 1 or all(t.shares for t in parcel)
        assert len({t.job.limits.memory_bytes for t in parcel}) == 1
        assert len(parcel) == 1 or sum(len(t.job.program) for t in parcel) <= 24 * 2**10


# --- the cache -------------------------------------------------------------------------------------------------------


def test_what_was_answered_is_not_run_again():
    clock = "import time\ndef f(x): return time.perf_counter_ns()"
    with SandboxExecutor(workers=1) as executor:
        assert one(executor, clock, "1") == one(executor, clock, "1")
        assert one(executor, clock, "1") != one(executor, clock, "2")
        assert one(executor, clock, "1") != one(executor, clock, "1", limits=Limits(cpu_seconds=0.9))
    with SandboxExecutor(workers=1, cache_bytes=0) as executor:
        assert one(executor, clock, "1") != one(executor, clock, "1")


OK = Execution(Status.OK, "1")


@pytest.mark.parametrize(
    ("execution", "kept"),
    [
        (OK, True),
        (Execution(Status.ERROR, error_type="ValueError"), True),
        (Execution(Status.TIMEOUT, error_type="cpu"), True),
        (Execution(Status.TIMEOUT, error_type="wall"), False),
        (Execution(Status.NO_VERDICT, error_type="server"), False),
        (Execution(Status.MEMORY, error_type="MemoryError"), False),
        (Execution(Status.CRASHED, error_type="SIGSEGV"), False),
    ],
)
def test_our_own_failures_are_never_kept(execution, kept):
    cache = ResultCache(10_000)
    key = cache.key(job("x", "1", "2"))
    cache.put(key, (OK, execution))
    assert (cache.get(key) is not None) is kept


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3000)), max_size=80))
def test_the_cache_keeps_the_newest_within_its_bound(puts):
    cache = ResultCache(8000)
    for number, length in puts:
        key = cache.key(job("x", str(number)))
        cache.put(key, (Execution(Status.OK, "y" * length),))
        assert cache.get(key) is not None
        assert cache._bytes == sum(400 + len(a[0].value) for a in cache._answers.values()) <= 8000


# --- the faces -------------------------------------------------------------------------------------------------------


def test_the_async_face_answers_the_same(executor):
    async def several():
        return await asyncio.gather(*(executor.arun([job(HONEST, str(n))]) for n in range(5)))

    assert [a[0][0].value for a in asyncio.run(several())] == [
        a[0].value for a in executor.run([job(HONEST, str(n)) for n in range(5)])
    ]


def test_the_async_face_leaves_the_loop_to_others(executor):
    async def both():
        waiting = asyncio.create_task(executor.arun([job(LOOP, "1", limits=Limits(0.3, 10.0))]))
        turns = 0
        while not waiting.done():
            await asyncio.sleep(0.01)
            turns += 1
        return turns, await waiting

    turns, ((result,),) = asyncio.run(both())
    assert result.status is Status.TIMEOUT
    assert turns > 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"child_per": "job"}, "child_per must be one of batch, program, run, got 'job'"),
        ({"cache_bytes": -1}, "cache_bytes must be a whole number of at least 0, got -1"),
        ({"cache_bytes": "2"}, "cache_bytes must be a whole number of at least 0, got '2'"),
        ({"workers": 0}, "workers must be a whole number of at least 1, or None for one a core, got 0"),
        ({"workers": "2"}, "workers must be a whole number of at least 1, or None for one a core, got '2'"),
        ({"tier": "ful"}, "tier must be one of full, filter_only, process_only, got 'ful'"),
    ],
)
def test_impossible_settings_are_one_clear_line(settings, words):
    with pytest.raises(ExecutorError, match=words):
        SandboxExecutor(**settings)
