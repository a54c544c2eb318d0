import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from selfplay_gym import grading, literals, suites
from selfplay_gym.answers import Answer, Question, Sampling
from selfplay_gym.completions import read_completions, score_completions
from selfplay_gym.errors import InvalidConfig, InvalidData, UnknownId
from selfplay_gym.evaluating import rescore
from selfplay_gym.grading import grade, pass_rates
from selfplay_gym.maths import Rule
from selfplay_gym.results import Report, RowScore, SuiteResult
from selfplay_gym.statistics import wilson
from selfplay_gym.suites import Problem, Source, Suite
from selfplay_gym.tasks.abduction import Abduction
from selfplay_gym.tasks.cruxeval import InputPrediction
from selfplay_gym.tasks.deduction import Deduction
from selfplay_gym.tasks.induction import Induction
from selfplay_gym.tasks.maths import Maths
from selfplay_gym.training import evaluate as evaluation
from selfplay_gym.training.evaluate import PolicyAnswerer, evaluate, style_of
from selfplay_gym.training.generation import Request
from selfplay_gym.training.nano import build_model, build_tokenizer
from selfplay_gym.training.policy import Completion, Policy
from selfplay_gym.types import Execution, Job, Status, Task, Tier

FIXTURES = Path(__file__).parent / "fixtures" / "suites"


class FakeExecutor:
    """Runs the programs of this test here; a program that says BROKEN breaks our machinery."""

    tier = Tier.FULL

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, jobs: Sequence[Job]) -> list[tuple[Execution, ...]]:
        self.batches.append(len(jobs))
        return [tuple(self._run(job, text) for text in job.inputs) for job in jobs]

    def _run(self, job: Job, text: str) -> Execution:
        assert isinstance(job.program, str)
        if "BROKEN" in job.program:
            return Execution(Status.NO_VERDICT)
        names: dict[str, Any] = {}
        try:
            exec(job.program, names)
            positional, keywords = literals.parse_arguments(text)
            return Execution(Status.OK, literals.encode(names[job.entry](*positional, **keywords)))
        except Exception as error:
            return Execution(Status.ERROR, error_type=type(error).__name__)

    def close(self) -> None:
        pass


def suite(*programs: str, family: str = "abduction", name: str = "twice") -> Suite:
    """Problems whose answer is 2, for programs that double."""
    names = {"abduction": Abduction(), "deduction": Deduction()}
    problems = tuple(Problem(f"p{i}", Task(family, program, ("2",), ("4",)), "2") for i, program in enumerate(programs))
    return Suite(name, {family: names[family]}, problems, "0" * 64)


DOUBLE = "def f(x):\n    return 2 * x"
BROKEN = "def f(x):  # BROKEN\n    return 2 * x"


# -- grading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "completion",
    [
        "2",
        " 2\n",
        "half of 4</think><answer>2</answer>",
        "<think>half of 4</think> <answer>```input\n2\n```</answer>",
        "half of 4</think> 2",
        "half of 4</think><answer>2",
        "<answer>3</answer> no: <answer>2</answer> done",
        "So it is:\n```input\n2\n```\nas asked.",
    ],
)
def test_the_answer_is_found_in_and_out_of_the_frame(completion: str) -> None:
    assert grade(suite(DOUBLE), {"p0": [completion]}, FakeExecutor()).value == 1.0


def test_completions_in_the_frame_are_counted() -> None:
    texts = {"p0": ["</think><answer>2</answer>"], "p1": ["2"]}
    assert grade(suite(DOUBLE, DOUBLE), texts, FakeExecutor()).framed == 0.5


def test_no_verdict_is_not_a_zero() -> None:
    texts = {"p0": ["2"], "p1": ["2"], "p2": ["3"]}
    result = grade(suite(DOUBLE, BROKEN, DOUBLE), texts, FakeExecutor())
    assert [row.score for row in result.rows] == [1.0, None, 0.0]
    assert (result.n, result.value, result.no_verdict) == (2, 0.5, 1)
    assert [row.reason for row in result.rows] == ["", "no verdict: the executor failed", "another value"]


def test_without_any_verdict_there_is_no_value() -> None:
    result = grade(suite(BROKEN), {"p0": ["2"]}, FakeExecutor())
    assert (result.n, result.value, result.interval, result.no_verdict) == (0, None, None, 1)
    Console(file=StringIO()).print(Report((result,), "m").table())


def test_a_missing_completion_is_counted_and_wrong() -> None:
    result = grade(suite(DOUBLE, DOUBLE), {"p0": ["2"]}, FakeExecutor())
    assert (result.value, result.missing, result.rows[1].reason) == (0.5, 1, "no completion")


def test_a_line_that_stands_twice_is_warned_of() -> None:
    even = grade(suite(DOUBLE, DOUBLE), {"p0": ["2"], "p1": ["2"]}, FakeExecutor())
    uneven = grade(suite(DOUBLE, DOUBLE), {"p0": ["2", "2"], "p1": ["2"]}, FakeExecutor())
    assert Report((even,), "m").warnings() == []
    assert "some problems have 1 sample and some 2" in Report((uneven,), "m").warnings()[0]


def test_no_number_of_a_table_is_cut_at_80_columns() -> None:
    result = replace(grade(suite(DOUBLE), {"p0": ["2"]}, FakeExecutor()), suite="arc_agi1_evaluation-direct-and-more")
    screen = StringIO()
    Console(file=screen, width=80).print(Report((result,), "m").table())
    assert "100.0%" in screen.getvalue()
    assert "…" not in screen.getvalue()


def test_one_sample_has_a_wilson_interval_and_several_a_bootstrap() -> None:
    single = grade(suite(DOUBLE, DOUBLE), {"p0": ["2"], "p1": ["3"]}, FakeExecutor())
    several = grade(suite(DOUBLE, DOUBLE), {"p0": ["2", "2"], "p1": ["3", "2"]}, FakeExecutor())
    assert (single.metric, several.metric) == ("accuracy", "avg@2")
    assert single.interval == pytest.approx((0.0945, 0.9055), abs=1e-4)
    assert several.value == 0.75
    assert several.interval == (0.5, 1.0)
    assert several.extra == {"pass@2": 1.0}


def test_pass_rates_leave_samples_without_a_verdict_out() -> None:
    rows = [RowScore("a", 0.5, "", (1.0, 0.0, None)), RowScore("b", 0.0, "", (0.0, 0.0, 0.0))]
    assert pass_rates(rows) == {"pass@2": 0.5}
    assert pass_rates([RowScore("c", None, "", (None,))]) == {}


def test_the_samples_of_a_problem_vote_by_value_and_those_without_an_answer_do_not() -> None:
    texts = {"p0": ["4", " 4 ", "5", "4.0"], "p1": ["5", "4", "who knows", "also"]}
    result = grade(suite(DOUBLE, DOUBLE, family="deduction"), texts, FakeExecutor())
    assert result.rows[0].votes[0] == result.rows[0].votes[1] != result.rows[0].votes[2]
    assert result.rows[1].votes[2:] == ("", "")
    assert result.extra == {"pass@2": pytest.approx((5 / 6 + 1 / 2) / 2), "pass@4": 1.0, "majority@4": 0.75}
    assert all("votes" not in row for row in written_rows(result))


def test_a_majority_leaves_samples_without_a_verdict_out_and_needs_a_family_that_knows_equal_answers() -> None:
    rows = [RowScore("a", 2 / 3, "", (1.0, 0.0, None, 1.0), votes=("x", "y", "x", "x"))]
    assert grading.majority_rates(rows) == {"majority@3": 1.0}
    assert grading.majority_rates([*rows, RowScore("b", 1.0, "", (1.0, 1.0, 1.0))]) == {}


def test_programs_vote_by_what_they_give_for_the_inputs_that_judge() -> None:
    task = Task("induction", "", ("1", "2", "3", "4"), ("2", "4", "6", "8"))
    plain = Suite("s", {"induction": Induction()}, (Problem("p0", task),), "0" * 64)
    programs = ["def f(x): return 2 * x", "def f(x): return x + x", "def f(x): return x * x", "def f(x): return 1 // 0"]
    result = grade(plain, {"p0": programs}, FakeExecutor())
    doubled, added, squared, failed = result.rows[0].votes
    assert doubled == added != squared
    assert failed == ""
    assert result.extra["majority@4"] == 1.0


def test_votes_of_mathematics_are_by_number_or_normal_text_and_of_calls_by_their_arguments() -> None:
    task = Task("maths", "", ("What is half of 1?",), ("1/2",))
    maths = [Maths().vote(task, text, ()) for text in (r"\boxed{0.5}", r"so \boxed{\frac12}", "the answer is 1/2", "?")]
    assert maths == ["1/2", "1/2", "1/2", ""]
    several = Maths(rule=Rule(several=True))
    assert len({several.vote(task, text, ()) for text in (r"\boxed{1, x}", r"\boxed{x,1.0}", r"\boxed{x}")}) == 2
    assert Maths().vote(task, r"\boxed{7^{1000}}", ()) != ""
    calls = [InputPrediction().vote(task, text, ()) for text in ("f([1,2])", "[1, 2]", "range(3)", "[2, 1]")]
    assert calls == ["[1, 2]", "[1, 2]", "range(3)", "[2, 1]"]


def grouped(*groups: str) -> Suite:
    plain = suite(*[DOUBLE] * len(groups))
    return replace(plain, problems=tuple(replace(p, group=g) for p, g in zip(plain.problems, groups, strict=True)))


def written_rows(result: SuiteResult) -> list[dict[str, object]]:
    rows: Any = result.as_dict()["rows"]
    return list(rows)


def test_problems_of_one_group_count_together_as_one() -> None:
    texts = {f"p{i}": [text] for i, text in enumerate("2223")}
    result = grade(grouped("a", "a", "a", "b"), texts, FakeExecutor())
    assert (result.n, result.groups, result.value) == (4, 2, 0.5)
    assert result.interval == wilson(1, 2)  # two groups were seen, not four problems
    assert [row["group"] for row in written_rows(result)] == ["a", "a", "a", "b"]
    assert grade(suite(*[DOUBLE] * 4), texts, FakeExecutor()).value == 0.75


def test_a_group_solved_in_part_gives_a_bootstrap_over_groups() -> None:
    texts = {f"p{i}": [text] for i, text in enumerate("2323")}
    result = grade(grouped("a", "a", "b", "b"), texts, FakeExecutor())
    assert (result.value, result.interval) == (0.5, wilson(1, 2))  # both groups score a half: no spread to draw from
    uneven = grade(grouped("a", "a", "b", "b"), {**texts, "p1": ["2"]}, FakeExecutor())
    assert (uneven.value, uneven.interval) == (0.75, (0.5, 1.0))


def test_pass_at_k_is_averaged_over_groups_too() -> None:
    texts = {"p0": ["2", "3"], "p1": ["2", "3"], "p2": ["2", "3"], "p3": ["3", "3"]}
    assert grade(grouped("a", "a", "a", "b"), texts, FakeExecutor()).extra == {"pass@2": 0.5}


def test_groups_are_part_of_the_protocol_and_shown_and_absent_where_there_are_none() -> None:
    plain, whole = (grade(asked, {}, FakeExecutor()) for asked in (suite(DOUBLE, DOUBLE), grouped("a", "b")))
    assert plain.protocol != whole.protocol
    assert "groups" not in plain.settings
    assert all("group" not in row for row in written_rows(plain))
    assert "mean over 2 groups of problems" in str(Report((whole,), "m").table().caption)
    assert "groups" not in str(Report((plain,), "m").table().caption)


def test_jobs_run_in_chunks_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "CHUNK", 2)
    executor, seen = FakeExecutor(), []
    texts = {f"p{i}": [str(i)] for i in range(5)}
    result = grade(suite(*[DOUBLE] * 5), texts, executor, on_progress=lambda done, total: seen.append((done, total)))
    assert executor.batches == [2, 2, 1]
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert [row.score for row in result.rows] == [0, 0, 1, 0, 0]


@pytest.mark.parametrize(
    "settings", [{"style": "azr"}, {"style": "chat"}, {"style": "azr", "decoding": {"temperature": 1.0}}]
)
def test_the_protocol_changes_with_the_settings_and_not_with_the_answers(settings: Mapping[str, object]) -> None:
    plain = grade(suite(DOUBLE), {}, FakeExecutor())
    one, other = (grade(suite(DOUBLE), {"p0": [text]}, FakeExecutor(), settings) for text in ("2", "3"))
    assert one.protocol == other.protocol != plain.protocol
    assert one.protocol != grade(suite(DOUBLE, DOUBLE), {}, FakeExecutor(), settings).protocol


# -- stored completions ------------------------------------------------------------------------------------------------


def stored(folder: Path, *lines: object) -> Path:
    path = folder / "completions.jsonl"
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8")
    return path


def test_both_line_formats_and_several_samples_are_read(tmp_path: Path) -> None:
    path = stored(
        tmp_path,
        {"id": "twice/p0", "completion": "2"},
        {"id": "p1", "completion": "3"},
        "",
        {"task_id": "p0", "solution": "1", "extra": 0},
    )
    assert read_completions(path, [suite(DOUBLE, DOUBLE)]) == {"twice": {"p0": ["2", "1"], "p1": ["3"]}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ({"id": "p0"}, "line 2: expected the fields 'id' and 'completion'"),
        ({"prompt": "p0"}, "line 2: expected the fields"),
        ({"id": "p0", "completion": None}, "line 2: field 'completion' must be text, got NoneType"),
        ({"id": 3, "completion": "2"}, "line 2: field 'id' must be text, got int"),
        ({"id": "p00", "completion": "2"}, "line 2: the suites asked for have no problem 'p00'; did you mean 'p0'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, message: str) -> None:
    path = stored(tmp_path, {"id": "p0", "completion": "2"}, line)
    with pytest.raises(InvalidData, match=message):
        read_completions(path, [suite(DOUBLE)])


def test_a_bare_id_must_fit_one_suite_only(tmp_path: Path) -> None:
    both = [suite(DOUBLE, name="one"), suite(DOUBLE, name="two")]
    with pytest.raises(InvalidData, match="'p0' could be one of several; write 'one/p0' or 'two/p0'"):
        read_completions(stored(tmp_path, {"id": "p0", "completion": "2"}), both)
    path = stored(tmp_path, {"id": "two/p0", "completion": "2"})
    assert read_completions(path, both) == {"one": {}, "two": {"p0": ["2"]}}


def test_a_file_without_a_completion_or_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="holds no completion"):
        read_completions(stored(tmp_path), [suite(DOUBLE)])
    with pytest.raises(InvalidData, match=r"cannot read .*absent: No such file"):
        read_completions(tmp_path / "absent", [suite(DOUBLE)])


def test_a_completions_file_is_scored_and_reported(tmp_path: Path) -> None:
    lines = [{"id": f"cruxeval-o/r{i}", "completion": text} for i, text in enumerate(["[3, 2, 1]", "'GAR'", "7"])]
    path = stored(tmp_path, *lines, {"id": "cruxeval-i/r0", "completion": "[1, 2, 3]"})
    report = score_completions(path, ["cruxeval"], FakeExecutor(), FIXTURES, limit=3)
    assert [(r.suite, r.n, r.value, r.missing) for r in report.results] == [
        ("cruxeval-i", 3, pytest.approx(1 / 3), 2),
        ("cruxeval-o", 3, pytest.approx(2 / 3), 0),
    ]
    written = json.loads(json.dumps(report.as_dict()))
    assert written["suites"][1]["rows"] == [
        {"id": "r0", "score": 1.0, "reason": ""},
        {"id": "r1", "score": 1.0, "reason": ""},
        {"id": "r2", "score": 0.0, "reason": "another value"},
    ]
    assert {"suite", "n", "metric", "value", "interval", "no_verdict", "protocol", "data_sha256"} <= written["suites"][
        0
    ].keys()
    assert written["versions"]["selfplay-gym"] != "absent"
    screen = StringIO()
    Console(file=screen, width=80).print(report.table())
    assert "cruxeval-i" in screen.getvalue()
    assert "no completion for 2, counted as wrong" in " ".join(screen.getvalue().split())


# -- a model -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy() -> Policy:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    return Policy(build_model(tokenizer, hidden=64, layers=1).eval(), tokenizer)


def test_a_model_is_asked_graded_and_its_completions_score_the_same_again(policy: Policy, tmp_path: Path) -> None:
    keep = tmp_path / "kept.jsonl"
    sampling = Sampling(samples=2, temperature=1.0, max_new_tokens=8, seed=3)
    report = evaluate(policy, ["nano"], FakeExecutor(), sampling=sampling, limit=4, keep=keep)
    again = evaluate(policy, ["nano"], FakeExecutor(), sampling=sampling, limit=4)
    assert [result.rows for result in again.results] == [result.rows for result in report.results]
    rescored = score_completions(keep, ["nano"], FakeExecutor(), limit=4)
    assert [result.rows for result in rescored.results] == [result.rows for result in report.results]
    assert [result.suite for result in report.results] == ["nano-easy", "nano-harder"]
    lines = [json.loads(line) for line in keep.read_text().splitlines()]
    assert {row["completion"] for row in lines if "completion" in row} != {""}
    facts = report.results[0].settings
    assert facts["style"] == "compact"
    assert facts["decoding"] == {"samples": 2, "temperature": 1.0, "max_new_tokens": 8}
    assert report.seed == 3
    assert "absent" not in report.versions.values()


@pytest.fixture
def checkpoint(policy: Policy, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return folder


def test_a_model_that_was_interrupted_goes_on_and_gives_the_same(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, asked, left = Policy.complete, [0], [2]

    def interrupted(policy: Policy, requests: Sequence[Request]) -> list[Completion]:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        asked[0] += len(requests)
        return complete(policy, requests)

    monkeypatch.setattr(evaluation, "AT_ONCE", 3)
    monkeypatch.setattr(Policy, "complete", interrupted)
    how: dict[str, Any] = {"sampling": Sampling(samples=2, temperature=1.0, max_new_tokens=6), "limit": 6}
    keep = tmp_path / "kept.jsonl"
    with pytest.raises(KeyboardInterrupt):
        evaluate(checkpoint, ["nano-easy"], FakeExecutor(), keep=keep, **how)
    assert asked == [6]
    left[0] = 9
    resumed = evaluate(checkpoint, ["nano-easy"], FakeExecutor(), keep=keep, **how)
    assert asked == [12]
    straight = evaluate(checkpoint, ["nano-easy"], FakeExecutor(), **how)
    assert resumed.as_dict() == straight.as_dict()
    assert json.dumps(rescore(keep, FakeExecutor()).as_dict()) == json.dumps(straight.as_dict())


def test_a_report_calls_the_model_by_its_name_or_where_it_is(checkpoint: Path) -> None:
    how: dict[str, Any] = {"sampling": Sampling(max_new_tokens=2), "limit": 1}
    assert evaluate(checkpoint, ["nano-easy"], FakeExecutor(), **how).model == str(checkpoint)
    assert evaluate(checkpoint, ["nano-easy"], FakeExecutor(), name="mine", **how).model == "mine"


def test_answers_of_other_weights_are_not_taken_for_those_of_these(
    policy: Policy, checkpoint: Path, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"sampling": Sampling(max_new_tokens=2), "limit": 1, "keep": tmp_path / "kept.jsonl"}
    evaluate(checkpoint, ["nano-easy"], FakeExecutor(), **how)
    evaluate(checkpoint, ["nano-easy"], FakeExecutor(), **how)
    policy.model.save_pretrained(checkpoint)
    with pytest.raises(InvalidConfig, match="holds answers of another evaluation: files is"):
        evaluate(checkpoint, ["nano-easy"], FakeExecutor(), **how)
    how["keep"] = tmp_path / "loaded.jsonl"
    evaluate(policy, ["nano-easy"], FakeExecutor(), **how)
    with pytest.raises(InvalidConfig, match="files is"):
        evaluate(policy, ["nano-easy"], FakeExecutor(), **how)


def test_the_longest_prompts_are_asked_first_and_transformers_goes_on_beyond_the_context(policy: Policy) -> None:
    most = policy.model.config.max_position_embeddings
    answerer = PolicyAnswerer.of(policy, False, Sampling(max_new_tokens=5))
    asked = [Question(f"s/{n}", 0, "x" * n, 0) for n in (1, most, most - 3)]
    found = list(answerer.answers(asked))
    assert [question.id for question, _ in found] == [f"s/{most}", f"s/{most - 3}", "s/1"]
    assert all(isinstance(answer, Answer) and answer.text for _, answer in found)


def test_a_backend_that_is_not_there_is_told(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownId, match="no backend 'tpu' to evaluate with; it is hf or vllm"):
        evaluate(checkpoint, ["nano-easy"], FakeExecutor(), backend="tpu")
    monkeypatch.setattr("selfplay_gym.training.vllm.find_spec", lambda name: None)
    with pytest.raises(InvalidConfig, match="needs vLLM, which is not installed"):
        evaluate(checkpoint, ["nano-easy"], FakeExecutor(), backend="vllm")


def test_progress_is_shown_on_the_console_it_is_given(policy: Policy) -> None:
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    sampling = Sampling(max_new_tokens=2)
    evaluate(policy, ["nano-easy"], FakeExecutor(), sampling=sampling, limit=2, console=console)
    assert "nano-easy: asking" in screen.getvalue()


def test_a_misspelt_suite_or_style_shows_before_a_model_is_loaded() -> None:
    with pytest.raises(UnknownId, match="no suite 'nanno'"):
        evaluate("no/such/model", ["nanno"], FakeExecutor())
    with pytest.raises(UnknownId, match="no prompt style"):
        evaluate("no/such/model", ["nano"], FakeExecutor(), style="fancy")


def test_more_new_tokens_than_the_model_reads_are_refused(policy: Policy, tmp_path: Path) -> None:
    most = policy.model.config.max_position_embeddings
    with pytest.raises(InvalidConfig, match=f"completion of {most} new tokens does not fit the model"):
        evaluate(policy, ["nano-easy"], FakeExecutor(), sampling=Sampling(max_new_tokens=most), limit=1)


def test_the_style_follows_the_tokenizer(policy: Policy) -> None:
    class Other:
        chat_template: str | None = None

        def get_vocab(self) -> dict[str, int]:
            return {"a": 0}

    other = Other()
    assert (style_of(policy.tokenizer), style_of(other)) == ("compact", "azr")
    other.chat_template = "{{ messages }}"
    assert style_of(other) == "chat"


def test_several_greedy_samples_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="set a temperature above 0"):
        Sampling(samples=2)
    with pytest.raises(InvalidConfig, match="samples must be at least 1"):
        Sampling(samples=0)


def test_grading_needs_no_torch() -> None:
    code = "import sys, selfplay_gym.grading; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_suite_of_a_user_is_found_once_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(suites.SUITES._paths, "mine", "selfplay_gym.tasks.list_functions:load")
    assert suites.load(["mine"], Source(FakeExecutor(), FIXTURES))[0].name == "list_functions"
