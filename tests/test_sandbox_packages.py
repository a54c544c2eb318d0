"""What programs try that find numpy or math-verify in their server: more modules, and native code in reach of them.

Programs of a model run there as plain ones, on the servers that also compare its answers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from selfplay_gym import maths
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.types import Execution, Job, Limits, Status
from tests.test_sandbox_attacks import FORGED, HOST

LIMITS = Limits(cpu_seconds=1.0, wall_seconds=10.0, memory_bytes=256 * 2**20)
HONEST = {
    "numpy": (
        "import numpy\ndef f(x): return int(numpy.arange(x).sum()), repr(numpy.float64(0.1)), numpy.geterr()['divide']",
        "(6, 'np.float64(0.1)', 'warn')",
    ),
    "math_verify": (
        "import math_verify, sympy, mpmath\ndef f(x): return str(sympy.simplify('x + x') * x), mpmath.mp.dps",
        "('8*x', 15)",
    ),
}
needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs {name}: pip install -e '.[eval]'")
    for name in HONEST
}
PACKAGES = [pytest.param(name, marks=needs[name]) for name in HONEST]


@pytest.fixture(scope="module", params=[True, False], ids=["kept", "fresh"])
def executor(request: pytest.FixtureRequest) -> Iterator[SandboxExecutor]:
    with SandboxExecutor(workers=1, cache_bytes=0, keep_children=request.param) as sandbox:
        yield sandbox


def attack(executor: SandboxExecutor, package: str, *bodies: str) -> list[Execution]:
    """Run each as the body of ``f`` where the package is, every time with an honest program after it."""
    programs = [body if "def f(" in body else f"def f(*a):\n    {body}" for body in bodies]
    attacks = [Job(f"import {package}\n{program}", ("",), policy="plain", limits=LIMITS) for program in programs]
    program, value = HONEST[package]
    honest = Job(program, ("4",), policy="plain", limits=LIMITS)
    runs = executor.run([job for each in attacks for job in (each, honest)])
    assert [run[0].value for run in runs[1::2]] == [value] * len(attacks)
    return [run[0] for run in runs[::2]]


FROM_ANY_SERVER = (  # the others meet the same filter
    "read a file", "list the root", "read the environment", "leave the root", "fork", "start a thread", "open a socket",
    "kill the server", "write to the control socket", "raise a limit", "through subclasses",
)  # fmt: skip


@pytest.mark.parametrize("package", PACKAGES)
def test_the_host_is_as_far_from_these_servers(executor: SandboxExecutor, package: str) -> None:
    bodies = [HOST[name][0].replace("\n", "\n    ") for name in FROM_ANY_SERVER]
    for name, result in zip(FROM_ANY_SERVER, attack(executor, package, *bodies), strict=True):
        assert (result.status, result.value or "{}") == (HOST[name][1], "{}"), name


@pytest.mark.parametrize("package", PACKAGES)
def test_a_frame_forged_there_is_no_result(executor: SandboxExecutor, package: str) -> None:
    names = ("two frames", "an expression", "a status that is none")
    bodies = [f"import os; os.write(3, {FORGED[name]!r}); os._exit(0)" for name in names]
    assert {result.status for result in attack(executor, package, *bodies)} == {Status.CRASHED}


NUMPY_HOST = {
    "read a file": "return numpy.fromfile('/etc/passwd', dtype='u1').tolist()",
    "map a file": "return numpy.memmap('/etc/passwd', mode='r').tolist()",
    "load a pickle": "return numpy.load('/etc/passwd', allow_pickle=True)",
    "write a file": "numpy.arange(3).tofile('/tmp/canary')",
    "write to the pipe": "numpy.arange(3).tofile(open(3, 'wb', closefd=False))",
    "save": "numpy.save('/tmp/canary', numpy.arange(3))",
    "fetch": "return numpy.lib.npyio.DataSource().open('http://127.0.0.1/').read()",
}
MATHS_HOST = {
    "compile C": "from sympy.utilities.autowrap import autowrap; return autowrap(1)",
    "draw": "import sympy; return sympy.preview(sympy.Symbol('x'), viewer='file', filename='/tmp/canary')",
    "evaluate": 'import sympy; return sympy.sympify(\'__import__("os").listdir("/")\')',
    "write a name into code": "import sympy as s; return s.lambdify((), s.Function('open(\"/etc/passwd\").read')())()",
}


@pytest.mark.parametrize(
    ("package", "bodies"),
    [
        pytest.param("numpy", NUMPY_HOST, marks=needs["numpy"]),
        pytest.param("math_verify", MATHS_HOST, marks=needs["math_verify"]),
    ],
)
def test_what_a_package_could_do_to_the_host_is_refused(
    executor: SandboxExecutor, package: str, bodies: dict[str, str]
) -> None:
    results = attack(executor, package, *bodies.values())
    refused = (Status.ERROR, Status.FORBIDDEN, Status.CRASHED)
    assert [(name, r) for name, r in zip(bodies, results, strict=True) if r.status not in refused] == []


# numpy holds ctypes: a program calls whatever it likes of the C library.
NATIVE = """
def f(*a):
    c = numpy._core._internal.ctypes
    libc = c.CDLL(None)
    libc.mmap.restype = c.c_void_p
    size, page = c.c_size_t(4096), lambda access: libc.mmap(None, c.c_size_t(4096), access, 0x22, -1, c.c_long(0))
    {}
"""
REFUSED_NATIVE = {
    "open": "return libc.open(b'/etc/passwd', 0)",
    "socket": "return libc.socket(2, 1, 0)",
    "kill": "return libc.kill(1, 9)",
    "memory to execute": "return -1 if page(7) == c.c_void_p(-1).value else 0",
    "memory made executable": "return libc.mprotect(c.c_void_p(page(3)), size, 7)",
    "an address space without limit": "return libc.setrlimit(9, (c.c_long * 2)(-1, -1))",
    "another user": "return libc.setuid(0)",
    "the descriptor of another": "return libc.syscall(438, 5, 3, 0)",
    "another name": "return libc.prctl(15, b'init', 0, 0, 0)",
    "a shared mapping": "return -1 if libc.shmget(0, size, 0o1777) == -1 else 0",
    "the environment": "return -1 if not any(map(libc.getenv, (b'HOME', b'PATH', b'USER'))) else 0",
}
DEADLY_NATIVE = {
    "fork": "return libc.fork()",
    "threads": "return libc.syscall(435, 0, 0)",
    "another program": "return libc.execl(b'/bin/sh', b'sh', None)",
    "the memory of another": "return libc.syscall(310, 1, 0, 0, 0, 0, 0)",
    "tracing": "return libc.ptrace(16, 1, 0, 0)",
    "a name space": "return libc.unshare(0x10000000)",
}


@needs["numpy"]
def test_native_code_reaches_no_further(executor: SandboxExecutor) -> None:
    results = attack(executor, "numpy", *[NATIVE.format(body) for body in REFUSED_NATIVE.values()])
    # Some of these end a kept child, and are then run again in a fresh one.
    reached = [(n, r) for n, r in zip(REFUSED_NATIVE, results, strict=True) if (r.status, r.value) != (Status.OK, "-1")]
    assert reached == []
    results = attack(executor, "numpy", *[NATIVE.format(body) for body in DEADLY_NATIVE.values()])
    assert [(n, r) for n, r in zip(DEADLY_NATIVE, results, strict=True) if r.status is not Status.FORBIDDEN] == []


LEAVES_IN_NUMPY = {
    "how errors are met": "numpy.seterr(all='raise')",
    "how numbers are written": "numpy.set_printoptions(precision=1, legacy='1.13')",
    "functions": "numpy.arange = numpy.float64 = None",
    "functions in C": "vars(numpy._core._multiarray_umath).clear()",
    "a type": NATIVE.format("c.memset(id(numpy.dtype('f8')) + 16, 0, 8)"),
    "a constant": NATIVE.format("c.c_double.from_address(id(numpy.float64(0.1)) + 16).value = 7.0"),
    "large memory": "numpy.kept = numpy.ones(10 ** 7)",
}


@needs["numpy"]
def test_what_a_program_left_in_numpy_is_gone(executor: SandboxExecutor) -> None:
    results = attack(executor, "numpy", *LEAVES_IN_NUMPY.values())
    assert [(n, r) for n, r in zip(LEAVES_IN_NUMPY, results, strict=True) if r.status is not Status.OK] == []


SAYS_YES = {
    "the comparison": "math_verify.verify = math_verify.grader.verify = lambda *a, **k: True",
    "the reader": "math_verify.parse = math_verify.parser.parse = lambda *a, **k: [1]",
    "its helpers": "vars(math_verify.grader).update(sympy_expr_eq=lambda *a, **k: True)",
    "its code": "math_verify.verify.__code__ = (lambda *a, **k: True).__code__",
    "its defaults": "math_verify.verify.__defaults__ = (6, 15, False, True, 5, 0)",
    "equality": "import sympy; sympy.Basic.__eq__ = sympy.Integer.__eq__ = lambda a, b: True",
    "a cached answer": "import sympy; sympy.simplify = lambda *a, **k: sympy.S.Zero",
    "the caches": "from sympy.core import cache; cache.clear_cache(); cache.CACHE[:] = []",
    "what is nothing": "import sympy; sympy.Expr.is_zero = property(lambda s: True)",
    "a number": "import sympy; type(sympy.S.Half).p = 3; sympy.Integer(3).p = 2",
    "precision": "import mpmath; mpmath.mp.dps = 1; mpmath.mp.prec = 2",
    "the cache of the reader": "math_verify.parser.parse_latex_cached = lambda text: 1",
    "the grammar": "import latex2sympy2_extended.latex2sympy2 as x; x._Latex2Sympy.parse = lambda s, t: 1",
    "decoded grammar": "from latex2sympy2_extended.antlr_parser import PSParser; PSParser.decisionsToDFA[:] = []",
    "the import": "import builtins; builtins.__import__ = lambda *a, **k: math_verify",
    "the recursion limit": "import sys; sys.setrecursionlimit(60)",
}
RIGHT, WRONG = (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"), (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{2}}")


@needs["math_verify"]
def test_no_program_changes_how_answers_are_compared_after_it(executor: SandboxExecutor) -> None:
    jobs = []
    for body in SAYS_YES.values():
        program = f"import math_verify, math_verify.grader, math_verify.parser\ndef f():\n    {body}\n    return True"
        jobs += [Job(program, ("",), policy="plain", limits=LIMITS), maths.job(*WRONG), maths.job(*RIGHT)]
    runs = [run[0] for run in executor.run(jobs)]
    wrong, right = runs[1::3], runs[2::3]
    assert [name for name, run in zip(SAYS_YES, wrong, strict=True) if run.value != "False"] == []
    assert [name for name, run in zip(SAYS_YES, right, strict=True) if run.value != "True"] == []
    assert [name for name, run in zip(SAYS_YES, runs[::3], strict=True) if run.value != "True"] == []  # it was done
