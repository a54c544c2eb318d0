"""Commands beside training and evaluation: run a program in the sandbox, look at the host, list what there is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from selfplay_gym import registry
from selfplay_gym.cli_common import INSTALL, JsonFlag, UsageError, console, installed, threads
from selfplay_gym.errors import InvalidData
from selfplay_gym.output import inert
from selfplay_gym.types import Job, Limits, Tier

commands = typer.Typer()
LARGEST_PROGRAM = 64 * 2**20
"""Bytes of a program file that are read: beyond this the sandbox refuses it anyway."""


@commands.command(name="exec")
def execute(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A program that defines the entry function; read as bytes.")
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="TEXT", help="Argument list, such as \"3, 'a'\"; may be repeated. None: no arguments."
        ),
    ] = None,
    entry: Annotated[str, typer.Option(help="Function to call.")] = "f",
    policy: Annotated[str, typer.Option(help="plain, or strict as for proposals.")] = "plain",
    check_determinism: Annotated[
        bool, typer.Option("--check-determinism", help="Run each input three times in two processes.")
    ] = False,
    cpu_seconds: Annotated[float, typer.Option(min=0.001, max=3600, help="Processor time for each input.")] = 1.0,
    memory_mb: Annotated[int, typer.Option(min=1, max=2**20, help="Memory for each input, in MiB.")] = 256,
    tier: Annotated[Tier | None, typer.Option(help="Insist on this isolation; by default the strongest here.")] = None,
    allow_process_only: Annotated[
        bool, typer.Option("--allow-process-only", help="Accept a host without any system-call filter.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON and nothing else: an object, or a list of them for several inputs."),
    ] = False,
) -> None:
    """Run a program in the sandbox; exit code 0 when every run is ok, else 1."""
    if policy not in ("plain", "strict"):
        raise UsageError(registry.unknown("policy", policy, ["plain", "strict"]))
    limits = Limits(cpu_seconds, max(5.0, 2 * cpu_seconds), memory_mb * 2**20)
    job = Job(
        _program(file), tuple(inputs or [""]), entry, limits, policy="strict" if policy == "strict" else "plain",
        check_determinism=check_determinism,
    )  # fmt: skip
    with registry.executors.load("sandbox")(workers=1, tier=tier, allow_process_only=allow_process_only) as executor:
        runs = executor.run([job])[0]
        found = [_execution(run, executor.tier) for run in runs]
    if as_json:
        typer.echo(json.dumps(found if len(found) > 1 else found[0]))
    else:
        _print_runs(job.inputs, found)
    raise typer.Exit(0 if all(run["status"] == "ok" for run in found) else 1)


@commands.command()
def doctor(as_json: JsonFlag = False) -> None:
    """Say how strongly this host can isolate programs, and what training would use."""
    with registry.executors.load("sandbox")() as executor:
        facts = executor.describe()
        lines = executor.doctor()
    facts["cores"] = len(os.sched_getaffinity(0))
    facts["training"] = installed("torch", "transformers", "trl")
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for line in lines:
        typer.echo(line)
    processes = f"one process a core on CPU, up to 8, with {threads()} each"
    typer.echo(f"cores {facts['cores']}: training starts {processes}")
    for name, version in facts["training"].items():
        typer.echo(f"{name} {version or f'is not installed: {INSTALL}'}")


@commands.command(name="list")
def list_names(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="families, suites, groups, protocols, executors, recipes, checks, environments or accelerate.",
        ),
    ],
    as_json: JsonFlag = False,
) -> None:
    """List what there is under a name."""
    from selfplay_gym import catalogue

    kinds: dict[str, Callable[[], Sequence[str | catalogue.Entry]]] = {
        "families": registry.families.working,
        "suites": catalogue.suites,
        "groups": catalogue.groups,
        "protocols": catalogue.protocols,
        "executors": registry.executors.names,
        "recipes": _recipes,
        "checks": _checks,
        "environments": _environments,
        "accelerate": _accelerate,
    }
    if what not in kinds:
        raise UsageError(registry.unknown("kind of thing", what, kinds))
    found = kinds[what]()
    if as_json:
        typer.echo(json.dumps([entry.as_dict() if isinstance(entry, catalogue.Entry) else entry for entry in found]))
        return
    width = max((len(entry.name) for entry in found if isinstance(entry, catalogue.Entry)), default=0)
    typer.echo("\n".join(entry if isinstance(entry, str) else entry.line(width) for entry in found))


def _recipes() -> list[str]:
    from selfplay_gym.training.config import recipes

    return recipes()


def _accelerate() -> list[str]:
    from selfplay_gym.training.config import accelerate_configs

    return [str(path) for path in accelerate_configs().values()]


def _checks() -> list[str]:
    from selfplay_gym.gate import CHECKS

    return [f"{name}: {demand}" for name, demand in CHECKS.items()]


def _environments() -> list[str]:
    import gymnasium

    return sorted(name for name in gymnasium.registry if name.startswith("selfplay_gym/"))


def _program(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(LARGEST_PROGRAM + 1)  # /dev/zero has no end
    except OSError as error:
        raise InvalidData(f"cannot read the program {file}: {error.strerror}") from None


def _execution(run: Any, tier: Tier) -> dict[str, Any]:
    names = ("value", "error_type", "message", "line", "cpu_seconds")
    return {"status": str(run.status), **{name: getattr(run, name) for name in names}, "tier": str(tier)}


def _print_runs(inputs: tuple[str, ...], runs: list[dict[str, Any]]) -> None:
    table = Table("input", "status", "value or reason", "CPU ms")
    for text, run in zip(inputs, runs, strict=True):
        reason = ": ".join(part for part in (run["error_type"], run["message"]) if part)
        told = reason.endswith(f"line {run['line']})")  # a SyntaxError says itself where it is
        where = f" (line {run['line']})" if run["line"] and not told else ""
        cells = (text, run["status"], run["value"] if run["status"] == "ok" else reason + where)
        table.add_row(*(inert(str(cell)) for cell in cells), f"{1000 * run['cpu_seconds']:.2f}")
    console.print(table)
    console.print(f"isolation: {runs[0]['tier']}")
