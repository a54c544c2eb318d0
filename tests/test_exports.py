"""What ``import selfplay_gym`` gives, and what it costs."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from types import ModuleType

import gymnasium
import pytest

import selfplay_gym
from selfplay_gym import environment_id, errors, families, protocols, types

ROOT = Path(__file__).parent.parent


def public(module: ModuleType) -> set[str]:
    """Return the names of the classes and functions that a module defines."""
    defined = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {name for name, value in defined.items() if getattr(value, "__module__", "") == module.__name__}


def test_every_exported_name_exists_once() -> None:
    assert [name for name in selfplay_gym.__all__ if not hasattr(selfplay_gym, name)] == []
    assert [name for name, count in Counter(selfplay_gym.__all__).items() if count > 1] == []


@pytest.mark.parametrize("module", [types, errors, protocols], ids=["types", "errors", "protocols"])
def test_all_values_errors_and_contracts_are_exported(module: ModuleType) -> None:
    assert public(module) - set(selfplay_gym.__all__) == set()


def test_every_exported_class_and_function_says_what_it_is() -> None:
    exported = {name: getattr(selfplay_gym, name) for name in selfplay_gym.__all__}
    described = {name: value for name, value in exported.items() if inspect.isroutine(value) or inspect.isclass(value)}
    assert [name for name, value in described.items() if not value.__doc__] == []


def test_the_version_is_that_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert selfplay_gym.__version__ == project["version"]


def test_every_family_has_an_environment_with_both_entry_points() -> None:
    ids = ["selfplay_gym/SelfPlay-v0", *map(environment_id, families.paths())]
    for env_id in ids:
        spec = gymnasium.spec(env_id)
        assert str(spec.entry_point).startswith("selfplay_gym.envs:")
        assert str(spec.vector_entry_point).startswith("selfplay_gym.vector:")
    assert {"selfplay_gym/Deduction-v0", "selfplay_gym/Abduction-v0", "selfplay_gym/Induction-v0"} < set(ids)


def imported() -> dict[str, object]:
    """Import the package in a process of its own; return the processor time and the modules that it took."""
    code = (
        "import time; start = time.process_time(); import selfplay_gym; seconds = time.process_time() - start\n"
        "import json, sys; print(json.dumps({'seconds': seconds, 'modules': sorted(sys.modules)}))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, cwd="/")
    assert output.stderr == ""
    result: dict[str, object] = json.loads(output.stdout)
    return result


def test_importing_takes_half_a_second_at_most_and_no_heavy_library() -> None:
    runs = [imported() for _ in range(3)]
    assert min(float(str(run["seconds"])) for run in runs) < 0.5
    modules = runs[0]["modules"]
    assert isinstance(modules, list)
    heavy = {"torch", "transformers", "trl", "datasets", "ray", "pydantic", "typer", "rich", "yaml", "RestrictedPython"}
    assert heavy & set(modules) == set()
    assert [name for name in modules if name.startswith(("selfplay_gym.tasks.", "selfplay_gym.executors."))] == []
