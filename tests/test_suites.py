import gzip
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfplay_gym import suites
from selfplay_gym.errors import InvalidConfig, InvalidData, MissingData, UnknownId
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.grading import grade
from selfplay_gym.suites import Source, Suite
from selfplay_gym.tasks import nano
from selfplay_gym.types import Job, Verdict

FIXTURES = Path(__file__).parent / "fixtures" / "suites"
REAL = Path(os.environ.get(suites.DATA_VARIABLE, ""))
needs_data = pytest.mark.skipif(
    not os.environ.get(suites.DATA_VARIABLE) or not (REAL / "cruxeval_dev.jsonl").is_file(),
    reason=f"set {suites.DATA_VARIABLE} to a folder that holds cruxeval_dev.jsonl",
)


@pytest.fixture(scope="module")
def executor() -> Iterator[SandboxExecutor]:
    with SandboxExecutor() as sandbox:
        yield sandbox


def load(executor: SandboxExecutor, *names: str, folder: Path = FIXTURES, style: str = "azr") -> dict[str, Suite]:
    return {suite.name: suite for suite in suites.load(names, Source(executor, folder, style))}


def write(folder: Path, *rows: object, name: str = "cruxeval.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def answers(suite: Suite) -> dict[str, list[str]]:
    return {problem.id: [problem.answer] for problem in suite.problems}


# -- the shipped hold-out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [nano.EASY, nano.HARDER], ids=lambda level: level.name)
def test_the_hold_out_can_be_made_again_byte_for_byte(level: nano.Level) -> None:
    shipped = Path(nano.__file__).parent / "data" / f"nano_{level.name}.jsonl"
    assert shipped.read_bytes() == nano.holdout(level).encode()


def test_the_hold_out_holds_150_programs_a_family_and_level_and_none_twice(executor: SandboxExecutor) -> None:
    loaded = load(executor, "nano")
    lines = {"nano-easy": {1, 2}, "nano-harder": {3, 4, 5}}
    programs = []
    for name, suite in loaded.items():
        tasks = [problem.task for problem in suite.problems if problem.task is not None]
        assert Counter(task.family for task in tasks) == dict.fromkeys(nano.FAMILIES, 150)
        assert {task.program.count("\n") - 1 for task in tasks} == lines[name]
        programs += [task.program for task in tasks]
    assert len(set(programs)) == len(programs) == 900


@pytest.mark.parametrize("name", ["nano-easy", "nano-harder"])
def test_every_hold_out_reference_is_right_in_the_sandbox(executor: SandboxExecutor, name: str) -> None:
    suite = load(executor, name)[name]
    result = grade(suite, answers(suite), executor)
    assert (result.value, result.no_verdict, set(result.parts)) == (1.0, 0, set(nano.FAMILIES))


def test_hold_out_outputs_are_what_the_sandbox_returns(executor: SandboxExecutor) -> None:
    tasks = [p.task for suite in load(executor, "nano").values() for p in suite.problems if p.task is not None]
    runs = executor.run([Job(task.program, task.inputs) for task in tasks])
    assert [tuple(run.value for run in each) for each in runs] == [task.outputs for task in tasks]


def test_a_changed_hold_out_is_refused(executor: SandboxExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nano, "EASY", nano.Level("easy", (1, 2), 1001, "0" * 64))
    with pytest.raises(InvalidData, match="not the shipped file"):
        load(executor, "nano-easy")


# -- CRUXEval ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["cruxeval-i", "cruxeval-o"])
def test_references_are_right_even_when_they_are_expressions(executor: SandboxExecutor, part: str) -> None:
    suite = load(executor, "cruxeval")[part]
    result = grade(suite, answers(suite), executor)
    assert [row.score for row in result.rows] == [1.0] * 5


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("range(4)", 1.0),
        ("f(range(4))", 1.0),
        ("```input\nrange(4)\n```", 1.0),
        ("[1, 2, 3]", 1.0),
        ("f([1, 2, 3])", 1.0),
        ("range( 4)", 0.0),
        ("range(0, 4)", 0.0),
        ("[6, 1]", 0.0),
        ("", 0.0),
    ],
)
def test_the_only_expression_accepted_is_the_references_own_text(
    executor: SandboxExecutor, answer: str, score: float
) -> None:
    suite = load(executor, "cruxeval-i")["cruxeval-i"]
    assert grade(suite, {"r2": [answer]}, executor).rows[2].score == score


@pytest.mark.parametrize("attack", ["[globals().update(sum=lambda _: 6)]", "__import__('os')", "(lambda: 6)()"])
def test_an_expression_that_a_model_wrote_is_never_run(executor: SandboxExecutor, attack: str) -> None:
    suite = load(executor, "cruxeval-i")["cruxeval-i"]
    task = suite.problems[2].task
    assert task is not None
    assert isinstance(suite.families["abduction"].check(task, attack), Verdict)
    assert grade(suite, {"r2": [attack]}, executor).rows[2].score == 0.0


def test_outputs_compare_as_values_not_as_text(executor: SandboxExecutor) -> None:
    suite = load(executor, "cruxeval-o")["cruxeval-o"]
    right = {"r0": ["[3,2,1]"], "r1": ['"GAR"'], "r4": ["{'ab': 2, 'c': 1}"]}
    assert [row.score for row in grade(suite, right, executor).rows if row.id in right] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("code", "output", "reason"),
    [
        ("def f(x):\n    return 1 / x", "1", "error ZeroDivisionError"),
        ("def f(x):\n    return x", "1", "another value"),
        ("def f(x):\n    while True: pass", "1", "timeout"),
    ],
)
def test_a_reference_that_fails_here_is_no_verdict_and_is_shown(
    executor: SandboxExecutor, tmp_path: Path, code: str, output: str, reason: str
) -> None:
    rows = [json.loads(line) for line in (FIXTURES / "cruxeval.jsonl").read_text().splitlines()[:2]]
    folder = write(tmp_path, *rows, {"id": "bad", "code": code, "input": "0", "output": output})
    suite = load(executor, "cruxeval-o", folder=folder)["cruxeval-o"]
    result = grade(suite, answers(suite), executor)
    assert (result.n, result.value, result.no_verdict) == (2, 1.0, 1)
    assert reason in result.rows[2].reason
    assert "bad" not in suite.prompts()


def test_prompts_do_not_show_what_is_hidden(executor: SandboxExecutor) -> None:
    loaded = load(executor, "cruxeval")
    assert "'garden'" not in loaded["cruxeval-i"].prompts()["r1"]
    assert "'GAR'" not in loaded["cruxeval-o"].prompts()["r1"]
    assert "'garden'" in loaded["cruxeval-o"].prompts()["r1"]


@needs_data
@pytest.mark.parametrize("part", ["cruxeval-i", "cruxeval-o"])
def test_real_references_score_100_and_shuffled_ones_next_to_nothing(executor: SandboxExecutor, part: str) -> None:
    suite = load(executor, part, folder=REAL)[part]
    right = {problem.id: [problem.answer] for problem in suite.problems}
    result = grade(suite, right, executor)
    assert [row for row in result.rows if row.score == 0.0] == []
    assert (result.value, result.note) == (1.0, "dev half")
    assert result.no_verdict == 0
    shuffled = [problem.answer for problem in suite.problems]
    random.Random(0).shuffle(shuffled)
    wrong = dict(zip(right, [[text] for text in shuffled], strict=True))
    assert (grade(suite, wrong, executor).value or 0.0) < 0.06


# -- List Functions ----------------------------------------------------------------------------------------------------


def test_list_functions_shows_eight_pairs_and_judges_by_the_other_eight(executor: SandboxExecutor) -> None:
    suite = load(executor, "list_functions", style="compact")["list_functions"]
    prompt = suite.prompts()["rule/0"]
    assert prompt.count("f([") == 8
    assert "f([5, 6, 7])" not in prompt
    programs = {"rule/0": ["def f(x):\n    return x[::-1]"], "rule/1": ["def f(x):\n    return x"]}
    result = grade(suite, programs, executor)
    assert [row.score for row in result.rows] == [1.0, 0.0]
    assert result.extra["pair_accuracy"] == (8 + 1) / 16  # the identity is right on the empty list alone


def test_list_functions_has_a_message_only_where_the_prompt_has_room_for_it(executor: SandboxExecutor) -> None:
    short, long = (load(executor, "list_functions", style=style)["list_functions"] for style in ("compact", "azr"))
    assert short.problems[0].task is not None
    assert short.problems[0].task.message == ""
    assert "one list of whole numbers into another" in long.prompts()["rule/0"]


@needs_data
def test_real_list_functions_load_and_a_constant_program_fails(executor: SandboxExecutor) -> None:
    suite = load(executor, "list_functions", folder=REAL)["list_functions"].first(20)
    result = grade(suite, {p.id: ["def f(x):\n    return [0]"] for p in suite.problems}, executor)
    assert result.n == 20
    assert result.value is not None
    assert result.value < 0.2


# -- data files --------------------------------------------------------------------------------------------------------


def test_a_gzip_file_holds_the_same_problems(executor: SandboxExecutor, tmp_path: Path) -> None:
    (tmp_path / "cruxeval.jsonl.gz").write_bytes(gzip.compress((FIXTURES / "cruxeval.jsonl").read_bytes()))
    plain, packed = (load(executor, "cruxeval", folder=folder) for folder in (FIXTURES, tmp_path))
    assert {name: suite.problems for name, suite in plain.items()} == {n: s.problems for n, s in packed.items()}


def test_the_environment_names_the_folder(executor: SandboxExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(suites.DATA_VARIABLE, str(FIXTURES))
    assert len(suites.load(["cruxeval"], Source(executor))[0].problems) == 5


def test_suites_come_once_and_in_order(executor: SandboxExecutor) -> None:
    assert list(load(executor, "cruxeval-o", "cruxeval", "cruxeval-i")) == ["cruxeval-o", "cruxeval-i"]


def test_a_limit_takes_the_first_problems(executor: SandboxExecutor) -> None:
    suite = load(executor, "nano-easy")["nano-easy"]
    assert [problem.id for problem in suite.first(3).problems] == ["deduction-000", "abduction-000", "induction-000"]
    with pytest.raises(InvalidConfig, match="limit must be at least 1"):
        suite.first(0)


def test_an_unknown_suite_names_the_nearest(executor: SandboxExecutor) -> None:
    with pytest.raises(UnknownId, match="did you mean 'cruxeval'"):
        load(executor, "cruxevel")
    with pytest.raises(InvalidConfig, match=r"there are .*cruxeval"):
        load(executor)


def test_missing_data_is_named(executor: SandboxExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(suites.DATA_VARIABLE, raising=False)
    with pytest.raises(InvalidData, match=f"pass --data-dir or set {suites.DATA_VARIABLE}"):
        suites.load(["cruxeval"], Source(executor))
    with pytest.raises(InvalidData, match=r"folder .*nowhere does not exist"):
        load(executor, "cruxeval", folder=tmp_path / "nowhere")
    shutil.copy(FIXTURES / "cruxeval.jsonl", tmp_path / "cruxevals.jsonl")
    with pytest.raises(InvalidData, match=r"holds none of cruxeval\.jsonl, .*there is cruxevals\.jsonl"):
        load(executor, "cruxeval", folder=tmp_path)


GOOD = b'{"id": "a", "code": "def f(x): return x", "input": "1", "output": "1"}\n'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD + b"\n{not json}\n", r"cruxeval\.jsonl, line 3: not JSON"),
        (GOOD + b'{"id": "\xff"}\n', r"line 2: not JSON: 'utf-8'"),
        (GOOD + b"[1]\n", r"line 2: expected a JSON object, got list"),
        (GOOD + b"[" * 100_000 + b"\n", r"line 2: not JSON"),
        (GOOD + GOOD, r"line 2: id 'a' stands already at .*line 1"),
        (b'{"code": "x"}\n', r"line 1: field 'id' is missing; there are 'code'"),
        (GOOD + GOOD.replace(b'"a"', b"3"), r"line 2: field 'id' must be text, got int"),
        (b'{"id": "a"}\n', r"line 1: field 'code' is missing"),
        (b"\n \n", r"cruxeval\.jsonl: holds no row"),
    ],
)
def test_a_broken_line_is_named(executor: SandboxExecutor, tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "cruxeval.jsonl").write_bytes(data)
    with pytest.raises(InvalidData, match=message):
        load(executor, "cruxeval", folder=tmp_path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"no gzip", "not a gzip file, though its name ends in .gz"),
        (gzip.compress(GOOD, mtime=0)[:-9], "a gzip file that was cut off: fetch it again"),
        (gzip.compress(GOOD, mtime=0)[:-8] + bytes(8), "a damaged gzip file .*: fetch it again"),
    ],
)
def test_a_broken_gzip_file_is_named(executor: SandboxExecutor, tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "cruxeval.jsonl.gz").write_bytes(data)
    with pytest.raises(InvalidData, match=rf"cruxeval\.jsonl\.gz: {said}"):
        load(executor, "cruxeval", folder=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": []}, "field 'test' must hold 8 pairs, got 0"),
        ({"train": [1] * 8}, "field 'train' must hold objects with 'input' and 'output'"),
        ({"train": "x"}, "field 'train' must be a list, got str"),
    ],
)
def test_broken_pairs_are_named(
    executor: SandboxExecutor, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    row = json.loads((FIXTURES / "list_functions.jsonl").read_text().splitlines()[0])
    folder = write(tmp_path, {**row, **change}, name="list_functions.jsonl")
    with pytest.raises(InvalidData, match=f"line 1: {message}"):
        load(executor, "list_functions", folder=folder)


def test_every_registered_suite_loads_as_a_function() -> None:
    assert all(callable(suites.SUITES.load(name)) for name in suites.SUITES.names())


# -- groups ------------------------------------------------------------------------------------------------------------


def test_a_group_stands_for_its_suites_and_no_problem_comes_twice() -> None:
    assert suites.expanded(["quick", "gsm8k:20", "nano-easy:30"]) == suites.members("quick")
    assert set(suites.members("azr-paper")) <= set(suites.SUITES.names())
    assert {"aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench"} <= set(suites.members("azr-paper"))
    everything = suites.members("all")
    assert {"nano", "cruxeval", "arc_1d-direct"} <= set(everything)
    assert not suites.PARTS & set(everything)


def test_the_parts_that_all_leaves_out_come_with_the_whole() -> None:
    wholes = {part: part.partition("-")[0].removesuffix("24").removesuffix("25") for part in suites.PARTS}
    assert set(wholes.values()) <= set(suites.members("all"))


def test_a_member_of_a_group_that_does_not_exist_yet_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(suites.GROUPS, "mine", ("nano-easy:3", "no_such_suite:9"))
    assert suites.members("mine") == ["nano-easy:3"]


def test_a_number_behind_a_name_takes_the_first_problems(executor: SandboxExecutor) -> None:
    loaded = suites.load(["nano-easy:3", "cruxeval:2"], Source(executor, FIXTURES))
    assert [(suite.name, len(suite.problems)) for suite in loaded] == [
        ("nano-easy", 3), ("cruxeval-i", 2), ("cruxeval-o", 2),
    ]  # fmt: skip
    for wrong in ("nano-easy:0", "nano-easy:", "nano-easy:x", "nano-easy:-1"):
        with pytest.raises(InvalidConfig, match="expected a suite as NAME or NAME:PROBLEMS"):
            suites.load([wrong], Source(executor))


def test_a_group_takes_no_number_of_problems(executor: SandboxExecutor) -> None:
    with pytest.raises(InvalidConfig, match="quick is a group and takes no number of problems: --limit"):
        suites.load(["quick:3"], Source(executor))


def test_a_misspelt_group_is_told_the_nearest(executor: SandboxExecutor) -> None:
    with pytest.raises(UnknownId, match="no suite 'quikc'; did you mean 'quick'"):
        suites.load(["quikc"], Source(executor))


def test_all_that_is_missing_is_told_at_once_and_can_be_skipped(executor: SandboxExecutor, tmp_path: Path) -> None:
    folder = write(tmp_path, {"id": "a", "code": "def f(x):\n    return x", "input": "1", "output": "1"})
    names = ["arc_1d", "cruxeval-o", "list_functions"]
    with pytest.raises(MissingData, match=r"no data for 2 of 3 suites \(--skip-missing .*arc_1d: .*list_functions: "):
        suites.load(names, Source(executor, folder))
    found = suites.load_named(names, Source(executor, folder)).present(skip_missing=True)
    assert [*found.suites] == ["cruxeval-o"]
    assert [note.partition(":")[0] for note in found.notes()] == ["arc_1d is left out", "list_functions is left out"]
    with pytest.raises(MissingData, match="holds none of arc_1d"):
        suites.load_named(["arc_1d"], Source(executor, folder)).present(skip_missing=True)


def test_broken_data_is_not_skipped(executor: SandboxExecutor, tmp_path: Path) -> None:
    folder = write(tmp_path, {"id": "a"})
    with pytest.raises(InvalidData, match="field 'code' is missing"):
        suites.load_named(["cruxeval"], Source(executor, folder))
    with pytest.raises(InvalidData, match="data folder nowhere does not exist"):
        suites.load_named(["cruxeval"], Source(executor, Path("nowhere")))
