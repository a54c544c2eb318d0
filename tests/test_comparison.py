import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from selfplay_gym.comparison import as_dict, compare_files, table, warnings
from selfplay_gym.errors import InvalidData


def report(path: Path, scores: list[float | None], groups: str = "", **changes: Any) -> Path:
    rows = [{"id": str(i), "score": score, "reason": ""} for i, score in enumerate(scores)]
    rows = [{**row, "group": group} for row, group in zip(rows, groups, strict=True)] if groups else rows
    result = {"suite": "s", "data_sha256": "d", "protocol": "p", "rows": rows, **changes}
    path.write_text(json.dumps({"suites": [result]}))
    return path


def test_problems_are_paired_and_those_without_a_verdict_left_out(tmp_path: Path) -> None:
    before = report(tmp_path / "a.json", [0.0, 1.0, None, 0.0])
    after = report(tmp_path / "b.json", [1.0, 1.0, 1.0, None])
    (result,) = compare_files(before, after)
    assert (result.n, result.before, result.after, result.interval.difference) == (2, 0.5, 1.0, 0.5)
    assert json.loads(json.dumps(as_dict([result], before, after)))["suites"][0]["interval"]["difference"] == 0.5


def test_groups_are_paired_rather_than_their_problems(tmp_path: Path) -> None:
    before = report(tmp_path / "a.json", [0.0, 0.0, 0.0, 1.0, None], groups="aaabb")
    after = report(tmp_path / "b.json", [1.0, 1.0, 1.0, 1.0, 1.0], groups="aaabb")
    (result,) = compare_files(before, after)
    assert (result.n, result.before, result.after, result.interval.difference) == (4, 0.5, 1.0, 0.5)
    assert (result.interval.low, result.interval.high) == (0.0, 1.0)  # two units, one of which changed


def test_another_protocol_is_said(tmp_path: Path) -> None:
    before, after = report(tmp_path / "a.json", [0.0]), report(tmp_path / "b.json", [1.0], protocol="q")
    found = compare_files(before, after)
    assert found[0].caveat == "other protocols (p, q)"
    screen = StringIO()
    Console(file=screen, width=80).print(table(found))
    assert "+100.0" in screen.getvalue()
    assert "other protocols" in screen.getvalue()


def test_what_differs_in_two_protocols_is_named(tmp_path: Path) -> None:
    before = report(tmp_path / "a.json", [0.0], settings={"style": "azr", "limits": {"cpu": 1}, "rules": 1})
    after = report(tmp_path / "b.json", [1.0], settings={"style": "chat", "limits": {"cpu": 1}, "k": 2}, protocol="q")
    assert compare_files(before, after)[0].caveat.endswith("they differ in style, rules, k")


def test_problems_that_cannot_be_paired_are_counted(tmp_path: Path) -> None:
    before = report(tmp_path / "a.json", [0.0, None, 1.0])
    after = report(tmp_path / "b.json", [1.0, 1.0, 1.0, 1.0])
    assert compare_files(before, after)[0].caveat == "2 of 4 problems have no verdict in one of the files"


def test_problems_that_rose_and_fell_are_counted_and_a_clear_change_is_no_noise(tmp_path: Path) -> None:
    before = report(tmp_path / "a.json", [0.0] * 12 + [1.0, 1.0])
    after = report(tmp_path / "b.json", [1.0] * 12 + [0.0, 1.0])
    found = compare_files(before, after)
    assert (found[0].rose, found[0].fell, found[0].within_noise) == (12, 1, False)
    assert warnings(found) == []
    screen = StringIO()
    Console(file=screen, width=80).print(table(found))
    assert "12/1" in screen.getvalue()


def test_a_difference_within_noise_is_warned_of(tmp_path: Path) -> None:
    before, after = report(tmp_path / "a.json", [0.0, 0.0, 1.0]), report(tmp_path / "b.json", [1.0, 0.0, 1.0])
    found = compare_files(before, after)
    assert warnings(found) == ["s: +33.3 points are within noise (95% interval +0.0 to +100.0, p 1)"]
    assert json.loads(json.dumps(as_dict(found, before, after)))["suites"][0]["within_noise"] is True


def test_the_json_says_what_was_compared(tmp_path: Path) -> None:
    before, after = report(tmp_path / "a.json", [0.0]), report(tmp_path / "b.json", [1.0], protocol="q")
    after.write_text(json.dumps({**json.loads(after.read_text()), "model": "m", "seed": 3}))
    told: Any = as_dict(compare_files(before, after), before, after)
    assert (told["before"]["file"], told["after"]["model"], told["after"]["seed"]) == (str(before), "m", 3)
    assert (told["suites"][0]["data_sha256"], told["suites"][0]["protocols"]) == ("d", ("p", "q"))
    assert told["command"]
    assert told["versions"]["python"]


def test_where_no_score_changed_there_is_no_interval_to_believe_in(tmp_path: Path) -> None:
    before, after = report(tmp_path / "a.json", [0.0, 1.0]), report(tmp_path / "b.json", [0.0, 1.0])
    found = compare_files(before, after)
    assert warnings(found) == ["s: the score of no problem changed"]
    screen = StringIO()
    Console(file=screen, width=80).print(table(found))
    assert "+0.0 to +0.0" not in screen.getvalue()


def test_one_of_many_suites_that_seems_to_change_is_noise(tmp_path: Path) -> None:
    files = []
    for name, after in (("a.json", 0.0), ("b.json", 1.0)):
        alone = json.loads(report(tmp_path / name, [after] * 7 + [0.0] * 9).read_text())["suites"][0]
        others = [{**alone, "suite": f"t{i}", "rows": [{"id": "0", "score": 1.0}]} for i in range(9)]
        (tmp_path / name).write_text(json.dumps({"suites": [alone, *others]}))
        files.append(tmp_path / name)
    found = compare_files(*files)
    assert (found[0].interval.p_value, found[0].p_corrected) == (2 / 2**7, 10 * 2 / 2**7)
    assert warnings(found)[0] == (
        "s: +43.8 points are within noise (p 0.016, and 0.16 seen that 10 suites were compared)"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"data_sha256": "e"}, "different data"), ({"suite": "t"}, "no suite in common")],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    before, after = report(tmp_path / "a.json", [0.0]), report(tmp_path / "b.json", [1.0], **changes)
    with pytest.raises(InvalidData, match=message):
        compare_files(before, after)


@pytest.mark.parametrize("score", ["1", True, -0.5, 1.5, float("nan"), float("inf"), [1.0], {}])
def test_a_score_is_none_or_from_0_to_1(tmp_path: Path, score: Any) -> None:
    before, after = report(tmp_path / "a.json", [0.0]), report(tmp_path / "b.json", [score])
    with pytest.raises(InvalidData, match=r"b\.json was not written by eval --json.* the score of '0'") as caught:
        compare_files(before, after)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": 3}, "field 'suite' must be text, got"),
        ({"suite": ["s"]}, "field 'suite' must be text, got"),
        ({"data_sha256": None}, "field 'data_sha256' must be text, got NoneType"),
        ({"protocol": {}}, "field 'protocol' must be text, got dict"),
        ({"rows": [{"id": 0, "score": 1.0}]}, "field 'id' must be text, got"),
        ({"rows": [{"id": "0", "score": 1.0, "group": 0}]}, "field 'group' must be text, got"),
        ({"rows": [{"id": [], "score": 1.0}]}, "field 'id' must be text, got"),
        ({"rows": [{"id": "0", "score": 1.0}, {"id": "0", "score": 0.0}]}, "id '0' is there twice"),
    ],
)
def test_names_are_texts_and_ids_are_there_once(tmp_path: Path, changes: Any, message: str) -> None:
    before, after = report(tmp_path / "a.json", [0.0]), report(tmp_path / "b.json", [1.0], **changes)
    with pytest.raises(InvalidData, match=rf"b\.json .*{message}"):
        compare_files(before, after)
    with pytest.raises(InvalidData, match=rf"b\.json .*{message}"):
        compare_files(after, before)


def test_a_suite_is_there_once(tmp_path: Path) -> None:
    before, after = report(tmp_path / "a.json", [0.0]), report(tmp_path / "b.json", [1.0])
    after.write_text(json.dumps({"suites": 2 * json.loads(after.read_text())["suites"]}))
    with pytest.raises(InvalidData, match=r"b\.json .*suite 's' is in it twice"):
        compare_files(before, after)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("{}", "field 'suites' is missing; there are none"),
        ('{"steps": 3, "play": {}}', "field 'suites' is missing; there are 'steps', 'play'"),
        ("[]", "expected a JSON object, got list"),
        ('{"suites": 3}', "field 'suites' must be a list, got int"),
        ('{"suites": []}', "there is no suite in it"),
        ('{"suites": ["s"]}', "expected a JSON object, got str"),
        ('{"suites": [{"suite": "s"}]}', "field 'data_sha256' is missing; there are 'suite'"),
        ('{"suites": [{"suite": "s", "data_sha256": "", "protocol": "", "rows": [{"id": "0"}]}]}', "field 'score' is"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InvalidData, match=rf"a\.json was not written by eval --json: .*{why}"):
        compare_files(tmp_path / "a.json", report(tmp_path / "b.json", [1.0]))
    with pytest.raises(InvalidData, match="cannot read"):
        compare_files(tmp_path / "absent", tmp_path / "a.json")
