"""Evaluate the checkpoints of a run, one after the other: where did it get better, and is that more than noise?

Each checkpoint has a file of answers of its own, named after all that the answers depend on, so that an interrupted
sweep goes on, one with more suites or later checkpoints asks only for what is new, and nothing of another model or
other settings is ever taken up. Tables and curve are written anew after each checkpoint.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from selfplay_gym import grading
from selfplay_gym.errors import InvalidConfig, InvalidData
from selfplay_gym.eval_protocols import Changes
from selfplay_gym.output import inert, write_whole
from selfplay_gym.protocols import Executor
from selfplay_gym.results import Report
from selfplay_gym.training.evaluate import NANO_POLICY, evaluate
from selfplay_gym.training.folder import COMPLETE, RunFolder
from selfplay_gym.training.loading import check_source, fingerprint
from selfplay_gym.training.sweep_result import Measured, Sweep

START, FINAL = "start", "model"
"""Names of what a run starts from and of what it ends with."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state of a run's policy.

    Attributes:
        step: Of the run.
        name: ``start``, ``checkpoint-N`` or ``model``.
        source: Folder or hub id.
    """

    step: int
    name: str
    source: str


def checkpoints(run: Path) -> tuple[list[Checkpoint], dict[str, str]]:
    """Return the states of a run that are there, by step, and why others are not taken.

    The last one is the run's ``model``, once there is one, and then not also the checkpoint of the same step.

    Raises:
        InvalidData: There is no run.
    """
    folder = RunFolder(run)
    if not (run / "config.yaml").is_file():
        raise InvalidData(
            f"{run} is no run folder: expected config.yaml and checkpoints/ in it, as `train` writes them"
        )
    config = folder.stored_config()
    start = str(NANO_POLICY) if config.model == "nano" else config.model
    found, skipped = [Checkpoint(0, START, start)], {}
    for path in folder.checkpoints.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if not (number.isdecimal() and path.is_dir()):
            continue
        if (path / COMPLETE).exists():
            found.append(Checkpoint(int(number), path.name, str(path)))
        else:
            skipped[path.name] = f"it was cut off while it was written, or is being written (no {COMPLETE})"
    if folder.model.is_dir():
        last = _last_step(folder, config.steps)
        found = [each for each in found if each.step < last or not each.step]
        found.append(Checkpoint(last, FINAL, str(folder.model)))
    return sorted(found, key=lambda each: each.step), skipped


def _last_step(folder: RunFolder, planned: int) -> int:
    result = folder.read_json("result.json")
    steps = result.get("steps") if isinstance(result, dict) else None
    return steps if isinstance(steps, int) else planned


def select(found: Sequence[Checkpoint], which: str, start: bool = True) -> list[Checkpoint]:
    """Return those that are asked for; the start stands first, unless it is left out.

    >>> found = [Checkpoint(step, "", "") for step in (0, 20, 40, 50)]
    >>> [[c.step for c in select(found, which)] for which in ("all", "every:40", "last:1")]
    [[0, 20, 40, 50], [0, 40, 50], [0, 50]]

    Args:
        found: By step, the start among them.
        which: ``all``, ``every:N`` for steps that N divides and the last, or ``last:N``.
        start: Whether to take what the run starts from.

    Raises:
        InvalidConfig: ``which`` is none of these.
    """
    first, rest = found[:1] if start else [], found[1:]
    kind, _, text = which.partition(":")
    number = int(text) if text.isdecimal() else 0
    if which == "all":
        return [*first, *rest]
    if kind == "every" and number:
        return [*first, *(each for each in rest if each.step % number == 0 or each is rest[-1])]
    if kind == "last" and number:
        return [*first, *rest[-number:]]
    raise InvalidConfig(f"checkpoints must be all, every:N or last:N with N of at least 1, got {which!r}")


def sweep(
    run: Path,
    names: Sequence[str],
    executor: Executor,
    *,
    which: str = "all",
    start: bool = True,
    output: Path | None = None,
    protocol: str = "default",
    sampling: Changes | None = None,
    style: str | None = None,
    console: Console | None = None,
    **how: Any,
) -> Sweep:
    """Evaluate checkpoints of a run on the named suites, and write ``sweep.html``, ``sweep.json`` and all answers.

    What cannot be loaded is named and skipped.

    Args:
        run: The run folder; the run may be under way.
        names: Registered suites.
        executor: Runs answers and, for some suites, references.
        which: As for `select`.
        start: Whether to begin with what the run starts from.
        output: Folder of the files; by default ``sweep`` in the run folder.
        protocol: How problems are put and answers sampled, as for `evaluate`.
        sampling: What of the sampling is to differ from the protocol's.
        style: Another prompt style than the protocol's.
        console: Where to show progress, if anywhere.
        **how: Further arguments of `evaluate`: ``data_dir``, ``limit``, ``skip_missing``.

    Raises:
        UnknownId: No suite, protocol or style of that name.
        InvalidData: There is no run, or a data file is missing or broken.
        InvalidConfig: ``which`` is wrong, or no checkpoint can be evaluated.
        ExecutorError: The sandbox as a whole could not be started.
    """
    found, skipped = checkpoints(run)
    asked = select(found, which, start)
    folder = output or run / "sweep"
    (folder / "answers").mkdir(parents=True, exist_ok=True)
    measured: list[Measured] = []
    result: Sweep | None = None
    began = time.monotonic()
    asking = {"protocol": protocol, "sampling": sampling or {}, "style": style}
    for number, checkpoint in enumerate(asked, start=1):
        try:
            check_source(checkpoint.source)
            keep = folder / "answers" / f"{checkpoint.name}-{_state(checkpoint.source, asking)}.jsonl"
            report = evaluate(
                checkpoint.source, names, executor, keep=keep, name=checkpoint.name, console=console,
                protocol=protocol, sampling=sampling, style=style, **how,
            )  # fmt: skip
        except InvalidConfig as error:
            skipped[checkpoint.name] = str(error)
            _say(console, f"{checkpoint.name} is skipped: {error}")
            continue
        _free()
        write_whole(folder / f"{checkpoint.name}.json", json.dumps(report.as_dict(), indent=2) + "\n")
        measured.append(Measured.of(checkpoint.step, checkpoint.name, report, measured[0] if measured else None))
        result = Sweep(str(run), tuple(measured), skipped, report.seed, report.versions)
        result.write(folder)
        _say(console, _progress(report, checkpoint, number, len(asked), time.monotonic() - began))
    if result is None:
        reasons = "; ".join(_by_reason(skipped)) or "there is none yet"
        raise InvalidConfig(f"no checkpoint of {run} can be evaluated: {reasons}")
    result.write(folder)  # with what was skipped after the last
    return result


def _state(source: str, asking: Mapping[str, Any]) -> str:
    """Return a hash of the model's files and of how it is asked, but for how often."""
    sampling = {name: value for name, value in asking["sampling"].items() if name != "samples"}
    return grading.digest({"files": fingerprint(source), **asking, "sampling": sampling})[:8]


def _by_reason(skipped: Mapping[str, str]) -> list[str]:
    """Return each reason once, with the names that it holds for."""
    names: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        names.setdefault(reason, []).append(name)
    return [f"{', '.join(found)}: {reason}" for reason, found in names.items()]


def _free() -> None:
    """Let go of the weights before others are loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _progress(report: Report, checkpoint: Checkpoint, done: int, total: int, seconds: float) -> str:
    values = ", ".join(f"{r.suite} {'-' if r.value is None else f'{r.value:.1%}'}" for r in report.results)
    left = seconds / done * (total - done)
    told = f"; {left / 60:.0f} min left" if left >= 90 else f"; {left:.0f} s left" if left else ""
    return f"step {checkpoint.step} ({checkpoint.name}), {done} of {total}: {values}{told}"


def _say(console: Console | None, line: str) -> None:
    if console is not None:
        console.print(inert(line), soft_wrap=True, markup=False, highlight=False)
