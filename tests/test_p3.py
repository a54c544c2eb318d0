"""Programming puzzles: the answer runs apart from what judges it, and nothing else counts."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from selfplay_gym import suites
from selfplay_gym.errors import InvalidData
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.grading import grade
from selfplay_gym.results import SuiteResult
from selfplay_gym.suites import Source, Suite
from selfplay_gym.tasks.p3 import whole
from selfplay_gym.types import Limits

REAL = Path(os.environ.get(suites.DATA_VARIABLE, ""))
MANY = "7" * 5000  # digits of an integer that Python reads and writes only if asked to
ROWS = [
    {"id": "Square:0", "family": "Square", "sat": "def sat(n: int, k=49):\n    return n * n == k and n < 0",
     "sol_header": "def sol(k=49):", "sol_docstring": '    """The negative root."""',
     "sol_bodies": ["    n = 0\n    while n * n != k:\n        n -= 1\n    return n"]},
    {"id": "Square:1", "family": "Square", "sat": "def sat(n: int, k=4):\n    assert n < 0\n    return n * n == k",
     "sol_header": "def sol(k=4):", "sol_docstring": '    """The negative root."""', "sol_bodies": ["    return -2"]},
    {"id": "Truthy:0", "family": "Truthy", "sat": "def sat(xs: List[int]):\n    return sum(xs) == 3 or len(xs)",
     "sol_header": "def sol():", "sol_docstring": '    """Three."""', "sol_bodies": ["    return [3]"]},
    {"id": "Digits:0", "family": "Digits",
     "sat": f"def sat(s: str, n={MANY}):\n    return s == str(n) and int(s) == n",
     "sol_header": f"def sol(n={MANY}):", "sol_docstring": '    """Digits."""', "sol_bodies": ["    return str(n)"]},
    {"id": "Long:0", "family": "Long", "sat": "def sat(xs: List[int]):\n    return xs == list(range(10 ** 5))",
     "sol_header": "def sol():",
     "sol_docstring": '    """Count."""', "sol_bodies": ["    return list(range(10 ** 5))"]},
    {"id": "Floats:0", "family": "Floats", "sat": "def sat(x: float):\n    return x > 10 ** 400",
     "sol_header": "def sol():", "sol_docstring": '    """Large."""', "sol_bodies": ["    return float('inf')"]},
    {"id": "Open:0", "family": "Open", "sat": "def sat(x: int):\n    return x * x == -1",
     "sol_header": "def sol():", "sol_docstring": '    """Imagine."""', "sol_bodies": []},
]  # fmt: skip


@pytest.fixture(scope="module")
def executor() -> Iterator[SandboxExecutor]:
    with SandboxExecutor(workers=1) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def puzzles(executor: SandboxExecutor, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return load(executor, tmp_path_factory.mktemp("data"), ROWS)[0]


def load(executor: SandboxExecutor, folder: Path, rows: list[dict[str, object]], name: str = "p3") -> list[Suite]:
    (folder / "p3.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return suites.load([name], Source(executor, folder))


def score(executor: SandboxExecutor, suite: Suite, answers: dict[str, str]) -> SuiteResult:
    return grade(suite, {key: [answer] for key, answer in answers.items()}, executor)


def test_known_solutions_are_right_with_integers_of_any_length(executor: SandboxExecutor, puzzles: Suite) -> None:
    result = score(executor, puzzles, {p.id: p.answer for p in puzzles.problems})
    assert [(row.id, row.score) for row in result.rows] == [(row["id"], 1.0) for row in ROWS[:-1]]
    assert (result.groups, result.no_verdict) == (5, 0)


def test_a_body_or_the_whole_function_is_an_answer(executor: SandboxExecutor, puzzles: Suite) -> None:
    bodies = [
        "return -2", "    return -2", "x = -k\n    return x // 2", "x = -k\nreturn x // 2", "if k:\n    return -2",
        "def sol(k=4):\n    return -2", "def sol():\n    return -2",
        "import math\n\ndef sol(k=4):\n    return -math.isqrt(k)",
        "def root(k):\n    return -2\n\n\ndef sol(k: Optional[int] = 4):\n    return root(k)",
        "def root():\n    return 2\nreturn -root()",
    ]  # fmt: skip
    result = grade(puzzles, {"Square:1": [f"```python\n{body}\n```" for body in bodies]}, executor)
    assert result.rows[1].scores == (1.0,) * len(bodies)


def test_what_an_answer_leaves_out_is_put_back() -> None:
    assert (
        whole("def sol(k=1):", "for i in range(k):\n        return i")
        == "def sol(k=1):\n    for i in range(k):\n        return i"
    )
    assert whole("def sol(k=1):", "no program (") == "def sol(k=1):\n    no program ("


def test_variants_of_a_puzzle_count_once(executor: SandboxExecutor, puzzles: Suite) -> None:
    assert score(executor, puzzles, {"Square:0": "return -7", "Long:0": ROWS[4]["sol_bodies"][0]}).value == 1.5 / 5  # type: ignore[index]


FORGED = {
    "sat of its own": """
    global sat
    sat = lambda *a, **k: True
    return 7
""",
    "another judge": """
    import builtins
    builtins.exec = lambda *a: None
    builtins.sum = builtins.all = lambda *a: 3
    return 7
""",
    "a judge in every frame": """
    import sys
    frame = sys._getframe()
    while frame:
        frame.f_globals["sat"] = frame.f_globals["satisfied"] = lambda *a: True
        frame = frame.f_back
    return 7
""",
    "equal to everything": """
    class Any(int):
        __eq__ = __lt__ = __gt__ = lambda *a: True
        __mul__ = lambda *a: Any()
        __hash__ = None
    return Any(-7)
""",
    "a frame of its own": """
    import os
    for number in range(3, 20):
        try:
            os.write(number, b"\\4\\0\\0\\0\\0" + bytes(8) + b"True")
        except OSError:
            pass
    return 7
""",
    "the verdict": "return True",
    "the verdict printed": "print(True)",
    "the end of the process": "import os\n    os._exit(0)",
    "a leap out of the call": "raise SystemExit(0)",
    "nothing": "pass",
    "an endless loop": "while True: pass",
    "an expression": "return eval('sat.__globals__')",
    "no integer": "return -7.0 if k == 50 else '7'",
    "a huge value": "return [0] * 10 ** 7",
    "a huge integer": "return -10 ** 10 ** 5",
}
FAST = Limits(cpu_seconds=0.3, wall_seconds=20.0, output_bytes=2**20)


@pytest.mark.parametrize("cheat", FORGED)
def test_no_cheat_is_paid(executor: SandboxExecutor, puzzles: Suite, cheat: str) -> None:
    asked = [problem.id for problem in puzzles.problems if problem.group in ("Square", "Truthy", "Long")]
    result = score(executor, replace(puzzles, limits=FAST), dict.fromkeys(asked, FORGED[cheat]))
    assert [row.score for row in result.rows if row.id in asked] == [0.0] * len(asked), result.rows
    assert result.no_verdict == 0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("return [1]", "not satisfied"),  # `sat` gives 1, which is true and is not True
        ("return 3", "sat: error TypeError"),
        ("return 1 / 0", "error"),
        ("return {1, 2}, object()", "unserialisable"),
        ("return range(3)", "unserialisable"),
        ("", "no program"),
        ("x = '" + "a" * 70_000 + "'", "too large"),
    ],
)
def test_only_true_is_right_and_the_reason_is_told(
    executor: SandboxExecutor, puzzles: Suite, answer: str, reason: str
) -> None:
    result = score(executor, puzzles, {"Truthy:0": answer})
    assert [(row.score, row.reason) for row in result.rows if row.id == "Truthy:0"] == [(0.0, reason)]


def test_an_assertion_of_the_puzzle_is_wrong(executor: SandboxExecutor, puzzles: Suite) -> None:
    assert score(executor, puzzles, {"Square:1": "return 2"}).rows[1].reason == "sat: error AssertionError"


def test_the_text_is_shown_where_it_is_asked_for_and_never_the_solution(
    executor: SandboxExecutor, tmp_path: Path
) -> None:
    plain, described = (load(executor, tmp_path, ROWS, name)[0].prompts() for name in ("p3", "p3-docstring"))
    assert "negative root" not in plain["Square:0"]
    assert described["Square:0"].count("negative root") == 2
    assert all("while n * n" not in text for text in (plain["Square:0"], described["Square:0"]))
    assert "def sat(n: int, k=49)" in plain["Square:0"]


def test_puzzles_without_a_known_solution_are_told_apart(executor: SandboxExecutor, tmp_path: Path) -> None:
    known, unknown = load(executor, tmp_path, ROWS)
    assert (unknown.name, [p.id for p in unknown.problems]) == ("p3-open", ["Open:0"])
    assert "Open:0" not in known.prompts()
    assert score(executor, unknown, {"Open:0": "return 1j.real"}).value == 0.0
    assert [suite.name for suite in load(executor, tmp_path, ROWS[:2])] == ["p3"]


def test_a_puzzle_whose_known_solution_fails_has_no_verdict(executor: SandboxExecutor, tmp_path: Path) -> None:
    wrong = {**ROWS[0], "id": "Square:2", "sol_bodies": ["    return 7"]}
    endless = {**ROWS[1], "id": "Square:3", "sol_bodies": ["    return [0] * 10 ** 7"]}
    suite = load(executor, tmp_path, [ROWS[0], wrong, endless])[0]
    assert [p.failure for p in suite.problems] == [
        "", "known solution: not satisfied", "known solution: output_limit"
    ]  # fmt: skip
    assert score(executor, suite, {"Square:0": "return -7"}).value == 1.0


@pytest.mark.parametrize("change", [{"sat": None}, {"sol_bodies": "x"}, {"sol_bodies": [1]}, {"family": 3}])
def test_a_broken_row_is_named(executor: SandboxExecutor, tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(InvalidData, match=f"line 1: field '{next(iter(change))}' must"):
        load(executor, tmp_path, [{**ROWS[0], **change}])


@pytest.mark.slow
def test_real_known_solutions_are_right_but_for_one_whose_value_is_too_large(executor: SandboxExecutor) -> None:
    if not os.environ.get(suites.DATA_VARIABLE) or not (REAL / "p3_dev.jsonl").is_file():
        pytest.skip(f"set {suites.DATA_VARIABLE} to a folder that holds p3_dev.jsonl")
    known, unknown = suites.load(["p3"], Source(executor, REAL))
    failures = {problem.id: problem.failure for problem in known.problems if problem.failure}
    assert failures == {"ExponentialCoinMoves:0": "known solution: output_limit"}
    result = score(executor, known, {p.id: p.answer for p in known.problems})
    assert (result.value, result.n, result.groups, result.no_verdict) == (1.0, 847, 192, 1)
    assert (len(unknown.problems), len({p.group for p in unknown.problems})) == (29, 14)
