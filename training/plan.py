"""Whether a run fits a number of GPUs, how its rows are split, and what to change when it does not fit."""

from __future__ import annotations

import math
import shlex
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import Any

from rich import box
from rich.table import Table
from trl import GRPOConfig

from selfplay_gym.errors import InvalidConfig
from selfplay_gym.training import vllm
from selfplay_gym.training.config import Lora, RunConfig, accelerate_configs, load, override
from selfplay_gym.training.memory import GB, SHARDINGS, Memory, Shape, estimate, shape_of
from selfplay_gym.training.run import check
from selfplay_gym.training.trainer import slots, trainer_settings

MOST_GPUS = 4096
PARTS = tuple(field.name for field in fields(Memory))


@dataclass(frozen=True, slots=True)
class Batch:
    """How the rows of a step are split.

    Attributes:
        rows: Of a step at most: every proposal and every attempt.
        slots: Rows that TRL is given, fillers included; one group (``num_generations``) holds them all.
        rows_a_process: Its part of them.
        micro_batch: Rows in one forward pass of one process (``per_device_train_batch_size``).
        passes: Forward passes of a process in a step (``gradient_accumulation_steps``).
        generation_batch: As TRL computes it (``generation_batch_size``).
    """

    rows: int
    slots: int
    rows_a_process: int
    micro_batch: int
    passes: int
    generation_batch: int


def batch(config: RunConfig, gpus: int) -> Batch:
    """Split the rows as training does, and have TRL check it: its own configuration is built.

    Raises:
        InvalidConfig: TRL would refuse it.
    """
    total, micro_batch, passes = slots(config, gpus)
    settings = trainer_settings(config, gpus, on_cpu=True)
    # TRL's rules see only the product of rows a pass and processes, and here is one process. Trackers need not exist.
    settings |= {"per_device_train_batch_size": micro_batch * gpus, "report_to": "none"}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            told = GRPOConfig(output_dir=folder, **settings)
        except ValueError as error:
            raise InvalidConfig(f"TRL refuses these settings: {' '.join(str(error).split())}") from error
    return Batch(config.rows, total, micro_batch * passes, micro_batch, passes, int(told.generation_batch_size))


@dataclass(frozen=True, slots=True)
class Way:
    """One way to train: what of the model, how it is spread, and what that takes on each GPU, in bytes."""

    trained: str
    sharding: str
    memory: Memory
    without_checkpointing: float
    with_checkpointing: float


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Settings that fit: overrides for ``--set``, the sharding, how many GPUs, and the bytes on each."""

    settings: tuple[str, ...]
    sharding: str
    gpus: int
    peak: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would take.

    Attributes:
        recipe: As it was named.
        overrides: Settings put into it.
        config: Its settings.
        gpus: How many.
        memory: Of each, in bytes.
        shape: Of the model.
        batch: How rows are split.
        ways: All weights and adapters, by sharding.
        fitting: The simplest sharding under which the settings fit as they are, None if none.
        nearest: Where they do not fit, settings that do, nearest first.
    """

    recipe: str
    overrides: tuple[str, ...]
    config: RunConfig
    gpus: int
    memory: float
    shape: Shape
    batch: Batch
    ways: tuple[Way, ...]
    fitting: str | None
    nearest: tuple[Suggestion, ...]

    def launch(self, sharding: str, settings: Sequence[str] = (), gpus: int | None = None) -> str:
        """Return the line that starts the run."""
        number = self.gpus if gpus is None else gpus
        words = ["train", self.recipe, *(word for s in (*self.overrides, *settings) for word in ("--set", s))]
        run = f"{shlex.join(words)} --output runs/a"
        if number == 1:
            return f"selfplay-gym {run}"
        if sharding == "replicated":
            return f"torchrun --nproc_per_node {number} -m selfplay_gym.cli {run}"
        file = shlex.quote(str(accelerate_configs()[sharding]))
        return f"accelerate launch --config_file {file} --num_processes {number} -m selfplay_gym.cli {run}"

    def as_dict(self) -> dict[str, Any]:
        """Return everything for ``--json``; memory in GB (10^9 bytes)."""
        return {
            "recipe": self.recipe,
            "model": self.config.model,
            "gpus": self.gpus,
            "memory_gb": self.memory / GB,
            "shape": asdict(self.shape),
            "batch": asdict(self.batch),
            "ways": [
                {
                    "trained": way.trained,
                    "sharding": way.sharding,
                    **{f"{name}_gb": value / GB for name, value in asdict(way.memory).items()},
                    "peak_gb": way.memory.peak / GB,
                    "peak_without_checkpointing_gb": way.without_checkpointing / GB,
                    "peak_with_checkpointing_gb": way.with_checkpointing / GB,
                    "fits": way.memory.peak <= self.memory,
                }
                for way in self.ways
            ],
            "fits": self.fitting is not None,
            "sharding": self.fitting,
            "launch": None if self.fitting is None else self.launch(self.fitting),
            "nearest": [
                {"settings": list(s.settings), "sharding": s.sharding, "gpus": s.gpus, "peak_gb": s.peak / GB,
                 "launch": self.launch(s.sharding, s.settings, s.gpus)}
                for s in self.nearest
            ],
        }  # fmt: skip

    def table(self) -> Table:
        """Return what each way to train takes, a column for each."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, caption_justify="left")
        table.add_column(f"GB of {self.memory / GB:g}", no_wrap=True)
        for way in self.ways:
            heading = f"{way.trained} {way.sharding}".replace(" ", "\n")  # 80 columns are enough so
            table.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
        for name in PARTS:
            values = (getattr(way.memory, name) for way in self.ways)
            table.add_row(name, *(f"{value / GB:.1f}" for value in values), end_section=name == PARTS[-1])
        table.add_row("peak", *(f"{way.memory.peak / GB:.1f}" for way in self.ways), style="bold")
        table.add_row("fits", *("yes" if way.memory.peak <= self.memory else "no" for way in self.ways), style="bold")
        table.add_row("checkpointed", *(f"{way.with_checkpointing / GB:.1f}" for way in self.ways))
        table.add_row("not checkpointed", *(f"{way.without_checkpointing / GB:.1f}" for way in self.ways))
        table.caption = (
            "GB are 10^9 bytes on each GPU. The last rows: the peak with gradient checkpointing and without."
        )
        return table

    def lines(self) -> Iterator[str]:
        """Yield what to say below the table: sizes, the batch, and how to start what fits."""
        b, trained = self.batch, "adapters" if self.config.update.lora else "all weights"
        yield f"{self.config.model}: {self.shape.parameters / 1e6:,.1f} M parameters, trained: {trained}"
        yield (
            f"a step: {b.rows} rows at most in {b.slots} slots, {b.rows_a_process} a process, in {b.passes} "
            f"pass{'es' if b.passes > 1 else ''} of {b.micro_batch} rows; TRL's generation batch: {b.generation_batch}"
        )
        if self.fitting is not None:
            yield f"It fits, {self.fitting}: {self.launch(self.fitting)}"
            return
        if not self.nearest:
            yield f"It fits no way on up to {MOST_GPUS} GPUs: take a smaller model or shorter completions."
            return
        yield "It does not fit. The nearest settings that do:"
        for s in self.nearest:
            yield f"{s.peak / GB:.1f} GB: {self.launch(s.sharding, s.settings, s.gpus)}"


def plan(recipe: str, gpus: int, memory_gb: float, overrides: Sequence[str] = ()) -> Plan:
    """Work out whether a recipe fits.

    Args:
        recipe: A shipped recipe or a YAML file.
        gpus: How many GPUs, one process each.
        memory_gb: Of each GPU, in 10^9 bytes.
        overrides: As for ``train --set``.

    Raises:
        InvalidConfig: An impossible setting, number or model, or a batch that TRL refuses.
        UnknownId: No such recipe, family, back-end or tracker.
    """
    if not 1 <= gpus <= MOST_GPUS:
        raise InvalidConfig(f"gpus must be between 1 and {MOST_GPUS}, got {gpus}")
    if not (math.isfinite(memory_gb) and memory_gb > 0):
        raise InvalidConfig(f"memory must be a positive number of GB for each GPU, such as 80, got {memory_gb:g}")
    config = load(recipe, list(overrides))
    check(config)
    vllm.check_processes(config, gpus)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the libraries say of each other's old names
        shape, memory = shape_of(config), memory_gb * GB
    found = tuple(_ways(config, shape, gpus, memory))
    own = "adapters" if config.update.lora else "all weights"
    fitting = next((w.sharding for w in found if w.trained == own and w.memory.peak <= memory), None)
    nearest = () if fitting else _nearest(config, shape, gpus, memory)
    return Plan(recipe, tuple(overrides), config, gpus, memory, shape, batch(config, gpus), found, fitting, nearest)


def _shardings(config: RunConfig, gpus: int) -> tuple[str, ...]:
    """Return the ways to spread the weights; continuous batching needs them whole."""
    return SHARDINGS if gpus > 1 and config.backend != "continuous" else SHARDINGS[:1]


def _ways(config: RunConfig, shape: Shape, gpus: int, memory: float) -> Iterator[Way]:
    variants = {
        "all weights": _updated(config, lora=None).model_copy(update={"dtype": "float32"}),
        "adapters": _updated(config, lora=config.update.lora or Lora()),
    }
    for (name, variant), sharding in product(variants.items(), _shardings(config, gpus)):
        plain, saving = (_updated(variant, gradient_checkpointing=flag) for flag in (False, True))
        takes = [estimate(c, shape, sharding, gpus, memory) for c in (variant, plain, saving)]
        yield Way(name, sharding, takes[0], takes[1].peak, takes[2].peak)


def _updated(config: RunConfig, **changes: Any) -> RunConfig:
    return config.model_copy(update={"update": config.update.model_copy(update=changes)})


def _nearest(config: RunConfig, shape: Shape, gpus: int, memory: float) -> tuple[Suggestion, ...]:
    """Return the nearest settings that fit: training the same weights, and with adapters; more GPUs if nothing else."""
    number = gpus
    while number <= MOST_GPUS:
        ways = [True] if config.update.lora else [False, True]
        fits = (_first_fit(config, shape, number, memory, adapters=adapters) for adapters in ways)
        if found := tuple(suggestion for suggestion in fits if suggestion is not None):
            return found
        number *= 2
    return ()


def _first_fit(config: RunConfig, shape: Shape, gpus: int, memory: float, *, adapters: bool) -> Suggestion | None:
    for changes in _ladder(config, adapters=adapters):
        changed = override(config, changes)
        for smaller, candidate in _smaller(changed):
            for sharding in _shardings(config, gpus):
                peak = estimate(candidate, shape, sharding, gpus, memory).peak
                if peak <= memory:
                    return Suggestion((*changes, *smaller), sharding, gpus, peak)
    return None


def _ladder(config: RunConfig, *, adapters: bool) -> list[list[str]]:
    """Return sets of overrides, each more than the one before: what changes the least about the result comes first."""
    ladder = [["update.lora={}"] if adapters and not config.update.lora else []]
    if adapters and config.backend == "decode_loop":  # which knows no adapters
        ladder = [["backend=auto", *ladder[0]]]
    steps = {
        "update.gradient_checkpointing=true": config.update.gradient_checkpointing is False,
        "update.bf16=true": not config.update.bf16,
        "dtype=bfloat16": adapters and config.dtype == "float32",
    }
    for step, possible in steps.items():
        ladder += [[*ladder[-1], step]] if possible else []
    return ladder


def _smaller(config: RunConfig) -> Iterator[tuple[list[str], RunConfig]]:
    """Yield the settings with fewer rows at a time, which cost speed alone: in the update, then in generation."""
    rows, completed = config.update.micro_batch, config.generation_batch
    for n, m in product(_halved(rows), _halved(completed)):
        changes = [f"update.micro_batch={n}"] if n != rows else []
        changes += [f"generation_batch={m}"] if m != completed else []
        yield changes, _updated(config, micro_batch=n).model_copy(update={"generation_batch": m})


def _halved(number: int) -> list[int]:
    """Return a number and the powers of two below it, largest first.

    >>> _halved(12)
    [12, 8, 4, 2, 1]
    """
    return [number, *(2**n for n in range(number.bit_length(), -1, -1) if 2**n < number)]
