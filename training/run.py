"""One run from beginning to end: load, measure, play and learn, measure again, report."""

from __future__ import annotations

import logging
import os
import re
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import transformers
from rich.console import Console
from safetensors import SafetensorError
from transformers import AutoConfig
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from selfplay_gym.alarms import Alarms
from selfplay_gym.archive import Archive
from selfplay_gym.errors import InvalidConfig, RunFolderError, UnknownId
from selfplay_gym.gate import Gate
from selfplay_gym.protocols import Executor
from selfplay_gym.referee import Referee
from selfplay_gym.registry import executors, unknown
from selfplay_gym.report import write_report
from selfplay_gym.training import holdout, milestones, vllm
from selfplay_gym.training.advantages import make_estimator
from selfplay_gym.training.backends import BACKENDS, WithStart
from selfplay_gym.training.config import RunConfig
from selfplay_gym.training.distributed import Ranks, SharedGenerator
from selfplay_gym.training.evaluate import NANO_POLICY, positions
from selfplay_gym.training.folder import RunFolder, contents
from selfplay_gym.training.live import LiveTable
from selfplay_gym.training.loading import check_source, check_template, load_tokenizer
from selfplay_gym.training.milestones import Milestones
from selfplay_gym.training.policy import Policy
from selfplay_gym.training.result import show_result, versions
from selfplay_gym.training.rollouts import Row, SelfPlay
from selfplay_gym.training.trainer import Rollout, build_trainer
from selfplay_gym.training.watch import StepWatch

INTERRUPTED = 130
"""Exit code of a run that was stopped and can be resumed."""


def load_policy(config: RunConfig) -> Policy:
    """Return the policy that a run starts from."""
    # The trainer puts adapters into the model's own layers, which the decode loop does not know.
    backend = "transformers" if config.update.lora and config.backend == "auto" else config.backend

    def loaded() -> Policy:
        return Policy.load(
            source(config),
            dtype=config.dtype,
            backend=backend,
            batch_size=config.generation_batch,
            memory=config.continuous.memory,
        )

    policy = loaded()
    if config.play.frozen_proposer:
        policy.backend = WithStart(policy.backend, loaded().backend)
    return policy


def source(config: RunConfig) -> str:
    """Return the folder or hub id of the model that a run starts from.

    Folders are absolute: adapters keep the name of what they adapt, and are loaded from anywhere.
    """
    if config.model == "nano":
        return str(NANO_POLICY)
    return str(Path(config.model).resolve()) if Path(config.model).is_dir() else config.model


def check(config: RunConfig) -> None:
    """Refuse names that nothing is known under, before a folder is made or a process started.

    Raises:
        UnknownId: No such family, back-end or tracker.
        InvalidConfig: An impossible setting of a family, a tracker that is not installed, no model, or lengths that it
            cannot read.
    """
    config.make_families()
    if config.backend not in BACKENDS:
        raise UnknownId(unknown("generation backend", config.backend, BACKENDS))
    for name in config.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise UnknownId(unknown("tracker", name, INTEGRATION_TO_CALLBACK))
        if name not in get_available_reporting_integrations():
            raise InvalidConfig(f"report_to: the tracker {name!r} is not installed; install it or leave it out")
    check_source(source(config))
    _check_positions(config)


def check_start(config: RunConfig) -> None:
    """Try what a run cannot do without, before a folder is made or a process started.

    Raises:
        InvalidConfig: The model has no tokenizer, or none that writes chats where the style is chat.
        ExecutorError: No sandbox can be built here.
        InvalidData: The data of a suite is missing or broken.
    """
    tokenizer = load_tokenizer(source(config))
    if config.style == "chat":
        check_template(tokenizer)
    with executors.load("sandbox")() as executor:
        exam = milestones.load(config, executor)
    if exam is not None and "chat" in exam.names.values():
        check_template(tokenizer)


def _check_positions(config: RunConfig) -> None:
    """Refuse lengths that the model cannot read, as far as its configuration can be had without its weights."""
    try:
        most = positions(AutoConfig.from_pretrained(source(config), trust_remote_code=False))
    except Exception:  # whatever is wrong with it is told when the model is loaded
        return
    prompt, longest = config.play.prompt_tokens, max(config.play.max_new_tokens.model_dump().values())
    if most is not None and prompt + longest > most:
        raise InvalidConfig(
            f"play.prompt_tokens ({prompt}) and the longest of play.max_new_tokens ({longest}) add up to "
            f"{prompt + longest} tokens, but {config.model} reads {most} at most: lower one of them"
        )
    answer = config.eval.longest(config.style) if config.eval else None
    if most is not None and answer is not None and answer >= most:
        raise InvalidConfig(
            f"eval.max_new_tokens must be set below the {most} tokens that {config.model} reads, prompt included, got "
            f"{answer}"
        )
    if most is not None and config.backend == "vllm" and vllm.context(config) > most:
        raise InvalidConfig(
            f"play.prompt_tokens and eval.max_new_tokens add up to {vllm.context(config)} tokens, but {config.model} "
            f"reads {most} at most: lower one of them"
        )


def run_rank(config: RunConfig, folder: RunFolder, *, resume: bool, console: Console) -> int:
    """Play this process's part of a run; return the exit code, the same on every rank."""
    _quiet(folder)
    ranks = Ranks.from_environment()
    policy = load_policy(config)
    central = config.backend == "vllm" and config.vllm.mode == "server"
    generator = SharedGenerator(policy.backend, ranks, central=central)
    leads = ranks.is_main
    with (
        Leader(config, folder, policy, generator, console, resume)
        if leads
        else Follower(config, policy, generator) as part
    ):
        filler = policy.tokenizer.pad_token_id
        filler = policy.tokenizer.eos_token_id if filler is None else filler
        skipping = config.update.skipping
        rollout = Rollout(part.game, generator, ranks, filler, part.after_step, config.mismatch.rows, skipping)
        trainer = build_trainer(config, policy, rollout, folder, part)
        start = ranks.broadcast(part.start)
        _sync(policy)
        part.measure_before()
        with _checkpointing(folder):
            trainer.train(resume_from_checkpoint=str(folder.checkpoint(start)) if start else None)
        done = int(trainer.state.global_step)
        if done < config.steps:
            part.say_stopped(done)
            return INTERRUPTED
        with _checkpointing(folder):
            trainer.save_model(str(folder.model))
            if config.update.lora and ranks.is_main:  # beside adapters, so that lengths can be checked and runs planned
                policy.model.config.save_pretrained(folder.model)
        _sync(policy)
        part.finish()
    return 0


def _solves_holdouts(config: RunConfig, step: int) -> bool:
    """Return whether the hold-outs are solved after this step; after the last one they are anyway."""
    every = config.holdout.every if config.holdout else None
    return every is not None and step % every == 0 and step < config.steps


def _sync(policy: Policy) -> None:
    """Let an engine that holds weights of its own sample from the present ones, outside the trainer's steps."""
    if isinstance(policy.backend, vllm.VLLMBackend):
        policy.backend.sync()


@contextmanager
def _checkpointing(folder: RunFolder) -> Iterator[None]:
    """Say in one line what the libraries say in their own ways when the disk is full or a checkpoint is damaged.

    Raises:
        RunFolderError: A checkpoint can be neither written nor read. What was being written counts for nothing.
    """
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        # torch.save and torch.load raise plain RuntimeErrors, which name these parts of theirs.
        if isinstance(error, SafetensorError) or re.search("PytorchStream|inline_container", str(error)):
            reason = str(error).splitlines()[0]
            raise RunFolderError(
                f"a checkpoint in {folder.path} cannot be written or read ({reason}): check the disk and its free "
                f"space, then go on with: {folder.resume_command}"
            ) from error
        raise


class Follower:
    """What ranks other than 0 do around the trainer: generate their share when rank 0 asks."""

    game = None
    start = 0

    def __init__(self, config: RunConfig, policy: Policy, generator: SharedGenerator) -> None:
        self.config, self.policy, self.generator = config, policy, generator

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def measure_before(self) -> None:
        """Help to solve the hold-outs and to answer the suites."""
        self.generator.follow()

    def measure_during(self, step: int) -> None:
        """Help to solve the hold-outs and to answer the suites, if it is time to."""
        if _solves_holdouts(self.config, step) or milestones.due(self.config, step):
            _sync(self.policy)
            self.generator.follow()

    def finish(self) -> None:
        """Help to solve the hold-outs again, and to answer the suites if that is still to be done."""
        self.generator.follow()

    def after_step(self, watch: StepWatch, rows: Sequence[Row]) -> None:
        """Nothing: rank 0 reports."""

    def after_update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing: rank 0 reports."""

    def should_stop(self) -> bool:
        """False: rank 0 decides."""
        return False

    def archived(self) -> Mapping[str, Any]:
        """Nothing: rank 0 holds the archive."""
        return {}

    def baselines(self) -> Mapping[str, float]:
        """Nothing: rank 0 makes the advantages."""
        return {}

    def say_stopped(self, step: int) -> None:
        """Nothing: rank 0 reports."""


class Leader:
    """Rank 0: holds executor, archive and referee, measures, and reports.

    Args:
        config: The run's settings.
        folder: Where everything is kept; already prepared.
        policy: What is trained.
        generator: Generates for it on all ranks.
        console: Where progress is shown.
        resume: Go back to the last complete checkpoint instead of starting afresh.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        policy: Policy,
        generator: SharedGenerator,
        console: Console,
        resume: bool,
    ) -> None:
        self.config, self.folder, self.policy = config, folder, policy
        self.generator, self.console, self.resume = generator, console, resume
        self._stack = ExitStack()
        self._interrupted: list[bool] = []
        self._watch = StepWatch(0)
        self._step_started = time.monotonic()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.start = self.folder.resume(self.config) if self.resume else 0
            self.executor: Executor = executors.load("sandbox")()
            stack.callback(self.executor.close)
            self.milestones = Milestones(self.config, self.folder, self.policy, self.generator, self.executor)
            self.archive = stack.enter_context(self._open_archive())
            if self.resume:
                self.archive.rewind(self.start)
            self.suites = holdout.load(self.executor, self.config.style)  # kept out of training even if not measured
            self.game = self._game()
            self._alarms = Alarms(self.game.referee.proposing, self.config.mismatch.alarm)
            for record in self.folder.records():  # of a run that goes on: what it has warned of already
                self._alarms.saw(record)
            self.live = LiveTable(self.console, self.config.steps, tuple(self.game.referee.proposing))
            self._playing = stack.enter_context(ExitStack())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _open_archive(self) -> Archive:
        return Archive(self.folder.archive, capacity=self.config.capacity, evict=self.config.evict)

    def _game(self) -> SelfPlay:
        config = self.config
        gate = Gate(self.executor, config.gate.build(), held_out=holdout.programs(self.suites))
        pay, references = config.reward.build(), config.play.references
        families, loosely = config.make_families(), config.frame == "loose"
        referee = Referee(families, self.executor, self.archive, gate, pay, references, loose_frame=loosely)
        kept = self.folder.mark(self.start).get("baselines") if self.start else None
        estimate = make_estimator(config.update.advantage, config.update.baseline_decay, kept)
        chat = config.style == "chat"
        return SelfPlay(self.policy, self.generator, referee, config.play, estimate, config.seed, chat=chat)

    # -- around the trainer --------------------------------------------------------------------------------------------

    def measure_before(self) -> None:
        """Solve hold-outs and suites with the starting policy, unless that was done before the run was cut off."""
        self.console.print(self._opening(), highlight=False, soft_wrap=True)
        with self.generator.leading():
            if self.config.holdout and self.folder.read_json("holdout_before.json") is None:
                # A resumed run without this file never got beyond it, so the policy is still the starting one.
                began = time.monotonic()
                scores = self._measure("before")
                self.folder.write_json("clock.json", {"holdout_before": time.monotonic() - began})
                self.folder.write_json("holdout_before.json", scores)
            if self.config.eval and self.config.eval.before and not self.milestones.measured(0):
                with self.console.status("Answering the suites, before the run"):
                    self.milestones.measure(0)
            if not self.start:
                self._seed_archive()
        self._step_started = time.monotonic()
        # Not before: where no step has begun there is none to finish, and Ctrl-C ends the run at once.
        self._interrupted = self._playing.enter_context(_interruptible(self.console))
        self._playing.enter_context(self.live)

    def measure_during(self, step: int) -> None:
        """Solve hold-outs and suites, if it is time to; the scores stand beside the step's metrics."""
        solves, answers = _solves_holdouts(self.config, step), milestones.due(self.config, step)
        if not (solves or answers):
            return
        _sync(self.policy)
        with self.generator.leading():
            if solves:
                with self._watch.phase("holdout"):
                    scores = holdout.measure(self.config, self.policy, self.generator, self.executor, self.suites)
                self._watch.metrics.update(holdout.rates(scores))
            if answers:
                with self._watch.phase("eval"):
                    found = self.milestones.measure(step)
                self._watch.metrics.update(found)

    def _seed_archive(self) -> None:
        if self.config.play.seed_tasks:
            with self.console.status("Proposing the seed tasks"):
                self.game.seed_archive()

    def finish(self) -> None:
        """Solve the hold-outs again, write the result and show it."""
        self._playing.close()
        began = time.monotonic()
        before = self.folder.read_json("holdout_before.json")
        clock = self.folder.read_json("clock.json") or {}
        with self.generator.leading():
            after = self._measure("after") if self.config.holdout else {}
            if self.config.eval and not self.milestones.measured(self.config.steps):
                with self.console.status("Answering the suites, after the run"):
                    self.milestones.measure(self.config.steps)
        rows = holdout.compare(before, after) if self.config.holdout else []
        # Over all sessions: what was interrupted counts no less than what came after.
        seconds = clock.get("holdout_before", 0.0) + self.folder.seconds_played() + time.monotonic() - began
        result = {
            "holdout": rows,
            "eval": self.milestones.result() if self.config.eval else [],
            "verdict": holdout.verdict(rows) if rows else "No hold-out was asked for.",
            "steps": self.config.steps,
            "seconds": round(seconds, 1),
            "tier": str(self.executor.tier),
            "archive": asdict(self.archive.statistics()),
            "model": self.config.model,
            "seed": self.config.seed,
            "versions": versions(),
            "command": shlex.join(sys.argv),
        }
        self.folder.write_json("holdout_after.json", after)
        self.folder.write_json("result.json", result)
        write_report(self.folder.path)
        show_result(result, self.config, self.folder, self.console)

    def _measure(self, when: str) -> holdout.Scores:
        with self.console.status(f"Solving the hold-out programs, {when} the run"):
            return holdout.measure(self.config, self.policy, self.generator, self.executor, self.suites)

    def _opening(self) -> str:
        ranks = self.generator.ranks
        where = f"resuming after step {self.start}" if self.start else "starting"
        return (
            f"{where}: {self.config.model}, {self.policy.model.num_parameters() / 1e6:.1f} M parameters, "
            f"{ranks.world} process{'es' if ranks.world > 1 else ''}, sandbox tier {self.executor.tier}, "
            f"run folder {self.folder.path}"
        )

    # -- after each step and update ------------------------------------------------------------------------------------

    def after_step(self, watch: StepWatch, rows: Sequence[Row]) -> None:
        """Take in what happened in a step, before its update."""
        self._watch = watch
        watch.metrics["archive/tasks"] = sum(self.archive.counts().values())
        if watch.step % self.config.save_steps == 0 or watch.step == 1:
            self.folder.write_completions(watch.step, [_readable(row) for row in rows])

    def after_update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write and show the step, update included."""
        now = time.monotonic()
        seconds, self._step_started = now - self._step_started, now
        record = {"step": step, **self._watch.metrics, **metrics, "seconds/step": seconds}
        self.folder.append_metrics(record)
        self.live.show(record)
        for sentence in self._alarms.saw(record):
            self._warn(f"step {step}: {sentence}")

    def _warn(self, line: str) -> None:
        logging.getLogger(__name__).warning(line)
        self.console.print(f"warning: {line}", highlight=False, soft_wrap=True, style="yellow")

    def should_stop(self) -> bool:
        """Whether the user asked to stop."""
        return bool(self._interrupted)

    def archived(self) -> Mapping[str, Any]:
        """Say by what the archive is known again."""
        return contents(self.archive)

    def baselines(self) -> Mapping[str, float]:
        """Return what the estimator of advantages keeps."""
        return self.game.baselines()

    def say_stopped(self, step: int) -> None:
        """Say how to go on."""
        self.live.stop()
        self.console.print(
            f"Stopped after step {step}. Go on with: {self.folder.resume_command}", highlight=False, soft_wrap=True
        )


def _readable(row: Row) -> dict[str, Any]:
    shown = ("role", "family", "group", "prompt", "text", "reward", "advantage", "note")
    return {name: getattr(row, name) for name in shown}


@contextmanager
def _interruptible(console: Console) -> Iterator[list[bool]]:
    """Turn the first Ctrl-C into a request (the list is then not empty); the second one interrupts at once."""
    asked: list[bool] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        asked.append(True)
        console.print("Finishing this step and saving; press Ctrl-C again to stop at once.")

    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, previous)


def _quiet(folder: RunFolder) -> None:
    """Send what the libraries have to say to the run's log, and keep them from reporting to anyone."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func: stable over trl 1.x, tested here
    logging.basicConfig(filename=folder.log, level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    warnings.filterwarnings("default")
    for kind in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
        warnings.simplefilter("ignore", kind)  # what the libraries say of each other's old names, at every step
    transformers.utils.logging.disable_progress_bar()
