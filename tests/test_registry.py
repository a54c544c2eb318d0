"""Names for families and executors: nearest names, plug-ins, and broken ones."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from selfplay_gym import registry
from selfplay_gym.errors import InvalidConfig, UnknownId
from selfplay_gym.protocols import ProposingFamily, TaskFamily
from selfplay_gym.registry import Registry, make_family, unknown


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Registry:
    """A registry that finds plug-ins of every sort."""
    (tmp_path / "plugin_good.py").write_text("class Good:\n    pass\n")
    (tmp_path / "plugin_raises.py").write_text("raise RuntimeError('cannot start')\n")
    (tmp_path / "plugin_typo.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = [
        EntryPoint("good", "plugin_good:Good", "some.group"),
        EntryPoint("raises", "plugin_raises:Thing", "some.group"),
        EntryPoint("typo", "plugin_typo:Thing", "some.group"),
        EntryPoint("builtin", "plugin_good:Good", "some.group"),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: [e for e in found if e.group == group])
    return Registry("thing", "some.group", {"builtin": "collections:OrderedDict"})


@pytest.mark.parametrize("name", registry.families.names())
def test_every_family_loads_and_keeps_its_contract(name: str) -> None:
    family = make_family(name)
    assert isinstance(family, TaskFamily)
    assert family.name == name


@pytest.mark.parametrize("name", ["deduction", "abduction", "induction"])
def test_the_three_families_propose(name: str) -> None:
    assert isinstance(make_family(name), ProposingFamily)


def test_a_misspelt_name_brings_the_nearest() -> None:
    with pytest.raises(UnknownId, match="no task family 'deducton'; did you mean 'deduction'"):
        make_family("deducton")
    with pytest.raises(UnknownId, match="no executor 'sandbx'; did you mean 'sandbox'"):
        registry.executors.load("sandbx")


def test_a_misspelt_setting_brings_the_nearest() -> None:
    with pytest.raises(InvalidConfig, match="'reference'; did you mean 'references'"):
        make_family("deduction", reference=3)
    with pytest.raises(UnknownId, match="azr, chat, compact"):
        make_family("deduction", style="long")


def test_without_any_near_name_all_are_listed() -> None:
    assert unknown("suite", "zzz", ["b", "a"]) == "no suite 'zzz'; there are a, b"
    assert "\n" not in unknown("suite", "a\nb", ["c"])


def test_a_good_plug_in_loads_beside_broken_ones(plugins: Registry) -> None:
    with pytest.warns(UserWarning, match="'builtin' is taken by collections:OrderedDict"):
        assert plugins.load("good").__name__ == "Good"


def test_a_plug_in_cannot_take_a_builtin_name(plugins: Registry) -> None:
    with pytest.warns(UserWarning, match="is skipped"):
        assert plugins.names() == ["builtin", "good", "raises", "typo"]
    assert plugins.load("builtin").__name__ == "OrderedDict"


@pytest.mark.filterwarnings("ignore:thing 'builtin' is taken")
@pytest.mark.parametrize(("name", "why"), [("raises", "RuntimeError: cannot start"), ("typo", "SyntaxError")])
def test_a_plug_in_that_does_not_load_is_named_with_its_reason(plugins: Registry, name: str, why: str) -> None:
    with pytest.raises(UnknownId, match=f"thing '{name}' .* does not load: .*{why}"):
        plugins.load(name)


@pytest.mark.parametrize("path", ["no.such.module:Thing", "collections:NoSuchThing", "collections", ":", ""])
def test_a_path_to_nothing_is_named(path: str) -> None:
    things = Registry("thing", "no.such.group", {"broken": path})
    with pytest.raises(UnknownId, match="thing 'broken'"):
        things.load("broken")


def test_nothing_is_imported_before_it_is_made() -> None:
    things = Registry("thing", "no.such.group", {"lazy": "this_module_does_not_exist:Thing"})
    assert things.names() == ["lazy"]
    assert "this_module_does_not_exist" not in sys.modules
