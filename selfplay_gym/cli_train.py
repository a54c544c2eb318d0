"""Commands around training: start a run or go on with it, look at its settings and at what came of it."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from selfplay_gym.cli_common import JsonFlag, Settings, console, prepare_torch
from selfplay_gym.output import inert

commands = typer.Typer()


@commands.command()
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
    prepare_torch()
    from selfplay_gym.training import launch

    raise typer.Exit(launch.train(recipe, settings, output, resume=resume, console=console))


@commands.command()
def recipe(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe (`list recipes`) or a .yaml file.")],
    settings: Settings = None,
) -> None:
    """Print every setting of a recipe with what it means, as YAML that `train` takes."""
    from selfplay_gym.training.config import annotated, load

    typer.echo(annotated(load(name, settings or [])), nl=False)


@commands.command()
def plan(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe or a .yaml file.")],
    gpus: Annotated[int, typer.Option(metavar="N", help="GPUs, one process each.")],
    memory: Annotated[float, typer.Option(metavar="G", help="Memory of each GPU in GB.")],
    settings: Settings = None,
    as_json: JsonFlag = False,
) -> None:
    """Say whether a run fits its GPUs, how its rows are split, and what would fit; nothing is loaded or started."""
    prepare_torch()
    from selfplay_gym.training.plan import plan as make_plan

    found = make_plan(recipe, gpus, memory, settings or [])
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        console.print(found.table())
        for line in found.lines():
            typer.echo(inert(line))


@commands.command()
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
    prepare_torch()
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
