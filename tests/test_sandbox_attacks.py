"""What programs try: reach the host, forge results, leak into other jobs, outlive their limits.

After every attack the same pool must give an honest program its right answer.
"""

import os
import struct
import textwrap
import time

import pytest

from selfplay_gym.executors import seccomp
from selfplay_gym.executors.runner import FRAME
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.types import Execution, Job, Limits, Status, Tier

OK, ERROR, TIMEOUT, MEMORY = Status.OK, Status.ERROR, Status.TIMEOUT, Status.MEMORY
OUTPUT, UNSERIALISABLE, CRASHED, FORBIDDEN = (
    Status.OUTPUT_LIMIT,
    Status.UNSERIALISABLE,
    Status.CRASHED,
    Status.FORBIDDEN,
)
LIMITS = Limits(cpu_seconds=0.3, wall_seconds=1.5, memory_bytes=64 * 2**20)
HONEST = "def f(x): return [x, len('four'), repr(1.5), sorted({3, 1})]"


@pytest.fixture(scope="module", params=[(Tier.FULL, True), (Tier.FILTER_ONLY, True), (Tier.FULL, False)], ids=str)
def executor(request):
    tier, keep_children = request.param
    with SandboxExecutor(cache_bytes=0, workers=1, tier=tier, keep_children=keep_children) as executor:
        yield executor


def attack(executor, body: str, *inputs: str, **settings) -> tuple[Execution, ...]:
    """Run ``body`` as the body of ``f`` (or as a program, if it defines one); check the pool afterwards."""
    body = textwrap.dedent(body)
    program = body if "def f(" in body else "def f(*a):\n" + textwrap.indent(body, "    ")
    settings = {"policy": "plain", "limits": LIMITS, **settings}
    answer, honest = executor.run([Job(program, inputs or ("",), **settings), Job(HONEST, ("7",), policy="plain")])
    assert honest[0].value == "[7, 4, '1.5', [1, 3]]"
    return answer


HOST = {
    "read a file": ("return open('/etc/passwd').read()", ERROR),
    "write a file": ("open('/tmp/canary', 'w').write('x')", ERROR),
    "list the root": ("import os; return os.listdir('/')", ERROR),
    "list descriptors": ("import os; return os.listdir('/proc/self/fd')", ERROR),
    "read the environment": ("import os; return dict(os.environ)", OK),
    "make a directory": ("import os; os.mkdir('/x')", ERROR),
    "leave the root": ("import os; os.chroot('.')", FORBIDDEN),
    "run a command": ("import os; return os.system('id')", ERROR),
    "replace itself": ("import os; os.execv('/bin/sh', ['sh'])", FORBIDDEN),
    "fork": ("import os; return os.fork()", FORBIDDEN),
    "start a thread": ("import _thread; _thread.start_new_thread(print, ())", FORBIDDEN),
    "open a socket": ("import socket", ERROR),
    "load C code": ("import ctypes", ERROR),
    "import the executor": ("import selfplay_gym.executors.server", ERROR),
    "import from main": ("import __main__; return sorted(vars(__main__))", OK),
    "import multiprocessing": ("import multiprocessing", ERROR),
    "kill the server": ("import os; os.kill(os.getppid(), 9)", ERROR),
    "kill process 1": ("import os; os.kill(1, 9)", ERROR),
    "kill all": ("import os; os.kill(-1, 9)", ERROR),
    "raise a signal": ("import _signal; _signal.raise_signal(9)", (ERROR, CRASHED)),
    "write to standard output": ("import os; os.write(1, b'x')", ERROR),
    "write to the control socket": ("import os; [os.write(fd, b'x') for fd in range(4, 9)]", ERROR),
    "read the result pipe": ("import os; os.read(3, 1)", ERROR),
    "duplicate the pipe": ("import os; os.dup2(3, 9)", ERROR),
    "close the pipe": ("import os; os.close(3)", ERROR),
    "memory file": ("import os; os.memfd_create('x')", ERROR),
    "entropy": ("import os; return os.urandom(8)", ERROR),
    "become root": ("import os; os.setuid(0)", ERROR),
    "raise a limit": ("import resource", ERROR),
    "read standard input": ("return input()", ERROR),
    "through subclasses": (
        "return [c.__init__.__globals__['sys'].modules['os'].listdir('/') for c in object.__subclasses__()"
        " if 'sys' in getattr(c.__init__, '__globals__', ())][0]",
        ERROR,
    ),
    "through a loader": ("return __loader__.load_module('posix').listdir('/')", ERROR),
}


@pytest.mark.parametrize("name", HOST)
def test_the_host_is_out_of_reach(executor, name):
    body, expected = HOST[name]
    (result,) = attack(executor, body)
    if name == "run a command" and result.status is FORBIDDEN:  # `system` may fork by another call
        return
    assert result.status in (expected if isinstance(expected, tuple) else (expected,))
    if result.status is OK:
        assert result.value in ("{}", "[]")


def frame(status: int, payload: bytes) -> bytes:
    return FRAME.pack(len(payload), status, 0, 0) + payload


FORGED = {
    "two frames": frame(0, b"42") * 2,
    "a value that is no literal": frame(0, b"ANY"),
    "a value in another spelling": frame(0, b"[1,2]"),
    "an expression": frame(0, b"__import__('os').getpid()"),
    "bytes that are no text": frame(0, b"\xff\xfe"),
    "a status of the server's": frame(8, b"x\0"),
    "a status that is none": frame(77, b"x\0"),
    "half a frame": frame(0, b"42")[:7],
    "an empty write": b"",
    "a huge length": struct.pack("<IBII", 2**31, 0, 0, 0),
    "a megabyte": frame(0, b"4" * 2**20),
    "a value over the limit": frame(0, b"4" * 4097),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_frame_is_no_result(executor, name):
    (result,) = attack(executor, f"import os; os.write(3, {FORGED[name]!r}); os._exit(0)")
    assert (result.status, result.error_type) in ((CRASHED, "protocol"), (CRASHED, "exit"))


def test_too_many_frames_spoil_all(executor):
    results = attack(executor, f"import os; os.write(3, {frame(0, b'1') * 3!r}); os._exit(0)", "", "")
    assert [(r.status, r.error_type) for r in results] == [(CRASHED, "protocol")] * 2


def test_a_program_can_forge_its_own_value_and_no_more(executor):
    program = f"import os\ndef f(x):\n    os.write(3, {frame(0, b'42')!r})\n    os._exit(0)"
    results = attack(executor, program, "1", "2")
    assert [(r.status, r.value) for r in results] == [(OK, "42"), (CRASHED, None)]


def test_trickling_bytes_keep_nobody_waiting(executor):
    began = time.monotonic()
    program = f"""
        import os, time
        for byte in {frame(0, b"1" * 900)!r}:
            os.write(3, bytes([byte]))
            time.sleep(0.05)
    """
    (result,) = attack(executor, program, limits=Limits(0.3, 0.5))
    assert (result.status, result.error_type) == (TIMEOUT, "wall")
    assert time.monotonic() - began < 5


NOT_VALUES = {
    "always equal": (
        "class A:\n    def __eq__(self, o): return True\n    def __repr__(self): return '1'\ndef f(): return A()"
    ),
    "int subclass": "class A(int): pass\ndef f(): return A(3)",
    "str subclass": "class A(str):\n    def __repr__(self): return '1'\ndef f(): return A('x')",
    "list subclass": "class A(list): pass\ndef f(): return [A()]",
    "dict subclass": "import collections\ndef f(): return collections.Counter('a')",
    "defaultdict": "import collections\ndef f(): return collections.defaultdict(int)",
    "named tuple": "import collections\ndef f(): return collections.namedtuple('P', 'x')(1)",
    "enum": "import enum\ndef f(): return enum.IntEnum('E', 'a').a",
    "function": "def f(): return f",
    "generator": "def f(): return (x for x in [1])",
    "exception": "def f(): return ValueError()",
    "ellipsis": "def f(): return ...",
    "complex": "def f(): return 1j",
    "bytearray": "def f(): return bytearray(3)",
    "decimal": "import decimal\ndef f(): return decimal.Decimal(1)",
    "range": "def f(): return range(3)",
    "reduces to a call": "class A:\n    def __reduce__(self): return (print, ('x',))\ndef f(): return {1: A()}",
    "self-containing": "def f():\n    x = []\n    x.append(x)\n    return x",
    "deep": "def f():\n    x = []\n    for _ in range(100000): x = [x]\n    return x",
}


@pytest.mark.parametrize("name", NOT_VALUES)
def test_only_values_of_exact_builtin_types_come_back(executor, name):
    (result,) = attack(executor, NOT_VALUES[name])
    assert result.status is UNSERIALISABLE


PATCHES = {
    "repr": "builtins.repr = lambda v: '42'",
    "len": "builtins.len = lambda v: 0",
    "type": "builtins.type = lambda v: int",
    "sorted": "builtins.sorted = lambda v: []",
    "isinstance": "builtins.isinstance = lambda *a: True",
    "everything": "vars(builtins).update(dict.fromkeys([n for n in dir(builtins) if n[0] != '_']))",
    "the clock": "import time; time.thread_time = time.monotonic = lambda: 0.0",
    "the struct": "import struct; struct.pack = struct.Struct = None",
    "the writer": "import os, posix; os.write = posix.write = lambda *a: 0",
    "the parser": "import ast; ast.parse = lambda *a, **k: None",
    "standard output": "sys.stdout = sys.stderr = None",
    "the recursion limit": "sys.setrecursionlimit(60)",
    "tracing": "sys.settrace(lambda *a: None); sys.setprofile(lambda *a: None)",
    "modules": "sys.modules.clear()",
    "collection": "import gc; gc.set_threshold(1); gc.callbacks.append(lambda *a: None)",
}


@pytest.mark.parametrize("name", PATCHES)
def test_patching_the_interpreter_changes_no_result_and_no_other_job(executor, name):
    program = f"import builtins, sys\ndef f(x):\n    {PATCHES[name]}\n    return [x, {{2, 1}}]"
    long = "'" + "y" * 3000 + "'"  # too long for the short way in
    results = attack(executor, program, "7", long, "'z'")
    assert results[0].value == "[7, {1, 2}]"
    assert all(r.status in (OK, ERROR) for r in results)
    if results[1].status is OK:
        assert results[1].value == f"[{long}, {{1, 2}}]"


def test_a_hook_of_one_job_is_gone_in_the_next(executor):
    attack(executor, "import sys\ndef f():\n    sys.addaudithook(lambda *a: 1 / 0)\n    return 1")
    attack(executor, "import math, re\ndef f():\n    math.sqrt = re.findall = None\n    return 1")
    (result,) = attack(executor, "import math, re\ndef f(): return math.sqrt(4.0), re.findall('a', 'aa')")
    assert result.value == "(2.0, ['a', 'a'])"


RESOURCES = {
    "endless loop": ("while True: pass", TIMEOUT),
    "catches everything": ("while True:\n    try:\n        while True: pass\n    except BaseException: pass", TIMEOUT),
    "catches once and returns": ("try:\n    while True: pass\nexcept BaseException: return 5", TIMEOUT),
    "finally returns": ("try:\n    while True: pass\nfinally: return 5", TIMEOUT),
    "stops the timer": ("import signal; signal.setitimer(signal.ITIMER_PROF, 0)\nwhile True: pass", TIMEOUT),
    "ignores the signal": ("import signal; signal.signal(signal.SIGPROF, signal.SIG_IGN)\nwhile True: pass", TIMEOUT),
    "lets the signal kill": ("import signal; signal.signal(signal.SIGPROF, signal.SIG_DFL)\nwhile True: pass", TIMEOUT),
    "blocks all signals": (
        "import signal; signal.pthread_sigmask(signal.SIG_SETMASK, range(1, 65))\nwhile True: pass",
        TIMEOUT,
    ),
    "stops itself": ("import signal; signal.raise_signal(signal.SIGSTOP)", ERROR),
    "one long operation": ("return len(str(10 ** 10 ** 8))", (TIMEOUT, MEMORY, ERROR)),
    "long regular expression": ("import re; return re.match('(a+)+b', 'a' * 60)", TIMEOUT),
    "endless text of an exception": (
        "class E(Exception):\n    def __str__(self):\n        while True: pass\ndef f(): raise E",
        TIMEOUT,
    ),
    "text of an exception raises": ("class E(Exception):\n    def __str__(self): raise E\ndef f(): raise E", ERROR),
    "a name that lies": (
        "class M(type):\n    @property\n    def __name__(c): raise E\nclass E(Exception, metaclass=M): pass\n"
        "def f(): raise E",
        ERROR,
    ),
    "huge message": ("raise ValueError('x' * 10 ** 7)", ERROR),
    "endless deletion": (
        "class A:\n    def __del__(self):\n        while True: pass\ndef f():\n    a = A()\n    return 1",
        TIMEOUT,
    ),
    "sleeps": ("import time; time.sleep(60)", TIMEOUT),
    "one large block": ("return bytearray(10 ** 10)", MEMORY),
    "many small blocks": ("x = []\nwhile True: x.append('y' * 10 ** 5 + str(len(x)))", MEMORY),
    "swallows the memory error": (
        "x = []\ntry:\n    while True: x.append(bytearray(10 ** 6))\nexcept MemoryError: return 1",
        OK,
    ),
    "raises it itself": ("raise MemoryError", MEMORY),
    "long text": ("return 'x' * 10 ** 5", OUTPUT),
    "long list": ("return list(range(10 ** 5))", OUTPUT),
    "huge number": ("return 1 << 10 ** 6", OUTPUT),
    "number too long to write": ("return 10 ** 4400", OUTPUT),
    "shared two to the sixty": ("x = [1]\nfor _ in range(40): x = [x, x]\nreturn x", OUTPUT),
    "prints without end": ("while True: print('y' * 1000)", OUTPUT),
    "prints one large text": ("print('y' * 10 ** 7)", OUTPUT),
    "prints a little": ("print('True'); return False", OK),
    "endless recursion": ("def g(n): return g(n + 1)\nreturn g(0)", ERROR),
    "deep recursion": (
        "import sys; sys.setrecursionlimit(10 ** 9)\ndef g(n): return g(n + 1)\nreturn g(0)",
        (MEMORY, CRASHED, TIMEOUT),
    ),
    "deep recursion in C": (
        "import sys; sys.setrecursionlimit(10 ** 9)\nx = []\nfor _ in range(10 ** 5): x = [x]\nreturn repr(x)",
        (MEMORY, CRASHED, ERROR, OUTPUT, TIMEOUT),
    ),
    "ends the process": ("import os; os._exit(0)", CRASHED),
    "aborts": ("import os; os.abort()", CRASHED),
    "ends politely": ("import sys; sys.exit()", ERROR),
}


@pytest.mark.parametrize("name", RESOURCES)
def test_every_run_keeps_to_its_limits(executor, name):
    body, expected = RESOURCES[name]
    began = time.monotonic()
    (result,) = attack(executor, body)
    assert result.status in (expected if isinstance(expected, tuple) else (expected,))
    assert time.monotonic() - began < 10
    assert len(result.message) <= 200
    assert len(result.error_type) <= 80


def test_what_was_framed_before_a_hard_kill_stands(executor):
    program = "import os\ndef f(x):\n    if x == 2: os._exit(1)\n    if x == 3: os.fork()\n    return x"
    results = attack(executor, program, "1", "2", "3", "4")
    assert [r.status for r in results] == [OK, CRASHED, FORBIDDEN, OK]
    assert results[3].value == "4"


def test_an_exception_named_like_ours_is_an_error(executor):
    for name in ("_Expired", "_Flooded", "NotALiteral", "MemoryErrors"):
        (result,) = attack(executor, f"class {name}(BaseException): pass\ndef f(): raise {name}('too large')")
        assert (result.status, result.error_type) == (ERROR, name)


def test_the_harness_found_through_frames_gives_no_more_than_a_forged_value(executor):
    program = """
        import sys
        def f():
            frame = sys._getframe()
            while frame:
                for name in ('OK', 'encode', '_fired', 'FRAME', '_write'):
                    if name in frame.f_globals: frame.f_globals[name] = 2
                frame = frame.f_back
            return 1
    """
    (result,) = attack(executor, program)
    assert result.status in (CRASHED, ERROR)


# --- the holes of the published code: proposals, then answers ---------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "status", "name"),
    [
        ("n = 0\ndef f():\n    global n\n    n += 1\n    return n", OK, ""),  # fresh globals: one answer, always
        ("def f(): return __import__('random').random()", FORBIDDEN, "builtin"),
        ("def f(): return __import__('uuid').uuid4().hex", FORBIDDEN, "builtin"),
        ("def f(): raise SystemExit(0)", ERROR, "SystemExit"),
        ("class Odd(Exception): pass\ndef f(): raise Odd", ERROR, "Odd"),
        ("def f(): return next(iter([]))", ERROR, "StopIteration"),
        ("def f(): raise ValueError", ERROR, "ValueError"),
        ("import random\ndef f(): return 1", FORBIDDEN, "import"),
        ("import os\ndef f(): return 1", FORBIDDEN, "import"),
        ("import os.path\ndef f(): return 1", FORBIDDEN, "import"),
        ("def f(): return 'x' * 5000", OUTPUT, "value"),
        ("def f():\n    while True: pass", TIMEOUT, "cpu"),
    ],
)
def test_the_proposals_that_the_published_checker_lets_through(executor, program, status, name):
    (result,) = attack(executor, program, policy="strict", check_determinism=True)
    assert (result.status, result.error_type) == (status, name)


def test_long_values_are_never_cut(executor):
    (text,) = attack(executor, "def f(): return 'x' * 1000", check_determinism=True)
    (numbers,) = attack(executor, "def f(): return list(range(200))", check_determinism=True)
    assert text.value == repr("x" * 1000)
    assert numbers.value == repr(list(range(200)))


@pytest.mark.parametrize(
    "answer",
    ["1) or True or f(1", "1) or True #", "1\nTrue #", "type('A', (), {'__eq__': lambda *a: True})()", "print(1)"],
)
def test_an_input_never_leaves_its_parentheses(executor, answer):
    (result,) = attack(executor, "def f(x): return x", answer)
    assert (result.status, result.error_type) == (ERROR, "NotALiteral")


def test_the_comment_character_ends_no_call(executor):
    (result,) = attack(executor, "def f(x): return x", "1 #")
    assert result.value == "1"


# --- the filter, on the architectures we cannot run ------------------------------------------------------------------


def decide(code: bytes, data: bytes) -> str:
    """Interpret a classic BPF program."""
    lines = list(struct.iter_unpack("<HBBI", code))
    at = accumulator = 0
    while True:
        operation, yes, no, operand = lines[at]
        at += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x06:
                return {0x7FFF0000: "allow", 0x50001: "refuse", 0x80000000: "kill"}[operand]
            case 0x15:
                at += yes if accumulator == operand else no
            case 0x35:
                at += yes if accumulator >= operand else no
            case 0x45:
                at += yes if accumulator & operand else no


def call(
    table: seccomp.Table,
    number: int,
    *arguments: int,
    audit: int | None = None,
    role: seccomp.Role = seccomp.Role.CHILD,
) -> str:
    words = [a & 0xFFFFFFFFFFFFFFFF for a in (*arguments, *[0] * (6 - len(arguments)))]
    data = struct.pack("<IIQ6Q", number, audit or table.audit, 0, *words)
    return decide(seccomp.assemble(table, role), data)


@pytest.mark.parametrize("table", seccomp.TABLES.values(), ids=seccomp.TABLES)
def test_the_filter_decides_as_its_table_says(table):
    deadly = {n for low, high in table.deadly for n in range(low, high + 1)}
    allowed = {*table.allowed, *table.lasting, table.setitimer}
    special = {table.write, table.mmap, table.mprotect}
    for number in range(470):
        expected = "allow" if number in allowed else "kill" if number in deadly else "refuse"
        if number not in special:
            assert call(table, number) == expected, number
    assert call(table, table.write, 3) == "allow"
    assert {call(table, table.write, fd) for fd in (0, 1, 2, 4, -1, 2**32 + 3)} == {"refuse"}
    assert call(table, table.mmap, 0, 4096, 3, 0x22, -1) == "allow"
    assert call(table, table.mmap, 0, 4096, 7, 0x22, -1) == "refuse"  # executable
    assert call(table, table.mmap, 0, 4096, 3, 0x02, 3) == "refuse"  # of a file
    assert call(table, table.mprotect, 0, 4096, 3) == "allow"
    assert call(table, table.mprotect, 0, 4096, 5) == "refuse"
    assert call(table, table.allowed[0], audit=0x40000003) == "kill"  # 32-bit calling convention
    if table.foreign:
        assert call(table, table.foreign + 1) == "kill"


# The numbers as the kernel has them in asm/unistd_64.h and asm-generic/unistd.h: x86-64, then aarch64.
NUMBERS = {
    "allow": {
        "munmap": (11, 215), "brk": (12, 214), "rt_sigreturn": (15, 139), "sched_yield": (24, 124),
        "nanosleep": (35, 101), "getitimer": (36, 102), "setitimer": (38, 103), "exit": (60, 93),
        "exit_group": (231, 94), "gettimeofday": (96, 169), "getrusage": (98, 165), "times": (100, 153),
        "futex": (202, 98), "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115),
        "madvise": (28, 233), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "sigaltstack": (131, 132),
        "rseq": (334, 293), "restart_syscall": (219, 128),
    },
    "kill": {
        "clone": (56, 220), "clone3": (435, 435), "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117),
        "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "unshare": (272, 97), "setns": (308, 268),
        "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "bpf": (321, 280),
        "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
        "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "add_key": (248, 217),
        "request_key": (249, 218), "keyctl": (250, 219), "init_module": (175, 105), "finit_module": (313, 273),
        "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
        "swapon": (167, 224), "swapoff": (168, 225), "personality": (135, 92),
    },
    "refuse": {
        "read": (0, 63), "openat": (257, 56), "openat2": (437, 437), "close": (3, 57), "dup": (32, 23),
        "dup3": (292, 24), "fcntl": (72, 25), "ioctl": (16, 29), "sendfile": (40, 71), "splice": (275, 76),
        "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "sendto": (44, 206),
        "recvfrom": (45, 207), "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
        "rt_sigqueueinfo": (129, 138), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424),
        "pidfd_getfd": (438, 438), "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178),
        "getuid": (102, 174), "setuid": (105, 146), "setgid": (106, 144), "capset": (126, 91), "prctl": (157, 167),
        "prlimit64": (302, 261), "seccomp": (317, 277), "getrandom": (318, 278), "memfd_create": (319, 279),
        "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196), "mq_open": (240, 180),
        "mknodat": (259, 33), "unlinkat": (263, 35), "mkdirat": (258, 34), "linkat": (265, 37),
        "symlinkat": (266, 36), "renameat2": (316, 276), "fchmodat": (268, 53), "statx": (332, 291),
        "getdents64": (217, 61), "chdir": (80, 49), "getcwd": (79, 17), "rt_sigsuspend": (130, 133),
        "timer_create": (222, 107), "sched_setaffinity": (203, 122), "setpriority": (141, 140),
        "landlock_create_ruleset": (444, 444), "open_tree": (428, 428), "move_mount": (429, 429),
        "fsopen": (430, 430), "mount_setattr": (442, 442), "name_to_handle_at": (303, 264),
        "open_by_handle_at": (304, 265), "quotactl": (179, 60), "acct": (163, 89), "sethostname": (170, 161),
        "clock_settime": (227, 112), "settimeofday": (164, 170), "mlock": (149, 228), "mremap": (25, 216),
        "pkey_mprotect": (329, 288), "remap_file_pages": (216, 234), "process_madvise": (440, 440),
    },
}  # fmt: skip


@pytest.mark.parametrize("verdict", NUMBERS)
def test_both_architectures_name_the_same_calls(verdict):
    for name, numbers in NUMBERS[verdict].items():
        for table, number in zip((seccomp.X86_64, seccomp.AARCH64), numbers, strict=True):
            assert call(table, number, 9) == verdict, name
    assert [(t.read, t.write, t.mmap, t.mprotect) for t in (seccomp.X86_64, seccomp.AARCH64)] == [
        (0, 1, 9, 10), (63, 64, 222, 226)
    ]  # fmt: skip
    if verdict != "refuse":
        said = {n for low, high in seccomp.AARCH64.deadly for n in range(low, high + 1)}
        said = said if verdict == "kill" else {*seccomp.AARCH64.allowed, *seccomp.AARCH64.lasting, 103}
        assert said == {aarch64 for _, aarch64 in NUMBERS[verdict].values()}


@pytest.mark.parametrize("table", seccomp.TABLES.values(), ids=seccomp.TABLES)
def test_a_kept_child_may_read_jobs_and_change_nothing_that_lasts(table):
    kept = seccomp.Role.KEPT
    changed = {*table.lasting, table.mprotect, table.setitimer, table.read}
    for number in set(range(470)) - changed:
        assert call(table, number, 3, role=kept) == call(table, number, 3), number
    assert {call(table, number, role=kept) for number in (*table.lasting, table.mprotect)} == {"kill"}
    assert [call(table, table.setitimer, which, role=kept) for which in range(4)] == ["kill", "kill", "allow", "kill"]
    assert {call(table, table.read, pipe, 0, 2**16 + 1, role=kept) for pipe in (0, 3, 5, 2**32 + 4)} == {"refuse"}
    assert [call(table, table.read, 4, 0, count, role=kept) for count in (1, 2**16, 2**16 + 1)] == [
        "refuse", "refuse", "allow"
    ]  # fmt: skip
    assert [call(table, table.read, pipe) for pipe in (3, 4)] == ["refuse", "refuse"]
    assert call(table, table.read, 9, role=seccomp.Role.COMPILER) == "allow"


def test_this_machine_has_a_table():
    assert os.uname().machine not in seccomp.TABLES or seccomp.native_table() is seccomp.TABLES[os.uname().machine]


def test_nothing_in_reach_holds_what_another_job_returned(executor):
    searching = """
import sys, gc
def f(word):
    needle, found, frame = word[::-1], [], sys._getframe(1)
    seen = [*gc.get_objects()]
    while frame:
        seen += [*frame.f_locals.values(), *frame.f_globals.values()]
        frame = frame.f_back
    for value in seen:
        try:
            if needle in repr(value): found.append(type(value).__name__)
        except Exception:
            pass
    return found
"""
    limits = Limits(cpu_seconds=20.0, wall_seconds=60.0)
    large = "#" * 40_000  # has a fresh child, also where children are kept
    for program in (searching, searching + large):
        told = Job("import gc\ndef f(word): return word[::-1] * 3" + large, ("'elatllet'",), policy="plain")
        asked = Job(program, ("'elatllet'",), limits=limits, policy="plain")
        assert executor.run([told])[0][0].value == "'telltaletelltaletelltale'"
        assert executor.run([asked])[0][0].value == "[]"
