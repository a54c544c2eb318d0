"""Jobs that nobody would write, and kills at random: every job gets one answer, and the servers stay as they were."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from selfplay_gym import literals
from selfplay_gym.errors import InvalidConfig
from selfplay_gym.executors.policy import MAX_SOURCE, refusal
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.executors.tickets import Ticket, is_light, refused_before_running
from selfplay_gym.types import Execution, Job, Limits, Status, Tier
from tests.odd_jobs import ODD_SOURCES, OddJobs
from tests.test_sandbox import DOUBLE, all_end, job, one, processes_of, run, sessions
from tests.test_sandbox_attacks import HONEST

SEED = int(os.environ.get("SELFPLAY_GYM_FUZZ_SEED", "0"))
SECONDS = float(os.environ.get("SELFPLAY_GYM_FUZZ_SECONDS", "120"))
KILLED_JOBS = int(os.environ.get("SELFPLAY_GYM_KILLED_JOBS", "50000"))

CANARY = Job(HONEST, ("7",), limits=Limits(cpu_seconds=2.0, wall_seconds=30.0), policy="plain")
CANARY_VALUE = "[7, 4, '1.5', [1, 3]]"

WAYS = ({}, {"child_per": "program"}, {"keep_children": False}, {"tier": Tier.FILTER_ONLY})


@pytest.fixture(scope="module")
def executor():
    with SandboxExecutor(workers=1, cache_bytes=0) as executor:
        yield executor


def fields_of(process: int) -> list[str]:
    """Return what the kernel says of a process from its state on: state, parent, group, session, ..."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def servers(executor) -> dict[int, int]:
    """Return the server process of every keeper."""
    found = {}
    for leader in sessions(executor):
        found[leader] = next(p for p in processes_of(leader) if fields_of(p)[1] == str(leader))
    return found


def begin(text: str) -> str:
    """Name a parameter that may be long."""
    return repr(text[:20])


# --- jobs that nobody would write ------------------------------------------------------------------------------------


def answers_of(executor, jobs: list[Job]) -> list[tuple[Execution, ...]]:
    """Run jobs, an honest one after every seventh; return their answers when all that must hold does."""
    before = servers(executor)
    mixed = list(jobs)
    for at in range(7, len(jobs) * 8 // 7, 8):
        mixed.insert(at, CANARY)
    answers = executor.run(mixed)
    assert [len(answer) for answer in answers] == [len(job.inputs) for job in mixed]
    for given, answer in zip(mixed, answers, strict=True):
        for execution in answer:
            assert type(execution.status) is Status
            assert execution.status is not Status.NO_VERDICT, given
            assert (execution.value is None) is (execution.status is not Status.OK), given
            if execution.status is Status.OK:
                assert literals.canonical(execution.value) == execution.value, given
                assert len(execution.value.encode("utf-8", "surrogatepass")) <= given.limits.output_bytes, given
            assert len(execution.error_type) <= 80, given
            assert len(execution.message) <= 200, given
    canaries = [answer for given, answer in zip(mixed, answers, strict=True) if given is CANARY]
    assert {execution.value for (execution,) in canaries} <= {CANARY_VALUE}
    assert before.items() <= servers(executor).items(), "a server died"
    return [answer for given, answer in zip(mixed, answers, strict=True) if given is not CANARY]


def outcomes(answer: tuple[Execution, ...]) -> list[object]:
    return [(execution.status, execution.value, execution.error_type, execution.line) for execution in answer]


def depends_on_the_host(answer: tuple[Execution, ...]) -> bool:
    """Return whether time or memory decided."""
    return any(execution.status in (Status.TIMEOUT, Status.MEMORY) for execution in answer)


def fuzz(executors: list[SandboxExecutor], seed: int, count: int) -> Counter[str]:
    """Run the jobs of a seed in every way; return how often each status came."""
    odd = OddJobs(seed)
    jobs = [odd.job() for _ in range(count)]
    order = list(range(count))
    expected: list[tuple[Execution, ...]] = []
    for executor in executors:
        answered = dict(zip(order, answers_of(executor, [jobs[index] for index in order]), strict=True))
        answers = [answered[index] for index in range(count)]
        expected = expected or answers
        for given, first, other in zip(jobs, expected, answers, strict=True):
            if not depends_on_the_host(first) and not depends_on_the_host(other):
                assert outcomes(first) == outcomes(other), given
        random.Random(seed).shuffle(order)
    return Counter(str(execution.status) for answer in expected for execution in answer)


def fuzz_until(deadline: float, seed: int, rounds: int, count: int) -> Counter[str]:
    """Run rounds of jobs, a seed each, until the deadline or their number is reached."""
    statuses: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        executors = [stack.enter_context(SandboxExecutor(workers=1, cache_bytes=0, **way)) for way in WAYS]
        for number in range(seed, seed + rounds):
            if time.monotonic() > deadline:
                break
            try:
                statuses += fuzz(executors, number, count)
            except BaseException as error:
                error.add_note(f"seed {number}, {count} jobs")
                raise
        assert [executor.audits[1] for executor in executors] == [0] * len(executors)
        leaders = [leader for executor in executors for leader in sessions(executor)]
    assert all_end(leaders)
    return statuses


def test_odd_jobs_get_one_answer_whoever_serves_them():
    statuses = fuzz_until(float("inf"), seed=5, rounds=2, count=100)
    assert len(statuses) >= 6, statuses


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_odd_jobs_get_one_answer_whoever_serves_them():
    statuses = fuzz_until(time.monotonic() + SECONDS, seed=1000 + SEED, rounds=10**6, count=200)
    print(dict(statuses))
    assert set(statuses) == set(map(str, Status)) - {"no_verdict"}


# --- bad jobs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["plain", "strict"])
@pytest.mark.parametrize("number", range(len(ODD_SOURCES)))
def test_an_odd_source_gets_its_status_under_either_policy(executor, number, policy):
    limits = Limits(cpu_seconds=0.5, wall_seconds=10)
    results = run(executor, ODD_SOURCES[number], "1", "2", policy=policy, limits=limits, check_determinism=True)
    assert len(results) == 2
    assert all(result.status is not Status.NO_VERDICT for result in results)
    assert one(executor, DOUBLE, "4").value == "8"


@pytest.mark.parametrize("entry", ["no_such", "", "no such", "\ud800", "\0", "f" * 10**6], ids=begin)
def test_an_entry_that_the_program_lacks_is_a_name_error(executor, entry):
    result = one(executor, DOUBLE, "1", entry=entry)
    assert (result.status, result.error_type) == (Status.ERROR, "NameError")


@pytest.mark.parametrize(
    "text", ["'" + "y" * 10**7 + "'", "(" * 10**5, "\0", "'\ud800", "1" + "+1" * 30_000], ids=begin
)
def test_an_input_of_any_size_that_is_no_literal_is_an_error(executor, text):
    result = one(executor, DOUBLE, text)
    assert (result.status, result.error_type) == (Status.ERROR, "NotALiteral")


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [0, -1, NAN, INF, -INF, 10**30, True, "1", None])
@pytest.mark.parametrize("name", ["cpu_seconds", "wall_seconds", "memory_bytes", "output_bytes"])
def test_impossible_limits_are_one_clear_error(name, value):
    with pytest.raises(InvalidConfig, match=f"limit {name} must be of type .* between .*, got {value!r}"):
        Limits(**{name: value})


@pytest.mark.parametrize("name", ["memory_bytes", "output_bytes"])
def test_a_number_of_bytes_is_whole(name):
    with pytest.raises(InvalidConfig, match=f"limit {name} must be of type int"):
        Limits(**{name: 2.0**20 if name == "memory_bytes" else 4096.0})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"policy": "lenient"}, "policy must be one of strict, plain, got 'lenient'"),
        ({"policy": None}, "policy must be one of strict, plain, got None"),
        ({"program": None}, "program must be str or bytes, got NoneType"),
        ({"program": bytearray(b"x")}, "program must be str or bytes, got bytearray"),
        ({"inputs": "1, 2"}, "inputs must be a tuple of str, got 1, 2"),
        ({"inputs": ["1"]}, "inputs must be a tuple of str"),
        ({"inputs": ("1", 2)}, "inputs must be a tuple of str"),
        ({"entry": None}, "entry must be str, got None"),
        ({"limits": None}, "limits must be Limits, got None"),
    ],
)
def test_an_impossible_job_is_one_clear_error(settings, words):
    with pytest.raises(InvalidConfig, match=words):
        Job(**{"program": DOUBLE, "inputs": ("1",), **settings})


@pytest.mark.parametrize(
    "source",
    [
        "from x import y" + " " * 10**6 + "!",
        "import x" + " " * 10**6 + "!",
        " " * 10**6 + "import x",
        "from x import " + "(" * 10**6 + "!",
        "\t\n" * 10**6 + "import",
    ],
    ids=begin,
)
def test_no_source_keeps_the_trainer_looking_for_imports(source):
    began = time.process_time()
    is_light(job(source))
    assert time.process_time() - began < 1


def filled(unit: str, begin: str = "") -> str:
    """Return as many of a text as a proposal may hold."""
    return begin + unit * ((MAX_SOURCE - len(begin)) // len(unit))


@pytest.mark.parametrize(
    "source",
    [
        filled("class a:\n def id():0\n"),
        filled("lambda:id;"),
        filled("a" + ".b" * 90 + "\n", "import math\n"),
        filled("a" + ".b" * 900 + "\n", "import math\n"),
        filled("import math\nmath.x=1\n"),
        filled("import math as m\nm.pi\nm\n"),
        filled("match 1:\n case int(a=1):0\n"),
        filled("x: int = id\n"),
        "f'" + "{1}" * 9000 + "'",
    ],
    ids=begin,
)
def test_no_proposal_keeps_the_trainer_judging(source):
    began = time.process_time()
    refusal(source)
    assert time.process_time() - began < 2  # a third of a second, as measured


# Refused where RestrictedPython takes a node out of its tree and then looks for it there.
@pytest.mark.parametrize(
    "source",
    [
        "for y in await x: pass",
        "def f(x): return [y for y in await x]",
        "def f(x): return {y: 1 for z in x for y in await z}",
        "with (await x) as y: pass",
        "(await x).a[await x] += await x",
        "x = [*await x, (y := await x)]",
    ],
)
def test_a_proposal_that_waits_is_refused_and_stops_no_batch(executor, source):
    refused, honest = executor.run([Job(source, ("1",)), CANARY])
    assert (refused[0].status, refused[0].error_type) == (Status.FORBIDDEN, "language")
    assert honest[0].value == CANARY_VALUE


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_source_that_takes_too_long_to_compile_times_out_for_every_input(way):
    source = DOUBLE + "\ny = [1, {3: 4}]" * 20_000
    with SandboxExecutor(workers=1, cache_bytes=0, **way) as executor:
        for check in (False, True):
            results = run(executor, source, "1", "2", "3", limits=Limits(0.05, 5.0), check_determinism=check)
            assert [(r.status, r.error_type) for r in results] == [(Status.TIMEOUT, "cpu")] * 3


@pytest.mark.parametrize("message", ["\\ud800", "\\U0001d487", "x"])
def test_the_longest_message_of_an_error_is_no_breach_of_protocol(executor, message):
    program = f"E = type('\\U0001d487' * 99, (Exception,), {{}})\ndef f(): raise E('{message}' * 999)"
    result = one(executor, program, limits=Limits(output_bytes=1))
    assert result.status is Status.ERROR
    assert len(result.error_type) == 80


def test_a_job_larger_than_a_message_gets_its_status(executor):
    result = one(executor, "#" * 2**26 + "#", "1")
    assert (result.status, result.error_type) == (Status.MEMORY, "source")
    assert one(executor, DOUBLE, "4").value == "8"


def test_one_job_may_have_many_inputs(executor):
    numbers = range(20_000)
    assert [r.value for r in run(executor, DOUBLE, *map(str, numbers))] == [str(2 * number) for number in numbers]


def test_long_texts_that_are_refused_are_not_kept():
    long = "#" * 10**6
    before = sys.getrefcount(long)
    assert refused_before_running(Job(long, ("1",))).status is Status.FORBIDDEN
    assert Ticket(0, Job(DOUBLE, (long,)), "A", (0,), False).fields()[3] == ("too large",)
    assert sys.getrefcount(long) == before


# --- many jobs -------------------------------------------------------------------------------------------------------


def numbered(number: int) -> tuple[Job, list[str]]:
    """Return an honest job that no other is equal to, and its values; which way it takes depends on the number."""
    program, inputs = f"def f(x):\n    return [x, {number}, sorted(str(x))]", (str(number), str(-number))
    values = [f"[{n}, {number}, {sorted(str(n))!r}]" for n in (number, -number)]
    match number % 64:
        case 1:
            program = f"import json\n{program}"  # a full server
        case 2:
            program = program.replace("return", "getattr(x, 'real')\n    return")  # a child of its own
        case 3:
            program = program.replace("return", "y = {x}\n    return")
            return Job(program, inputs, policy="plain", check_determinism=True), values
        case 4:
            program = program.replace("return", "for i in range(20000): pass\n    return")
        case 5:
            return Job(program, inputs, policy="strict"), values
    return Job(program, inputs[:1], policy="plain"), values[:1]


@pytest.mark.slow
def test_a_hundred_thousand_jobs_in_one_list():
    jobs, values = zip(*map(numbered, range(100_000)), strict=True)
    with SandboxExecutor(cache_bytes=0) as executor:
        before = servers(executor)
        answers = executor.run(jobs)
        assert before.items() <= servers(executor).items()
    assert [[execution.value for execution in answer] for answer in answers] == list(values)


@pytest.mark.parametrize("child_per", ["batch", "program"])
def test_servers_that_died_with_nothing_to_do_cost_no_verdict(child_per):
    with SandboxExecutor(workers=3, cache_bytes=0, child_per=child_per) as executor:
        for number in range(3):
            for leader, server in servers(executor).items():
                os.kill((leader, server)[number % 2], signal.SIGKILL)
            assert all_end(sessions(executor))
            assert one(executor, DOUBLE, "4").value == "8"


class Killer(threading.Thread):
    """Kills processes of an executor at random until it is told to stop.

    Attributes:
        kills: How many of each kind of process.
    """

    def __init__(self, executor: SandboxExecutor, seed: int) -> None:
        super().__init__()
        self._executor = executor
        self._rng = random.Random(seed)
        self._stop_it = threading.Event()
        self.kills: Counter[str] = Counter()

    def run(self) -> None:
        while not self._stop_it.wait(self._rng.expovariate(1 / 0.05)):
            alive = [server for server in list(self._executor._pool.all()) if server.alive]
            if alive:
                # A server takes a fifth of a second to replace, a child a millisecond.
                self._kill(self._rng.choice(alive)._keeper.pid, self._rng.random() < 0.15)

    def _kill(self, leader: int, server_too: bool) -> None:
        with contextlib.suppress(OSError, IndexError):
            below = [
                process for process in processes_of(leader) if server_too == (fields_of(process)[1] == str(leader))
            ]
            below += [leader] * (server_too and self._rng.random() < 0.3)
            victim = self._rng.choice([p for p in below if server_too or p != leader])
            handle = os.pidfd_open(victim)
            try:
                if fields_of(victim)[3] == str(leader) and fields_of(leader)[1] == str(os.getpid()):  # still ours
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    self.kills["keeper" if victim == leader else "server" if server_too else "child"] += 1
            finally:
                os.close(handle)

    def stop(self) -> None:
        self._stop_it.set()
        self.join()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kills_at_random_lose_double_and_change_nothing():
    began, wrong, lost, faults = time.monotonic(), 0, 0, []
    with SandboxExecutor(cache_bytes=0) as executor:
        killer = Killer(executor, SEED)
        killer.start()
        try:
            for start in range(0, KILLED_JOBS, 10_000):
                count = min(10_000, KILLED_JOBS - start)
                jobs, values = zip(*map(numbered, range(start, start + count)), strict=True)
                answers = executor.run(jobs)
                lost += count - len(answers) + sum(map(len, values)) - sum(map(len, answers))
                for number, (given, answer) in enumerate(zip(values, answers, strict=True), start):
                    faulty = [execution for execution in answer if execution.status is Status.NO_VERDICT]
                    wrong += not faulty and [execution.value for execution in answer] != given
                    faults += [(number % 64, faulty[0].error_type, faulty[0].message)] if faulty else []
        finally:
            killer.stop()
        leaders = sessions(executor)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"{KILLED_JOBS} jobs, kills {dict(killer.kills)}, {time.monotonic() - began:.0f} s, {wrong} wrong, "
        f"{lost} lost, no verdict {faults}, {peak} MiB at most"
    )
    assert all_end(leaders)
    assert killer.kills.total() > 10
    assert (wrong, lost) == (0, 0)
    assert len(faults) <= 1 + KILLED_JOBS // 200_000  # hit twice, and alone both times


# --- what servers hold -----------------------------------------------------------------------------------------------

NASTY = (
    "import os\ndef f(x): os._exit(1)",
    "import os\ndef f(x): os.abort()",
    "import os\ndef f(x): os.fork()",
    "def f(x):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass",
    "import math\ndef f(x):\n    math.left = [bytes(10 ** 6) for _ in range(20)]\n    return 1",
    "import math\ndef f(x): math.left = [[i] for i in range(50000)]",
    "import os\ndef f(x):\n    os.write(3, b'x' * 100)\n    return 1",
    "def f(x): return bytearray(10 ** 10)",
    "def f(x):\n    raise ValueError(x)",
    "def f(x): return 'y' * 4000",
)


def held(executor) -> list[tuple[int, int, int]]:
    """Return descriptors, resident MiB and dead children of every server; no descriptors where they are not shown."""
    found = []
    for leader, server in sorted(servers(executor).items()):
        try:
            descriptors = sum(1 for _ in Path(f"/proc/{server}/fd").iterdir())
        except PermissionError:
            descriptors = 0
        resident = int(Path(f"/proc/{server}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 2**20
        dead = 0
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, IndexError):
                dead += entry.name.isdigit() and fields_of(int(entry.name))[:4:3] == ["Z", str(leader)]
        found.append((descriptors, resident, dead))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("keep_children", [True, False])
def test_nasty_jobs_leave_no_descriptor_memory_or_zombie_in_a_server(keep_children):
    limits = Limits(cpu_seconds=0.02, wall_seconds=0.5, memory_bytes=64 * 2**20)
    nasty = [job(NASTY[n % len(NASTY)], str(n), limits=limits, check_determinism=n % 5 == 0) for n in range(700)]
    jobs = [given for bad in nasty for given in (bad, CANARY, CANARY)]
    with SandboxExecutor(workers=1, cache_bytes=0, keep_children=keep_children) as executor:
        executor.run(jobs[:300])
        before, same = held(executor), servers(executor)
        answers = executor.run(jobs)
        after = held(executor)
        assert servers(executor) == same
    assert {execution.value for given, (execution,) in zip(jobs, answers, strict=True) if given is CANARY} == {
        CANARY_VALUE
    }
    print(before, after)
    for (descriptors, resident, _), (more_descriptors, more_resident, dead) in zip(before, after, strict=True):
        assert more_descriptors <= descriptors + 6  # the pipes of a child or of the compiler, if it has one now
        assert more_resident <= resident + 4
        assert not dead
