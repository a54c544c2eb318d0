"""Commands that score models on held-out suites, and look at scores, runs and archives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from selfplay_gym import registry
from selfplay_gym.cli_common import (
    DataDir,
    EvalPlus,
    JsonFile,
    Limit,
    MaxNewTokens,
    Protocol,
    Samples,
    Seed,
    SkipMissing,
    Style,
    Suites,
    Temperature,
    UsageError,
    changes,
    check_places,
    names_in,
    prepare_torch,
    progress_console,
    show,
    show_report,
    warn,
)

commands = typer.Typer()


@commands.command(name="eval")
def evaluate(
    suite: Suites,
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Checkpoint folder, hub id, or `nano`.")] = None,
    completions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Score stored completions; MODEL is then left out.")
    ] = None,
    data_dir: DataDir = None,
    protocol: Protocol = "default",
    samples: Samples = None,
    temperature: Temperature = None,
    max_new_tokens: MaxNewTokens = None,
    limit: Limit = None,
    skip_missing: SkipMissing = False,
    style: Style = None,
    seed: Seed = 0,
    backend: Annotated[
        str | None,
        typer.Option(
            show_default="hf, or openai with --endpoint",
            help="What answers: hf (transformers), vllm (an engine of its own), openai (an endpoint).",
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1, that knows MODEL by that name; without "
            "it the variable OPENAI_BASE_URL says.",
        ),
    ] = None,
    key_variable: Annotated[
        str, typer.Option(metavar="NAME", help="Environment variable that holds the endpoint's key.")
    ] = "OPENAI_API_KEY",
    concurrent: Annotated[int, typer.Option(min=1, max=1024, help="Requests to the endpoint at a time.")] = 16,
    answer_seconds: Annotated[float, typer.Option(min=0.1, help="How long one request may take.")] = 600.0,
    tries: Annotated[int, typer.Option(min=0, help="Further tries of a request that may yet succeed.")] = 5,
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--field",
            metavar="KEY=JSON",
            help="Further field of each request, such as top_p=0.95; null leaves one out; may be repeated.",
        ),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Append each answer to this file as it comes; what is there is not asked again."
        ),
    ] = None,
    evalplus: EvalPlus = None,
    json_file: JsonFile = None,
) -> None:
    """Score MODEL, or stored completions, on held-out suites; every answer is judged in the sandbox."""
    if (model is None) == (completions is None):
        raise UsageError("eval takes either a MODEL or --completions FILE, and not both")
    if completions is not None and (keep or evalplus):
        raise UsageError("--keep and --evalplus take the answers of a MODEL, and --completions FILE has them already")
    if completions is not None and protocol != "default":
        raise UsageError("--protocol says how a MODEL is asked, and --completions FILE has the answers already")
    backend = backend or ("hf" if endpoint is None else "openai")
    if backend not in ("hf", "vllm", "openai"):
        raise UsageError(registry.unknown("backend", backend, ["hf", "vllm", "openai"]))
    if backend != "openai" and (endpoint is not None or fields):
        raise UsageError(f"--endpoint and --field are for the backend openai, got {backend}")
    check_places(json_file, keep, evalplus)
    names = names_in(suite)
    with registry.executors.load("sandbox")() as executor:
        if completions is not None:
            from selfplay_gym.completions import score_completions
            from selfplay_gym.evaluating import progress

            with progress(progress_console(), "judging", None) as advance:
                report = score_completions(
                    completions, names, executor, data_dir, limit, advance, skip_missing=skip_missing
                )  # fmt: skip
        else:
            sampling = changes(samples=samples, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)
            how: dict[str, Any] = {
                "protocol": protocol, "sampling": sampling, "style": style, "data_dir": data_dir, "limit": limit,
                "skip_missing": skip_missing, "keep": keep, "evalplus": evalplus, "console": progress_console(),
            }  # fmt: skip
            if backend == "openai":
                from selfplay_gym.endpoint import evaluate_endpoint

                asking: dict[str, Any] = {"concurrent": concurrent, "answer_seconds": answer_seconds, "tries": tries}
                report = evaluate_endpoint(
                    str(model), names, executor, url=endpoint, key_variable=key_variable, fields=fields or (), **asking,
                    **how,
                )  # fmt: skip
            else:
                prepare_torch()
                from selfplay_gym.training.evaluate import evaluate_named

                report = evaluate_named(str(model), names, executor, backend=backend, **how)
    show_report(report, json_file)


@commands.command()
def sweep(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, finished or not.")],
    suite: Suites,
    checkpoints: Annotated[
        str, typer.Option(metavar="WHICH", help="all; every:N for steps that N divides and the last; last:N.")
    ] = "all",
    start: Annotated[
        bool, typer.Option("--start/--no-start", help="Begin with what the run started from, as step 0.")
    ] = True,
    data_dir: DataDir = None,
    protocol: Protocol = "default",
    samples: Samples = None,
    temperature: Temperature = None,
    max_new_tokens: MaxNewTokens = None,
    limit: Limit = None,
    skip_missing: SkipMissing = False,
    style: Style = None,
    seed: Seed = 0,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", show_default="RUN/sweep", help="Folder of answers, tables and curve.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Score the checkpoints of a run on held-out suites, step by step; what is answered is not asked again."""
    check_places(json_file)
    prepare_torch()
    from selfplay_gym.training import sweep as sweeping

    console = progress_console()
    with registry.executors.load("sandbox")() as executor:
        found = sweeping.sweep(
            run, names_in(suite), executor, which=checkpoints, start=start, output=output, protocol=protocol,
            sampling=changes(samples=samples, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed),
            style=style, data_dir=data_dir, limit=limit, skip_missing=skip_missing, console=console,
        )  # fmt: skip
    show(found.table(), found.as_dict(), json_file)
    console.print(
        f"tables and curve: {(output or run / 'sweep') / 'sweep.html'}", soft_wrap=True, markup=False, highlight=False
    )


@commands.command()
def rescore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `eval --keep` wrote.")],
    data_dir: DataDir = None,
    evalplus: EvalPlus = None,
    json_file: JsonFile = None,
) -> None:
    """Repeat the grading of an evaluation that was kept, without its model; suites and settings stand in the file."""
    from selfplay_gym import evaluating

    check_places(json_file, evalplus)
    with registry.executors.load("sandbox")() as executor:
        report = evaluating.rescore(
            file, executor, data_dir=data_dir, evalplus=evalplus, console=progress_console()
        )  # fmt: skip
    show_report(report, json_file)


@commands.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="A file of `eval --json`.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="Another one, on the same data.")],
    json_file: JsonFile = None,
) -> None:
    """Compare two files of `eval --json`, problem by problem: differences, and which of them may well be chance."""
    from selfplay_gym import comparison

    check_places(json_file)
    found = comparison.compare_files(before, after)
    warn(comparison.warnings(found))
    show(comparison.table(found), comparison.as_dict(found, before, after), json_file)


@commands.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, finished or not.")],
    suite: Annotated[
        str | None, typer.Option(metavar="A,B", help="Also look for these suites in the archive, as `contamination`.")
    ] = None,
    data_dir: DataDir = None,
    skip_missing: SkipMissing = False,
) -> None:
    """Write RUN/report.html: the result, alarms, curves, times, refused, hardest and newest tasks, in one file."""
    from selfplay_gym.report import write_report

    more = _contamination(run, suite, data_dir, skip_missing).parts() if suite is not None else []
    typer.echo(write_report(run, more))


@commands.command()
def contamination(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, finished or not, or an archive itself.")],
    suite: Suites,
    data_dir: DataDir = None,
    skip_missing: SkipMissing = False,
    ngram: Annotated[int, typer.Option(min=1, help="Words of an n-gram.")] = 13,
    json_file: JsonFile = None,
) -> None:
    """Say which held-out problems a run's archive holds: as a program, by what it does, or by a run of words."""
    check_places(json_file)
    found = _contamination(run, suite, data_dir, skip_missing, ngram)
    warn(found.notes)
    show(found.table(), found.as_dict(), json_file)


def _contamination(run: Path, suite: str, data_dir: Path | None, skip_missing: bool, ngram: int = 13) -> Any:
    from selfplay_gym.contamination import contamination

    with registry.executors.load("sandbox")() as executor:
        return contamination(
            run, names_in(suite), executor, data_dir=data_dir, skip_missing=skip_missing, n=ngram,
            console=progress_console(),
        )  # fmt: skip


@commands.command(name="export-suite")
def export_suite(
    suite: Annotated[
        str, typer.Argument(metavar="A,B", help="Suites and groups, as for `eval --suite`.", show_default=False)
    ],
    harness: Annotated[str, typer.Option("--format", help="lm-eval (lm-evaluation-harness) or inspect (Inspect).")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the tasks.")],
    data_dir: DataDir = None,
    protocol: Annotated[
        str, typer.Option(metavar="NAME", help="As for `eval`; each problem is asked once, whatever the protocol says.")
    ] = "default",
    style: Annotated[
        str | None,
        typer.Option(
            show_default="the protocol's",
            help="Prompt style: azr, chat or compact; in most protocols azr for lm-eval and chat for inspect.",
        ),
    ] = None,
    temperature: Temperature = None,
    max_new_tokens: MaxNewTokens = None,
    limit: Limit = None,
) -> None:
    """Write suites as tasks of another harness, which still has its answers judged in our sandbox."""
    from selfplay_gym.harness import STYLES, export, once

    if harness not in STYLES:
        raise UsageError(registry.unknown("format", harness, STYLES))
    choice = once(protocol, style, temperature=temperature, max_new_tokens=max_new_tokens)
    with registry.executors.load("sandbox")() as executor:
        command = export(names_in(suite), harness, output, executor, choice=choice, data_dir=data_dir, limit=limit)
    typer.echo(f"Tasks are in {output}. Run them with: {command}")
