"""The run report: it shows what happened, and nothing that a model wrote does anything in it."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from selfplay_gym.archive import Archive
from selfplay_gym.errors import InvalidData
from selfplay_gym.page import chart
from selfplay_gym.report import write_report
from selfplay_gym.types import Task

HOSTILE = (
    "<script>alert(1)</script></pre><img src=x onerror=alert(2)><a href='javascript:x'>&amp;\x1b[2J\x00\u202e\ud800"
)
ROW = {"suite": "nano", "family": "all", "n": 9, "before": 0.5, "after": 0.75, "difference": 0.25} | {
    f"{part}_interval": [0.0, 1.0] for part in ("before", "after", "difference")
}
RESULT = {
    "holdout": [ROW], "verdict": "It rose.", "steps": 3, "seconds": 90.0, "tier": "full", "versions": {"python": "3"},
}  # fmt: skip


def make_run(
    folder: Path, steps: int = 3, result: object = None, text: str = "Return it.", archive: bool = True
) -> Path:
    """Make a run folder as it is after some steps; a task's program and message, and a rejection, hold ``text``."""
    folder.mkdir()
    record = {
        "propose/deduction/admitted": 0.5,
        "solve/deduction/reward": 0.25,
        "seconds/step": 1.5,
        "archive/tasks": 2,
    }
    lines = [json.dumps({"step": step, **record, "propose/deduction/reward": step}) for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    if result is not None:
        (folder / "result.json").write_text(result if isinstance(result, str) else json.dumps(result))
    if archive:
        with Archive(folder / "archive.sqlite") as store:
            task = Task("deduction", f"def f(x):\n    return x  # {text}", (repr(text),), (repr(text),), text)
            first = store.add_task(task, 1)
            store.add_task(Task("deduction", "def f(x):\n    return x", ("1",), ("1",)), 1, [first])
            store.record_attempts(1, [(first, 8, 4)])
            store.record_rejection(1, "deduction", "parse", text, text)
    return folder


class Page(HTMLParser):
    """Reads a page, checks that its elements nest, and keeps what a test asks about."""

    VOID = frozenset({"meta"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(run: Path) -> Page:
    path = write_report(run)
    assert path == run / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_a_report_shows_result_curves_and_tasks(tmp_path: Path) -> None:
    page = read(make_run(tmp_path / "run", result=RESULT))
    for part in ("It rose.", "50.0 (0.0 to 100.0)", "3 steps in 1.5 minutes", "2 tasks of 2 programs", "solved 4 of 8"):
        assert part in page.text
    assert page.tags.count("svg") == 5
    assert "Ancestors: 1." in page.text
    assert "parse1" in page.text.replace("\n", "")


def test_nothing_a_model_wrote_does_anything(tmp_path: Path) -> None:
    result = {**RESULT, "verdict": HOSTILE, "tier": HOSTILE, "holdout": [{**ROW, "family": HOSTILE}]}
    run = make_run(tmp_path / "<b>run", result=result, text=HOSTILE)
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": n, f"propose/{HOSTILE}/admitted": 0.5}) + "\n" for n in range(3))
    )
    page = read(run)
    assert not {"script", "img", "a", "b", "iframe", "object", "link"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("href", "src", "action")]
    assert page.text.count("<script>alert(1)</script></pre>") >= 5
    assert r"\x1b[2J\x00\u202e\ud800" in page.text
    assert all(c.isprintable() or c == "\n" for c in page.text)


def test_the_page_forbids_itself_to_load_or_run_anything(tmp_path: Path) -> None:
    page = read(make_run(tmp_path / "run"))
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_a_report_does_not_depend_on_how_the_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_run(tmp_path / "run"))
    assert "run" in Page(write_report(Path()).read_text()).text


@pytest.mark.parametrize("steps", [0, 1, 2, 100])
def test_a_run_of_any_length_has_a_report(tmp_path: Path, steps: int) -> None:
    page = read(make_run(tmp_path / "run", steps=steps))
    assert f"{steps} step{'' if steps == 1 else 's'}." in page.text
    assert ("svg" in page.tags) == (steps > 1)


def test_a_run_without_holdouts_has_no_empty_table(tmp_path: Path) -> None:
    page = read(make_run(tmp_path / "run", result={**RESULT, "holdout": [], "verdict": "No hold-out was asked for."}))
    assert "No hold-out was asked for." in page.text
    assert page.tags.count("table") == 2  # the phases and the rejections


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "sol')
    assert "3 steps." in read(run).text


@pytest.mark.parametrize("value", ["NaN", "Infinity", "null", '"many"', "[1]"])
def test_what_is_no_number_is_left_out_of_the_curves(tmp_path: Path, value: str) -> None:
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(f'{{"step": 4, "seconds/step": {value}}}\n')
    page = read(run)
    assert "4 steps." in page.text
    assert not [value for name, value in page.attributes if name == "points" and "nan" in (value or "")]


@pytest.mark.parametrize(
    "line", ["[]", "3", "{}", '{"step": null}', '{"step": NaN}', "nonsense", '{"step": 1' + "0" * 400 + "}"]
)
def test_a_broken_line_of_metrics_is_named(tmp_path: Path, line: str) -> None:
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InvalidData, match=r"metrics\.jsonl, line 4: not a JSON object with a step"):
        write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("result", ["{", "[]", "{}", '{"holdout": [3]}', json.dumps({**RESULT, "verdict": 3})])
def test_a_broken_result_is_named(tmp_path: Path, result: str) -> None:
    with pytest.raises(InvalidData, match=r"result\.json was not written by a run"):
        write_report(make_run(tmp_path / "run", result=result))


def test_a_missing_archive_is_named_and_none_is_made(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", archive=False)
    with pytest.raises(InvalidData, match=r"archive\.sqlite: expected an archive, found no file"):
        write_report(run)
    assert sorted(path.name for path in run.iterdir()) == ["metrics.jsonl"]


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InvalidData, match=r"is no run folder with a finished step: metrics\.jsonl: No such file"):
            write_report(folder)


def test_a_chart_of_equal_values_has_a_height() -> None:
    drawn: Any = Page(chart({"a": [(1.0, 0.0), (2.0, 0.0)], "<b>": [(1.0, 1.0), (1.0, 1.0)]}))
    assert drawn.tags.count("polyline") == 2
    assert "<b>" in drawn.text


# -- what the run warned of, and where time, tokens and proposals went -------------------------------------------------


def write_steps(run: Path, steps: list[dict[str, object]]) -> Path:
    lines = [json.dumps({"step": number, **record}) for number, record in enumerate(steps, start=1)]
    (run / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    return run


def test_alarms_that_rang_are_told_with_their_step(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "None rang." in read(run).text
    write_steps(run, [{"propose/<b>/admitted": 0.0, "rejected/<i>": 3}] * 12)
    page = read(run)
    assert "Step 10: <b> has admitted no task for 10 steps (rejected most in this one: <i>)" in page.text
    assert page.text.count("has admitted no task") == 1
    assert not {"b", "i"} & set(page.tags)


@pytest.mark.parametrize(("settings", "rings"), [({"mismatch": {"alarm": 0.5}}, True), ({"model": "old"}, False)])
def test_the_limit_of_the_mismatch_is_the_run_s_own(tmp_path: Path, settings: object, rings: bool) -> None:
    run = write_steps(make_run(tmp_path / "run"), [{"mismatch/mean": math.nan}, {"mismatch/mean": 0.6}])
    (run / "config.yaml").write_text(json.dumps(settings))
    assert ("above mismatch.alarm = 0.5" in read(run).text) is rings


@pytest.mark.parametrize("settings", ["[", "[]", "{mismatch: 3}", "{mismatch: {alarm: high}}"])
def test_broken_settings_are_named(tmp_path: Path, settings: str) -> None:
    run = make_run(tmp_path / "run")
    (run / "config.yaml").write_text(settings)
    with pytest.raises(InvalidData, match=r"config\.yaml was not written by a run"):
        write_report(run)


def test_time_is_told_by_phase_and_tokens_by_use(tmp_path: Path) -> None:
    record = {"propose": 1.0, "gate": 0.5, "solve": 2.0, "judge": 0.5, "mismatch": 0.25, "update": 5.0, "step": 10.0}
    step = {f"seconds/{phase}": seconds for phase, seconds in record.items()}
    step |= {"tokens/sampled": 1000, "tokens/untrained": 200}
    slow = {**step, "seconds/update": 15.0, "seconds/step": 20.0}
    page = read(write_steps(make_run(tmp_path / "run"), [slow] * 20 + [step] * 20))
    cells = page.text.partition("last 20")[2].partition("Sandbox:")[0]
    for row in ("propose1.0006.71.000", "update10.00066.75.000", "other0.7505.00.750", "step15.000100.010.000"):
        assert row in cells.replace("\n", ""), cells
    assert "holdout" not in cells
    assert "Sandbox: 6.7% of the time." in page.text
    assert "Tokens: 40,000 sampled, 20.0% of them not trained on." in page.text


def test_each_check_shows_the_newest_proposal_that_it_refused_and_not_all_of_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", text="the older one")
    with Archive(run / "archive.sqlite") as store:
        store.record_rejection(2, "deduction", "parse", HOSTILE, "the newer one" + "x" * 10_000)
        store.record_rejection(2, "abduction", "new", "seen in step 1", "again")
    page = read(run)
    assert "parse: deduction, step 2" in page.text
    assert "the newer one" + "x" * 1987 + "..." in page.text
    assert "x" * 1988 not in page.text
    assert "new: abduction, step 2seen in step 1again" in page.text
    refused = page.text.partition("each check refused")[2].partition("Hardest")[0]
    assert "the older one" not in refused
    assert not {"script", "img", "a"} & set(page.tags)


def test_hardest_tasks_are_shown_with_what_their_proposer_saw(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with Archive(run / "archive.sqlite") as store:
        hard, never, line = (
            store.add_task(Task("deduction", f"def f(x):\n    return {n}", ("1",), (str(n),)), 2, [2, 1])
            for n in range(3)
        )
        store.record_attempts(2, [(hard, 8, 1), (never, 8, 0)])
        store.record_attempts(3, [(hard, 8, 0), (never, 8, 0)])  # over all records, not the latest
        for step in range(3, 20):
            line = store.add_task(Task("deduction", f"def f(y):\n    return {step}", ("1",), ("1",)), step, [line])
    text = read(run).text
    solved = text.partition("Hardest tasks that were solved")[2].partition("Most tried tasks that never were")[0]
    assert [
        solved.find(title) for title in ("task 3, step 2: solved 1 of 16", "task 1, step 1: solved 4 of 8")
    ] == sorted([solved.find("task 3, step 2"), solved.find("task 1, step 1")])
    assert "task 3, step 2: solved 1 of 16References: task 2 (step 1), task 1 (step 1). Ancestors: 1, 2." in solved
    never_solved = text.partition("Most tried tasks that never were")[2].partition("Newest tasks")[0]
    assert "task 4, step 2: solved 0 of 16" in never_solved
    assert "task 3" not in never_solved
    newest = text.partition("Newest tasks")[2]
    assert "task 22, step 19" in newest
    assert "References: task 21 (step 18). Ancestors: 10, 11," in newest
    assert "21 and 7 older ones." in newest


def test_a_difference_within_noise_is_marked(tmp_path: Path) -> None:
    rows = [{**ROW, "within_noise": True}, {**ROW, "family": "x", "within_noise": False}, ROW]
    page = read(make_run(tmp_path / "run", result={**RESULT, "holdout": rows}))
    assert page.text.count("within noise") == 1
