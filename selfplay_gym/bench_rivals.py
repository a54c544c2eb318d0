"""Other ways to run the same programs, to measure the sandbox against: without walls, or without company.

None of them confines a program as the sandbox does. A rival whose package is not installed is left out, and said so.
"""

from __future__ import annotations

import ast
import contextlib
import operator
import os
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context, resource_tracker
from types import FrameType
from typing import Any, Final

from selfplay_gym.bench_programs import KINDS, evaluate, raised
from selfplay_gym.types import Execution, Job

TASK_SECONDS = 5.0
"""Time-out of a task, for those rivals that have one."""

Runner = Callable[[Sequence[Job]], Sequence[str | Execution]]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Rival:
    """One way to run programs.

    Attributes:
        name: As the table shows it.
        run: Runs every job; one answer an input, in order.
        clock: Processor seconds that this process and those of the rival have used so far.
        most: How many programs are enough to measure it.
    """

    name: str
    run: Runner
    clock: Clock
    most: int | None = None


def rivals(stack: contextlib.ExitStack) -> tuple[list[Rival], list[str]]:
    """Start the rivals, to end with ``stack``; return them, a fresh interpreter first, and which are left out."""
    found, missing = [Rival("python -I a run", _run_fresh, _children_seconds, most=KINDS)], []
    with _deaf_to_ctrl_c():
        found.append(Rival("ProcessPoolExecutor, one worker", *_futures(stack)))
        for name, package, make in (
            ("pebble, one worker", "pebble", _pebble),
            ("exec and pickle, one worker", "pebble", _exec_and_pickle),
            ("RestrictedPython, in-process", "RestrictedPython", _restricted),
        ):
            try:
                found.append(Rival(name, *make(stack)))
            except ImportError:
                missing.append(f"{name}: left out, since {package} is not installed")
    return found, missing


def run_in_process(jobs: Sequence[Job]) -> list[str]:
    """Run every job in this process, compiling its program anew for each input."""
    return [evaluate(str(job.program), arguments) for job in jobs for arguments in job.inputs]


def own_seconds() -> float:
    """Return the processor time of this process."""
    return time.process_time()


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime + time.process_time()


# --- a process a run ----------------------------------------------------------------------------------------------

_FRESH = "import sys\nn = {}\nexec(sys.argv[1], n)\nprint(repr(n['f'](*eval('(' + sys.argv[2] + ',)'))))"


def _run_fresh(jobs: Sequence[Job]) -> list[str]:
    answers = []
    for job in jobs:
        command = [sys.executable, "-I", "-c", _FRESH, str(job.program), job.inputs[0]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        answers.append(done.stdout.strip() if done.returncode == 0 else done.stderr.strip().rpartition("\n")[2])
    return answers


# --- one worker, a task a program -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Have the processes that are started inside not hear Ctrl-C, which a terminal sends to all: we end them."""
    resource_tracker.ensure_running()  # at its start it would undo what follows
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _with_worker(worker: int) -> Clock:
    """Return our processor time and that of a worker process, as pthread_getcpuclockid finds its clock."""
    return lambda: time.process_time() + time.clock_gettime((~worker << 3) | 2)


def _futures(stack: contextlib.ExitStack) -> tuple[Runner, Clock]:
    pool = stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn")))

    def run(jobs: Sequence[Job]) -> list[str]:
        return [pool.submit(evaluate, str(job.program), job.inputs[0]).result(TASK_SECONDS) for job in jobs]

    return run, _with_worker(pool.submit(os.getpid).result())


def _pebble(stack: contextlib.ExitStack) -> tuple[Runner, Clock]:
    pool = _pebble_pool(stack)

    def run(jobs: Sequence[Job]) -> list[str]:
        tasks = ((job.program, job.inputs[0]) for job in jobs)
        return [pool.schedule(evaluate, args=task, timeout=TASK_SECONDS).result() for task in tasks]

    return run, _with_worker(pool.schedule(os.getpid).result())


def _pebble_pool(stack: contextlib.ExitStack) -> Any:
    pebble = import_module("pebble")
    return stack.enter_context(pebble.ProcessPool(max_workers=1, context=get_context("spawn")))


# --- the scheme of the published Absolute Zero code, written anew from its description -------------------------------

_LONGEST = 400
_ASKS_FOR_INPUT = re.compile(r"input\(")


def _exec_and_pickle(stack: contextlib.ExitStack) -> tuple[Runner, Clock]:
    pool = _pebble_pool(stack)

    def run(jobs: Sequence[Job]) -> list[str]:
        return [_ask_worker(pool, f"{job.program!s}\nrepr(f({job.inputs[0]}))") for job in jobs]

    return run, _with_worker(pool.schedule(os.getpid).result())


def _ask_worker(pool: Any, text: str) -> str:
    """Have the one worker run a text, wait for it, and cut what it says in the middle."""
    ast.parse(text)
    if _ASKS_FOR_INPUT.search(text):
        return ""
    result, status = pool.schedule(run_text, args=(text, TASK_SECONDS), timeout=TASK_SECONDS).result()
    answer = str(result).strip() if status == "done" else str(status)
    half = _LONGEST // 2
    return answer if len(answer) <= _LONGEST else f"{answer[:half]}...{answer[-half:]}"


def run_text(text: str, seconds: float) -> tuple[object, str]:
    """Execute all lines but the last, here, and evaluate the last; return its value and how that ended."""
    lines = text.split("\n")
    namespace: dict[str, Any] = {}
    try:
        with _alarm(seconds):
            exec("\n".join(lines[:-1]), namespace)
        with _alarm(seconds):
            return eval(lines[-1], namespace), "done"  # noqa: S307 - that is the scheme
    except Exception:
        return "", traceback.format_exc().strip().rpartition("\n")[2]


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


# --- a restricted language, in this process ---------------------------------------------------------------------------

_OPERATORS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "+=": operator.iadd, "-=": operator.isub, "*=": operator.imul, "/=": operator.itruediv, "//=": operator.ifloordiv,
    "%=": operator.imod, "**=": operator.ipow, "|=": operator.ior, "&=": operator.iand, "^=": operator.ixor,
}  # fmt: skip
_IMPORTABLE = frozenset(("re", "math", "collections", "itertools", "functools", "string", "json"))


def _restricted(stack: contextlib.ExitStack) -> tuple[Runner, Clock]:
    known = _restricted_names()
    compile_restricted = import_module("RestrictedPython").compile_restricted

    def answer(program: str, arguments: str) -> str:
        try:
            namespace = dict(known)
            exec(compile_restricted(program, "<program>", "exec"), namespace)
            return repr(namespace["f"](*ast.literal_eval(f"({arguments}\n,)")))
        except Exception as error:
            return raised(error)

    def run(jobs: Sequence[Job]) -> list[str]:
        return [answer(str(job.program), arguments) for job in jobs for arguments in job.inputs]

    return run, own_seconds


def _restricted_names() -> dict[str, Any]:
    """Return what a program sees: the package's own guards, wherever it has one."""
    guards, evaluation = import_module("RestrictedPython.Guards"), import_module("RestrictedPython.Eval")
    harmless = (
        all, any, dict, enumerate, filter, frozenset, iter, list, map, max, min, next, range, reversed, set, sorted,
        sum, zip,
    )  # fmt: skip
    return {
        "__builtins__": {**guards.safe_builtins, **{f.__name__: f for f in harmless}, "__import__": _import},
        "__metaclass__": type,
        "__name__": "program",
        "_apply_": lambda function, *positional, **keywords: function(*positional, **keywords),
        "_getattr_": guards.safer_getattr,
        "_write_": guards.full_write_guard,
        "_getitem_": evaluation.default_guarded_getitem,
        "_getiter_": evaluation.default_guarded_getiter,
        "_iter_unpack_sequence_": guards.guarded_iter_unpack_sequence,
        "_unpack_sequence_": guards.guarded_unpack_sequence,
        "_inplacevar_": lambda sign, old, new: _OPERATORS[sign](old, new),
    }


def _import(name: str, *details: Any) -> Any:
    if name not in _IMPORTABLE:
        raise ImportError(f"{name} is not allowed")
    return __import__(name, *details)
