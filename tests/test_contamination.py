"""What of held-out sets stands in an archive is found, named with its tasks, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_gym.archive import Archive
from selfplay_gym.contamination import SIGNS, TASKS_NAMED, Contamination, Index, Overlap, contamination, ngrams
from selfplay_gym.errors import InvalidConfig, InvalidData, UnknownId
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.gate import Candidate, Gate, behaviours
from selfplay_gym.report import write_report
from selfplay_gym.suites import Problem, Suite
from selfplay_gym.tasks.deduction import Deduction
from selfplay_gym.types import Proposal, Task
from tests.test_cli import Run, one_sandbox, run  # noqa: F401  fixtures
from tests.test_report import Page, make_run

FIXTURES = Path(__file__).parent / "fixtures" / "suites"
HELD_OUT = """def f(items):
    total = 0
    for number, item in enumerate(items):
        if item % 2 == 0:
            total += item * number
    return total"""
RENAMED = """def f(xs):
    'Add up what is even.'
    s = 0  # the sum
    for i, x in enumerate(xs):
        if x % 2 == 0:
            s += x * i
    return s"""
OTHERWISE = "def f(a):\n    return sum(n * v for n, v in enumerate(a) if not v & 1)"
UNLIKE = "def f(a):\n    return a[::-1]"
QUESTION = "A baker makes seven loaves each morning and sells three of them before noon, how many are left in the shop?"


def suite(*problems: Problem) -> Suite:
    return Suite("held", {"deduction": Deduction()}, problems, "0" * 64)


def program(text: str, key: str = "p", given: str = "[4, 7, 2]", output: str = "4") -> Problem:
    return Problem(key, Task("deduction", text, (given,), (output,)), output)


def stored(*tasks: Task) -> Archive:
    archive = Archive(":memory:")
    for task in tasks:
        archive.add_task(task, 1)
    return archive


def task(text: str, message: str = "", behaviour: str = "", given: str = "[1, 2]") -> Task:
    return Task("deduction", text, (given,), ("0",), message, behaviour)


def looked(archive: Archive, *problems: Problem, executor: Any = None) -> Overlap:
    index = Index([suite(*problems)])
    if executor is not None:
        index.look_at_behaviour(archive, executor, lambda done, total: None)
    index.look_at_texts(archive, archive.statistics().programs, lambda done, total: None)
    (found,) = index.overlaps()
    return found


def test_a_program_is_found_under_other_names_and_with_other_remarks() -> None:
    archive = stored(task(UNLIKE), task(RENAMED), Task("abduction", RENAMED, ("[3]",), ("0",)))
    found = looked(archive, program(UNLIKE + "  + a", "other"), program(HELD_OUT, "same"))
    assert [(problem.id, problem.tasks) for problem in found.touched] == [("same", {"program": [2, 3]})]
    assert (found.problems, found.told["program"], found.count("program")) == (2, 2, 1)


def test_a_program_that_is_written_otherwise_is_found_by_what_it_does(sandbox: SandboxExecutor) -> None:
    (behaviour,) = behaviours([task(OTHERWISE)], sandbox)
    archive = stored(task(UNLIKE), task(OTHERWISE, behaviour=behaviour))
    found = looked(archive, program(HELD_OUT), program("def f(items):\n    return sum(items)", "q"), executor=sandbox)
    assert [(problem.id, problem.tasks) for problem in found.touched] == [("p", {"behaviour": [2]})]
    assert found.told == {"program": 2, "behaviour": 2, "ngram": 1}


def test_the_same_on_the_probes_alone_is_another_function(sandbox: SandboxExecutor) -> None:
    only_there = f"{HELD_OUT} if items != [4, 7, 2] else 5"
    (behaviour,) = behaviours([task(OTHERWISE)], sandbox)
    assert behaviours([task(only_there)], sandbox) == [behaviour]
    archive = stored(task(OTHERWISE, behaviour=behaviour))
    problems = program(only_there, "unlike", output="5"), program(only_there, "like", "[3]", "0")
    assert [problem.id for problem in looked(archive, *problems, executor=sandbox).touched] == ["like"]


def test_behaviour_is_measured_as_the_gate_does(sandbox: SandboxExecutor) -> None:
    (admitted,) = Gate(sandbox).judge([Candidate("deduction", Proposal(HELD_OUT, ("[4, 7, 2]",)))])
    assert isinstance(admitted, Task)
    assert behaviours([task(RENAMED), task(HELD_OUT, given="range(3)")], sandbox) == [admitted.behaviour, ""]


def test_a_run_of_words_is_found_in_programs_and_messages() -> None:
    maths = Problem("q", Task("maths", "", (QUESTION,), ("4",)), r"\boxed{4}")
    archive = stored(task(UNLIKE, QUESTION.upper()[:60]), task(UNLIKE, QUESTION.upper().replace(",", " -")))
    found = looked(archive, maths, Problem("short", Task("maths", "", ("How many?",), ("4",))))
    (touched,) = found.touched
    assert (touched.id, touched.tasks, found.told["ngram"]) == ("q", {"ngram": [2]}, 1)
    assert touched.example.startswith("a baker makes seven loaves")
    assert 0.5 < touched.ngrams < 1  # the answer belongs to the problem too, and is not in the message


def test_only_the_first_tasks_are_named() -> None:
    archive = stored(*(task(f"{RENAMED}  # {n}") for n in range(2 * TASKS_NAMED)))
    assert looked(archive, program(HELD_OUT)).touched[0].tasks["program"] == [1, 2, 3, 4, 5]


def test_a_problem_without_a_task_is_no_trouble() -> None:
    found = looked(stored(task(HELD_OUT)), Problem("broken", None, failure="reference: error"))
    assert (found.touched, found.told) == ((), dict.fromkeys(SIGNS, 0))


@given(st.lists(st.sampled_from(["a", "B", "f(x)", "1,", "\n"]), max_size=30), st.integers(1, 5))
def test_ngrams_of_a_text_are_those_of_any_text_around_it(words: Sequence[str], n: int) -> None:
    inner, outer = " ".join(words), f"before {' '.join(words)} after"
    found = ngrams(inner, n)
    assert all(len(ngram) == n for ngram in found)
    assert set(found) <= set(ngrams(outer, n))
    assert len(ngrams(inner, 1)) - n + 1 == len(found) or not found


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = make_run(tmp_path / "run", archive=False)
    code = json.loads((FIXTURES / "cruxeval.jsonl").read_text().splitlines()[0])["code"]
    with Archive(folder / "archive.sqlite") as archive:
        archive.add_task(task(code.replace("\n", "  # mine\n", 1)), 1)
    return folder


def test_a_run_is_compared_with_suites_by_name(run_folder: Path, sandbox: SandboxExecutor) -> None:
    found = contamination(run_folder, ["cruxeval", "list_functions"], sandbox, data_dir=FIXTURES)
    assert [(overlap.suite, len(overlap.touched)) for overlap in found.suites][:2] == [
        ("cruxeval-i", 1),
        ("cruxeval-o", 1),
    ]
    written: Any = json.loads(json.dumps(found.as_dict()))
    assert written["suites"][0]["counts"]["program"] == 1
    assert written["suites"][0]["touched"][0]["tasks"]["program"] == [1]
    alone = contamination(run_folder / "archive.sqlite", ["cruxeval-i"], sandbox, data_dir=FIXTURES)
    assert alone.suites == found.suites[:1]


def test_a_report_has_a_section_on_it(run_folder: Path, sandbox: SandboxExecutor) -> None:
    found = contamination(run_folder, ["cruxeval"], sandbox, data_dir=FIXTURES)
    text = Page(write_report(run_folder, found.parts()).read_text(encoding="utf-8")).text
    assert "Held-out problems in the archive" in text
    assert "cruxeval-i: r0 (program" in text
    assert "Held-out problems" not in Page(write_report(run_folder).read_text(encoding="utf-8")).text


@pytest.mark.usefixtures("one_sandbox")
def test_the_commands_look_where_they_are_told(run_folder: Path, run: Run) -> None:  # noqa: F811
    where = ("--data-dir", FIXTURES)
    answer = run("contamination", run_folder, "--suite", "cruxeval-i", *where, "--json", "-")
    assert json.loads(answer.out)["suites"][0]["counts"] == {"program": 1, "behaviour": 0, "ngram": 0}
    assert "1/3" in run("contamination", run_folder, "--suite", "cruxeval-i:3", *where).out
    assert run("report", run_folder, "--suite", "cruxeval-i", *where).code == 0
    assert "Held-out problems" in (run_folder / "report.html").read_text()
    told = run("contamination", run_folder, "--suite", "nano-easy,list_functions", "--skip-missing")
    assert "warning: list_functions is left out" in told.err
    assert (
        "expected an archive, found no file" in run("contamination", run_folder / "absent", "--suite", "nano-easy").line
    )


def test_a_hostile_id_does_nothing() -> None:
    found = looked(stored(task(HELD_OUT)), program(HELD_OUT, "<script>\x1b[2J"))
    parts = Contamination("<b>", 1, 13, (found,)).parts()
    assert "<script>" not in "".join(parts)
    assert "<b>" not in "".join(parts)
    assert "\x1b" not in "".join(Contamination("<b>", 1, 13, (found,)).parts())


def test_what_is_no_archive_or_suite_is_named(tmp_path: Path, sandbox: SandboxExecutor) -> None:
    with pytest.raises(InvalidData, match="archive"):
        contamination(tmp_path, ["nano"], sandbox)
    with pytest.raises(UnknownId, match="no suite 'nanno'"):
        contamination(make_run(tmp_path / "run"), ["nanno"], sandbox)
    with pytest.raises(InvalidConfig, match="at least 1 word, got 0"):
        contamination(tmp_path, ["nano"], sandbox, n=0)
