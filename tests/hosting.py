"""TRL's trainer over a small game that is generated for real, for tests of what lies between sampler and trainer."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfplay_gym.training.config import RunConfig, Temperatures
from selfplay_gym.training.distributed import Ranks, SharedGenerator
from selfplay_gym.training.folder import RunFolder
from selfplay_gym.training.generation import Request, row_seed
from selfplay_gym.training.policy import Policy
from selfplay_gym.training.rollouts import Row
from selfplay_gym.training.trainer import Rollout, build_trainer
from selfplay_gym.training.watch import StepWatch
from selfplay_gym.types import Role

PLAY = {"proposals": 1, "tasks": 4, "attempts": 3, "max_new_tokens": {"propose": 8, "solve": 8}}


class Game:
    """Completes prompts of two lengths in two roles and pays by chance."""

    def __init__(self, policy: Policy, generator: SharedGenerator, temperatures: Temperatures) -> None:
        self.policy, self.generator, self.temperatures = policy, generator, temperatures
        self.rows: list[list[Row]] = []

    def step(self, step: int, watch: StepWatch) -> list[Row]:
        rng = random.Random(step)
        prompts = [self.policy.encode(text, chat=False) for text in ("abs(x)", "def f(x):\n    return abs(x)")]
        roles: list[Role] = ["propose" if n % 3 == 0 else "solve" for n in range(12)]
        requests = [
            Request(prompts[n % 2], 3 + n % 6, getattr(self.temperatures, role), row_seed(step, n))
            for n, role in enumerate(roles)
        ]
        self.rows.append(
            [
                Row(role, "deduction", "g", "", "", request.prompt_ids, sample, 1.0, "", rng.choice((-1.0, 1.0)))
                for role, request, sample in zip(roles, requests, self.generator.generate(requests), strict=True)
            ]
        )
        return self.rows[-1]


class Silent:
    """An observer that has nothing to say."""

    def after_update(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def measure_during(self, step: int) -> None:
        pass

    def should_stop(self) -> bool:
        return False

    def archived(self) -> Mapping[str, Any]:
        return {}

    def baselines(self) -> Mapping[str, float]:
        return {}


def hosted(policy: Policy, path: Path, **settings: Any) -> tuple[Any, list[dict[str, float]], Game]:
    """Return a trainer of the policy, where the metrics of its steps will be, and its game."""
    config = RunConfig.model_validate({"families": {"deduction": {}}, "steps": 1, "play": PLAY, **settings})
    ranks, seen = Ranks(), list[dict[str, float]]()
    generator = SharedGenerator(policy.backend, ranks, central=config.backend == "vllm")
    game = Game(policy, generator, config.play.temperature)
    rollout = Rollout(
        game,  # type: ignore[arg-type]
        generator,
        ranks,
        0,
        lambda watch, rows: seen.append(watch.metrics),
        config.mismatch.rows,
    )
    folder = RunFolder(path / "run")
    folder.prepare(config)
    return build_trainer(config, policy, rollout, folder, Silent()), seen, game
