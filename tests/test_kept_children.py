"""A child that is put back after each job: nothing of one job is left for the next, and no verdict depends on it."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from selfplay_gym.bench_programs import programs
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.types import Execution, Job, Limits, Status, Tier
from tests.test_sandbox import DOUBLE, SHORT, job, one, processes_of
from tests.test_sandbox_attacks import HONEST, PATCHES, RESOURCES

HONEST_VALUE = "[7, 4, '1.5', [1, 3]]"


@pytest.fixture(scope="module", params=[Tier.FULL, Tier.FILTER_ONLY])
def executor(request):
    with SandboxExecutor(cache_bytes=0, workers=1, tier=request.param) as executor:
        if not executor.walls["kept_children"]:
            why = executor._pool.servers["A"][0].keeps_none
            refused = ("userfaultfd", "ioctl", "ptrace", "pidfd_getfd", "/proc", "pipe", "no snapshots on")
            assert any(word in why for word in refused), f"the kernel can, but we do it wrong: {why}"
            pytest.skip(f"this kernel cannot put a child back: {why}")
        yield executor


def kept_child(executor) -> int:
    """Return the process that serves job after job, stopped now; 0 if there is none."""
    (server,) = executor._pool.servers["A"]
    found = [pid for pid in processes_of(server._keeper.pid) if state(pid) == "t"]
    return found[0] if found else 0


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# What each leaves behind, if anything could be left; all of it is writable memory of the interpreter.
LEAVES = {
    **{name: f"{patch}\n    return 1" for name, patch in PATCHES.items()},
    "a module's attribute": "math.left = 1\n    return 1",
    "a builtin": "builtins.left = 1\n    return 1",
    "an audit hook": "sys.addaudithook(lambda *a: 1 / 0)\n    return 1",
    "a tenth of its recursion": "sys.setrecursionlimit(100)\n    return 1",
    "a default argument": "re.compile.__defaults__ = (re.I,)\n    return 1",
    "a cache": "re.compile('left', re.X)\n    return 1",
    "an interned name": "sys.intern('left' * 3)\n    return 1",
    "a finaliser": "class A:\n        def __del__(s): builtins.left = 1\n    a = A(); a.a = a\n    return 1",
    "a class that never dies": "class A(dict): pass\n    math.left = A\n    return 1",
    "an exception": "raise ValueError(sys.modules)",
    "an open generator": "def g():\n        try: yield\n        finally: math.left = 1\n    re.g = g(); next(re.g)",
    "a megabyte": "math.left = [str(i) for i in range(9000)]\n    return 1",
    "text on standard output": "print('left' * 1000)\n    return 1",
    "most of what it may print": "print('x' * 1000000)\n    return 1",
    "a soft time-out": "while True: pass",
    "its arguments": "a[0].append(1)\n    return 1",
}  # fmt: skip

SEES = """
import builtins, math, re, sys
def f():
    seen = [name for module in (builtins, math, re, sys) for name in vars(module) if name == 'left']
    limit, trace, standard = sys.getrecursionlimit(), sys.gettrace(), sys.stdout is sys.__stdout__
    return seen, limit, re.compile.__defaults__, trace, standard, len('four')
"""


@pytest.mark.parametrize("name", LEAVES)
def test_one_job_leaves_nothing_for_the_next(executor, name):
    before = one(executor, SEES)
    assert before.value == "([], 1000, (0,), None, True, 4)"
    child = kept_child(executor)
    program = "import builtins, math, re, sys\ndef f(*a):\n    " + LEAVES[name]
    first, second = (one(executor, program, "[]", limits=SHORT) for _ in range(2))
    assert first.outcome == second.outcome
    assert one(executor, SEES).outcome == before.outcome
    assert kept_child(executor) == child, "the child was replaced: this says nothing about putting it back"


def test_a_job_sees_the_same_interpreter_however_many_went_before(executor):
    probe = """
import gc, sys
def f():
    def depth(n):
        try: return depth(n + 1)
        except RecursionError: return n
    return id(f), gc.get_count()[0], len(gc.get_objects()), sys.getrefcount(None), hash('x'), depth(0)
"""
    answers = set()
    for number in range(30):
        one(executor, DOUBLE, str(number))
        answers.add(one(executor, probe).value)
    assert len(answers) == 1


def outcome(result: Execution) -> tuple[object, ...]:
    if result.status is Status.TIMEOUT:
        return (result.status,)
    return result.status, result.value, result.error_type, result.line


def hostile_jobs() -> list[Job]:
    """Return programs that end in one way only: those that are to time out soon, the others with time to spare."""
    jobs = []
    for body, expected in RESOURCES.values():
        if not isinstance(expected, tuple):
            program = body if "def f(" in body else "def f(*a):\n" + textwrap.indent(body, "    ")
            seconds = (0.1, 0.4) if expected is Status.TIMEOUT else (4.0, 20.0)
            jobs.append(job(program, "", limits=Limits(*seconds, memory_bytes=64 * 2**20)))
    return jobs


def test_no_verdict_depends_on_who_serves():
    """Honest and hostile jobs in any order, kept or forked: the same statuses, values, errors and lines."""
    hostile = hostile_jobs()
    jobs = programs(240, 2) + hostile
    jobs += [job("def f(n):\n    try: return f(n + 1)\n    except RecursionError: return n", "0", "0", policy="plain")]
    shuffled = random.Random(0).sample(range(len(jobs)), len(jobs))
    with SandboxExecutor(cache_bytes=0, workers=1) as keeps, SandboxExecutor(workers=1, keep_children=False) as forks:
        expected = [[outcome(result) for result in results] for results in forks.run(jobs)]
        for order in (range(len(jobs)), shuffled):
            answers = keeps.run([jobs[index] for index in order])
            assert [[outcome(r) for r in results] for results in answers] == [expected[index] for index in order]


@pytest.mark.parametrize(
    "body",
    [
        "import math\nmath.left = [bytes(10 ** 6) for _ in range(30)]",
        "import math\nmath.left = [[i] for i in range(200000)]",
        "import sys\nsys.setrecursionlimit(10 ** 5)\ndef g(n): return [g(n - 1)] if n else []\nrepr(g(20000))",
    ],
)
def test_a_child_that_moved_its_memory_is_replaced(executor, body):
    one(executor, DOUBLE, "1")
    child = kept_child(executor)
    limits = Limits(cpu_seconds=2.0, wall_seconds=10.0)
    result = one(executor, "def f():\n" + textwrap.indent(body, "    ") + "\n    return 1", limits=limits)
    assert result.status in (Status.OK, Status.ERROR, Status.CRASHED, Status.MEMORY)
    assert one(executor, HONEST, "7").value == HONEST_VALUE
    assert kept_child(executor) != child


def test_large_blocks_that_are_given_back_cost_no_child(executor):
    one(executor, DOUBLE, "1")
    child = kept_child(executor)
    assert one(executor, "def f(): return [len(bytes(10 ** 7)) for _ in range(20)][-1]").value == "10000000"
    one(executor, DOUBLE, "1")
    assert kept_child(executor) == child


def test_what_would_outlast_its_memory_is_done_in_a_fresh_child(executor):
    program = """
def f():
    s = __import__('sys').modules['_signal']
    s.signal(s.SIGALRM, s.SIG_IGN)
    s.setitimer(s.ITIMER_REAL, 0.01)
    s.pthread_sigmask(s.SIG_BLOCK, [s.SIGPROF])
    return 1
"""
    assert one(executor, program).value == "1"
    assert one(executor, "def f():\n    while True: pass", limits=SHORT).status is Status.TIMEOUT


# Native code, which a program gets by walking the frames up to the server's own tools.
NATIVE = """
import sys
def tools():
    frame = sys._getframe()
    runner = None
    while 'walls' not in frame.f_globals:
        runner = frame.f_globals if '_reserve' in frame.f_globals else runner
        frame = frame.f_back
    walls = frame.f_globals['walls']
    walls._libc.mmap.restype = walls.ctypes.c_void_p
    return walls._libc, walls.ctypes, runner
"""

# The page of the C functions, put in place of itself: the list of mappings reads the same, but nobody watches it.
REPLACES_A_MAPPING = (
    NATIVE
    + """
import math
def f():
    libc, c, _ = tools()
    floor, ceil = (c.c_void_p.from_address(id(function) + 16).value for function in (math.floor, math.ceil))
    page = floor & ~4095
    content = c.string_at(page, 4096)
    libc.mmap(c.c_void_p(page), c.c_size_t(4096), 3, 0x32, -1, c.c_long(0))
    c.memmove(page, content, 4096)
    a, b = c.c_void_p.from_address(floor + 8), c.c_void_p.from_address(ceil + 8)
    a.value, b.value = b.value, a.value
    return math.floor(1.5)
"""
)

# As much memory as it gives back elsewhere: the sum is the same.
PUTS_MEMORY_ELSEWHERE = (
    NATIVE
    + """
def f():
    libc, c, runner = tools()
    page, size = id(runner['_reserve'][0]) & ~4095, c.c_size_t(4096)
    libc.munmap(c.c_void_p(page), size)
    c.memset(libc.mmap(None, size, 3, 0x22, -1, c.c_long(0)), 1, 1)
    return 1
"""
)
LEAVES_A_SIGNAL = (
    NATIVE
    + """
def f():
    # Returns from a signal that never was, with the timer's signal blocked and another signal stack set.
    libc, c, runner = tools()
    address = lambda name: c.cast(getattr(libc, name), c.c_void_p).value
    frame = runner['_pack'](1, 0, 0, 7) + b'1'
    said = c.create_string_buffer(frame, len(frame))
    calls = (c.c_long * 24000)(*[address('sched_yield')] * 24000)
    calls[22000] = address('write')
    signal_stack = c.addressof(c.create_string_buffer(65536))
    registers = [0] * 8 + [3, c.addressof(said), 0, 0, len(frame), 0, 0, c.addressof(calls) + 8000, calls[0], 0x202]
    registers += [0x33 | 0x2B << 48, 0, 0, 0, 0, 0]
    runner['_setitimer'](2, 0.001, 0.001)
    context = [0, signal_stack, 0, 65536, *registers, *[0] * 8, 1 << 26, 0, 0, 0]
    libc.syscall(c.c_long(15), *[c.c_long(0)] * 5, *map(c.c_long, context))
"""
)


def test_memory_in_the_place_of_other_is_not_believed(executor):
    honest = "import math\ndef f(x): return math.floor(x), math.ceil(x)"
    assert one(executor, honest, "2.5").value == "(2, 3)"
    child = kept_child(executor)
    assert one(executor, REPLACES_A_MAPPING).value == "2"
    assert {one(executor, honest, "2.5").value for _ in range(3)} == {"(2, 3)"}
    assert kept_child(executor) != child


def test_memory_given_back_here_and_taken_there_is_not_believed(executor):
    assert one(executor, DOUBLE, "1").value == "2"
    child = kept_child(executor)
    assert one(executor, PUTS_MEMORY_ELSEWHERE).value == "1"
    assert one(executor, HONEST, "7").value == HONEST_VALUE
    assert kept_child(executor) != child


SNAPSHOT_OF_A_PROCESS = """
import ctypes, os, signal, struct, sys
from selfplay_gym.executors.snapshot import Snapshot, SnapshotLost, fork_twin, open_own
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
page, size = ctypes.c_void_p(libc.mmap(None, ctypes.c_size_t(8192), 3, 0x22, -1, ctypes.c_long(0))), 4096
def nothing(): pass
def writes(): ctypes.memset(page, 7, 1)
def moves():
    libc.munmap(page, ctypes.c_size_t(size))
    ctypes.memset(libc.mmap(None, ctypes.c_size_t(size), 3, 0x22, -1, ctypes.c_long(0)), 7, 1)
def grows_the_stack():
    (start,) = [int(line.partition("-")[0], 16) for line in open("/proc/self/maps") if "[stack]" in line]
    libc.munmap(page, ctypes.c_size_t(size))
    ctypes.memset(start - size, 7, 1)
file = os.memfd_create("constant")
os.write(file, b"x" * size)
shared = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)  # mapped shared and constant: not to be watched
constant = libc.mmap(None, ctypes.c_size_t(size), 1, 1, shared, ctypes.c_long(0))
def replaces_what_is_not_watched():
    assert libc.mmap(ctypes.c_void_p(constant), ctypes.c_size_t(size), 1, 0x32, -1, ctypes.c_long(0)) == constant
def moves_to(address):
    libc.munmap(page, ctypes.c_size_t(size))
    place = ctypes.c_void_p(address)
    assert libc.mmap(place, ctypes.c_size_t(size), 3, 0x32, -1, ctypes.c_long(0)) == address
    ctypes.memset(address, 7, 1)
def moves_below_all(): moves_to(2**20)
def moves_above_all(): moves_to(max(int(line[:12], 16) for line in open("/proc/self/maps") if line[12] == "-") + 2**21)
def grows_the_heap():
    libc.munmap(page, ctypes.c_size_t(size))
    libc.sbrk(ctypes.c_long(size))
act = globals()[sys.argv[1]]
to_child, from_child = os.pipe(), os.pipe()
child = os.fork()
if not child:
    descriptors = open_own(os.open("/proc", os.O_RDONLY))
    twin = fork_twin()
    if not twin:
        signal.pause()
    os.write(from_child[1], struct.pack("5i", twin, *descriptors))
    os.read(to_child[0], 1)
    os.write(from_child[1], b"r")
    os.read(to_child[0], 1)
    act()
    os.write(from_child[1], b"d")
    os.read(to_child[0], 1)
twin, *descriptors = struct.unpack("5i", os.read(from_child[0], 20))
snapshot = Snapshot(child, twin, os.open("/proc", os.O_RDONLY), tuple(descriptors))
os.write(to_child[1], b"g")
os.read(from_child[0], 1)
snapshot.take()
try:
    for _ in range(3):
        os.write(to_child[1], b"g")
        snapshot.resume()
        os.read(from_child[0], 1)
        snapshot.stop()
        snapshot.restore()
    print("put back")
except SnapshotLost as lost:
    print(lost)
for process in (child, twin):
    os.kill(process, 9)
"""


@pytest.mark.parametrize(
    ("act", "says"),
    [
        ("nothing", "put back"),
        ("writes", "put back"),
        ("moves", "there is new memory"),
        ("replaces_what_is_not_watched", "memory was replaced"),
        ("moves_below_all", "there is new memory"),
        ("moves_above_all", "there is new memory"),
        ("grows_the_stack", "there was nothing before"),
        ("grows_the_heap", "there is new memory"),
    ],
)
def test_a_sum_of_memory_that_was_made_right_again_is_seen_through(executor, act, says):
    done = subprocess.run(
        [sys.executable, "-c", SNAPSHOT_OF_A_PROCESS, act], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == says, done.stderr


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="written for the registers of x86-64")
def test_a_signal_left_behind_reaches_no_other_job(executor):
    """Delivered to the next job, it would write kilobytes to a place that the earlier one chose."""
    one(executor, DOUBLE, "1")
    child = kept_child(executor)
    for _ in range(100):  # the timer strikes at a tick of the kernel, if one falls into its few milliseconds
        assert one(executor, LEAVES_A_SIGNAL).value == "1"
        assert {one(executor, HONEST, "7").value for _ in range(4)} == {HONEST_VALUE}
        if kept_child(executor) != child:
            break
    assert kept_child(executor) != child


def test_programs_that_keep_costing_their_child_are_forked(executor):
    """Another kept child costs ten forks: after some in a row, jobs get fresh ones for a while."""
    hoards = NATIVE + "def f(x):\n    sys.left = [bytes(10 ** 6) for _ in range(10)]\n    return tools()[2]['_kept']"
    values = [one(executor, hoards, str(number)).value for number in range(40)]
    assert set(values) == {"True", "False"}
    assert values.count("True") < 10
    assert kept_child(executor) == 0
    for number in range(80):
        one(executor, DOUBLE, str(number))
    assert kept_child(executor)


def test_a_timer_left_running_hits_nobody(executor):
    program = """
def f():
    s = __import__('sys').modules['_signal']
    s.setitimer(s.ITIMER_PROF, 0.002, 0.002)
    return 1
"""
    assert one(executor, program).value == "1"
    busy = "def f(n):\n    while n: n -= 1\n    return n"
    for _ in range(5):
        assert one(executor, busy, "400000").value == "0"


def test_a_kept_child_that_is_killed_costs_no_verdict(executor):
    for round_ in range(4):
        assert one(executor, DOUBLE, str(round_)).value == str(2 * round_)
        os.kill(kept_child(executor), signal.SIGKILL)
        time.sleep(0.02 * (round_ % 2))
        results = executor.run([job(DOUBLE, str(number)) for number in range(5)])
        assert [result.value for (result,) in results] == ["0", "2", "4", "6", "8"]


def test_the_job_pipe_is_out_of_reach(executor):
    program = "def f():\n    return __import__('sys').modules['posix'].read(4, 10)"
    result = one(executor, program, limits=SHORT)
    assert (result.status, result.error_type) == (Status.ERROR, "PermissionError")
    assert one(executor, HONEST, "7").value == HONEST_VALUE


def test_a_kernel_that_cannot_put_a_child_back_forks_one_for_every_job():
    script = """
        import ctypes, struct, platform
        # A filter that answers EPERM to userfaultfd and allows all else.
        number = {"x86_64": 323, "aarch64": 282}[platform.machine()]
        lines = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)]
        from selfplay_gym.executors import seccomp
        seccomp.assemble = lambda table, role=None: b"".join(struct.pack("<HBBI", *line) for line in lines)
        ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
        seccomp.Filter(seccomp.X86_64).install()
        from selfplay_gym.executors.sandbox import SandboxExecutor
        from selfplay_gym.types import Job
        with SandboxExecutor(cache_bytes=0, workers=1) as executor:
            (result,), = executor.run([Job("def f(x): return x + 1", ("1",))])
            print(executor.tier, executor.walls["kept_children"], result.value)
    """
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=root,
    )
    assert done.stdout.split() == ["full", "False", "2"]
