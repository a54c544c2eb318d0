"""The settings of a run: what a recipe and ``--set`` can say, and the one line that answers a mistake."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from selfplay_gym.errors import InvalidConfig, SelfPlayError, UnknownId
from selfplay_gym.training import config

RECIPES = config.recipes()


def refusal_of(recipe: str, *overrides: str) -> str:
    with pytest.raises(SelfPlayError) as caught:
        config.load(recipe, list(overrides))
    message = str(caught.value)
    assert "\n" not in message
    assert "pydantic" not in message.lower()
    assert "http" not in message
    return message


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_shipped_recipe_is_valid_and_written_out_whole(recipe: str) -> None:
    settings = config.load(recipe, [])
    again = config.parse(yaml.safe_load(config.dump(settings)), "dump")
    assert again == settings
    assert again.gate.build() == settings.gate.build()
    assert again.reward.build() == settings.reward.build()


def test_nano_is_among_the_recipes() -> None:
    assert "nano" in RECIPES


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("step=3", "'steps'"),
        ("play.atempts=3", "'play.attempts'"),
        ("play.max_new_tokens.solv=3", "'play.max_new_tokens.solve'"),
        ("gate.cpu_second=1", "'gate.cpu_seconds'"),
        ("holdout.sample=3", "'holdout.samples'"),
        ("update.learnin_rate=1e-3", "'update.learning_rate'"),
        ("reward.learnability=peek", "'peak'"),
        ("reward.solver=azr", "'azr-code'"),
        ("reward.intrinsic.halsted=1", "'halstead'"),
        ("reward.combine=multiplied", "'multiply'"),
        ("update.advantage=grup", "'group'"),
        ("play.references=recent", "'recency'"),
    ],
)
def test_an_unknown_name_brings_the_nearest(override: str, nearest: str) -> None:
    message = refusal_of("nano", override)
    assert nearest in message.partition("did you mean ")[2]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("play.attempts=1", ["play.attempts", "2", "got 1"]),
        ("play.attempts=many", ["play.attempts must be a whole number, got 'many'"]),
        ("play.replays=oldest", ["play.replays", "'half_solved'", "'oldest'"]),
        ("play.references=half_solved", ["play.references", "half_solved"]),
        ("play.temperature=0", ["play.temperature", "greater than 0"]),
        ("play.temperature=.nan", ["play.temperature", "got nan"]),
        ("play.temperature=1e999", ["play.temperature", "finite"]),
        ("update.baseline_decay=1", ["update.baseline_decay", "less than 1"]),
        ("update.entropy_coef=.nan", ["update.entropy_coef", "finite"]),
        ("reward.novelty=.inf", ["reward.novelty", "finite"]),
        ("reward.novelty=-1", ["reward.novelty", "-1"]),
        ("reward.intrinsic.halstead=-1", ["reward", "halstead", "-1"]),
        ("reward.intrinsic.halstead=much", ["reward.intrinsic.halstead", "'much'"]),
        ("reward.intrinsic=halstead", ["reward.intrinsic must be a section", "{key: value}, got 'halstead'"]),
        ("reward.intrinsic_cap=.inf", ["reward.intrinsic_cap", "finite"]),
        ("gate.cpu_seconds=0", ["gate", "cpu_seconds", "0.001"]),
        ("gate.wall_seconds=0.01", ["gate", "wall_seconds"]),
        ("gate.program_characters=0", ["gate", "program_characters"]),
        ("gate.disabled=[syntax]", ["gate", "syntax", "cannot be disabled"]),
        ("gate.disabled=new", ["gate.disabled must be a list, such as [a, b], got 'new'"]),
        ("gate=", ["gate must be a section", "got null"]),
        ("holdout.problems=151", ["holdout.problems", "150"]),
        ("holdout=[1]", ["holdout"]),
        ("families={}", ["families must not be empty, got {}"]),
        ("families.deduction=6", ["families.deduction must be a section", "got 6"]),
        ("style=long", ["style", "'azr', 'chat' or 'compact'", "'long'"]),
        ("update.loss_type=ppo", ["update.loss_type", "'ppo'"]),
        ("seed=-1", ["seed must be at least 0, got -1"]),
        ("seed=4294967296", ["seed must be less than 4294967296, got 4294967296"]),
        ("play.reuse_probes=maybe", ["play.reuse_probes must be true or false, got 'maybe'"]),
        ("update.lora.targets=3", ["update.lora.targets: must be names of layers", "all-linear, got 3"]),
        ("update.lora.targets=[q_proj, 1]", ["update.lora.targets: must be names of layers", "1]"]),
        ("seed=1.5", ["seed", "1.5"]),
        ("steps=", ["steps must be a whole number, got null"]),
        ("model=3", ["model must be text, got 3"]),
        ("steps", ["key=value", "'steps'"]),
        ("=3", ["key=value"]),
        ("", ["key=value"]),
        ("steps.more=3", ["'steps' is a value"]),
        ("play.attempts.x=3", ["'attempts' is a value"]),
        ("play.x.y=3", ["play.x"]),
        ("steps=[1", ["not a YAML value"]),
        ("steps={a", ["not a YAML value"]),
        ("model=[\n", ["not a YAML value"]),
        ("steps.a\n.b=2", ["is a value"]),
        ("model=2024-13-45", ["not a YAML value"]),
        ("model=" + "[" * 5000, ["not a YAML value"]),
        ("model=!!python/object/apply:os.getcwd []", ["not a YAML value"]),
    ],
)
def test_an_impossible_value_is_one_line(override: str, words: list[str]) -> None:
    message = refusal_of("nano", override)
    assert all(word in message for word in words), message


def test_overrides_are_put_in_from_left_to_right() -> None:
    settings = config.load(
        "nano",
        ["steps=7", "steps=8", "play.max_new_tokens.solve=12", "families.deduction.references=3", "holdout=null"],
    )
    assert settings.steps == 8
    assert settings.play.max_new_tokens.solve == 12
    assert settings.play.max_new_tokens.propose == config.load("nano", []).play.max_new_tokens.propose
    assert settings.families["deduction"]["references"] == 3
    assert settings.holdout is None


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("1.0e-4", 1e-4), ("0.5", 0.5), ("1", 1.0), ("'0.25'", 0.25)]
)
def test_numbers_may_be_written_as_people_write_them(text: str, value: float) -> None:
    assert config.load("nano", [f"update.learning_rate={text}"]).update.learning_rate == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: [", ["not YAML"]),
        ("steps: 3\n\tplay: 4", ["not YAML"]),
        ("\x07", ["not YAML"]),
        ("model: 2024-13-45", ["not YAML"]),
        ("- steps", ["mapping", "list"]),
        ("", ["mapping", "NoneType"]),
        ("just words", ["mapping", "str"]),
        ("1: 2", ["1"]),
        ("stepps: 3", ["'steps'"]),
        ("play:", ["play must be a section"]),
        ("play: {attempts: 1}", ["play.attempts", "got 1"]),
        ("? [a, b]\n: c", ["not YAML"]),
        ("model: |\n  two\n  lines\nsteps: x", ["steps"]),
        ("steps: |\n  two\n  lines", ["steps", r"'two\nlines"]),
        ("!!python/object/apply:os.getcwd []", ["not YAML"]),
    ],
)
def test_a_bad_recipe_file_is_one_line(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    message = refusal_of(str(file))
    assert str(file) in message
    assert all(word in message for word in words), message


def test_a_recipe_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    assert "No such file" in refusal_of(str(tmp_path / "none.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    assert "directory" in refusal_of(str(tmp_path / "folder.yaml"))
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xff")
    assert "cannot be read" in refusal_of(str(tmp_path / "bytes.yaml"))


def test_an_unknown_recipe_brings_the_nearest() -> None:
    with pytest.raises(UnknownId, match=r"did you mean 'nano'.*\.yaml"):
        config.load("nanno", [])


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(sorted(config.RunConfig.model_fields)) | st.text(max_size=8)


@given(st.dictionaries(NAMES, JUNK, max_size=4))
@example({"families": {"\n": None}})
def test_any_mapping_is_accepted_or_refused_in_one_line(settings: dict[str, object]) -> None:
    message = message_of(lambda: config.parse(settings, "here"))
    assert "\n" not in message
    assert not re.search("pydantic|Input should|is impossible", message)


@given(NAMES, st.text(max_size=20))
def test_any_override_is_accepted_or_refused_in_one_line(key: str, text: str) -> None:
    assert "\n" not in message_of(lambda: config.load("nano", [f"{key}={text}"]))


def message_of(act: Callable[[], object]) -> str:
    try:
        act()
    except InvalidConfig as refusal:
        return str(refusal)
    return ""


def test_settings_cannot_be_changed_afterwards() -> None:
    settings = config.load("nano", [])
    with pytest.raises(ValueError, match="frozen"):
        settings.steps = 5  # type: ignore[misc]


def test_a_mistake_is_told_where_it_was_made(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("stes: 3\n")
    with pytest.raises(InvalidConfig, match=r"^--set: no setting 'stes'; did you mean .*'steps'"):
        config.load("nano", ["stes=3"])
    with pytest.raises(InvalidConfig, match=r"wrong\.yaml: no setting 'stes'"):
        config.load(str(tmp_path / "wrong.yaml"), ["seed=3"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("foo.bar=1", "no setting 'foo'; there are backend, capacity, compare, continuous, dtype, eval, evict,"),
        ("learning_rate=1", "no setting 'learning_rate'; did you mean 'update.learning_rate'"),
    ],
)
def test_a_setting_that_resembles_none_is_answered_by_those_beside_it(override: str, said: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        config.load("nano", [override])
    assert said in str(caught.value)
    assert len(str(caught.value)) < 350


def test_a_temperature_stands_for_both_roles_or_there_are_two() -> None:
    def temperatures(*overrides: str) -> tuple[float, float]:
        found = config.load("nano", list(overrides)).play.temperature
        return found.propose, found.solve

    assert temperatures("play.temperature=0.7") == (0.7, 0.7)
    assert temperatures("play.temperature={propose: 1.2}") == (1.2, 1.0)
    assert temperatures("play.temperature.solve=0.6") == (1.0, 0.6)


def test_a_section_that_is_off_can_be_switched_on_and_set() -> None:
    found = config.override(config.load("nano", ["update.lora=null"]), ["update.lora.rank=8"])
    assert found.update.lora is not None
    assert (found.update.lora.rank, found.update.lora.targets) == (8, "all-linear")
    assert config.override(found, ["update.lora=null"]).update.lora is None


def test_rows_are_every_proposal_and_every_attempt() -> None:
    settings = config.load("nano", ["play.proposals=2", "play.tasks=6", "play.attempts=4"])
    assert settings.rows == 2 * 3 + 6 * 4


def test_a_setting_that_stands_twice_in_a_recipe_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "twice.yaml"
    recipe.write_text("play:\n  tasks: 3\n  tasks: 4\n", encoding="utf-8")
    with pytest.raises(InvalidConfig, match="line 2: 'tasks' is set twice"):
        config.load(str(recipe), [])
