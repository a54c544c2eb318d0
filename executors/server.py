"""The trusted process inside the sandbox: forks one child a job, watches it, reports how its runs ended.

Started by `selfplay_gym.executors.sandbox` as a fresh interpreter that sees the standard library alone, so it inherits
nothing of the trainer. It first imports all that programs may import, then walls itself in, then splits in two: the
*keeper*, which outlives nobody and ends everything when the trainer ends, and the *server*, which serves jobs. In tier
``full`` the server is process 1 of its namespaces and its file system is one empty directory.

A child is never believed: the server counts frames itself, knows the clock and the exit status itself, and looks at no
payload. Standard library only.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` wraps every call in enums
import builtins
import collections
import ctypes
import gc
import importlib.util
import marshal
import os
import resource
import select
import struct
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from selfplay_gym.executors import seccomp, walls
from selfplay_gym.executors.compiler import CODE_FD, SOURCE_FD, Compiler, compiled

if TYPE_CHECKING:
    from selfplay_gym.executors.runner import Job

LENGTH = struct.Struct("<I")
CONTROL_FD = 3
HARD_FACTOR = 1.5  # a program that swallows the in-child time-out gets this much of its budget
PREPARE_SECONDS, PREPARE_SECONDS_PER_BYTE = 0.1, 4e-6  # reading the inputs comes before the first run's budget
MEMORY_SLACK = 8 * 2**20
FIRST_PATIENCE_MILLISECONDS = 5
COMPILE_MEMORY = 128 * 2**20
COMPILE_BUDGET = 0.1  # seconds; with less, the time to compile decides and belongs in the child
PAYLOAD_SLACK = 1024  # an error's name and message

# What programs can import: there is no file system to load anything else from. A light server has little to copy at
# each fork; `sandbox.is_light` picks the programs that need no more.
LIGHT = frozenset((
    "__future__", "abc", "bisect", "collections", "collections.abc", "contextlib", "copy", "enum", "functools", "heapq",
    "itertools", "keyword", "math", "operator", "re", "reprlib", "string", "sys", "time", "types", "typing",
))  # fmt: skip
PRELOADED = (
    "__future__", "abc", "array", "ast", "base64", "binascii", "bisect", "calendar", "cmath", "collections",
    "collections.abc", "contextlib", "copy", "copyreg", "dataclasses", "datetime", "decimal", "enum", "fractions",
    "functools", "hashlib", "heapq", "io", "itertools", "json", "keyword", "math", "numbers", "operator", "os",
    "pprint", "queue", "random", "re", "reprlib", "signal", "statistics", "string", "struct", "sys", "textwrap",
    "threading", "time", "traceback", "types", "typing", "unicodedata", "warnings", "zlib", "_strptime",
    "encodings.ascii", "encodings.latin_1", "encodings.utf_16", "encodings.utf_8_sig", "encodings.unicode_escape",
    "encodings.hex_codec", "encodings.rot_13", "_codecs_cn", "_codecs_hk", "_codecs_iso2022", "_codecs_jp",
    "_codecs_kr", "_codecs_tw", "_multibytecodec",
)  # fmt: skip

# What the server itself needs and a program has no use for.
HIDDEN = (
    "ctypes",
    "_ctypes",
    "ctypes._endian",
    "resource",
    "selfplay_gym",
    "subprocess",
    "socket",
    "_socket",
    "select",
)

WARM_UP = """
import re, collections, functools, itertools, typing, string
class Node(collections.namedtuple("Node", "a b")):
    @property
    def total(self): return self.a + self.b
@functools.lru_cache(None)
def fibonacci(n): return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)
def numbers(n):
    for i in range(n): yield i * 2.5
def f(text, items, table=None):
    words = re.findall(r"[a-z]+", text.lower()) + sorted({w.title() for w in text.split()}, key=len, reverse=True)
    counts = collections.Counter(words)
    for a, b in itertools.combinations(items[:4], 2): counts[f"{a:>3}-{b!r}"] += a * b // 2
    try: items[99]
    except IndexError as error: counts[str(error)] += 1
    match items:
        case [first, *rest]: counts["%s %d" % (first, len(rest))] += 1
    print(sum(numbers(9)), Node(1, 2).total, fibonacci(20))
    lines = "\\n".join("{}: {}".format(k, v) for k, v in counts.most_common())
    return {"lines": lines.encode().hex(), "rows": [(i, i ** 0.5, {i}) for i in items], "back": items[::-1]}
"""

WARM_UP_FULL = """
import dataclasses, datetime, decimal
@dataclasses.dataclass(order=True)
class Point:
    x: int
    y: "int" = 0
def f(*given):
    datetime.datetime.strptime("2024-01-02", "%Y-%m-%d").strftime("%d %b")
    return [Point(1) < Point(2), str(decimal.Decimal("1.5") * 2)]
"""


class WallMissing(Exception):
    """A wall that this tier promises does not hold, or cannot be built here."""


def main() -> None:
    """Serve the inherited socket until it closes.

    Arguments: tier, trainer's process id, literals file, two folders for the bootstrap, ``light`` or ``full``, number
    of the socket.
    """
    tier, trainer, literals_file, control = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[-1])
    light = sys.argv[-2] == "light"
    if control != CONTROL_FD:
        os.dup2(control, CONTROL_FD)
        os.close(control)
    try:
        server = _build(tier, trainer, literals_file, light)
    except (WallMissing, OSError) as error:
        _send(b"F" + str(error).encode("utf-8", "backslashreplace"))
        os._exit(1)
    server.serve()
    os._exit(0)


def _build(tier: str, trainer: int, literals_file: str, light: bool) -> Server:
    """Import, warm up, wall in, split; return in the server alone."""
    child_side = _load_child_side(literals_file, light)
    _preload(light)
    trainer_handle = _process_handle(trainer)
    if os.getppid() != trainer:
        os._exit(0)  # the trainer ended while this process started
    facts: dict[str, bool] = {"not_root": walls.leave_root()}
    if tier == "full":
        walls.enter_namespaces()
    alive, alive_keeper = os.pipe()
    server_id = os.fork()
    if server_id:
        os.close(alive)
        _keep(server_id, trainer, trainer_handle, alive_keeper)
    walls.die_with_parent()
    os.close(alive_keeper)
    if select.select([alive], [], [], 0)[0]:
        os._exit(0)  # the keeper ended before it could be watched
    os.close(alive)
    if trainer_handle is not None:
        os.close(trainer_handle)
    base = walls.address_space()
    if tier == "full":
        walls.empty_root()
    walls.drop_capabilities()
    walls.limit_server()
    walls.die_with_parent()  # changing credentials may have cleared it
    server = Server(child_side, base, _filter(tier), _filter(tier, compiles=True), tier)
    _forget_modules()
    server.warm_up(light)
    child_side.reset()  # the state in which every child begins its first run
    gc.collect()
    walls.give_back_memory()
    gc.freeze()
    gc.disable()
    server.check_walls(facts)
    _send(b"H" + marshal.dumps(facts))
    return server


def _load_child_side(literals_file: str, light: bool) -> Any:
    """Load the runner and the literals module with builtins of their own, out of reach of what programs change."""
    private = dict(vars(builtins))
    if light:  # values are only written there, never read; the true module would cost a megabyte
        sys.modules["ast"] = ModuleType("ast")
    for name, file in (
        ("selfplay_gym.literals", literals_file),
        ("selfplay_gym.executors.runner", __file__.replace("server.py", "runner.py")),
    ):
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        code = spec.loader.get_code(name)  # type: ignore[attr-defined]
        module = ModuleType(name)
        module.__dict__["__builtins__"] = private
        sys.modules[name] = module
        exec(code, module.__dict__)
    if light:
        del sys.modules["ast"]
    return sys.modules["selfplay_gym.executors.runner"]


def _preload(light: bool) -> None:
    os.register_at_fork = lambda **hooks: None  # `random` would seed itself anew in every child
    sys.modules["_hashlib"] = None  # type: ignore[assignment]  # OpenSSL costs megabytes; hashlib has its own code
    hashes = ("_md5", "_sha1", "_sha256", "_sha512", "_sha2", "_sha3", "_blake2")
    for name in sorted(LIGHT) if light else (*hashes, *PRELOADED):
        try:
            import_module(name)
        except ImportError:  # named otherwise in this version
            sys.modules.pop(name, None)
    if not light:
        # It would tidy up after threads, of which there are none, in every child.
        vars(sys.modules["threading"])["_after_fork"] = lambda: None
        sys.meta_path.append(_TextEncodings())


class _TextEncodings:
    """Imports the modules of `encodings` from memory: as modules they would be four megabytes to copy at each fork."""

    def __init__(self) -> None:
        import zlib  # not above: each C module is more to copy, and a light server has no use for this one

        self._decompress = zlib.decompress
        folder = os.path.dirname(sys.modules["encodings"].__file__ or "")  # noqa: PTH120
        names = [entry.removesuffix(".py") for entry in os.listdir(folder) if entry.endswith(".py")]  # noqa: PTH208
        self._code: dict[str, bytes] = {}
        for name in (f"encodings.{name}" for name in names if name != "__init__"):
            spec = importlib.util.find_spec(name)
            if name not in sys.modules and spec is not None:
                code = spec.loader.get_code(name)  # type: ignore[union-attr]
                self._code[name] = zlib.compress(marshal.dumps(code))

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """As `importlib` asks it."""
        return ModuleSpec(name, self) if name in self._code else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave that to `importlib`."""

    def exec_module(self, module: ModuleType) -> None:
        """As `importlib` asks it."""
        exec(marshal.loads(self._decompress(self._code[module.__name__])), module.__dict__)  # noqa: S302 - our own


def _forget_modules() -> None:
    """Leave programs only what is preloaded, and no way to look for more."""
    for name in list(sys.modules):
        if name.partition(".")[0] in HIDDEN or name in HIDDEN:
            del sys.modules[name]
    vars(sys.modules["__main__"]).clear()
    sys.path[:] = []
    sys.path_importer_cache.clear()
    sys.argv[:] = [""]
    sys.orig_argv[:] = []
    os.environ.clear()


def _filter(tier: str, compiles: bool = False) -> seccomp.Filter | None:
    table = seccomp.native_table()
    if tier == "process_only":
        return None
    if table is None:
        raise WallMissing(f"no system-call filter for {os.uname().machine}")
    if compiles:
        table = table._replace(allowed=(*table.allowed, table.read))
    return seccomp.Filter(table)


def _process_handle(process: int) -> int | None:
    try:
        return os.pidfd_open(process)
    except OSError:  # an old kernel, or refused inside a container
        return None


class _Stop(Exception):
    pass


def _keep(server: int, trainer: int, trainer_handle: int | None, alive: int) -> None:
    """Wait for the end of the server, of the trainer, or of patience (SIGTERM); never return."""

    def stop(number: int, frame: object) -> None:
        raise _Stop

    status = 1
    try:
        _signal.signal(_signal.SIGTERM, stop)
        os.closerange(0, CONTROL_FD + 1)
        server_handle = _process_handle(server)
        watched = [handle for handle in (trainer_handle, server_handle) if handle is not None]
        while True:
            select.select(watched, [], [], 10.0 if len(watched) == 2 else 0.2)
            if os.waitpid(server, os.WNOHANG)[0]:
                os._exit(0)
            # Without a handle on the trainer its end shows as a new parent.
            if os.getppid() != trainer:
                break
    except _Stop:
        status = 0
    finally:
        _signal.signal(_signal.SIGTERM, _signal.SIG_IGN)
        try:
            os.kill(server, _signal.SIGKILL)
            os.waitpid(server, 0)
        except OSError:
            pass
        os._exit(status)


def _send(body: bytes) -> None:
    view = memoryview(LENGTH.pack(len(body)) + body)
    while view:
        view = view[os.write(CONTROL_FD, view) :]


def _receive() -> bytes | None:
    header = _read_exactly(LENGTH.size)
    return None if header is None else _read_exactly(LENGTH.unpack(header)[0])


def _read_exactly(count: int) -> bytes | None:
    parts = []
    while count:
        part = os.read(CONTROL_FD, min(count, 2**20))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


class Server:
    """Runs jobs, one forked child after the other."""

    def __init__(
        self,
        child_side: Any,
        base_bytes: int,
        filter_: seccomp.Filter | None,
        compile_filter: seccomp.Filter | None,
        tier: str,
    ) -> None:
        self._runner: Any = child_side
        self._base_bytes = base_bytes
        self._filter = filter_
        self._compile_filter = compile_filter
        self._tier = tier
        self._compiler = Compiler(self._spawn_compiler)

    def serve(self) -> None:
        """Answer messages until the trainer closes the socket."""
        while (message := _receive()) is not None:
            if message[:1] == b"U":
                _send(b"U" + struct.pack("<d", _cpu_seconds() + self._compiler.cpu_seconds()))
                continue
            job: Job = self._runner.Job(*marshal.loads(message[1:]))  # noqa: S302 - from the trusted side
            if job.is_text and job.cpu_seconds >= COMPILE_BUDGET:
                job = self._runner.Job(*job[:-1], self._compiler.compile(job.program))
            _send(b"A" + b"".join(self._run(job, len(message))))

    def _run(self, job: Job, size: int) -> list[bytes]:
        """Return one frame a run; fewer where the job stops at its first failure."""
        done: list[bytes] = []
        while len(done) < len(job.runs):
            frames, fault = self._run_child(job, len(done), size)
            done += frames
            if fault is not None:
                done.append(fault)
            if job.stop and done[-1][4] != self._runner.OK:
                break
        return done

    def _run_child(self, job: Job, start: int, size: int) -> tuple[list[bytes], bytes | None]:
        """Run from ``start`` on in one child; return its frames and, if it ended early, the running one's fault."""
        read_end, write_end = os.pipe()
        watch = _Watch(self._runner, job, start, read_end, size)
        child = self._fork(lambda: self._be_child(job, start), write_end, job.memory_bytes + 2 * size)
        over_budget = False
        try:
            watch.wait()  # at once: until the child ends, every page touched here is copied
            os.close(write_end)
            walls.limit_memory(None)
            fault = watch.follow(child)
            over_budget = not watch.complete and watch.cpu_left() <= 0
        finally:
            os.kill(child, _signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            extra = watch.has_more()
            os.close(read_end)
        if watch.complete and not extra:
            return watch.frames, None
        if self._tier == "full":
            self._compiler.end()
            _end_all_others()
        if watch.complete:  # more than was asked for: nothing this child said can stand
            return [self._fault("crashed", "protocol")] * len(watch.frames), None
        if fault == "":
            return watch.frames, self._fault_of_exit(status, over_budget)
        name, kind = fault.split(":", 1)
        return watch.frames, self._fault(name, kind, cpu_seconds=watch.used if kind == "wall" else 0.0)

    def _fault_of_exit(self, status: int, over_budget: bool) -> bytes:
        if os.WIFEXITED(status):
            return self._fault("crashed", "exit", f"the process ended with status {os.WEXITSTATUS(status)}")
        number = os.WTERMSIG(status)
        name = _SIGNALS.get(number, f"signal {number}")
        if name == "SIGSYS":
            return self._fault("forbidden", "syscall", "a system call that only an attack makes")
        if name in ("SIGXCPU", "SIGPROF", "SIGVTALRM") or over_budget:
            return self._fault("timeout", "cpu")
        # No wall lets a program send itself this signal: the host ran out of memory, or somebody stopped us.
        if name == "SIGKILL" and self._filter is not None:
            return self._fault("no_verdict", "killed", "the process was killed from outside")
        return self._fault("crashed", name)

    def _fault(self, status: str, name: str, message: str = "", cpu_seconds: float = 0.0) -> bytes:
        code: int = getattr(self._runner, status.upper())
        payload = f"{name}\0{message}".encode()
        return bytes(self._runner.FRAME.pack(len(payload), code, 0, int(cpu_seconds * 1e6))) + payload

    def _fork(self, act: Callable[[], None], write_end: int, memory_bytes: int) -> int:
        """Fork; the child has the pipe on `seccomp.RESULT_FD`, no other descriptor, and ends after ``act``.

        The caller closes its end of the pipe and lifts the memory limit, once it has nothing better to do.
        """
        walls.limit_memory(self._base_bytes + MEMORY_SLACK + memory_bytes)
        child = os.fork()
        if child:
            return child
        status = 70
        try:
            os.dup2(write_end, seccomp.RESULT_FD)
            os.closerange(seccomp.RESULT_FD + 1, 16)
            act()
            status = 0
        finally:
            _exit(status)
        raise AssertionError  # not reached

    def _spawn_compiler(self, act: Callable[[], None], source_end: int, code_end: int) -> int:
        """Fork the process that compiles, with its two pipes and behind a filter."""
        walls.limit_memory(self._base_bytes + COMPILE_MEMORY)
        child = os.fork()
        if child:
            walls.limit_memory(None)
            return child
        status = 70
        try:
            # `Compiler` opened its pipes before any other: they lie above both numbers.
            os.dup2(source_end, SOURCE_FD)
            os.dup2(code_end, CODE_FD)
            os.closerange(SOURCE_FD + 1, 16)
            self._confine(self._compile_filter)
            act()
            status = 0
        finally:
            _exit(status)
        raise AssertionError  # not reached

    def _be_child(self, job: Job, start: int) -> None:
        self._confine(self._filter)
        self._runner.write_frames(job, start, seccomp.RESULT_FD)

    def _confine(self, filter_: seccomp.Filter | None) -> None:
        if self._tier != "full":
            walls.die_with_parent()
        if filter_ is None:
            walls.limit_unfiltered_child()
        gc.freeze()  # nothing of the server is ever collected here: that would copy all its pages
        gc.enable()
        if filter_ is not None:
            filter_.install()

    def warm_up(self, light: bool) -> None:
        """Run programs through every path once, so that children find the interpreter warm."""
        inputs = tuple(
            marshal.dumps((list(values), {}))
            for values in (("The quick brown fox", [3, 1, 2]), ("a", [1.5, -2], {"k": {1, 2}}))
        )
        limits = (5.0, 5.0, 2**28, 4096)
        programs = [WARM_UP, "def f(x): return 1 /", "def f(x, y): raise ValueError(x)"]
        for program in programs if light else [*programs, WARM_UP_FULL]:
            for code in (b"", compiled(program.encode())):
                job = self._runner.Job(program.encode(), True, "f", inputs, (0, 1) * 5, True, False, *limits, code)
                collections.deque(self._runner.frames(job, 0), maxlen=0)

    def check_walls(self, facts: dict[str, bool]) -> None:
        """See every wall of this tier hold, from inside; add what was seen to ``facts``.

        Raises:
            WallMissing: One does not.
        """
        facts["memory"] = self._probe(_probe_memory) == 0
        if self._filter is not None:
            facts["filter"] = facts["no_files"] = facts["no_network"] = facts["no_foreign_write"] = False
            held = self._probe(_probe_calls)
            for bit, name in enumerate(("no_files", "no_network", "no_foreign_write", "no_signals", "no_exec_memory")):
                facts[name] = os.WIFEXITED(held) and bool(os.WEXITSTATUS(held) >> bit & 1)
            forked = self._probe(_probe_fork)
            facts["no_fork"] = os.WIFSIGNALED(forked) and os.WTERMSIG(forked) == _signal.SIGSYS
            facts["filter"] = facts["no_fork"]
        if self._tier == "full":
            facts["own_processes"] = os.getpid() == 1
            facts["empty_root"] = os.listdir("/") == []  # noqa: PTH208
            facts["no_capabilities"] = _refused(lambda: os.chroot("/"))
        missing = [name for name, held in facts.items() if not held and name != "not_root"]
        if missing:
            raise WallMissing(f"tier {self._tier}: these walls do not hold: {', '.join(missing)}")

    def _probe(self, act: Callable[[], None]) -> int:
        """Return the wait status of a child that does ``act`` behind the walls."""
        read_end, write_end = os.pipe()

        def confined() -> None:
            self._confine(self._filter)
            act()

        child = self._fork(confined, write_end, 64 * 2**20)
        walls.limit_memory(None)
        os.close(write_end)
        os.close(read_end)
        return os.waitpid(child, 0)[1]


class _Watch:
    """Follows one child: counts its frames, checks their shape, holds the clocks.

    Sparing on purpose: after a fork every page this process writes to is copied, at some microseconds each.
    """

    def __init__(self, child_side: Any, job: Job, start: int, pipe: int, size: int) -> None:
        self._runner = child_side
        self._job = job
        self._expected = len(job.runs) - start
        self._pipe = pipe
        self._poll = select.poll()
        self._poll.register(pipe, select.POLLIN)
        self._grace = PREPARE_SECONDS + PREPARE_SECONDS_PER_BYTE * size
        self._clock = 0
        self._cpu_mark = 0.0
        self._wall_mark = time.monotonic()
        self._buffer = b""
        self.frames: list[bytes] = []
        self.complete = False
        self.used = 0.0  # processor time of the run that met the clock on the wall

    def wait(self) -> None:
        """Wait a little for the first frame; `follow` does what there is to do then, also if the child has ended."""
        self._poll.poll(FIRST_PATIENCE_MILLISECONDS)

    def follow(self, child: int) -> str:
        """Return when the child is done or ended (empty text), or with the fault for which it must be killed."""
        self._clock = (~child << 3) | 2  # the child's processor time, as pthread_getcpuclockid makes it
        patience = min(HARD_FACTOR * self._job.cpu_seconds, self._job.wall_seconds) + self._grace
        while not self.complete:
            if self._poll.poll(max(1.0, 1000 * patience)):
                chunk = os.read(self._pipe, 65536)
                if not chunk:
                    return ""
                self._buffer += chunk
                if not self._take_frames():
                    return "crashed:protocol"
            if not self.complete:  # looked at even while bytes arrive: they may be meant to keep us here
                cpu_left, wall_left = self.cpu_left(), self._wall_left()
                if cpu_left <= 0 or wall_left <= 0:
                    self.used = max(0.0, self._cpu() - self._cpu_mark)
                    return "timeout:cpu" if cpu_left <= 0 else "timeout:wall"
                patience = min(cpu_left, wall_left)
        return ""

    def has_more(self) -> bool:
        """Return whether the child, now dead, said more than it was asked for."""
        return bool(self._buffer) or (bool(self._poll.poll(0)) and bool(os.read(self._pipe, 1)))

    def _take_frames(self) -> bool:
        """Move whole frames out of the buffer; return whether all is well formed."""
        header, at = self._runner.FRAME, 0
        while len(self._buffer) - at >= header.size and not self.complete:
            length, status, _, _ = header.unpack_from(self._buffer, at)
            if length > self._job.output_bytes + PAYLOAD_SLACK or status > self._runner.UNSERIALISABLE:
                return False
            end = at + header.size + length
            if len(self._buffer) < end:
                break
            self.frames.append(self._buffer[at:end])
            at = end
            self.complete = len(self.frames) == self._expected or (self._job.stop and status != self._runner.OK)
        if at:
            self._buffer = self._buffer[at:]
            if not self.complete:
                self._cpu_mark, self._wall_mark, self._grace = self._cpu(), time.monotonic(), 0.0
        return True

    def _cpu(self) -> float:
        try:
            return time.clock_gettime(self._clock)
        except OSError:  # it has ended
            return self._cpu_mark

    def cpu_left(self) -> float:
        """Return the processor time before the running one is killed."""
        return HARD_FACTOR * self._job.cpu_seconds + self._grace - (self._cpu() - self._cpu_mark)

    def _wall_left(self) -> float:
        return self._job.wall_seconds + self._grace - (time.monotonic() - self._wall_mark)


_SIGNALS = {
    value: name
    for name, value in vars(_signal).items()
    if name.startswith("SIG") and not name.startswith("SIG_") and isinstance(value, int)
}
_exit = os._exit  # bound here: a program may replace the attribute


def _end_all_others() -> None:
    """As process 1: kill and reap whatever else may live in this namespace."""
    try:
        os.kill(-1, _signal.SIGKILL)
        while True:
            os.waitpid(-1, 0)
    except OSError:  # nobody is left
        pass


def _cpu_seconds() -> float:
    """Processor time of this server and its children so far."""
    times = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in times)


def _refused(act: Callable[[], object]) -> bool:
    try:
        act()
    except OSError:
        return True
    return False


def _probe_memory() -> None:
    try:
        bytearray(256 * 2**20)
    except MemoryError:
        return
    _exit(1)


def _probe_calls() -> None:
    """Exit with one bit a refusal."""
    libc = walls._libc
    held = (
        _refused(lambda: os.open("/", os.O_RDONLY)),
        libc.socket(1, 1, 0) == -1,
        _refused(lambda: os.write(0, b"x")),
        _refused(lambda: os.kill(1, 0)),
        _refused_executable_memory(),
    )
    _exit(sum(1 << bit for bit, refused in enumerate(held) if refused))


def _refused_executable_memory() -> bool:
    libc = walls._libc
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(4096), 7, 0x22, -1, ctypes.c_long(0))
    return address is None or address == ctypes.c_void_p(-1).value


def _probe_fork() -> None:
    os.fork()
