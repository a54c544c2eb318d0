"""A server as the trainer sees it: starts it, sends parcels, reads what it answers.

Nothing a program wrote is evaluated, unpickled or decoded here, beyond text of bounded length.
"""

from __future__ import annotations

import contextlib
import importlib.util
import marshal
import os
import re
import socket
import struct
import subprocess
import sys
from collections import deque
from functools import lru_cache
from operator import lt
from pathlib import Path
from typing import Final

import selfplay_gym
from selfplay_gym import literals
from selfplay_gym.errors import ExecutorError
from selfplay_gym.executors.cache import remembered_if_short
from selfplay_gym.executors.runner import ALONE, FRAME, STEADY
from selfplay_gym.executors.tickets import FULL, MATHS, NUMERIC, Parcel, Ticket
from selfplay_gym.types import Execution, Status, Tier

_FRAME = FRAME
_LENGTH, _COUNT = struct.Struct("<I"), struct.Struct("<I")
_STATUSES: Final = {STEADY: Status.OK} | dict(enumerate(Status[name] for name in (
    "OK", "ERROR", "TIMEOUT", "MEMORY", "OUTPUT_LIMIT", "UNSERIALISABLE", "CRASHED", "FORBIDDEN", "NO_VERDICT"
)))  # fmt: skip
_START_SECONDS = 120.0  # a maths server imports six hundred modules, on a busy host or from a slow disk too
_HASH_SEEDS = {"A": "2801", "B": "4643"}  # fixed, so that a verdict does not depend on the run
_ENVIRONMENT = {
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "LD_BIND_NOW": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
KINDS = tuple(seed + size for size in ("", FULL, NUMERIC, MATHS) for seed in _HASH_SEEDS)
_PACKAGE_OF = {"numeric": "numpy", "maths": "math_verify"}

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
_SCALAR = r"(?:None|True|False|'[ -&(-\[\]-~]*'|0|-?[1-9][0-9]{0,999})"
_FLAT = rf"(?:{_SCALAR}|\[(?:{_SCALAR}(?:, {_SCALAR})*)?\]|\({_SCALAR}(?:,|(?:, {_SCALAR})+)\))"
_PLAINLY_CANONICAL = re.compile(rf"{_FLAT}|\[{_FLAT}(?:, {_FLAT})*\]|\({_FLAT}(?:,|(?:, {_FLAT})+)\)|set\(\)|{{}}")
# Canonical if their items, or keys, are in order: sets of integers, and integers by plain strings.
_INTEGER, _KEY = "(?:0|-?[1-9][0-9]{0,999})", r"'[ -&(-\[\]-~]*'"
_PLAIN_SET = re.compile(rf"{{{_INTEGER}(?:, {_INTEGER})*}}")
_PLAIN_DICT = re.compile(rf"{{{_KEY}: {_INTEGER}(?:, {_KEY}: {_INTEGER})*}}")


class Server:
    """One server process as this side sees it: what was sent to it and what came back.

    Attributes:
        core: That it stays on; None: it may move.
        has_begun: Whether it was sent anything of what is under way; what it was not sent cannot have ended it.
    """

    def __init__(self, kind: str, tier: Tier, keep_children: bool, core: int | None = None) -> None:
        self.kind = kind
        self.core = core
        self.walls: dict[str, bool] = {}
        self.keeps_none = ""  # why its children are forked for every job
        self.under_way: deque[Parcel] = deque()
        self.has_begun = False
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
        if core is not None:
            with contextlib.suppress(OSError):  # the core was taken from us, or the server has ended
                os.sched_setaffinity(self._keeper.pid, {core})  # before it has imported anything, or forked
        self._alive = True

    @property
    def alive(self) -> bool:
        """Whether it may still answer."""
        return self._alive

    def wait_ready(self) -> Server:
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
        facts, self.keeps_none = marshal.loads(body[1:])  # noqa: S302 - written before any untrusted code ran
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
        """Return the processor time of the server's process tree, 0 if it has ended; while nothing is under way."""
        try:
            self.socket.settimeout(_START_SECONDS)
            self.socket.sendall(_LENGTH.pack(1) + b"U")
            (seconds,) = struct.unpack("<d", self._read_message()[1:])
            self.socket.setblocking(False)
        except (OSError, EOFError):
            self.kill()
            return 0.0
        return float(seconds)

    def submit(self, parcel: Parcel) -> None:
        """Queue a parcel for sending."""
        self.has_begun = self.has_begun and bool(self.under_way)
        self.under_way.append(parcel)
        self._out += parcel.message
        if len(self.under_way) == 1:
            parcel.start_clock()

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
        self.has_begun = True
        del self._out[:sent]

    def read(self) -> list[tuple[Ticket, list[Execution] | None]]:
        """Return the tickets answered by what the socket holds now; with None: it must run alone.

        Raises:
            EOFError, OSError, ValueError, struct.error: The server has ended or talks nonsense.
        """
        chunk = self.socket.recv(2**18)
        if not chunk:
            raise EOFError
        self._in += chunk
        answered: list[tuple[Ticket, list[Execution] | None]] = []
        while (message := self._next_message()) is not None:
            if message[:1] != b"A" or not self.under_way:
                raise ValueError("an answer to nothing")
            tickets = self.under_way[0].tickets
            answered += zip(tickets, _read_answers(message, tickets), strict=True)
            self.under_way.popleft()
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
    size = kind[1:].strip() or "light"
    arguments += [size, _folder_of(_PACKAGE_OF.get(size, "")), "kept" if keep_children else "fresh"]
    passed = control.fileno()
    return subprocess.Popen(
        # Not -I or -E: both ignore PYTHONHASHSEED.
        [sys.executable, "-P", "-s", "-S", "-B", "-W", "ignore", "-c", _BOOTSTRAP, *arguments, str(passed)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(passed,),
        cwd="/",
        env={**kept, **_ENVIRONMENT, "PYTHONHASHSEED": _HASH_SEEDS[kind[0]]},
        start_new_session=True,  # Ctrl-C in a terminal is for the trainer
    )


def _folder_of(package: str) -> str:
    """Return the folder that a package is installed in, nothing where it is not."""
    spec = importlib.util.find_spec(package) if package else None
    return str(Path(spec.origin).parent.parent) if spec is not None and spec.origin else ""


def _read_answers(message: bytes, tickets: list[Ticket]) -> list[list[Execution] | None]:
    """Return what a server's answer says of each ticket.

    Raises:
        ValueError, struct.error: It is not an answer to these tickets.
    """
    answers: list[list[Execution] | None] = []
    at = 1
    for ticket in tickets:
        (count,) = _COUNT.unpack_from(message, at)
        at += _COUNT.size
        executions: list[Execution] | None = []
        for _ in range(count):
            length, status, line, micros = _FRAME.unpack_from(message, at)
            at += _FRAME.size
            payload = message[at : at + length]
            at += length
            if status == ALONE:
                executions = None
            elif executions is not None:
                ticket.is_steady = status == STEADY
                executions.append(_execution(_STATUSES[status], payload, line, micros / 1e6))
        if executions is not None and len(executions) != len(ticket.runs):
            _check_stopped(executions, ticket)
        answers.append(executions)
    if at != len(message):
        raise ValueError("more or less than an answer")
    return answers


def _check_stopped(executions: list[Execution], ticket: Ticket) -> None:
    if not (ticket.stop and 0 < len(executions) < len(ticket.runs) and executions[-1].status is not Status.OK):
        raise ValueError(f"{len(executions)} answers to {len(ticket.runs)} runs")


def _execution(status: Status, payload: bytes, line: int, seconds: float) -> Execution:
    if status is Status.OK:
        value = payload.decode("utf-8", "replace")
        if _is_plainly_canonical(value) or remembered_if_short(_is_canonical, value):
            return Execution(status, value, cpu_seconds=seconds)
        # The child's own code writes nothing else, so the program wrote this frame itself.
        return Execution(Status.CRASHED, error_type="protocol", cpu_seconds=seconds)
    name, _, words = payload.decode("utf-8", "replace").partition("\0")
    name = re.sub(r"[^\w.<>-]", "?", name[:80], flags=re.ASCII)
    return Execution(status, None, name, words[:200], line or None, seconds)


def _is_plainly_canonical(value: str) -> bool:
    """Return whether a value of one of the common kinds is canonical; False also for all other kinds."""
    if _PLAINLY_CANONICAL.fullmatch(value):
        return True
    if _PLAIN_SET.fullmatch(value):
        items = value[1:-1].split(", ")
    elif _PLAIN_DICT.fullmatch(value):
        items = re.findall("'[^']*'", value)
    else:
        return False
    return all(map(lt, items, items[1:]))  # in order of their texts, none twice


@lru_cache(maxsize=1024)
def _is_canonical(value: str) -> bool:
    try:
        return literals.canonical(value, literals.MAX_PLAIN) == value
    except literals.NotALiteral:
        return False
