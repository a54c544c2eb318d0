"""The command line: each command reads its arguments, calls one function and prints the result."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from selfplay_gym import __version__, interrupts, registry
from selfplay_gym.errors import InvalidConfig, InvalidData, SelfPlayError
from selfplay_gym.output import inert, write_whole
from selfplay_gym.types import Job, Limits, Tier

INTERRUPTED = 130
LARGEST_PROGRAM = 64 * 2**20
"""Bytes of a program file that are read: beyond this the sandbox refuses it anyway."""

UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""Wrong use of a command, exit code 2. typer names its children only."""

app = typer.Typer(
    name="selfplay-gym",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench = typer.Typer(help="Measure, and say which targets that meets.")
app.add_typer(bench, name="bench")
# No markup: what is printed may hold a model's or a program's words.
console = Console(markup=False, emoji=False, highlight=False)

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


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"selfplay-gym {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A verifiable self-play reasoning gym with code-execution rewards."""


@app.command()
def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            show_default="nano",
            help="A shipped recipe (`list recipes`; `recipe NAME` explains it) or a .yaml file, where what it leaves "
            "out has a default that is no recipe's (`recipe FILE` tells); with --resume only compared with what the "
            "run was started with.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a setting, such as steps=20; may be repeated. `recipe RECIPE` lists them all.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder; by default a new one under runs/.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's last checkpoint.")] = False,
) -> None:
    """Train by self-play, and measure on frozen hold-outs before and after."""
    _prepare_torch()
    from selfplay_gym.training import launch

    raise typer.Exit(launch.train(recipe, settings, output, resume=resume, console=console))


@app.command()
def recipe(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe (`list recipes`) or a .yaml file.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated."),
    ] = None,
) -> None:
    """Print every setting of a recipe with what it means, as YAML that `train` takes."""
    from selfplay_gym.training.config import annotated, load

    typer.echo(annotated(load(name, settings or [])), nl=False)


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe or a .yaml file.")],
    gpus: Annotated[int, typer.Option(metavar="N", help="GPUs, one process each.")],
    memory: Annotated[float, typer.Option(metavar="G", help="Memory of each GPU in GB.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As for train; may be repeated.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say whether a run fits its GPUs, how its rows are split, and what would fit; nothing is loaded or started."""
    _prepare_torch()
    from selfplay_gym.training.plan import plan as make_plan

    found = make_plan(recipe, gpus, memory, settings or [])
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        console.print(found.table())
        for line in found.lines():
            typer.echo(inert(line))


@app.command(name="eval")
def evaluate(
    suite: Suites,
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Checkpoint folder, hub id, or `nano`.")] = None,
    completions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Score stored completions; MODEL is then left out.")
    ] = None,
    data_dir: DataDir = None,
    protocol: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How problems are put and answers sampled: default, customary or azr-paper (`list protocols`); with "
            "commas, the first that a suite has.",
        ),
    ] = "default",
    samples: Annotated[
        int | None, typer.Option(min=1, show_default="the protocol's", help="Completions a problem.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, show_default="the protocol's", help="0 is greedy.")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default="the protocol's",
            help="Longest completion; in protocol default 160 in the compact style, else 2048.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many problems of each suite.")] = None,
    skip_missing: SkipMissing = False,
    style: Annotated[
        str | None,
        typer.Option(
            show_default="the protocol's",
            help="Prompt style: azr, chat or compact; in most protocols what suits the tokenizer.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Fixes every sample.")] = 0,
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
    evalplus: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the answers as evalplus' samples.")
    ] = None,
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
    _check_places(json_file, keep, evalplus)
    names = _names(suite)
    with registry.executors.load("sandbox")() as executor:
        if completions is not None:
            from selfplay_gym.evaluating import progress
            from selfplay_gym.grading import score_completions

            with progress(_progress_console(), "judging", None) as advance:
                report = score_completions(
                    completions, names, executor, data_dir, limit, advance, skip_missing=skip_missing
                )  # fmt: skip
        else:
            changes = _changes(samples=samples, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)
            how: dict[str, Any] = {
                "protocol": protocol, "sampling": changes, "style": style, "data_dir": data_dir, "limit": limit,
                "skip_missing": skip_missing, "keep": keep, "evalplus": evalplus, "console": _progress_console(),
            }  # fmt: skip
            if backend == "openai":
                from selfplay_gym.endpoint import evaluate_endpoint

                asking: dict[str, Any] = {"concurrent": concurrent, "answer_seconds": answer_seconds, "tries": tries}
                report = evaluate_endpoint(
                    str(model), names, executor, url=endpoint, key_variable=key_variable, fields=fields or (), **asking,
                    **how,
                )  # fmt: skip
            else:
                _prepare_torch()
                from selfplay_gym.training.evaluate import evaluate_named

                report = evaluate_named(str(model), names, executor, backend=backend, **how)
    _show_report(report, json_file)


def _changes(**stated: float | None) -> Any:
    """Return what is stated of a sampling."""
    return {name: value for name, value in stated.items() if value is not None}


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()]


@app.command()
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
    protocol: Annotated[str, typer.Option(metavar="NAME", help="As for eval.")] = "default",
    samples: Annotated[
        int | None, typer.Option(min=1, show_default="the protocol's", help="Completions a problem.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, show_default="the protocol's", help="0 is greedy.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, show_default="the protocol's", help="Longest completion.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many problems of each suite.")] = None,
    skip_missing: SkipMissing = False,
    style: Annotated[str | None, typer.Option(show_default="the protocol's", help="Prompt style, as for eval.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Fixes every sample.")] = 0,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", show_default="RUN/sweep", help="Folder of answers, tables and curve.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Score the checkpoints of a run on held-out suites, step by step; what is answered is not asked again."""
    _check_places(json_file)
    _prepare_torch()
    from selfplay_gym.training import sweep as sweeping

    console = _progress_console()
    with registry.executors.load("sandbox")() as executor:
        found = sweeping.sweep(
            run, _names(suite), executor, which=checkpoints, start=start, output=output, protocol=protocol,
            sampling=_changes(samples=samples, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed),
            style=style, data_dir=data_dir, limit=limit, skip_missing=skip_missing, console=console,
        )  # fmt: skip
    _show(found.table(), found.as_dict(), json_file)
    console.print(
        f"tables and curve: {(output or run / 'sweep') / 'sweep.html'}", soft_wrap=True, markup=False, highlight=False
    )


@app.command()
def rescore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `eval --keep` wrote.")],
    data_dir: DataDir = None,
    evalplus: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the answers as evalplus' samples.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Repeat the grading of an evaluation that was kept, without its model; suites and settings stand in the file."""
    from selfplay_gym import evaluating

    _check_places(json_file, evalplus)
    with registry.executors.load("sandbox")() as executor:
        report = evaluating.rescore(
            file, executor, data_dir=data_dir, evalplus=evalplus, console=_progress_console()
        )  # fmt: skip
    _show_report(report, json_file)


def _show_report(report: Any, json_file: Path | None) -> None:
    _warn(report.warnings())
    _show(report.table(), report.as_dict(), json_file)


def _warn(lines: Iterable[str]) -> None:
    for line in lines:
        _progress_console().print(
            f"warning: {inert(line)}", style="yellow", highlight=False, soft_wrap=True, markup=False
        )


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="A file of `eval --json`.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="Another one, on the same data.")],
    json_file: JsonFile = None,
) -> None:
    """Compare two files of `eval --json`, problem by problem: differences, and which of them may well be chance."""
    from selfplay_gym import comparison

    _check_places(json_file)
    found = comparison.compare_files(before, after)
    _warn(comparison.warnings(found))
    _show(comparison.table(found), comparison.as_dict(found), json_file)


@app.command(name="export-suite")
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
    temperature: Annotated[
        float | None, typer.Option(min=0, show_default="the protocol's", help="0 is greedy.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, show_default="the protocol's", help="Longest completion.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many problems of each suite.")] = None,
) -> None:
    """Write suites as tasks of another harness, which still has its answers judged in our sandbox."""
    from selfplay_gym.harness import STYLES, export, once

    if harness not in STYLES:
        raise UsageError(registry.unknown("format", harness, STYLES))
    choice = once(protocol, style, temperature=temperature, max_new_tokens=max_new_tokens)
    with registry.executors.load("sandbox")() as executor:
        command = export(_names(suite), harness, output, executor, choice=choice, data_dir=data_dir, limit=limit)
    typer.echo(f"Tasks are in {output}. Run them with: {command}")


@app.command(name="exec")
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
    processes = f"one process a core on CPU, up to 8, with {_threads()} each"
    typer.echo(f"cores {facts['cores']}: training starts {processes}")
    for name, version in facts["training"].items():
        typer.echo(f"{name} {version or f'is not installed: {INSTALL}'}")


@app.command()
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


@app.command()
def contamination(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, finished or not, or an archive itself.")],
    suite: Suites,
    data_dir: DataDir = None,
    skip_missing: SkipMissing = False,
    ngram: Annotated[int, typer.Option(min=1, help="Words of an n-gram.")] = 13,
    json_file: JsonFile = None,
) -> None:
    """Say which held-out problems a run's archive holds: as a program, by what it does, or by a run of words."""
    _check_places(json_file)
    found = _contamination(run, suite, data_dir, skip_missing, ngram)
    _warn(found.notes)
    _show(found.table(), found.as_dict(), json_file)


def _contamination(run: Path, suite: str, data_dir: Path | None, skip_missing: bool, ngram: int = 13) -> Any:
    from selfplay_gym.contamination import contamination

    with registry.executors.load("sandbox")() as executor:
        return contamination(
            run, _names(suite), executor, data_dir=data_dir, skip_missing=skip_missing, n=ngram,
            console=_progress_console(),
        )  # fmt: skip


@app.command()
def pretrain(
    output: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the checkpoint.")],
    examples: Annotated[int, typer.Option(min=1, help="Transcripts of small programs to learn from.")] = 180_000,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens a step.")] = 2048,
    learning_rate: Annotated[float, typer.Option(max=1, help="Peak rate of AdamW: embeddings and norms.")] = 2e-3,
    muon_learning_rate: Annotated[float, typer.Option(max=1, help="Peak rate of Muon: the layers' matrices.")] = 0.02,
    hidden: Annotated[int, typer.Option(min=64, help="Width, a multiple of 64.")] = 128,
    layers: Annotated[int, typer.Option(min=1, help="Depth.")] = 4,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of data and weights.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    device: Annotated[
        str, typer.Option(help="auto: a GPU where there is one; or a torch device such as cpu.")
    ] = "auto",
) -> None:
    """Make the nano policy from scratch on generated easy programs."""
    _prepare_torch()
    from selfplay_gym.training.nano import PretrainConfig, pretrain

    config = PretrainConfig(
        examples, batch_tokens, learning_rate, muon_learning_rate, hidden, layers, seed, threads, device
    )  # fmt: skip
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    progress = Progress(*columns, console=console)
    bar = progress.add_task("", total=examples)
    with ExitStack() as shown:

        def report(seen: int, loss: float, rate: float) -> None:
            if not progress.live.is_started:  # the first step is done: an error before it stands alone
                shown.enter_context(progress)
            progress.update(bar, completed=seen, description=f"loss {loss:.3f}  {rate:.0f} tokens/s")

        pretrain(config, output, report)
    console.print(f"The policy is in {output}; measure it with: selfplay-gym eval {output} --suite nano")


@bench.command(name="executor")
def bench_executor(
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; the medians are shown.")] = 7,
    thorough: Annotated[bool, typer.Option("--thorough", help="Also a call of 100,000 jobs.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Measure the sandbox's speed as ratios within one run, and which targets that meets; a minute."""
    _check_places(json_file)
    from selfplay_gym.bench import LARGEST_CALL, Plan
    from selfplay_gym.bench import bench_executor as measure

    sizes = (*Plan.sizes, LARGEST_CALL) if thorough else Plan.sizes
    result = measure(Plan(rounds, sizes=sizes), _progress_console())
    _show(result.table(), result.as_dict(), json_file)


@bench.command(name="step")
def bench_step(
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; the medians are shown.")] = 3,
    thorough: Annotated[bool, typer.Option("--thorough", help="Also an archive of a million tasks.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Measure what a step costs beside the model, by archive and by ranks, and which targets that meets; minutes."""
    _check_places(json_file)
    _prepare_torch()
    from selfplay_gym.training.bench_step import LARGEST_ARCHIVE, Plan
    from selfplay_gym.training.bench_step import bench_step as measure

    sizes = (*Plan.sizes, LARGEST_ARCHIVE) if thorough else Plan.sizes
    result = measure(Plan(rounds, sizes=sizes), _progress_console())
    _show(result.table(), result.as_dict(), json_file)


@bench.command(name="gpu")
def bench_gpu(
    sizes: Annotated[
        str, typer.Option(metavar="A,B", help="Shapes: 0.5b and 3b as Qwen2.5's, or tiny to try the command.")
    ] = "0.5b,3b",
    steps: Annotated[int, typer.Option(min=2, help="Of each; the first, which warms up, is left out.")] = 4,
    prompt_tokens: Annotated[int, typer.Option(min=16, help="Longest prompts, a token a byte.")] = 2304,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of each completion; they run to it.")] = 512,
    backend: Annotated[str | None, typer.Option(help="What samples; by default the recipe's.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override the recipe selfplay; may be repeated."),
    ] = None,
    peak_tflops: Annotated[
        float | None, typer.Option(metavar="T", help="Of the GPU in dense bfloat16; by default looked up by name.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="New folder for models and runs; by default they are removed.")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Go on without a GPU, for --sizes tiny alone.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Measure what recipe selfplay costs on this GPU, with random weights: speed, phases, memory; minutes a size."""
    _check_places(json_file)
    _prepare_torch()
    from selfplay_gym.training.bench_gpu import Plan
    from selfplay_gym.training.bench_gpu import bench_gpu as measure

    names = tuple(name for name in map(str.strip, sizes.split(",")) if name)
    plan = Plan(
        names, steps, prompt_tokens, max_new_tokens, backend, tuple(settings or ()), output, peak_tflops, cpu
    )  # fmt: skip
    result = measure(plan, _progress_console())
    _show(result.table(), result.as_dict(), json_file)


@bench.command(name="learning")
def bench_learning(
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of everything; what is finished there is not done again.")
    ] = Path("runs/bench-learning"),
    recipe: Annotated[str, typer.Option(help="What all arms are made of.")] = "nano",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override it for all arms; may be repeated.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of self-play; by default the recipe's.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each arm.")] = 3,
    arms: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            show_default="all",
            help="self-play, frozen-proposer, flat-reward, probes-not-reused, lax-gate; self-play must be there.",
        ),
    ] = None,
    data_dir: DataDir = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score only the first so many problems of a suite.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Compare self-play with arms that lack one part of it, at equal numbers of tokens; hours, one run a core."""
    _check_places(json_file)
    _prepare_torch()
    from selfplay_gym.training import learning

    names = tuple(learning.ARMS) if arms is None else tuple(name for name in map(str.strip, arms.split(",")) if name)
    plan = learning.Plan(
        output, recipe, tuple(settings or ()), steps, seeds, names, data_dir=data_dir, limit=limit
    )  # fmt: skip
    console = _progress_console()
    try:
        result = learning.bench_learning(plan, console)
    except KeyboardInterrupt:
        console.print(f"What is finished is kept in {output}; the same command goes on.", soft_wrap=True, markup=False)
        raise
    _show(result.table(), result.as_dict(), json_file)
    console.print(f"curves and tables: {output / 'learning.html'}", soft_wrap=True, markup=False, highlight=False)


@app.command(name="list")
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


STDOUT = Path("-")


def _check_places(*files: Path | None) -> None:
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


def _show(table: RenderableType, content: Mapping[str, Any], json_file: Path | None) -> None:
    """Print a result, and write it where it was asked for."""
    text = json.dumps(content, indent=2)
    if json_file == STDOUT:
        typer.echo(text)
        return
    console.print(table)
    if json_file is not None:
        write_whole(json_file, text + "\n")


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
        raise SelfPlayError(f"{', '.join(missing)} not installed; this command needs: {INSTALL}")


def _threads() -> str:
    """Say how many threads a process of training has."""
    stated = os.environ.get("OMP_NUM_THREADS", "1")
    if not stated.isdecimal() or not int(stated):
        return f"as many threads as torch likes (OMP_NUM_THREADS={inert(stated)!r} is no number of threads: unset it)"
    return "1 thread" if int(stated) == 1 else f"{int(stated)} threads"


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
    """Run the command line; what goes wrong is one line on stderr and exit code 1 (2 for usage, 130 for Ctrl-C)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a terminal that knows ASCII only, a file name in no encoding
    interrupts.remember()
    try:
        code = _run(sys.argv[1:] or ["--help"])
        sys.stdout.flush()
    except UsageError as error:
        code = _fail(_usage(error), 2)
    except SelfPlayError as error:
        code = _fail(str(error))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        code = _close_stdout()
    except OSError as error:
        reason = error.strerror or str(error)
        code = _fail(f"{error.filename}: {reason}" if error.filename else reason)
        if error.errno == errno.ENOSPC:
            _close_stdout()
    except KeyboardInterrupt:
        code = _fail("interrupted", INTERRUPTED)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    # Not `app()`, which prints usage errors as boxes and says nothing after Ctrl-C.
    command = typer.main.get_command(app)
    try:
        with command.make_context("selfplay-gym", arguments) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return 0


def _usage(error: Any) -> str:
    path = error.ctx.command_path if error.ctx else "selfplay-gym"
    message = error.format_message().replace("Value error, ", "")
    if isinstance(error.__cause__, ValidationError):  # which typer takes the words of, but not the value
        got = repr(error.__cause__.errors()[0]["input"])
        message += "" if got in message else f", got {got}"
    return f"{message} (see {path} --help)"


def _fail(message: str, code: int = 1) -> int:
    line = inert(" ".join(message.split()))
    Console(stderr=True).print(
        f"error: {line}", style="red", highlight=False, soft_wrap=True, markup=False, emoji=False
    )
    return code


def _close_stdout() -> int:
    """Let what is left of the output go, so that Python does not complain of it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 1


if __name__ == "__main__":
    main()
