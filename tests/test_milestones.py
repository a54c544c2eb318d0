"""Held-out suites in a run: scored on the way and at the ends, and the run is the same with them and without."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from selfplay_gym.comparison import compare_files
from selfplay_gym.errors import InvalidConfig
from selfplay_gym.evaluating import rescore
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.report import write_report
from selfplay_gym.training import milestones, run
from selfplay_gym.training.config import RunConfig, parse
from selfplay_gym.training.evaluate import evaluate
from selfplay_gym.training.folder import RunFolder
from selfplay_gym.training.launch import launch
from tests.players import fresh_policy, good_player
from tests.runs import (
    assert_same_run,
    fingerprint,
    kill_in,
    metrics,
    steps_done,
    tiny_policy,
    train,
    weights,
    write_recipe,
)

ROWS = [
    {"id": f"row-{n}", "code": f"def f(x):\n    x = x + {n}\n    return x", "input": str(n), "output": str(2 * n)}
    for n in range(6)
]
ASKED = {"suites": ["cruxeval-o"], "every": 2, "samples": 2, "temperature": 1.0}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "cruxeval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxExecutor]:
    with SandboxExecutor(workers=1) as executor:
        yield executor


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Play runs here, with a scripted player instead of a loaded policy."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setattr(run, "_quiet", lambda folder: None)
    monkeypatch.setattr(run, "load_policy", lambda config: fresh_policy(player=good_player))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(data: Path | None = None, **asked: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "families": {"deduction": {"references": 1}},
        "steps": 5,
        "play": {"proposals": 4, "tasks": 4, "attempts": 4, "max_new_tokens": {"propose": 96, "solve": 32}},
        "update": {"learning_rate": 1e-3, "micro_batch": 16, "skip_padding": True},
        "holdout": None,
        "processes": 1,
        "save_steps": 3,
    }
    if data is not None:
        settings["eval"] = {**ASKED, "data_dir": str(data), **asked}
    return RunConfig.model_validate(settings)


def play(folder: Path, settings: RunConfig, *, resume: bool = False) -> tuple[int, str]:
    shown = io.StringIO()
    where = RunFolder(folder)
    if not resume:
        where.prepare(settings)
    code = run.run_rank(settings, where, resume=resume, console=Console(file=shown, width=80))
    return code, shown.getvalue()


def scores(folder: Path) -> dict[int, float]:
    return {int(line["step"]): line["eval/cruxeval-o"] for line in metrics(folder) if "eval/cruxeval-o" in line}


@pytest.mark.usefixtures("one_process")
def test_suites_are_scored_on_the_way_and_the_run_does_not_notice(data: Path, tmp_path: Path) -> None:
    code, shown = play(tmp_path / "with", config(data))
    assert code == 0
    assert play(tmp_path / "without", config())[0] == 0
    assert list(scores(tmp_path / "with")) == [2, 4, 5]
    plain = [{k: v for k, v in line.items() if not k.startswith("eval/")} for line in metrics(tmp_path / "with")]
    assert plain == metrics(tmp_path / "without")
    assert fingerprint(tmp_path / "with") == fingerprint(tmp_path / "without")
    assert all(tensor.equal(weights(tmp_path / "without")[k]) for k, tensor in weights(tmp_path / "with").items())
    (row,) = json.loads((tmp_path / "with" / "result.json").read_text())["eval"]
    assert row["after"] == scores(tmp_path / "with")[5]
    assert (row["n"], row["metric"], row["no_verdict"]) == (6, "avg@2", 0)
    assert row["difference"] == pytest.approx(row["after"] - row["before"])
    assert "cruxeval-o" in shown
    assert json.loads((tmp_path / "without" / "result.json").read_text())["eval"] == []


@pytest.mark.usefixtures("one_process")
def test_what_an_evaluation_leaves_can_be_compared_and_graded_again(data: Path, tmp_path: Path) -> None:
    play(tmp_path / "run", config(data))
    left = tmp_path / "run" / "eval"
    assert sorted(file.name for file in left.iterdir()) == [
        f"step-{step:06d}.{ending}" for step in (0, 2, 4, 5) for ending in ("json", "jsonl")
    ]
    (row,) = json.loads((tmp_path / "run" / "result.json").read_text())["eval"]
    (found,) = compare_files(left / "step-000000.json", left / "step-000005.json")
    assert (found.interval.difference, found.interval.low) == (row["difference"], row["difference_interval"][0])
    with SandboxExecutor(workers=1) as executor:
        again = rescore(left / "step-000004.jsonl", executor, data_dir=data)
    assert (
        json.loads(json.dumps(again.as_dict()["suites"]))
        == json.loads((left / "step-000004.json").read_text())["suites"]
    )


def test_protocols_and_groups_are_those_of_eval(data: Path, sandbox: SandboxExecutor) -> None:
    asked = {"suites": ["quick"], "protocol": "customary,default", "data_dir": str(data), "skip_missing": True}
    exam = milestones.load(parse({"eval": asked, "style": "azr", "seed": 7}, "test"), sandbox)
    assert exam is not None
    protocols = {put.suite.name: put.protocol for put in exam.puts}
    assert [*protocols] == ["nano-easy", "nano-harder", "cruxeval-i", "cruxeval-o"]
    assert (protocols["cruxeval-i"].name, protocols["cruxeval-i"].sampling.samples) == ("customary", 10)
    assert {(protocol.style, protocol.sampling.seed) for protocol in protocols.values()} == {("azr", 7)}
    assert len(exam.puts[0].suite.problems) == 30
    assert any(note.startswith("gsm8k:20 is left out") for note in exam.notes)


@pytest.mark.usefixtures("one_process")
def test_the_report_shows_a_curve_and_a_table_with_intervals(data: Path, tmp_path: Path) -> None:
    play(tmp_path / "run", config(data, before=False))
    page = write_report(tmp_path / "run").read_text()
    curve = page.partition("Held-out suites: score</figcaption>")[2].partition("</figure>")[0]
    assert "cruxeval-o" in curve
    assert curve.count("<polyline") == 1
    row = page.partition("<td>cruxeval-o</td><td>avg@2</td><td>6</td><td>0</td>")[2].partition("</tr>")[0]
    before, after, difference = (cell.removeprefix("<td>") for cell in row.split("</td>")[:3])
    assert (before, difference) == ("-", "-")  # the start was not asked for
    assert " to " in after


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("stopped", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_stopped_between_evaluations_goes_on_as_if_it_had_not(
    stopped: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(data)
    play(tmp_path / "straight", settings)
    with monkeypatch.context() as patch:
        patch.setattr(run.Leader, "should_stop", lambda leader: leader._watch.step >= stopped)
        assert play(tmp_path / "stopped", settings)[0] == run.INTERRUPTED
    assert max(scores(tmp_path / "stopped")) <= stopped
    assert play(tmp_path / "stopped", settings, resume=True)[0] == 0
    assert_same_run(tmp_path / "stopped", tmp_path / "straight")
    results = [json.loads((tmp_path / name / "result.json").read_text())["eval"] for name in ("stopped", "straight")]
    assert results[0] == results[1]


@pytest.mark.usefixtures("one_process")
def test_going_back_to_a_checkpoint_takes_later_evaluations_away(data: Path, tmp_path: Path) -> None:
    settings = config(data)
    play(tmp_path / "run", settings)
    folder = RunFolder(tmp_path / "run")
    (folder.checkpoint(5) / "complete.json").unlink()
    (folder.path / "eval" / "step-notes.json").touch()
    assert folder.resume(settings) == 3
    assert sorted(file.name for file in (folder.path / "eval").glob("*.json")) == [
        "step-000000.json", "step-000002.json", "step-notes.json"
    ]  # fmt: skip


def test_missing_data_is_one_line_before_there_is_a_run(tmp_path: Path) -> None:
    asked = {"suites": ["nano-easy", "list_functions"], "data_dir": str(tmp_path)}
    settings = parse({"eval": asked, "processes": 1, "steps": 1}, "test")
    with pytest.raises(Exception, match="holds none of list_functions") as caught:
        launch(settings, RunFolder(tmp_path / "run"), resume=False, console=Console(file=io.StringIO()))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"suites": ["cruxevel"]}, "eval: no suite 'cruxevel'; did you mean 'cruxeval'"),
        ({"suites": []}, "eval.suites must not be empty"),
        ({"every": 5}, "eval.suites must be given as well"),
        ({"suites": "nano", "protocol": "customary"}, "eval: no protocol customary for nano; there is default"),
        ({"suites": "nano", "protocol": "custom"}, "eval: no protocol 'custom'; did you mean 'customary'"),
        ({"suites": "nano:few"}, "eval: expected a suite as NAME or NAME:PROBLEMS, got 'nano:few'"),
        ({"suites": "nano", "samples": 4}, "eval: 4 greedy samples would all be the same"),
        ({"suites": "nano", "every": 0}, "eval.every must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_asked_is_one_line(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfig, match=re.escape(said)):
        parse({"eval": asked}, "recipe")


def test_answers_longer_than_the_model_reads_are_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"eval\.max_new_tokens must be set below the \d+ tokens that nano reads"):
        run.check(parse({"eval": {"suites": "nano", "max_new_tokens": 100_000}}, "recipe"))


def test_a_row_of_the_result_says_what_was_not_measured() -> None:
    known = {"suite": "s", "metric": "accuracy", "n": 1, "no_verdict": 0, "protocol": "p", "data_sha256": "d"}
    row = {"id": "a", "score": 1.0}
    after = {**known, "value": 1.0, "interval": [0.2, 1.0], "rows": [row]}
    (alone,) = milestones.result_rows([], [after])
    assert "before" not in alone
    without = {**after, "value": None, "interval": None, "rows": [{"id": "a", "score": None}]}
    (found,) = milestones.result_rows([without], [after])
    assert found["before"] is None
    assert "difference" not in found
    (same,) = milestones.result_rows([after], [after])
    assert (same["difference"], same["within_noise"]) == (0.0, True)
    shown = io.StringIO()
    Console(file=shown, width=80).print(milestones.table([found, {**same, "no_verdict": 3}]))
    assert "100.0 [20, 100]" in shown.getvalue()
    assert "+0.0 [+0.0, +0.0] ~" in shown.getvalue()
    assert "s: no verdict on 3, left out" in shown.getvalue()


def test_evaluations_count_among_the_largest_phases_of_sampling() -> None:
    asked = parse({"eval": {"suites": ["nano-easy", "cruxeval"], "limit": 20, "samples": 3, "temperature": 1}}, "test")
    assert milestones.rows(asked) == 60  # one suite after the other
    assert milestones.rows(parse({"eval": {"suites": ["nano-easy:7", "cruxeval:9"]}}, "test")) == 9
    assert milestones.rows(parse({"eval": {"suites": ["nano-easy"]}}, "test")) == milestones.CHUNK
    assert milestones.rows(parse({}, "test")) == 0


# -- the command line --------------------------------------------------------------------------------------------------


def asking(data: Path, tiny: Path, path: Path, **settings: Any) -> Path:
    asked = {"suites": ["cruxeval-o", "nano-easy"], "every": 2, "limit": 200, "data_dir": str(data)}
    return write_recipe(path, tiny, eval=asked, steps=5, **settings)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.getbasetemp())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("processes", "kills"), [(1, {2: 0.0, 4: 0.03, 5: 0.06}), (2, {4: 0.03})])
def test_a_run_killed_in_an_evaluation_is_the_run_that_was_not(
    processes: int, kills: dict[int, float], data: Path, tiny: Path, tmp_path: Path
) -> None:
    recipe = asking(data, tiny, tmp_path / "recipe.yaml", processes=processes)
    straight, killed, notes = tmp_path / "straight", tmp_path / "killed", tmp_path / "phases"
    assert train(recipe, "--output", straight).code == 0
    arguments: tuple[str | Path, ...] = (recipe,)
    for step, delay in kills.items():
        _, where = kill_in(step, "eval", delay, notes, *arguments, "--output", killed)
        assert where == "eval"
        assert steps_done(killed) == step - 1
        arguments = ("--resume",)
    assert train("--resume", "--output", killed).code == 0
    assert_same_run(killed, straight)
    results = [json.loads((folder / "result.json").read_text())["eval"] for folder in (killed, straight)]
    assert results[0] == results[1]
    assert {line["step"] for line in metrics(killed) if "eval/nano-easy" in line} == {2, 4, 5}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("processes", [1, 2])
def test_the_last_scores_are_those_of_eval(processes: int, data: Path, tiny: Path, tmp_path: Path) -> None:
    recipe = asking(data, tiny, tmp_path / "recipe.yaml", processes=processes)
    assert train(recipe, "--output", tmp_path / "run").code == 0
    ours = json.loads((tmp_path / "run" / "eval" / "step-000005.json").read_text())
    with SandboxExecutor(workers=1) as executor:
        names = ["cruxeval-o", "nano-easy"]
        theirs = evaluate(tmp_path / "run" / "model", names, executor, data_dir=data, limit=200).as_dict()
    assert ours["suites"] == json.loads(json.dumps(theirs["suites"]))
