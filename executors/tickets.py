"""A job on its way to a server: the order of its runs, what it may share, how often it was tried."""

from __future__ import annotations

import marshal
import re
import struct
import time
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from selfplay_gym import literals
from selfplay_gym.executors.cache import remembered_if_short
from selfplay_gym.executors.modules import LIGHT
from selfplay_gym.executors.policy import MAX_SOURCE, Refusal, refusal
from selfplay_gym.types import Execution, Job, Status

FAST_SECONDS: Final = 0.05  # of processor time for a run that shares a child; what needs more runs again alone
# Kinds of server beside the light ones, whose children cost less.
FULL = " full"  # preloaded all that programs may import
NUMERIC = " numeric"  # and numpy
MATHS = " maths"  # and math-verify
LARGEST_PARCEL = 64  # jobs
_PARCEL_BYTES = 24 * 2**10  # the children that are put back take messages up to 32 KiB
_FIELD_BYTES = 64  # about what a job adds to its texts
_SLACK_SECONDS = 30.0  # beyond all limits of a parcel together; then its server counts as hung
_LENGTH = struct.Struct("<I")
_LARGEST_MESSAGE = 64 * 2**20


class Ticket:
    """A job in a batch.

    Attributes:
        index: Its place in the batch.
        kind: Of server.
        runs: Indices of inputs, in the order in which they run.
        stop: Whether to end at the first run that is not ok.
        shares: Whether it may run in one child with other jobs.
        separate: Whether every run gets a child of its own.
        is_steady: Whether its last run was ok and no hash seed could have made it another value.
        company: What shared a child with it, itself included, for every child that it had.
        key: Of its job, in the cache.
        tries: How often our own faults cost it an answer.
        undisturbed: Whether it runs for the second time, with nothing beside it.
        first: Of a determinism check: what server A answered.
        expected: Of an audit: what it must answer again.
        round: How often its job was begun anew because company was not to be believed.
    """

    __slots__ = (
        "company", "expected", "first", "index", "is_steady", "job", "key", "kind", "round", "runs", "separate",
        "shares", "stop", "tries", "undisturbed",
    )  # fmt: skip

    def __init__(self, index: int, job: Job, kind: str, runs: tuple[int, ...], stop: bool) -> None:
        self.index = index
        self.job = job
        self.kind = kind
        self.runs = runs
        self.stop = stop
        self.shares = False
        self.separate = False
        self.is_steady = False
        self.company: tuple[list[Ticket], ...] = ()
        self.key = b""
        self.tries = 0
        self.undisturbed = False
        self.first: list[Execution] = []
        self.expected: tuple[Execution, ...] | None = None
        self.round = 0

    @property
    def is_hurried(self) -> bool:
        """Whether it gets less processor time than its job allows."""
        return self.shares and self.job.limits.cpu_seconds > FAST_SECONDS

    @property
    def in_company(self) -> bool:
        """Whether any of its runs shared a child."""
        return bool([shared for shared in self.company if len(shared) > 1])

    @property
    def has_plain_inputs(self) -> bool:
        """Whether no input may bring an unsteady value into a steady program: a set, or a format, also if escaped."""
        return not any("{" in text or "%" in text or "\\" in text or "set" in text for text in self.job.inputs)

    def fields(self) -> tuple[object, ...]:
        """Return the job as `runner.Job` takes it."""
        job, limits = self.job, self.job.limits
        program = job.program
        inputs: Sequence[str | bytes] = job.inputs
        if job.literal_inputs:
            most = literals.MAX_PLAIN + 1  # is refused as any more, and less to read
            inputs = [remembered_if_short(_marshalled, text[:most]) for text in job.inputs]
        return (
            program.encode("utf-8", "surrogatepass") if isinstance(program, str) else program,
            isinstance(program, str),
            job.entry,
            tuple(inputs),
            self.runs,
            job.literal_inputs,
            self.stop,
            FAST_SECONDS if self.is_hurried else limits.cpu_seconds,
            limits.wall_seconds,
            limits.memory_bytes,
            limits.output_bytes,
            self.separate,
        )


class Parcel:
    """What one message to a server holds: a job, or several that share a child."""

    def __init__(self, tickets: list[Ticket]) -> None:
        self.tickets = tickets
        self.deadline = float("inf")

    @property
    def message(self) -> bytes:
        """The message. Marshal, since this direction is trusted."""
        body = b"J" + marshal.dumps([ticket.fields() for ticket in self.tickets])
        return _LENGTH.pack(len(body)) + body

    def start_clock(self) -> None:
        """Say that its server has nothing before it to do."""
        seconds = sum(len(ticket.runs) * (ticket.job.limits.wall_seconds + 1.0) for ticket in self.tickets)
        # Twice: what a kept child may not judge runs from the start in a fresh one.
        self.deadline = time.monotonic() + 2 * seconds + _SLACK_SECONDS


def next_parcel(waiting: deque[Ticket], most: int) -> Parcel:
    """Take the next ticket and, if it shares, up to ``most`` in all that can share with it."""
    first = waiting.popleft()
    tickets, size = [first], _size(first.job)
    memory = first.job.limits.memory_bytes  # one limit for the whole child
    while first.shares and waiting and len(tickets) < most:
        ticket = waiting[0]
        size += _size(ticket.job)
        if not ticket.shares or ticket.job.limits.memory_bytes != memory or size > _PARCEL_BYTES:
            break
        tickets.append(waiting.popleft())
    if len(tickets) == 1:
        first.shares = False
    for ticket in tickets:
        ticket.company = (*ticket.company, tickets)
    return Parcel(tickets)


def _size(job: Job) -> int:
    return len(job.program) + sum(map(len, job.inputs)) + _FIELD_BYTES


def refused_before_running(job: Job) -> Execution | None:
    """Return the answer to a job that never gets to a server."""
    if len(job.program) + sum(map(len, job.inputs)) > _LARGEST_MESSAGE:
        return Execution(Status.MEMORY, error_type="source", message=f"over {_LARGEST_MESSAGE} bytes of source")
    if job.policy == "strict" and isinstance(job.program, bytes):  # text would have been decoded
        return Execution(Status.FORBIDDEN, None, "source", "not UTF-8")
    if job.policy == "strict" and isinstance(job.program, str):
        # One more is refused as any more.
        refused = remembered_if_short(_cached_refusal, job.program[: MAX_SOURCE + 1])
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
        return marshal.dumps(literals.parse_arguments(text, literals.MAX_PLAIN))
    except literals.NotALiteral as refusal:
        return str(refusal)


_IMPORT = re.compile(  # the names give nothing back (`++`): the spaces at the end would be tried in every split
    r"^[ \t]*(?:import[ \t]+([\w.]+)(?:[ \t]+as[ \t]+\w+)?"
    r"|from[ \t]+([\w.]+)[ \t]+import[ \t][\w \t,()*]++);?[ \t]*$",
    re.ASCII | re.MULTILINE,
)


_CODECS = ("encode", "decode", "codecs", "namereplace", "\\N")


_PACKAGES = {"numpy": NUMERIC, "math_verify": MATHS}
_IMPORTS_OF = {  # also behind other modules, statements or a colon; no search goes beyond the next of those
    name: re.compile(
        rf"(?:^|[;:])[ \t]*(?:import[ \t](?:[^\n;:#]*,)?|from[ \t])[ \t]*{name}\b", re.ASCII | re.MULTILINE
    )
    for name in _PACKAGES
}


def size_of(job: Job) -> str:
    """Return which servers can run a job, going by its text: the light ones, `FULL`, `NUMERIC` or `MATHS`."""
    text = job.program if isinstance(job.program, str) else job.program.decode("latin-1")
    if job.policy == "plain" and "import" in text:
        for name, size in _PACKAGES.items():
            if name in text and _IMPORTS_OF[name].search(text):  # far faster where there is none
                return size
    return "" if is_light(job) else FULL


def is_light(job: Job) -> bool:
    """Return whether a light server can run a job, going by its text.

    A wrong guess costs a second run, unless the program itself catches what a light server lacks. So whatever mentions
    codecs, which programs do catch, is not light.

    >>> is_light(Job("import re", ())), is_light(Job("import re, json", ())), is_light(Job("__import__('re')", ()))
    (True, False, False)
    """
    if not isinstance(job.program, str) or not job.literal_inputs:
        return False
    for word in _CODECS:
        if word in job.program:
            return False
    mentions = job.program.count("import")
    if not mentions:
        return True
    named = [first or second for first, second in _IMPORT.findall(job.program)]
    return len(named) == mentions and LIGHT.issuperset(named)
