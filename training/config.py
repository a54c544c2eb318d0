"""The settings of a run: a recipe file, then ``--set key=value``, checked as a whole before anything starts."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from selfplay_gym.archive import How
from selfplay_gym.errors import InvalidConfig, UnknownId
from selfplay_gym.gate import GateConfig
from selfplay_gym.referee import REFERENCES, RewardConfig
from selfplay_gym.registry import unknown
from selfplay_gym.types import Limits

ADVANTAGES = ("trr++", "trr++-token", "group", "group-centred", "rae")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Lengths(_Section):
    """Longest completion of each role, in tokens."""

    propose: int = Field(128, ge=1, le=1_000_000)
    solve: int = Field(96, ge=1, le=1_000_000)


class Play(_Section):
    """Who plays what in one step."""

    proposals: int = Field(8, ge=1, description="proposals a family and step")
    tasks: int = Field(48, ge=1, description="tasks solved a step: all new ones, then replays")
    attempts: int = Field(8, ge=2, description="attempts at each task; those at a new task measure its solve rate")
    max_new_tokens: Lengths = Lengths()
    temperature: float = Field(1.0, gt=0, le=10)
    references: str = Field("uniform", description="how the tasks shown to proposers are drawn, `Archive.sample`")
    replays: How = Field("half_solved", description="how the tasks that come back are drawn, `Archive.sample`")
    prompt_tokens: int = Field(256, ge=16, le=1_000_000, description="longer prompts are not played")

    @field_validator("references")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in REFERENCES:
            raise ValueError(unknown("way to draw references", value, REFERENCES))
        return value


class Reward(_Section):
    """How the roles are paid; see `selfplay_gym.rewards`."""

    learnability: str = "absolute-zero"
    solver: str = "zero-one"
    novelty: float = Field(0.0, ge=0)
    intrinsic: dict[str, float] = Field(default={}, description="weights of extras for proposers, by name")
    intrinsic_cap: float = Field(0.5, ge=0, description="most that one of them contributes")
    combine: str = Field("sum", description="how they and the reward become one")

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

    program_characters: int = 4096
    input_characters: int = 1024
    message_characters: int = 1024
    cpu_seconds: float = 1.0
    wall_seconds: float = 5.0
    memory_bytes: int = 256 * 2**20
    output_bytes: int = 4096
    disabled: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _possible(self) -> GateSection:
        self.build()
        return self

    def build(self) -> GateConfig:
        """Return what the gate takes."""
        limits = Limits(self.cpu_seconds, self.wall_seconds, self.memory_bytes, self.output_bytes)
        caps = (self.program_characters, self.input_characters, self.message_characters)
        return GateConfig(*caps, limits, frozenset(self.disabled))


class Update(_Section):
    """The optimizer's side of a step."""

    advantage: str = "group"
    baseline_decay: float = Field(0.95, ge=0, lt=1, description="of the baselines of rae, with every row")
    learning_rate: float = Field(1e-4, gt=0, le=1)
    schedule: Literal["constant", "linear"] = Field("constant", description="linear: down to 0 at the last step")
    warmup_steps: int = Field(0, ge=0)
    max_grad_norm: float = Field(1.0, ge=0)
    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = "dapo"
    beta: float = Field(0.0, ge=0, description="weight of the KL penalty against the starting policy")
    entropy_coef: float = 0.0
    micro_batch: int = Field(64, ge=1, description="rows in one forward pass of one process")
    bf16: bool = False
    skip_padding: bool = Field(False, description="run the decoder on rows bucketed by length (CPU)")

    @field_validator("advantage")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ADVANTAGES:
            raise ValueError(unknown("advantage estimator", value, ADVANTAGES))
        return value


class Holdout(_Section):
    """The frozen programs that judge the run, before and after."""

    problems: int = Field(150, ge=1, le=150, description="problems a family and level")
    samples: int = Field(4, ge=1, description="attempts at each, at the temperature of play")


class RunConfig(_Section):
    """Everything that decides a run."""

    model: str = "nano"
    style: Literal["azr", "chat", "compact"] = "compact"
    families: dict[str, dict[str, Any]] = Field(
        default={"deduction": {}, "abduction": {}, "induction": {}}, min_length=1
    )
    seed: int = Field(0, ge=0, lt=2**32)
    steps: int = Field(100, ge=1)
    play: Play = Play()
    reward: Reward = Reward()
    gate: GateSection = GateSection()
    update: Update = Update()
    holdout: Holdout | None = Holdout()
    backend: str = "auto"
    capacity: int | None = Field(None, ge=1, description="live tasks a family; the oldest are evicted")
    processes: int | None = Field(None, ge=1, description="one a core on CPU unless said otherwise")
    save_steps: int = Field(10, ge=1)
    keep_checkpoints: int = Field(2, ge=2, description="one may be cut off while it is written")
    report_to: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _new_tasks_fit(self) -> RunConfig:
        most = self.play.proposals * len(self.families)
        if self.play.tasks < most:
            raise ValueError(
                f"play.tasks must be at least {most}, the proposals of all families, since each may become a task; "
                f"got {self.play.tasks}"
            )
        return self

    @property
    def rows(self) -> int:
        """Rows of one update at most: every proposal and every attempt."""
        return self.play.proposals * len(self.families) + self.play.tasks * self.play.attempts


def load(recipe: str, overrides: list[str]) -> RunConfig:
    """Return the settings of a shipped recipe or a YAML file, with ``key.sub=value`` overrides put in.

    Raises:
        InvalidConfig: An unknown key (the nearest is named), an impossible value, or a file that is no mapping.
        UnknownId: No such recipe.
    """
    settings = _read(recipe)
    for text in overrides:
        _put(settings, text)
    return parse(settings, recipe)


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


def recipes() -> list[str]:
    """Return the names of the shipped recipes."""
    folder = resources.files(__package__) / "recipes"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def dump(config: RunConfig) -> str:
    """Return the settings as YAML, every default included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


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


def _mapping(text: str, source: str) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(text)
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
        settings = settings.setdefault(parent, {})
        if not isinstance(settings, dict):
            raise InvalidConfig(f"--set {override!r}: {parent!r} is a value, not a section")
    try:
        settings[last] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InvalidConfig(f"--set {key!r}: {text!r} is not a YAML value") from None


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return unknown("setting", place, _keys(RunConfig))
    message = first["msg"].removeprefix("Value error, ")
    got = first.get("input")
    shown = f", got {got!r}" if isinstance(got, (str, int, float)) and repr(got) not in message else ""
    return f"{place}: {message}{shown}" if place else message + shown


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
