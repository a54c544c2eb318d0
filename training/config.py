"""The settings of a run: a recipe file, then ``--set key=value``, checked as a whole before anything starts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from selfplay_gym.answers import Sampling
from selfplay_gym.archive import Evict, How
from selfplay_gym.errors import InvalidConfig, UnknownId
from selfplay_gym.eval_protocols import Choice
from selfplay_gym.gate import GateConfig
from selfplay_gym.intrinsic import COMBINE
from selfplay_gym.output import inert
from selfplay_gym.protocols import TaskFamily
from selfplay_gym.referee import REFERENCES, RewardConfig
from selfplay_gym.registry import make_family, unknown
from selfplay_gym.rewards import LEARNABILITY
from selfplay_gym.suites import SUITES, expanded, group_names, parted
from selfplay_gym.types import Limits

ADVANTAGES = ("trr++", "trr++-token", "group", "group-centred", "rae")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Lengths(_Section):
    """Longest completion of each role, in tokens."""

    propose: int = Field(128, ge=1, le=1_000_000, description="of a proposer")
    solve: int = Field(96, ge=1, le=1_000_000, description="of a solver")


class Temperatures(_Section):
    """Sampling temperature of each role; a plain number stands for both."""

    propose: float = Field(1.0, gt=0, le=10, description="of a proposer")
    solve: float = Field(1.0, gt=0, le=10, description="of a solver")


class Play(_Section):
    """Who plays what in one step."""

    proposals: int = Field(8, ge=1, description="proposals a family and step")
    tasks: int = Field(48, ge=1, description="tasks that solvers learn from in a step: all new ones, then replays")
    attempts: int = Field(8, ge=2, description="attempts at each task; those at a new task measure its solve rate")
    reuse_probes: bool = Field(
        True,
        description="learn from the attempts at new tasks; false: they only measure, other answers are learnt from",
    )
    answers: int = Field(1, ge=1, description="without reuse_probes: answers to each task that are learnt from")
    lag: Literal[0, 1] = Field(
        1,
        description="without reuse_probes: solvers learn first from the new tasks of this step (0) or the last (1)",
    )
    probe_temperature: float | None = Field(
        None, ge=0, le=10, description="without reuse_probes: temperature of what only measures; null: as of solvers"
    )
    seed_tasks: int = Field(0, ge=0, description="tasks a family to propose and admit before the first step")
    frozen_proposer: bool = Field(
        False, description="sample proposals from the starting weights all along, and learn from answers alone"
    )
    max_new_tokens: Lengths = Field(Lengths(), description="longest completions, in tokens")
    temperature: Temperatures = Field(
        Temperatures(), description="of the samples of each role; a plain number stands for both"
    )
    references: str = Field(
        "uniform", description="how the tasks shown to proposers are drawn: " + ", ".join(REFERENCES)
    )
    replays: How = Field(
        "half_solved", description="how the tasks that come back are drawn: " + ", ".join(get_args(How))
    )
    prompt_tokens: int = Field(256, ge=16, le=1_000_000, description="longer prompts are not played")
    content_tokens: int | None = Field(
        None, ge=16, le=1_000_000, description="longer prompts of proposers are drawn again; null: as prompt_tokens"
    )

    @model_validator(mode="after")
    def _one_policy(self) -> Play:
        if self.reuse_probes and self.probe_temperature is not None:
            raise ValueError(
                "probe_temperature is for attempts that only measure: set play.reuse_probes=false, or leave it null"
            )
        return self

    @field_validator("temperature", mode="before")
    @classmethod
    def _for_both(cls, value: object) -> object:
        return value if isinstance(value, (dict, Temperatures)) else {"propose": value, "solve": value}

    @field_validator("references")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in REFERENCES:
            raise ValueError(unknown("way to draw references", value, REFERENCES))
        return value


class Reward(_Section):
    """How the roles are paid; see `selfplay_gym.rewards`."""

    learnability: str = Field(
        "absolute-zero", description="the proposer's reward over the solve rate: " + ", ".join(LEARNABILITY)
    )
    solver: str = Field(
        "zero-one", description="right, wrong, badly formatted: 1, 0, 0 (zero-one) or 1, -0.5, -1 (azr-code)"
    )
    novelty: float = Field(0.0, ge=0, description="weight of the bonus for programs of a rare shape")
    intrinsic: dict[str, float] = Field(
        default={}, description="weights of extras for proposers, such as {halstead: 0.3}"
    )
    intrinsic_cap: float = Field(0.5, ge=0, description="most that one of them contributes")
    combine: str = Field("sum", description="how they and the reward become one: " + ", ".join(COMBINE))

    @model_validator(mode="after")
    def _known(self) -> Reward:
        self.build()
        return self

    def build(self) -> RewardConfig:
        """Return what the referee takes."""
        extras = (self.intrinsic, self.intrinsic_cap, self.combine)
        return RewardConfig(self.learnability, self.solver, self.novelty, *extras)


class GateSection(_Section):
    """Caps of the gate, limits of a run, and optional checks that are disabled."""

    program_characters: int = Field(4096, description="longest program")
    input_characters: int = Field(1024, description="longest argument list of a task, each")
    message_characters: int = Field(1024, description="longest message of a task")
    cpu_seconds: float = Field(1.0, description="processor time of one call")
    wall_seconds: float = Field(5.0, description="clock time of one call, for programs that sleep")
    memory_bytes: int = Field(256 * 2**20, description="memory of one call")
    output_bytes: int = Field(4096, description="longest output; longer ones are refused, never cut")
    disabled: tuple[str, ...] = Field((), description="optional checks that are off, `selfplay-gym list checks`")
    single_def: bool = Field(False, description="refuse programs with more than one def")
    cut_outputs: int | None = Field(
        None, ge=2, description="cut the outputs of tasks to so many characters, which makes wrong ones; null: whole"
    )

    @model_validator(mode="after")
    def _possible(self) -> GateSection:
        self.build()
        return self

    def build(self) -> GateConfig:
        """Return what the gate takes."""
        limits = Limits(self.cpu_seconds, self.wall_seconds, self.memory_bytes, self.output_bytes)
        caps = (self.program_characters, self.input_characters, self.message_characters)
        return GateConfig(*caps, limits, frozenset(self.disabled), self.single_def, self.cut_outputs)


class Lora(_Section):
    """Train low-rank adapters of the linear layers instead of the weights (LoRA, arXiv:2106.09685)."""

    rank: int = Field(32, ge=1, le=4096, description="of the two matrices that an adapter is the product of")
    alpha: float = Field(64.0, gt=0, description="adapters are scaled by alpha / rank")
    targets: str | tuple[str, ...] = Field(
        "all-linear", min_length=1, description="names of the layers, or all-linear: every one but the output layer"
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        names = value if isinstance(value, (list, tuple)) else [value]
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"must be names of layers, such as [q_proj, v_proj], or all-linear, got {value!r}")
        return value


class Update(_Section):
    """The optimizer's side of a step."""

    advantage: str = Field("group", description="how advantages are made of rewards: " + ", ".join(ADVANTAGES))
    baseline_decay: float = Field(0.95, ge=0, lt=1, description="of the baselines of rae, with every row")
    learning_rate: float = Field(1e-4, gt=0, le=1, description="of AdamW, at its highest")
    schedule: Literal["constant", "linear"] = Field("constant", description="linear: down to 0 at the last step")
    warmup_steps: int = Field(0, ge=0, description="steps in which the rate rises from 0")
    max_grad_norm: float = Field(1.0, ge=0, description="longer gradients are shortened to this; 0: none is")
    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = Field(
        "dapo", description="mean over all tokens (dapo), over those of a micro-batch (bnpo), over rows (grpo)..."
    )
    beta: float = Field(0.0, ge=0, description="weight of the KL penalty against the starting policy")
    entropy_coef: float = Field(0.0, description="weight of the entropy bonus")
    micro_batch: int = Field(64, ge=1, description="rows in one forward pass of one process")
    lora: Lora | None = Field(None, description="{} trains adapters with the defaults; null: all weights are trained")
    bf16: bool = Field(
        False, description="matrix products of the update in bfloat16; weights and optimizer keep theirs"
    )
    gradient_checkpointing: bool | None = Field(
        None,
        description="keep one hidden state a layer and compute the rest again: less memory, a third more work; "
        "null: on GPUs",
    )
    skip_padding: bool = Field(
        False, description="compute no padding, no prompt twice and no row without a gradient (CPU)"
    )

    @property
    def skipping(self) -> str | None:
        """The loss where rows of advantage 0 are left out: nothing else may count, nor what a micro-batch holds."""
        plain = not self.beta and not self.entropy_coef and self.loss_type != "bnpo"
        return self.loss_type if self.skip_padding and plain else None

    @field_validator("advantage")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ADVANTAGES:
            raise ValueError(unknown("advantage estimator", value, ADVANTAGES))
        return value


class VLLM(_Section):
    """The back-end ``vllm``: where its engine runs and how long it may take."""

    mode: Literal["colocate", "server"] = Field("colocate", description="beside the trainer, or elsewhere at `url`")
    gpu_memory: float = Field(0.3, gt=0, lt=1, description="share of each GPU's memory for the engine (colocate)")
    tensor_parallel: int = Field(1, ge=1, description="GPUs that share one copy of the weights (colocate)")
    url: str = Field("http://127.0.0.1:8000", pattern=r"^https?://[^/\s]+", description="of the server")
    group_port: int = Field(51216, ge=1, le=65535, description="where weights are handed over to the server")
    start_seconds: float = Field(240.0, gt=0, description="how long to wait until the server is up")
    answer_seconds: float = Field(600.0, gt=0, description="how long one completion may take the server")


class Continuous(_Section):
    """The back-end ``continuous``."""

    memory: float = Field(0.5, gt=0, lt=1, description="share of the free memory for the cache of keys and values")


class Mismatch(_Section):
    """How far the sampler's log-probs may be from the trainer's; measured each step, at the same weights."""

    rows: int = Field(16, ge=1, description="completions of a step that are measured, spread evenly")
    alarm: float = Field(0.05, gt=0, description="mean absolute difference a token that is warned of")


class Holdout(_Section):
    """The frozen programs that judge the run, before and after."""

    every: int | None = Field(None, ge=1, description="steps from one measurement on the way to the next; null: none")
    problems: int = Field(150, ge=1, le=150, description="problems a family and level")
    samples: int = Field(4, ge=1, description="attempts at each, at the solver's temperature")


class Eval(_Section):
    """Held-out suites that the policy is scored on, as `selfplay-gym eval` does."""

    suites: tuple[str, ...] = Field(
        min_length=1, description="suites and groups, `selfplay-gym list suites` and `list groups`"
    )
    every: int | None = Field(None, ge=1, description="steps from one evaluation to the next; null: at the ends alone")
    before: bool = Field(True, description="score the starting policy too, so that the result tells the difference")
    protocol: str = Field("default", description="how they are asked, `selfplay-gym list protocols`")
    limit: int | None = Field(None, ge=1, description="only the first so many problems of each; null: all")
    samples: int | None = Field(None, ge=1, description="answers to each problem; null: the protocol's")
    temperature: float | None = Field(
        None, ge=0, le=10, description="of the answers, 0 is greedy; null: the protocol's, such as 0"
    )
    max_new_tokens: int | None = Field(
        None, ge=1, le=1_000_000, description="longest answer; null: the protocol's, else 160 in style compact, or 2048"
    )
    skip_missing: bool = Field(False, description="go on without the suites that there is no data for")
    data_dir: str | None = Field(
        None, min_length=1, description="folder of the data files; null: the variable SELFPLAY_GYM_DATA says"
    )

    @field_validator("suites", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known(self) -> Eval:
        known = [*SUITES.paths(), *group_names()]
        for name in self.suites:
            if parted(name)[0] not in known:
                raise ValueError(unknown("suite", parted(name)[0], known))
        try:
            self.choice(0).check(expanded(self.suites))
        except UnknownId as error:
            raise ValueError(str(error)) from None
        self.samplings("compact")
        return self

    def choice(self, seed: int) -> Choice:
        """Return by which protocol the policy is asked, and what is to differ from it."""
        stated = {"samples": self.samples, "temperature": self.temperature, "max_new_tokens": self.max_new_tokens}
        changes: Any = {name: value for name, value in stated.items() if value is not None} | {"seed": seed}
        return Choice(self.protocol, None, changes)

    def samplings(self, style: str) -> dict[str, Sampling]:
        """Return how a policy of a style is sampled, by the names of the suites, groups resolved."""
        choice = self.choice(0)
        return {name: choice.of(parted(name)[0]).suits(style).sampling for name in expanded(self.suites)}

    def longest(self, style: str) -> int:
        """Return the longest answer, in tokens."""
        return max(sampling.max_new_tokens or 1 for sampling in self.samplings(style).values())


class RunConfig(_Section):
    """Everything that decides a run."""

    model: str = Field("nano", description="nano, a checkpoint folder or a hub id")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the weights; bfloat16 with adapters only")
    style: Literal["azr", "chat", "compact"] = Field(
        "compact", description="prompts: azr for base models, chat with the model's own template, compact for nano"
    )
    families: dict[str, dict[str, Any]] = Field(
        default={"deduction": {}, "abduction": {}, "induction": {}},
        min_length=1,
        description="task families that are played, `selfplay-gym list families`, with settings of their own",
    )
    compare: Literal["canonical", "python"] = Field(
        "canonical", description="when values are the same: 1, 1.0 and True are three (canonical) or one (python)"
    )
    frame: Literal["strict", "loose"] = Field(
        "strict", description="loose: what keeps to answer tags alone is judged as well, and paid as badly formatted"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="fixes everything that is drawn")
    steps: int = Field(100, ge=1, description="updates, one a step")
    play: Play = Field(Play(), description="who plays what in one step")
    reward: Reward = Field(Reward(), description="how the roles are paid")
    gate: GateSection = Field(GateSection(), description="what becomes a task")
    update: Update = Field(Update(), description="the optimizer's side of a step")
    holdout: Holdout | None = Field(
        Holdout(), description="frozen programs that judge the run, before and after; null: none"
    )
    eval: Eval | None = Field(
        None, description="held-out suites that the policy is scored on, on the way and at the ends; null: none"
    )
    backend: str = Field("auto", description="what generates; auto: what suits the model and the machine")
    generation_batch: int = Field(
        128, ge=1, description="rows that one process completes at a time, where the backend does not decide"
    )
    vllm: VLLM = Field(VLLM(), description="where the engine of the backend vllm runs")
    continuous: Continuous = Field(Continuous(), description="the backend continuous")
    mismatch: Mismatch = Field(Mismatch(), description="the sampler against the trainer")
    capacity: int | None = Field(None, ge=1, description="live tasks a family; null: all")
    evict: Evict = Field("oldest", description="which tasks go beyond the capacity")
    processes: int | None = Field(None, ge=1, description="null: one a core on CPU, up to 8; one on GPUs")
    save_steps: int = Field(10, ge=1, description="steps from checkpoint to checkpoint")
    keep_checkpoints: int = Field(2, ge=2, description="one may be cut off while it is written")
    report_to: tuple[str, ...] = Field((), description="trackers, as transformers names them")

    @model_validator(mode="after")
    def _seeds_are_kept(self) -> RunConfig:
        if self.capacity is not None and self.play.seed_tasks > self.capacity:
            raise ValueError(
                f"play.seed_tasks must be at most {self.capacity}, the capacity, got {self.play.seed_tasks}"
            )
        return self

    @model_validator(mode="after")
    def _new_tasks_fit(self) -> RunConfig:
        most = self.play.proposals * len(self.families)
        if self.play.reuse_probes and self.play.tasks < most:
            raise ValueError(
                f"play.tasks must be at least {most}, the proposals of all families, since each may become a task; "
                f"got {self.play.tasks}"
            )
        return self

    @model_validator(mode="after")
    def _adapters_fit(self) -> RunConfig:
        if self.dtype == "bfloat16" and self.update.lora is None:
            raise ValueError(
                "dtype bfloat16 needs update.lora, since bfloat16 weights lose updates of less than about 1/256 of "
                "their size; to train all weights keep dtype float32 and set update.bf16=true"
            )
        if self.update.lora is not None and self.backend == "decode_loop":
            raise ValueError("backend decode_loop does not know adapters: with update.lora use transformers or auto")
        return self

    @model_validator(mode="after")
    def _start_is_kept(self) -> RunConfig:
        if self.play.frozen_proposer and self.backend == "vllm":
            raise ValueError(
                "play.frozen_proposer keeps the starting weights beside the present ones, which the engine of vLLM "
                "cannot: use another backend"
            )
        return self

    @property
    def proposals(self) -> int:
        """Proposals of one step, those of all families."""
        return self.play.proposals * len(self.families)

    @property
    def answers(self) -> int:
        """Answers that one step samples at most, those that only measure among them."""
        if self.play.reuse_probes:
            return self.play.tasks * self.play.attempts
        return self.proposals * self.play.attempts + self.play.tasks * self.play.answers

    @property
    def rows(self) -> int:
        """Rows of one update at most: every proposal and every answer that is learnt from."""
        answers = self.play.attempts if self.play.reuse_probes else self.play.answers
        return self.proposals * (not self.play.frozen_proposer) + self.play.tasks * answers

    def make_families(self) -> dict[str, TaskFamily]:
        """Return the task families; what one is told for itself goes before what all are told.

        Raises:
            UnknownId: No such family.
            InvalidConfig: An impossible setting of one.
        """
        told = {"style": self.style, "compare": self.compare}
        return {name: make_family(name, **{**told, **own}) for name, own in self.families.items()}


def load(recipe: str, overrides: list[str]) -> RunConfig:
    """Return the settings of a shipped recipe or a YAML file, with ``key.sub=value`` overrides put in.

    Raises:
        InvalidConfig: An unknown key (the nearest is named), an impossible value, or a file that is no mapping.
        UnknownId: No such recipe.
    """
    settings = _read(recipe)
    if not overrides:
        return parse(settings, recipe)
    source = "--set" if _possible(settings) else recipe
    for text in overrides:
        _put(settings, text)
    return parse(settings, source)


def override(config: RunConfig, overrides: list[str]) -> RunConfig:
    """Return the settings with ``key.sub=value`` overrides put in."""
    settings = config.model_dump(mode="json")
    for text in overrides:
        _put(settings, text)
    return parse(settings, "--set")


def parse(settings: dict[str, Any], source: str) -> RunConfig:
    """Check a mapping as a whole; the first thing that is wrong is raised as one line."""
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise InvalidConfig(f"{source}: {_explain(error)}") from None


def _possible(settings: dict[str, Any]) -> bool:
    try:
        RunConfig.model_validate(settings)
    except ValidationError:
        return False
    return True


def recipes() -> list[str]:
    """Return the names of the shipped recipes."""
    folder = resources.files(__package__) / "recipes"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def accelerate_configs() -> dict[str, Path]:
    """Return the shipped configurations of ``accelerate launch`` by name."""
    folder = Path(str(resources.files(__package__) / "accelerate"))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def dump(config: RunConfig) -> str:
    """Return the settings as YAML, every default included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def annotated(config: RunConfig) -> str:
    """Return the settings as YAML that `load` reads back, each with its description beside it."""
    return "\n".join(_annotated(config)) + "\n"


def _annotated(section: BaseModel, indent: str = "") -> Iterator[str]:
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        inner = isinstance(value, BaseModel)
        yield f"{indent}{name}:{'' if inner else ' ' + _in_line(section, name)}  # {info.description}"
        if inner:
            yield from _annotated(value, indent + "  ")


def _in_line(section: BaseModel, name: str) -> str:
    """Return a setting's value as YAML in one line."""
    value = section.model_dump(mode="json", include={name})[name]
    return yaml.safe_dump([value], default_flow_style=True, sort_keys=False, width=math.inf).strip()[1:-1]


def _read(recipe: str) -> dict[str, Any]:
    path = Path(recipe)
    if recipe in recipes():
        text = (resources.files(__package__) / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
    elif path.suffix in {".yaml", ".yml"}:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidConfig(f"{recipe}: cannot be read as a recipe: {error}") from None
    else:
        raise UnknownId(unknown("recipe", recipe, recipes()) + " (or give the path of a .yaml file)")
    return _mapping(text, recipe)


class _NoRepeats(yaml.SafeLoader):
    """Refuses a mapping with the same key twice, of which YAML itself would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := [key for key, times in Counter(keys).items() if times > 1]:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {repeated[0]!r} is set twice")
        return super().construct_mapping(node, deep)


def _mapping(text: str, source: str) -> dict[str, Any]:
    try:
        settings = yaml.load(text, _NoRepeats)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2024-13-45 is read as a date
        raise InvalidConfig(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise InvalidConfig(f"{source}: expected a mapping of settings, got {type(settings).__name__}")
    return settings


def _put(settings: dict[str, Any], override: str) -> None:
    """Put one ``key.sub=value`` in, the value read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InvalidConfig(f"--set expects key=value, got {override!r}")
    *parents, last = key.split(".")
    for parent in parents:
        if settings.get(parent) is None:  # a section that is off, such as update.lora
            settings[parent] = {}
        settings = settings[parent]
        if not isinstance(settings, dict):
            raise InvalidConfig(f"--set {override!r}: {parent!r} is a value, not a section")
    try:
        settings[last] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InvalidConfig(f"--set {key!r}: {text!r} is not a YAML value") from None


_WHOLE, _NUMBER, _SWITCH = "must be a whole number", "must be a number", "must be true or false"
_SECTION, _FILLED = "must be a section of settings, such as {{key: value}}", "must not be empty"

# What was expected, by pydantic's name of the error; its own words are for programmers.
_EXPECTED = {
    "int_type": _WHOLE, "int_parsing": _WHOLE, "int_parsing_size": _WHOLE, "int_from_float": _WHOLE,
    "float_type": _NUMBER, "float_parsing": _NUMBER, "finite_number": "must be a finite number",
    "bool_type": _SWITCH, "bool_parsing": _SWITCH,
    "string_type": "must be text", "literal_error": "must be {expected}",
    "tuple_type": "must be a list, such as [a, b]", "dict_type": _SECTION, "model_type": _SECTION,
    "string_pattern_mismatch": "must be an address such as http://127.0.0.1:8000",  # there is one pattern, of vllm.url
    "too_short": _FILLED, "string_too_short": _FILLED,
    "greater_than": "must be greater than {gt}", "greater_than_equal": "must be at least {ge}",
    "invalid_key": "is no setting, whose names are text",
    "less_than": "must be less than {lt}", "less_than_equal": "must be at most {le}",
}  # fmt: skip


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    place = inert(".".join(str(part) for part in first["loc"]))  # names of families are the user's
    if first["type"] == "extra_forbidden":
        keys, section = _keys(RunConfig), place.rpartition(".")[0]
        return unknown("setting", place, keys, [key for key in keys if key.rpartition(".")[0] == section])
    if first["type"] == "missing":
        return f"{place} must be given as well"
    got, plain = first["input"], isinstance(first["input"], (str, int, float))
    if first["type"] == "value_error":  # a check of ours, in its own words
        message = first["msg"].removeprefix("Value error, ")
        shown = f", got {got!r}" if plain and repr(got) not in message else ""
        return f"{place}: {message}{shown}" if place else message + shown
    expected = _EXPECTED.get(first["type"], "is impossible").format_map(first.get("ctx", {}))
    shown = "null" if got is None else repr(got) if plain or not got else type(got).__name__
    return f"{place} {expected}, got {shown}"


def _keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, info in section.model_fields.items():
        keys.append(prefix + name)
        inner = next((c for c in (info.annotation, *getattr(info.annotation, "__args__", ())) if _is_section(c)), None)
        if inner is not None:
            keys += _keys(inner, f"{prefix}{name}.")
    return keys


def _is_section(candidate: object) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)
