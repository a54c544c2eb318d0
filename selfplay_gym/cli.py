"""The command line: each command reads its arguments, calls one function and prints the result."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from selfplay_gym import registry, suites
from selfplay_gym.errors import InvalidConfig, SelfPlayError
from selfplay_gym.types import Job, Limits, Tier

app = typer.Typer(
    name="selfplay-gym",
    help="A verifiable self-play reasoning gym with code-execution rewards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console()

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of a table.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the result to this file as JSON.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of the data files [env: SELFPLAY_GYM_DATA].")]


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (`list recipes`) or a .yaml file.")] = "nano",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, such as steps=20.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Run folder; by default a new one under runs/.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's last checkpoint.")] = False,
) -> None:
    """Train by self-play, and measure on frozen hold-outs before and after."""
    _prepare_torch()
    from selfplay_gym.training import launch

    raise typer.Exit(launch.train(recipe, settings, output, resume=resume, console=console))


@app.command(name="eval")
def evaluate(
    suite: Annotated[str, typer.Option(help="Suites, separated by commas (`list suites`).")],
    model: Annotated[str | None, typer.Argument(help="Checkpoint folder, hub id, or `nano`.")] = None,
    completions: Annotated[Path | None, typer.Option(help="Score stored completions; MODEL is then left out.")] = None,
    data_dir: DataDir = None,
    samples: Annotated[int, typer.Option(help="Completions a problem.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest completion.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many problems of each suite.")] = None,
    style: Annotated[str | None, typer.Option(help="Prompt style: azr, chat or compact.")] = None,
    seed: Annotated[int, typer.Option(help="Fixes every sample.")] = 0,
    keep: Annotated[Path | None, typer.Option(help="Write the completions to this file.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Score MODEL, or stored completions, on held-out suites; every answer is judged in the sandbox."""
    if (model is None) == (completions is None):
        raise InvalidConfig("eval takes either a MODEL or --completions FILE, and not both")
    names = [name.strip() for name in suite.split(",") if name.strip()]
    with registry.executors.load("sandbox")() as executor:
        if completions is not None:
            from selfplay_gym.grading import score_completions

            report = score_completions(completions, names, executor, data_dir, limit)
        else:
            _prepare_torch()
            from selfplay_gym.training.evaluate import Sampling, evaluate_named

            sampling = Sampling(samples, temperature, max_new_tokens, seed)
            report = evaluate_named(
                str(model), names, executor,
                sampling=sampling, style=style, data_dir=data_dir, limit=limit, keep=keep, console=_progress_console(),
            )  # fmt: skip
    console.print(report.table())
    _write_json(json_file, report.as_dict())


@app.command()
def compare(before: Path, after: Path, json_file: JsonFile = None) -> None:
    """Compare two files of `eval --json`: paired difference with its interval."""
    from selfplay_gym import comparison

    found = comparison.compare_files(before, after)
    console.print(comparison.table(found))
    _write_json(json_file, comparison.as_dict(found))


@app.command(name="exec")
def execute(
    file: Annotated[Path, typer.Argument(help="A program that defines the entry function; read as bytes.")],
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="Argument list, such as \"3, 'a'\"; may be repeated.")
    ] = None,
    entry: Annotated[str, typer.Option(help="Function to call.")] = "f",
    policy: Annotated[str, typer.Option(help="plain, or strict as for proposals.")] = "plain",
    check_determinism: Annotated[bool, typer.Option(help="Run each input three times in two processes.")] = False,
    cpu_seconds: Annotated[float, typer.Option(help="Processor time for each input.")] = 1.0,
    memory_mb: Annotated[int, typer.Option(help="Memory for each input, in MiB.")] = 256,
    tier: Annotated[Tier | None, typer.Option(help="Insist on this isolation.")] = None,
    allow_process_only: Annotated[bool, typer.Option(help="Accept a host without any system-call filter.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run a program in the sandbox; exit code 0 when every run is ok, else 1."""
    if policy not in ("plain", "strict"):
        raise InvalidConfig(f"policy must be plain or strict, got {policy!r}")
    limits = Limits(cpu_seconds, max(5.0, 2 * cpu_seconds), memory_mb * 2**20)
    job = Job(
        file.read_bytes(), tuple(inputs or [""]), entry, limits, policy="strict" if policy == "strict" else "plain",
        check_determinism=check_determinism,
    )  # fmt: skip
    with registry.executors.load("sandbox")(workers=1, tier=tier, allow_process_only=allow_process_only) as executor:
        runs = executor.run([job])[0]
        found = [_execution(run, executor.tier) for run in runs]
    if as_json:
        typer.echo("\n".join(json.dumps(run) for run in found))
    else:
        _print_runs(job.inputs, found)
    raise typer.Exit(0 if all(run["status"] == "ok" for run in found) else 1)


@app.command()
def doctor(as_json: JsonFlag = False) -> None:
    """Say how strongly this host can isolate programs, and what training would use."""
    with registry.executors.load("sandbox")() as executor:
        facts = executor.describe()
        lines = executor.doctor()
    facts["cores"] = len(os.sched_getaffinity(0))
    facts["training"] = _installed("torch", "transformers", "trl")
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for line in lines:
        typer.echo(line)
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    typer.echo(f"cores {facts['cores']}: training starts one process a core on CPU, with {threads} thread each")
    for name, version in facts["training"].items():
        typer.echo(f"{name} {version or 'is not installed: pip install selfplay-gym[train]'}")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder, finished or not.")]) -> None:
    """Write RUN/report.html: the result, the curves and the newest tasks, in one file."""
    from selfplay_gym.report import write_report

    typer.echo(write_report(run))


@app.command()
def pretrain(
    output: Annotated[Path, typer.Argument(help="Folder for the checkpoint.")],
    examples: Annotated[int, typer.Option(help="Transcripts of small programs to learn from.")] = 400_000,
    hidden: Annotated[int, typer.Option(help="Width, a multiple of 64.")] = 128,
    layers: Annotated[int, typer.Option(help="Depth.")] = 6,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-3,
    seed: Annotated[int, typer.Option(help="Of data and weights.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Make the nano policy from scratch on generated easy programs."""
    _prepare_torch()
    from selfplay_gym.training.nano import PretrainConfig, pretrain

    config = PretrainConfig(
        examples, learning_rate=learning_rate, hidden=hidden, layers=layers, seed=seed, threads=threads
    )
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=examples)

        def report(seen: int, loss: float, rate: float) -> None:
            progress.update(bar, completed=seen, description=f"loss {loss:.3f}  {rate:.0f} tokens/s")

        pretrain(config, output, report)
    console.print(f"The policy is in {output}; measure it with: selfplay-gym eval {output} --suite nano")


@app.command()
def bench(
    what: Annotated[str, typer.Argument(help="What to measure: executor.")],
    rounds: Annotated[int, typer.Option(help="Interleaved rounds; the medians are shown.")] = 7,
    json_file: JsonFile = None,
) -> None:
    """Measure speed as ratios within one run."""
    if what != "executor":
        raise InvalidConfig(registry.unknown("benchmark", what, ["executor"]))
    from selfplay_gym.bench import bench_executor

    result = bench_executor(rounds=rounds)
    console.print(result.table())
    _write_json(json_file, result.as_dict())


@app.command(name="list")
def list_names(
    what: Annotated[str, typer.Argument(help="families, suites, executors, recipes, checks or environments.")],
    as_json: JsonFlag = False,
) -> None:
    """List what there is under a name."""
    kinds = {
        "families": registry.families.names,
        "suites": suites.SUITES.names,
        "executors": registry.executors.names,
        "recipes": _recipes,
        "checks": _checks,
        "environments": _environments,
    }
    if what not in kinds:
        raise InvalidConfig(registry.unknown("kind of thing", what, kinds))
    names = kinds[what]()
    typer.echo(json.dumps(names) if as_json else "\n".join(names))


def _recipes() -> list[str]:
    from selfplay_gym.training.config import recipes

    return recipes()


def _checks() -> list[str]:
    from selfplay_gym.gate import CHECKS

    return [f"{name}: {demand}" for name, demand in CHECKS.items()]


def _environments() -> list[str]:
    import gymnasium

    return sorted(name for name in gymnasium.registry if name.startswith("selfplay_gym/"))


def _execution(run: Any, tier: Tier) -> dict[str, Any]:
    names = ("value", "error_type", "message", "line", "cpu_seconds")
    return {"status": str(run.status), **{name: getattr(run, name) for name in names}, "tier": str(tier)}


def _print_runs(inputs: tuple[str, ...], runs: list[dict[str, Any]]) -> None:
    table = Table("input", "status", "value or reason", "CPU ms")
    for text, run in zip(inputs, runs, strict=True):
        reason = ": ".join(part for part in (run["error_type"], run["message"]) if part)
        where = f" (line {run['line']})" if run["line"] else ""
        cells = (text, run["status"], run["value"] if run["status"] == "ok" else reason + where)
        table.add_row(*(str(cell).replace("[", r"\[") for cell in cells), f"{1000 * run['cpu_seconds']:.2f}")
    console.print(table)
    console.print(f"isolation: {runs[0]['tier']}")


def _write_json(path: Path | None, content: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _progress_console() -> Console:
    return Console(stderr=True)


def _prepare_torch() -> None:
    """Settle what torch reads when it is imported.

    On small or shared machines two OpenMP threads can be twenty times slower than one, so processes share the work.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    missing = [name for name, version in _installed("torch", "transformers", "trl").items() if version is None]
    if missing:
        raise SelfPlayError(f"{', '.join(missing)} not installed; this command needs: pip install selfplay-gym[train]")


def _installed(*names: str) -> dict[str, str | None]:
    from importlib import metadata

    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def main() -> None:
    """Run the command line; what goes wrong is one line on stderr and exit code 1 (2 for usage)."""
    try:
        app()
    except SelfPlayError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))
    except KeyboardInterrupt:
        _fail("interrupted")


def _fail(message: str) -> None:
    line = " ".join(message.split())
    Console(stderr=True).print(f"error: {line}", style="red", highlight=False, soft_wrap=True, markup=False)
    sys.exit(1)


if __name__ == "__main__":
    main()
