"""What the commands have in common: options, and how results and warnings are shown."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from selfplay_gym.errors import InvalidConfig, SelfPlayError
from selfplay_gym.output import inert, write_whole

UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""Wrong use of a command, exit code 2. typer names its children only."""

WIDTH = 120
"""Characters of a line where there is no terminal."""

# No markup: what is printed may hold a model's or a program's words.
console = Console(markup=False, emoji=False, highlight=False)
if not console.is_terminal and "COLUMNS" not in os.environ:
    console.width = WIDTH  # no window to fit: a file or a pipe

INSTALL = "pip install 'selfplay-gym[train]'"

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", help="Also write the result as JSON; - prints it on stdout in place of the table."
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder of the data files; without it the variable SELFPLAY_GYM_DATA says."),
]

Suites = Annotated[
    str,
    typer.Option(
        metavar="A,B",
        help="Suites (`list suites`) and groups (`list groups`), separated by commas; A:9 is A's first 9 problems.",
    ),
]
SkipMissing = Annotated[
    bool, typer.Option("--skip-missing", help="Go on without the suites that there is no data for.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, such as steps=20; may be repeated."),
]
Samples = Annotated[int | None, typer.Option(min=1, show_default="the protocol's", help="Completions a problem.")]
Temperature = Annotated[float | None, typer.Option(min=0, show_default="the protocol's", help="0 is greedy.")]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        show_default="the protocol's",
        help="Longest completion; in protocol default 160 in the compact style, else 2048.",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many problems of each suite.")]
Protocol = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="How problems are put and answers sampled: default, customary or azr-paper (`list protocols`); with "
        "commas, the first that a suite has.",
    ),
]
Style = Annotated[
    str | None,
    typer.Option(
        show_default="the protocol's",
        help="Prompt style: azr, chat or compact; in most protocols what suits the tokenizer.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Fixes every sample.")]
EvalPlus = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the answers as evalplus' samples.")]


def changes(**stated: float | None) -> Any:
    """Return what is stated of a sampling."""
    return {name: value for name, value in stated.items() if value is not None}


def names_in(listed: str) -> list[str]:
    """Return the names in a list with commas."""
    return [name.strip() for name in listed.split(",") if name.strip()]


def show_report(report: Any, json_file: Path | None) -> None:
    """Print an evaluation with its warnings, and write it where it was asked for."""
    warn(report.warnings())
    show(report.table(), report.as_dict(), json_file)


def warn(lines: Iterable[str]) -> None:
    """Print warnings on stderr."""
    for line in lines:
        progress_console().print(
            f"warning: {inert(line)}", style="yellow", highlight=False, soft_wrap=True, markup=False
        )


STDOUT = Path("-")


def check_places(*files: Path | None) -> None:
    """Refuse a file that cannot be written before the work is done whose result goes there."""
    for file in files:
        if file is None or file == STDOUT:
            continue
        if file.is_dir():
            raise InvalidConfig(f"cannot write {file}: it is a folder")
        if not file.parent.is_dir():
            raise InvalidConfig(f"cannot write {file}: there is no folder {file.parent}")
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise InvalidConfig(f"cannot write {file}: permission denied")


def show(table: RenderableType, content: Mapping[str, Any], json_file: Path | None) -> None:
    """Print a result, and write it where it was asked for."""
    text = json.dumps(content, indent=2)
    if json_file == STDOUT:
        typer.echo(text)
        return
    console.print(table)
    if json_file is not None:
        write_whole(json_file, text + "\n")


def progress_console() -> Console:
    """Return where progress and warnings go: stderr."""
    return Console(stderr=True)


def prepare_torch() -> None:
    """Settle what torch reads when it is imported.

    On small or shared machines two OpenMP threads can be twenty times slower than one, so processes share the work.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    missing = [name for name, version in installed("torch", "transformers", "trl").items() if version is None]
    if missing:
        raise SelfPlayError(f"{', '.join(missing)} not installed; this command needs: {INSTALL}")


def threads() -> str:
    """Say how many threads a process of training has."""
    stated = os.environ.get("OMP_NUM_THREADS", "1")
    if not stated.isdecimal() or not int(stated):
        return f"as many threads as torch likes (OMP_NUM_THREADS={inert(stated)!r} is no number of threads: unset it)"
    return "1 thread" if int(stated) == 1 else f"{int(stated)} threads"


def installed(*names: str) -> dict[str, str | None]:
    """Return the versions of distributions, None where there is none."""
    from importlib import metadata

    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
