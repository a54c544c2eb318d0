import io
from collections.abc import Mapping

import pytest
from rich.console import Console

from selfplay_gym.training.live import LiveTable

FAMILIES = ("deduction", "abduction", "induction")
RECORD: Mapping[str, float] = {
    **{f"solve/{name}/reward": 1.0 for name in FAMILIES},
    **{f"propose/{name}/admitted": 1.0 for name in FAMILIES},
    "rejected/depends_on_input": 12,
    "tasks/new": 24,
    "tasks/replayed": 40,
    "tasks/body_lines": 2.5,
    "archive/tasks": 9000,
    "no_verdict": 0,
    "tokens/sampled": 9000,
    "seconds/step": 1.5,
}


def shown(width: int, height: int, steps: int) -> str:
    """Return what a terminal of that size shows after so many steps."""
    screen = io.StringIO()
    console = Console(width=width, height=height, force_terminal=True, color_system=None, file=screen)
    with LiveTable(console, 500) as live:
        for step in range(1, steps + 1):
            live.show({"step": step, **RECORD})
        return "Self-play" + screen.getvalue().rpartition("Self-play")[2]


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_no_figure_is_cut_on_a_narrow_terminal(width: int) -> None:
    text = shown(width, 24, 2)
    assert "…" not in text
    assert "│ 2/500 │ 100/100/100 │ 100/100/100 │" in text
    assert max(map(len, text.splitlines())) <= width


def test_a_wide_terminal_shows_every_column() -> None:
    text = shown(200, 24, 1)
    for cell in ("depends_on_input 12", "24+40", "2.5", "9000", "6000", "sandbox"):
        assert cell in text


@pytest.mark.parametrize("height", [10, 24, 50])
def test_the_newest_step_is_in_sight_however_low_the_terminal_is(height: int) -> None:
    text = shown(80, height, 40)
    assert "│ 40/500 │" in text
    assert len(text.splitlines()) < height
