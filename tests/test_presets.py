"""The recipes for real models: what the page about Absolute Zero says of them, and a short run of each."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfplay_gym.archive import Archive
from selfplay_gym.errors import SelfPlayError
from selfplay_gym.gate import CHECKS
from selfplay_gym.training import config
from selfplay_gym.training.folder import RunFolder
from tests.runs import train

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "absolute-zero.md").read_text(encoding="utf-8")
PRESETS = ("azr-paper", "selfplay")
HEADER = ["setting", "paper", "published code", "`azr-paper`", "`selfplay`", "why"]


def rows() -> list[list[str]]:
    """Return the rows of the page's tables of settings, as cells."""
    found: list[list[str]] = []
    reading = False
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            reading = False
        elif cells == HEADER:
            reading = True
        elif reading and not set(line) <= set("|-"):
            found.append(cells)
    return found


def quoted(cell: str) -> str:
    assert re.fullmatch(r"`[^`]+`", cell), f"expected one value in backticks, got {cell!r}"
    return cell.strip("`")


TABLE = {quoted(cells[0]): dict(zip(PRESETS, map(quoted, cells[3:5]), strict=True)) for cells in rows()}


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Return every setting by its dotted name."""
    if not isinstance(settings, dict) or not settings:
        return {prefix: settings}
    return {k: v for name, part in settings.items() for k, v in flat(part, f"{prefix}.{name}".strip(".")).items()}


def settings_of(preset: str) -> dict[str, Any]:
    return flat(config.load(preset, []).model_dump(mode="json"))


# -- the page ----------------------------------------------------------------------------------------------------------


def test_every_row_of_the_page_is_whole_and_its_own() -> None:
    assert len(rows()) > 40
    assert all(len(cells) == len(HEADER) for cells in rows())
    assert len(TABLE) == len(rows())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("key", TABLE)
def test_a_recipe_has_the_value_that_the_page_says(key: str, preset: str) -> None:
    found = settings_of(preset)
    assert key in found
    assert found[key] == yaml.safe_load(TABLE[key][preset])


def test_every_difference_between_the_recipes_is_on_the_page() -> None:
    published, ours = map(settings_of, PRESETS)
    assert published.keys() == ours.keys()
    assert {key for key in published if published[key] != ours[key]} <= TABLE.keys()


@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_recipe_sets_is_on_the_page(preset: str) -> None:
    """But for what says how long and where a run goes on, not what it does."""
    file = Path(config.__file__).parent / "recipes" / f"{preset}.yaml"
    written = flat(yaml.safe_load(file.read_text(encoding="utf-8")))
    assert {key for key in written if not key.startswith(("holdout", "save_steps"))} <= TABLE.keys()


DIFFERENT = [key for key, values in TABLE.items() if len(set(values.values())) > 1]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("key", DIFFERENT)
def test_an_ablation_is_one_setting(key: str, preset: str) -> None:
    other = TABLE[key][PRESETS[1 - PRESETS.index(preset)]]
    changed = flat(config.load(preset, [f"{key}={other}"]).model_dump(mode="json"))
    assert {name for name, value in settings_of(preset).items() if value != changed[name]} == {key}


def test_the_published_batch_is_384_sequences() -> None:
    """64 for each of three families in each of two roles."""
    published = config.load("azr-paper", [])
    assert (len(published.families), published.rows) == (3, 384)
    assert config.load("azr-paper", ["play.reuse_probes=true"]).rows == 192 + 1536


def test_the_published_gate_is_lax_and_ours_is_not() -> None:
    published, ours = (config.load(preset, []).gate.build() for preset in PRESETS)
    assert ours.disabled == frozenset()
    assert published.disabled == {"distinct_inputs", "message", "depends_on_input", "new", "deterministic"}
    assert published.disabled < CHECKS.keys()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("play.reuse_probes=true play.probe_temperature=0", ["play", "probe_temperature", "play.reuse_probes=false"]),
        ("play.lag=2", ["play.lag", "got 2"]),
        ("capacity=200", ["play.seed_tasks", "at most 200", "got 256"]),
        ("compare=pyton", ["compare", "'canonical' or 'python'", "'pyton'"]),
        ("evict=all", ["evict", "'oldest' or 'newest'", "'all'"]),
        ("gate.cut_outputs=1", ["gate.cut_outputs", "got 1"]),
        ("families.deduction.compare=pyton", ["'python'"]),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(override: str, words: list[str]) -> None:
    with pytest.raises(SelfPlayError) as caught:
        config.load("azr-paper", override.split()).make_families()
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_families_are_told_how_to_compare_and_may_be_told_otherwise() -> None:
    made = config.load("azr-paper", ["families.deduction.compare=canonical", "families.error={}"]).make_families()
    same = {name: getattr(family, "same", None) for name, family in made.items()}
    assert same["abduction"] is not None
    assert same["abduction"]("1", "True")
    assert same["deduction"] is not None
    assert not same["deduction"]("1", "True")


# -- printed -----------------------------------------------------------------------------------------------------------


def test_every_setting_is_described() -> None:
    lines = config.annotated(config.load("nano", ["update.lora={}"])).splitlines()
    assert len(lines) > 60
    assert [line for line in lines if not re.search(r": .*# \S.{8}|:  # \S.{8}", line) or line.endswith("# None")] == []


@pytest.mark.parametrize("preset", config.recipes())
def test_a_recipe_is_printed_as_one_that_can_be_trained(preset: str, tmp_path: Path) -> None:
    settings = config.load(preset, ["holdout=null", "model='a: b # c'", "update.lora.targets=[q_proj, v_proj]"])
    file = tmp_path / "printed.yaml"
    file.write_text(config.annotated(settings), encoding="utf-8")
    assert config.load(str(file), []) == settings


def test_a_printed_setting_stands_beside_what_it_means() -> None:
    lines = config.annotated(config.load("azr-paper", [])).splitlines()
    described = config.Play.model_fields["proposals"].description
    assert f"  proposals: 64  # {described}" in lines


# -- played ------------------------------------------------------------------------------------------------------------

SHORT = (
    "model=nano", "style=compact", "steps=2", "holdout=null", "processes=1", "update.bf16=false",
    "play.proposals=8", "play.tasks=24", "play.attempts=4", "play.prompt_tokens=256", "play.content_tokens=200",
    "play.max_new_tokens={propose: 128, solve: 96}", "families.induction.pairs=8",
    "families.deduction={references: 2, seed_input: \"'abcd'\"}", "families.abduction={references: 2}",
    "gate.cpu_seconds=0.5", "gate.wall_seconds=2", "update.micro_batch=64",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_runs_from_end_to_end(preset: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    seeds = 12 if preset == "azr-paper" else 0
    settings = [*SHORT, f"play.seed_tasks={seeds}"]
    ended = train(preset, *(word for setting in settings for word in ("--set", setting)), "--output", folder)
    assert ended.code == 0, ended.err
    metrics = [json.loads(line) for line in RunFolder(folder).metrics.read_text().splitlines()]
    assert [record["step"] for record in metrics] == [1, 2]
    assert all(record["tasks/new"] > 0 for record in metrics)
    assert all((record["tokens/untrained"] > 0) == (preset == "azr-paper") for record in metrics)
    resumed = train("--resume", "--output", folder, "--set", "steps=3")
    assert resumed.code == 0, resumed.err
    assert "resuming after step 2" in resumed.out
    with Archive.read(RunFolder(folder).archive) as archive:
        stored = [task for task in archive.tasks() if task.step == 0]
    families = [task.task.family for task in stored]
    assert {name: families.count(name) for name in set(families)} == dict.fromkeys(
        ("deduction", "abduction", "induction"), max(seeds, 1)
    )
