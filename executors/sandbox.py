"""Run programs that nobody trusts, on this machine, behind walls that are reported.

What is covered (tier ``full``; each line has a test):

* The host: a program sees no file, no network, no other process, no environment, and starts no process. It runs as
  nobody, without capabilities, in namespaces of its own on an empty root, behind a system-call filter.
* Resources: processor time, clock time, memory, printed text and the size of the result have limits, and every run is
  killed at its limit whatever it does.
* Other jobs: every job has a process of its own. Nothing it changes reaches the next one.
* This process: nothing a program wrote is evaluated, unpickled or decoded here, beyond text of bounded length.
* Determinism: on request each input runs twice in one process and once in another under a different hash seed.
* Our own faults: a server that dies is replaced and its jobs run again once; what still fails is `Status.NO_VERDICT`.

What is not covered:

* Bugs of the Linux kernel, and side channels such as timing between programs.
* A program under policy ``plain`` can say anything about *itself*: it shares its process with the code that frames its
  results. It can forge only its own value, and only a canonical one.
* Runs of one job share a process. A change to a module made by one run can reach the next run of the same program;
  the determinism check shows it.
* Clock time on an overloaded host: a program that gets no processor for ``wall_seconds`` runs again alone, once; then
  it times out.
* Tier ``filter_only`` (user namespaces refused) rests on the system-call filter alone. Tier ``process_only`` stops
  accidents, not attacks, and must be asked for.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import re
import select
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import selfplay_gym
from selfplay_gym import literals
from selfplay_gym.errors import ExecutorError
from selfplay_gym.executors.modules import LIGHT
from selfplay_gym.executors.policy import Refusal, refusal
from selfplay_gym.executors.runner import FRAME
from selfplay_gym.types import Execution, Job, Status, Tier

_FRAME = FRAME
_LENGTH = struct.Struct("<I")
_STATUSES: Final = tuple(Status[name] for name in (
    "OK", "ERROR", "TIMEOUT", "MEMORY", "OUTPUT_LIMIT", "UNSERIALISABLE", "CRASHED", "FORBIDDEN", "NO_VERDICT"
))  # fmt: skip

_START_SECONDS = 30.0
_PIPELINE = 2  # jobs a server holds: one running, one waiting, so that it never waits for us
_IDLE = 0.2  # a run that met the clock on the wall with less of its processor time may be our host's fault
_MOST_SLEEPERS = 3  # a batch in which that many slept again when alone holds sleepers; the others are believed
_SLACK_SECONDS = 30.0  # beyond all limits of a job together; then its server counts as hung
_HASH_SEEDS = {"A": "2801", "B": "4643"}  # fixed, so that a verdict does not depend on the run
_FULL = " full"  # servers that preloaded all that programs may import; the others fork for half the price
_KINDS = tuple(seed + size for size in ("", _FULL) for seed in _HASH_SEEDS)

# Starts a server without running `selfplay_gym/__init__.py`, whose imports a server must not have.
_BOOTSTRAP = """
import sys
package, executors = sys.argv[4:6]
for name, path in (("selfplay_gym", package), ("selfplay_gym.executors", executors)):
    sys.modules[name] = module = type(sys)(name)
    module.__path__ = [path]
del module, name, path, package, executors
from selfplay_gym.executors.server import main
main()
"""

# Canonical texts that need no parser to be recognised; most values are of these kinds.
_PLAINLY_CANONICAL = re.compile(
    r"(?:None|True|False|'[ -&(-\[\]-~]*'|(?:0|-?[1-9][0-9]{0,999})"
    r"|\[(?:(?:0|-?[1-9][0-9]{0,99})(?:, (?:0|-?[1-9][0-9]{0,99}))*)?\])"
)


class SandboxExecutor:
    """Runs jobs in per-core server processes, one forked and walled-in child a job.

    Safe to use from several threads (calls take turns). Belongs to the process that made it: make another one after
    a fork. The servers start at once; those for determinism checks on first need.

    Attributes:
        workers: Jobs that run at the same time.

    Args:
        workers: One a usable core unless told.
        tier: Insist on this isolation; otherwise the strongest that the host allows.
        keep_children: Put a child back as it was after each job and use it again, where the kernel can; False forks
            one for every job. No verdict depends on it.
        allow_process_only: Accept a host that refuses the system-call filter. Programs can then do to this machine
            what any program of this user can.

    Raises:
        ExecutorError: No accepted tier can be had here; the message names every wall that failed.
    """

    def __init__(
        self,
        workers: int | None = None,
        tier: Tier | None = None,
        allow_process_only: bool = False,
        keep_children: bool = True,
    ) -> None:
        if workers is not None and workers < 1:
            raise ExecutorError(f"workers must be at least 1, got {workers}")
        if not sys.platform.startswith("linux"):
            raise ExecutorError(f"the sandbox needs Linux, this is {sys.platform}")
        self.workers = workers or len(os.sched_getaffinity(0))
        self._keep_children = keep_children
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._servers: dict[str, list[_Server]] = {kind: [] for kind in _KINDS}
        self._closed = False
        self._refusals: list[str] = []
        self._tier = self._start_first(_accepted_tiers(tier, allow_process_only))
        # At exit the servers would end by themselves; this ends them without a word on stderr.
        self._finalizer = weakref.finalize(self, _end_all, self._servers, self._owner)
        self._ensure("A")

    @property
    def tier(self) -> Tier:
        """How strongly programs are isolated here."""
        return self._tier

    @property
    def walls(self) -> Mapping[str, bool]:
        """Every wall by name, and whether a server saw it hold."""
        return dict(self._servers["A"][0].walls) if self._servers["A"] else {}

    def describe(self) -> dict[str, object]:
        """Return the facts to store with a run: tier, workers, walls, and why no stronger tier was had."""
        return {"tier": str(self.tier), "workers": self.workers, "walls": dict(self.walls), "refused": self._refusals}

    def doctor(self) -> list[str]:
        """Return one line a fact, for people."""
        lines = [f"sandbox tier {self.tier}, {self.workers} workers"]
        lines += [f"{'present' if held else 'ABSENT '}  {name}" for name, held in self.walls.items()]
        return lines + [f"refused: {reason}" for reason in self._refusals]

    def run(self, jobs: Sequence[Job]) -> list[tuple[Execution, ...]]:
        """Run every job; answer in the same order, with one `Execution` an input.

        Raises:
            ExecutorError: The executor is closed, belongs to another process, or no server can be started.
        """
        with self._lock:
            self._check_usable()
            batch = _Batch(self, jobs)
            try:
                return batch.run()
            except BaseException:  # also Ctrl-C: what is under way is abandoned with its servers
                for server in self._all_servers():
                    if server.under_way:
                        server.kill()
                raise

    def cpu_seconds(self) -> float:
        """Return the processor time that servers and their children have used so far."""
        with self._lock:
            self._check_usable()
            return sum(server.ask_usage() for server in self._all_servers() if server.alive)

    def close(self) -> None:
        """End every process of this executor. Safe to call twice."""
        with self._lock:
            self._closed = True
            self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_usable(self) -> None:
        if self._closed:
            raise ExecutorError("this executor is closed")
        if os.getpid() != self._owner:
            raise ExecutorError("this executor belongs to another process; make one after the fork")

    def _all_servers(self) -> Iterator[_Server]:
        for servers in self._servers.values():
            yield from servers

    def _start_first(self, tiers: Sequence[Tier]) -> Tier:
        for tier in tiers:
            try:
                self._servers["A"].append(_Server("A", tier, self._keep_children).wait_ready())
            except ExecutorError as error:
                self._refusals.append(f"{tier}: {error}")
            else:
                return tier
        raise ExecutorError(f"no sandbox can be built here; {'; '.join(self._refusals)}")

    def _ensure(self, kind: str) -> list[_Server]:
        """Return the servers of a kind, all alive, starting those that are missing."""
        servers = self._servers[kind]
        servers[:] = [server for server in servers if server.alive]
        missing = self.workers - len(servers)
        if missing > 0:
            started = [_Server(kind, self._tier, self._keep_children) for _ in range(missing)]
            for server in started:
                with contextlib.suppress(ExecutorError):
                    servers.append(server.wait_ready())
        if not servers:
            raise ExecutorError("no server of the sandbox can be started any more")
        return servers


def _accepted_tiers(tier: Tier | None, allow_process_only: bool) -> list[Tier]:
    if tier is Tier.PROCESS_ONLY and not allow_process_only:
        raise ExecutorError("tier process_only does not stop attacks; pass allow_process_only=True to accept that")
    if tier is not None:
        return [tier]
    return [Tier.FULL, Tier.FILTER_ONLY] + ([Tier.PROCESS_ONLY] if allow_process_only else [])


def _end_all(servers: dict[str, list[_Server]], owner: int) -> None:
    everyone = [server for kind in servers.values() for server in kind]
    if os.getpid() != owner:  # a fork of the trainer: the servers are not its own
        for server in everyone:
            server.forget()
        return
    for server in everyone:
        server.ask_to_end()
    for server in everyone:
        server.kill()


class _Server:
    """One server process as this side sees it: what was sent to it and what came back."""

    def __init__(self, kind: str, tier: Tier, keep_children: bool) -> None:
        self.kind = kind
        self.walls: dict[str, bool] = {}
        self.under_way: deque[_Ticket] = deque()
        self._out = bytearray()
        self._in = bytearray()
        ours, theirs = socket.socketpair()
        self.socket = ours
        try:
            self._keeper = _spawn(theirs, kind, tier, keep_children)
        except OSError as error:
            ours.close()
            raise ExecutorError(f"cannot start {sys.executable}: {error}") from error
        finally:
            theirs.close()
        self._alive = True

    @property
    def alive(self) -> bool:
        """Whether it may still answer."""
        return self._alive

    def wait_ready(self) -> _Server:
        """Return once the server has seen its walls hold.

        Raises:
            ExecutorError: It refused to start, with its reason.
        """
        self.socket.settimeout(_START_SECONDS)
        try:
            body = self._read_message()
        except (OSError, EOFError) as error:
            self.kill()
            raise ExecutorError(f"the server gave no sign of life: {error or 'it ended'}") from error
        if body[:1] != b"H":
            self.kill()
            raise ExecutorError(body[1:500].decode("utf-8", "replace"))
        facts = marshal.loads(body[1:])  # noqa: S302 - written before any untrusted code ran
        self.walls = {str(name): bool(held) for name, held in facts.items()}
        self.socket.setblocking(False)
        return self

    def _read_message(self) -> bytes:
        while (message := self._next_message()) is None:
            chunk = self.socket.recv(65536)
            if not chunk:
                raise EOFError
            self._in += chunk
        return message

    def _next_message(self) -> bytes | None:
        if len(self._in) < _LENGTH.size:
            return None
        end = _LENGTH.size + _LENGTH.unpack_from(self._in)[0]
        if len(self._in) < end:
            return None
        message = bytes(self._in[_LENGTH.size : end])
        del self._in[:end]
        return message

    def ask_usage(self) -> float:
        """Return the processor time of the server's process tree; only while nothing is under way."""
        self.socket.settimeout(_START_SECONDS)
        self.socket.sendall(_LENGTH.pack(1) + b"U")
        (seconds,) = struct.unpack("<d", self._read_message()[1:])
        self.socket.setblocking(False)
        return float(seconds)

    def submit(self, ticket: _Ticket) -> None:
        """Queue a job for sending."""
        self.under_way.append(ticket)
        self._out += ticket.message
        if len(self.under_way) == 1:
            ticket.start_clock()

    @property
    def wants_to_write(self) -> bool:
        """Whether there is anything left to send."""
        return bool(self._out)

    def write(self) -> None:
        """Send what the socket takes now."""
        try:
            sent = self.socket.send(memoryview(self._out)[: 2**20])
        except BlockingIOError:
            return
        del self._out[:sent]

    def read(self) -> list[tuple[_Ticket, list[Execution]]]:
        """Return the jobs answered by what the socket holds now.

        Raises:
            EOFError, OSError, ValueError: The server has ended or talks nonsense.
        """
        chunk = self.socket.recv(2**18)
        if not chunk:
            raise EOFError
        self._in += chunk
        answered = []
        while (message := self._next_message()) is not None:
            if message[:1] != b"A" or not self.under_way:
                raise ValueError("an answer to nothing")
            executions = _read_frames(message, self.under_way[0])
            answered.append((self.under_way.popleft(), executions))
            if self.under_way:
                self.under_way[0].start_clock()
        return answered

    def ask_to_end(self) -> None:
        """Close the conversation; the server ends by itself."""
        self._alive = False
        self.socket.close()
        with contextlib.suppress(OSError):
            self._keeper.terminate()

    def kill(self) -> None:
        """End the server and its keeper, and leave no zombie."""
        self.ask_to_end()
        try:
            self._keeper.wait(5.0)  # the keeper ends the server first
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()

    def forget(self) -> None:
        """Let go of a server that belongs to the process this one was forked from."""
        self._alive = False
        self.socket.close()
        self._keeper.returncode = 0  # it is not ours to wait for


def _spawn(control: socket.socket, kind: str, tier: Tier, keep_children: bool) -> subprocess.Popen[bytes]:
    package = Path(selfplay_gym.__file__).parent
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PYTHONHOME") if name in os.environ}
    arguments = [str(tier), str(os.getpid()), str(package / "literals.py"), str(package), str(Path(__file__).parent)]
    arguments += ["full" if kind.endswith(_FULL) else "light", "kept" if keep_children else "fresh"]
    passed = control.fileno()
    return subprocess.Popen(
        # Not -I or -E: both ignore PYTHONHASHSEED.
        [sys.executable, "-P", "-s", "-S", "-B", "-W", "ignore", "-c", _BOOTSTRAP, *arguments, str(passed)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(passed,),
        cwd="/",
        # Bound now, or every child would look up the same C functions anew.
        env={**kept, "PYTHONHASHSEED": _HASH_SEEDS[kind[0]], "LC_ALL": "C.UTF-8", "TZ": "UTC", "LD_BIND_NOW": "1"},
        start_new_session=True,  # Ctrl-C in a terminal is for the trainer
    )


class _Ticket:
    """A job on its way: the order of its runs, and how often it was tried."""

    def __init__(self, index: int, job: Job, kind: str, runs: tuple[int, ...], stop: bool) -> None:
        self.index = index
        self.job = job
        self.kind = kind
        self.runs = runs
        self.stop = stop
        self.tries = 0
        self.alone = False  # whether it runs for the second time, with nothing beside it
        self.first: list[Execution] = []  # of a determinism check: what server A answered
        self.deadline = float("inf")

    @property
    def message(self) -> bytes:
        """The job as `runner.Job` takes it. Marshal, since this direction is trusted."""
        job, limits = self.job, self.job.limits
        is_text = isinstance(job.program, str)
        program = job.program.encode("utf-8", "surrogatepass") if isinstance(job.program, str) else job.program
        numbers = (limits.cpu_seconds, limits.wall_seconds, limits.memory_bytes, limits.output_bytes)
        inputs = tuple(map(_marshalled, job.inputs)) if job.literal_inputs else job.inputs
        fields = (program, is_text, job.entry, inputs, self.runs, job.literal_inputs, self.stop, *numbers)
        body = b"J" + marshal.dumps(fields)
        return _LENGTH.pack(len(body)) + body

    def start_clock(self) -> None:
        """Say that its server has nothing before it to do."""
        self.deadline = time.monotonic() + len(self.runs) * (self.job.limits.wall_seconds + 1.0) + _SLACK_SECONDS


class _Batch:
    """One call of `SandboxExecutor.run`: feeds servers, collects answers, replaces servers that die."""

    def __init__(self, executor: SandboxExecutor, jobs: Sequence[Job]) -> None:
        self._executor = executor
        self._answers: list[tuple[Execution, ...] | None] = [None] * len(jobs)
        self._waiting: dict[str, deque[_Ticket]] = {kind: deque() for kind in _KINDS}
        self._alone: deque[tuple[_Ticket, list[Execution]]] = deque()  # for when nothing else runs
        self._sleepers = 0
        self._open = 0
        for index, job in enumerate(jobs):
            self._admit(index, job)

    def _admit(self, index: int, job: Job) -> None:
        if isinstance(job.program, bytes) and job.policy == "strict":
            # Judged and run as the same text, whatever encoding the program declares.
            with contextlib.suppress(UnicodeDecodeError):
                job = replace(job, program=job.program.decode())
        refused = _refused_before_running(job)
        if refused is not None or not job.inputs:
            self._answers[index] = (refused,) * len(job.inputs) if refused else ()
            return
        numbers = range(len(job.inputs))
        runs = tuple(number for number in numbers for _ in range(2)) if job.check_determinism else tuple(numbers)
        kind = "A" if is_light(job) else "A" + _FULL
        self._waiting[kind].append(_Ticket(index, job, kind, runs, job.check_determinism))
        self._open += 1

    def run(self) -> list[tuple[Execution, ...]]:
        """Return the answers, one a job."""
        while self._open:
            servers = self._feed()
            for server, can_read, can_write in _ready(servers) if servers else ():
                try:
                    if can_write:
                        server.write()
                    if can_read:
                        for ticket, executions in server.read():
                            self._take(ticket, executions)
                except (OSError, EOFError, ValueError, struct.error) as error:
                    self._bury(server, str(error) or "a server of the sandbox ended")
            now = time.monotonic()
            for server in servers:
                if server.alive and server.under_way and server.under_way[0].deadline < now:
                    self._bury(server, "a server of the sandbox hung")
        return [answer if answer is not None else () for answer in self._answers]

    def _feed(self) -> list[_Server]:
        """Give every server work up to its depth, evenly; return those that have some."""
        self._release()
        busy = []
        for kind, waiting in self._waiting.items():
            servers = self._executor._ensure(kind) if waiting else self._executor._servers[kind]
            for depth in range(1, _PIPELINE + 1):
                for server in servers:
                    if waiting and len(server.under_way) < depth:
                        server.submit(waiting.popleft())
            busy += [server for server in servers if server.under_way]
        return busy

    def _release(self) -> None:
        """Let one of those that are to run alone go, if nothing else is left to run."""
        if any(self._waiting.values()) or any(server.under_way for server in self._executor._all_servers()):
            return
        while self._alone and self._sleepers >= _MOST_SLEEPERS:
            self._take(*self._alone.popleft())  # now taken at its word
        if self._alone and not any(self._waiting.values()):
            ticket, _ = self._alone.popleft()
            ticket.alone = True
            self._waiting[ticket.kind].append(ticket)

    def _bury(self, server: _Server, why: str) -> None:
        """Take back what a dead server held. Only the job it was running may be at fault, so only that one counts."""
        lost, server.under_way = server.under_way, deque()
        server.kill()
        for position, ticket in enumerate(lost):
            ticket.tries += position == 0
            if ticket.tries > 1:
                fault = Execution(Status.NO_VERDICT, error_type="server", message=why)
                self._settle(ticket, [fault] * len(ticket.job.inputs))
            else:
                self._waiting[ticket.kind].appendleft(ticket)

    def _take(self, ticket: _Ticket, executions: list[Execution]) -> None:
        if any(execution.status is Status.NO_VERDICT for execution in executions) and not ticket.tries:
            ticket.tries += 1
            self._waiting[ticket.kind].append(ticket)
        elif self._may_have_starved(ticket, executions):
            self._alone.append((ticket, executions))
        elif not ticket.kind.endswith(_FULL) and any(e.error_type in _MISSING for e in executions):
            ticket.kind += _FULL
            self._waiting[ticket.kind].append(ticket)
        elif not ticket.job.check_determinism:
            self._settle(ticket, executions)
        elif ticket.kind.startswith("A"):
            self._check_elsewhere(ticket, _settled_repeats(executions))
        else:
            self._settle(ticket, _settled_seeds(ticket, executions))

    def _may_have_starved(self, ticket: _Ticket, executions: list[Execution]) -> bool:
        """Return whether to run a job again alone, because it waited for the processor or slept."""
        idle = _IDLE * ticket.job.limits.cpu_seconds
        starved = any((e.status, e.error_type) == (Status.TIMEOUT, "wall") and e.cpu_seconds < idle for e in executions)
        self._sleepers += starved and ticket.alone
        return starved and not ticket.alone and self._sleepers < _MOST_SLEEPERS

    def _check_elsewhere(self, ticket: _Ticket, firsts: list[Execution]) -> None:
        """Queue the same inputs for another process with another hash seed, last input first."""
        beyond = (Status.TIMEOUT, Status.NONDETERMINISTIC, Status.NO_VERDICT)  # never run again
        runs = tuple(number for number, first in enumerate(firsts) if first.status not in beyond)
        if not runs:
            self._settle(ticket, firsts)
            return
        kind = ticket.kind.replace("A", "B", 1)
        second = _Ticket(ticket.index, ticket.job, kind, runs[::-1], False)
        second.first = firsts
        self._waiting[kind].append(second)

    def _settle(self, ticket: _Ticket, executions: list[Execution]) -> None:
        """Store the answer; a check that stopped early gives its last execution to the inputs after it."""
        missing = len(ticket.job.inputs) - len(executions)
        self._answers[ticket.index] = tuple(executions + [executions[-1]] * missing)
        self._open -= 1


def _ready(servers: list[_Server]) -> Iterable[tuple[_Server, bool, bool]]:
    """Wait a second at most; yield every server that can be read or written, and which of the two."""
    poll = select.poll()  # `selectors` costs as much again as everything else here
    for server in servers:
        poll.register(server.socket, select.POLLIN | (select.POLLOUT if server.wants_to_write else 0))
    by_descriptor = {server.socket.fileno(): server for server in servers}
    for descriptor, events in poll.poll(1000):
        # An error or a hang-up shows when it is read.
        yield by_descriptor[descriptor], bool(events & ~select.POLLOUT), bool(events & select.POLLOUT)


_LARGEST_MESSAGE = 64 * 2**20


def _refused_before_running(job: Job) -> Execution | None:
    """Return the answer to a job that never gets to a server."""
    if len(job.program) + sum(map(len, job.inputs)) > _LARGEST_MESSAGE:
        return Execution(Status.MEMORY, error_type="source", message=f"over {_LARGEST_MESSAGE} bytes of source")
    if job.policy == "strict" and isinstance(job.program, bytes):  # text would have been decoded
        return Execution(Status.FORBIDDEN, None, "source", "not UTF-8")
    if job.policy == "strict" and isinstance(job.program, str):
        refused = _cached_refusal(job.program)
        if refused is not None:
            return Execution(Status.FORBIDDEN, None, refused.name, refused.message, refused.line)
    return None


@lru_cache(maxsize=1024)
def _cached_refusal(program: str) -> Refusal | None:
    return refusal(program)


@lru_cache(maxsize=4096)
def _marshalled(text: str) -> bytes | str:
    """Return the arguments that a text says, marshalled; or, as text, why it says none."""
    try:
        return marshal.dumps(literals.parse_arguments(text))
    except literals.NotALiteral as refusal:
        return str(refusal)


_IMPORT = re.compile(
    r"^[ \t]*(?:import[ \t]+([\w.]+)(?:[ \t]+as[ \t]+\w+)?"
    r"|from[ \t]+([\w.]+)[ \t]+import[ \t][\w \t,()*]+);?[ \t]*$",
    re.ASCII | re.MULTILINE,
)


_CODECS = re.compile(r"encode|decode|codecs|namereplace|\\N")


def is_light(job: Job) -> bool:
    """Return whether a light server can run a job, going by its text.

    A wrong guess costs a second run, unless the program itself catches what a light server lacks. So whatever mentions
    codecs, which programs do catch, is not light.

    >>> is_light(Job("import re", ())), is_light(Job("import re, json", ())), is_light(Job("__import__('re')", ()))
    (True, False, False)
    """
    if not isinstance(job.program, str) or not job.literal_inputs or _CODECS.search(job.program):
        return False
    mentions = job.program.count("import")
    if not mentions:
        return True
    named = [first or second for first, second in _IMPORT.findall(job.program)]
    return len(named) == mentions and LIGHT.issuperset(named)


# What a program meets in a light server, and not in a full one, when it reaches for what is not there.
_MISSING = frozenset(("ImportError", "ModuleNotFoundError", "LookupError"))


def _read_frames(message: bytes, ticket: _Ticket) -> list[Execution]:
    """Return what a server's answer says.

    Raises:
        ValueError, struct.error: It is not an answer to this ticket.
    """
    executions = []
    at = 1
    while at < len(message):
        length, status, line, micros = _FRAME.unpack_from(message, at)
        at += _FRAME.size
        if at + length > len(message):
            raise ValueError("a cut answer")
        executions.append(_execution(_STATUSES[status], message[at : at + length], line, micros / 1e6))
        at += length
    whole = len(executions) == len(ticket.runs)
    stopped = ticket.stop and executions and executions[-1].status is not Status.OK
    if not whole and not stopped:
        raise ValueError(f"{len(executions)} answers to {len(ticket.runs)} runs")
    return executions


def _execution(status: Status, payload: bytes, line: int, seconds: float) -> Execution:
    if status is Status.OK:
        value = payload.decode("utf-8", "replace")
        if _is_canonical(value):
            return Execution(status, value, cpu_seconds=seconds)
        # The child's own code writes nothing else, so the program wrote this frame itself.
        return Execution(Status.CRASHED, error_type="protocol", cpu_seconds=seconds)
    name, _, words = payload.decode("utf-8", "replace").partition("\0")
    name = re.sub(r"[^\w.<>-]", "?", name[:80], flags=re.ASCII)
    return Execution(status, None, name, words[:200], line or None, seconds)


@lru_cache(maxsize=1024)
def _is_canonical(value: str) -> bool:
    if _PLAINLY_CANONICAL.fullmatch(value):
        return True
    try:
        return literals.canonical(value) == value
    except literals.NotALiteral:
        return False


def _settled_repeats(executions: list[Execution]) -> list[Execution]:
    """Return one execution an input, up to the first that is not ok, from runs made in pairs."""
    settled = []
    for first, second in zip(executions[::2], [*executions[1::2], None], strict=False):
        settled.append(first if second is None else _agreed(first, second, "repeat"))
        if settled[-1].status is not Status.OK:
            break
    return settled


def _settled_seeds(ticket: _Ticket, executions: list[Execution]) -> list[Execution]:
    """Return one execution an input, up to the first that is not ok, from both servers' answers."""
    others = dict(zip(ticket.runs, executions, strict=True))
    settled = []
    for number, first in enumerate(ticket.first):
        other = others.get(number)
        settled.append(first if other is None else _agreed(first, other, "seed"))
        if settled[-1].status is not Status.OK:
            break
    return settled


def _agreed(first: Execution, second: Execution, how: str) -> Execution:
    if first.outcome == second.outcome:
        return first
    if second.status in (Status.TIMEOUT, Status.NO_VERDICT):  # too slow to repeat, or our fault: not a difference
        return second
    return Execution(Status.NONDETERMINISTIC, error_type=how, message=f"{first.outcome[:90]} / {second.outcome[:90]}")
