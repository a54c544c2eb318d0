"""The shape of the project: four folders, one package, and imports that point one way."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import selfplay_gym

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Relative to the root; the three folders are also reached through links inside `selfplay_gym`.
FOLDERS = {"selfplay_gym": "", "executors": "executors", "tasks": "tasks", "training": "training"}
MODULES = sorted(file for folder in FOLDERS for file in (ROOT / folder).glob("*.py"))
HEAVY = {"torch", "transformers", "trl", "datasets", "accelerate", "peft", "vllm", "ray", "pandas", "pyarrow"}

# What each part may import of the others when it is itself imported.
MAY_IMPORT = {
    "": {""},
    "executors": {"", "executors"},
    "tasks": {"", "tasks"},
    "training": {"", "executors", "tasks", "training"},
}
# The benchmark is a program beside the core: it measures the executors.
PROGRAMS = {"bench.py", "bench_costs.py", "bench_scaling.py"}
# For the extra `inspect` alone, which brings what it imports.
EXTRAS = {"inspect_tasks.py"}


def part_of(module: str) -> str | None:
    """Return which part of ours a module belongs to ("" for the core), None for other people's."""
    package, _, rest = module.partition(".")
    if package != "selfplay_gym":
        return None
    first = rest.partition(".")[0]
    return first if first in FOLDERS else ""


def imports_at_load(file: Path) -> Iterator[str]:
    """Yield what a file imports when it is imported: not inside functions, not for type checkers alone."""
    todo: list[ast.AST] = list(ast.parse(file.read_text()).body)
    while todo:
        node = todo.pop()
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str() as module, names=names):
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.ImportFrom():
                raise AssertionError(f"{file}: relative imports hide the direction")
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                pass
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=other):
                todo += other
            case _:
                todo += ast.iter_child_nodes(node)


def imports_anywhere(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_packages_folders_and_links_agree() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    dotted = {".".join(("selfplay_gym", part)).rstrip("."): folder for folder, part in FOLDERS.items()}
    assert setuptools["package-dir"] == dotted
    assert sorted(setuptools["packages"]) == sorted(dotted)
    for folder, part in FOLDERS.items():
        assert (ROOT / folder / "__init__.py").is_file()
        if part:
            link = ROOT / "selfplay_gym" / part
            assert link.is_symlink()
            assert str(link.readlink()) == f"../{folder}"
    assert set(setuptools["package-data"]) <= set(dotted)


def test_every_file_a_package_needs_is_shipped() -> None:
    """Data that ``package-data`` does not name works when editable and is silently absent from the wheel."""
    for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items():
        folder = ROOT / PROJECT["tool"]["setuptools"]["package-dir"][package]
        for pattern in patterns:
            assert list(folder.glob(pattern)) or pattern.startswith("nano"), f"{package}: nothing is {pattern}"
    shipped = {
        file
        for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for file in (ROOT / PROJECT["tool"]["setuptools"]["package-dir"][package]).glob(pattern)
    }
    for folder in ("tasks/prompts", "tasks/data", "training/recipes", "training/accelerate"):
        assert {file for file in (ROOT / folder).iterdir() if file.is_file()} <= shipped


def test_the_four_folders_are_flat() -> None:
    for folder in FOLDERS:
        nested = [
            d for d in (ROOT / folder).iterdir() if d.is_dir() and not d.is_symlink() and (d / "__init__.py").exists()
        ]
        assert not nested


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_imports_point_one_way(file: Path) -> None:
    folder = file.relative_to(ROOT).parts[0]
    allowed = MAY_IMPORT[FOLDERS[folder]] | ({"executors"} if file.name in PROGRAMS else set())
    wrong = [
        module for module in imports_at_load(file) if (part := part_of(module)) is not None and part not in allowed
    ]
    assert not wrong


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_folders_are_imported_as_parts_of_the_package(file: Path) -> None:
    assert not [m for m in imports_anywhere(file) if m.partition(".")[0] in ("executors", "tasks", "training", "tests")]


@pytest.mark.parametrize("file", [f for f in MODULES if f.parent.name != "training"], ids=name_of)
def test_only_training_imports_heavy_libraries(file: Path) -> None:
    wrong = {module.partition(".")[0] for module in imports_at_load(file)} & HEAVY
    if file.parent.name in ("executors", "tasks"):
        wrong |= {module.partition(".")[0] for module in imports_anywhere(file)} & (HEAVY - {"ray", "pyarrow"})
    assert not wrong


@pytest.mark.parametrize("file", ["runner.py", "server.py", "seccomp.py", "walls.py"])
def test_the_child_side_needs_the_standard_library_alone(file: Path) -> None:
    for module in imports_at_load(ROOT / "executors" / file):
        ours = module.startswith(("selfplay_gym.executors.", "selfplay_gym.literals"))
        assert ours or module.partition(".")[0] in sys.stdlib_module_names, module


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_every_module_says_why_it_exists(file: Path) -> None:
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    assert len(text) > 30
    assert text.splitlines()[0].endswith((".", ":", "?"))
    assert "placeholder" not in text.lower()


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    return set(done.stdout.split())


def test_the_core_is_light() -> None:
    core = [file.stem for file in (ROOT / "selfplay_gym").glob("*.py") if not file.stem.startswith("__")]
    code = "".join(f"import selfplay_gym.{name}\n" for name in core if f"{name}.py" not in PROGRAMS | EXTRAS)
    loaded = loaded_after(code)
    assert not {module.partition(".")[0] for module in loaded} & HEAVY
    assert not {
        m for m in loaded if m.startswith(("selfplay_gym.training", "selfplay_gym.tasks", "selfplay_gym.executors"))
    }


def test_everything_exported_is_there_and_every_import_of_the_package_is_exported() -> None:
    assert len(set(selfplay_gym.__all__)) == len(selfplay_gym.__all__)
    assert all(hasattr(selfplay_gym, name) for name in selfplay_gym.__all__)
    tree = ast.parse((ROOT / "selfplay_gym" / "__init__.py").read_text())
    imported = {alias.asname or alias.name for n in tree.body if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert imported - {"register_environments"} <= set(selfplay_gym.__all__)


def test_playing_needs_no_training() -> None:
    loaded = loaded_after(
        "from selfplay_gym.registry import make_family, executors\n"
        "for name in ('deduction', 'abduction', 'induction'): make_family(name)\n"
        "executors.load('sandbox')\nimport selfplay_gym.referee"
    )
    assert not {module.partition(".")[0] for module in loaded} & HEAVY
    assert not {module for module in loaded if module.startswith("selfplay_gym.training")}
