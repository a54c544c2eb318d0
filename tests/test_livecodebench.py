"""LiveCodeBench: scripts with standard input, methods with arguments, and hidden tests as the hub packs them."""

import base64
import json
import os
import pickle
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from selfplay_gym import literals, suites
from selfplay_gym.errors import InvalidData
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.grading import grade
from selfplay_gym.livecodebench import converted
from selfplay_gym.results import SuiteResult
from selfplay_gym.suites import Row, Source, Suite
from selfplay_gym.tasks.livecodebench import LIMITS
from selfplay_gym.types import Limits

REAL = Path(os.environ.get(suites.DATA_VARIABLE, ""))
ADD: dict[str, object] = {
    "id": "add", "platform": "atcoder", "question": "Add the numbers of each line.\n\nSample Input 1\n\n1 2\n3 4",
    "starter_code": None,
    "sample_tests": [{"input": "1 2\n3 4\n", "output": "3\n7\n"}, {"input": "5\n", "output": " 5 \r\n\n"}],
}  # fmt: skip
PAIR: dict[str, object] = {
    "id": "pair", "platform": "leetcode", "question": "Is the word as long as the list?",
    "starter_code": "class Solution:\n    def asLong(self, word: str, xs: List[int]) -> bool:\n        ",
    "sample_tests": [
        {"input": 'word = "a, b = 2", xs = [1, 2, -3]', "output": "false"},
        {"input": 'word = "", xs = []', "output": "true"},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def executor() -> Iterator[SandboxExecutor]:
    with SandboxExecutor(workers=1) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def contest(executor: SandboxExecutor, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    suite = load(executor, tmp_path_factory.mktemp("data"), ADD, PAIR)
    return replace(suite, limits=Limits(cpu_seconds=1.0, wall_seconds=20.0, output_bytes=2**22))


def load(executor: SandboxExecutor, folder: Path, *rows: dict[str, object]) -> Suite:
    (folder / "livecodebench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (suite,) = suites.load(["livecodebench"], Source(executor, folder))
    return suite


def score(executor: SandboxExecutor, suite: Suite, answers: dict[str, list[str]]) -> SuiteResult:
    return grade(suite, answers, executor)


# -- scripts -----------------------------------------------------------------------------------------------------------

SUM = "sum(map(int, line.split()))"
READ_AND_PRINTED = [
    f"import sys\nfor line in sys.stdin:\n    print({SUM})",
    f"import sys\nfor line in sys.stdin.read().strip().split('\\n'): print({SUM})",
    f"import sys\nfor line in sys.stdin.buffer.read().splitlines(): sys.stdout.write(str({SUM}) + '\\n')",
    f"import sys\nwhile line := sys.stdin.readline(): print({SUM}, end=' ')",
    f"import sys\nread = sys.stdin.buffer.readline\nwhile line := read(): sys.stdout.buffer.write(b'%d\\n' % {SUM})",
    "try:\n    while True: print(sum(map(int, input('').split())))\nexcept EOFError:\n    pass",
    f"for line in open(0): print({SUM})",
    f"import sys\nlines = sys.stdin.readlines()\nfor line in lines: print({SUM})\nexit()",
    f"import sys\ndef main():\n    for line in sys.stdin: print({SUM})\nif __name__ == '__main__': main(), quit(0)",
    "import sys\nimport numpy as np\nfor line in sys.stdin: print(np.array(line.split(), dtype=int).sum())",
    f"import sys, io\nout = io.StringIO()\nfor line in sys.stdin: print({SUM}, file=out)\nprint(out.getvalue())",
]


def test_a_script_may_read_and_print_as_scripts_do(executor: SandboxExecutor, contest: Suite) -> None:
    result = score(executor, contest, {"add": READ_AND_PRINTED})
    assert result.rows[0].scores == (1.0,) * len(READ_AND_PRINTED)


WRONG = {
    "print(3, 7, 5)": "another output",
    "print('3\\n7', flush=True)\nraise SystemExit(1)": "error",
    "print(3)\nprint(7)\n1 / 0": "error",
    "print(37)": "another output",
    "print('3.0 7.0')": "another output",
    "import sys\nprint(sys.stdin.read())": "another output",
    "def main():\n    print(3, 7)": "another output",
    "import sys\nprint(3, 7, file=sys.stderr)": "another output",
    "import os\nos.write(1, b'3 7')": "error",
    "while True: pass": "timeout",
    "while True: print('3 7' * 10**5)": "memory",
    'for n in range(10 ** 5): print("it\'s", n)': "output_limit",
    "print(open('/etc/passwd').read())": "error",
    "import os\nos._exit(0)": "crashed",
    "print('3 7'": "error",
    "": "no program",
}


def test_another_output_or_end_is_wrong_and_the_reason_is_told(executor: SandboxExecutor, contest: Suite) -> None:
    suite = replace(contest, limits=replace(contest.limits, memory_bytes=2**26))
    for program, reason in WRONG.items():
        row = score(executor, suite, {"add": [program]}).rows[0]
        assert (row.score, row.reason) == (0.0, reason), program


def test_an_output_is_the_words_whatever_stands_between_them(executor: SandboxExecutor, contest: Suite) -> None:
    assert score(executor, contest, {"add": [
        "import sys\nprint('\\n\\n'.join(str(sum(map(int, line.split()))) for line in sys.stdin), '\\t \\r\\n')"
    ]}).rows[0].score == 1.0  # fmt: skip


def test_what_is_expected_is_nowhere_in_the_process_of_an_answer(executor: SandboxExecutor, contest: Suite) -> None:
    searching = """
import sys
seen, frame = "", sys._getframe()
while frame:
    for value in [*frame.f_globals.values(), *frame.f_locals.values()]:
        try:
            seen += repr(value)
        except Exception:
            pass
    frame = frame.f_back
assert {needle} not in seen
"""
    hidden, given = searching.format(needle="chr(39).join(('[', '3', ', '))"), searching.format(needle="'1 ' + '2'")
    patient = replace(contest, limits=LIMITS)
    assert score(executor, patient, {"add": [hidden]}).rows[0].reason == "another output"  # not found
    assert score(executor, patient, {"add": [given]}).rows[0].reason == "error"  # found


# -- methods -----------------------------------------------------------------------------------------------------------

SOLUTION = "class Solution:\n    def asLong(self, word: str, xs: List[int]) -> bool:\n        "


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return len(word) == len(xs)", ""),
        ("return len(word) == len(Counter(xs)) == accumulate and pow(2, 3, 5) or not xs", ""),
        ("return int(len(word) == len(xs))", ""),  # Python's ==
        ("return 'False' if word else 'True'", "another output"),
        ("return [len(word) == len(xs)]", "another output"),
        ("print(len(word) == len(xs))", "another output"),
        ("return True", "another output"),
        ("return xs[0]", "another output"),
        ("while True: pass", "timeout"),
        ("class Any:\n            def __eq__(self, other): return True\n        return Any()", "unserialisable"),
        ("class Any(int):\n            def __eq__(self, other): return True\n        return Any()", "unserialisable"),
    ],
)
def test_a_method_is_judged_by_what_it_returns(
    executor: SandboxExecutor, contest: Suite, body: str, reason: str
) -> None:
    assert score(executor, contest, {"pair": [SOLUTION + body]}).rows[1].reason == reason


@pytest.mark.parametrize("program", ["class Solution: pass", "def asLong(word, xs): return True", "Solution = None"])
def test_without_the_method_an_answer_is_wrong(executor: SandboxExecutor, contest: Suite, program: str) -> None:
    assert score(executor, contest, {"pair": [program]}).rows[1].reason == "error"


# -- what is shown, broken rows ----------------------------------------------------------------------------------------


def test_the_statement_is_shown_and_tests_beyond_it_are_not(executor: SandboxExecutor, tmp_path: Path) -> None:
    hidden = [{"input": "123 456\n", "output": "579"}]
    suite = load(executor, tmp_path, {**ADD, "tests": hidden}, {**PAIR, "tests": PAIR["sample_tests"]})
    assert "Sample Input 1" in suite.prompts()["add"]
    assert all(text not in suite.prompts()["add"] for text in ("123", "579"))
    assert "def asLong(self, word: str, xs: List[int]) -> bool:" in suite.prompts()["pair"]
    assert suite.note == ""
    by_heart = "import sys\nprint({'1 2\\n3 4\\n': '3 7', '5\\n': '5'}.get(sys.stdin.read()))"
    assert score(executor, suite, {"add": [by_heart]}).rows[0].score == 0.0


def test_samples_are_an_upper_bound_and_the_note_says_so(executor: SandboxExecutor, contest: Suite) -> None:
    by_heart = "import sys\nprint({'1 2\\n3 4\\n': '3 7', '5\\n': '5'}[sys.stdin.read()])"
    assert score(executor, contest, {"add": [by_heart]}).rows[0].score == 1.0
    assert "upper bound" in contest.note


def test_scripts_and_methods_are_also_scored_apart(executor: SandboxExecutor, contest: Suite) -> None:
    result = score(executor, contest, {"add": READ_AND_PRINTED[:1]})
    assert (result.value, {name: part.value for name, part in result.parts.items()}) == (
        0.5,
        {"script": 1, "method": 0},
    )


@pytest.mark.parametrize(
    ("row", "change", "message"),
    [
        (ADD, {"sample_tests": []}, "holds no test"),
        (ADD, {"sample_tests": [{"input": 1, "output": "1"}]}, "'input' and 'output' as text"),
        (PAIR, {"starter_code": "def f(x):"}, "class Solution with a method"),
        (PAIR, {"sample_tests": [{"input": "xs = [1", "output": "1"}]}, "no argument list of JSON values"),
        (PAIR, {"sample_tests": [{"input": "xs = [1] ys = 2", "output": "1"}]}, "no argument list of JSON values"),
        (PAIR, {"sample_tests": [{"input": "xs = 1", "output": "True"}]}, "an output must be JSON"),
    ],
)
def test_a_broken_row_is_named(
    executor: SandboxExecutor, tmp_path: Path, row: dict[str, object], change: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidData, match=f"line 1: .*{message}"):
        load(executor, tmp_path, {**row, **change})


def test_a_test_too_large_to_hand_over_is_no_verdict(executor: SandboxExecutor, tmp_path: Path) -> None:
    large = [{"input": "it's large\n" * 10_000, "output": "1"}]
    suite = load(executor, tmp_path, {**ADD, "sample_tests": large}, PAIR)
    assert [problem.failure for problem in suite.problems] == ["a test is too large", ""]


def test_large_tests_are_handed_over(executor: SandboxExecutor, tmp_path: Path) -> None:
    tests = [{"input": "1 2\n" * 100_000, "output": "3\n" * 100_000}]
    suite = load(executor, tmp_path, {**ADD, "sample_tests": tests})
    assert score(executor, suite, {"add": READ_AND_PRINTED[:1]}).value == 1.0
    assert score(executor, suite, {"add": ["print('3 ' * 99_999)"]}).value == 0.0


# -- the hub's rows ----------------------------------------------------------------------------------------------------

SEEN = [{"input": "1 2\n", "output": "3", "testtype": "stdin"}]
HIDDEN = [{"input": "3 4\n", "output": "7", "testtype": "stdin"}]
HUB = {
    "question_title": "Add", "question_content": "Add.", "platform": "atcoder", "question_id": "abc000_a",
    "contest_id": "abc000", "contest_date": "2024-08-03T00:00:00", "starter_code": "", "difficulty": "easy",
    "public_test_cases": json.dumps(SEEN), "private_test_cases": json.dumps(HIDDEN), "metadata": "{}",
}  # fmt: skip


def packed(data: object) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(data))).decode()


@pytest.mark.parametrize("hidden", [json.dumps(HIDDEN), packed(json.dumps(HIDDEN))])
def test_a_row_of_the_hub_becomes_a_row_of_ours(executor: SandboxExecutor, tmp_path: Path, hidden: str) -> None:
    row = converted(Row({**HUB, "private_test_cases": hidden}, "hub"))
    assert row["tests"] == [{"input": "1 2\n", "output": "3"}, {"input": "3 4\n", "output": "7"}]
    suite = load(executor, tmp_path, row)
    assert (suite.problems[0].id, suite.note) == ("abc000_a", "")
    result = score(executor, suite, {"abc000_a": ["print(3)", READ_AND_PRINTED[0]]})
    assert result.rows[0].scores == (0.0, 1.0)


def test_a_call_of_the_hub_has_an_argument_a_line(executor: SandboxExecutor, tmp_path: Path) -> None:
    tests = [{"input": '"ab"\n[1, 2]', "output": "true", "testtype": "functional"}]
    fields = {**HUB, "starter_code": PAIR["starter_code"], "public_test_cases": json.dumps(tests)}
    suite = load(executor, tmp_path, converted(Row({**fields, "private_test_cases": "[]"}, "hub")))
    assert suite.problems[0].task is not None
    assert suite.problems[0].task.inputs == ("'ab', [1, 2]",)
    answer = SOLUTION + "return len(word) == len(xs)"
    assert score(executor, suite, {"abc000_a": [answer]}).value == 1.0


class Touches:
    """What a hostile pickle would do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_no_pickle_is_loaded(tmp_path: Path) -> None:
    for data in (Touches(tmp_path / "touched"), ["a", "b"], 3):
        with pytest.raises(InvalidData, match=r"'private_test_cases' (cannot be unpacked|holds no tests)"):
            converted(Row({**HUB, "private_test_cases": packed(data)}, "hub"))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "hidden", ["", "no base64!", "aGVsbG8=", "[1]", '[{"input": 1}]', "[" * 100_000, packed("[1]")]
)
def test_hidden_tests_that_cannot_be_read_are_named(hidden: str) -> None:
    with pytest.raises(InvalidData, match=r"hub: field 'private_test_cases' (cannot be unpacked|holds no tests)"):
        converted(Row({**HUB, "private_test_cases": hidden}, "hub"))


# -- real data ---------------------------------------------------------------------------------------------------------


SCRIPT = """
import sys
known = {known}
print(*dict(known)[sys.stdin.read()], sep="\\n")
"""
METHOD = """
class Solution:
    def {name}(self, **named):
        return [output for given, output in {known} if eval(f"dict({{given}})") == named][0]
"""


def by_heart(suite: Suite) -> dict[str, list[str]]:
    """Answers that know the samples: the file has no others."""
    answers = {}
    for task, key in ((p.task, p.id) for p in suite.problems if p.task is not None):
        known = [(given, literals.parse(output)) for given, output in zip(task.inputs, task.outputs, strict=True)]
        name = task.message.partition("def ")[2].partition("(")[0]
        answers[key] = [(METHOD if name else SCRIPT).format(name=name, known=known)]
    return answers


def test_real_samples_are_read_and_answers_that_know_them_are_right(executor: SandboxExecutor) -> None:
    if not os.environ.get(suites.DATA_VARIABLE) or not (REAL / "livecodebench_v5_statements.jsonl").is_file():
        pytest.skip(f"set {suites.DATA_VARIABLE} to a folder that holds livecodebench_v5_statements.jsonl")
    (suite,) = suites.load(["livecodebench"], Source(executor, REAL))
    result = score(executor, suite, by_heart(suite))
    assert (result.n, result.value, result.no_verdict) == (279, 1.0, 0)
    assert {name: part.n for name, part in result.parts.items()} == {"script": 175, "method": 104}
    outputs = [output for p in suite.problems if p.task for output in p.task.outputs]
    assert outputs.count("[]") == 3  # two outputs of nothing, and one list without items
