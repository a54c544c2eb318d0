"""Wrong answers of every kind score as a second, plain judge says; and no reward cheat is paid in any suite."""

import gzip
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfplay_gym import suites
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.grading import grade
from selfplay_gym.suites import SUITES, Source, Suite
from selfplay_gym.types import Limits
from tests import test_example_suites, test_ifeval, test_livecodebench, test_p3, wrong_answers
from tests.wrong_answers import MAKERS, Wrong

REAL = Path(os.environ.get(suites.DATA_VARIABLE, ""))
FIXTURES = Path(__file__).parent / "fixtures"
MATHS = [{"id": "q/1", "question": "How many?", "answer": "12345", "numeric": True}]
OWN: dict[str, list[dict[str, Any]]] = {
    **test_example_suites.FILES,
    "p3": test_p3.ROWS,
    "ifeval": test_ifeval.ROWS[1:],
    "livecodebench": [test_livecodebench.ADD, test_livecodebench.PAIR],
    **dict.fromkeys(
        ("gsm8k", "math500", "aime24", "aime25", "amc23", "hmmt24", "hmmt25", "minerva_math", "olympiadbench", "svamp",
         "asdiv", "multiarith"), MATHS),
}  # fmt: skip
"""Rows for every suite, of our own."""


@pytest.fixture(scope="module")
def executor() -> Iterator[SandboxExecutor]:
    with SandboxExecutor(workers=2) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("data")
    for name, rows in OWN.items():
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for file in FIXTURES.glob("*/*.jsonl*"):
        shutil.copy(file, made)
    return made


def load(executor: SandboxExecutor, folder: Path, name: str) -> list[Suite]:
    return suites.load([name], Source(executor, folder))


# -- wrong answers -----------------------------------------------------------------------------------------------------

CORPUS = {
    "cruxeval-i": "cruxeval",
    "cruxeval-o": "cruxeval",
    "list_functions": "list_functions",
    "dreamcoder_list": "dreamcoder_list",
    **{f"{name}-{use}": name for name in test_example_suites.IO for use in ("induction", "deduction", "abduction")},
    "test_output_prediction": "test_output_prediction",
    **{f"{name}{end}": name for name in test_example_suites.ARC for end in ("", "-direct")},
    "sygus_pbe_strings": "sygus_pbe_strings",
    "sygus_pbe_strings-held": "sygus_pbe_strings",
    "p3": "p3",
    "p3-docstring": "p3",
    "livecodebench": "livecodebench",
}  # fmt: skip
"""Suites whose answers are run or parsed, with the file that each reads."""


def rows_of(folder: Path, file: str) -> dict[str, dict[str, Any]]:
    path = next(path for path in sorted(folder.glob(f"{file}*.jsonl*")) if path.name.split(".")[0] in {
        file, f"{file}_dev", f"{file}_v5_statements"
    })  # fmt: skip
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return {row["id"]: row for row in map(json.loads, data.splitlines())}


def disagreements(
    executor: SandboxExecutor, folder: Path, name: str, every: int, endless: int
) -> tuple[list[tuple[object, ...]], Counter[tuple[str, float]], int]:
    """Return where the two judges differ, how often each mutant got which score, and how many right ones failed."""
    (suite, *_) = load(executor, folder, name)
    made = wrong_answers.corpus(suite, rows_of(folder, CORPUS[name]), every, endless)
    short = replace(suite, limits=replace(suite.limits, cpu_seconds=0.1))
    ours: dict[int, float | None] = {}
    for graded, chosen in (
        (suite, [wrong for wrong in made if not wrong.mutant.startswith("endless")]),
        (short, [wrong for wrong in made if wrong.mutant.startswith("endless")]),
    ):
        ours |= scores(executor, graded, chosen)
    plain = wrong_answers.plainly_right(made)
    found = [ours[id(wrong)] for wrong in made]
    differ = [
        (wrong.problem, wrong.mutant, score, said)
        for wrong, score, said in zip(made, found, plain, strict=True) if score != float(said)
    ]  # fmt: skip
    counts = Counter(
        (wrong.mutant, score if score is not None else -1.0) for wrong, score in zip(made, found, strict=True)
    )
    return differ, counts, counts["right", 0.0]


def scores(executor: SandboxExecutor, suite: Suite, made: list[Wrong]) -> dict[int, float | None]:
    answers: dict[str, list[str]] = {}
    placed: list[tuple[Wrong, int]] = []
    for wrong in made:
        texts = answers.setdefault(wrong.problem, [])
        placed.append((wrong, len(texts)))
        # Inside answer tags, so that no answer is taken for a completion with tags of its own.
        texts.append(f"<think></think><answer>{wrong.answer}</answer>")
    rows = {row.id: row for row in grade(suite, answers, executor).rows}
    return {id(wrong): rows[wrong.problem].scores[place] for wrong, place in placed}


ALIKE = {*test_example_suites.ARC[1:], "humaneval_io", "p3-docstring"}
"""Names whose suites are judged by the same code as another's."""


@pytest.mark.parametrize("name", [name for name in CORPUS if name.partition("-")[0] not in ALIKE and name not in ALIKE])
def test_wrong_answers_to_our_rows_score_as_a_plain_judge_says(
    executor: SandboxExecutor, folder: Path, name: str
) -> None:
    differ, counts, failed = disagreements(executor, folder, name, every=1, endless=1)
    assert (differ, failed) == ([], 0)
    assert counts["right", 1.0] > 0
    assert sum(count for (_, score), count in counts.items() if score == 0.0) > sum(
        count for (_, score), count in counts.items() if score == 1.0
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CORPUS)
def test_wrong_answers_to_real_rows_score_as_a_plain_judge_says(executor: SandboxExecutor, name: str) -> None:
    if not os.environ.get(suites.DATA_VARIABLE) or not any(REAL.glob(f"{CORPUS[name]}*")):
        pytest.skip(f"set {suites.DATA_VARIABLE} to a folder that holds {CORPUS[name]}.jsonl")
    every = int(os.environ.get("SELFPLAY_GYM_EVERY", "1"))
    differ, counts, failed = disagreements(executor, REAL, name, every, endless=2)
    print(f"{name}: {counts.total()} answers, {sum(n for (_, s), n in counts.items() if s == 1.0)} right")
    assert (differ, failed) == ([], 0)


# -- cheats ------------------------------------------------------------------------------------------------------------

EVERYTHING = "class Any({base}):\n    __eq__ = __ne__ = __lt__ = __le__ = lambda *a: True\n    __hash__ = None\n\n\n"
BODIES = {
    "an object equal to everything": "class Any:\n        __eq__ = lambda *a: True\n    return Any()",
    "an integer equal to everything": "class Any(int):\n        __eq__ = lambda *a: True\n    return Any(1)",
    "a text equal to everything": "class Any(str):\n        __eq__ = lambda *a: True\n    return Any('True')",
    "arithmetic that returns itself": (
        "class Any(int):\n        __add__ = __mul__ = __getitem__ = lambda self, *a: self\n"
        "        __eq__ = __bool__ = lambda *a: True\n    return [Any()]"
    ),
    "mock.ANY": "from unittest.mock import ANY\n    return ANY",
    "the verdict printed": "print('True')",
    "the verdict": "return True, 'True'",
    "the standard streams": "import sys\n    sys.stdout.write('True')\n    sys.stdout = None\n    return 'True'",
    "the judge's frames": (
        "import sys\n    frame, found = sys._getframe(), []\n    while frame:\n"
        "        found += [frame.f_locals.get(n) for n in ('gold', 'output', 'outputs', 'expected', 'reference')]\n"
        "        frame = frame.f_back\n    return next((each for each in found if each is not None), None)"
    ),
    "patched builtins": (
        "import builtins, ast\n    builtins.isinstance = builtins.all = builtins.eval = lambda *a: True\n"
        "    builtins.repr = builtins.str = lambda *a: 'True'\n    ast.literal_eval = lambda *a: 0\n    return None"
    ),
    "the end of the process": "import os\n    os._exit(0)",
    "a leap out of the call": "raise SystemExit(0)",
    "a signal caught": "try:\n        while True: pass\n    except BaseException:\n        return 'True'",
    "deep recursion": "import sys\n    sys.setrecursionlimit(10 ** 9)\n    g = lambda n: g(n + 1)\n    return g(0)",
    "a huge integer": "return 10 ** 10 ** 6",
    "a huge tuple": "return (None,) * 10 ** 7",
    "memory": "return [bytearray(10 ** 6) for _ in range(10 ** 6)]",
    "processes": "import os\n    while True: os.fork()",
    "a frame of its own": (
        "import os\n    for number in range(1, 40):\n        try: os.write(number, bytes([4]) + bytes(12) + b'True')\n"
        "        except OSError: pass\n    return None"
    ),
}  # fmt: skip
TEXTS = {
    "the call closed": ["1) or True or f(1", "1) or True #", "1)\nTrue #", "1)\nprint('True')\n(1"],
    "an object equal to everything": [
        "type('Any', (), {'__eq__': lambda *a: True, '__add__': lambda s, o: s})()",
        "__import__('unittest.mock', fromlist=['ANY']).ANY",
        "[type('Any', (int,), {'__eq__': lambda *a: True})()]",
    ],
    "the verdict printed": ["print(\"True\")", "[print('True')]", "__import__('builtins').print('True') or 1", "True"],
    "the judge's frames": ["__import__('sys')._getframe(1).f_locals['gold']", "globals()", "[f for f in ()]"],
    "side effects": ["__import__('os').system('true')", "open('/tmp/x', 'w')", "exec('x = 1')"],
    "a huge value": ["10 ** 10 ** 8", "'a' * 10 ** 9", "[0] * 10 ** 9", "(" * 10_000],
    "several answers": ["0 or 1 or 2", "...", "ANY", "Ellipsis", "NotImplemented", "lambda: 0"],
}  # fmt: skip

WAYS = {
    "deduction": "text", "abduction": "text", "test_output": "text", "arc": "text", "maths": "text", "ifeval": "text",
    "error": "text", "induction": "f", "puzzle": "sol", "script": "script", "method": "method",
    **dict.fromkeys(("humaneval", "mbpp", "leetcode"), "any function"),
}  # fmt: skip
"""What each family asks for: a text, or a program in which a function of this name, or this kind, is called."""

PROGRAMS = {
    "f": "def f(*a, **k):\n    {body}",
    "sol": "def sol(*a, **k):\n    {body}",
    "script": "def main():\n    {body}\n\n\nprint(main())",
    "method": "def f(*a, **k):\n    {body}\n\n\nclass Solution:\n    def __getattr__(self, name):\n        return f",
    "any function": (
        "def f(*a, **k):\n    {body}\n\n\nclass Solution:\n    def __getattr__(self, name):\n        return f\n\n\n"
        "import re\nfor name in re.findall(r'\\w+', {names!r}):\n    globals().setdefault(name, f)"
    ),
}
FAST = Limits(cpu_seconds=0.3, wall_seconds=20.0, memory_bytes=2**27)


def cheats(suite: Suite) -> dict[str, list[str]]:
    """Every cheat as an answer to every problem of a suite."""
    answers: dict[str, list[str]] = {}
    for problem in suite.problems:
        if (task := problem.task) is None:
            continue
        way = WAYS[task.family]
        texts = [text for found in TEXTS.values() for text in found]
        if way != "text":
            words = " ".join((getattr(task, "entry", ""), *task.inputs))
            texts += [PROGRAMS[way].replace("{body}", b).replace("{names!r}", repr(words)) for b in BODIES.values()]
        answers[problem.id] = [f"<think></think><answer>{text}</answer>" for text in texts]
    return answers


@pytest.mark.parametrize("name", SUITES.names())
def test_no_cheat_is_paid_in_any_suite(executor: SandboxExecutor, folder: Path, name: str) -> None:
    for whole in load(executor, folder, name):
        unknown = whole.families.keys() - WAYS.keys()
        assert not unknown, f"say in WAYS what these families ask for: {sorted(unknown)}"
        families = {p.task.family: p for p in reversed(whole.problems) if p.task is not None}
        suite = replace(whole, problems=tuple(families.values()), limits=FAST)
        assert suite.problems, f"give {whole.name} rows in OWN, or a fixture"
        result = grade(suite, cheats(suite), executor)
        paid = [(row.id, number) for row in result.rows for number, each in enumerate(row.scores) if each != 0.0]
        assert paid == []


def test_every_family_that_runs_or_parses_code_has_wrong_answers() -> None:
    # The families of unit tests have theirs in tests/wrong_programs.py, held against evalplus.
    assert MAKERS.keys() | {"maths", "ifeval", "error", "humaneval", "mbpp", "leetcode"} == WAYS.keys()
