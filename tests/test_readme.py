"""The README is read by people and run by machines: its commands parse, its links and files exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from selfplay_gym import cli

ROOT = Path(__file__).resolve().parent.parent
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = TEXTS[0].read_text(encoding="utf-8")
FOLDERS = ("selfplay_gym", "executors", "tasks", "training")


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> Iterator[str]:
    """Yield every call of ours in shell blocks and in inline code that names a subcommand."""
    for block in code_blocks(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            yield from (part for part in re.split(r"&&|;|\|", line) if "selfplay-gym " in part and "pip " not in part)
    yield from re.findall(r"`(selfplay-gym [^`]+)`", text)


ALL = sorted({command.strip() for path in TEXTS for command in commands(path.read_text(encoding="utf-8"))})


def parse(command: str) -> dict[str, Any]:
    """Parse a command as the command line does, run nothing, and return its parameters."""
    words = shlex.split(command, comments=True)
    start = next(place for place, word in enumerate(words) if word.rpartition("/")[2] == "selfplay-gym")
    group: Any = typer.main.get_command(cli.app)
    name, *rest = words[start + 1 :]
    assert name in group.commands, f"no command {name!r}"
    command = group.commands[name]
    if hasattr(command, "commands") and rest:  # such as `bench executor`
        name, *rest = rest
        assert name in command.commands, f"no command {name!r}"
        command = command.commands[name]
    with group.make_context("selfplay-gym", [name, *rest]) as above:
        parameters: dict[str, Any] = command.make_context(name, rest, parent=above).params
    return parameters


def test_the_readme_shows_the_command_line() -> None:
    shown = {re.split(r"selfplay-gym ", command)[1].split()[0] for command in ALL}
    assert {"train", "eval", "compare", "exec", "doctor"} <= shown


@pytest.mark.parametrize("command", ALL)
def test_every_command_shown_parses(command: str) -> None:
    assert parse(command)


def test_a_command_that_does_not_parse_would_be_noticed() -> None:
    for wrong in ("trian", "train --stes 3", "list", "bench lerning", "bench learning --rounds 3"):
        with pytest.raises((AssertionError, cli.UsageError)):
            parse(f"selfplay-gym {wrong}")


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_local_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert missing == []


def test_local_links_are_checked_at_all() -> None:
    assert "docs/families.md" in README
    assert "CHANGELOG.md" in README


@pytest.mark.parametrize("mark", ["quick-start", "test-command"])
def test_the_two_commands_are_where_the_checks_look_for_them(mark: str) -> None:
    after = README.partition(f"<!-- {mark} -->\n")[2]
    block = re.match(r"```sh\n([^`]+)\n```\n", after)
    assert block, f"no shell block after the mark {mark}"
    assert "\n" not in block[1], "one command, on one line"
    assert "-c constraints.txt" in block[1]
    assert f"readme {mark}" in (ROOT / ".ci" / "run").read_text()


def listed() -> list[str]:
    """Return the paths of the list of files, folders with a slash at the end."""
    (block,) = (block for block in code_blocks(README, "text") if block.startswith("selfplay_gym/"))
    paths, folder = [], ""
    for line in filter(None, block.splitlines()):
        name = line.split()[0]
        assert len(line.split()) > 2, f"{name} is not explained"
        folder = folder if line.startswith(" ") else name
        paths.append(folder + name if line.startswith(" ") else name)
    return paths


def test_every_source_file_is_listed() -> None:
    sources = {f"{folder}/{path.name}" for folder in FOLDERS for path in (ROOT / folder).glob("*.py")}
    explained_by_its_folder = {f"{folder}/__init__.py" for folder in FOLDERS[1:]}
    assert sources - set(listed()) - explained_by_its_folder == set()


def test_every_folder_of_sources_is_listed() -> None:
    for folder in (path for name in FOLDERS for path in (ROOT / name).iterdir() if path.is_dir()):
        if not folder.is_symlink() and not folder.name.startswith((".", "_")):
            assert f"{folder.parent.name}/{folder.name}/" in listed()


def test_what_is_listed_exists_once() -> None:
    paths = listed()
    assert sorted(set(paths)) == sorted(paths)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_lines_are_short_enough_to_read() -> None:
    assert max(map(len, README.splitlines())) <= 130
