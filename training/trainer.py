"""The host: an unmodified `trl.GRPOTrainer` makes the update.

One slot of the data set stands for a whole step. `rollout_func` ignores its prompt, plays the step and returns its
rows; the "reward" is our own advantage. Advantages already have mean zero over the slot (a masked filler row takes up
what is left), so TRL's centring is the identity, ``scale_rewards="none"`` keeps it so, and any estimator and any ragged
group is hosted exactly, without a private name. Rows without a verdict and fillers have ``env_mask`` 0: they count
neither in the loss nor in its token total.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, set_seed
from trl import GRPOConfig, GRPOTrainer

from selfplay_gym.errors import InvalidConfig, SelfPlayError
from selfplay_gym.output import write_whole
from selfplay_gym.training import vllm
from selfplay_gym.training.config import RunConfig
from selfplay_gym.training.distributed import Ranks, SharedGenerator
from selfplay_gym.training.folder import COMPLETE, RunFolder
from selfplay_gym.training.mismatch import measure
from selfplay_gym.training.padding import skip_padding
from selfplay_gym.training.policy import Policy
from selfplay_gym.training.rollouts import Row, SelfPlay
from selfplay_gym.training.tempering import RoleTemperatures
from selfplay_gym.training.vllm import VLLMBackend, handing_over
from selfplay_gym.training.watch import ROUNDING, StepWatch

KEPT = ("loss", "grad_norm", "entropy", "clip_ratio/region_mean", "learning_rate")
"""Metrics of the trainer that stand beside our own."""

StepHook = Callable[[StepWatch, Sequence[Row]], None]


class Observer(Protocol):
    """Who follows a run as it goes on."""

    def after_update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take in the trainer's metrics of a step, on rank 0."""
        ...

    def measure_during(self, step: int) -> None:
        """Solve the hold-outs on the way, if it is time to; called on every rank after a step."""
        ...

    def should_stop(self) -> bool:
        """Return whether the run should save and end after this step; asked on rank 0."""
        ...

    def archived(self) -> Mapping[str, Any]:
        """Return by what the archive of a checkpoint is known again; asked on rank 0."""
        ...

    def baselines(self) -> Mapping[str, float]:
        """Return what the estimator of advantages keeps from step to step; asked on rank 0."""
        ...


class Rollout:
    """TRL's ``rollout_func``: plays one step on all ranks and hands each its slice of the rows.

    Args:
        game: Plays the step; None on ranks other than 0.
        generator: Shared by all ranks.
        ranks: The processes of the run.
        filler_id: Token of which filler rows are made.
        on_step: Told what happened, on rank 0.
        measured: How many rows of a step are compared with the trainer's log-probs (`mismatch`).
        loss_type: Of an update that may leave out rows without an advantage (`with_gradient`); None: it sees them all.
    """

    def __init__(
        self,
        game: SelfPlay | None,
        generator: SharedGenerator,
        ranks: Ranks,
        filler_id: int,
        on_step: StepHook,
        measured: int = 16,
        loss_type: str | None = None,
    ) -> None:
        self.game, self.generator, self.ranks = game, generator, ranks
        self.filler_id, self.on_step, self.measured, self.loss_type = filler_id, on_step, measured, loss_type
        self.metrics: dict[str, float] = {}
        self._handed_over = 0.0
        self.temperatures: RoleTemperatures | None = None

    def __call__(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """Return this rank's ``len(prompts)`` rows; every rank must be asked for equally many."""
        rows = self.ranks.broadcast(self._play(trainer.state.global_step + 1))
        if self.temperatures is not None:
            self.temperatures.expect(rows)
        own = slice(len(prompts) * self.ranks.rank, len(prompts) * (self.ranks.rank + 1))
        learned = rows if self.loss_type is None else with_gradient(rows, self.loss_type)
        table = tabulate(learned, len(prompts) * self.ranks.world, self.filler_id, self.ranks.world)
        started = time.perf_counter()
        self.metrics.update(measure(rows, self.measured, trainer, self.ranks).metrics())
        self._handed_over = time.perf_counter()
        self.metrics["seconds/mismatch"] = self._handed_over - started
        return {name: column[own] for name, column in table.items()}

    def updated(self, device: torch.device) -> None:
        """Note that the update with the rows of the last call is done, and what memory the step took at most."""
        memory = peak_memory(device)
        self.metrics["seconds/update"] = time.perf_counter() - self._handed_over
        self.metrics.update(memory)

    def _play(self, step: int) -> list[Row]:
        if self.game is None:
            self.generator.follow()
            return []
        watch = StepWatch(step)
        with self.generator.leading():
            rows = self.game.step(step, watch)
            self.on_step(watch, rows)
        self.metrics = watch.metrics
        return [row for row in rows if row.trained]


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the most bytes since the last call that tensors took on a GPU, and that torch had from its driver.

    Waits for what the GPU still has to do. On CPU there is nothing to return.
    """
    if device.type != "cuda":
        return {}
    torch.cuda.synchronize(device)
    allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    return {"memory/allocated": float(allocated), "memory/reserved": float(reserved)}


def with_gradient(rows: Sequence[Row], loss_type: str) -> list[Row]:
    """Return the rows that have a gradient, scaled so that the update is that of all: those of advantage 0 have none.

    Without a penalty or a bonus a row's gradient is proportional to its advantage. Losses by the row are divided by the
    number of slots, fillers included, which stays. That of dapo is divided by the tokens of the rows that count, of
    which there are now fewer: the advantages become as much smaller.
    """
    counted = [row for row in rows if row.reward is not None]
    kept = [row for row in counted if abs(row.advantage) >= ROUNDING]
    if loss_type != "dapo" or not kept:
        return kept
    scale = sum(len(row.sample.ids) for row in kept) / sum(len(row.sample.ids) for row in counted)
    return [replace(row, advantage=scale * row.advantage) for row in kept]


def tabulate(rows: Sequence[Row], slots: int, filler_id: int, world: int = 1) -> dict[str, list[Any]]:
    """Return the rows as TRL's columns, filled up to ``slots``, rank after rank; the advantages sum to zero.

    Raises:
        SelfPlayError: More rows than slots less one (the filler that takes up the remainder), or a row whose tokens
            and log-probabilities differ in number. TRL itself would train on them without a word.
    """
    fillers = slots - len(rows)
    if fillers < 1:
        raise SelfPlayError(f"{len(rows)} rows do not fit {slots} slots with one to spare")
    for row in rows:
        if not row.sample.ids or len(row.sample.ids) != len(row.sample.logprobs):
            raise SelfPlayError(f"a row has {len(row.sample.ids)} tokens and {len(row.sample.logprobs)} log-probs")
    remainders = [-math.fsum(row.advantage for row in rows)] + [0.0] * (fillers - 1)
    table: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    for part in _dealt(rows, world):
        for row in part:
            count = 0 if row.reward is None else 1
            ids, logprobs = list(row.sample.ids), list(row.sample.logprobs)
            _append(table, list(row.prompt_ids), ids, logprobs, [count] * len(ids), row.advantage)
        for _ in range(slots // world - len(part)):
            _append(table, [filler_id], [filler_id], [0.0], [0], remainders.pop(0))
    return table


_COLUMNS = ("prompt_ids", "completion_ids", "logprobs", "env_mask", "advantage")


def _append(table: dict[str, list[Any]], *values: Any) -> None:
    for name, value in zip(_COLUMNS, values, strict=True):
        table[name].append(value)


def _dealt(rows: Sequence[Row], world: int) -> list[list[Row]]:
    """Return each rank's rows: equally many, of like lengths, those of one prompt together as far as that goes."""
    groups: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.prompt_ids, []).append(row)
    ordered = sorted(groups.values(), key=lambda group: max(len(row.prompt_ids) + len(row.sample.ids) for row in group))
    dealt = [row for rank in range(world) for group in ordered[rank::world] for row in group]
    share = -(-len(dealt) // world)
    return [dealt[rank * share : (rank + 1) * share] for rank in range(world)]


def _reward_function(rollout: Rollout) -> Callable[..., list[float]]:
    """Return TRL's reward function: the advantage that the rollout brought along. Trackers get our metrics by it."""

    def advantage(
        prompts: list[Any], completions: list[Any], *, advantage: list[float], log_metric: Any, **kwargs: Any
    ) -> list[float]:
        for name, value in rollout.metrics.items():
            log_metric(name, value)
        return advantage

    return advantage


class Conductor(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Marks checkpoints as complete, passes metrics on, and ends the run early when asked to.

    Args:
        folder: The run's folder.
        rollout: Plays the steps; told when an update is done.
        observer: Measures, is told of each update, and is asked on rank 0 whether the run should save and end.
    """

    def __init__(self, folder: RunFolder, rollout: Rollout, observer: Observer) -> None:
        self.folder, self.rollout, self.ranks, self.observer = folder, rollout, rollout.ranks, observer

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Measure; end early on every rank alike, with a checkpoint; the last step always leaves one."""
        self.rollout.updated(args.device)
        self.observer.measure_during(state.global_step)
        if self.ranks.broadcast(self.observer.should_stop()):
            control.should_training_stop = True
        if control.should_training_stop or state.global_step >= state.max_steps:
            control.should_save = True
        return control

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Pass the trainer's metrics of a step on."""
        logs = kwargs.get("logs") or {}
        if self.ranks.is_main and "loss" in logs:
            self.observer.after_update(state.global_step, {name: float(logs[name]) for name in KEPT if name in logs})

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint once every rank has written its part, and leave out the model cards."""
        self.ranks.wait()
        if self.ranks.is_main:
            for card in self.folder.checkpoints.rglob("README.md"):  # TRL's, with blanks for what a run is
                card.unlink()
            mark = self.folder.checkpoint(state.global_step) / COMPLETE
            facts = {
                "step": state.global_step,
                "archive": dict(self.observer.archived()),
                "baselines": dict(self.observer.baselines()),
            }
            write_whole(mark, json.dumps(facts) + "\n")


def slots(config: RunConfig, world: int) -> tuple[int, int, int]:
    """Return (slots, rows a forward pass and process, passes a step) that hold a step's rows and one filler.

    >>> slots(RunConfig.model_validate({"play": {"proposals": 1, "tasks": 4, "attempts": 4}}), 2)
    (20, 10, 1)
    """
    needed = -(-(config.rows + 1) // world)
    passes = -(-needed // config.update.micro_batch)
    micro_batch = -(-needed // passes)
    return micro_batch * passes * world, micro_batch, passes


def trainer_settings(config: RunConfig, world: int, *, on_cpu: bool) -> dict[str, Any]:
    """Return what `trl.GRPOConfig` is told, all but the folder."""
    total, micro_batch, passes = slots(config, world)
    update, longest = config.update, config.play.max_new_tokens
    checkpointing = update.gradient_checkpointing
    return {
        "max_steps": config.steps,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": passes,
        "num_generations": total,
        "shuffle_dataset": False,
        "remove_unused_columns": False,
        "scale_rewards": "none",
        "loss_type": update.loss_type,
        "beta": update.beta,
        "entropy_coef": update.entropy_coef,
        "temperature": config.play.temperature.solve,  # proposers' rows: `RoleTemperatures`
        "max_completion_length": max(longest.propose, longest.solve),
        "learning_rate": update.learning_rate,
        "lr_scheduler_type": "linear" if update.schedule == "linear" else "constant_with_warmup",
        "warmup_steps": update.warmup_steps,
        "max_grad_norm": update.max_grad_norm,
        "weight_decay": 0.0,
        "seed": config.seed,
        "save_steps": config.save_steps,
        "save_total_limit": config.keep_checkpoints,
        "logging_steps": 1,
        "report_to": list(config.report_to) or "none",
        "use_cpu": on_cpu,
        "bf16": update.bf16,
        "gradient_checkpointing": not on_cpu if checkpointing is None else checkpointing,
        "disable_tqdm": True,
        "log_level": "error",
        "ddp_find_unused_parameters": False,
        **vllm.trainer_settings(config),
    }


def lora_config(config: RunConfig) -> Any:
    """Return the adapters asked for as a `peft.LoraConfig`; None where all weights are trained.

    Without dropout: the policy that is sampled has none, and the update must see the same one.
    """
    lora = config.update.lora
    if lora is None:
        return None
    from peft import LoraConfig  # slow to import

    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    return LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, task_type="CAUSAL_LM")


@contextmanager
def _finding_layers(config: RunConfig) -> Iterator[None]:
    """Say in one line that adapters were asked for at layers which the model has not.

    Raises:
        InvalidConfig: It has none of the names.
    """
    try:
        yield
    except ValueError as error:
        if config.update.lora is None or "arget modules" not in str(error):
            raise
        reason = str(error).partition(". ")[0]
        raise InvalidConfig(f"update.lora.targets: {reason}; name linear layers of the model, or all-linear") from error


def build_trainer(
    config: RunConfig, policy: Policy, rollout: Rollout, folder: RunFolder, observer: Observer
) -> GRPOTrainer:
    """Return the trainer, ready to run.

    Raises:
        InvalidConfig: The model has no layers of the names that adapters are asked for, or cannot have a temperature
            for each role.
        SelfPlayError: The engine that samples did not start.
    """
    settings = trainer_settings(config, rollout.ranks.world, on_cpu=policy.model.device.type == "cpu")
    args = GRPOConfig(output_dir=str(folder.checkpoints), **settings)
    engine = policy.backend if isinstance(policy.backend, VLLMBackend) else None
    set_seed(config.seed)  # adapters begin at random, the same on every rank; TRL 1.16 does so too
    with handing_over() if engine else nullcontext(), _finding_layers(config):
        trainer = GRPOTrainer(
            model=policy.model,
            reward_funcs=_reward_function(rollout),
            args=args,
            train_dataset=Dataset.from_dict({"prompt": ["one step of self-play"]}),
            processing_class=policy.tokenizer,
            rollout_func=rollout,
            callbacks=[Conductor(folder, rollout, observer)],
            peft_config=lora_config(config),
        )
    if engine:
        engine.attach(trainer.vllm_generation, config.vllm)
    # The policy's model is the trainer's, adapters put in, without what accelerate wraps around it.
    _apply_temperatures(config, policy, rollout, trainer)
    if config.update.skip_padding:
        skip_padding(policy.model)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _apply_temperatures(config: RunConfig, policy: Policy, rollout: Rollout, trainer: GRPOTrainer) -> None:
    temperatures = config.play.temperature
    if temperatures.propose == temperatures.solve:
        return
    rollout.temperatures = RoleTemperatures(temperatures)
    rollout.temperatures.attach(policy.model)
    if trainer.ref_model is not None:
        rollout.temperatures.attach(trainer.accelerator.unwrap_model(trainer.ref_model))
