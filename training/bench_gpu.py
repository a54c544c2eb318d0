"""What the recipe `selfplay` costs on the GPU of this machine, before any weights are downloaded.

A model of a public shape is built with random weights and played with by the product's own ``train``. Nothing that it
proposes is a task, so solvers are given the families' seed tasks alone, and completions run to their limit: the figures
are about the machine and say nothing of learning.
"""

from __future__ import annotations

import random
import shutil
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from selfplay_gym.bench import progress
from selfplay_gym.errors import InvalidConfig, UnknownId
from selfplay_gym.protocols import ProposingFamily
from selfplay_gym.registry import unknown
from selfplay_gym.report import phase_seconds, read_metrics
from selfplay_gym.training.config import RunConfig, dump, load
from selfplay_gym.training.folder import RunFolder
from selfplay_gym.training.jobs import run_apart
from selfplay_gym.training.loading import silent
from selfplay_gym.training.memory import BFLOAT16, FLOAT32, GB, RESERVED, Shape, estimate, shape_of

RECIPE = "selfplay"
PAD, EOS = "<|pad|>", "<|end|>"


@dataclass(frozen=True, slots=True)
class Size:
    """The shape of a Qwen2 model with tied embeddings.

    Attributes:
        hidden: Width.
        intermediate: Width inside the MLP.
        layers: Decoder layers.
        heads: Query heads.
        key_heads: Key and value heads.
        vocabulary: Rows of the embedding.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int


SIZES = {
    "0.5b": Size(896, 4864, 24, 14, 2, 151_936),
    "3b": Size(2048, 11_008, 36, 16, 2, 151_936),
    "tiny": Size(64, 128, 2, 2, 1, 320),
}
"""Shapes by name: those of Qwen2.5-0.5B and Qwen2.5-3B (``config.json`` of each), and one to try the command with."""

PEAK_TFLOPS = {
    "NVIDIA H200": 989.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA A100-PCIE-40GB": 312.0,
}
"""Matrix products in dense bfloat16, 10^12 operations a second, by the name that CUDA gives the whole GPU.

NVIDIA's data sheets of the A100, H100 and H200; those of the latter two print twice as much, with sparsity.
"""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        sizes: Names of `SIZES`.
        steps: Of each run; the first one, which warms up, is left out.
        prompt_tokens: Longest prompts, a token a byte; what `memory.estimate` reckons with.
        max_new_tokens: Of every completion, as good as none of which ends before.
        backend: What generates; None takes the recipe's.
        settings: Other ones than those of the recipe, as for ``train --set``.
        output: New folder for models and runs, which are removed where there is none.
        peak_tflops: Of the GPU; None looks its name up in `PEAK_TFLOPS`.
        cpu: Go on without a GPU, which only the size tiny is meant for.
    """

    sizes: tuple[str, ...] = ("0.5b", "3b")
    steps: int = 4
    prompt_tokens: int = 2304
    max_new_tokens: int = 512
    backend: str | None = None
    settings: tuple[str, ...] = ()
    output: Path | None = None
    peak_tflops: float | None = None
    cpu: bool = False

    def __post_init__(self) -> None:
        for name in self.sizes:
            if name not in SIZES:
                raise UnknownId(unknown("size", name, SIZES))
        if not self.sizes:
            raise InvalidConfig(f"sizes must name at least one of {', '.join(SIZES)}, got none")
        if self.steps < 2:
            raise InvalidConfig(f"steps must be at least 2, the first of which is left out, got {self.steps}")
        if self.peak_tflops is not None and not self.peak_tflops > 0:
            raise InvalidConfig(f"peak_tflops must be above 0, got {self.peak_tflops:g}")
        if self.cpu and set(self.sizes) != {"tiny"}:
            raise InvalidConfig(f"on CPU only the size tiny can be tried, got {', '.join(self.sizes)}")

    def config(self, model: Path) -> RunConfig:
        """Return the settings of a run of a random model.

        Solvers answer the seed tasks, one a family: as many rows as an eighth of the recipe's, in its proportions, and
        on CPU next to none. Without ``reuse_probes`` the tasks of a step may be fewer than its proposals.

        Raises:
            InvalidConfig: An impossible setting.
        """
        families = len(load(RECIPE, []).families)
        proposals, answers = (1, 2) if self.cpu else (8, 64)
        ours = [
            "play.reuse_probes=false", "play.replays=uniform", "play.seed_tasks=0", "play.content_tokens=null",
            f"play.proposals={proposals}", f"play.tasks={families}", f"play.answers={answers}",
            f"play.prompt_tokens={self.prompt_tokens}",
            f"play.max_new_tokens={{propose: {self.max_new_tokens}, solve: {self.max_new_tokens}}}",
            *([f"backend={self.backend}"] if self.backend else []),
        ]  # fmt: skip
        # One checkpoint, at the end: those of a step would be as much to write as the step is to compute.
        fixed = [f"steps={self.steps}", f"save_steps={self.steps}", "holdout=null", "processes=1"]
        config = load(RECIPE, [*ours, *self.settings, *fixed])
        return config.model_copy(update={"model": str(model)})


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured.

    Attributes:
        name: Of the GPU, or cpu.
        memory: Of the GPU, in bytes; 0 without one.
        peak_tflops: Of the GPU, in dense bfloat16; None where it is not known.
    """

    name: str
    memory: int
    peak_tflops: float | None


@dataclass(frozen=True, slots=True)
class Work:
    """What a step computes, in floating-point operations."""

    sampling: float
    update: float


@dataclass(frozen=True, slots=True)
class Utilisation:
    """Share of the GPU's peak while it samples, while it updates, and over the whole step."""

    sampling: float
    update: float
    step: float


@dataclass(frozen=True)
class Measured:
    """The steps of one model but the first.

    Attributes:
        size: Its name.
        parameters: How many it has.
        seconds: A step by phase, means.
        rows: Completions a step.
        prompt_tokens: Of a row, mean.
        new_tokens: Of a row, mean.
        unfinished: Share of the completions that were cut at their limit.
        tokens_per_second: While it samples.
        allocated: Most bytes that tensors took in a step; None without a GPU.
        reserved: Most bytes that torch had from the driver; None without a GPU.
        estimated: Bytes that ``plan`` reckons with at its peak.
        utilisation: None where the GPU's peak is not known.
    """

    size: str
    parameters: int
    seconds: dict[str, float]
    rows: float
    prompt_tokens: float
    new_tokens: float
    unfinished: float
    tokens_per_second: float
    allocated: float | None
    reserved: float | None
    estimated: float
    utilisation: Utilisation | None


@dataclass(frozen=True)
class GpuResult:
    """What `bench_gpu` measured, and where."""

    measured: tuple[Measured, ...]
    machine: Machine
    plan: Plan
    torch: str = field(default_factory=lambda: str(torch.__version__))

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for ``--json``; memory in bytes."""
        plan = {**asdict(self.plan), "output": None if self.plan.output is None else str(self.plan.output)}
        return {**asdict(self), "plan": plan}

    def table(self) -> Group:
        """Return the table for people, and what it does not say."""
        table = Table(title=f"recipe {RECIPE}, random weights, {self.machine.name}, torch {self.torch}")
        table.add_column("a step")
        for one in self.measured:
            table.add_column(f"{one.size}, {one.parameters / 1e6:,.1f} M", justify="right")
        for rows in (self._work_rows, self._second_rows, self._memory_rows, self._utilisation_rows):
            for what, *cells in rows():
                table.add_row(what, *cells)
            table.add_section()
        return Group(table, *(Text(line) for line in self.lines()))

    def lines(self) -> Iterator[str]:
        """Yield what must be known to read the figures."""
        yield f"Means of all {self.plan.steps} steps but the first. They are the machine's and say nothing of learning."
        if self.machine.memory:
            yield (
                f"GB are 10^9 bytes; the estimate holds {RESERVED / GB:g} GB for CUDA and fragmentation, which "
                "allocated does not."
            )
        if self.machine.peak_tflops is None:
            yield f"No model FLOP utilisation: the peak of {self.machine.name} is not known; give it by --peak-tflops."

    def _work_rows(self) -> Iterator[tuple[str, ...]]:
        yield "rows", *(f"{one.rows:,.0f}" for one in self.measured)
        yield "prompt tokens a row", *(f"{one.prompt_tokens:,.0f}" for one in self.measured)
        yield "sampled tokens a row", *(f"{one.new_tokens:,.0f}" for one in self.measured)
        yield "cut at the limit", *(f"{100 * one.unfinished:.0f}%" for one in self.measured)
        yield "sampled tokens a second", *(f"{one.tokens_per_second:,.0f}" for one in self.measured)

    def _second_rows(self) -> Iterator[tuple[str, ...]]:
        for phase in self.measured[0].seconds:
            if any(one.seconds[phase] for one in self.measured):
                cells = ((one.seconds[phase], one.seconds["step"]) for one in self.measured)
                yield f"seconds, {phase}", *(f"{taken:.2f}  {100 * taken / step:3.0f}%" for taken, step in cells)

    def _memory_rows(self) -> Iterator[tuple[str, ...]]:
        for name in ("allocated", "reserved", "estimated"):
            values = (getattr(one, name) for one in self.measured)
            yield f"GB, {name}", *("-" if value is None else f"{value / GB:.2f}" for value in values)

    def _utilisation_rows(self) -> Iterator[tuple[str, ...]]:
        if self.machine.peak_tflops is not None:
            for name in ("sampling", "update", "step"):
                found = (one.utilisation for one in self.measured)
                yield f"FLOP utilisation, {name}", *(f"{100 * getattr(used, name):.1f}%" for used in found)


def bench_gpu(plan: Plan | None = None, console: Console | None = None) -> GpuResult:
    """Measure what each size costs, one after the other.

    Args:
        plan: What; by default both public shapes.
        console: Where to show progress.

    Raises:
        InvalidConfig: There is no GPU, not enough disk, something in the folder already, or an impossible setting.
        SelfPlayError: A run failed.
    """
    plan = plan or Plan()
    machine = this_machine(plan)
    _check_prompts(plan)
    with ExitStack() as stack:
        say = stack.enter_context(progress(console))
        if plan.output is None:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="selfplay-gym-bench-")))
        else:
            folder = _new_folder(plan.output)
        found = []
        for name in plan.sizes:
            found.append(_measure(name, plan, machine, folder / name, say))
            if plan.output is None:  # a model of 3 B and its checkpoint are 55 GB
                shutil.rmtree(folder / name)
    return GpuResult(tuple(found), machine, plan)


def this_machine(plan: Plan) -> Machine:
    """Return the GPU that runs would use.

    Raises:
        InvalidConfig: There is none, and none of the sizes may do without.
    """
    if torch.cuda.is_available():
        facts = torch.cuda.get_device_properties(0)
        return Machine(facts.name, facts.total_memory, plan.peak_tflops or PEAK_TFLOPS.get(facts.name))
    if not plan.cpu:
        raise InvalidConfig(
            "bench gpu needs a GPU, and torch sees none here; to try the command on CPU: "
            "selfplay-gym bench gpu --cpu --sizes tiny"
        )
    return Machine("cpu", 0, plan.peak_tflops)


def _new_folder(output: Path) -> Path:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InvalidConfig(f"{output} holds something already: choose a new folder as --output")
    return output


def _check_prompts(plan: Plan) -> None:
    """Refuse a limit that leaves prompts out: what is not played costs nothing.

    Raises:
        InvalidConfig: Some prompts are longer.
    """
    longest = max(len(text.encode()) for text in _prompts(plan.config(Path())))
    if longest > plan.prompt_tokens:
        raise InvalidConfig(
            f"the longest prompt of the recipe has {longest} tokens, one a byte: prompt_tokens must be at least that, "
            f"got {plan.prompt_tokens}"
        )


def _prompts(config: RunConfig) -> Iterator[str]:
    """Yield the prompts that are asked while the archive holds the seed tasks alone."""
    for family in config.make_families().values():
        if isinstance(family, ProposingFamily):
            yield family.proposal_prompt(family.seeds(), random.Random(0))
            yield from map(family.solve_prompt, family.seeds())


# -- models ------------------------------------------------------------------------------------------------------------


def build_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token a byte, and names without a text for the rest of the vocabulary."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    unused = (f"<|unused-{number}|>" for number in range(vocabulary - len(bytes_) - 2))
    tokens = [*bytes_, PAD, EOS, *unused]
    core = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, eos_token=EOS, padding_side="left")


def model_config(size: Size, tokenizer: PreTrainedTokenizerFast) -> Qwen2Config:
    """Return the configuration of a size, with the tokenizer's special tokens."""
    return Qwen2Config(
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_heads,
        vocab_size=size.vocabulary,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )


def save_random(size: Size, folder: Path) -> None:
    """Write a model with random weights, in bfloat16, and its tokenizer.

    Raises:
        InvalidConfig: The disk has no room for it and for the checkpoint of a run.
    """
    tokenizer = build_tokenizer(size.vocabulary)
    config = model_config(size, tokenizer)
    folder.mkdir(parents=True)
    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(config).num_parameters()
    # The model; in the checkpoint float32 weights and two moments; weights once more in the run's model/.
    needed, free = parameters * (BFLOAT16 + 4 * FLOAT32), shutil.disk_usage(folder).free
    if free < needed:
        raise InvalidConfig(
            f"a run of this size writes up to {needed / GB:.0f} GB, but the disk of {folder} has {free / GB:.0f} GB "
            "free: name a folder on another one by --output, or by the variable TMPDIR"
        )
    torch.manual_seed(0)
    with silent():
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


# -- measuring ---------------------------------------------------------------------------------------------------------


def _measure(name: str, plan: Plan, machine: Machine, folder: Path, say: Callable[[str], None]) -> Measured:
    model, run = folder / "model", RunFolder(folder / "run")
    config = plan.config(model)
    say(f"{name}: making a model with random weights")
    save_random(SIZES[name], model)
    say(f"{name}: {plan.steps} steps")
    recipe = folder / "recipe.yaml"
    recipe.write_text(dump(config), encoding="utf-8")
    run_apart(["train", str(recipe), "--output", str(run.path)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the libraries say of each other's old names
        shape = shape_of(config)
    return measured(name, read_metrics(run.metrics)[1:], config, shape, machine)


def measured(
    name: str, steps: Sequence[dict[str, float]], config: RunConfig, shape: Shape, machine: Machine
) -> Measured:
    """Return what the metrics of some steps say of a model of a shape, beside what ``plan`` estimates for it."""
    means = {key: statistics.fmean(step[key] for step in steps) for key in _MEANS}
    seconds = phase_seconds(steps)
    work = work_of_step(shape, means["rows"], means["tokens/prompts"], means["tokens/sampled"])
    sampling = seconds["propose"] + seconds["solve"]
    return Measured(
        size=name,
        parameters=shape.parameters,
        seconds=seconds,
        rows=means["rows"],
        prompt_tokens=means["tokens/prompts"] / means["rows"],
        new_tokens=means["tokens/sampled"] / means["rows"],
        unfinished=means["unfinished"],
        tokens_per_second=means["tokens/sampled"] / sampling,
        allocated=_most(steps, "memory/allocated"),
        reserved=_most(steps, "memory/reserved"),
        estimated=estimate(config, shape, "replicated", 1, machine.memory).peak,
        utilisation=None if machine.peak_tflops is None else utilisation(work, seconds, machine.peak_tflops),
    )


_MEANS = ("rows", "tokens/prompts", "tokens/sampled", "unfinished")


def _most(steps: Sequence[dict[str, float]], key: str) -> float | None:
    return max((step[key] for step in steps if key in step), default=None)


def work_of_step(shape: Shape, rows: float, prompt_tokens: float, sampled_tokens: float) -> Work:
    """Return the floating-point operations of a step whose rows are all sampled and trained on.

    A token that is trained on takes 6 N + 12 L H Q T, with N parameters, L layers, H heads of size Q and T tokens in
    its row (PaLM, arXiv:2204.02311, appendix B); a sampled one a third, forward alone. Rows are reckoned with at their
    mean length. Training reads prompts as well; in sampling they are left out, since engines read equal ones once. What
    gradient checkpointing computes again is not counted, nor the log-probs of the phase mismatch: these are the
    operations of the model, not those of the machine.

    Args:
        shape: Of the model.
        rows: Completions of the step.
        prompt_tokens: Of all their prompts.
        sampled_tokens: Of all completions.
    """
    trained = prompt_tokens + sampled_tokens
    a_token = 2 * shape.parameters + 4 * shape.layers * shape.attention * trained / rows
    return Work(sampling=a_token * sampled_tokens, update=3 * a_token * trained)


def utilisation(work: Work, seconds: dict[str, float], peak_tflops: float) -> Utilisation:
    """Return the shares of a GPU's peak that the work is, in the time that it took."""
    peak = peak_tflops * 1e12
    return Utilisation(
        sampling=work.sampling / (seconds["propose"] + seconds["solve"]) / peak,
        update=work.update / seconds["update"] / peak,
        step=(work.sampling + work.update) / seconds["step"] / peak,
    )
