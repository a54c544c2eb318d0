"""The file of answers: an evaluation that was cut off goes on, and is scored again without its model."""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from selfplay_gym import evaluating, suites
from selfplay_gym.answers import Answer, AnswersFile, Asked, Evaluation, Question, Sampling
from selfplay_gym.completions import score_completions
from selfplay_gym.errors import InvalidConfig, InvalidData
from selfplay_gym.evaluating import Model, evaluate_answers, rescore
from selfplay_gym.types import Execution, Status
from tests.endpoint_server import Reply, chat, serving

SAMPLING = Sampling(samples=2, temperature=1.0, max_new_tokens=8)
ASKED = Asked("azr", SAMPLING, {}, "0" * 64)
HEAD = Evaluation("m", {"model": "m"}, {"nano-easy": "azr"}, 2, 0, {"nano-easy": ASKED}, {})
ONE = Question("nano-easy/a", 0, "one?", 1)
TWO = Question("nano-easy/a", 1, "one?", 2)


class Scripted:
    """Answers with a function of the question; remembers what it was asked."""

    def __init__(self, answer: Callable[[Question], Answer | Exception]) -> None:
        self.answer = answer
        self.asked: list[tuple[str, int]] = []

    def answers(self, questions: Sequence[Question]) -> Generator[tuple[Question, Answer | Exception]]:
        for question in questions:
            self.asked.append((question.id, question.sample))
            yield question, self.answer(question)


def textual(question: Question) -> Answer:
    return Answer(f"<answer>{question.seed % 3}</answer>", question.seed % 2 == 0)


def as_model(answerer: Scripted, **source: object) -> Model:
    return Model("m", lambda chat, sampling: answerer, {"model": "m", **source}, "compact", {"maker": "1"})


def head(**changes: Any) -> Evaluation:
    """The head of an evaluation that asks in another way."""
    return replace(HEAD, suites={"nano-easy": replace(ASKED, **changes)})


@pytest.fixture
def executor(fake: Callable[..., Any]) -> Any:
    return fake(lambda program, text: Execution(Status.OK, "1"))


@pytest.fixture
def keep(tmp_path: Path) -> Path:
    return tmp_path / "kept.jsonl"


def filled(path: Path, *questions: Question) -> None:
    with AnswersFile.write(path) as file:
        file.begin(HEAD)
        for question in questions:
            file.add(question, textual(question))


# -- the file ----------------------------------------------------------------------------------------------------------


def test_what_is_there_is_not_missing(keep: Path) -> None:
    filled(keep, ONE)
    with AnswersFile.write(keep) as file:
        file.begin(HEAD)
        assert file.missing(iter([ONE, TWO])) == [TWO]
    assert len(keep.read_text().splitlines()) == 2  # the same head is not written again


@pytest.mark.parametrize(
    ("now", "named"),
    [
        (replace(HEAD, source={"model": "other"}), "model is 'm' there and 'other' now"),
        (head(style="chat"), "style is 'azr' there and 'chat' now"),
        (head(sampling=replace(SAMPLING, temperature=0.5)), "temperature is 1.0 there and 0.5 now"),
        (head(sampling=replace(SAMPLING, max_new_tokens=9)), "max_new_tokens is 8 there and 9 now"),
        (head(sampling=replace(SAMPLING, seed=1)), "seed is 0 there and 1 now"),
        (replace(HEAD, source={"model": "m", "fields": {"top_p": 0.9}}), "fields is None there"),
    ],
)
def test_answers_of_another_evaluation_are_refused_and_named(keep: Path, now: Evaluation, named: str) -> None:
    filled(keep, ONE)
    before = keep.read_bytes()
    with AnswersFile.write(keep) as file, pytest.raises(InvalidConfig, match=named):
        file.begin(now)
    assert keep.read_bytes() == before


def test_an_answer_to_another_prompt_is_never_used(keep: Path) -> None:
    filled(keep, ONE)
    with AnswersFile.write(keep) as file:
        file.begin(HEAD)
        with pytest.raises(InvalidConfig, match="an answer of nano-easy/a to another prompt"):
            file.missing(iter([replace(ONE, prompt="two?")]))


def test_greedy_answers_depend_on_no_seed_and_sampled_ones_do() -> None:
    greedy = head(sampling=Sampling(max_new_tokens=8))
    other = replace(ONE, seed=9)
    assert greedy.key(ONE) == greedy.key(other)
    assert HEAD.key(ONE) != HEAD.key(other)


@pytest.mark.parametrize("lost", [1, 5, 40])
def test_a_line_that_was_cut_off_is_dropped_and_asked_again(keep: Path, lost: int) -> None:
    filled(keep, ONE, TWO)
    whole = keep.read_bytes()
    keep.write_bytes(whole[: -1 - lost])
    with AnswersFile.read(keep) as file:
        assert len(file) == 1
    with AnswersFile.write(keep) as file:
        file.begin(HEAD)
        assert file.missing(iter([ONE, TWO])) == [TWO]
        file.add(TWO, textual(TWO))
    assert keep.read_bytes() == whole


def test_a_last_line_without_its_end_is_whole(keep: Path) -> None:
    filled(keep, ONE)
    keep.write_bytes(keep.read_bytes()[:-1])
    with AnswersFile.write(keep) as file:
        file.begin(HEAD)
        assert file.missing(iter([ONE, TWO])) == [TWO]
        file.add(TWO, textual(TWO))
    with AnswersFile.read(keep) as file:
        assert len(file) == 2


def test_a_head_that_was_cut_off_is_written_again(keep: Path) -> None:
    keep.write_text('{"evaluation": {"format": 2, "mod')
    filled(keep, ONE)
    with AnswersFile.read(keep) as file:
        assert (file.evaluation, len(file)) == (HEAD, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{\n", "line 1: not JSON"),
        ("3\n", "line 1: expected a JSON object"),
        ('{"id": "a", "completion": "b"}\n', "line 1: not written by `eval --keep`"),
        ('{"evaluation": {"format": 99}}\n', "line 1: no head of an evaluation that this version writes"),
        ('{"evaluation": {"format": 2, "names": {}, "suites": {"a": {"samples": 0}}}}\n', "line 1: no head"),
        ('{"evaluation": {"format": 2, "names": {}, "suites": 3}}\n', "line 1: no head"),
        ('{"evaluation": {"format": 2, "names": [], "suites": {}}}\n', "line 1: no head"),
        ('{"id": "a", "completion": "b", "sample": -1, "finished": true, "key": "k"}\n', "line 1: expected a sample"),
        (
            '{"id": "a", "completion": 3, "sample": 0, "finished": true, "key": "k"}\n',
            "line 1: field 'completion' must",
        ),
    ],
)
def test_a_broken_file_is_named_with_its_line_and_left_as_it_is(keep: Path, content: str, message: str) -> None:
    keep.write_text(content)
    for opened in (AnswersFile.read, AnswersFile.write):
        with pytest.raises(InvalidData, match=message):
            opened(keep)
    assert keep.read_text() == content


def test_one_evaluation_writes_at_a_time(keep: Path) -> None:
    with AnswersFile.write(keep), pytest.raises(InvalidConfig, match="in use by another evaluation"):
        AnswersFile.write(keep)


def test_answers_are_kept_in_ordinary_files_alone(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="expected an ordinary file"):
        AnswersFile.write(tmp_path)
    with pytest.raises(InvalidConfig, match=r"cannot write .*: No such file"):
        AnswersFile.write(tmp_path / "absent" / "kept.jsonl")


# -- going on ----------------------------------------------------------------------------------------------------------


def test_an_evaluation_goes_on_where_it_was_cut_off_with_the_same_result(executor: Any, tmp_path: Path) -> None:
    def breaks(question: Question) -> Answer:
        if len(broken.asked) > 7:
            raise KeyboardInterrupt
        return textual(question)

    whole, broken, rest = Scripted(textual), Scripted(breaks), Scripted(textual)
    asking: dict[str, Any] = {"names": ["nano"], "executor": executor, "sampling": SAMPLING, "limit": 3}
    straight = evaluate_answers(as_model(whole), **asking, keep=tmp_path / "a.jsonl")
    screen = StringIO()
    with pytest.raises(KeyboardInterrupt):
        evaluate_answers(as_model(broken), **asking, keep=tmp_path / "b.jsonl", console=Console(file=screen))
    assert "7 answers are kept in" in screen.getvalue()
    resumed = evaluate_answers(as_model(rest), **asking, keep=tmp_path / "b.jsonl")
    assert resumed.as_dict() == straight.as_dict()
    assert len(whole.asked) == 12
    assert broken.asked[:7] + rest.asked == whole.asked


def test_a_finished_evaluation_asks_nothing_and_a_longer_one_only_what_is_new(executor: Any, keep: Path) -> None:
    def run(limit: int, samples: int) -> list[tuple[str, int]]:
        model = Scripted(textual)
        sampling = replace(SAMPLING, samples=samples)
        evaluate_answers(as_model(model), ["nano-easy"], executor, sampling, limit=limit, keep=keep)
        return [(name.partition("/")[2], sample) for name, sample in model.asked]

    first = run(2, 1)
    assert len(first) == 2
    assert run(2, 1) == []
    assert run(2, 2) == [(name, 1) for name, _ in first]
    assert len(run(3, 2)) == 2


def test_what_failed_has_no_verdict_and_is_asked_again(executor: Any, keep: Path) -> None:
    def fails(question: Question) -> Answer | Exception:
        return ValueError("too long") if question.sample else textual(question)

    asking: dict[str, Any] = {"names": ["nano-easy"], "executor": executor, "sampling": SAMPLING, "limit": 2}
    report = evaluate_answers(as_model(Scripted(fails)), **asking, keep=keep)
    (result,) = report.results
    assert [row.scores[1] for row in result.rows] == [None, None]
    assert (result.n, result.no_verdict, result.missing) == (2, 2, 0)
    assert "2 of 4 questions got no answer and have no verdict; the last: ValueError: too long" in report.warnings()[0]
    side = keep.with_name("kept.jsonl.failures")
    assert [json.loads(line)["error"] for line in side.read_text().splitlines()] == ["ValueError"] * 2
    assert f"{side} says why" in report.warnings()[1]
    assert rescore(keep, executor).as_dict() == report.as_dict()
    assert "2 of 4 questions have no answer" in rescore(keep, executor).warnings()[0]

    again = Scripted(textual)
    report = evaluate_answers(as_model(again), **asking, keep=keep)
    assert [sample for _, sample in again.asked] == [1, 1]
    assert (report.results[0].no_verdict, report.warnings()) == (0, [])
    assert not side.exists()


# -- scoring again -----------------------------------------------------------------------------------------------------


def test_the_grading_is_repeated_to_the_bit_without_the_model(executor: Any, keep: Path) -> None:
    asking: dict[str, Any] = {"names": ["nano"], "executor": executor, "sampling": SAMPLING, "limit": 4}
    report = evaluate_answers(as_model(Scripted(textual)), **asking, keep=keep)
    assert json.dumps(rescore(keep, executor).as_dict()) == json.dumps(report.as_dict())
    assert 0 < report.results[0].extra["cut_off"] < 1
    assert report.versions["maker"] == "1"
    plain = score_completions(keep, ["nano"], executor, limit=4)
    assert [result.rows for result in plain.results] == [result.rows for result in report.results]


def test_answers_to_other_data_are_not_scored_as_those_to_these(
    executor: Any, keep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_answers(as_model(Scripted(textual)), ["nano-easy"], executor, SAMPLING, limit=1, keep=keep)
    loader = suites.SUITES.load("nano-easy")
    monkeypatch.setattr(
        suites.SUITES, "load", lambda name: lambda source: [replace(s, data_sha256="f" * 64) for s in loader(source)]
    )
    with pytest.raises(InvalidData, match=r"holds answers to other data: nano-easy is .* there and ffffffffffff here"):
        rescore(keep, executor)


def test_a_file_of_completions_alone_cannot_say_what_was_asked(executor: Any, keep: Path) -> None:
    keep.write_text('{"id": "a", "completion": "b"}\n')
    with pytest.raises(InvalidData, match="not written by `eval --keep`"):
        rescore(keep, executor)
    keep.write_text("")
    with pytest.raises(InvalidData, match=r"does not say what was asked.*--completions"):
        rescore(keep, executor)


def test_evalplus_samples_are_programs_and_are_read_again(executor: Any, tmp_path: Path) -> None:
    program = "def f(x):\n    return 1"
    model = Scripted(lambda question: Answer(f"so</think><answer>```python\n{program}\n```</answer>", True))
    out, keep = tmp_path / "samples.jsonl", tmp_path / "kept.jsonl"
    asking: dict[str, Any] = {"executor": executor, "sampling": SAMPLING, "limit": 3}
    report = evaluate_answers(as_model(model), ["nano-easy"], **asking, keep=keep, evalplus=out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0] == {"task_id": report.results[0].rows[0].id, "solution": program}
    assert len(rows) == 6
    again = score_completions(out, ["nano-easy"], executor, limit=3)
    assert [row.score for row in again.results[0].rows] == [row.score for row in report.results[0].rows]
    out.unlink()
    rescore(keep, executor, evalplus=out)
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows
    with pytest.raises(InvalidConfig, match="those of one suite, got nano-easy, nano-harder"):
        evaluate_answers(as_model(model), ["nano"], **asking, evalplus=out)


# -- progress ----------------------------------------------------------------------------------------------------------


def test_progress_over_several_suites_counts_each_from_its_own_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 100.0, 200.0, 300.0])
    monkeypatch.setattr("selfplay_gym.evaluating.time.monotonic", lambda: next(clock))
    log = StringIO()
    with evaluating.progress(Console(file=log, width=120), "judging", None) as advance:
        advance(100, 100)
        advance(50, 300)
        advance(150, 300)
    assert log.getvalue().splitlines() == [
        "judging: 100 of 100, 1/s, 0 min left",
        "judging: 50 of 300, 0/s",
        "judging: 150 of 300, 1/s, 2 min left",
    ]


def test_progress_tells_rate_and_time_left_on_a_terminal_and_a_line_a_minute_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = StringIO()
    with evaluating.progress(Console(file=screen, force_terminal=True, width=120), "asking", 10) as advance:
        for done in range(1, 6):
            time.sleep(0.02)
            advance(done, 10)
    assert "/s" in screen.getvalue()
    assert re.search(r"left \S*0:00:0\d", screen.getvalue())
    log, clock = StringIO(), [0.0]
    monkeypatch.setattr(evaluating.time, "monotonic", lambda: clock[0])
    with evaluating.progress(Console(file=log, width=120), "asking", 1000, 100) as advance:
        for done in (130, 160, 190, 220):
            clock[0] += 30
            advance(done, 1000)
    assert log.getvalue().splitlines() == [
        "asking: 160 of 1000, 1/s, 14 min left",
        "asking: 220 of 1000, 1/s, 13 min left",
    ]


# -- killed ------------------------------------------------------------------------------------------------------------


def start(url: str, folder: Path, *more: str) -> subprocess.Popen[str]:
    """Start an evaluation of twelve questions in a process of its own, two at a time."""
    asked = (
        "m",
        "--suite",
        "nano-easy",
        "--limit",
        "12",
        "--endpoint",
        url,
        "--concurrent",
        "2",
        "--keep",
        "kept.jsonl",
    )
    command = [sys.executable, "-m", "selfplay_gym.cli", "eval", *asked, "--json", "out.json", *more]
    return subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=["kill", "ctrl-c", "term"])
def test_no_question_is_asked_twice_however_an_evaluation_was_ended(how: signal.Signals, tmp_path: Path) -> None:
    calm = False

    def answer(body: dict[str, Any], tried: int) -> Reply:
        if not calm and len(server.asked) > 6:
            return Reply(wait=30.0)
        return chat(f"<answer>{len(body['messages'][0]['content']) % 3}</answer>")

    with serving(answer) as server:
        process = start(server.url, tmp_path)
        deadline = time.monotonic() + 60
        while len(server.asked) < 8 and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(how)
        began = time.monotonic()
        _, err = process.communicate(timeout=20)
        assert time.monotonic() - began < 5
        if how is signal.SIGINT:
            assert process.returncode == 130
            assert err.splitlines()[-2:] == [
                "6 answers are kept in kept.jsonl; the same command goes on, `rescore` scores them.",
                "error: interrupted",
            ]
        assert not (tmp_path / "out.json").exists()
        with (tmp_path / "kept.jsonl").open("a") as file:  # as a kill within a write would leave it
            file.write('{"id": "nano-easy/')
        calm = True
        before = server.tries.copy()
        process = start(server.url, tmp_path)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        assert sum(server.tries.values()) == 8 + 6
        assert all(server.tries[prompt] - before[prompt] <= 1 for prompt in server.tries)
        straight = start(server.url, tmp_path, "--keep", "other.jsonl", "--json", "straight.json")
        straight.communicate(timeout=60)
    command = [sys.executable, "-m", "selfplay_gym.cli", "rescore", "kept.jsonl", "--json", "again.json"]
    assert subprocess.run(command, cwd=tmp_path, check=False, capture_output=True).returncode == 0
    results = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("out", "straight", "again")]
    for result in results:
        del result["command"]
    assert results[0] == results[1] == results[2]
    assert not (tmp_path / "kept.jsonl.failures").exists()


def test_an_endpoint_that_goes_down_ends_it_with_one_line_and_what_was_answered_is_kept(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], tried: int) -> Reply:
        return Reply(b"oops", status=500) if len(server.asked) > 4 else chat("1")

    with serving(answer) as server:
        process = start(server.url, tmp_path, "--tries", "0", "--limit", "40")
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    kept, error = err.splitlines()
    assert kept.startswith("4 answers are kept in kept.jsonl")
    assert error.startswith("error: 10 questions in a row got no answer; the last: the endpoint http://127.0.0.1")
    assert "status 500: oops" in error
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 5


def test_a_full_disk_is_told_with_the_name_of_the_file_and_keeps_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    with AnswersFile.write(path) as file:
        file.begin(HEAD)
        file.add(ONE, Answer("kept", finished=True))
        whole = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole), most))  # stands for the disk
        try:
            with pytest.raises(OSError, match="File too large") as told:
                file.add(TWO, Answer("lost", finished=True))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert told.value.filename == str(path)
    assert path.read_bytes().startswith(whole)
