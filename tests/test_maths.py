"""Answers of mathematics: what is taken out of a completion, when two answers are the same, and what stays outside."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from selfplay_gym import maths, suites
from selfplay_gym.errors import InvalidConfig, InvalidData
from selfplay_gym.executors import connection
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.grading import grade
from selfplay_gym.maths import Comparison, Rule, compare, final_answer
from selfplay_gym.maths_program import PROGRAM
from selfplay_gym.results import Report, SuiteResult
from selfplay_gym.suites import Source, Suite
from selfplay_gym.tasks.maths import _SETS
from selfplay_gym.types import Execution, Job, Limits, Status

PAIRS = [
    json.loads(line) for line in (Path(__file__).parent / "fixtures" / "maths_pairs.jsonl").read_text().splitlines()
]
REAL = Path(os.environ.get(suites.DATA_VARIABLE, ""))
NAMES = [name for name in suites.SUITES.names() if name in _SETS]

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="needs the extra eval: pip install -e '.[eval]'"
)
needs_data = pytest.mark.skipif(
    not os.environ.get(suites.DATA_VARIABLE) or not (REAL / "aime24.jsonl").is_file(),
    reason=f"set {suites.DATA_VARIABLE} to a folder that holds aime24.jsonl",
)


@pytest.fixture(scope="module")
def executor() -> Iterator[SandboxExecutor]:
    with SandboxExecutor(workers=1) as sandbox:
        yield sandbox


# -- extraction --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"\boxed{5}", "5"),
        (r"first \boxed{4}, no: $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{ x }", "x"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\fbox{9}", "9"),
        (r"\boxed{3} and then \boxed{4", "3"),
        (r"stray } and { but \boxed{8}", "8"),
        (r"\boxed{6} The answer is 7.", "6"),
        ("The answer is 42. I am sure.", "42"),
        ("the final answer is: **1,234**", "1,234"),
        ("Answer: $x = 3$", "$x = 3$"),
        ("3 + 4 = 7\n#### 7", "7"),
        ("The answer is 3.\nNo, the answer is 3.5.", "3.5"),
        ("The answer is", ""),
        ("It costs 5 dollars, so 3 * 5 = 15 dollars in all", "15"),
        ("about 1,234.50 m", "1,234.50"),
        (r"so \frac{3}{4} of it", r"\frac{3}{4}"),
        ("down by -3", "-3"),
        ("none", ""),
        (r"\boxed{1}" + " " * 60_000 + "2", "2"),
        ("", ""),
    ],
)
def test_the_last_box_then_the_stated_answer_then_the_last_number(completion: str, answer: str) -> None:
    assert final_answer(completion) == answer


# -- the levels --------------------------------------------------------------------------------------------------------


@needs_math_verify
def test_verdicts_are_those_of_the_list_of_pairs(executor: SandboxExecutor) -> None:
    fast = [compare(pair["reference"], pair["answer"]) for pair in PAIRS]
    jobs = [maths.job(p["reference"], p["answer"]) for p, found in zip(PAIRS, fast, strict=True) if found is None]
    runs = iter(executor.run(jobs))
    found = [comparison or maths.judged(next(runs)[0]) for comparison in fast]
    wrong = [
        (pair, c) for pair, c in zip(PAIRS, found, strict=True) if (c.equal, c.level) != (pair["equal"], pair["level"])
    ]
    assert wrong == []


def test_the_list_is_long_varied_and_says_why_where_it_differs_from_math_verify() -> None:
    assert len({(pair["reference"], pair["answer"]) for pair in PAIRS}) == len(PAIRS) >= 400
    assert {"fraction", "set", "interval", "unit", "percent", "text", "matrix", "cheat"} <= {p["kind"] for p in PAIRS}
    assert min(Counter(pair["equal"] for pair in PAIRS).values()) > 150
    other = [pair for pair in PAIRS if "math_verify" in pair]
    assert all(pair["math_verify"] is not pair["equal"] and len(pair["why"]) > 10 for pair in other)
    assert len(other) <= len(PAIRS) // 20


RAW = r"""
from math_verify import parse, verify
def f(reference, answer):
    gold, given = (parse("\\boxed{" + text + "}", parsing_timeout=None) for text in (reference, answer))
    return verify(gold, given, timeout_seconds=None)
"""


@pytest.mark.slow
@needs_math_verify
def test_the_list_tells_what_math_verify_itself_says(executor: SandboxExecutor) -> None:
    limits = Limits(cpu_seconds=1.0, wall_seconds=20.0, memory_bytes=2**29)
    texts = [f"{pair['reference']!r}, {pair['answer']!r}" for pair in PAIRS]
    runs = executor.run([Job(RAW, (text,), policy="plain", limits=limits) for text in texts])
    said = [run[0].value == "True" for run in runs]
    assert [p for p, own in zip(PAIRS, said, strict=True) if own is not p.get("math_verify", p["equal"])] == []


@pytest.mark.parametrize(
    ("reference", "answer", "equal"),
    [
        ("7/4", "1 3/4", True),
        (r"1\frac{3}{4}", "1 3/4 cups", True),
        ("-1.75", "-1 3/4", True),
        ("13/4", "1 3/4", False),
        ("1.5", "1.0 1/2", None),
        ("1", "1 0/0", None),
    ],
)
def test_a_mixed_number_may_be_written_without_latex(reference: str, answer: str, equal: bool | None) -> None:
    found = compare(reference, answer)
    assert (found and found.equal) is equal


def test_thousands_are_no_unit() -> None:
    for word in ("hundreds", "thousands", "millions", "dozens"):
        assert compare("5", f"5 {word}") != Comparison(True, "numeric"), word


@pytest.mark.parametrize(
    ("reference", "answer", "rule", "equal"),
    [
        ("2.5e3", "2520", Rule(relative=Fraction(1, 100)), True),
        ("2.5e3", "2530", Rule(relative=Fraction(1, 100)), False),
        ("-2.5e-9", "-2.51e-9", Rule(relative=Fraction(1, 100)), True),
        ("2.5", "-2.5", Rule(relative=Fraction(1, 100)), False),
        ("4.2", "4.3", Rule(absolute=Fraction(1, 10)), True),
        ("4.2", "4.31", Rule(absolute=Fraction(1, 10)), False),
        ("$69$,$84$", "84, 69", Rule(several=True), True),
        ("-1,0,1", "1 and 0 and -1", Rule(several=True), True),
        ("8,221", "221,8", Rule(several=True), True),
        ("(1,1), (3, 2)", "(3,2),(1,1)", Rule(several=True), True),
        (r"\frac{1}{2},3", "3, 0.5", Rule(several=True), True),
    ],
)
def test_a_rule_widens_what_is_right(reference: str, answer: str, rule: Rule, equal: bool) -> None:
    found = compare(reference, answer, rule)
    assert found is not None
    assert found.equal is equal


@needs_math_verify
@pytest.mark.parametrize(
    ("reference", "answer", "rule", "equal"),
    [
        (r"\frac{\pi}{4}", "0.785", Rule(relative=Fraction(1, 100)), True),
        (r"\frac{\pi}{4}", "0.785", Rule(), False),
        (r"\frac{\pi}{4}", "0.8", Rule(relative=Fraction(1, 100)), False),
        (r"\frac{\pi}{4}", "x", Rule(relative=Fraction(1, 100)), False),
        ("11,19,37", "11,19", Rule(several=True), False),
        ("11,19,37", "11,19,37,73", Rule(several=True), False),
        (r"\sqrt{8}, 1", r"1, 2\sqrt{2}", Rule(several=True), True),
        (r"f(x)=x,f(x)=2-x", r"f(x)=2-x, f(x)=x", Rule(several=True), True),
    ],
)
def test_a_rule_holds_in_the_sandbox_too(
    executor: SandboxExecutor, reference: str, answer: str, rule: Rule, equal: bool
) -> None:
    found = compare(reference, answer, rule)
    assert found is None or found.equal is equal
    if found is None:
        assert maths.judged(executor.run([maths.job(reference, answer, rule)])[0][0]) == Comparison(
            equal, "symbolic", "" if equal else "another value"
        )


# Sums of large parts that cancel swallow what they are subtracted from, and math-verify takes what is small for 0.
_SWALLOWS = r"1.0 \cdot 10^{30} - 10^{30} \cdot 1.0"
_SWALLOWS_LETTERS = r"1.0 \cdot 10^{30}x + 1.0 \cdot 10^{30} - 10^{30} \cdot 1.0x - 10^{30} \cdot 1.0"
FIT_ALL = {
    "floats": (_SWALLOWS, ("5", "2.5", r"\frac{1}{3}", "x=5", r"\{7\}")),
    "floats in a set": (rf"\{{{_SWALLOWS}\}}", ("5", r"\{7\}")),
    "floats in an equation": (rf"x = {_SWALLOWS}", ("5", "x=5")),
    "floats with letters": (_SWALLOWS_LETTERS, ("5", r"\sqrt{3}", r"\pi", "x+1", "x^2+1", "y=2x+3", "1,2,5")),
    "a list of floats": (f"{_SWALLOWS}, {_SWALLOWS}+1", ("1,2", r"(1,2)")),
    "integers": ("10^{30} - 10^{30}", ("2.5", "0.001")),
    "nothing": ("0+0", ("2.88e-19", "4.6e-24", r"10^{-20}\pi")),
    "nothing with a letter": ("0x", ("2.88e-19",)),
    "a smaller one": (r"\frac{10^{-20}}{3}\pi", (r"10^{-20}\pi", "2.88e-19")),
}


@needs_math_verify
@pytest.mark.parametrize("name", FIT_ALL)
def test_no_answer_fits_every_reference(executor: SandboxExecutor, name: str) -> None:
    answer, references = FIT_ALL[name]
    for rule in (Rule(), Rule(relative=Fraction(1, 100)), Rule(several=True)):
        assert [compare(reference, answer, rule) for reference in references] == [None] * len(references)
        runs = executor.run([maths.job(reference, answer, rule) for reference in references])
        assert [maths.judged(run[0]) for run in runs] == [Comparison(False, "symbolic", "another value")] * len(runs)


@needs_math_verify
@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        (r"\frac{1}{3}x + 1", "1 + x/3"),
        (r"0.5x^2", r"\frac{x^2}{2}"),
        (r"\{\frac{1}{3}, 2\}", r"\{2, 0.333333\}"),
        (r"[\frac{1}{3}, 2)", "[0.333333, 2)"),
        (r"\{x, x^2+x\}", r"\{x(x+1), x\}"),
        (r"(-\infty, 0.5) \cup (1, \infty)", r"(-\infty, \frac{1}{2}) \cup (1, \infty)"),
        (r"\frac{\pi}{4}", "0.785398"),
        (r"\begin{pmatrix} 0.5 \\ 1 \end{pmatrix}", r"\begin{pmatrix} 1/2 \\ 1 \end{pmatrix}"),
        ("0", r"\sqrt{2}\sqrt{3} - \sqrt{6}"),
        ("y = 2x + 0.5", r"2y = 4x + 1"),
        (r"2 \times 10^{-20}\pi", r"\pi \cdot 2 \cdot 10^{-20}"),
        ("f(x) + 1", "1 + f(x)"),
        (r"10^{400}\pi", r"\pi 10^{400}"),
    ],
)
def test_what_was_right_by_value_still_is(executor: SandboxExecutor, reference: str, answer: str) -> None:
    assert compare(reference, answer) is None
    assert executor.run([maths.job(reference, answer)])[0][0].value == "True"


@needs_math_verify
def test_no_finite_number_is_within_a_share_of_infinity(executor: SandboxExecutor) -> None:
    rule = Rule(relative=Fraction(1, 100))
    pairs = ((r"\infty", "5"), (r"-\infty", r"\pi"), ("5", r"\infty"), (r"\infty", r"-\infty"))
    runs = executor.run([maths.job(reference, answer, rule) for reference, answer in pairs])
    assert [run[0].value for run in runs] == ["False"] * len(pairs)


# -- texts that are meant to hurt --------------------------------------------------------------------------------------

HOSTILE = {
    "tower": "10^{10^{10}}",
    "towers": "9^{9^{9^{9}}}",
    "exponent": "1e999999999",
    "exponent of seven digits": "7e9999999",
    "power of seven digits": "7^{9999999}",
    "power of a small number": "0." + "0" * 1900 + "1^{1000}",
    "5000 digits": "9" * 5000,
    "1900 digits": "9" * 1900,
    "factorial": "(10^{9})!",
    "braces": "{" * 990 + "1" + "}" * 990,
    "brackets": "(" * 900 + "1" + ")" * 900,
    "roots": r"\sqrt{" * 240 + "2" + "}" * 240,
    "letters": "x" * 10**6,
    "digits": "7" * 10**6,
    "open braces": "{" * 10**6,
    "open boxes": r"\boxed{" * 150_000,
    "blanks": " " * 10**6 + "1",
    "commas": "1," * 500_000,
    "stated": "answer is " * 100_000,
    "minus": "-" * 10**6,
    "number signs": "#" * 10**6,
    "a long unit": "1 " + "abc " * 450,
    "a long word": "1 " + "a" * 1900 + "!",
    "blanks between": "1" + " " * 1990 + "z",
    "equations": "x=" * 900,
    "indices": "x_" * 900 + "=1",
    "fractions": r"\frac " * 300,
    "code": '__import__("os").system("id")',
    "more code": "().__class__.__bases__[0].__subclasses__()",
    "a loop": 'exec("while True: pass")',
    "NUL": "1\x002",
    "a lone surrogate": "\ud800 1",
    "a box in a box": r"17} \boxed{18",
    "a comment": "17 % 18",
    "other digits": "\u0661\u0668",
    "backwards": "\u202e81",
    "backslashes": "\\" * 1999,
    "sum": r"\sum_{k=1}^{10^{12}} k^{k}",
    "integral": r"\int_0^\infty \frac{\sin(x^x)}{\ln(x!)} dx",
    "expansion": "(x+y+z+w)^{400}",
    "sines": r"\sin(" * 40 + "x" + ")" * 40,
    "nan": "nan",
}  # fmt: skip
RIGHT = r"\frac{\sqrt{3}}{3}"


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_this_process_never_works_long_on_a_text(text: str) -> None:
    """A second of its own time is far beyond what any of them takes, and far below what a bad pattern does."""
    started = time.process_time()
    for completion in (text, r"so \boxed{" + text + "}", "The answer is " + text):
        answer = final_answer(completion)
        for rule in (Rule(), Rule(several=True)):
            if compare(RIGHT, answer, rule) is None:
                maths.job(RIGHT, answer, rule)
            compare("19", answer, rule)
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize(
    "text", ["10^{10^{10}}", "9^{9^{9^{9}}}", "1e999999999", "9" * 1900, "-10^{99999999999}", "2^{-10^9}", "7e-9999999"]
)
def test_numbers_beyond_computing_differ_from_those_within_at_no_cost(text: str) -> None:
    assert compare("18", text) == Comparison(False, "numeric", "another number")
    assert compare(text, text) == Comparison(True, "exact")


@pytest.mark.slow
@needs_math_verify
def test_nothing_overruns_its_limit_scores_or_harms_the_sandbox(executor: SandboxExecutor) -> None:
    limits = Limits(cpu_seconds=0.3, wall_seconds=10.0, memory_bytes=2**29)
    asked = [text for text in HOSTILE.values() if compare(RIGHT, text) is None]
    assert len(asked) > 15
    executor.run([maths.job("1", r"2\pi")])
    before = [server.alive for server in executor._pool.servers["A maths"]]
    runs = executor.run([replace(maths.job(RIGHT, text), limits=limits) for text in asked])
    found = [maths.judged(run[0]) for run in runs]
    assert [(text[:40], c) for text, c in zip(asked, found, strict=True) if c.equal is not False] == []
    assert max(run[0].cpu_seconds for run in runs) < 1.0
    assert any(c.reason == "cannot be compared: timeout cpu" for c in found)
    assert [server.alive for server in executor._pool.servers["A maths"]] == before == [True]
    assert executor.run([maths.job(RIGHT, r"1/\sqrt{3}")])[0][0].value == "True"


@needs_math_verify
def test_the_parser_is_never_loaded_here() -> None:
    script = (
        "import sys\nfrom selfplay_gym import maths\nfrom selfplay_gym.executors.sandbox import SandboxExecutor\n"
        "with SandboxExecutor(workers=1) as executor:\n"
        "    print(executor.run([maths.job('2', r'\\sqrt{4}')])[0][0].value)\n"
        "print(*{'sympy', 'antlr4', 'math_verify', 'latex2sympy2_extended'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]


# Texts that a reader with `eval` or a printer of code would run.
CODE = (
    "__import__('os').system('id')", r"\operatorname{exec}(1)", r"\operatorname{eval}(x)^5 + 1",
    r"\text{__import__}(x)", r"\text{exec('1')}(x)", r"f_{exec}(2)", r"x_{).__class__}", r"\variable{exec}(1)",
    r"\int_0^1 \operatorname{exec}(x) dx", r"\sum_{k=1}^{5} \operatorname{exec}(k)", r"x > \operatorname{exec}(x)",
    r"\det \begin{pmatrix} \operatorname{exec}(x) & 1 \\ 2 & 3 \end{pmatrix}", r"\operatorname{lambdify}(1)", "lambda",
    r"x^5 - \operatorname{exec}(x) + 1 = 0", r"\lim_{x \to 0} \operatorname{exec}(x)", "2**3*(1+1)", "(1).real + 1",
    r"\max(exec, 2)", r"\overline{exec}(x)",
    r"\sum_{k=1}^{\infty} \frac{\operatorname{exec}(5)}{k^2}", r"1 + 2\operatorname{open}(3)", "exec(1) 5+5",
)  # fmt: skip
WATCHED = (
    """
import builtins
compiled = []
def watched(real):
    def call(code, *rest, **more):
        compiled.append(code if isinstance(code, str) else " ".join(getattr(code, "co_names", ())))
        return real(code, *rest, **more)
    return call
for name in ("eval", "exec", "compile"):
    setattr(builtins, name, watched(getattr(builtins, name)))
"""
    + PROGRAM
    + """
def g(reference, answers):
    for answer in answers:
        f(reference, answer, 0.01)
    return sorted(set(compiled))
"""
)


@needs_math_verify
def test_no_word_of_an_answer_is_ever_compiled(executor: SandboxExecutor) -> None:
    references = ("x^5 - x - 1 = 0", RIGHT)
    texts = [f"{reference!r}, {list(CODE)!r}" for reference in references]
    limits = replace(maths.LIMITS, cpu_seconds=20.0, wall_seconds=60.0, output_bytes=2**16)
    jobs = [Job(WATCHED, (text,), entry="g", policy="plain", limits=limits) for text in texts]
    compiled = {text for run in executor.run(jobs) for text in ast.literal_eval(run[0].value or "")}
    assert "Integer (5 )" in compiled  # they were watched
    own = r"(?:Integer|Float|Add|Mul|Pow|[\s().'0-9/*+-])*|from [\w.]+ import [\w*, ]+|\s*def monomial_\w+\(.*"
    assert [text for text in compiled if not re.fullmatch(own, text, re.DOTALL)] == []


# -- who is to blame ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("execution", "equal", "reason"),
    [
        (Execution(Status.OK, "True"), True, ""),
        (Execution(Status.OK, "False"), False, "another value"),
        (Execution(Status.OK, "'True'"), False, "cannot be compared: ok"),
        (Execution(Status.TIMEOUT, error_type="cpu"), False, "cannot be compared: timeout cpu"),
        (Execution(Status.MEMORY), False, "cannot be compared: memory"),
        (Execution(Status.CRASHED, error_type="SIGSEGV"), False, "cannot be compared: crashed SIGSEGV"),
        (Execution(Status.ERROR, error_type="RecursionError"), False, "cannot be compared: error RecursionError"),
        (Execution(Status.ERROR, error_type="ModuleNotFoundError"), None, "math-verify is missing"),
    ],
)
def test_what_an_answer_can_cause_is_wrong_and_what_it_cannot_is_no_verdict(
    execution: Execution, equal: bool | None, reason: str
) -> None:
    found = maths.judged(execution)
    assert (found.equal, found.level) == (equal, "symbolic")
    assert reason in found.reason


@needs_math_verify
def test_a_server_without_math_verify_gives_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_folder_of", lambda package: "")
    with SandboxExecutor(workers=1) as bare:
        found = maths.judged(bare.run([maths.job("2", r"\sqrt{4}")])[0][0])
    assert (found.equal, found.reason.startswith("no verdict: math-verify is missing")) == (None, True)


@needs_math_verify
def test_a_maths_server_killed_in_mid_batch_costs_no_verdict(executor: SandboxExecutor) -> None:
    jobs = [maths.job(rf"{n}\sqrt{{2}}", rf"\sqrt{{{2 * n * n}}}") for n in range(2, 42)]
    executor.run(jobs[:1])
    (server,) = executor._pool.servers["A maths"]
    killer = threading.Timer(0.3, os.kill, (server._keeper.pid, signal.SIGKILL))
    killer.start()
    runs = executor.run(jobs)
    killer.join()
    assert not server.alive
    assert [run[0].value for run in runs] == ["True"] * len(jobs)


@needs_math_verify
@pytest.mark.parametrize("answer", [r"\sum_{k=1}^{\infty} \frac{1}{k^2}", r"\gcd(1.5, 2)", r"5 \mod 2.5"])
def test_what_sympy_cannot_evaluate_is_wrong_and_no_excuse(executor: SandboxExecutor, answer: str) -> None:
    for reference in ("5", r"\pi"):
        execution = executor.run([maths.job(reference, answer, Rule(relative=Fraction(1, 100)))])[0][0]
        assert maths.judged(execution) == Comparison(False, "symbolic", "another value")


# -- suites ------------------------------------------------------------------------------------------------------------


def write(folder: Path, name: str, *rows: dict[str, Any]) -> Path:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def load(executor: SandboxExecutor, name: str, folder: Path, style: str = "azr") -> Suite:
    return suites.load([name], Source(executor, folder, style))[0]


def scores(result: SuiteResult) -> list[float | None]:
    return [row.score for row in result.rows]


def answered(suite: Suite, *answers: str) -> dict[str, list[str]]:
    return {problem.id: [answer] for problem, answer in zip(suite.problems, answers, strict=True)}


LISTS = (
    {"id": "a", "question": "Which?", "context": "Let it be.", "answer": "$2$,$3$", "is_multiple_answer": True},
    {
        "id": "b",
        "question": "How much?",
        "context": None,
        "answer": "4.2",
        "is_multiple_answer": False,
        "error": "1e-1",
    },
    {"id": "c", "question": "Where?", "context": None, "answer": r"$\frac{\pi}{2}$", "is_multiple_answer": False},
)


@needs_math_verify
def test_a_result_tells_the_level_of_every_answer(executor: SandboxExecutor, tmp_path: Path) -> None:
    suite = load(executor, "olympiadbench", write(tmp_path, "olympiadbench", *LISTS))
    texts = (r"<answer>\boxed{3, 2}</answer>", "The answer is 4.25", r"so $\boxed{\pi/2}$")
    result = grade(suite, answered(suite, *texts), executor)
    assert scores(result) == [1.0, 1.0, 1.0]
    assert [row.levels for row in result.rows] == [("exact",), ("numeric",), ("symbolic",)]
    assert result.decided == {"exact": 1, "numeric": 1, "symbolic": 1}
    rows: Any = result.as_dict()["rows"]
    assert rows[2] == {"id": "c", "score": 1.0, "reason": "", "levels": ("symbolic",)}
    report = Report((result,), "m")
    assert "decided: 1 exact, 1 numeric, 1 symbolic" in str(report.table().caption)
    assert report.versions["math-verify"] != "absent"


@needs_math_verify
def test_part_of_a_list_is_wrong(executor: SandboxExecutor, tmp_path: Path) -> None:
    suite = load(executor, "olympiadbench", write(tmp_path, "olympiadbench", *LISTS))
    texts = (r"\boxed{2}", r"\boxed{4.31}", r"\boxed{\pi}")
    assert scores(grade(suite, answered(suite, *texts), executor)) == [0.0, 0.0, 0.0]


@needs_math_verify
def test_prompts_show_the_question_and_its_context_and_never_the_answer(
    executor: SandboxExecutor, tmp_path: Path
) -> None:
    folder = write(tmp_path, "olympiadbench", *LISTS)
    for style in ("azr", "chat", "compact"):
        prompts = load(executor, "olympiadbench", folder, style).prompts()
        assert "Let it be.\n\nWhich?" in prompts["a"]
        assert "Let it be" not in prompts["b"]
        assert all(r"\boxed{}" in prompt for prompt in prompts.values())
        assert "4.2" not in prompts["b"]


@needs_math_verify
def test_only_numeric_rows_of_asdiv_are_asked(executor: SandboxExecutor, tmp_path: Path) -> None:
    rows = ({"id": "n", "question": "How many?", "answer": "9", "numeric": True},)
    suite = load(executor, "asdiv", write(tmp_path, "asdiv", *rows, {**rows[0], "id": "t", "numeric": False}))
    assert ([problem.id for problem in suite.problems], suite.note) == (["n"], "rows with a numeric answer")


@needs_math_verify
def test_minerva_takes_numbers_within_a_hundredth_and_others_do_not(executor: SandboxExecutor, tmp_path: Path) -> None:
    row = {"id": "r", "question": "How much?", "answer": "4.5e33"}
    write(tmp_path, "minerva_math", row)
    write(tmp_path, "math500", row)
    for name, score in (("minerva", 1.0), ("math500", 0.0)):
        suite = load(executor, name, tmp_path)
        assert scores(grade(suite, answered(suite, r"\boxed{4.53 \times 10^{33}}"), executor)) == [score]


@needs_math_verify
def test_an_error_that_is_no_number_is_named(executor: SandboxExecutor, tmp_path: Path) -> None:
    folder = write(tmp_path, "olympiadbench", {**LISTS[1], "error": "small"})
    with pytest.raises(InvalidData, match=r"olympiadbench\.jsonl, line 1: field 'error' must be a number, got 'small'"):
        load(executor, "olympiadbench", folder)


def test_without_math_verify_a_suite_says_what_to_install(
    executor: SandboxExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidConfig, match=r"suite svamp needs math-verify: pip install 'selfplay-gym\[eval\]'"):
        load(executor, "svamp", tmp_path)


@needs_data
@needs_math_verify
@pytest.mark.parametrize("name", NAMES)
def test_real_references_score_100_and_shuffled_ones_next_to_nothing(executor: SandboxExecutor, name: str) -> None:
    suite = load(executor, name, REAL)
    assert len(suite.problems) >= 30
    right = {problem.id: [problem.answer] for problem in suite.problems}
    result = grade(suite, right, executor)
    assert (result.value, result.no_verdict) == (1.0, 0)
    few = replace(suite, problems=suite.problems[:60])  # a symbolic comparison takes a fiftieth of a second and more
    shuffled = [problem.answer for problem in few.problems]
    random.Random(0).shuffle(shuffled)
    wrong = grade(few, answered(few, *shuffled), executor)
    assert wrong.no_verdict == 0
    assert (wrong.value or 0.0) <= 0.15
