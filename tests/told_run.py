"""The command line as a script that also writes down each phase as it begins, for who wants to kill it in one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from trl import GRPOTrainer

from selfplay_gym import cli
from selfplay_gym.training.trainer import Conductor, Rollout
from selfplay_gym.training.watch import StepWatch


def tell_phases(path: str) -> None:
    """Have runs of this process write a line ``seconds step phase`` whenever a phase begins."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(step: int, phase: str) -> None:
        os.write(file, f"{time.monotonic()} {step} {phase}\n".encode())

    timed = StepWatch.phase

    @contextmanager
    def phase(watch: StepWatch, name: str) -> Iterator[None]:
        tell(watch.step, name)
        with timed(watch, name):
            yield
        tell(watch.step, "between")

    def around(owner: type, name: str, before: str | None, after: str, step: Callable[..., int]) -> None:
        plain = getattr(owner, name)

        def told(*arguments: Any, **named: Any) -> Any:
            if before:
                tell(step(*arguments), before)
            found = plain(*arguments, **named)
            tell(step(*arguments), after)
            return found

        setattr(owner, name, told)

    StepWatch.phase = phase  # type: ignore[method-assign]
    around(Rollout, "__call__", None, "update", lambda rollout, prompts, trainer: trainer.state.global_step + 1)
    around(Conductor, "on_step_end", "between", "between", lambda conductor, args, state, control: state.global_step)
    around(
        GRPOTrainer, "_save_checkpoint", "checkpoint", "checkpoint", lambda trainer, *rest: trainer.state.global_step
    )
    around(Conductor, "on_save", "checkpoint", "between", lambda conductor, args, state, control: state.global_step)


if __name__ == "__main__":
    tell_phases(sys.argv.pop(1))
    cli.main()
