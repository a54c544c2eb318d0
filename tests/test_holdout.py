"""The table of a run's hold-outs, before and after."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from selfplay_gym.training import holdout


def test_the_table_marks_what_is_within_noise() -> None:
    before: holdout.Scores = {"nano-easy": {f"{f}-{n}": 0.0 for f in ("deduction", "abduction") for n in range(12)}}
    after: holdout.Scores = {"nano-easy": {key: float(key.startswith("deduction")) for key in before["nano-easy"]}}
    after["nano-easy"]["abduction-0"] = 1.0
    rows = holdout.compare(before, after)
    assert [(row["family"], row["within_noise"]) for row in rows[:3]] == [
        ("abduction", True), ("deduction", False), ("all", False),
    ]  # fmt: skip
    screen = StringIO()
    Console(file=screen, width=80).print(holdout.table(rows, 4))
    assert "+8.3 [+0.0, +25.0] ~" in screen.getvalue()
    assert screen.getvalue().count(" ~") == 3  # abduction of the suite and of all, and the legend
