"""Commands that measure, and say which targets that meets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfplay_gym.cli_common import DataDir, JsonFile, check_places, prepare_torch, progress_console, show

commands = typer.Typer(help="Measure, and say which targets that meets.")


@commands.command(name="executor")
def bench_executor(
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; the medians are shown.")] = 7,
    thorough: Annotated[bool, typer.Option("--thorough", help="Also a call of 100,000 jobs.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Measure the sandbox's speed as ratios within one run, and which targets that meets; a minute."""
    check_places(json_file)
    from selfplay_gym.bench import LARGEST_CALL, Plan
    from selfplay_gym.bench import bench_executor as measure

    sizes = (*Plan.sizes, LARGEST_CALL) if thorough else Plan.sizes
    result = measure(Plan(rounds, sizes=sizes), progress_console())
    show(result.table(), result.as_dict(), json_file)


@commands.command(name="step")
def bench_step(
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; the medians are shown.")] = 3,
    thorough: Annotated[bool, typer.Option("--thorough", help="Also an archive of a million tasks.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Measure what a step costs beside the model, by archive and by ranks, and which targets that meets; minutes."""
    check_places(json_file)
    prepare_torch()
    from selfplay_gym.training.bench_step import LARGEST_ARCHIVE, Plan
    from selfplay_gym.training.bench_step import bench_step as measure

    sizes = (*Plan.sizes, LARGEST_ARCHIVE) if thorough else Plan.sizes
    result = measure(Plan(rounds, sizes=sizes), progress_console())
    show(result.table(), result.as_dict(), json_file)


@commands.command(name="gpu")
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
    check_places(json_file)
    prepare_torch()
    from selfplay_gym.training.bench_gpu import Plan
    from selfplay_gym.training.bench_gpu import bench_gpu as measure

    names = tuple(name for name in map(str.strip, sizes.split(",")) if name)
    plan = Plan(
        names, steps, prompt_tokens, max_new_tokens, backend, tuple(settings or ()), output, peak_tflops, cpu
    )  # fmt: skip
    result = measure(plan, progress_console())
    show(result.table(), result.as_dict(), json_file)


@commands.command(name="learning")
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
    check_places(json_file)
    prepare_torch()
    from selfplay_gym.training import learning

    names = tuple(learning.ARMS) if arms is None else tuple(name for name in map(str.strip, arms.split(",")) if name)
    plan = learning.Plan(
        output, recipe, tuple(settings or ()), steps, seeds, names, data_dir=data_dir, limit=limit
    )  # fmt: skip
    console = progress_console()
    try:
        result = learning.bench_learning(plan, console)
    except KeyboardInterrupt:
        console.print(f"What is finished is kept in {output}; the same command goes on.", soft_wrap=True, markup=False)
        raise
    show(result.table(), result.as_dict(), json_file)
    console.print(f"curves and tables: {output / 'learning.html'}", soft_wrap=True, markup=False, highlight=False)
