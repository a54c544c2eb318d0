"""Does self-play learn, and what is each part of it worth? Arms that differ in one part, at equal numbers of tokens.

Every run is the product's own ``train``, every score its own ``eval``, in a process and on a core of its own. Files are
the only memory: what is finished is read, what was begun goes on, so the benchmark can be killed and started again.

An arm cannot simply be cut off where it has sampled as many tokens as self-play: the learning rate of its recipe falls
to its last step. So a short pilot measures how many tokens a step of the arm takes, and the run gets as many steps as
self-play's tokens buy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from selfplay_gym.errors import InvalidConfig, InvalidData, RunFolderError, UnknownId
from selfplay_gym.output import write_whole
from selfplay_gym.registry import unknown
from selfplay_gym.suites import DATA_VARIABLE, open_table
from selfplay_gym.tasks.list_functions import FILES
from selfplay_gym.training.config import RunConfig, load
from selfplay_gym.training.folder import LOCK, RunLock
from selfplay_gym.training.jobs import Job, running_jobs
from selfplay_gym.training.learning_result import FROZEN, LearningResult
from selfplay_gym.training.learning_scores import SELF_PLAY, START, Scores, read_run, read_scores

ARMS = {
    SELF_PLAY: "the recipe as it is",
    FROZEN: "tasks come from the starting weights all along",
    "flat-reward": "a proposer is paid for every task that is admitted, however hard",
    "probes-not-reused": "attempts at new tasks measure only, other answers to them are learnt from",
    "lax-gate": "the published code's checks of a proposal, as in recipe azr-paper",
}
"""The arms by name, with what is different in each."""

PILOT_STEPS = 20
"""Steps of a pilot. Its second half is measured: recipe nano takes 8 steps until replays nearly fill the batch."""

POINTS = 10
"""Measurements of the hold-outs on the way of a run."""

SUITES = {"nano": "nano-easy,nano-harder", "list_functions": "list_functions"}
"""What ends in one file of `eval`, by the name in its file name."""


@dataclass(frozen=True)
class Plan:
    """What to compare, and how thoroughly.

    Attributes:
        output: Folder of everything.
        recipe: What the arms are made of.
        settings: Overrides for all arms, ``key=value``.
        steps: Of self-play; None takes the recipe's.
        seeds: Runs of each arm; the first has the recipe's seed, each further one the next.
        arms: Names of `ARMS`, self-play among them.
        data_dir: Folder of list_functions; without one, the variable ``SELFPLAY_GYM_DATA`` says, or it is left out.
        samples: Answers to each problem at temperature 1, for the final scores.
        limit: Take the first so many problems of each suite only.
    """

    output: Path = Path("runs/bench-learning")
    recipe: str = "nano"
    settings: tuple[str, ...] = ()
    steps: int | None = None
    seeds: int = 3
    arms: tuple[str, ...] = tuple(ARMS)
    data_dir: Path | None = None
    samples: int = 8
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in self.arms:
            if name not in ARMS:
                raise UnknownId(unknown("arm", name, ARMS))
        if SELF_PLAY not in self.arms:
            raise InvalidConfig(f"the arms must include {SELF_PLAY}, whose tokens the others get as well")
        if self.seeds < 1:
            raise InvalidConfig(f"seeds must be at least 1, got {self.seeds}")

    @property
    def suites(self) -> tuple[str, ...]:
        """Names of `SUITES` that are at hand."""
        at_hand = self.data_dir is not None or bool(os.environ.get(DATA_VARIABLE))
        return tuple(name for name in SUITES if name != "list_functions" or at_hand)


class LearningBench:
    """The jobs of a plan, and what their files say.

    Raises:
        SelfPlayError: An arm of the plan is impossible with its recipe and settings.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.arms = [arm for arm in ARMS if arm in plan.arms]
        self.base = load(plan.recipe, self._common())
        self.steps = plan.steps or self.base.steps
        for arm in self.arms:
            if self.config(arm) == self.config(SELF_PLAY) and arm != SELF_PLAY:
                raise InvalidConfig(f"arm {arm} is what {plan.recipe} does anyway: leave it out")
        if "list_functions" in plan.suites:
            open_table(plan.data_dir, *FILES)

    # -- settings ------------------------------------------------------------------------------------------------------

    def config(self, arm: str) -> RunConfig:
        """Return the settings of an arm, before it is known how many steps it gets."""
        return load(self.plan.recipe, [*self._common(), *self._overrides(arm)])

    def _common(self) -> list[str]:
        return ["holdout.problems=50", "holdout.samples=2", *self.plan.settings, "processes=1"]

    def _overrides(self, arm: str) -> list[str]:
        lax = load("azr-paper", []).gate
        # Without cut_outputs, which does nothing where no output is longer than 400 characters.
        return {
            SELF_PLAY: [],
            FROZEN: ["play.frozen_proposer=true"],
            "flat-reward": ["reward.learnability=flat"],
            # No lag: the answers are to the tasks that the probes would have been of.
            "probes-not-reused": [
                "play.reuse_probes=false", f"play.answers={self.base.play.attempts}", "play.lag=0"
            ],
            "lax-gate": [f"gate.disabled=[{', '.join(lax.disabled)}]", f"gate.single_def={lax.single_def}"],
        }[arm]  # fmt: skip

    @property
    def _stored_plan(self) -> Path:
        return self.plan.output / "plan.json"

    def refuse_if_taken(self) -> None:
        """Check that the folder is new, empty or a benchmark's.

        Raises:
            RunFolderError: It is something else's.
        """
        output = self.plan.output
        if output.exists() and not output.is_dir():
            raise RunFolderError(f"{output} is a file: choose a new or empty folder as --output")
        own = {LOCK, f"{self._stored_plan.name}.part"}
        if not self._stored_plan.exists() and output.exists() and {f.name for f in output.iterdir()} - own:
            raise RunFolderError(f"{output} holds other files: choose a new or empty folder as --output")

    def claim(self) -> None:
        """Keep the folder for this plan, or check that it is this plan's; further arms and seeds may come to it.

        Raises:
            RunFolderError: It is another plan's.
        """
        asked = {"steps": self.steps, "samples": self.plan.samples, "limit": self.plan.limit}
        asked = {**self.base.model_dump(mode="json"), **asked}
        if not self._stored_plan.exists():
            write_whole(self._stored_plan, json.dumps(asked, indent=2) + "\n")
            return
        stored = _read_json(self._stored_plan)
        for key in asked:
            if stored.get(key) != asked[key]:
                raise RunFolderError(
                    f"{self.plan.output} holds a benchmark of other runs: {key} is {stored.get(key)!r} there, not "
                    f"{asked[key]!r}; choose another --output"
                )

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def folder(self, arm: str, seed: int) -> Path:
        """Return the run folder of an arm's seed, counted from 0."""
        return self.plan.output / "runs" / f"{arm}-{seed}"

    def pilot_folder(self, arm: str) -> Path:
        """Return the run folder of an arm's pilot."""
        return self.plan.output / "pilots" / arm

    def training(self, arm: str, steps: int) -> list[Job]:
        """Return the runs of an arm."""
        every = f"holdout.every={max(1, round(steps / POINTS))}"
        own = [] if self.base.holdout is None or self.base.holdout.every else [every]
        return [
            self._train(f"{arm}-{seed}", self.folder(arm, seed), arm, seed, [*own, f"steps={steps}"])
            for seed in range(self.plan.seeds)
        ]

    def pilot(self, arm: str) -> Job:
        """Return the pilot of an arm."""
        steps = min(PILOT_STEPS, self.steps)
        settings = ["holdout=null", f"steps={steps}"]
        return self._train(f"{arm}-pilot", self.pilot_folder(arm), arm, 0, settings)

    def _train(self, name: str, folder: Path, arm: str, seed: int, settings: Sequence[str]) -> Job:
        if (folder / "config.yaml").exists():
            arguments = ["--resume", "--output", str(folder)]
        else:
            settings = [*self._common(), *self._overrides(arm), f"seed={self.base.seed + seed}", *settings]
            sets = [word for setting in settings for word in ("--set", setting)]
            arguments = [self.plan.recipe, *sets, "--output", str(folder)]
        return Job(name, ("train", *arguments), folder / "result.json", self._log(f"train-{name}"))

    def scoring(self, arm: str) -> list[Job]:
        """Return the scores of an arm's models, or of the policy that all start from."""
        numbers = [0] if arm == START else range(self.plan.seeds)
        return [
            self._score(arm, seed, suites, sampled) for seed in numbers for suites in self.plan.suites
            for sampled in (True, False)
        ]  # fmt: skip

    def _score(self, arm: str, seed: int, suites: str, sampled: bool) -> Job:
        model = self.base.model if arm == START else str(self.folder(arm, seed) / "model")
        path = self.score_file(arm, seed, suites, sampled)
        asked = ["--temperature", "1", "--samples", str(self.plan.samples)] if sampled else []
        asked += ["--style", self.base.style, "--json", str(path)]
        asked += ["--limit", str(self.plan.limit)] if self.plan.limit else []
        asked += ["--data-dir", str(self.plan.data_dir)] if self.plan.data_dir else []
        return Job(path.stem, ("eval", model, "--suite", SUITES[suites], *asked), path, self._log(f"eval-{path.stem}"))

    def score_file(self, arm: str, seed: int, suites: str, sampled: bool) -> Path:
        """Return where a score is kept."""
        return self.plan.output / "scores" / f"{arm}-{seed}.{suites}.{'sampled' if sampled else 'greedy'}.json"

    def _log(self, name: str) -> Path:
        return self.plan.output / "logs" / f"{name}.txt"

    # -- equal tokens --------------------------------------------------------------------------------------------------

    def settle_steps(self) -> dict[str, int]:
        """Return how many steps each arm gets; what was settled once stays, however many seeds there are by now."""
        path = self.plan.output / "steps.json"
        settled: dict[str, int] = _read_json(path) if path.exists() else {SELF_PLAY: self.steps}
        own = read_run(self.folder(SELF_PLAY, 0)).sampled
        for arm in self.arms:
            if arm not in settled:
                settled[arm] = equal_steps(self.steps, own, read_run(self.pilot_folder(arm)).sampled)
        write_whole(path, json.dumps(settled, indent=2) + "\n")
        return settled

    # -- result --------------------------------------------------------------------------------------------------------

    def result(self) -> LearningResult:
        """Read what the jobs wrote."""
        runs = {arm: [read_run(self.folder(arm, seed)) for seed in range(self.plan.seeds)] for arm in self.arms}
        scores = {arm: [self._scores(arm, seed) for seed in range(self.plan.seeds)] for arm in self.arms}
        return LearningResult.of(
            runs, {START: [self._scores(START, 0)], **scores}, recipe=self.plan.recipe,
            overrides={arm: (ARMS[arm], tuple(self._overrides(arm))) for arm in self.arms},
            settings=self.plan.settings, samples=self.plan.samples,
        )  # fmt: skip

    def _scores(self, arm: str, seed: int) -> Scores:
        found: Scores = {}
        for suites in self.plan.suites:
            for sampled in (True, False):
                found |= read_scores(self.score_file(arm, seed, suites, sampled), sampled)
        return found


def equal_steps(steps: int, own: Sequence[float], pilot: Sequence[float]) -> int:
    """Return the steps in which an arm samples as many tokens as self-play does in its.

    Tokens a step grow while a run goes on, with the batch at first and then with the programs. So the second half of
    the pilot is compared with the same steps of self-play, and the ratio is taken for that of the whole runs.

    Args:
        steps: Of self-play.
        own: Tokens that self-play sampled in each step.
        pilot: Those of the arm, in each step of its pilot.

    >>> equal_steps(300, [5.0, 10.0, 10.0, 10.0, 12.0], [5.0, 5.0, 15.0, 15.0])
    200
    """
    second_half = slice(len(pilot) // 2, len(pilot))
    return max(1, round(steps * sum(own[second_half]) / sum(pilot[second_half])))


def bench_learning(plan: Plan | None = None, console: Console | None = None) -> LearningResult:
    """Train and score every arm, and write ``learning.html`` and ``learning.json`` into the plan's folder.

    Args:
        plan: What; by default everything, which takes hours.
        console: Where to say what is finished, and to show progress if it is a terminal.

    Raises:
        SelfPlayError: The plan is impossible, its folder another's, or a job failed; the message names its log.
    """
    plan = plan or Plan()
    bench = LearningBench(plan)
    others = [arm for arm in bench.arms if arm != SELF_PLAY]
    bench.refuse_if_taken()  # before a lock is left in somebody's folder
    with RunLock(plan.output):
        bench.claim()
        for folder in ("logs", "scores"):
            (plan.output / folder).mkdir(exist_ok=True)
        # The longest first; the pilots and the start fill the cores beside the last of them.
        first = [*bench.training(SELF_PLAY, bench.steps), *map(bench.pilot, others), *bench.scoring(START)]
        pending = sum(len(bench.training(arm, 1)) + len(bench.scoring(arm)) for arm in bench.arms) - plan.seeds
        with running_jobs(console, len(first) + pending) as jobs:
            jobs.run(first)
            steps = bench.settle_steps()
            jobs.run([job for arm in others for job in bench.training(arm, steps[arm])])
            jobs.run([job for arm in bench.arms for job in bench.scoring(arm)])
        result = bench.result()
        result.write(plan.output)
    return result


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise InvalidData(f"{path} is damaged ({error}): remove it, or choose another --output") from None
