"""What happens inside the one process that runs untrusted code: evaluate, encode, frame.

The server loads this file (and `selfplay_gym.literals`) with a private copy of the builtins, before any program ran. A
program that replaces ``len`` or ``repr`` therefore changes nothing here. Argument lists are parsed before the program's
first statement for the same reason. A frame says how one run ended; who reads it believes its shape only.

Standard library only.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` wraps every call in enums
import builtins
import gc
import io
import marshal
import mmap
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from types import CodeType, FrameType, TracebackType
from typing import NamedTuple

from selfplay_gym.executors.arguments import Supply, supply
from selfplay_gym.executors.compiler import PROGRAM_NAME, compiled
from selfplay_gym.executors.router import Anatomy, Router
from selfplay_gym.executors.seccomp import JOB_BYTES
from selfplay_gym.literals import NotALiteral, encode

FRAME = struct.Struct("<IBII")  # length of the payload, status, line, microseconds of processor time
OK, ERROR, TIMEOUT, MEMORY, OUTPUT_LIMIT, UNSERIALISABLE = range(6)
CRASHED, FORBIDDEN, NO_VERDICT = range(6, 9)  # these only the server can say
ALONE = 9  # not an ending: the program must run in a child of its own
STEADY = 10  # `OK`, and no hash seed could make it another value; said of a program that shares its child
MESSAGE_CHARACTERS = 200
STDOUT_CHARACTERS = 2**20

_RECURSION_LIMIT = 1000
_CALL_DEPTH = 24  # of what runs a program; more than any caller has
_ITIMER_PROF, _SIGPROF, _SIG_SETMASK = _signal.ITIMER_PROF, _signal.SIGPROF, _signal.SIG_SETMASK
_setitimer, _set_handler, _set_mask = _signal.setitimer, _signal.signal, _signal.pthread_sigmask
_write, _read, _loads = os.write, os.read, marshal.loads
_thread_time = time.thread_time  # with a timer armed, the clock of the whole process moves at ticks only
_exc_info, _set_recursion_limit, _get_frame = sys.exc_info, sys.setrecursionlimit, sys._getframe
_set_trace, _set_profile = sys.settrace, sys.setprofile
_pack = FRAME.pack
_name_of_type: Callable[[type], str] = type.__dict__["__name__"].__get__
_keep_garbage = gc.disable
_sys, _set, _StringIO = sys, setattr, io.StringIO
_map, _PRIVATE = mmap.mmap, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

Outcome = tuple[int, int, bytes]  # status, line, payload


class Job(NamedTuple):
    """A program and the order in which its inputs are run, as the trusted side sends it.

    Attributes:
        inputs: Bytes are marshalled arguments; text says why they are no literals, or is an expression.
        runs: Indices of inputs, in order.
        stop: End at the first run that is not `OK`.
        separate: A child for every run.
        code: The program compiled and marshalled, if the server could have that done.
    """

    program: bytes
    is_text: bool
    entry: str
    inputs: tuple[str | bytes, ...]
    runs: tuple[int, ...]
    literal_inputs: bool
    stop: bool
    cpu_seconds: float
    wall_seconds: float
    memory_bytes: int
    output_bytes: int
    separate: bool = False
    code: bytes = b""


# Closes what several jobs did in one child; the server knows the answer.
_KNOWN_PROGRAM = b"""
def f(words, n):
    counts = {word: len(word) for word in sorted(set(words))}
    squares = [i * i for i in range(n) if i % 2]
    return counts, squares, max(squares), str(1.5), "-".join(reversed(words)), isinstance(n, int), abs(-n)
"""
KNOWN = Job(
    program=_KNOWN_PROGRAM,
    is_text=True,
    entry="f",
    inputs=(marshal.dumps(([["b", "aa"], 6], {})),),
    runs=(0,),
    literal_inputs=True,
    stop=False,
    cpu_seconds=0.1,
    wall_seconds=1.0,
    memory_bytes=2**24,
    output_bytes=1024,
    code=compiled(_KNOWN_PROGRAM),
)


class _Expired(BaseException):
    """The run used up its processor time."""


class _Flooded(BaseException):
    """The program printed more than it may."""


class Null(io.TextIOBase):
    """A standard stream that leads nowhere and counts what it swallows."""

    encoding = "utf-8"
    errors = "strict"
    mode = "w"

    def __init__(self) -> None:
        self.left = STDOUT_CHARACTERS

    def writable(self) -> bool:
        """Return True: it takes everything."""
        return True

    def write(self, text: str) -> int:
        """Count the text and drop it."""
        if type(text) is not str:
            raise TypeError(f"write() argument must be str, not {_name_of_type(type(text))}")
        self.left -= len(text)
        if self.left < 0:
            raise _Flooded
        return len(text)


_now = 0.0
_deadline = 0.0  # of the run, on the clock of the thread
_armed = False
_fired = False
_reach = 0.0  # seconds within which the timer ticks again; 0: it is stopped


def _on_timer(number: int, frame: object) -> None:
    """End the run if its budget is spent: the timer counts whole ticks, and beside busy neighbours it is early."""
    global _fired
    if _armed:
        left = _deadline - _thread_time()
        if left > 0:
            _arm(max(left, 0.001))
            return
        _fired = True
        raise _Expired


def _arm(seconds: float) -> None:
    global _reach
    # It fires again and again: a program may catch the exception and go on.
    interval = max(seconds / 10, 0.01)
    _reach = max(seconds, interval)
    _setitimer(_ITIMER_PROF, seconds, interval)


def _disarm() -> None:
    global _reach
    _reach = 0.0
    _setitimer(_ITIMER_PROF, 0.0)


ROOM_BYTES = 8 * 2**20  # beside its limit a program alone has as much again
HOLD_SECONDS, _HOLD_BYTES = 0.02, 2**14
_RESERVE_BYTES, _RESERVE_BLOCK, _RESERVE_KEPT = 2**20, 400, 500
_reserve: list[bytes] = []
_kept = False  # whether this process is put back after each job; its filter then lets nobody change signals


_forget_types: tuple[Callable[[], None], ...] = ()
_router = Router(())  # as long as no module is known, none is shared


def learn_modules() -> None:
    """Remember the interpreter as it is now, with all modules loaded and before the first program."""
    global _router, _forget_types
    _forget_types = tuple(getattr(_sys.modules.get("typing"), "_cleanups", ()))
    _clear_types()
    _router = Router()


def _clear_types() -> None:
    """Forget the types that programs made: to `typing` the unions of int and str are equal, in whatever order."""
    for forget in _forget_types:
        forget()


def get_ready() -> None:
    """Have memory at hand that programs can use without asking the kernel, in a child that is to be put back."""
    global _kept
    _kept = True
    blocks = [bytes(_RESERVE_BLOCK) for _ in range(_RESERVE_BYTES // _RESERVE_BLOCK)]
    _reserve.extend(blocks[::_RESERVE_KEPT])  # enough to hold on to the pools of the interpreter
    blocks = [bytes(2**17) for _ in range(8)]  # has the C library ask for more than that, which it then keeps


def serve(jobs: int, pipe: int) -> None:
    """Read jobs and write their frames; then wait to be put back to before the reading."""
    message = _read(jobs, JOB_BYTES)
    _setitimer(_ITIMER_PROF, 0.0)  # the one thing of an earlier job that may still be there
    write_frames([Job(*fields) for fields in _loads(message)], 0, pipe)
    _read(jobs, JOB_BYTES)


def write_frames(jobs: list[Job], start: int, pipe: int) -> None:
    """Write the frames of one job, from the run at ``start`` on, or those of several and of the known answer.

    From one depth of calls, whoever calls: a program can count how many more it may make.
    """
    written = frames(jobs[0], start) if len(jobs) == 1 else _shared_frames(jobs)
    _at_depth(_CALL_DEPTH, lambda: _write_all(written, pipe, 0.0 if len(jobs) == 1 else HOLD_SECONDS))


def _has_room(size: int) -> bool:
    try:
        _map(-1, size + ROOM_BYTES, flags=_PRIVATE).close()
    except (OSError, MemoryError):
        return False
    return True


def _shared_frames(jobs: list[Job]) -> Iterator[bytes]:
    _keep_garbage()  # little comes together, and nothing that may share could see it collected
    _look_at_clock()
    streams = [stream for stream in (_sys.stdout, _sys.stderr) if type(stream) is Null]
    for program in _prepared(jobs):
        yield from _frames(program, 0)
        for stream in streams:  # the rest of `reset` no program that shares can reach
            stream.left = STDOUT_CHARACTERS
    (answer,) = frames(KNOWN, 0)
    yield _pack(0, ERROR, 0, 0) if _router.changed() else answer


def _prepared(jobs: list[Job]) -> list[_Program]:
    """Return the programs, compiled one after the other, which is much faster than each before it runs.

    What is not yet compiled after a while is left for then: the server waits for a frame.
    """
    programs = [_Program(job, shared=True) for job in jobs]
    latest = _now + HOLD_SECONDS
    for program in programs:
        if _now < latest:
            *_, program.spent = _timed(program, program.prepare)
    return programs


def _at_depth(depth: int, act: Callable[[], None]) -> None:
    frame: FrameType | None = _get_frame()
    while frame is not None:
        frame, depth = frame.f_back, depth - 1
    _called_through(depth, act)


def _called_through(calls: int, act: Callable[[], None]) -> None:
    if calls > 0:
        _called_through(calls - 1, act)
    else:
        act()


def _write_all(written: Iterator[bytes], pipe: int, hold: float) -> None:
    """Write frames, after ``hold`` seconds of processor time at the latest: to write wakes the server."""
    held, written_at = b"", _look_at_clock()
    for frame in written:
        held += frame
        if not hold or len(held) >= _HOLD_BYTES or _now - written_at >= hold:
            _write_whole(held, pipe)
            held, written_at = b"", _now
    _write_whole(held, pipe)


def _write_whole(text: bytes, pipe: int) -> None:
    view = memoryview(text)
    while view:
        view = view[_write(pipe, view) :]


def frames(job: Job, start: int) -> Iterator[bytes]:
    """Yield one frame a run of a program that shares this child with none, from the run at ``start`` on."""
    _look_at_clock()
    yield from _frames(_Program(job, shared=False), start)  # at the same depth of calls as one that shares


def _frames(program: _Program, start: int) -> Iterator[bytes]:
    """Yield one frame a run; `ALONE` and no more if the program may not share this child."""
    job = program.job
    # Before any of its own code: a program cannot touch how its later inputs are read.
    arguments = [supply(job.inputs[index], job.literal_inputs) for index in job.runs[start:]]
    for position, given in enumerate(arguments):
        if position:
            reset()
        status, line, payload, seconds = _timed(program, program.run, given)
        seconds, program.spent = seconds + program.spent, 0.0
        yield _pack(len(payload), status, line, min(int(seconds * 1e6), 0xFFFFFFFF)) + payload
        if status == ALONE or (job.stop and status not in (OK, STEADY)):
            break
    if program.makes_types:
        _clear_types()


def _look_at_clock() -> float:
    """Remember the processor time so far: where one run ends, the next begins, and each look is a system call."""
    global _now
    _now = _thread_time()
    return _now


def _timed(program: _Program, act: Callable[..., Outcome], *given: Supply) -> tuple[int, int, bytes, float]:
    """Return how an act of a program ended, within what is left of the budget of its run, and what it took."""
    global _armed, _deadline, _fired
    budget = program.job.cpu_seconds - program.spent
    begin = _now
    _deadline = begin + budget
    _fired, _armed = False, True
    outcome: Outcome = (TIMEOUT, 0, b"cpu\0")
    try:
        try:
            if not program.shared:
                _arm(budget)
            elif not 0 < _reach <= budget:  # else it runs on; one that ticks early is set to what is left
                _arm(max(budget / 2, 0.001))
            outcome = act(*given)
        finally:
            _armed = False
    except _Expired:
        pass
    _armed = False
    if not program.shared:
        _disarm()
    seconds = _look_at_clock() - begin
    if _fired or seconds > budget:  # also where the program swallowed the exception or stopped the timer
        outcome = (TIMEOUT, 0, b"cpu\0")
    return (*outcome, seconds)


def reset() -> None:
    """Put back what an earlier run of the same program may have changed of this interpreter."""
    for name, stream in (("stdout", Null()), ("stderr", Null()), ("stdin", _StringIO())):
        _set(_sys, name, stream)
        _set(_sys, f"__{name}__", stream)
    _set_recursion_limit(_RECURSION_LIMIT)
    _set_trace(None)
    _set_profile(None)
    if not _kept:
        _set_handler(_SIGPROF, _on_timer)
        _set_mask(_SIG_SETMASK, ())


class _Program:
    """Compiles once, inside the budget of the run that comes first.

    Attributes:
        shared: Whether it is to run beside others, if it may.
        makes_types: Whether it may leave types in what `typing` remembers.
        spent: Seconds of the budget of the next run that it has used.
    """

    def __init__(self, job: Job, shared: bool) -> None:
        self.job = job
        self.makes_types = False
        self.shared = shared
        self.spent = 0.0
        self._needs_room = False
        self._ok = OK
        self._code: CodeType | None = None
        self._refused: Outcome | None = None

    def prepare(self) -> Outcome:
        """Compile; what comes of it shows when it runs."""
        self._compile()
        return OK, 0, b""

    def run(self, given: Supply) -> Outcome:
        """Run with one input."""
        if self._refused is None and self._code is None:
            self._compile()
        if self._code is None:
            return self._refused or (TIMEOUT, 0, b"cpu\0")
        if self._needs_room:
            self._needs_room = False
            if not _has_room(self.job.memory_bytes):
                return ALONE, 0, b""
        namespace: dict[str, object] = {"__name__": "program", "__builtins__": builtins}
        try:
            positional, keywords = given()
            exec(self._code, namespace)
            function = namespace.get(self.job.entry)
            if function is None:
                return ERROR, 0, _words("NameError", f"the program defines no {self.job.entry!r}")
            value = function(*positional, **keywords)  # type: ignore[operator]
        except BaseException:
            outcome = _failure()
            # The interpreter may call it a SystemError, or anything, where it gets no memory.
            short = self.shared and outcome[0] == ERROR and not _has_room(self.job.memory_bytes)
            return (MEMORY, 0, b"MemoryError\0") if short else outcome
        finally:
            if self.shared:  # functions hold on to their globals: what was large would stay until it is collected
                namespace.clear()
        _set_recursion_limit(_RECURSION_LIMIT)  # the program may have left none to write the value with
        try:
            return self._ok, 0, encode(value, self.job.output_bytes).encode()
        except NotALiteral as refusal:
            too_large = str(refusal) == "too large"
            return (OUTPUT_LIMIT, 0, b"value\0") if too_large else (UNSERIALISABLE, 0, _words("", str(refusal)))
        except MemoryError:
            return MEMORY, 0, b"MemoryError\0"

    def _compile(self) -> None:
        self._refused = (TIMEOUT, 0, b"cpu\0")  # stands if the budget ends in here
        program = self.job.program
        try:
            if self.job.code:
                self._code = _loads(self.job.code)
                return
            source = program.decode("utf-8", "surrogatepass") if self.job.is_text else program
            code = compile(source, PROGRAM_NAME, "exec", 0, True)
            if self.shared:
                anatomy = Anatomy(code)
                self.makes_types = "typing" in anatomy.names
                # One that cannot catch an error fails where earlier ones hold memory that is its own, and is run again.
                self._needs_room = anatomy.catches
                if not _router.shares(anatomy):
                    self._refused = ALONE, 0, b""
                    return
                self._ok = STEADY if self.job.stop and _router.is_steady(anatomy) else OK
            self._code = code
        except _Expired:
            raise  # what stands says it, also for the runs that follow
        except BaseException:
            self._refused = _failure()


def _failure() -> Outcome:
    """Return the outcome for the exception being handled; may run the program's own ``__str__``, inside its budget."""
    kind, error, trace = _exc_info()
    assert kind is not None
    if kind is _Flooded:
        return OUTPUT_LIMIT, 0, b"stdout\0"
    if issubclass(kind, MemoryError) or _lacked_a_frame(error):  # the program's own `raise` counts the same: one rule
        return MEMORY, _line(trace), b"MemoryError\0"
    line = _line(trace)
    if kind is SyntaxError or kind is IndentationError or kind is TabError:
        place = getattr(error, "lineno", None)
        line = line or (place if type(place) is int else 0)
    try:
        message = str(error)
    except _Expired:
        raise
    except BaseException:
        message = ""
    return ERROR, min(max(line, 0), 0xFFFFFFFF), _words(_name_of_type(kind), message)


def _lacked_a_frame(error: BaseException | None) -> bool:
    """Return whether the interpreter got no memory to call a function with, which it does not call a MemoryError."""
    if type(error) is not SystemError or len(error.args) != 1:
        return False
    return type(error.args[0]) is str and error.args[0] == "error return without exception set"


def _words(name: str, message: str) -> bytes:
    if type(message) is not str:
        message = ""
    text = name[:80].replace("\0", " ") + "\0" + message[:MESSAGE_CHARACTERS]
    return text.encode("utf-8", "backslashreplace")


def _line(trace: TracebackType | None) -> int:
    """Return the innermost line of the program itself."""
    line = 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == PROGRAM_NAME:
            line = trace.tb_lineno or line
        trace = trace.tb_next
    return line
