"""What the published code of Absolute Zero lets through, and that nothing of it gets through here.

Each case is something that its validity check accepted, or that its solver reward paid 1.0 for, when it was run; or an
idea for the same that was not run there. The real sandbox judges.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from selfplay_gym.gate import Candidate, Gate, GateConfig, Outcome
from selfplay_gym.protocols import Executor
from selfplay_gym.referee import judge_answers
from selfplay_gym.registry import make_family
from selfplay_gym.types import Job, Limits, Proposal, Rejected, Task, Verdict

LIMITS = Limits(cpu_seconds=0.3, wall_seconds=1.5, memory_bytes=64 * 2**20)

Judge = Callable[[str, str], Outcome]
Solve = Callable[[Task, str], Verdict]


@pytest.fixture(scope="module")
def judge(sandbox: Executor) -> Judge:
    """Judges one proposal."""
    gate = Gate(sandbox, GateConfig(limits=LIMITS))
    return lambda program, given: gate.judge([Candidate("deduction", Proposal(program, (given,)))])[0]


@pytest.fixture(scope="module")
def solve(sandbox: Executor) -> Solve:
    """Judges one answer."""

    def solve(task: Task, answer: str) -> Verdict:
        completion = f"thought</think><answer>{answer}</answer>"
        return judge_answers([make_family(task.family)], [task], [completion], sandbox, LIMITS)[0]

    return solve


# -- proposals ---------------------------------------------------------------------------------------------------------

HOLES: dict[str, tuple[str, set[str]]] = {
    "a growing global counter": (
        "n = 0\n\ndef f(x):\n    global n\n    n += 1\n    return n",
        {"depends_on_input", "deterministic"},
    ),
    "a counter kept in a module": (
        "import math\n\ndef f(x):\n    math.n = getattr(math, 'n', 0) + 1\n    return math.n",
        {"policy"},
    ),
    "a counter kept in a class of the standard library": (
        "import fractions\n\ndef f(x):\n    fractions.Fraction.n = fractions.Fraction.n + 1\n    return x",
        {"policy", "runs", "deterministic"},
    ),
    "random by __import__": ("def f(x):\n    return __import__('random').random()", {"policy"}),
    "import random": ("import random\n\ndef f(x):\n    return random.random()", {"policy"}),
    "uuid": ("import uuid\n\ndef f(x):\n    return str(uuid.uuid4())", {"policy"}),
    "secrets": ("import secrets\n\ndef f(x):\n    return secrets.token_hex()", {"policy"}),
    "the clock": ("import time\n\ndef f(x):\n    return time.time()", {"policy"}),
    "an address": ("def f(x):\n    return id(x)", {"policy"}),
    "an address in a text": ("def f(x):\n    return str(f)", {"deterministic"}),
    "the hash seed": ("def f(x):\n    return hash('a')", {"policy"}),
    "the order of a set": ("def f(x):\n    return list({'a', 'b', 'c', 'd', 'e'})", {"deterministic"}),
    "raise SystemExit": ("def f(x):\n    raise SystemExit(0)", {"runs"}),
    "raise KeyboardInterrupt": ("def f(x):\n    raise KeyboardInterrupt", {"runs"}),
    "exit()": ("def f(x):\n    exit()", {"policy"}),
    "an exception of its own": ("class Done(Exception):\n    pass\n\ndef f(x):\n    raise Done", {"runs"}),
    "an exception that passes for success": ("class ok(BaseException):\n    pass\n\ndef f(x):\n    raise ok", {"runs"}),
    "StopIteration": ("def f(x):\n    return next(iter([]))", {"runs"}),
    "GeneratorExit": ("def f(x):\n    raise GeneratorExit", {"runs"}),
    "raise ValueError": ("def f(x):\n    raise ValueError", {"runs"}),
    "import os": ("import os\n\ndef f(x):\n    return x", {"policy"}),
    "import os.path": ("import os.path\n\ndef f(x):\n    return x", {"policy"}),
    "import sys, builtins, socket": ("import sys, builtins, socket\n\ndef f(x):\n    return x", {"policy"}),
    "open": ("def f(x):\n    return open('/etc/passwd').read()", {"policy"}),
    "an infinite loop": ("def f(x):\n    while True:\n        pass", {"runs"}),
    "a loop that swallows every exception": (
        "def f(x):\n    while True:\n        try:\n            while True:\n                pass\n"
        "        except BaseException:\n            pass",
        {"runs"},
    ),
    "builtins.repr replaced": (
        "import builtins\n\ndef f(x):\n    builtins.repr = lambda value: '42'\n    return x",
        {"policy"},
    ),
    "a string of 5,000 characters": ("def f(x):\n    return 'a' * 5000 + str(x)", {"value"}),
    "a list of 5,000 items": ("def f(x):\n    return list(range(5000)) + [x]", {"value"}),
    "a huge int whose text takes minutes": ("def f(x):\n    return 1 << 40_000_000", {"value", "runs"}),
    "a tuple of 10 ** 8 items": ("def f(x):\n    return (x,) * 10 ** 8", {"value", "runs"}),
    "shared structure of 2 ** 60 leaves": (
        "def f(x):\n    for _ in range(60):\n        x = [x, x]\n    return x",
        {"value"},
    ),
    "a deque": ("import collections\n\ndef f(x):\n    return collections.deque([x])", {"value"}),
    "a Fraction": ("import fractions\n\ndef f(x):\n    return fractions.Fraction(x, 3)", {"value"}),
    "an object whose text is a literal": (
        "class A:\n    def __repr__(self):\n        return '42'\n\ndef f(x):\n    return A()",
        {"value"},
    ),
    "an int that compares as it likes": (
        "class I(int):\n    def __eq__(self, other):\n        return True\n    __hash__ = int.__hash__\n\n"
        "def f(x):\n    return I(x)",
        {"value"},
    ),
    "a constant": ("def f(x):\n    return 42", {"depends_on_input"}),
    "defaults only": ("def f(x=1):\n    return x", {"signature"}),
    "no function": ("x = 1", {"signature"}),
    "deep recursion": (
        "import sys\n\ndef f(x):\n    sys.setrecursionlimit(10 ** 9)\n    return f(x)",
        {"policy"},
    ),
    "recursion to a crash": ("def f(x):\n    return f(x + 1)", {"runs"}),
    "all memory": ("def f(x):\n    return len(bytearray(10 ** 10))", {"runs"}),
    "a fork": ("import os\n\ndef f(x):\n    return os.fork()", {"policy"}),
}


@pytest.mark.parametrize("hole", HOLES)
def test_a_hole_in_the_validity_check_is_closed(judge: Judge, hole: str) -> None:
    program, checks = HOLES[hole]
    outcome = judge(program, "4")
    assert isinstance(outcome, Rejected), outcome
    assert outcome.check in checks, outcome


@pytest.mark.parametrize(
    ("program", "output"),
    [
        ("def f(x):\n    return 'a' * 1000 + x", "'" + "a" * 1000 + "b'"),
        ("def f(x):\n    return [x] * 200", "[" + ", ".join(["'b'"] * 200) + "]"),
    ],
    ids=["1,000 characters", "200 items"],
)
def test_a_long_output_is_kept_whole(judge: Judge, program: str, output: str) -> None:
    task = judge(program, "'b'")
    assert isinstance(task, Task)
    assert task.outputs == (output,)


def test_one_proposal_cannot_poison_the_next(sandbox: Executor, judge: Judge) -> None:
    # Past the policy check, which refuses it: only the walls stand between these two.
    poison = "import builtins\nbuiltins.repr = builtins.str = lambda value: '42'\n\ndef f(x):\n    return repr(x)"
    assert sandbox.run([Job(poison, ("4",), policy="plain")])[0][0].value == "'42'"
    honest = judge("def f(x):\n    return [repr(x), str(x)]", "'a'")
    assert isinstance(honest, Task)
    assert honest.outputs == ("[\"'a'\", 'a']",)


@pytest.mark.parametrize(
    "given", ["__import__('os').getpid()", "open('/tmp/x', 'w')", "(lambda: 4)()", "1 if 1 else 2"]
)
def test_an_input_is_never_evaluated(judge: Judge, given: str) -> None:
    outcome = judge("def f(x):\n    return x", given)
    assert isinstance(outcome, Rejected)
    assert outcome.check == "literal_inputs"


# -- abduction answers -------------------------------------------------------------------------------------------------

# No input gives the output, so that whatever scores has cheated.
NO_PREIMAGE = Task("abduction", "def f(x, y=1):\n    return [x, y]", ("1",), ("'no input gives this'",))
ALWAYS_EQUAL = "type('A', (), {'__eq__': lambda s, o: True, '__rsub__': lambda s, o: s, '__hash__': lambda s: 1})()"

ABDUCTION = {
    "close the call, or True": "1) or True or f(1",
    "close the call, comment the rest": "1) or True #",
    "a newline, so that the last line is True": "1)\nTrue #",
    "a newline and another call": "1)\nf(2",
    "a semicolon": "1); True; f(1",
    "a walrus": "(x := 'no input gives this')",
    "an object that is always equal": ALWAYS_EQUAL,
    "unittest.mock.ANY": "__import__('unittest.mock').mock.ANY",
    "print, to switch to the printed text": "print('True')",
    "print in a comment": "1 # print('True')",
    "a starred argument": "*[1]",
    "starred keywords": "**{'x': 1}",
    "a keyword the program does not take": "z=1",
    "a comprehension": "[y for y in (1,)]",
    "a lambda": "lambda: 'no input gives this'",
    "an f-string": "f'{1}'",
    "await": "await x",
    "the gold by name": "GOLD",
    "no argument at all": "",
    "only a comment": "# nothing",
    "the output itself": "'no input gives this'",
    "a system exit": "exit()",
    "too many arguments": "1, 2, 3",
    "the same argument twice": "1, x=1",
    "a deep nest": "[" * 300 + "]" * 300,
    "a million signs": "-" * 60_000 + "1",
}


@pytest.mark.parametrize("cheat", ABDUCTION)
def test_an_abduction_cheat_scores_zero(solve: Solve, cheat: str) -> None:
    for answer in (ABDUCTION[cheat], f"```input\n{ABDUCTION[cheat]}\n```"):
        assert solve(NO_PREIMAGE, answer).score == 0.0


def test_an_answer_that_defaults_would_fill_in_is_no_answer(solve: Solve) -> None:
    lenient = Task("abduction", "def f(x=1):\n    return x", ("1",), ("1",))
    assert solve(lenient, "").score == 0.0
    assert solve(lenient, "1").score == 1.0


def test_a_program_that_dies_without_the_word_error_on_a_wrong_input_is_a_wrong_answer(solve: Solve) -> None:
    program = "class Oops(BaseException):\n    pass\n\ndef f(x):\n    if x != 3:\n        raise Oops\n    return 'yes'"
    task = Task("abduction", program, ("3",), ("'yes'",))
    assert [solve(task, answer).score for answer in ("2", "2", "3")] == [0.0, 0.0, 1.0]


# -- deduction answers -------------------------------------------------------------------------------------------------

DEDUCTION = {
    "unittest.mock.ANY": "__import__('unittest.mock').mock.ANY",
    "an object that is always equal": ALWAYS_EQUAL,
    "the program itself": "f(4)",
    "an expression": "4 + 4",
    "True for 1": "True",
    "a float for an int": "8.0",
    "a complex number": "(8+0j)",
    "its text": "'8'",
    "its bytes": "b'8'",
    "in a list": "[8]",
    "in a tuple": "(8,)",
    "a comparison": "8 == 8",
    "two answers": "8 or 9",
    "two lines": "8\n9",
    "an ellipsis": "...",
    "a name": "output",
    "nothing": "",
    "a conditional": "8 if True else 9",
    "a huge number": "9" * 20_000,
    "a huge power": "10 ** 10 ** 10",
}


@pytest.mark.parametrize("cheat", DEDUCTION)
def test_a_deduction_cheat_scores_zero(solve: Solve, cheat: str) -> None:
    task = Task("deduction", "def f(x):\n    return x * 2", ("4",), ("8",))
    for answer in (DEDUCTION[cheat], f"```output\n{DEDUCTION[cheat]}\n```"):
        assert solve(task, answer).score == 0.0
    assert solve(task, "8").score == 1.0


def test_an_answer_is_not_evaluated_in_this_process(solve: Solve, tmp_path: Path) -> None:
    mark = tmp_path / "evaluated"
    attack = f"__import__('os').system('touch {mark}')"
    for task in (NO_PREIMAGE, Task("deduction", "def f(x):\n    return x", ("1",), ("1",))):
        assert solve(task, attack).score == 0.0
    open_file = f"def f(x):\n    import os\n    os.open({str(mark)!r}, os.O_CREAT)\n    return x"
    assert solve(TRIPLE, f"```python\n{open_file}\n```").score == 0.0
    assert not mark.exists()


# -- induction answers -------------------------------------------------------------------------------------------------

TRIPLE = Task(
    "induction", "def f(x):\n    return x * 3", ("1", "2", "3", "4", "5", "6"), ("3", "6", "9", "12", "15", "18")
)
EQUAL_CLASS = """class A{base}:
    def __eq__(self, other):
        return True
    __hash__ = None
    def __repr__(self):
        return '12'

"""

INDUCTION = {
    "an object that is always equal": EQUAL_CLASS.format(base="") + "def f(x):\n    return A()",
    "an int that is always equal": EQUAL_CLASS.format(base="(int)") + "def f(x):\n    return A(x)",
    "a str that is always equal": EQUAL_CLASS.format(base="(str)") + "def f(x):\n    return A(x)",
    "an int of its own that is right": "class I(int):\n    pass\n\ndef f(x):\n    return I(x * 3)",
    "unittest.mock.ANY": "def f(x):\n    from unittest.mock import ANY\n    return ANY",
    "the visible pairs alone": "def f(x):\n    return {1: 3, 2: 6, 3: 9}.get(x)",
    "the visible pairs, then a guess": "def f(x):\n    return {1: 3, 2: 6, 3: 9}.get(x, 12)",
    "right on all but the last": "def f(x):\n    return x * 3 if x < 6 else 0",
    "a float": "def f(x):\n    return x * 3.0",
    "a text": "def f(x):\n    return str(x * 3)",
    "print instead of return": "def f(x):\n    print(x * 3)",
    "a value already printed": "print(12)\n\ndef f(x):\n    pass",
    "an endless loop": "def f(x):\n    while True:\n        pass",
    "an endless loop at the top": "while True:\n    pass",
    "SystemExit at the top": "raise SystemExit(0)",
    "SystemExit with the value": "def f(x):\n    raise SystemExit(x * 3)",
    "os._exit": "import os\n\ndef f(x):\n    os._exit(0)",
    "an exception named like ours": "class NoVerdict(Exception):\n    pass\n\ndef f(x):\n    raise NoVerdict(x * 3)",
    "an exception named like a status": "class no_verdict(BaseException):\n    pass\n\ndef f(x):\n    raise no_verdict",
    "a raise of the executor's own": "from selfplay_gym import errors\n\ndef f(x):\n    raise errors.ExecutorError",
    "recursion": "def f(x):\n    return f(x)",
    "a recursion limit and a crash": "import sys\nsys.setrecursionlimit(10 ** 8)\n\ndef f(x):\n    return f(x)",
    "all memory": "def f(x):\n    return [0] * 10 ** 11",
    "a fork": "import os\n\ndef f(x):\n    os.fork()\n    return x * 3",
    "a signal to itself": "import os, signal\n\ndef f(x):\n    os.kill(os.getpid(), signal.SIGKILL)",
    "the caller's frames": (
        "import sys\n\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        for value in list(frame.f_locals.values()):\n            if getattr(value, 'outputs', None):\n"
        "                return value.outputs\n        frame = frame.f_back"
    ),
    "the garbage collector": (
        "import gc\n\ndef f(x):\n    return [o for o in gc.get_objects() if type(o) is tuple and '12' in o][0][3]"
    ),
    "another file on disk": "def f(x):\n    return open('/proc/self/cmdline').read()",
    "a fake frame on the result pipe": (
        "import os, struct\n\ndef f(x):\n    text = b'[0]'\n"
        "    os.write(3, struct.pack('<IBII', len(text), 0, 0, 1) + text)\n    return 0"
    ),
    "a patched encoder": (
        "import sys\nfor module in list(sys.modules.values()):\n    if hasattr(module, 'encode'):\n"
        "        module.encode = lambda *a, **k: '12'\n\ndef f(x):\n    return 0"
    ),
    "no f": "def g(x):\n    return x * 3",
    "f is no function": "f = 12",
    "f is deleted": "def f(x):\n    return x * 3\n\ndel f",
    "f is replaced": "def f(x):\n    return x * 3\n\nf = lambda x: 0",
    "async f": "async def f(x):\n    return x * 3",
    "a generator": "def f(x):\n    yield x * 3",
    "no Python": "the answer is x times three",
    "an input block": "x * 3",
    "a NUL": "def f(x):\n    return x * 3\0",
}  # fmt: skip


@pytest.mark.parametrize("cheat", INDUCTION)
def test_an_induction_cheat_scores_zero(solve: Solve, cheat: str) -> None:
    verdict = solve(TRIPLE, f"```python\n{INDUCTION[cheat]}\n```")
    assert verdict.score == 0.0, verdict
    assert verdict.reason
    assert "\n" not in verdict.reason


@pytest.mark.parametrize(
    "program",
    [
        "def f(x):\n    return x * 3",
        "f = lambda x: x * 3",
        "def f(x):\n    return x * 3\n    raise ValueError('after the return')",
        "import math\n\ndef f(*x):\n    return math.prod([*x, 3])",
        "class f(int):\n    def __new__(cls, x):\n        return x * 3",
    ],
)
def test_an_honest_induction_answer_scores_one(solve: Solve, program: str) -> None:
    assert solve(TRIPLE, f"```python\n{program}\n```").score == 1.0


# -- the extraction of answers -----------------------------------------------------------------------------------------


def test_text_in_the_task_cannot_take_the_place_of_the_completion(solve: Solve) -> None:
    """There a second "Assistant:" in a stored message hid the answer; here only the completion is read."""
    shown = "Assistant: <think></think><answer>8</answer>"
    task = Task("deduction", f"def f(x):\n    {shown!r}\n    return x * 2", ("4",), ("8",), shown)
    assert solve(task, "8").score == 1.0
    assert solve(task, "9").score == 0.0
    assert solve(task, "Assistant: 8").score == 0.0


@pytest.mark.parametrize("frame", ["{}", "<answer>{}</answer>", "</think><answer>{}</answer> extra", "</think>{}"])
def test_a_right_answer_without_its_frame_scores_zero(sandbox: Executor, frame: str) -> None:
    task = Task("deduction", "def f(x):\n    return x * 2", ("4",), ("8",))
    verdict = judge_answers([make_family("deduction")], [task], [frame.format("8")], sandbox)[0]
    assert (verdict.score, verdict.well_formed) == (0.0, False)


def test_the_environment_of_this_process_is_not_there_to_be_read(solve: Solve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "3")
    task = Task("induction", "def f(x):\n    return x", ("1",) * 4, tuple(str(len(os.environ)) for _ in range(4)))
    assert solve(task, "```python\nimport os\n\ndef f(x):\n    return len(os.environ)\n```").score == 0.0
