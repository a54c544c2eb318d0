"""A sweep over checkpoints: which are taken or skipped, that nothing is asked twice, what is said of a curve."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from selfplay_gym.errors import InvalidConfig, InvalidData, UnknownId
from selfplay_gym.eval_protocols import Changes
from selfplay_gym.results import Report, RowScore, SuiteResult
from selfplay_gym.training import sweep as sweeping
from selfplay_gym.training.generation import Request
from selfplay_gym.training.nano import build_model, build_tokenizer
from selfplay_gym.training.policy import Completion, Policy
from selfplay_gym.training.sweep import Checkpoint, checkpoints, select, sweep
from selfplay_gym.training.sweep_result import Measured, Sweep, said
from tests.conftest import FakeExecutor
from tests.test_cli import Run, run  # noqa: F401  the fixture
from tests.test_report import Page

SHORT: Changes = {"max_new_tokens": 4}


def save_policy(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    build_model(tokenizer, hidden=64, layers=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run under way: two whole checkpoints, one without its weights and one that is being written."""
    folder = tmp_path / "run"
    for step in (2, 4, 10, 12):
        path = save_policy(folder / "checkpoints" / f"checkpoint-{step}", step)
        (path / "complete.json").write_text("{}")
    (folder / "checkpoints" / "checkpoint-10" / "model.safetensors").unlink()
    (folder / "checkpoints" / "checkpoint-12" / "complete.json").unlink()
    (folder / "checkpoints" / "checkpoint-old").mkdir()
    start = save_policy(tmp_path / "begun", 0)
    (folder / "config.yaml").write_text(json.dumps({"model": str(start), "families": {"deduction": {}}, "steps": 12}))
    return folder


# -- which checkpoints -------------------------------------------------------------------------------------------------


def test_checkpoints_are_found_by_step_and_those_cut_off_are_named(run_folder: Path) -> None:
    found, skipped = checkpoints(run_folder)
    assert [(each.step, each.name) for each in found] == [
        (0, "start"), (2, "checkpoint-2"), (4, "checkpoint-4"), (10, "checkpoint-10"),
    ]  # fmt: skip
    assert skipped.keys() == {"checkpoint-12"}


def test_the_model_of_a_finished_run_stands_for_its_last_step(run_folder: Path) -> None:
    save_policy(run_folder / "model", 10)
    (run_folder / "result.json").write_text('{"steps": 10}')
    found, _ = checkpoints(run_folder)
    assert [(each.step, each.name) for each in found][2:] == [(4, "checkpoint-4"), (10, "model")]


def test_the_shipped_policy_is_the_start_of_its_runs(run_folder: Path) -> None:
    (run_folder / "config.yaml").write_text("model: nano\nfamilies: {deduction: {}}\n")
    assert Path(checkpoints(run_folder)[0][0].source).name == "nano_policy"


@given(st.lists(st.integers(1, 60), min_size=1, unique=True), st.integers(1, 30), st.booleans())
def test_a_selection_is_in_order_and_ends_with_the_last(steps: Sequence[int], number: int, start: bool) -> None:
    found = [Checkpoint(step, str(step), "") for step in (0, *sorted(steps))]
    every, last = (select(found, f"{kind}:{number}", start) for kind in ("every", "last"))
    for chosen in (every, last, select(found, "all", start)):
        assert [each for each in found if each in chosen] == chosen
        assert (chosen[0] is found[0]) == start
        assert chosen[-1] is found[-1]
    assert all(each.step % number == 0 for each in every[:-1])
    assert len(last) == start + min(number, len(steps))


@pytest.mark.parametrize("which", ["", "some", "every", "every:", "every:0", "last:-1", "last:two", "all:2"])
def test_a_selection_of_another_form_is_refused(which: str) -> None:
    with pytest.raises(InvalidConfig, match="must be all, every:N or last:N"):
        select([Checkpoint(0, "start", "")], which)


# -- evaluating --------------------------------------------------------------------------------------------------------


def test_a_sweep_measures_goes_on_without_asking_again_and_names_what_it_skips(
    run_folder: Path, echo: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, asked = Policy.complete, []

    def counted(policy: Policy, requests: Sequence[Request]) -> list[Completion]:
        asked.append(len(requests))
        return complete(policy, requests)

    monkeypatch.setattr(Policy, "complete", counted)
    how: dict[str, Any] = {"sampling": SHORT, "limit": 3}
    found = sweep(run_folder, ["nano-easy"], echo, which="last:2", **how)
    assert [(p.step, p.name) for p in found.points] == [(0, "start"), (4, "checkpoint-4")]
    assert (found.skipped.keys(), asked) == ({"checkpoint-10", "checkpoint-12"}, [3, 3])
    assert "model.safetensors" in found.skipped["checkpoint-10"]
    again = sweep(run_folder, ["nano-easy"], echo, **how)
    assert [p.name for p in again.points] == ["start", "checkpoint-2", "checkpoint-4"]
    assert asked == [3, 3, 3]
    assert [again.points[n].results for n in (0, 2)] == [p.results for p in found.points]
    sweep(run_folder, ["nano"], echo, which="last:2", **how)
    assert asked == [3, 3, 3, 3, 3]  # of the other suite alone
    sweep(run_folder, ["nano-easy"], echo, which="last:2", sampling={"max_new_tokens": 5}, limit=3)
    assert asked[5:] == [3, 3]  # other settings have other answers
    files = {path.name for path in (run_folder / "sweep").iterdir()}
    assert {"sweep.html", "sweep.json", "start.json", "checkpoint-4.json", "answers"} <= files


def test_adapters_are_evaluated_as_eval_does(run_folder: Path, echo: FakeExecutor) -> None:
    from peft import LoraConfig, get_peft_model

    policy = Policy.load(run_folder.parent / "begun")
    folder = run_folder / "checkpoints" / "checkpoint-6"
    get_peft_model(policy.model, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    (folder / "complete.json").write_text("{}")
    found = sweep(run_folder, ["nano-easy"], echo, which="every:6", sampling=SHORT, limit=2)
    assert [p.name for p in found.points] == ["start", "checkpoint-6"]
    assert found.points[0].results[0].rows == found.points[1].results[0].rows  # fresh adapters change nothing


def test_an_interrupted_sweep_has_written_what_it_found(
    run_folder: Path, echo: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = sweeping.evaluate

    def interrupted(source: str, *names: Any, **how: Any) -> Report:
        if source.endswith("checkpoint-4"):
            raise KeyboardInterrupt
        return evaluate(source, *names, **how)

    monkeypatch.setattr(sweeping, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(run_folder, ["nano-easy"], echo, sampling=SHORT, limit=2)
    written = json.loads((run_folder / "sweep" / "sweep.json").read_text())
    assert [point["step"] for point in written["suites"][0]["points"]] == [0, 2]


def test_what_cannot_be_swept_is_told(run_folder: Path, tmp_path: Path, echo: FakeExecutor) -> None:
    with pytest.raises(InvalidData, match="is no run folder: expected config"):
        sweep(tmp_path, ["nano"], echo)
    with pytest.raises(UnknownId, match="no suite 'nanno'"):
        sweep(run_folder, ["nanno"], echo)
    with pytest.raises(InvalidConfig, match=r"no checkpoint of .* can be evaluated: checkpoint-12: .*checkpoint-10: "):
        sweep(run_folder, ["nano-easy"], echo, which="last:1", start=False)
    with pytest.raises(InvalidConfig, match="start, checkpoint-2, checkpoint-4, checkpoint-10: no protocol"):
        sweep(run_folder, ["nano-easy"], echo, which="every:2", protocol="customary")


def test_the_command_prints_a_table_and_says_where_the_curve_is(run_folder: Path, run: Run) -> None:  # noqa: F811
    answer = run(
        "sweep", run_folder, "--suite", "nano-easy", "--checkpoints", "last:2", "--limit", 2, "--max-new-tokens", 2,
        "--output", run_folder.parent / "out",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert "checkpoint-4" in answer.out
    assert "out/sweep.html" in answer.err
    assert "step 4 (checkpoint-4), 2 of 3" in answer.err
    assert run("sweep", run_folder, "--suite", "nano", "--checkpoints", "most").line.endswith("got 'most'")


# -- what is said ------------------------------------------------------------------------------------------------------


def report(right: int, of: int = 20, protocol: str = "p") -> Report:
    rows = tuple(RowScore(str(n), float(n < right), "", (float(n < right),)) for n in range(of))
    result = SuiteResult(
        "s", of, "accuracy", right / of, (0.0, 1.0), 0, 0, None, {}, {}, protocol, {}, "d" * 64, "<b>note", rows
    )  # fmt: skip
    return Report((result,), "m", versions={"python": "3"})


def swept(*reports: Report) -> Sweep:
    points: list[Measured] = []
    for number, each in enumerate(reports):
        points.append(Measured.of(10 * number, f"checkpoint-{10 * number}", each, points[0] if points else None))
    return Sweep("runs/<a>", tuple(points), {"checkpoint-9": "<i>broken"}, 0, {"python": "3"}, "command")


def test_changes_are_against_the_first_and_corrected_for_their_number() -> None:
    found = swept(report(5), report(5), report(11))
    (rows,) = found.by_suite().values()
    assert [row.change.interval.difference if row.change else None for row in rows] == [None, 0.0, pytest.approx(0.3)]
    assert rows[2].change is not None
    assert rows[2].change.p_corrected == 2 * rows[2].change.interval.p_value == 4 * 0.5**6
    assert said("s", rows) == "s: no checkpoint differs from the first beyond noise."


def test_a_clear_change_is_said() -> None:
    found = swept(report(2), report(3), report(15))
    sentence = "s: beyond noise at step 20 (+65.0); the others are within noise of the first."
    assert said("s", found.by_suite()["s"]) == sentence
    written = json.loads(json.dumps(found.as_dict()))["suites"][0]
    assert [point["change"] and point["change"]["within_noise"] for point in written["points"]] == [None, True, False]
    screen = StringIO()
    Console(file=screen, width=80).print(found.table())
    assert "+65.0" in screen.getvalue()
    assert "checkpoint-9 was skipped" in screen.getvalue()


def test_another_protocol_and_checkpoints_without_a_common_verdict_are_no_silent_zero() -> None:
    no_verdict = report(5)
    rows = tuple(replace(row, score=None) for row in no_verdict.results[0].rows)
    empty = replace(no_verdict, results=(replace(no_verdict.results[0], rows=rows, n=0, value=None, interval=None),))
    found = swept(report(5), empty, report(5, protocol="q"))
    assert [row.change is None for row in found.by_suite()["s"]] == [True, True, False]
    assert any("other protocols (p, q)" in line for line in found.warnings())
    assert found.by_suite()["s"][1].result.value is None


def test_the_page_has_a_curve_and_nothing_in_it_does_anything(tmp_path: Path) -> None:
    swept(report(2), report(15)).write(tmp_path)
    page = Page((tmp_path / "sweep.html").read_text(encoding="utf-8"))
    assert page.tags.count("svg") == 1
    assert not {"script", "b", "i", "a"} & set(page.tags)
    swept(report(2)).write(tmp_path)
    assert "svg" not in Page((tmp_path / "sweep.html").read_text(encoding="utf-8")).tags
