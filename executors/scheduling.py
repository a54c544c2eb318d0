"""One call of the executor: gives servers work, collects answers, decides what has to run again and how.

A job first shares a child with others, at a small budget of processor time. It runs again alone if it may not share,
if anything in that child went otherwise than asked for, if it needed more time, memory, or seemed nondeterministic.
What still fails through our own fault is no verdict.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
import select
import struct
import time
import warnings
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice

from selfplay_gym.executors.cache import ResultCache
from selfplay_gym.executors.connection import KINDS, Server
from selfplay_gym.executors.pool import Pool
from selfplay_gym.executors.tickets import (
    FULL,
    LARGEST_PARCEL,
    MATHS,
    NUMERIC,
    Ticket,
    next_parcel,
    refused_before_running,
    size_of,
)
from selfplay_gym.types import ChildPer, Execution, Job, Status

_PIPELINE = 2  # parcels a server holds: one running, one waiting, so that it never waits for us
_WINDOW = 4096  # jobs admitted ahead of their answers: what bounds memory, however long the list
_PATIENCE_MILLISECONDS = 1000  # then it is looked whether a server hangs
_IDLE = 0.2  # a run that met the clock on the wall with less of its processor time may be our host's fault
_MOST_SLEEPERS = 3  # a batch in which that many slept again when alone holds sleepers; the others are believed
_AUDITED = 1 / 200  # of the jobs whose answers from a shared child are all ok
_MOST_OVERRUNS = 4096

# Endings that a shared child may give. The others need a child that had nothing else to do.
_BELIEVED = frozenset((Status.OK, Status.ERROR, Status.UNSERIALISABLE))

# What a program meets in a light server, and not in a full one, when it reaches for what is not there.
_MISSING = frozenset(("ImportError", "ModuleNotFoundError", "LookupError"))


@dataclass
class Memory:
    """What an executor knows from earlier calls.

    Attributes:
        cache: Answers by job.
        overruns: Programs with inputs that used up their whole processor time, oldest first.
        audited: Jobs that were run again, apart, to check an answer from a shared child.
        mismatched: How many of those answered something else: each is a neighbour that tampered, or a bug.
        rng: Draws what is audited.
    """

    cache: ResultCache
    overruns: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    audited: int = 0
    mismatched: int = 0
    rng: random.Random = field(default_factory=lambda: random.Random(0))


class Batch:
    """One call of `SandboxExecutor.run`.

    Args:
        pool: Where servers come from.
        memory: Read and written.
        child_per: What shares a child.
        jobs: To run.
    """

    def __init__(self, pool: Pool, memory: Memory, child_per: ChildPer, jobs: Sequence[Job]) -> None:
        self._pool = pool
        self._memory = memory
        self._child_per = child_per
        self._answers: list[tuple[Execution, ...] | None] = [None] * len(jobs)
        self._upcoming: Iterator[tuple[int, Job]] = iter(enumerate(jobs))
        self._waiting: dict[str, deque[Ticket]] = {kind: deque() for kind in KINDS}
        self._later: dict[str, deque[Ticket]] = {kind: deque() for kind in KINDS}  # what may need long
        self._starved: deque[tuple[Ticket, list[Execution]]] = deque()  # for when nothing else runs
        self._alarms: list[str] = []
        self._sleepers = 0
        self._open = 0
        self._all_admitted = False
        self._rounds: dict[int, int] = {}  # of jobs that were begun again

    def run(self) -> list[tuple[Execution, ...]]:
        """Return the answers, one a job."""
        while self._open or not self._all_admitted:
            self._admit_some()
            servers = self._feed()
            patience = 0 if self._can_admit else _PATIENCE_MILLISECONDS
            for server, can_read, can_write in _ready(servers, patience) if servers else ():
                answered = []
                try:
                    if can_write:
                        server.write()
                    if can_read:
                        answered = server.read()
                except (OSError, EOFError, ValueError, struct.error) as error:
                    self._bury(server, str(error) or "a server of the sandbox ended")
                for ticket, executions in answered:
                    self._take(ticket, executions)
            now = time.monotonic()
            for server in servers:
                if server.alive and server.under_way and server.under_way[0].deadline < now:
                    self._bury(server, "a server of the sandbox hung")
        self._alarm()
        return [answer if answer is not None else () for answer in self._answers]

    # --- in ----------------------------------------------------------------------------------------------------------

    @property
    def _can_admit(self) -> bool:
        return not self._all_admitted and self._open < _WINDOW

    def _admit_some(self) -> None:
        """Admit what keeps every server busy for a while; they run it while the rest is looked at."""
        if not self._can_admit:
            return
        most = min(_PIPELINE * LARGEST_PARCEL * self._pool.workers, _WINDOW - self._open)
        some = list(islice(self._upcoming, most))
        self._all_admitted = len(some) < most
        for index, job in some:
            self._admit(index, job)

    def _admit(self, index: int, job: Job) -> None:
        if isinstance(job.program, bytes) and job.policy == "strict":
            # Judged and run as the same text, whatever encoding the program declares.
            with contextlib.suppress(UnicodeDecodeError):
                job = replace(job, program=job.program.decode())
        key = self._memory.cache.key(job)
        self._answers[index] = self._answer_at_once(job, key)
        if self._answers[index] is not None:
            return
        ticket = _first_ticket(index, job, "A" + size_of(job), key)
        ticket.shares = self._child_per == "batch" and job.literal_inputs
        ticket.separate = self._child_per == "run"
        self._waiting[ticket.kind].append(ticket)
        self._open += 1

    def _answer_at_once(self, job: Job, key: bytes) -> tuple[Execution, ...] | None:
        if not job.inputs:
            return ()
        refused = refused_before_running(job)
        if refused is not None:
            return (refused,) * len(job.inputs)
        known = self._memory.cache.get(key)
        if known is None and self._memory.overruns:
            overrun = [_digest(job, text) in self._memory.overruns for text in job.inputs]
            if all(overrun) or (overrun[0] and job.check_determinism):
                return (Execution(Status.TIMEOUT, error_type="cpu"),) * len(job.inputs)
        return known

    # --- to the servers ----------------------------------------------------------------------------------------------

    def _feed(self) -> list[Server]:
        """Give every server work up to its depth, evenly; return those that have some."""
        self._release()
        busy = []
        for kind in KINDS:
            waiting = self._waiting[kind] or self._later[kind]
            if self._may_grow(kind, waiting):
                waiting = deque()
            servers = self._pool.ensure(kind) if waiting else self._pool.servers[kind]
            for depth in range(1, _PIPELINE + 1):
                for server in servers:
                    if waiting and len(server.under_way) < depth:
                        most = min(LARGEST_PARCEL, math.ceil(len(waiting) / len(servers)))
                        server.submit(next_parcel(waiting, most))
            busy += [server for server in servers if server.under_way]
        return busy

    def _may_grow(self, kind: str, waiting: deque[Ticket]) -> bool:
        """Return whether to wait for more second checks, so that as many as can share a child."""
        if kind[0] == "A" or not waiting or not waiting[0].shares or len(waiting) >= LARGEST_PARCEL:
            return False
        firsts = kind.replace("B", "A", 1)
        under_way = (parcel for server in self._pool.servers[firsts] for parcel in server.under_way)
        return self._can_admit or bool(self._waiting[firsts]) or any(parcel.tickets[0].shares for parcel in under_way)

    def _release(self) -> None:
        """Let one of those that seem starved go, if nothing else is left to run."""
        if self._has_work():
            return
        while self._starved and self._sleepers >= _MOST_SLEEPERS:
            self._take(*self._starved.popleft())  # now taken at its word
        if self._starved and not self._has_work():
            ticket, _ = self._starved.popleft()
            ticket.undisturbed = True
            self._waiting[ticket.kind].append(ticket)

    def _has_work(self) -> bool:
        waiting = self._can_admit or any(self._waiting.values()) or any(self._later.values())
        return waiting or any(server.under_way for server in self._pool.all())

    def _bury(self, server: Server, why: str) -> None:
        """Take back what a dead server held. Only a job that it ran alone may be at fault, so only that one counts."""
        lost, server.under_way = server.under_way, deque()
        server.kill()
        for position, parcel in enumerate(lost):
            suspect = position == 0 and server.has_begun
            for ticket in parcel.tickets:
                ticket.tries += suspect and not ticket.shares
                ticket.shares = ticket.shares and not suspect
                if ticket.tries > 1:
                    fault = Execution(Status.NO_VERDICT, error_type="server", message=why)
                    self._settle(ticket, [fault] * len(ticket.job.inputs))
                else:
                    self._waiting[ticket.kind].appendleft(ticket)

    # --- from the servers --------------------------------------------------------------------------------------------

    def _take(self, ticket: Ticket, executions: list[Execution] | None) -> None:
        """Settle a ticket, or send it on its next way."""
        if executions is not None and _all_ok(executions):
            self._check(ticket, executions)
        elif executions is None or (ticket.shares and not _stand(executions)):
            self._run_alone(ticket)
        elif any(execution.status is Status.NO_VERDICT for execution in executions) and not ticket.tries:
            ticket.tries += 1
            self._waiting[ticket.kind].append(ticket)
        elif self._may_have_starved(ticket, executions):
            self._starved.append((ticket, executions))
        elif not ticket.kind.endswith((FULL, NUMERIC, MATHS)) and any(e.error_type in _MISSING for e in executions):
            ticket.kind += FULL
            self._waiting[ticket.kind].append(ticket)
        else:
            self._check(ticket, executions)

    def _check(self, ticket: Ticket, executions: list[Execution]) -> None:
        """Go on with the check of determinism, if the job asks for one."""
        if not ticket.job.check_determinism:
            self._conclude(ticket, executions)
        elif ticket.kind.startswith("A"):
            firsts = _settled_repeats(executions)
            if ticket.shares and ticket.is_steady and ticket.has_plain_inputs and _all_ok(firsts):
                self._conclude(ticket, firsts)
            elif ticket.expected is not None and _outcomes(firsts) == _outcomes(ticket.expected):
                self._settle(ticket, firsts)
            else:
                self._check_elsewhere(ticket, firsts)
        else:
            self._conclude(ticket, _settled_seeds(ticket, executions))

    def _run_alone(self, ticket: Ticket) -> None:
        ticket.shares = False
        if ticket.expected is None:  # an audit is about the company that it had
            ticket.company = ()
        self._later[ticket.kind].append(ticket)

    def _may_have_starved(self, ticket: Ticket, executions: list[Execution]) -> bool:
        """Return whether to run a job again undisturbed, because it waited for the processor or slept."""
        idle = _IDLE * ticket.job.limits.cpu_seconds
        starved = any((e.status, e.error_type) == (Status.TIMEOUT, "wall") and e.cpu_seconds < idle for e in executions)
        self._sleepers += starved and ticket.undisturbed
        return starved and not ticket.undisturbed and self._sleepers < _MOST_SLEEPERS

    def _check_elsewhere(self, ticket: Ticket, firsts: list[Execution]) -> None:
        """Queue the same inputs for another process with another hash seed, last input first."""
        beyond = (Status.TIMEOUT, Status.NONDETERMINISTIC, Status.NO_VERDICT)  # never run again
        runs = tuple(number for number, first in enumerate(firsts) if first.status not in beyond)
        if not runs:
            self._conclude(ticket, firsts)
            return
        second = Ticket(ticket.index, ticket.job, ticket.kind.replace("A", "B", 1), runs[::-1], False)
        second.key = ticket.key
        second.shares, second.separate, second.expected = ticket.shares, ticket.separate, ticket.expected
        second.first, second.company, second.round = firsts, ticket.company, ticket.round
        self._waiting[second.kind].append(second)

    # --- out ---------------------------------------------------------------------------------------------------------

    def _conclude(self, ticket: Ticket, executions: list[Execution]) -> None:
        """Settle a ticket, unless what it answered in company has to be seen alone first."""
        if ticket.expected is not None or not _is_fixed(ticket) or not ticket.in_company:
            self._settle(ticket, executions)
        elif any(execution.status is Status.NONDETERMINISTIC for execution in executions):
            self._run_alone(_anew(ticket))
        elif _all_ok(executions) and self._memory.rng.random() < _AUDITED:
            again = _anew(ticket)
            again.expected, again.company = tuple(executions), ticket.company
            self._run_alone(again)
        else:
            self._settle(ticket, executions)

    def _settle(self, ticket: Ticket, executions: list[Execution]) -> None:
        """Store the answer; a check that stopped early gives its last execution to the inputs after it."""
        self._open -= 1
        if ticket.round < self._rounds.get(ticket.index, 0):
            return
        missing = len(ticket.job.inputs) - len(executions)
        answer = tuple(executions + [executions[-1]] * missing)
        if ticket.expected is not None:
            answer = self._audited(ticket, answer)
        self._answers[ticket.index] = answer
        ticket.company = ()  # else it would hold itself, until it is collected
        self._memory.cache.put(ticket.key, answer)
        if not _all_ok(executions):
            self._remember_overruns(ticket.job, executions)

    def _remember_overruns(self, job: Job, executions: list[Execution]) -> None:
        for text, execution in zip(job.inputs, executions, strict=False):
            if execution.status is Status.TIMEOUT and execution.error_type == "cpu":
                self._memory.overruns[_digest(job, text)] = None
        while len(self._memory.overruns) > _MOST_OVERRUNS:
            self._memory.overruns.popitem(last=False)

    def _audited(self, ticket: Ticket, answer: tuple[Execution, ...]) -> tuple[Execution, ...]:
        """Return what stands after an audit; where it says otherwise, see all that shared the child again."""
        assert ticket.expected is not None
        if any(execution.status in (Status.TIMEOUT, Status.NO_VERDICT) for execution in answer):
            return ticket.expected  # the host's doing: nothing was audited
        self._memory.audited += 1
        if _outcomes(answer) != _outcomes(ticket.expected):
            self._memory.mismatched += 1
            self._alarms.append(f"{ticket.job.program[:200]!r}")
            for other in {other.index: other for shared in ticket.company for other in shared}.values():
                if other.index != ticket.index:
                    self._begin_again(other)
        return answer

    def _begin_again(self, ticket: Ticket) -> None:
        """Run a job alone; what is still to come of its earlier runs counts no more."""
        self._memory.cache.drop(ticket.key)
        self._rounds[ticket.index] = self._rounds.get(ticket.index, 0) + 1
        again = _anew(ticket)
        again.round = self._rounds[ticket.index]
        self._open += 1
        self._run_alone(again)

    def _alarm(self) -> None:
        """Warn, once nothing can be lost by it."""
        if self._alarms:
            warnings.warn(
                "an audit of the sandbox got another answer from a program alone than in company: please report it; "
                f"all that shared its process ran again; the program begins {self._alarms[0]}",
                RuntimeWarning,
                stacklevel=4,
            )


def _first_ticket(index: int, job: Job, kind: str, key: bytes) -> Ticket:
    ticket = Ticket(index, job, kind, _runs(len(job.inputs), 1 + job.check_determinism), job.check_determinism)
    ticket.key = key
    return ticket


@lru_cache(maxsize=256)
def _runs(inputs: int, repeats: int) -> tuple[int, ...]:
    return tuple(number for number in range(inputs) for _ in range(repeats))


def _anew(ticket: Ticket) -> Ticket:
    """Return the ticket as it was before anything ran, sharing no child."""
    again = _first_ticket(ticket.index, ticket.job, ticket.kind.replace("B", "A", 1), ticket.key)
    again.round = ticket.round
    return again


def _stand(executions: list[Execution]) -> bool:
    """Return whether answers from a shared child need no second look."""
    return all(execution.status in _BELIEVED for execution in executions)


def _is_fixed(ticket: Ticket) -> bool:
    """Return whether the program was seen to give the same wherever it runs: what an audit can hold it to."""
    return ticket.job.check_determinism


def _all_ok(executions: list[Execution]) -> bool:
    return not [execution for execution in executions if execution.status is not Status.OK]  # faster than `all`


def _outcomes(executions: Sequence[Execution]) -> list[str]:
    return [execution.outcome for execution in executions]


def _digest(job: Job, text: str) -> bytes:
    """Return what stands for a program with one input and a budget."""
    content = repr((job.program, text, job.entry, job.limits, job.policy, job.literal_inputs))
    return hashlib.blake2b(content.encode("utf-8", "backslashreplace"), digest_size=16).digest()


def _ready(servers: list[Server], patience: int) -> Iterable[tuple[Server, bool, bool]]:
    """Wait so many milliseconds at most; yield every server that can be read or written, and which of the two."""
    poll = select.poll()  # `selectors` costs as much again as everything else here
    for server in servers:
        poll.register(server.socket, select.POLLIN | (select.POLLOUT if server.wants_to_write else 0))
    by_descriptor = {server.socket.fileno(): server for server in servers}
    for descriptor, events in poll.poll(patience):
        # An error or a hang-up shows when it is read.
        yield by_descriptor[descriptor], bool(events & ~select.POLLOUT), bool(events & select.POLLOUT)


def _settled_repeats(executions: list[Execution]) -> list[Execution]:
    """Return one execution an input, up to the first that is not ok, from runs made in pairs."""
    settled = []
    for first, second in zip(executions[::2], [*executions[1::2], None], strict=False):
        settled.append(first if second is None else _agreed(first, second, "repeat"))
        if settled[-1].status is not Status.OK:
            break
    return settled


def _settled_seeds(ticket: Ticket, executions: list[Execution]) -> list[Execution]:
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
