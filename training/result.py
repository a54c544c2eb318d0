"""What a run ends with: the content of ``result.json``, and what is shown of it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from rich.console import Console

from selfplay_gym.training import holdout, milestones
from selfplay_gym.training.config import RunConfig
from selfplay_gym.training.folder import RunFolder

PACKAGES = ("selfplay-gym", "torch", "transformers", "trl", "accelerate", "numpy")


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def show_result(result: Mapping[str, Any], config: RunConfig, folder: RunFolder, console: Console) -> None:
    """Print the tables and the verdict of a finished run."""
    if result["holdout"]:
        assert config.holdout is not None
        console.print(holdout.table(result["holdout"], config.holdout.samples))
    if result["eval"]:
        console.print(milestones.table(result["eval"]))
    console.print(result["verdict"], highlight=False, soft_wrap=True, style="bold")
    steps = f"{result['steps']} step{'s' if result['steps'] != 1 else ''}"
    console.print(
        f"{steps} in {result['seconds'] / 60:.1f} minutes; everything is in {folder.path}",
        highlight=False,
        soft_wrap=True,
    )
